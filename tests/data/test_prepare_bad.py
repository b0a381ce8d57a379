"""Images that cannot be read: a line each, left out by choice, in folders and in archives."""

import shutil

import pytest
from test_prepare import write_files

from reid.__main__ import main
from reid.data.read import read_dataset

NAMES = [f"{who}/{i}.jpg" for who in ("anna", "bert", "cem", "dora") for i in range(3)]


@pytest.mark.parametrize("kind", ["folder", "zip", "gztar"])
def test_bad_images_are_listed_and_left_out_by_choice(tmp_path, capsys, kind):
    source = write_files(tmp_path / "photos", NAMES)
    whole = (source / "anna/0.jpg").read_bytes()
    (source / "anna/0.jpg").write_bytes(b"")
    (source / "bert/1.jpg").write_bytes(whole[: len(whole) // 2])
    (source / "cem/2.jpg").write_bytes(b"<html></html>")
    if kind != "folder":
        shutil.make_archive(str(tmp_path / "photos"), kind, source)
        source = next(path for path in tmp_path.iterdir() if path.is_file())
    flags = ["prepare", "folder", "--source", str(source), "--dataset_path", str(tmp_path / "sets"), "--name", "p"]
    assert main(flags) == 2 and not (tmp_path / "sets/p").exists()
    lines = capsys.readouterr().err
    assert "anna/0.jpg is empty" in lines and "bert/1.jpg is damaged" in lines and "cem/2.jpg is not an image" in lines
    assert "3 of 12 images cannot be read (listed above)" in lines and "--skip_bad" in lines
    assert main([*flags, "--skip_bad"]) == 0
    out = capsys.readouterr()
    assert "cem/2.jpg is not an image" in out.err and "3 images that cannot be read" in out.out + out.err
    dataset = read_dataset(tmp_path / "sets/p")
    assert sum(map(len, dataset.subsets.values())) == 9
