"""python -m reid check: finds one defect of each kind, and none in a good dataset."""

import io
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PILImage
from test_records import save, write_tiny

from reid.__main__ import main
from reid.data.check import check_lists
from reid.data.read import read_dataset

FORM = "{:08d}_{:04d}_{:08d}.jpg"


def picture(seed: int, size=(64, 128), kind="JPEG", mode="RGB") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    out = io.BytesIO()
    PILImage.fromarray(pixels).convert(mode).save(out, kind)
    return out.getvalue()


def write_good(folder: Path) -> dict:
    return write_tiny(folder, content=lambda name: picture(int(name[:8]) * 100 + int(name[9:13]) * 10 + int(name[-5])))


def checked(folder: Path, capsys) -> tuple[int, list[dict]]:
    """Exit code and findings of `check --json`."""
    code = main(["check", folder.name, "--dataset_path", str(folder.parent), "--json"])
    return code, json.loads(capsys.readouterr().out)["findings"]


def huge_png() -> bytes:
    """A PNG whose header claims 60,000 x 60,000 pixels."""
    chunks = (b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0), b"IDAT" + zlib.compress(bytes(100)))
    parts = (struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_a_good_dataset_has_no_findings_and_its_tables(tmp_path, capsys):
    write_good(tmp_path / "tiny")
    assert main(["check", "tiny", "--dataset_path", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    lines = [line.split() for line in out.splitlines()]
    assert [line[1:] for line in lines if line[0] == "trainval"] == [
        ["3", "12", "2"],  # identities, images, cameras
        ["6", "6"],  # images of camera 0 and 1
        ["4", "4", "4", "3"],  # images of an identity: least, median, most; identities with 4 or fewer
    ]
    assert "width x height: 64x128 20" in out and "kind: JPEG 20" in out and "0 findings" in out
    assert main(["check", "tiny", "--dataset_path", str(tmp_path), "--json"]) == 0
    stats = json.loads(capsys.readouterr().out)
    assert stats["findings"] == [] and stats["tables"]["files"]["width x height"] == {"64x128": 20}
    assert stats["tables"]["images of camera"]["gallery"] == {"0": 3, "1": 4}
    assert stats["protocol"] == "official lists (test.json)"


def test_unusual_but_usable_images_are_not_findings(tmp_path, capsys):
    """Grey, CMYK and a PNG named .jpg decode to RGB like any other."""
    write_good(tmp_path / "tiny")
    for camera, content in enumerate((picture(1, mode="L"), picture(2, mode="CMYK"))):
        (tmp_path / "tiny/images" / FORM.format(0, camera, 0)).write_bytes(content)
    (tmp_path / "tiny/images" / FORM.format(1, 0, 0)).write_bytes(picture(3, kind="PNG"))
    assert checked(tmp_path / "tiny", capsys) == (0, [])


DAMAGED = {
    "empty": (b"", "is empty"),
    "page": (b"<html>quota exceeded</html>", "is not an image; it begins with b'<html>quota exce'"),
    "truncated": (picture(5)[: len(picture(5)) // 5], "is damaged"),
    "cut": (picture(5)[:-400], "is damaged"),
    "huge header": (huge_png(), "is damaged: Image size (3600000000 pixels) exceeds limit"),
    "deep": (picture(7, mode="I;16", kind="PNG"), "has more than 8 bits per channel"),
    "large": (picture(6, (8_200, 8_000), "PNG", "1"), "has 8200 x 8000 pixels, too many for a cropped image"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_images_that_cannot_be_decoded(tmp_path, capsys, case):
    content, message = DAMAGED[case]
    write_good(tmp_path / "tiny")
    victim = tmp_path / "tiny/images" / FORM.format(1, 0, 0)
    victim.write_bytes(content)
    code, found = checked(tmp_path / "tiny", capsys)
    assert code == 1 and [(f["level"], f["rule"]) for f in found] == [("error", "unreadable")]
    assert str(victim) in found[0]["message"] and message in found[0]["message"]
    assert "replace it or take it out of the lists" in found[0]["message"]


def defects(folder: Path) -> dict[str, str]:
    """One defect of each kind in one dataset; {rule: a part of its message}."""
    files = write_good(folder)
    people, images = files["meta"]["identities"], folder / "images"

    def add(pid: int, camid: int, name: str, content: bytes) -> str:
        people[pid][camid].append(name)
        (images / name).write_bytes(content)
        return name

    people[1][1].append("gone.jpg")
    add(0, 0, "empty.jpg", b"")
    add(0, 0, "dot.jpg", picture(900, (1, 1)))
    add(0, 0, FORM.format(0, 1, 7), picture(901))  # its name contains camera 1
    people.append([[add_single := FORM.format(5, 0, 0)], []])
    (images / add_single).write_bytes(picture(902))
    files["splits"][0]["trainval"].append(5)
    add(0, 1, "copy_of_1.jpg", (images / people[1][0][0]).read_bytes())
    add(2, 1, "copy_of_3.jpg", (images / people[3][0][0]).read_bytes())
    people.append([[add_alone := FORM.format(6, 0, 0)], []])
    (images / add_alone).write_bytes(picture(903))
    files["splits"][0]["query"].append(6)
    files["test"][0]["query"].append([add_alone, 6, 0])
    files["test"][0]["gallery"].append(files["test"][0]["gallery"][0])
    (images / "Thumbs.db").write_bytes(b"rubbish")
    save(folder, files)
    return {
        "contract": "gone.jpg is listed but does not exist",
        "unreadable": "empty.jpg is empty",
        "small": "dot.jpg has 1 x 1 pixels",
        "name": f"{FORM.format(0, 1, 7)} is listed as pid 0, camera 0",
        "single": f"{add_single} is the only training image of pid 5",
        "duplicate": "copy_of_1.jpg",
        "leak": "has the content of",
        "match": f"{add_alone}: query of pid 6 has no match from another camera than 0",
        "twice": "is listed 2 times in gallery",
        "unlisted": "Thumbs.db is not an image",
    }


def test_one_defect_of_each_kind_is_found_once(tmp_path, capsys):
    expected = defects(tmp_path / "ill")
    code, found = checked(tmp_path / "ill", capsys)
    assert code == 1 and sorted(f["rule"] for f in found) == sorted(expected)
    for finding in found:
        assert expected[finding["rule"]] in finding["message"] and str(tmp_path / "ill") in finding["message"]
    levels = {f["rule"]: f["level"] for f in found}
    assert {rule for rule in levels if levels[rule] == "error"} == {"contract", "unreadable", "duplicate", "leak"}
    assert main(["check", "ill", "--dataset_path", str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert "error: leak (1)\n  " in out and f"{len(expected)} findings" in out


def test_errors_of_the_lists_alone(tmp_path):
    files = write_good(tmp_path / "tiny")
    for name, subset in (("query", 3), ("gallery", 4)):
        files["test"][0][name] = [row for row in files["test"][0][name] if row[2] == 0 or row[1] != subset]
    files["test"][0]["gallery"] = [row for row in files["test"][0]["gallery"] if row[2] == 0]
    files["splits"][0]["trainval"] = [0]
    save(tmp_path / "tiny", files)
    found = {f.rule: f for f in check_lists(read_dataset(tmp_path / "tiny"))}
    assert sorted(found) == ["cameras", "identities", "match"] and {f.level for f in found.values()} == {"error"}
    assert "all query and gallery images are from camera 0" in found["cameras"].message
    assert "trainval has 1 identity; training needs at least 2" in found["identities"].message


def test_counts_and_protocol_of_a_known_dataset(tmp_path, capsys):
    write_tiny(tmp_path / "market1501", content=lambda name: picture(zlib.crc32(name.encode())), with_test=False)
    code, found = checked(tmp_path / "market1501", capsys)
    assert code == 1 and [f["rule"] for f in found] == ["counts"] * 3
    assert "query has 1 identities and 4 images; published: 750 identities and 3,368 images" in found[1]["message"]
    assert "every image of the query and gallery identities" in found[1]["message"]
    assert "Prepare it from the original archive" in found[1]["message"]


def test_lists_that_cannot_be_read_are_a_finding(tmp_path, capsys):
    write_good(tmp_path / "tiny")
    meta = tmp_path / "tiny/meta.json"
    meta.write_bytes(meta.read_bytes()[:100])
    code, found = checked(tmp_path / "tiny", capsys)
    assert code == 1 and [f["rule"] for f in found] == ["contract"] and "meta.json: line 1" in found[0]["message"]
    assert main(["check", "tiny", "--dataset_path", str(tmp_path)]) == 1


def test_many_findings_are_shortened_on_the_screen_only(tmp_path, capsys):
    write_good(tmp_path / "tiny")
    for i in range(30):
        (tmp_path / f"tiny/images/left_{i}.jpg").write_bytes(picture(i))
    assert main(["check", "tiny", "--dataset_path", str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert "warning: unlisted (30)" in out and "... and 10 more" in out
    assert "30 findings in" in out and "; --json lists all" in out
    assert len(checked(tmp_path / "tiny", capsys)[1]) == 30


def test_a_missing_dataset(tmp_path, capsys):
    assert main(["check", "tiny", "--dataset_path", str(tmp_path)]) == 2
    assert (
        "is not a prepared dataset (it has no meta.json); run: python -m reid prepare tiny" in capsys.readouterr().err
    )
