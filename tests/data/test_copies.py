"""python -m reid check: copies and near-duplicates in the test, and what the training set lacks."""

import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PILImage
from test_check import FORM, checked, write_good
from test_records import save

from reid.__main__ import main
from reid.data import copies
from reid.data.check import check_lists
from reid.data.copies import Placed, similar_images
from reid.data.read import read_dataset
from reid.data.records import WITHOUT_CAMERAS, Dataset, Image


def rules(found: list[dict]) -> list[tuple[str, str]]:
    return sorted((f["level"], f["rule"]) for f in found)


def add(folder: Path, files: dict, subset: str, pid: int, camid: int, content: bytes, name: str) -> None:
    """Adds an image to a test list of the dataset."""
    files["meta"]["identities"][pid][camid].append(name)
    files["test"][0][subset].append([name, pid, camid])
    (folder / "images" / name).write_bytes(content)
    save(folder, files)


def photo(seed: int, size=(64, 128)) -> PILImage.Image:
    """Coarse and fine structure, as photos have."""
    rng = np.random.default_rng(seed)
    coarse, fine = (PILImage.fromarray(rng.integers(0, 256, (h, w, 3), np.uint8)) for h, w in ((8, 4), (64, 32)))
    coarse, fine = (image.resize(size, PILImage.Resampling.BICUBIC) for image in (coarse, fine))
    return PILImage.blend(coarse, fine, 0.4)


def saved(image: PILImage.Image, quality: int = 95) -> bytes:
    out = io.BytesIO()
    image.save(out, "JPEG", quality=quality)
    return out.getvalue()


def test_a_photo_that_answers_itself_from_another_camera_is_an_error(tmp_path, capsys):
    folder = tmp_path / "tiny"
    files = write_good(folder)
    query = FORM.format(3, 0, 0)
    content = (folder / "images" / query).read_bytes()
    add(folder, files, "gallery", 3, 1, content, "again.jpg")
    code, found = checked(folder, capsys)
    assert code == 1 and rules(found) == [("error", "copy")]
    message = found[0]["message"]
    assert f"again.jpg (gallery, pid 3, camera 1) has the content of {folder / 'images' / query}" in message
    assert message.endswith("(query, pid 3, camera 0): a query is its own match; remove one")


def test_copies_that_only_count_twice_are_warnings(tmp_path, capsys):
    folder = tmp_path / "tiny"
    files = write_good(folder)
    first = (folder / "images" / FORM.format(4, 0, 0)).read_bytes()
    add(folder, files, "gallery", 4, 1, first, "other_camera.jpg")
    add(folder, files, "gallery", 4, 0, first, "row_again.jpg")
    code, found = checked(folder, capsys)
    assert code == 1 and rules(found) == [("warning", "copy")] * 2
    assert all("it counts twice; remove one" in f["message"] for f in found)


def test_an_entry_that_is_listed_twice_is_named_by_its_source(tmp_path, capsys):
    folder = tmp_path / "tiny"
    files = write_good(folder)
    first = FORM.format(4, 0, 0)
    files["meta"]["sources"] = {first: "IMG 1.jpg", "again.jpg": "IMG 1.jpg"}
    files["meta"]["labels"] = {"identities": ["a", "b", "c", "d", "anna"], "cameras": ["door", "Camera 012"]}
    add(folder, files, "gallery", 4, 0, (folder / "images" / first).read_bytes(), "again.jpg")
    code, found = checked(folder, capsys)
    assert code == 1 and rules(found) == [("warning", "copy")]
    assert "(IMG 1.jpg) (gallery, identity anna (pid 4), camera door (number 0))" in found[0]["message"]
    assert "the source is listed twice; remove one entry" in found[0]["message"]
    main(["check", "tiny", "--dataset_path", str(tmp_path)])
    assert "door  Camera 012" in capsys.readouterr().out  # columns of the table


def test_one_file_as_query_and_gallery_image_is_no_copy(tmp_path, capsys):
    """Without official lists every test image is in both."""
    files = write_good(tmp_path / "tiny")
    (tmp_path / "tiny/test.json").unlink()
    files["splits"][0]["query"] = [3, 4]
    save(tmp_path / "tiny", {"splits": files["splits"]})
    assert checked(tmp_path / "tiny", capsys) == (0, [])


def test_without_the_package_one_line_says_what_was_not_searched(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "imagehash", None)
    write_good(tmp_path / "tiny")
    assert main(["check", "tiny", "--dataset_path", str(tmp_path)]) == 0
    assert capsys.readouterr().err.count("near-duplicates are not searched for: pip install imagehash") == 1


def test_near_duplicates_are_warnings_with_pictures(tmp_path, capsys):
    pytest.importorskip("imagehash")
    folder, sheet = tmp_path / "tiny", tmp_path / "sheet.html"
    files = write_good(folder)
    original, black = photo(1), PILImage.new("RGB", (64, 128))
    add(folder, files, "gallery", 3, 0, saved(original), "original.jpg")
    add(folder, files, "gallery", 3, 0, saved(original, 60), "next_frame.jpg")  # same identity and camera
    add(folder, files, "gallery", 3, 1, saved(original, 40), "saved_again.jpg")
    add(folder, files, "gallery", 4, 1, saved(original.resize((32, 64))), "smaller.jpg")
    add(folder, files, "gallery", 3, 1, saved(photo(2)), "another.jpg")
    add(folder, files, "gallery", 3, 0, saved(black), "black.jpg")  # plain pictures are alike, but no photos
    add(folder, files, "gallery", 4, 0, saved(black, 20), "black_again.jpg")
    code, found = checked(folder, capsys)
    assert code == 1 and rules(found) == [("warning", "similar")] * 2
    for finding, name in zip(found, ("saved_again.jpg", "smaller.jpg")):
        assert f"{name} (gallery, " in finding["message"] and "original.jpg (gallery, pid 3" in finding["message"]
    main(["check", "tiny", "--dataset_path", str(tmp_path), "--pictures", str(sheet)])
    assert f"2 pairs in {sheet}" in capsys.readouterr().out
    page = sheet.read_text(encoding="utf-8")
    assert page.count("<img ") == 4 and "smaller.jpg" in page and "similar images" in page


