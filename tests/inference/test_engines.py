"""Every engine gives the descriptors of the plain model; wrong uses are refused; kept files are checked."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import ROOT, make_weights, plain
from torch import nn

import reid
from reid.errors import CheckFailed, InputError
from reid.files import sha256
from reid.inference import engines
from reid.inference.engines import WORTH, Wanted, candidates, check_able, missing
from reid.models.weights import read_weights

ONNX = pytest.mark.parametrize("engine", ["onnx", "openvino"])


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """PyTorch's cache folder for this file's tests."""
    folder, before = tmp_path_factory.mktemp("cache"), torch.hub.get_dir()
    torch.hub.set_dir(folder / "hub")
    yield folder
    torch.hub.set_dir(before)


def extractor(weights, engine, **options):
    pytest.importorskip({"onnx": "onnxruntime"}.get(engine, engine))
    return reid.Extractor(weights, engine=engine, batch_size=5, **options)


@pytest.mark.slow
@pytest.mark.parametrize("engine, flip", [("onnx", True), ("openvino", True), ("openvino", False)])
def test_descriptors_equal_the_plain_form(cache, weights, images, engine, flip):
    expected = plain(weights, images[:12], flip)
    found = extractor(weights, engine, flip=flip)(images[:12])
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.array_equal((found @ found.T).argsort(1), (expected @ expected.T).argsort(1))


@pytest.mark.slow
@ONNX
def test_the_shipped_model_on_real_images(cache, shared, engine, tmp_path):
    """Descriptors and distances on photographs."""
    from zipfile import ZipFile

    (archive,) = (shared / "data").rglob("*arket*.zip")
    with ZipFile(archive) as source:
        names = [n for n in source.namelist() if "/query/" in n and n.endswith(".jpg")][:24]
        paths = [source.extract(name, tmp_path) for name in names]
    weights = ROOT / "pretrained/rrid_mobilenet_v2_market1501.pth"
    expected, found = plain(weights, paths), extractor(weights, engine)(paths)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(found @ found.T, expected @ expected.T, atol=1e-5)


@pytest.mark.slow
def test_a_damaged_file_is_written_again(cache, weights, images, caplog):
    expected = extractor(weights, "onnx")(images[:3])
    for path in (cache / "rrid").glob("*.onnx"):
        path.write_bytes(path.read_bytes()[:1000])
    np.testing.assert_array_equal(extractor(weights, "onnx")(images[:3]), expected)
    assert "cannot be used" in caplog.text and "written again" in caplog.text


@pytest.mark.slow
def test_a_file_of_other_weights_is_written_again(cache, weights, images, tmp_path, caplog):
    """Names carry the SHA-256 of the weights; a file under a wrong name is noticed by its descriptors."""
    other = make_weights(tmp_path / "other.pth", seed=5)
    extractor(weights, "onnx")
    before = set((cache / "rrid").glob("*.onnx"))
    extractor(other, "onnx")
    (made,) = set((cache / "rrid").glob("*.onnx")) - before
    for path in before:
        path.write_bytes(made.read_bytes())
    found = extractor(weights, "onnx")(images[:3])
    np.testing.assert_allclose(found, plain(weights, images[:3]), atol=1e-5)
    assert "its descriptors differ by" in caplog.text


@pytest.mark.slow
def test_an_engine_with_other_answers_is_refused(cache, weights, monkeypatch):
    pytest.importorskip("onnxruntime")
    compiled = engines.compile_onnx

    def wrong(path, precision):
        run = compiled(path, precision)
        return lambda pixels: run(pixels)[::-1].copy()

    monkeypatch.setitem(engines.COMPILERS, "onnx", wrong)
    with pytest.raises(CheckFailed, match="cannot run this model: its descriptors differ by"):
        extractor(weights, "onnx")


class Branching(nn.Module):
    """Takes a path that depends on the pixels, which an ONNX file cannot."""

    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(3, 4, 3)

    def forward(self, images):
        x = self.convolution(images)
        return (x if x.sum() > 0 else -x).mean((2, 3))[:, None]


@pytest.mark.slow
def test_a_backbone_that_an_engine_cannot_take(cache, caplog):
    """It is refused, without a file; auto takes torch."""
    if missing("onnx"):
        pytest.skip(f"not installed: {missing('onnx')}")
    before = set((cache / "rrid").glob("*.onnx"))
    with pytest.raises(CheckFailed, match=r"PyTorch cannot write this model as ONNX .*; use --engine torch"):
        engines.open_engine(Branching(), (16, 8), Wanted("onnx"))
    assert set((cache / "rrid").glob("*.onnx")) == before
    found = engines.measured(Branching(), (16, 8), Wanted("auto", batch_size=2), ["torch", "onnx"])
    assert found.keys() == {"torch"} and "cannot write this model" in caplog.text


@pytest.mark.parametrize("changes, words", [
    ({"engine": "tensorrt"}, "engine 'tensorrt' is unknown; choose from auto, torch"),
    ({"engine": "onnx", "precision": "bf16"}, "computes in float32 and int8; use --precision fp32"),
    ({"engine": "openvino", "device": torch.device("cuda", 0)}, "runs on the CPU, not on cuda:0"),
    ({"engine": "torch", "precision": "int8"}, "--engine torch does not compute in int8; use --engine onnx"),
])  # fmt: skip
def test_what_an_engine_cannot_do(changes, words):
    wanted = replace(Wanted(), **changes)
    with pytest.raises(InputError, match=words):
        check_able(*candidates(wanted), wanted)


@ONNX
def test_an_engine_that_is_not_installed(engine, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install .*\[engines\]"):
        check_able(engine, Wanted(engine))
    with pytest.raises(InputError, match=r"needs .*onnxruntime"):
        check_able(*candidates(Wanted("auto", precision="int8")), Wanted(precision="int8"))
    assert candidates(Wanted("auto", count=WORTH)) == ["torch"]


def test_among_which_engines_auto_chooses(monkeypatch):
    """All that are installed, for many images on the CPU; else torch."""
    monkeypatch.setattr(engines, "missing", lambda name: [])
    assert candidates(Wanted("auto", count=WORTH)) == ["torch", "openvino", "onnx"]
    assert candidates(Wanted("auto", count=WORTH - 1)) == ["torch"]
    assert candidates(Wanted("auto", device=torch.device("cuda", 0), count=WORTH)) == ["torch"]
    assert candidates(Wanted("auto", precision="bf16", count=WORTH)) == ["torch", "openvino"]
    assert candidates(Wanted("auto", precision="int8")) == ["openvino", "onnx"]
    monkeypatch.setattr(engines, "missing", lambda name: ["openvino"] if name == "openvino" else [])
    assert candidates(Wanted("auto", count=WORTH)) == ["torch", "onnx"]
    assert candidates(Wanted()) == ["torch"]


def test_auto_takes_the_fastest_and_keeps_the_measurement(cache, monkeypatch, caplog):
    """Measured once per machine and settings; a damaged file is measured again."""
    model, calls = torch.nn.Conv2d(3, 4, 1), []

    def measured(model, size, wanted, names):
        calls.append(wanted.batch_size)
        return {"torch": 10.0, "onnx": 12.0, "openvino": 11.0}

    monkeypatch.setattr(engines, "measured", measured)
    caplog.set_level("INFO", "reid")
    wanted, names = Wanted("auto", count=WORTH), ["torch", "onnx", "openvino"]
    for _ in range(2):
        assert engines.fastest(model, (64, 32), wanted, names) == "onnx"
    assert calls == [64] and "torch 10, onnx 12, openvino 11 images/s, measured before" in caplog.text
    engines.fastest(model, (64, 32), replace(wanted, batch_size=8), names)
    assert calls == [64, 8]
    engines.cached_file(model, (64, 32), wanted).with_suffix(".json").write_text("{", encoding="utf-8")
    engines.fastest(model, (64, 32), wanted, names)
    assert calls == [64, 8, 64]


@pytest.mark.slow
def test_engines_are_measured_by_turns(cache, weights):
    if missing("onnx"):
        pytest.skip(f"not installed: {missing('onnx')}")
    model, config = read_weights(weights)
    wanted = Wanted("auto", sha256=sha256(weights), count=WORTH, batch_size=2)
    found = engines.measured(model, (config.h, config.w), wanted, ["torch", "onnx"])
    assert found.keys() == {"torch", "onnx"} and all(speed > 0 for speed in found.values())


@pytest.mark.slow
def test_evaluate_names_its_engine(cache, weights, tiny, tmp_path, script):
    """plain, torch and OpenVINO give the same ranking; each has a folder of its own, and its name in the record."""
    if missing("openvino"):
        pytest.skip(f"not installed: {missing('openvino')}")
    found = {}
    for engine in ("plain", "torch", "openvino"):
        flags = ["--weights", weights, "--dataset_type", "tiny", "--dataset_path", tiny, "--exp_dir", tmp_path]
        done = script("evaluate.py", *flags, "--engine", engine, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        folder = done.stdout.splitlines()[-1].removeprefix("result in ")
        with open(f"{folder}/result.json", encoding="utf-8") as f:
            found[folder] = json.load(f)
        assert found[folder]["record"]["engine"] == engine
    assert len(found) == 3
    first, *others = (result["map"] for result in found.values())
    assert all(abs(first - other) < 1e-6 for other in others)
