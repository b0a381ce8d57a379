"""Folders: which files are images, links, hidden files; the same for prepare and for extract."""

import os
import types

import numpy as np
import pytest
from PIL import Image as PILImage

from reid.data import folders
from reid.data.folders import files_below, left_out
from reid.data.images import find_images
from reid.data.prepare.archive import open_source
from reid.errors import InputError


def write(folder, *names):
    """Empty files; only their names matter here."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    return folder


def found(folder) -> list[str]:
    images = find_images([str(folder)])
    return [os.path.relpath(image.path, folder).replace(os.sep, "/") for image in images]


def test_prepare_and_extract_see_the_same_files(tmp_path, caplog):
    """35 images behind links of 4 people, of which a walk that visits each real folder once sees a part."""
    caplog.set_level("INFO", "reid")
    store, photos = tmp_path / "store", tmp_path / "photos"
    for who, count in (("anna", 20), ("bert", 9), ("cem", 3)):
        write(store, *(f"{who}/{i}.JPG" for i in range(count)))
        photos.mkdir(exist_ok=True)
        (photos / who).symlink_to(store / who, target_is_directory=True)
    (photos / "cem again").symlink_to(store / "cem", target_is_directory=True)
    (photos / "cem" / "loop").symlink_to(photos, target_is_directory=True)
    write(photos, ".hidden/x.jpg", "anna/._0.JPG", "__MACOSX/anna/1.jpg", "readme.TXT")
    with open_source(photos) as source:
        names = [name for name in source.sizes if name != "readme.TXT"]
    assert len(names) == 35 and sorted(found(photos)) == names and "readme.TXT" not in names
    assert "is a link to a folder that contains it; it is left out" in caplog.text
    assert "hidden images are left out" in caplog.text and "anna/._0.JPG" in caplog.text
    assert "left out, not images: 1 .txt (readme.TXT)" in caplog.text


def test_a_broken_link_is_an_image_that_cannot_be_read(tmp_path):
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nothing.jpg")
    assert files_below(tmp_path) == {"gone.jpg": 0} and found(tmp_path) == ["gone.jpg"]


@pytest.mark.parametrize("suffix", folders.IMAGES)
def test_each_suffix_of_an_image_is_read(tmp_path, suffix):
    pixels = np.random.default_rng(0).integers(0, 256, (16, 8, 3), np.uint8)
    kind = {".jfif": "JPEG", ".jpe": "JPEG", ".pgm": "PPM", ".pbm": "PPM"}.get(suffix)
    path = tmp_path / f"a{suffix.upper()}"
    PILImage.fromarray(pixels).save(path, kind)
    (image,) = find_images([str(tmp_path)])
    assert image.path == str(path)


def test_other_files_are_listed_by_suffix_and_count(tmp_path):
    names = ["b.txt", "a.txt", "c.TXT", "d.txt", "Makefile", "x.db"]
    assert left_out(names) == "4 .txt (b.txt, a.txt, c.TXT), 1 .db (x.db), 1 without suffix (Makefile)"
    write(tmp_path, "notes.txt", "more/list.doc")
    with pytest.raises(InputError, match=r"no image there; .* found 1 .doc \(more/list.doc\), 1 .txt \(notes.txt\)"):
        find_images([str(tmp_path)])


def test_heic_is_named_with_its_repair_and_read_where_it_can_be(monkeypatch):
    def without(name):
        raise ImportError(name)

    monkeypatch.setattr(folders, "import_module", without)
    assert ".heic" not in folders.readable()
    monkeypatch.setattr(folders, "NOT_HERE", (".heic",))
    assert left_out(["IMG_1.HEIC"]) == (
        "1 .heic (IMG_1.HEIC). .heic: this Pillow does not read them; pip install pillow-heif, or convert them to JPEG"
    )
    registered = []
    package = types.SimpleNamespace(register_heif_opener=lambda: registered.append(True))
    monkeypatch.setattr(folders, "import_module", lambda name: package)
    assert ".heic" in folders.readable() and registered == [True]


def test_patterns_find_images_and_folders_of_images(tmp_path):
    write(tmp_path, "a/1.jpg", "a/2.png", "b/3.JPEG", "c.jpg", "notes.txt")
    images = find_images([str(tmp_path / "*")])
    names = [os.path.relpath(image.path, tmp_path).replace(os.sep, "/") for image in images]
    assert names == ["a/1.jpg", "a/2.png", "b/3.JPEG", "c.jpg"]
