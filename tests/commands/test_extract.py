"""python -m reid extract: folders, lists and patterns, stopping and continuing, bad images, full disks."""

import json
import os
import shutil
import signal
from pathlib import Path

import h5py
import numpy as np
import torch
from conftest import plain, run_reid
from PIL import Image as PILImage

from reid.inference.describe import extract_file


def test_extract_command(weights, images, tmp_path, script):
    listed = tmp_path / "list.txt"
    listed.write_text("".join(f"{p}\t{i}\t{i % 2}\n" for i, p in enumerate(images[:4])), encoding="utf-8")
    out = tmp_path / "features.h5"
    done = run_reid(script, "extract", "--weights", weights, "--images", listed, images[5], images[0], "--out", out)
    assert done.returncode == 0, done.stderr
    expected = plain(weights, [*images[:4], images[5]])
    with h5py.File(out) as f:
        np.testing.assert_allclose(f["features"][:], expected, atol=1e-5)
        assert f["pids"][:].tolist() == [-1, 1, 2, 3, -1]  # the last word on an image named twice counts
        assert f["names"].asstr()[:].tolist() == [os.path.basename(p) for p in [*images[:4], images[5]]]
    pattern = os.path.dirname(images[0]) + "/00000001_*.jpg"
    done = run_reid(
        script, "extract", "--weights", weights, "--images", pattern, "--out", tmp_path / "f.npz", "--no_flip"
    )
    with np.load(tmp_path / "f.npz") as f:
        paths = [p for p in images if "/00000001_" in p]
        np.testing.assert_allclose(f["features"], plain(weights, paths, False), atol=1e-5)
        assert f["names"].tolist() == [os.path.basename(p) for p in paths] and not json.loads(str(f["record"]))["flip"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["f.npz", "features.h5", "list.txt"]


def test_extract_goes_on_after_a_signal(weights, images, tmp_path, script, monkeypatch):
    flags = ["extract", "--weights", weights, "--images", *images[:12], "--batch_size", "2", "--out"]
    assert run_reid(script, *flags, tmp_path / "straight.h5").returncode == 0
    counted, describe = [], extract_file.__globals__["describe"]

    def slow(engine, batches):
        for features in describe(engine, batches):
            counted.append(len(features))
            if len(counted) == 2:
                os.kill(os.getpid(), signal.SIGTERM)
            yield features

    monkeypatch.setitem(extract_file.__globals__, "describe", slow)
    done = run_reid(script, *flags, tmp_path / "cut.h5")
    assert done.returncode == 130 and "run the same command again" in done.stderr and not (tmp_path / "cut.h5").exists()
    assert run_reid(script, *flags, tmp_path / "cut.h5").returncode == 0
    assert sum(counted) == 12
    with h5py.File(tmp_path / "cut.h5") as cut, h5py.File(tmp_path / "straight.h5") as straight:
        np.testing.assert_array_equal(cut["features"][:], straight["features"][:])


def test_extract_sees_that_images_were_replaced(weights, images, tmp_path, script):
    """The same names with other people in them, and a folder of the same names: kept, or replaced on request."""
    for folder, shift in (("a", 0), ("b", 3)):
        (tmp_path / folder).mkdir()
        for i in range(3):
            shutil.copy(images[i + shift], tmp_path / folder / f"{i}.jpg")
    out = tmp_path / "f.h5"

    def extracted(folder):
        flags = ["extract", "--weights", weights, "--images", tmp_path / folder, "--out", out]
        if out.exists():
            before = out.read_bytes()
            done = run_reid(script, *flags)
            assert done.returncode == 2 and "has other features (content" in done.stderr
            assert out.read_bytes() == before
            flags.append("--overwrite")
        assert run_reid(script, *flags).returncode == 0
        with h5py.File(out) as f:
            return f["features"][:]

    expected = plain(weights, images[:6])
    np.testing.assert_allclose(extracted("a"), expected[:3], atol=1e-5)
    np.testing.assert_allclose(extracted("b"), expected[3:], atol=1e-5)
    shutil.copy(images[0], tmp_path / "b" / "1.jpg")
    np.testing.assert_allclose(extracted("b"), expected[[3, 0, 5]], atol=1e-5)


def test_bad_images_are_listed_and_skipped_by_choice(weights, images, tmp_path, script):
    folder = tmp_path / "images"
    folder.mkdir()
    whole = Path(images[0]).read_bytes()
    grey = PILImage.open(images[0]).convert("L")
    grey.save(folder / "grey.png")
    grey.convert("CMYK").save(folder / "cmyk.jpg")
    grey.convert("RGBA").save(folder / "alpha.png")
    PILImage.fromarray(np.full((8, 4), 40_000, np.uint16)).save(folder / "deep.png")
    PILImage.fromarray(np.full((8, 4), 0.5, np.float32)).save(folder / "float.tiff")
    (folder / "gone.jpg").symlink_to(folder / "nothing.jpg")
    shutil.copy(images[0], os.fsencode(folder) + b"/\xff.jpg")
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "page.jpg").write_bytes(b"<html></html>")
    header = bytearray((folder / "grey.png").read_bytes())
    header[16:24] = b"\x00\x00\xff\xff\x00\x00\xff\xff"
    (folder / "huge.png").write_bytes(header)
    flags = ["extract", "--weights", weights, "--images", folder, "--out", tmp_path / "f.h5"]
    done = run_reid(script, *flags)
    assert done.returncode == 2 and not (tmp_path / "f.h5").exists() and "Traceback" not in done.stderr
    for name in ("empty.jpg", "cut.jpg", "page.jpg", "huge.png", "deep.png", "float.tiff", "gone.jpg", "udcff.jpg"):
        assert name in done.stderr
    assert "8 of 11 images" in done.stderr and "grey.png" not in done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["images"]
    done = run_reid(script, *flags, "--skip_bad")
    assert done.returncode == 0 and "3 descriptors" in done.stdout and "cut.jpg" in done.stderr


