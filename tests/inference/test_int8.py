"""int8 keeps the ranking, is measured on the calibration images, and is refused when it loses too much."""

import json
import shutil

import numpy as np
import pytest
import torch
from conftest import make_weights, plain, run_reid

import reid
from reid.data.images import find_images
from reid.data.records import Image
from reid.errors import InputError
from reid.inference import int8
from reid.inference.engines import missing
from reid.inference.int8 import Calibration, Cost, cost_of, wanted_calibration
from reid.inference.onnx_file import export_onnx
from reid.models.weights import read_weights


@pytest.fixture(scope="module")
def cache(tmp_path_factory, weights):
    """PyTorch's cache folder for this file's tests, which share one float32 file of `weights`."""
    if missing("onnx"):
        pytest.skip(f"not installed: {missing('onnx')}")
    folder, before = tmp_path_factory.mktemp("cache"), torch.hub.get_dir()
    torch.hub.set_dir(folder / "hub")
    full = folder / "fp32.onnx"
    model, config = read_weights(weights)
    export_onnx(full, model, (config.h, config.w), "nhwc", True, {})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(int8, "export_onnx", lambda path, *rest: shutil.copy(full, path))
        yield folder
    torch.hub.set_dir(before)


def test_cost_by_hand():
    """Two identities in two cameras each, as angles. In int8 the last image moves from 81 to 30 degrees."""
    images = [Image("", 0, 0), Image("", 0, 1), Image("", 1, 0), Image("", 1, 1)]

    def at(*degrees):
        a = np.radians(degrees)
        return np.stack([np.cos(a), np.sin(a)], 1)

    expected, found = at(0, 10, 90, 81), at(0, 10, 90, 30)
    cost = cost_of(expected, found, images)
    # the match of the last image is then 60 degrees away, and third after those that are 20 and 30 away
    assert cost.mean_ap == pytest.approx((100, 100 * (1 + 1 + 1 + 1 / 3) / 4))
    assert cost.rank1 == pytest.approx((100, 75)) and cost.images == 4
    assert cost.cosine == pytest.approx((3 + np.cos(np.radians(51))) / 4)
    assert cost.nearest == 3 / 4
    assert cost_of(expected, found, [Image("", -1, -1)] * 4).mean_ap is None


@pytest.mark.parametrize("cost, words", [
    (Cost(99, 1.0, 1.0, (80.0, 79.4), (90.0, 90.0)), "it loses 0.60 mAP, more than --max_loss 0.5"),
    (Cost(99, float("nan"), 1.0, (80.0, float("nan")), (90.0, 90.0)), "refused"),
    (Cost(99, 0.98, 1.0), "its mean cosine to float32 is 0.9800, below 0.99"),
])  # fmt: skip
def test_too_much_loss(cost, words):
    with pytest.raises(InputError, match=words):
        cost.check(0.5)


def test_accepted_loss():
    Cost(99, 0.9, 0.9, (80.0, 79.6), (90.0, 90.0)).check(0.5)
    Cost(99, 0.995, 0.9).check(0.5)


def test_too_few_images(images):
    with pytest.raises(InputError, match="at least 32 calibration images, but got 5; give more with --calibration"):
        Calibration(find_images(images[:5]))


def test_training_images_are_the_default(tiny, tmp_path):
    made = make_weights(tmp_path / "tiny.pth", dataset_type=("tiny",))
    how = wanted_calibration({"dataset_path": str(tiny)}, "int8", made)
    assert len(how.images) == 32 and {image.pid for image in how.images} == set(range(8)) and how.labelled


