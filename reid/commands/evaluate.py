"""python -m reid evaluate: features -> distances -> ranking -> result. Without flags: the newest finished run."""

from dataclasses import replace
from pathlib import Path

from reid.commands import reported
from reid.commands.flags import add_flags, given_flags
from reid.config import Config
from reid.errors import InputError
from reid.profiles import from_flags, profile

SCORING = ("ap", "cmc", "metric", "rerank", "query_expansion", "no_cameras")  # each makes another result


def add_arguments(parser) -> None:
    add_flags(parser, "evaluate")


def main(arguments) -> int:
    """Scores features, or weights in this process or in one process per GPU. Exit codes: 0 scored, 2 bad input."""
    given = given_flags(arguments)
    asked = from_flags(given, profile("paper").for_evaluation())
    if asked.report:
        from reid.report import figures

        with figures.styled():  # before the long work
            pass
    if asked.features:
        if asked.pretrained_weights_dir:
            raise InputError("--features scores a file, --weights makes one: give one of the two")
        if any(asked.occlude):
            raise InputError("--occlude covers images, and --features has none: give --weights")
        return evaluate_features(asked, *given.get("dataset_type", ())[:1])
    from reid.device import process_count  # imports torch: after the flags, so that typing errors answer at once
    from reid.processes import launch

    count = process_count(asked.device, asked.gpus)
    return launch(evaluate_one, given, count) if count > 1 else evaluate_one(given)


def evaluate_one(given: dict) -> int:
    """One process's part of the work."""
    return reported(lambda: evaluate_weights(given), given.get("debug", False))


def evaluate_features(config: Config, dataset: str = "") -> int:
    """Anybody's features: the result goes beside a features.h5, else to exp_dir/features/. `dataset`: whose images the
    report shows."""
    from reid.device import find_hardware, set_up
    from reid.evaluation.features import read_features

    hardware = find_hardware(config.device, config.gpus, warn=False)
    set_up(hardware, "fp32")
    path = Path(config.features)
    features = read_features(path)
    folder = path.parent if path.name == "features.h5" else Path(config.exp_dir, "features", path.stem)
    return score(features, config, hardware.device, folder, dataset)


def score(features, config: Config, device, folder: Path, dataset: str) -> int:
    """Prints and saves the Result; settings other than the defaults get a folder of their own."""
    from reid.evaluation.record import Scoring
    from reid.evaluation.results import evaluate
    from reid.files import writing

    source = folder
    other = [(k, v) for k, v in config.changes(Config()).items() if k in SCORING]
    folder = folder.with_name("_".join([folder.name, *(k if v is True else f"{k}-{v}" for k, v in other)]))
    result = evaluate(
        features,
        Scoring(
            ap=config.ap,
            cmc=config.cmc,
            metric=config.metric,
            rerank=config.rerank,
            query_expansion=config.query_expansion,
            cameras=not config.no_cameras,
        ),
        camera_pairs=config.camera_pairs,
        fpr=config.fpr,
        device=device if device.type == "cuda" else None,
    )
    with writing(folder):
        result.save(folder)
    print(f"{result}\nresult in {folder}")
    if config.report:
        from reid.report.write import evaluation, write_report

        place = evaluation(source)
        place = place._replace(folder=folder, dataset=dataset or place.dataset)
        runs = [place.run] if place.run else []
        write_report(place, result, config.dataset_path, config.split, runs, 10, config.rerank, config.query_expansion)
    return 0


def evaluate_weights(given: dict) -> int:
    import torch

    from reid.data.loader import ImageStore, in_order
    from reid.data.prepare import open_dataset
    from reid.data.transforms import cover
    from reid.device import find_hardware, set_up
    from reid.evaluation.features import read_features
    from reid.files import sha256
    from reid.inference.describe import content_of, extract, extract_file
    from reid.models.layers import check_height
    from reid.models.weights import read_weights
    from reid.processes import connected, part_of
    from reid.runs import evaluation_folder, newest_weights

    asked = from_flags(given, profile("paper").for_evaluation())
    weights = Path(asked.pretrained_weights_dir or newest_weights(asked.exp_dir, asked.datasets))
    model, trained = read_weights(weights)
    usual = trained.for_evaluation()
    config = from_flags(given, usual)
    changed = {k: v for k, v in config.changes(usual).items() if k in ("h", "w", "precision")}
    check_height(config.h, config.stripes)
    hardware = find_hardware(config.device, config.gpus)
    device, precision = hardware.device, set_up(hardware, config.precision)
    model = model.to(device, memory_format=torch.channels_last)
    digest = sha256(weights)
    with connected(device) as here:
        for name in config.dataset_type:
            dataset = open_dataset(name, config.dataset_path, config.split)
            images = [*dataset.query, *dataset.gallery]
            store = ImageStore(images, config.h, config.w, config.num_workers, device=device)
            if here.first:
                print(f"{weights} on {dataset}")

            def load(start: int, store=store):
                rows = in_order(len(store.paths), config.batch_size, start)
                return store.batches([part_of(batch, here) for batch in rows])

            folder = evaluation_folder(weights, config.exp_dir, name, changed)
            extract_file(
                folder / "features.h5", model, load, dataset.query, dataset.gallery, device, digest,
                dataset.fingerprint, precision=precision, size=f"{config.h}x{config.w}",
                content=content_of(images) if here.first else "",
            )  # fmt: skip
            features = read_features(folder / "features.h5")
            if here.first:
                score(features, config, device, folder, name)
            for band in filter(None, config.occlude):
                rows = in_order(len(dataset.query), config.batch_size)
                covered = (cover(pixels, band) for pixels in store.batches([part_of(batch, here) for batch in rows]))
                found = extract(model, covered, len(dataset.query), device, precision=precision)
                if here.first:
                    print(f"\nband {band} of 6 of each query image is covered")
                    query = replace(features.query, features=found)
                    place = folder.with_name(f"{folder.name}_occlude-{band}")
                    score(replace(features, query=query), config, device, place, name)
    return 0
