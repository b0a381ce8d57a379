"""python -m reid check: what is wrong with a dataset, found before training."""

import argparse
import json
import time
from collections import Counter

from reid.data.check import Decoded, Finding, check_images, check_lists
from reid.data.prepare import folder_of
from reid.data.records import SUBSETS, Dataset, read_dataset
from reid.errors import InputError, MissingInput

SHOWN = 20  # findings of one rule on the screen; --json has all


def tables(dataset: Dataset, read: dict[str, Decoded]) -> dict[str, dict[str, dict[str, int]]]:
    """{table: {row: {column: number}}}: cameras and images of an identity by subset, sizes and kinds of the files."""
    good = [result for result in read.values() if not result.problem]
    sizes = Counter(f"{width}x{height}" for width, height in (result.size for result in good))
    kinds = Counter(result.kind for result in good)
    found: dict = {"subsets": {}, "images of camera": {}, "images of an identity": {}}
    for subset in SUBSETS:
        images = getattr(dataset, subset)
        pids, cameras = Counter(image.pid for image in images), Counter(image.camid for image in images)
        spread = sorted(n for pid, n in pids.items() if pid not in dataset.distractors) or [0]
        found["subsets"][subset] = {"identities": len(pids), "images": len(images), "cameras": len(cameras)}
        found["images of camera"][subset] = {str(camera): cameras[camera] for camera in range(dataset.num_cameras)}
        middle, few = spread[len(spread) // 2], sum(n <= 4 for n in spread)
        row = {"least": spread[0], "median": middle, "most": spread[-1], "4 or fewer": few}
        found["images of an identity"][subset] = row
    return found | {"files": {"width x height": dict(sizes.most_common()), "kind": dict(kinds.most_common())}}


def as_text(found: dict[str, dict[str, dict[str, int]]]) -> str:
    lines = []
    for title, rows in found.items():
        if title != "files":
            lines.append(f"{title:<22}" + "".join(f"{column:>11}" for column in next(iter(rows.values()))))
            lines += [f"{row:<22}" + "".join(f"{n:>11,}" for n in values.values()) for row, values in rows.items()]
            continue
        for row, values in rows.items():
            shown = ", ".join(f"{value} {n:,}" for value, n in list(values.items())[:8])
            lines.append(f"{row}: {shown or 'none'}{f', ... ({len(values):,} in all)' if len(values) > 8 else ''}")
    return "\n".join(lines)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dataset", help="a prepared dataset under --dataset_path")
    parser.add_argument("--dataset_path", default="./datasets", help="folder of the datasets (default ./datasets)")
    parser.add_argument("--split", type=int, default=0, help="entry of splits.json (default 0)")
    parser.add_argument("--json", action="store_true", help="everything as JSON on the standard output")


def main(arguments: argparse.Namespace) -> int:
    """Exit code 1 when there is a finding."""
    start = time.perf_counter()
    folder = folder_of(arguments.dataset, arguments.dataset_path)
    if not (folder / "meta.json").exists():
        raise MissingInput(
            f"{folder} is no prepared dataset (no meta.json): python -m reid prepare {arguments.dataset}"
        )
    found: list[Finding] = []
    result: dict = {"dataset": folder.name}
    try:
        dataset = read_dataset(folder, arguments.split, lambda m: found.append(Finding("error", "contract", m)))
    except InputError as e:
        found.append(Finding("error", "contract", str(e)))
    else:
        of_images, read = check_images(dataset)
        found += check_lists(dataset) + of_images
        result |= {"protocol": dataset.protocol, "tables": tables(dataset, read)}
    if arguments.json:
        print(json.dumps(result | {"findings": [finding._asdict() for finding in found]}, indent=2))
        return int(bool(found))
    print(f"{folder.name}: {result.get('protocol', 'the lists cannot be read')}\n{as_text(result.get('tables', {}))}")
    for rule, count in sorted(Counter(finding[:2] for finding in found).items()):
        some = [finding.message for finding in found if finding[:2] == rule]
        print(f"{rule[0]}: {rule[1]} ({count:,})", *some[:SHOWN], sep="\n  ")
        if count > SHOWN:
            print(f"  ... and {count - SHOWN:,} more (--json lists all)")
    print(f"{len(found):,} findings in {time.perf_counter() - start:.1f} s")
    return int(bool(found))
