"""Exports give the same descriptors, are kept only if they do, and survive damage with a message."""

import importlib.util
import json

import numpy as np
import pytest
import torch
from conftest import make_weights, plain, run_reid

from reid.commands import export as export_command
from reid.data.loader import decode
from reid.data.transforms import normalise
from reid.errors import InputError
from reid.inference import export
from reid.models.tensors import load_tensors
from reid.models.weights import read_weights


@pytest.mark.slow
@pytest.mark.parametrize(("inputs", "flags"), [("nhwc", []), ("normalised", ["--no_flip"])])
def test_onnx_gives_the_same_descriptors(inputs, flags, weights, images, tmp_path, script):
    onnx = pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    out = tmp_path / "model.onnx"
    done = run_reid(script, "export", "--weights", weights, "--format", "onnx", "--out", out, "--input", inputs,
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
    again = run_reid(script, "export", "--weights", weights, "--format", "onnx", "--out", out)
    assert again.returncode == 2 and "already exists" in again.stderr


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
    done = run_reid(script, "export", "--weights", weights, "--format", "onnx", "--out", out, "--images", *images[:6],
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
    done = run_reid(
        script, "export", "--weights", weights, "--format", "safetensors", "--out", out, "--num_images", "8"
    )
    assert done.returncode == 0, done.stderr
    model, config = read_weights(out)
    expected, trained = read_weights(weights)
    assert config == trained and load_tensors(out)["classes"] == 5
    assert all(torch.equal(v, expected.state_dict()[k]) for k, v in model.state_dict().items())
    whole = bytearray(out.read_bytes())
    assert out.stat().st_mode == weights.stat().st_mode  # not its owner's alone
    again = tmp_path / "again.safetensors"
    run_reid(script, "export", "--weights", weights, "--format", "safetensors", "--out", again, "--num_images", "8")
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


@pytest.mark.slow
@pytest.mark.usefixtures("full_resnet18")  # only large tensors become float16
@pytest.mark.parametrize(
    "model, form", [("rrid", "safetensors"), ("rrid", "pth"), ("strong_baseline", "pth"), ("mgn", "safetensors")]
)
def test_half_to_hand_on(model, form, images, tmp_path, script):
    """No classifiers, half the bytes, no path of the training machine; features within float16's precision."""
    pytest.importorskip("safetensors")
    chosen = {"model": model, "stripes": {"rrid": (2,), "strong_baseline": (), "mgn": (2, 3)}[model]}
    weights = make_weights(tmp_path / "w.pth", h=96, exp_dir="/home/somebody", pretrained="imagenet", **chosen)
    out = tmp_path / f"half.{form}"
    done = run_reid(
        script, "export", "--weights", weights, "--format", form, "--half", "--out", out, "--num_images", "8"
    )
    assert done.returncode == 0, done.stderr
    assert "SHA-256" in done.stdout and "allowed 1e-03" in done.stdout
    content = load_tensors(out)
    assert content["classes"] == 0 and not [k for k in content["state"] if k.startswith("classifier")]
    assert "/home" not in json.dumps(content["config"]) and out.stat().st_size < 0.56 * weights.stat().st_size
    got, expected = plain(out, images[:4]), plain(weights, images[:4])
    assert 0 < abs(got - expected).max() < 1e-3
    again = run_reid(script, "export", "--weights", out, "--format", form, "--out", out, "--overwrite")
    assert again.returncode == 2 and "the input file" in again.stderr


def test_export_refusals(weights, tmp_path, script):
    for flags, said in [
        (["--half"], "float32"),
        (["--tolerance", "nan"], "above 0"),
        (["--tolerance", "-1"], "above 0"),
    ]:
        done = run_reid(
            script, "export", "--weights", weights, "--format", "onnx", "--out", tmp_path / "m.onnx", *flags
        )
        assert done.returncode == 2 and said in done.stderr


def test_export_without_its_packages(weights, tmp_path, script, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    done = run_reid(script, "export", "--weights", weights, "--format", "onnx", "--out", tmp_path / "m.onnx")
    assert done.returncode == 2 and "[export]" in done.stderr


def test_export_of_weights_that_are_not_there(tmp_path, script):
    out = tmp_path / "e.pth"
    out.write_text("", encoding="utf-8")
    done = run_reid(
        script, "export", "--weights", tmp_path / "none.pth", "--format", "pth", "--out", out, "--overwrite"
    )
    assert done.returncode == 2 and "none.pth does not exist" in done.stderr
