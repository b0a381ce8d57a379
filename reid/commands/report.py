"""python -m reid report: a result as one page, report.html, with its figures as PNG beside it."""

from pathlib import Path

import torch

from reid.errors import InputError
from reid.evaluation.features import read_features
from reid.evaluation.results import evaluate
from reid.report import facts
from reid.report.write import places, write_report

FPR = 1e-3


def add_arguments(parser) -> None:
    what = "a run, an evaluation's folder or a features file (.h5, .npz, .mat); further runs: their training curves"
    parser.add_argument("inputs", metavar="RUN", nargs="+", type=Path, help=what)
    parser.add_argument("--k", type=int, default=10, help="answers listed for each query (default 10)")
    parser.add_argument("--maps", nargs="+", default=[], metavar="NAME", help="images whose activation map is shown")
    parser.add_argument("--dataset_type", default="", help="whose images are shown (default: as the folder says)")
    parser.add_argument("--dataset_path", default="", help="folder of the datasets (default: as the run says)")
    parser.add_argument("--split", type=int, default=0, help="entry of splits.json (default 0)")


def main(arguments) -> int:
    if arguments.k < 1:
        raise InputError(f"--k {arguments.k} is too small; the least is 1")
    first, *others = [places(path) for path in arguments.inputs]
    runs = list(dict.fromkeys(place.run for found in (first, *others) for place in found if place.run))
    for path, found in zip(arguments.inputs[1:], others):
        if not found[0].run:
            raise InputError(
                f"{path} has no run folder, so no training curves to lay over the first's; report it alone"
            )
    if arguments.maps and not first[0].run:
        raise InputError(f"--maps needs the weights of a run folder, and {arguments.inputs[0]} has none")
    for place in first:
        place = place._replace(dataset=arguments.dataset_type or place.dataset)
        source = arguments.dataset_path
        if not source:
            source = facts.read_run(place.run)[0].get("dataset_path", "./datasets") if place.run else "./datasets"
        result = None
        if place.features:
            features = read_features(place.features)
            result = evaluate(features, fpr=FPR, device="cuda" if torch.cuda.is_available() else None)
        typed = bool(arguments.dataset_type or arguments.dataset_path or arguments.split)
        write_report(place, result, source, arguments.split, runs, arguments.k, maps=arguments.maps, need_images=typed)
    return 0
