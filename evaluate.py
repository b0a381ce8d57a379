"""Score weights on a test set: features -> distances -> ranking -> result. Without flags: the newest finished run."""

import sys
from pathlib import Path

from reid.config import Parser, add_flags, from_flags, given_flags, profile
from reid.errors import reported


def main(argv: list[str] | None = None) -> int:
    """Exit codes: 0 scored, 2 bad input."""
    parser = Parser(prog="evaluate.py", description=__doc__)
    add_flags(parser, "evaluate")
    given = given_flags(parser.parse_args(argv))
    return reported(lambda: evaluate_weights(given), given.get("debug", False))


def evaluate_weights(given: dict) -> int:
    asked = from_flags(given, profile("paper"))
    # torch comes after the flags, so that typing errors answer at once
    from reid.data.loader import ImageStore, in_order
    from reid.data.prepare import open_dataset
    from reid.evaluation.features import extract_file
    from reid.evaluation.results import evaluate
    from reid.models import read_weights
    from reid.models.backbone import sha256
    from reid.models.rrid import check_height
    from reid.runs import evaluation_folder, newest_weights, pick_device

    weights = Path(asked.pretrained_weights_dir or newest_weights(asked.exp_dir, asked.dataset_type))
    model, trained = read_weights(weights)
    config = from_flags(given, trained.for_evaluation())
    check_height(config.h, config.stripes)
    device = pick_device(config.gpus)
    dataset = open_dataset(config.dataset_type, config.dataset_path, config.split)
    folder = evaluation_folder(weights, config)
    print(f"{weights} on {dataset}")

    images = [*dataset.query, *dataset.gallery]
    store = ImageStore(images, config.h, config.w, config.num_workers, device=device)

    def load(start: int):
        return store.batches(in_order(len(images), config.batch_size, start))

    features = extract_file(
        folder / "features.h5",
        model.to(device),
        load,
        dataset.query,
        dataset.gallery,
        device,
        sha256(weights),
        dataset.fingerprint,
        precision=config.precision,
        size=f"{config.h}x{config.w}",
    )
    result = evaluate(features, device=device)
    result.save(folder)
    print(f"{result}\nresult in {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