def test_extract_refusals(weights, images, tmp_path, script):
    (tmp_path / "empty").mkdir()
    (tmp_path / "folder.h5").mkdir()
    (tmp_path / "bad.txt").write_text("a.jpg\tx\n", encoding="utf-8")
    cut = tmp_path / "cut.pth"
    cut.write_bytes(weights.read_bytes()[:100_000])
    other = tmp_path / "other.pth"
    torch.save({"a": torch.ones(2)}, other)
    cases = [
        (weights, tmp_path / "empty", "f.h5", "no image there"),
        (weights, tmp_path / "none", "f.h5", "no such folder"),
        (weights, tmp_path / "no*.jpg", "f.h5", "no image there"),
        (weights, tmp_path / "bad.txt", "f.h5", "line 1"),
        (weights, images[0], "f.csv", ".h5 or .npz"),
        (weights, images[0], "folder.h5", "expected a file name"),
        (cut, images[0], "f.h5", "cut short"),
        (other, images[0], "f.h5", "weights neither"),
        (tmp_path / "none.pth", images[0], "f.h5", "does not exist"),
    ]
    for file, source, out, said in cases:
        done = run_reid(script, "extract", "--weights", file, "--images", source, "--out", tmp_path / out)
        assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr, done.stderr
        assert not (tmp_path / out).is_file()


def test_nothing_half_written_on_a_full_disk(weights, images, tmp_path, script, full_disk):
    commands = [
        ["extract", "--weights", weights, "--images", *images[:3], "--out", tmp_path / "f.h5"],
        ["extract", "--weights", weights, "--images", *images[:3], "--out", tmp_path / "f.npz"],
        ["gallery", "create", tmp_path / "g.h5", "--weights", weights, "--images", *images[:3]],
        ["export", "--weights", weights, "--format", "pth", "--out", tmp_path / "e.pth"],
        ["export", "--weights", weights, "--format", "safetensors", "--out", tmp_path / "e.safetensors"],
    ]
    for command in commands:
        with full_disk():
            done = run_reid(script, *command)
        said = done.stderr.splitlines()
        assert done.returncode == 2 and said[-1].startswith("error: ") and "cannot be written (" in said[-1], done
        assert "Traceback" not in done.stderr and not list(tmp_path.iterdir()), command


def test_extract_leaves_other_files_alone(weights, images, tmp_path, script):
    g = tmp_path / "g.h5"
    assert run_reid(script, "gallery", "create", g, "--weights", weights, "--images", *images[:3]).returncode == 0
    before = g.read_bytes()
    done = run_reid(script, "extract", "--weights", weights, "--images", *images[:2], "--out", g)
    assert done.returncode == 2 and "and is not replaced" in done.stderr and g.read_bytes() == before