def test_pictures_of_equal_files(tmp_path, capsys):
    folder = tmp_path / "tiny"
    files = write_good(folder)
    content = (folder / "images" / FORM.format(4, 0, 0)).read_bytes()
    add(folder, files, "gallery", 4, 1, content, "<again>.jpg")
    flags = ["check", "tiny", "--dataset_path", str(tmp_path), "--pictures"]
    assert main([*flags, str(tmp_path / "a.html")]) == 1
    page = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert page.count("<img ") == 2 and "equal files" in page and "&lt;again&gt;.jpg" in page
    assert main([*flags, str(tmp_path / "a.png")]) == 2
    assert "expected a file's name that ends in .html" in capsys.readouterr().err


def test_similar_images_are_those_of_a_loop_over_all_pairs(monkeypatch):
    monkeypatch.setattr(copies, "BLOCK", 7)
    rng = np.random.default_rng(0)
    images, looks = [], {}
    for i in range(60):
        bits = rng.integers(0, 2, 256, dtype=np.uint8)
        if i % 3:  # a copy with some bits changed
            bits = np.unpackbits(np.frombuffer(looks[str(i - 1)], np.uint8))
            bits[rng.permutation(256)[: rng.integers(0, 33)]] ^= 1
        looks[str(i)] = np.packbits(bits).tobytes()
        images.append(Placed(Image(str(i), int(rng.integers(3)), int(rng.integers(2))), "gallery"))
    digests = {path: path if int(path) % 10 else "equal" for path in looks}
    expected = []
    for i, b in enumerate(images):
        for a in images[:i]:
            difference = int.from_bytes(looks[a.image.path]) ^ int.from_bytes(looks[b.image.path])
            same_file = digests[a.image.path] == digests[b.image.path]
            if difference.bit_count() <= 16 and a.image[1:] != b.image[1:] and not same_file:
                expected.append((b.image.path, a.image.path))
                break
    found = [(c.image.image.path, c.first.image.path) for c in similar_images(images, looks, digests)]
    assert found == expected and len(found) > 10


def dataset(trainval, query=((50, 0),), gallery=((50, 1),), protocol="") -> Dataset:
    """Of (pid, camid) pairs. The files do not exist; the rules of the lists open none."""
    lists = [[Image(f"{s}{i}.jpg", *place) for i, place in enumerate(some)] for s, some in
             zip("tqg", (trainval, query, gallery))]  # fmt: skip
    return Dataset("x", Path("x"), *lists, num_cameras=4, protocol=protocol, distractors=frozenset())


def messages(of: Dataset, rule: str) -> list[str]:
    return [f.message for f in check_lists(of) if f.rule == rule]


def test_a_training_set_with_nobody_seen_twice():
    one_image = dataset([(pid, 0) for pid in range(9)])
    assert [f.rule for f in check_lists(one_image)] == ["pairs"]  # instead of nine findings
    assert "none of the 9 training identities has two images" in messages(one_image, "pairs")[0]
    places = [(pid, pid % 2) for pid in range(9) for _ in range(3)]
    assert "none of the 9 training identities is seen by two cameras" in messages(dataset(places), "pairs")[0]
    assert messages(dataset([*places, (0, 1)]), "pairs") == []
    without = "test.json: split drawn with seed 0; no cameras were given: each query counts as camera 0"
    assert messages(dataset([(pid, 0) for pid in range(9) for _ in range(3)], protocol=without), "pairs") == []


def test_a_test_that_rests_on_one_camera():
    train = [(pid, camid) for pid in range(3) for camid in range(2)]
    query = [(50 + i, 3 if i < 18 else 1) for i in range(20)]
    gallery = [(50 + i, camid) for i in range(20) for camid in (0, 1, 2, 3)]
    (message,) = messages(dataset(train, query, gallery), "one camera")
    assert "90% of the queries are from camera 3, so scores say little about the others" in message
    query = [(50 + i, 3 if i % 2 else 1) for i in range(20)]
    gallery = [(50 + i, 2) for i in range(20)]
    (message,) = messages(dataset(train, query, gallery), "one camera")
    assert "100% of the matches are from camera 2" in message
    assert messages(dataset(train, query, gallery, protocol=WITHOUT_CAMERAS), "one camera") == []
    gallery += [(50 + i, 0) for i in range(6)]  # 20 of 26 are 77%
    assert messages(dataset(train, query, gallery), "one camera") == []


def test_the_command_prints_how_much_rests_on_one_camera(tmp_path, capsys):
    write_good(tmp_path / "tiny")
    assert main(["check", "tiny", "--dataset_path", str(tmp_path), "--json"]) == 0
    text = json.loads(capsys.readouterr().out)["cameras"]
    assert text == "most queries are from camera 0 (100%), most matches from camera 1 (100%)"
    assert read_dataset(tmp_path / "tiny").query[0].camid == 0
