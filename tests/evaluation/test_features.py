"""Extraction: what a descriptor is, and files that survive interruption; features files of every kind, good and bad."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace

import h5py
import numpy as np
import pytest
import torch
from scipy.io import savemat

from reid.data.records import Image
from reid.data.transforms import normalise
from reid.errors import InputError, Interrupted, MissingInput
from reid.evaluation.features import Features, Part, read_features
from reid.evaluation.record import Record, read_record
from reid.inference.describe import extract, extract_file
from reid.inference.engines import TorchEngine

COUNT, BATCH = 50, 8
PIXELS = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (COUNT, 3, 8, 6), dtype=np.uint8))
IMAGES = [Image(f"data/images/{i}.jpg", i % 7, i % 3) for i in range(COUNT)]
QUERY, GALLERY = IMAGES[:15], IMAGES[15:]


class Slots(torch.nn.Module):
    """(N, 3, H, W) -> (N, 4, 6): each image alone, asymmetric, so that the mirror image differs."""

    def __init__(self):
        super().__init__()
        self.images = 0

    def forward(self, x):
        assert not self.training
        self.images += len(x)
        return torch.stack([x[:, :, :, i].flatten(1)[:, :6] for i in range(4)], 1)


def load(start, stop=COUNT, pause=0.0):
    for i in range(start, COUNT, BATCH):
        if i >= stop:
            raise KeyboardInterrupt
        time.sleep(pause)
        yield PIXELS[i : i + BATCH]


MADE = {"dataset": "made", "split": 0, "fingerprint": "d", "weights": "w", "h": 8, "w": 6}
RECORD = Record(**MADE, flip=True, precision="fp32", engine="plain")
SIDES = {"query": QUERY, "gallery": GALLERY}


def to_file(path, model=None, batches=load, **changes):
    record = replace(RECORD, **changes)
    extract_file(path, TorchEngine(model or Slots(), flip=record.flip), batches, SIDES, record)
    return read_features(path)


def stacked(features):
    return np.concatenate([features.query.features, features.gallery.features])


@pytest.mark.parametrize("flip", [True, False])
def test_descriptor(flip):
    model = Slots().eval()
    images = normalise(PIXELS)
    expected = (model(images) + model(images.flip(3))) / 2 if flip else model(images)
    expected = expected.flatten(1) / expected.flatten(1).norm(dim=1, keepdim=True)
    got = extract(TorchEngine(Slots(), flip=flip), load(0), COUNT)
    assert got.dtype == np.float32 and got.shape == (COUNT, 24)
    np.testing.assert_allclose(got, expected.numpy(), atol=1e-6)


def test_file_holds_what_made_it(tmp_path):
    features = to_file(tmp_path / "features.h5")
    np.testing.assert_array_equal(stacked(features), extract(TorchEngine(Slots()), load(0), COUNT))
    assert features.record == read_record(tmp_path / "features.h5") == RECORD and features.attrs == {"slots": [4, 6]}
    assert features.query.names == [f"{i}.jpg" for i in range(15)]
    assert features.gallery.pids.tolist() == [i % 7 for i in range(15, COUNT)]
    assert features.gallery.camids.tolist() == [i % 3 for i in range(15, COUNT)]
    with h5py.File(tmp_path / "features.h5") as f:
        assert f["features"].shape == (COUNT, 24) and f["features"].dtype == np.float32
        assert f["subset"].asstr()[:].tolist() == ["query"] * 15 + ["gallery"] * 35


@pytest.mark.parametrize("stop", [0, 8, 32, 48])
def test_interrupted_extraction_goes_on_where_it_was(tmp_path, stop):
    path = tmp_path / "features.h5"
    with pytest.raises(KeyboardInterrupt):
        to_file(path, batches=lambda start: load(start, stop))
    assert not path.exists()
    model = Slots()
    features = to_file(path, model)
    assert model.images == 2 * (COUNT - stop)  # each image and its mirror image
    np.testing.assert_array_equal(stacked(features), stacked(to_file(tmp_path / "straight.h5")))
    assert sorted(os.listdir(tmp_path)) == ["features.h5", "straight.h5"]
    again = Slots()
    to_file(path, again)  # complete: reused
    assert again.images == 0


@pytest.mark.parametrize("stop", [32, COUNT + 1])
@pytest.mark.parametrize("change, reason", [
    ({"weights": "other"}, "weights w instead of other"),
    ({"fingerprint": "other"}, "fingerprint d instead of other"),
    ({"flip": False}, "flip True instead of False"),
    ({"precision": "bf16"}, "precision fp32 instead of bf16"),
    ({"h": 9}, "h 8 instead of 9"),
])  # fmt: skip
def test_other_settings_start_anew_and_are_logged(tmp_path, caplog, change, reason, stop):
    """An interrupted and a complete file."""
    path = tmp_path / "features.h5"
    caplog.set_level("INFO")
    with pytest.raises(KeyboardInterrupt) if stop < COUNT else nullcontext():
        to_file(path, batches=lambda start: load(start, stop))
    assert not caplog.records
    model = Slots()
    features = to_file(path, model, **change)
    assert model.images == (1 if "flip" in change else 2) * COUNT
    assert features.record == replace(RECORD, **change)
    assert f"has other settings ({reason}); the features are extracted again" in caplog.text


def test_other_images_or_damage_start_anew(tmp_path, caplog):
    path = tmp_path / "features.h5"
    caplog.set_level("INFO")
    to_file(path)
    renamed = {"query": [image._replace(pid=9) for image in QUERY], "gallery": GALLERY}
    model = Slots()
    extract_file(path, TorchEngine(model), load, renamed, RECORD)
    assert model.images == 2 * COUNT and "other settings (other images or labels)" in caplog.text
    path.unlink()
    with pytest.raises(KeyboardInterrupt):
        to_file(path, batches=lambda start: load(start, 32))
    partial = path.with_name("features.h5.partial")
    partial.write_bytes(partial.read_bytes()[:1000])
    model = Slots()
    to_file(path, model)
    assert model.images == 2 * COUNT


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_after_the_batch(tmp_path, number):
    def load_and_signal(start):
        for i, batch in enumerate(load(start)):
            if i == 2:
                os.kill(os.getpid(), number)
            yield batch

    with pytest.raises(Interrupted, match="stopped after 24 of 50 images; run the same command again"):
        to_file(tmp_path / "features.h5", batches=load_and_signal)
    model = Slots()
    to_file(tmp_path / "features.h5", model)
    assert model.images == 2 * (COUNT - 24)


def test_two_at_once_share_the_work(tmp_path, caplog):
    """The second of two equal commands waits, and takes what the first has made."""
    path, models = tmp_path / "features.h5", [Slots(), Slots()]

    def work(model):
        return stacked(to_file(path, model, lambda start: load(start, pause=0.02)))

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(work, models)
    np.testing.assert_array_equal(first, second)
    assert sorted(model.images for model in models) == [0, 2 * COUNT]
    assert "waiting for another process" in caplog.text and os.listdir(tmp_path) == ["features.h5"]


@pytest.mark.slow
def test_killed_extraction_equals_the_straight_one(tmp_path):
    path = tmp_path / "features.h5"
    code = "import sys; sys.path[:0] = ['tests', 'tests/evaluation']; import test_features as t, pathlib; "
    code += "t.to_file(pathlib.Path(sys.argv[1]), batches=lambda start: t.load(start, pause=0.2))"
    child = subprocess.Popen([sys.executable, "-c", code, str(path)])
    partial = path.with_name("features.h5.partial")
    while not partial.exists():
        assert child.poll() is None
        time.sleep(0.01)
    time.sleep(0.5)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL and not path.exists()
    model = Slots()
    features = to_file(path, model)
    assert 0 < model.images < 2 * COUNT
    np.testing.assert_array_equal(stacked(features), extract(TorchEngine(Slots()), load(0), COUNT))


def test_bad_models_and_missing_images(tmp_path):
    class Bad(Slots):
        def forward(self, x):
            return super().forward(x) * torch.tensor(self.factor)

    for factor in (float("nan"), float("inf"), 0.0):
        model = Bad()
        model.factor = factor
        with pytest.raises(InputError, match="not finite, or all zero"):
            to_file(tmp_path / "features.h5", model)
    with pytest.raises(InputError, match="expected 50 images, but got only 42"):
        to_file(tmp_path / "features.h5", batches=lambda start: list(load(start))[1:])


def test_equal_file_names_are_told_apart(tmp_path):
    images = [Image(f"root/camera{c}/1.jpg", 1, c) for c in (0, 1)]
    sides = {"query": images[:1], "gallery": images[1:]}
    extract_file(tmp_path / "f.h5", TorchEngine(Slots()), lambda start: [PIXELS[:2]], sides, RECORD)
    features = read_features(tmp_path / "f.h5")
    assert (features.query.names, features.gallery.names) == (["camera0/1.jpg"], ["camera1/1.jpg"])


# Files of others


def arrays(dtype="float32"):
    rng = np.random.default_rng(0)
    content = {}
    for side, count in (("query", 6), ("gallery", 20)):
        content[f"{side}_features"] = rng.standard_normal((count, 5)).astype(dtype)
        content[f"{side}_pids"] = np.arange(count) % 4
        content[f"{side}_camids"] = np.arange(count) % 3
    return content


def layumi(content):
    names = {"features": "f", "pids": "label", "camids": "cam"}
    return {f"{k.split('_')[0]}_{names[k.split('_')[1]]}": v for k, v in content.items()}


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_npz_and_mat(tmp_path, dtype):
    content = arrays(dtype)
    np.savez(tmp_path / "f.npz", **content)
    savemat(tmp_path / "f.mat", layumi({k: v.astype("float32") if v.ndim == 2 else v for k, v in content.items()}))
    for name in ("f.npz", "f.mat"):
        features = read_features(tmp_path / name)
        np.testing.assert_allclose(features.gallery.features, content["gallery_features"], rtol=1e-6)
        assert features.query.pids.tolist() == content["query_pids"].tolist()
        assert features.gallery.camids.tolist() == content["gallery_camids"].tolist()
        assert features.query.names == ["0", "1", "2", "3", "4", "5"]


def test_npz_without_cameras_and_junk(tmp_path):
    content = {k: v for k, v in arrays().items() if "camids" not in k}
    content["gallery_pids"] = np.where(np.arange(20) < 3, -1, content["gallery_pids"])
    np.savez(tmp_path / "f.npz", **content)
    features = read_features(tmp_path / "f.npz")
    assert features.query.camids is None and len(features.gallery) == 17
    np.testing.assert_array_equal(features.gallery.features, content["gallery_features"][3:])
    assert features.gallery.names[0] == "3"


BROKEN = {
    "width": ({"query_features": np.zeros((6, 4), "f4")}, "query features are 4 wide, gallery features 5"),
    "count": ({"query_pids": np.arange(5)}, r"6 query features, but pids of shape \(5,\)"),
    "cameras": ({"gallery_camids": np.arange(5)}, r"20 gallery features, but camids of shape \(5,\)"),
    "NaN": ({"gallery_features": np.full((20, 5), np.nan)}, "gallery feature row 0 has NaN, infinite"),
    "infinite": ({"query_features": np.full((6, 5), np.inf)}, "query feature row 0 has NaN, infinite"),
    "beyond float32": ({"query_features": np.full((6, 5), 1e300)}, "query feature row 0 has NaN, infinite"),
    "flat": ({"query_features": np.zeros(6)}, r"query features have shape \(6,\)"),
    "text": ({"query_features": np.full((6, 5), "x")}, "query features have shape .* and type"),
    "absent": ({"query_features": None}, "query_features is not"),
}


@pytest.mark.parametrize(
    ("case", "kind"), [(c, k) for c in BROKEN for k in ("npz", "mat") if k == "npz" or c not in ("flat", "text")]
)
def test_bad_content(tmp_path, case, kind):
    change, message = BROKEN[case]
    content = {k: v for k, v in (arrays() | change).items() if v is not None}
    path = tmp_path / f"f.{kind}"
    np.savez(path, **content) if kind == "npz" else savemat(path, layumi(content))
    with pytest.raises(InputError, match=message if case != "absent" else "query_f"):
        read_features(path)


@pytest.mark.parametrize("kind", ["h5", "npz", "mat"])
@pytest.mark.parametrize("keep", [0, 0.1, 0.5, 0.97])
def test_files_cut_short(tmp_path, kind, keep):
    path = tmp_path / f"f.{kind}"
    {"h5": to_file, "npz": lambda p: np.savez(p, **arrays()), "mat": lambda p: savemat(p, layumi(arrays()))}[kind](path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(InputError, match=r"f\.(h5|npz|mat).*(cannot be read|is it a features file)"):
        read_features(path)


def test_other_files(tmp_path):
    with pytest.raises(MissingInput, match=r"none\.h5 does not exist"):
        read_features(tmp_path / "none.h5")
    for name in ("features.pkl", "features"):
        with pytest.raises(InputError, match=r"type .*; expected a features file \.h5, \.npz, \.mat"):
            read_features(tmp_path / name)
    np.savez(tmp_path / "objects.npz", **arrays() | {"query_pids": np.array([{}] * 6, object)})
    with pytest.raises(InputError, match="cannot be read"):  # a pickle is not opened
        read_features(tmp_path / "objects.npz")
    with h5py.File(tmp_path / "other.h5", "w") as f:
        f["features"] = np.zeros((3, 4))
    with pytest.raises(InputError, match="is it a features file"):
        read_features(tmp_path / "other.h5")


def test_damage_of_many_kinds(tmp_path):
    to_file(tmp_path / "f.h5")
    whole = (tmp_path / "f.h5").read_bytes()
    for name, change in {
        "group": lambda f: (f.pop("subset"), f.create_group("subset")),
        "short": lambda f: (f.pop("camids"), f.create_dataset("camids", data=[1, 2])),
    }.items():
        (tmp_path / f"{name}.h5").write_bytes(whole)
        with h5py.File(tmp_path / f"{name}.h5", "r+") as f:
            change(f)
        with pytest.raises(InputError):
            read_features(tmp_path / f"{name}.h5")
    np.savez_compressed(tmp_path / "f.npz", **arrays())
    content = bytearray((tmp_path / "f.npz").read_bytes())
    content[200:260] = bytes(60)
    (tmp_path / "f.npz").write_bytes(content)
    with pytest.raises(InputError, match="cut short or damaged"):
        read_features(tmp_path / "f.npz")
    np.savez(tmp_path / "huge.npz", **arrays() | {"query_features": np.full((6, 5), 1e30, np.float32)})
    with pytest.raises(InputError, match="too large"):
        read_features(tmp_path / "huge.npz")


def test_subsets_may_be_mixed(tmp_path):
    features = to_file(tmp_path / "f.h5")
    with h5py.File(tmp_path / "f.h5", "r+") as f:
        order = np.random.default_rng(0).permutation(COUNT)
        for key in ("features", "names", "pids", "camids", "subset"):
            f[key][:] = f[key][:][order]
    mixed = read_features(tmp_path / "f.h5")
    assert isinstance(mixed, Features) and isinstance(mixed.query, Part)
    back = np.argsort([int(name[:-4]) for name in mixed.query.names])
    np.testing.assert_array_equal(mixed.query.features[back], features.query.features)
    np.testing.assert_array_equal(mixed.query.pids[back], features.query.pids)
