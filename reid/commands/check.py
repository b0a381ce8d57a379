"""python -m reid check: finds defects of a dataset before training."""

import argparse
import json
import time
from collections import Counter
from pathlib import Path

from reid.data.check import Finding, camera_shares, check_lists
from reid.data.check_files import Decoded, Examined, check_images, described
from reid.data.messages import indented
from reid.data.prepare import folder_of
from reid.data.read import read_dataset
from reid.data.records import Dataset
from reid.errors import InputError, MissingInput
from reid.report.sheet import Group, Shown, write_sheet

SHOWN = 20  # findings of one rule on the screen; --json has all
Tables = dict[str, dict[str, dict[str, int]]]  # {table: {row: {column: number}}}


def tables(dataset: Dataset, read: dict[str, Decoded]) -> Tables:
    """Statistics by subset, and the sizes and kinds of the files."""
    found: Tables = {"subsets": {}, "images of camera": {}, "images of an identity": {}}
    for subset, images in dataset.subsets.items():
        pids = Counter(image.pid for image in images)
        cameras = Counter(image.camid for image in images)
        row = {"identities": len(pids), "images": len(images), "cameras": len(cameras)}
        found["subsets"][subset] = row
        row = {dataset.labels.camera(camera): cameras[camera] for camera in range(dataset.num_cameras)}
        found["images of camera"][subset] = row
        ordinary = sorted(n for pid, n in pids.items() if pid not in dataset.distractors) or [0]
        row = {"least": ordinary[0], "median": ordinary[len(ordinary) // 2], "most": ordinary[-1]}
        row["4 or fewer"] = sum(n <= 4 for n in ordinary)
        found["images of an identity"][subset] = row
    good = [result for result in read.values() if not result.problem]
    sizes = Counter("{}x{}".format(*result.size) for result in good)
    kinds = Counter(result.kind for result in good)
    files = {"width x height": dict(sizes.most_common()), "kind": dict(kinds.most_common())}
    return found | {"files": files}


def as_text(found: Tables) -> str:
    lines = []
    for title, rows in found.items():
        if title == "files":
            continue
        columns = next(iter(rows.values()))
        widths = [max(11, len(column) + 2) for column in columns]
        lines.append(f"{title:<22}" + "".join(f"{column:>{w}}" for column, w in zip(columns, widths)))
        for row, values in rows.items():
            lines.append(f"{row:<22}" + "".join(f"{n:>{w},}" for n, w in zip(values.values(), widths)))
    for row, values in found.get("files", {}).items():
        shown = ", ".join(f"{value} {n:,}" for value, n in list(values.items())[:8])
        more = f", ... ({len(values):,} in all)" if len(values) > 8 else ""
        lines.append(f"{row}: {shown or 'none'}{more}")
    return "\n".join(lines)


def rests_on(dataset: Dataset) -> str:
    """How much of the test rests on one camera, or "" without cameras."""
    shares = camera_shares(dataset).items()
    seen = {what: f"from {dataset.camera(camid)} ({share:.0%})" for what, (camid, share) in shares}
    return f"most queries are {seen['queries']}, most matches {seen['matches']}" if seen else ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("dataset", help="a prepared dataset under --dataset_path")
    add("--dataset_path", default="./datasets", help="folder of the datasets (default ./datasets)")
    add("--split", type=int, default=0, help="entry of splits.json (default 0)")
    add("--pictures", metavar="FILE", help="write copies and near-duplicates side by side (.html)")
    add("--json", action="store_true", help="print everything as JSON")


def main(arguments: argparse.Namespace) -> int:
    """Exit codes: 0 no findings, 1 findings, 2 bad input."""
    start = time.perf_counter()
    name, pictures = arguments.dataset, arguments.pictures and Path(arguments.pictures)
    if pictures and pictures.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"--pictures {pictures}: expected a file's name that ends in .html")
    folder = folder_of(name, arguments.dataset_path)
    if not (folder / "meta.json").exists():
        raise MissingInput(
            f"{folder} is not a prepared dataset (it has no meta.json); run: python -m reid prepare {name}"
        )
    found, result, groups = examine(folder, arguments.split)
    if pictures:
        write_sheet(pictures, f"Copies and near-duplicates in {folder.name}", groups)
    if arguments.json:
        content = result | {"findings": [finding._asdict() for finding in found]}
        print(json.dumps(content, indent=2))
        return int(bool(found))
    print(f"{folder.name}: {result.get('protocol', 'the lists cannot be read')}")
    print(as_text(result.get("tables", {})))
    if result.get("cameras"):
        print(result["cameras"])
    shown = 0
    for (level, rule), count in sorted(Counter(finding[:2] for finding in found).items()):
        messages = [finding.message for finding in found if finding[:2] == (level, rule)]
        print(f"{level}: {rule} ({count:,}){indented(messages, SHOWN)}")
        shown += min(count, SHOWN)
    hint = "; --json lists all" if len(found) > shown else ""
    print(f"{len(found):,} findings in {time.perf_counter() - start:.1f} s{hint}")
    if pictures:
        print(f"{len(groups):,} pairs in {pictures}")
    return int(bool(found))


def examine(folder: Path, split: int) -> tuple[list[Finding], dict, list[Group]]:
    """(the findings, the other content of --json, the groups of --pictures)."""
    found: list[Finding] = []

    def broken(message: str) -> None:
        found.append(Finding("error", "contract", message))

    result: dict = {"dataset": folder.name}
    try:
        dataset = read_dataset(folder, split, broken)
    except InputError as e:
        broken(str(e))
        return found, result, []
    examined = check_images(dataset)
    result |= {"protocol": dataset.protocol, "tables": tables(dataset, examined.read)}
    result["cameras"] = rests_on(dataset)
    return [*found, *check_lists(dataset), *examined.findings], result, groups_of(dataset, examined)


def groups_of(dataset: Dataset, examined: Examined) -> list[Group]:
    """One group for each copy: the image and the earlier one."""
    groups = []
    for copy in examined.copies:
        equal = examined.read[copy.image.image.path].digest == examined.read[copy.first.image.path].digest
        pair = [Shown(placed.image.path, described(dataset, placed)) for placed in (copy.image, copy.first)]
        groups.append(Group("equal files" if equal else "similar images", pair))
    return groups
