"""Extraction and export: equal to the training model's eval mode, and nothing half-written."""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from conftest import ROOT, make_weights, plain
from PIL import Image as PILImage
from torch import nn

import reid
from reid.commands import export as export_command
from reid.config import Config
from reid.data.demo import draw
from reid.data.images import find_images
from reid.data.loader import decode
from reid.data.transforms import normalise
from reid.errors import InputError
from reid.files import sha256
from reid.inference import export
from reid.inference.describe import extract_file
from reid.inference.prepare import fold
from reid.models.layers import SlotLayer
from reid.models.tensors import load_tensors
from reid.models.weights import read_weights


@pytest.fixture(scope="module")
def images(tiny):
    return sorted(str(p) for p in (tiny / "tiny" / "images").iterdir())


def test_extractor_equals_the_plain_form(weights, images):
    extractor = reid.Extractor(weights, batch_size=5)
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in extractor.model.modules())
    expected = plain(weights, images[:12])
    np.testing.assert_allclose(extractor(images[:12]), expected, atol=1e-4 * np.abs(expected).max())
    arrays = [np.asarray(PILImage.open(p)) for p in images[:12]]
    np.testing.assert_array_equal(extractor(arrays), extractor(images[:12]))
    alone = reid.Extractor(weights, flip=False)(images[:2])
    np.testing.assert_allclose(alone, plain(weights, images[:2], False), atol=1e-5)
    assert (reid.Extractor(weights, precision="bf16")(images[:12]) * expected).sum(1).min() > 0.99
    assert extractor([]).shape[0] == 0


@pytest.mark.parametrize("changes", [{"backbone": "mobilenet_v2"}, {"relation": "none", "pooling": "avg"}])
def test_folding_other_models(changes, tmp_path, images):
    path = make_weights(tmp_path / "w.pth", **changes)
    np.testing.assert_allclose(reid.Extractor(path)(images[:3]), plain(path, images[:3]), atol=1e-5)


