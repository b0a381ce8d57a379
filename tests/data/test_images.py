"""Lists and tables of images, also as Windows writes them; EXIF orientation."""

import io
import os

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image as PILImage
from PIL import ImageOps

from reid.data.images import find_images, list_images
from reid.data.loader import decode, open_image, pixels_of, size_of
from reid.errors import InputError

PIXELS = np.random.default_rng(0).integers(0, 256, (48, 20, 3), np.uint8)


def stored(kind: str, orientation: int | None = None, pixels=PIXELS) -> bytes:
    exif, out = PILImage.Exif(), io.BytesIO()
    if orientation is not None:
        exif[0x0112] = orientation
    PILImage.fromarray(pixels).save(out, kind, exif=exif)
    return out.getvalue()


def test_lists_from_elsewhere(images, tmp_path):
    listed = tmp_path / "list.txt"
    listed.write_text(f"{images[0]}\t5\n{images[1]}\n", encoding="utf-8-sig")  # as Windows writes it
    found = find_images([str(listed)])
    assert [(i.path, i.pid, i.camid) for i in found] == [(images[0], 5, -1), (images[1], -1, -1)]
    for pid in ("9" * 19, "9" * 30, "five"):
        listed.write_text(f"{images[0]}\t{pid}\n", encoding="utf-8")
        with pytest.raises(InputError, match="line 1: expected 'path'"):
            find_images([str(listed)])


def test_a_table_that_prepare_reads_is_a_list(tmp_path):
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        (tmp_path / name).write_bytes(b"")
    table = tmp_path / "list.csv"
    table.write_text("path,pid,camid\na.jpg,anna,yard\nb.jpg,bert,door\nc.jpg,anna,door\n", encoding="utf-8")
    found = list_images([str(table)])
    assert [(os.path.basename(i.path), i.pid, i.camid) for i in found.images] == [
        ("a.jpg", 0, 1), ("b.jpg", 1, 0), ("c.jpg", 0, 0)]  # fmt: skip
    assert [*found.labels.identities] == ["anna", "bert"] and [*found.labels.cameras] == ["door", "yard"]
    other = tmp_path / "list.tsv"
    other.write_text("path\tpid\na.jpg\t12\nb.jpg\t7\n", encoding="utf-8")
    found = list_images([str(other)])
    assert [i.pid for i in found.images] == [12, 7] and not found.labels.identities
    other.write_text(f"{tmp_path / 'a.jpg'}\t12\n", encoding="utf-8")  # without a header
    assert [i.pid for i in find_images([str(other)])] == [12]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_as_pillow_applies_it(tmp_path, kind, orientation):
    content = stored(kind, orientation)
    with PILImage.open(io.BytesIO(content)) as image:
        expected = ImageOps.exif_transpose(image).convert("RGB")
    np.testing.assert_array_equal(open_image(content).convert("RGB"), expected)
    resized = expected.resize((32, 64), PILImage.Resampling.BILINEAR)
    path = tmp_path / "a.img"
    path.write_bytes(content)
    np.testing.assert_array_equal(decode(str(path), 64, 32), resized)
    assert size_of(str(path)) == expected.size[::-1]


def test_images_without_orientation_keep_every_bit():
    for content in (stored("JPEG"), stored("PNG"), stored("JPEG", 0), stored("JPEG", 9)):
        with PILImage.open(io.BytesIO(content)) as image:
            expected = image.convert("RGB").resize((32, 64), PILImage.Resampling.BILINEAR)
        np.testing.assert_array_equal(pixels_of(content, "a", 64, 32), expected)


def test_damaged_exif_is_no_reason_to_refuse_an_image():
    out = io.BytesIO()
    PILImage.fromarray(PIXELS).save(out, "JPEG", exif=b"Exif\0\0" + bytes(range(40)))
    assert open_image(out.getvalue()).size == (20, 48)


def test_every_file_is_opened_by_one_function():
    """loader.py decodes, and reads the size in the header; bench/data.py has the plain form to compare with."""
    opened = {
        path.name for path in (ROOT / "reid").rglob("*.py") if "PILImage.open(" in path.read_text(encoding="utf-8")
    }
    assert opened == {"loader.py", "data.py"}


@pytest.mark.parametrize("labels, words", [
    (("anna", "anna "), "identities with blanks at the ends"),
    (("12", "0012"), "identities that are the same number or look the same"),
])  # fmt: skip
def test_labels_that_look_the_same_are_refused_as_by_prepare(tmp_path, labels, words):
    for i in range(2):
        PILImage.new("RGB", (4, 8)).save(tmp_path / f"{i}.jpg")
    rows = "".join(f"{i}.jpg,{label}\n" for i, label in enumerate(labels))
    (tmp_path / "list.csv").write_text("path,pid\n" + rows, encoding="utf-8")
    with pytest.raises(InputError, match=words):
        list_images([str(tmp_path / "list.csv")])
