"""Validation on held-out identities: with and without cameras, checked before step 1, and never at an epoch's cost."""

import json
import os
import signal

import numpy as np
import pytest
from conftest import make_dataset, metrics, plain, run_reid, same, state_of
from PIL import Image as PILImage

from reid.data.prepare import open_dataset
from reid.errors import Interrupted
from reid.models import weights as weights_file
from reid.profiles import from_flags
from reid.training import trainer
from reid.training.step import TrainStep

pytestmark = pytest.mark.slow
HELD_OUT = ["--train_set", "train", "--num_val", "2", "--eval_every", "1", "--max_steps", "3"]


@pytest.fixture()
def photos(tmp_path):
    """A folder per person, three images each: nobody gave cameras."""
    rng = np.random.default_rng(1)
    for who in range(10):
        colour = rng.integers(40, 200, 3)
        (tmp_path / "photos" / f"p{who}").mkdir(parents=True)
        for shot in range(3):
            pixels = (colour + rng.normal(0, 60, (64, 32, 3))).clip(0, 255).astype(np.uint8)
            PILImage.fromarray(pixels).save(tmp_path / "photos" / f"p{who}" / f"{shot}.png")
    return tmp_path / "photos"


def mean_ap(features, pids) -> float:
    """Each image against all others, by definition."""
    aps = []
    for q, row in enumerate(features @ features.T):
        order = [g for g in np.argsort(-row) if g != q]
        hits = np.array([pids[g] == pids[q] for g in order])
        precision = hits.cumsum() / np.arange(1, len(hits) + 1)
        aps.append(precision[hits].mean())
    return float(np.mean(aps))


def test_images_without_cameras_are_compared_with_all_others(script, small_run, photos, tmp_path):
    sets, logs = tmp_path / "sets", tmp_path / "logs"
    done = run_reid(script, "prepare", "folder", "--source", photos, "--name", "mine", "--dataset_path", sets)
    assert done.returncode == 0, done.stderr
    where = ["--dataset_type", "mine", "--dataset_path", sets, "--exp_dir", logs]
    done = script("train.py", *small_run, *where, *HELD_OUT, "--name", "val")
    assert done.returncode == 0, done.stderr
    assert "validation on 6 images of 2 identities; 6 of them have a match, a second image\n" in done.stdout
    assert "near-duplicate frames can answer each other" in done.stdout
    folder = logs / "mine" / "val"
    (score,) = [m["val_map"] for m in metrics(folder) if "val_map" in m]
    dataset = open_dataset("mine", sets)
    held_out = dataset.hold_out(2)[1]
    features = plain(folder / "weights.pth", [image.path for image in held_out])
    assert score == pytest.approx(mean_ap(features, [image.pid for image in held_out]), abs=1e-4)
    done = script("evaluate.py", *where[2:])
    assert done.returncode == 0 and done.stdout.count("near-duplicate frames can answer each other") == 1, done.stderr


@pytest.mark.parametrize("flags, code", [([], 2), (["--eval_every", 0], 0), (["--num_val", 2], 0)])
def test_held_out_identities_without_a_match(script, small_run, tmp_path, flags, code):
    """The last identity was seen by one camera: found before the first step."""
    folder = make_dataset(tmp_path / "tiny")
    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    meta["identities"][7][1] = []
    (folder / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
    where = ["--dataset_path", tmp_path, "--exp_dir", tmp_path / "logs"]
    done = script("train.py", *small_run, *where, *HELD_OUT, "--num_val", 1, *flags)
    assert done.returncode == code, done.stderr
    if code:
        assert "none of the 1 held-out identities has a second image from another camera" in done.stderr
        assert not list((tmp_path / "logs").glob("*/*"))


def test_failed_validation_costs_no_step(script, small_run, tmp_path):
    folder = make_dataset(tmp_path / "tiny")
    where = ["--dataset_path", tmp_path, "--exp_dir", tmp_path / "logs"]
    done = script("train.py", *small_run, *where, *HELD_OUT, "--name", "whole")
    assert done.returncode == 0, done.stderr
    image = sorted((folder / "images").glob("00000007_*"))[0]
    content = image.read_bytes()
    image.write_bytes(content[:300].ljust(len(content), b"\0"))
    done = script("train.py", *small_run, *where, *HELD_OUT, "--name", "val")
    run = tmp_path / "logs" / "tiny" / "val"
    assert done.returncode == 2 and image.name in done.stderr, done.stderr
    assert "validation failed after step 3, which is saved" in done.stderr
    assert f"train.py --resume {run}" in done.stderr
    assert weights_file.load_checkpoint(run / "checkpoint.pth")["step"] == 3
    image.write_bytes(content)
    done = script("train.py", "--resume", run, "--dataset_path", tmp_path)
    assert done.returncode == 0, done.stderr
    whole = run.with_name("whole")
    assert same(state_of(run / "weights.pth"), state_of(whole / "weights.pth"))
    scores = [[m for m in metrics(f) if "val_map" in m] for f in (run, whole)]
    assert len(scores[0]) == 1 and scores[0] == scores[1]


def test_stopped_before_the_last_validation(tiny, tmp_path, monkeypatch):
    """The signal comes in the last step; the resumed run validates and writes its weights."""
    flags = {"dataset_type": ("tiny",), "dataset_path": str(tiny), "backbone": "resnet18", "pretrained": "none",
             "h": 64, "w": 32, "stripes": (2,), "batch_size": 8, "max_steps": 2, "exp_dir": str(tmp_path),
             "train_set": "train", "num_val": 2, "name": "val"}  # fmt: skip
    step = TrainStep.__call__

    def stopping(self, *arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        return step(self, *arguments)

    folder = tmp_path / "tiny" / "val"
    with monkeypatch.context() as patched:
        patched.setattr(TrainStep, "__call__", stopping)
        with pytest.raises(Interrupted):
            trainer.train(from_flags(flags))
        with pytest.raises(Interrupted):
            trainer.train(from_flags({**flags, "resume": str(folder)}))
    assert not (folder / "best.pth").exists()
    trainer.train(from_flags({**flags, "resume": str(folder)}))
    assert same(state_of(folder / "best.pth"), state_of(folder / "weights.pth"))
    assert [m["step"] for m in metrics(folder) if "val_map" in m] == [2]