def test_folding_is_by_what_feeds_what():
    """Order of definition says nothing: a norm after another layer, and a convolution used twice, are left."""

    class Tricky(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.late = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
            self.b, self.own = nn.Conv2d(4, 4, 1, groups=2), nn.BatchNorm2d(4)
            self.twice, self.norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

        def forward(self, x):
            x = self.late(self.own(self.b(self.a(x).relu())).relu())
            return self.twice(self.norm(self.twice(x))).mean((2, 3))[:, None]

    torch.manual_seed(0)
    model = Tricky().eval()
    for norm in (model.late, model.own, model.norm):
        norm.running_mean.uniform_(-1, 1)
        norm.running_var.uniform_(0.5, 2)
    x = torch.randn(2, 3, 8, 4)
    with torch.inference_mode():
        expected = model(x)
        folded = fold(model, (8, 4))
        torch.testing.assert_close(folded(x), expected)
    kinds = [type(m).__name__ for m in (folded.late, folded.own, folded.norm)]
    assert kinds == ["BatchNorm2d", "Identity", "BatchNorm2d"]


def test_slot_layers_fold_exactly():
    torch.manual_seed(0)
    layer = SlotLayer(3, 5, 4).double().eval()
    layer.norm.running_mean.uniform_(-1, 1)
    layer.norm.running_var.uniform_(0.5, 2)

    class One(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, x):
            return self.layer(x.double().mean((2, 3))[:, None, None].expand(-1, 3, 5, -1)[..., 0])

    x = torch.randn(2, 3, 8, 4)
    with torch.inference_mode():
        expected = One()(x)
        torch.testing.assert_close(fold(One(), (8, 4))(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "bad", ["a.jpg", np.zeros((4, 4, 3)), np.zeros((4, 4), np.uint8), np.zeros((0, 4, 3), np.uint8), None, b"x"]
)
def test_what_is_no_image_is_refused(bad, weights):
    with pytest.raises(InputError):
        reid.Extractor(weights)([bad])
    with pytest.raises(InputError, match="list"):
        reid.Extractor(weights)("a.jpg")


def run(script, *arguments):
    return script("reid/__main__.py", *arguments)


def test_extract_command(weights, images, tmp_path, script):
    listed = tmp_path / "list.txt"
    listed.write_text("".join(f"{p}\t{i}\t{i % 2}\n" for i, p in enumerate(images[:4])))
    out = tmp_path / "features.h5"
    done = run(script, "extract", "--weights", weights, "--images", listed, images[5], images[0], "--out", out)
    assert done.returncode == 0, done.stderr
    expected = plain(weights, [*images[:4], images[5]])
    with h5py.File(out) as f:
        np.testing.assert_allclose(f["features"][:], expected, atol=1e-5)
        assert f["pids"][:].tolist() == [-1, 1, 2, 3, -1]  # the last word on an image named twice counts
        assert f["names"].asstr()[:].tolist() == [os.path.basename(p) for p in [*images[:4], images[5]]]
    pattern = os.path.dirname(images[0]) + "/00000001_*.jpg"
    done = run(script, "extract", "--weights", weights, "--images", pattern, "--out", tmp_path / "f.npz", "--no_flip")
    with np.load(tmp_path / "f.npz") as f:
        paths = [p for p in images if "/00000001_" in p]
        np.testing.assert_allclose(f["features"], plain(weights, paths, False), atol=1e-5)
        assert f["names"].tolist() == [os.path.basename(p) for p in paths] and not json.loads(str(f["record"]))["flip"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["f.npz", "features.h5", "list.txt"]


def test_extract_goes_on_after_a_signal(weights, images, tmp_path, script, monkeypatch):
    flags = ["extract", "--weights", weights, "--images", *images[:12], "--batch_size", "2", "--out"]
    assert run(script, *flags, tmp_path / "straight.h5").returncode == 0
    counted, describe = [], extract_file.__globals__["describe"]

    def slow(model, batches, *rest):
        for features in describe(model, batches, *rest):
            counted.append(len(features))
            if len(counted) == 2:
                os.kill(os.getpid(), signal.SIGTERM)
            yield features

    monkeypatch.setitem(extract_file.__globals__, "describe", slow)
    done = run(script, *flags, tmp_path / "cut.h5")
    assert done.returncode == 130 and "the same command continues" in done.stderr and not (tmp_path / "cut.h5").exists()
    assert run(script, *flags, tmp_path / "cut.h5").returncode == 0
    assert sum(counted) == 12
    with h5py.File(tmp_path / "cut.h5") as cut, h5py.File(tmp_path / "straight.h5") as straight:
        np.testing.assert_array_equal(cut["features"][:], straight["features"][:])


def test_extract_sees_that_images_were_replaced(weights, images, tmp_path, script):
    """The same names with other people in them, and a folder of the same names, are extracted anew."""
    for folder, shift in (("a", 0), ("b", 3)):
        (tmp_path / folder).mkdir()
        for i in range(3):
            shutil.copy(images[i + shift], tmp_path / folder / f"{i}.jpg")
    out = tmp_path / "f.h5"

    def extracted(folder):
        assert run(script, "extract", "--weights", weights, "--images", tmp_path / folder, "--out", out).returncode == 0
        with h5py.File(out) as f:
            return f["features"][:]

    expected = plain(weights, images[:6])
    np.testing.assert_allclose(extracted("a"), expected[:3], atol=1e-5)
    np.testing.assert_allclose(extracted("b"), expected[3:], atol=1e-5)
    shutil.copy(images[0], tmp_path / "b" / "1.jpg")
    np.testing.assert_allclose(extracted("b"), expected[[3, 0, 5]], atol=1e-5)


@pytest.mark.parametrize(
    "bad", [{"precision": "fp64"}, {"batch_size": 0}, {"batch_size": 1.5}, {"device": "gpu"}, {"device": "meta0"}]
)
def test_extractor_arguments(bad, weights, images):
    with pytest.raises(InputError):
        reid.Extractor(weights, **bad)
    assert reid.Extractor(weights)(path for path in images[:2]).shape == (2, 768)


def test_output_that_nobody_reads(weights):
    """As in `python -m reid export --help | head -1`, with more output than the pipe holds."""
    code = "import sys; from reid.commands import reported; sys.exit(reported(lambda: print('x' * 10**6) or 0, False))"
    child = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    child.stdout.read(1)
    child.stdout.close()
    assert child.stderr.read() == b"" and child.wait() == 141
    child.stderr.close()


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
    done = run(script, *flags)
    assert done.returncode == 2 and not (tmp_path / "f.h5").exists() and "Traceback" not in done.stderr
    for name in ("empty.jpg", "cut.jpg", "page.jpg", "huge.png", "deep.png", "float.tiff", "gone.jpg", "udcff.jpg"):
        assert name in done.stderr
    assert "8 of 11 images" in done.stderr and "grey.png" not in done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["images"]
    done = run(script, *flags, "--skip_bad")
    assert done.returncode == 0 and "3 descriptors" in done.stdout and "cut.jpg" in done.stderr


def test_extract_refusals(weights, images, tmp_path, script):
    (tmp_path / "empty").mkdir()
    (tmp_path / "folder.h5").mkdir()
    (tmp_path / "bad.txt").write_text("a.jpg\tx\n")
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
        (weights, images[0], "folder.h5", "a file's name"),
        (cut, images[0], "f.h5", "cut short"),
        (other, images[0], "f.h5", "neither weights"),
        (tmp_path / "none.pth", images[0], "f.h5", "not there"),
    ]
    for file, source, out, said in cases:
        done = run(script, "extract", "--weights", file, "--images", source, "--out", tmp_path / out)
        assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr, done.stderr
        assert not (tmp_path / out).is_file()


@pytest.mark.parametrize(("inputs", "flags"), [("nhwc", []), ("normalised", ["--no_flip"])])
def test_onnx_gives_the_same_descriptors(inputs, flags, weights, images, tmp_path, script):
    onnx = pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    out = tmp_path / "model.onnx"
    done = run(script, "export", "--weights", weights, "--format", "onnx", "--out", out, "--input", inputs,
               "--num_images", "8", *flags)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "largest difference" in done.stdout
    session = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    pixels = np.stack([decode(p, 64, 32) for p in images[:7]])
    given = pixels if inputs == "nhwc" else normalise(torch.from_numpy(pixels).permute(0, 3, 1, 2)).contiguous().numpy()
    expected = plain(weights, images[:7], flip=not flags)
    for rows in (slice(0, 1), slice(0, 7)):  # any batch
        got = session.run(None, {"images": given[rows]})[0]
        np.testing.assert_allclose(got, expected[rows], atol=1e-5)
    said = {p.key: p.value for p in onnx.load(out).metadata_props}
    assert json.loads(said["config"])["data"]["h"] == 64 and inputs in said["input"] and "commit" in said["made_by"]
    assert said["flip"] == ("no" if flags else "mean of the features of image and mirror image")
    again = run(script, "export", "--weights", weights, "--format", "onnx", "--out", out)
    assert again.returncode == 2 and "already there" in again.stderr


@pytest.mark.parametrize("harm", ["differs", "order", "nan", "width"])
def test_an_export_that_answers_otherwise_is_not_kept(harm, weights, images, tmp_path, script, monkeypatch):
    def run_wrongly(path, pixels, inputs):
        model, _ = read_weights(weights)
        good = export.reference(model, pixels, True)
        return {"differs": good + 2e-4, "order": good[::-1], "nan": good * np.nan, "width": good[:, :-1]}[harm]

    monkeypatch.setattr(export_command, "export_onnx", lambda path, *rest: path.write_bytes(b"onnx"))
    monkeypatch.setattr(export_command, "run_onnx", run_wrongly)
    out = tmp_path / "model.onnx"
    tolerance = "10" if harm == "order" else "1e-4"
    done = run(script, "export", "--weights", weights, "--format", "onnx", "--out", out, "--images", *images[:6],
               "--tolerance", tolerance)  # fmt: skip
    assert done.returncode == 1 and "not kept" in done.stderr and list(tmp_path.iterdir()) == []


def test_parity_by_hand():
    """Three unit vectors at 0, 10 and 40 degrees; moving the last to 12 degrees brings it before the first."""

    def at(*degrees):
        a = np.radians(degrees)
        return np.stack([np.cos(a), np.sin(a)], 1).astype(np.float32)

    assert export.parity(at(0, 10, 40), at(0, 10, 40)) == (0.0, 0)
    difference, changes = export.parity(at(0, 10, 40), at(0, 10, 12))
    assert abs(difference - (np.sin(np.radians(40)) - np.sin(np.radians(12)))) < 1e-6
    assert changes == 1  # for the image at 10 degrees: the one at 40 (30 away) comes before the one at 0 (10 away)
    assert export.parity(at(0, 10, 10), at(0, 10, 10.0001))[1] == 0  # ties may change places


def test_safetensors_and_back(weights, images, tmp_path, script):
    pytest.importorskip("safetensors")
    out = tmp_path / "model.safetensors"
    done = run(script, "export", "--weights", weights, "--format", "safetensors", "--out", out, "--num_images", "8")
    assert done.returncode == 0, done.stderr
    model, config = read_weights(out)
    expected, trained = read_weights(weights)
    assert config == trained and load_tensors(out)["classes"] == 5
    assert all(torch.equal(v, expected.state_dict()[k]) for k, v in model.state_dict().items())
    whole = bytearray(out.read_bytes())
    assert out.stat().st_mode == weights.stat().st_mode  # not its owner's alone
    again = tmp_path / "again.safetensors"
    run(script, "export", "--weights", weights, "--format", "safetensors", "--out", again, "--num_images", "8")
    assert again.read_bytes() == whole
    for place in (len(whole) // 2, len(whole) - 3):
        harmed = whole.copy()
        harmed[place] ^= 4
        out.write_bytes(harmed)
        with pytest.raises(InputError, match="damaged"):
            read_weights(out)
    for length in (9, 200, len(whole) - 1):
        out.write_bytes(whole[:length])
        with pytest.raises(InputError, match="cut short"):
            read_weights(out)
    out.write_bytes(b"\xff\xff\xff\xff\xff\xff\xff\x7f" + whole[8:])  # a header of 2^63 bytes
    with pytest.raises(InputError, match="cut short"):
        read_weights(out)


@pytest.mark.parametrize("form", ["safetensors", "pth"])
@pytest.mark.parametrize("model", ["rrid", "strong_baseline", "mgn"])
def test_half_to_hand_on(model, form, images, tmp_path, script):
    """No classifiers, half the bytes, no path of the training machine; features within float16's precision."""
    pytest.importorskip("safetensors")
    chosen = {"model": model, "stripes": {"rrid": (2,), "strong_baseline": (), "mgn": (2, 3)}[model]}
    weights = make_weights(tmp_path / "w.pth", h=96, exp_dir="/home/somebody", pretrained="imagenet", **chosen)
    out = tmp_path / f"half.{form}"
    done = run(script, "export", "--weights", weights, "--format", form, "--half", "--out", out, "--num_images", "8")
    assert done.returncode == 0, done.stderr
    assert "SHA-256" in done.stdout and "allowed 1e-03" in done.stdout
    content = load_tensors(out)
    assert content["classes"] == 0 and not [k for k in content["state"] if k.startswith("classifier")]
    assert "/home" not in json.dumps(content["config"]) and out.stat().st_size < 0.56 * weights.stat().st_size
    got, expected = plain(out, images[:4]), plain(weights, images[:4])
    assert 0 < abs(got - expected).max() < 1e-3
    again = run(script, "export", "--weights", out, "--format", form, "--out", out, "--overwrite")
    assert again.returncode == 2 and "the file that is read" in again.stderr


def test_export_refusals(weights, tmp_path, script):
    for flags, said in [
        (["--half"], "float32"),
        (["--tolerance", "nan"], "above 0"),
        (["--tolerance", "-1"], "above 0"),
    ]:
        done = run(script, "export", "--weights", weights, "--format", "onnx", "--out", tmp_path / "m.onnx", *flags)
        assert done.returncode == 2 and said in done.stderr


def test_export_without_its_packages(weights, tmp_path, script, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    done = run(script, "export", "--weights", weights, "--format", "onnx", "--out", tmp_path / "m.onnx")
    assert done.returncode == 2 and "[export]" in done.stderr


def test_the_shipped_model():
    """It is the file whose digest is published, small, and knows drawn people again although it never saw any."""
    folder = ROOT / "pretrained"
    path = folder / "rrid_mobilenet_v2_market1501.pth"
    assert path.stat().st_size < 30e6 and sha256(path) in (folder / "README.md").read_text()
    content = load_tensors(path)
    paths = ("exp_dir", "name", "resume", "pretrained_weights_dir")
    run = Config().to_json()["run"]
    assert content["classes"] == 0
    assert all(content["config"]["run"][name] == run[name] for name in paths)  # no path of a machine
    shots = [np.asarray(draw(pid, 0, shot)) for shot in (0, 1) for pid in range(12)]
    features = reid.Extractor(path)(shots)
    assert features.shape == (24, 1792) and reid.load_model(path).stripes == (6,)
    nearest = (features[:12] @ features[12:].T).argmax(1)
    assert (nearest == np.arange(12)).mean() > 0.7


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
            done = run(script, *command)
        said = done.stderr.splitlines()
        assert done.returncode == 2 and said[-1].startswith("error: ") and "cannot be written (" in said[-1], done
        assert "Traceback" not in done.stderr and not list(tmp_path.iterdir()), command


def test_extract_leaves_other_files_alone(weights, images, tmp_path, script):
    g = tmp_path / "g.h5"
    assert run(script, "gallery", "create", g, "--weights", weights, "--images", *images[:3]).returncode == 0
    before = g.read_bytes()
    done = run(script, "extract", "--weights", weights, "--images", *images[:2], "--out", g)
    assert done.returncode == 2 and "is not a features file and is kept" in done.stderr and g.read_bytes() == before


def test_lists_from_elsewhere(images, tmp_path):
    listed = tmp_path / "list.txt"
    listed.write_text(f"{images[0]}\t5\n{images[1]}\n", encoding="utf-8-sig")  # as Windows writes it
    found = find_images([str(listed)])
    assert [(i.path, i.pid, i.camid) for i in found] == [(images[0], 5, -1), (images[1], -1, -1)]
    for pid in ("9" * 19, "9" * 30, "five"):
        listed.write_text(f"{images[0]}\t{pid}\n")
        with pytest.raises(InputError, match="line 1: expected 'path'"):
            find_images([str(listed)])


def test_export_of_weights_that_are_not_there(tmp_path, script):
    out = tmp_path / "e.pth"
    out.write_text("")
    done = run(script, "export", "--weights", tmp_path / "none.pth", "--format", "pth", "--out", out, "--overwrite")
    assert done.returncode == 2 and "none.pth is not there" in done.stderr
