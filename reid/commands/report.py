"""python -m reid report: a result as one page, report.html, with its figures as PNG files beside it."""

from pathlib import Path

import torch

from reid.commands.flags import check_counts
from reid.config import Config
from reid.errors import InputError
from reid.evaluation.features import read_features
from reid.evaluation.results import evaluate
from reid.report.page import write_report
from reid.report.sources import Content, find_sources
from reid.runs import read_config

FPR = 1e-3  # false-accept rate of the recommended threshold


def add_arguments(parser) -> None:
    runs = "a run, an evaluation's folder or a features file (.h5, .npz, .mat); further runs add training curves"
    parser.add_argument("inputs", metavar="RUN", nargs="+", type=Path, help=runs)
    parser.add_argument("--top", type=int, default=10, help="answers listed per query (default 10)")
    parser.add_argument(
        "--maps", nargs="+", default=[], metavar="NAME", help="draw the activation maps of these images"
    )
    parser.add_argument("--dataset_type", help="dataset whose images are shown (default: as recorded)")
    parser.add_argument("--dataset_path", help="folder of the datasets (default: that of the run, else ./datasets)")
    parser.add_argument("--split", type=int, help="entry of splits.json (default: as recorded, else 0)")


def main(arguments) -> int:
    check_counts(arguments, "top")
    first, *others = arguments.inputs
    sources, other_runs = find_sources(first), [run_of_input(path) for path in others]
    if arguments.maps and not sources[0].run:
        raise InputError(f"--maps needs the weights of a run folder, but {first} is not in one")
    device = torch.device("cuda") if torch.cuda.is_available() else None
    for source in sources:
        result = None
        if source.features:
            features = read_features(source.features, source.scoring.multi_query != "none")
            result = evaluate(features, source.scoring, fpr=FPR, device=device)
        config = read_config(source.run) if source.run else None
        typed = (arguments.dataset_type, arguments.dataset_path, arguments.split)
        content = Content(
            top=arguments.top,
            other_runs=other_runs,
            maps=arguments.maps,
            dataset=arguments.dataset_type,
            dataset_path=arguments.dataset_path or (config or Config()).dataset_path,
            split=arguments.split,
            need_images=any(value is not None for value in typed),
            device=device,
        )
        write_report(source, result, content)
    return 0


def run_of_input(path: Path) -> Path:
    """The run folder of an additional input. Raises InputError if it has none."""
    run = find_sources(path)[0].run
    if run is None:
        raise InputError(f"{path} has no run folder, so it has no training curves; report it alone")
    return run