@pytest.mark.slow
def test_engines_and_export(cache, weights, images, tmp_path, script, caplog):
    """The same cached file for each engine; the exported one gives the same descriptors."""
    caplog.set_level("INFO", "reid")
    how = Calibration(find_images(images), max_loss=5.0)
    expected = plain(weights, images)
    found = reid.Extractor(weights, engine="onnx", precision=how)(images)
    assert caplog.text.count("int8 on 48 calibration images") == 1
    assert 0.98 < (found * expected).sum(1).mean() < 1 - 1e-7
    assert len(list((cache / "rrid").glob("*.onnx"))) == 1
    if not missing("openvino"):
        other = reid.Extractor(weights, engine="openvino", precision=how)(images)
        assert len(list((cache / "rrid").glob("*.onnx"))) == 1
        assert (other * expected).sum(1).mean() > 0.98
    out = tmp_path / "int8.onnx"
    flags = ["export", "--weights", weights, "--format", "onnx", "--precision", "int8", "--out", out, "--calibration"]
    done = run_reid(script, *flags, *images)
    assert done.returncode == 0, done.stderr
    assert "instead of" in done.stdout or "cosine" in done.stdout
    pixels = int8.pixels_of(how.images, (64, 32))
    np.testing.assert_array_equal(int8.descriptors(out, pixels, "nhwc"), found)


def test_labels_are_part_of_the_digest(images):
    """The kept file has the cost, which is measured with the labels."""
    found = [image._replace(camid=i % 2) for i, image in enumerate(find_images(images))]
    known = [image._replace(pid=i // 2) for i, image in enumerate(found)]
    assert Calibration(known).labelled and not Calibration(found).labelled
    assert not Calibration([image._replace(camid=0) for image in known]).labelled
    assert Calibration(known).digest != Calibration(found).digest


@pytest.mark.slow
def test_refused_int8_is_not_kept(cache, weights, images, tmp_path, script, monkeypatch):
    monkeypatch.setattr(int8, "LEAST_COSINE", 1.1)
    monkeypatch.setattr(int8, "quantise", lambda full, path, *rest: shutil.copy(full, path))
    unlabelled = [image._replace(pid=-1) for image in find_images(images)]
    before = set((cache / "rrid").iterdir()) if (cache / "rrid").exists() else set()
    with pytest.raises(InputError, match="int8 is refused: its mean cosine"):
        reid.Extractor(weights, engine="onnx", precision=Calibration(unlabelled[1:]))
    assert not [p for p in set((cache / "rrid").iterdir()) - before if p.suffix == ".onnx"]


@pytest.mark.slow
def test_evaluate_records_int8(cache, weights, tiny, tmp_path, script):
    flags = ["--weights", weights, "--dataset_type", "tiny", "--dataset_path", tiny, "--exp_dir", tmp_path]
    flags += ["--device", "cpu", "--precision", "int8", "--engine", "onnx"]
    calibrated = ["--calibration", tiny / "tiny" / "images"]
    done = script("evaluate.py", *flags, *calibrated, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    folder = done.stdout.splitlines()[-1].removeprefix("result in ")
    with open(f"{folder}/result.json", encoding="utf-8") as f:
        record = json.load(f)["record"]
    assert record["precision"] == "int8" and len(record["calibration"]) == 64 and "int8" in folder


@pytest.mark.parametrize("command, flags, words", [
    ("extract", ["--max_loss", "1"], "--max_loss is for int8; add --precision int8"),
    ("extract", ["--dataset_path", "x"], "--dataset_path is for int8; add --precision int8"),
    ("extract", ["--precision", "int8"], "name images with --calibration FOLDER, or the folder of the datasets with"),
    ("extract", ["--precision", "int8", "--max_loss", "1", "--calibration"], "calibration images with identities"),
    ("extract", ["--precision", "int8", "--engine", "plain", "--calibration"], "plain does not compute in int8"),
])  # fmt: skip
def test_bad_use(command, flags, words, weights, images, tmp_path, script):
    flags = [*flags, *images] if flags[-1] == "--calibration" else flags
    done = script("reid/__main__.py", command, "--weights", weights, "--images", *images[:3], "--out",
                  tmp_path / "f.h5", *flags, "--device", "cpu", cwd=tmp_path)  # fmt: skip
    assert done.returncode == 2 and words in done.stderr
    assert not (tmp_path / "f.h5").exists()


def test_int8_is_not_for_training(small_run, tmp_path, script):
    done = script("train.py", *small_run, "--precision", "int8", "--exp_dir", tmp_path)
    assert done.returncode == 2 and "--precision int8 is not for training" in done.stderr
