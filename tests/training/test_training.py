"""Training through the real script: what it writes, that it learns, stops, resumes, and refuses."""

import importlib.metadata
import json
import math
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from conftest import ROOT, make_dataset, metrics, same, state_of

from reid.config import Config
from reid.models import weights as weights_file
from reid.models.weights import load_model

pytestmark = pytest.mark.slow


def test_a_run_leaves_everything(straight):
    folder, done = straight
    names = {p.name for p in folder.iterdir()}
    assert {"config.json", "versions.json", "log.txt", "metrics.jsonl", "checkpoint.pth", "weights.pth",
            "weights.pth.sha256"} <= names  # fmt: skip
    assert any(name.startswith("events.out") for name in names)
    assert not [name for name in names if name.endswith(".tmp")]
    config = Config.from_json(json.loads((folder / "config.json").read_text(encoding="utf-8")), "config.json")
    assert (config.max_steps, config.stripes, config.h) == (12, (2,), 64)
    (start,) = json.loads((folder / "versions.json").read_text(encoding="utf-8"))
    assert start["packages"]["torch"] == importlib.metadata.version("torch")
    assert len(start["dataset_fingerprint"]) == 64
    assert "no CUDA, MPS or XPU device" in done.stderr or torch.accelerator.is_available()
    assert str(folder) in (folder / "log.txt").read_text(encoding="utf-8")
    assert not load_model(folder / "weights.pth").training


def test_losses_start_where_they_must_and_fall(straight):
    """2 classifiers a slot's q, a and b: three slots have 9; each begins at ln 8."""
    steps = [m for m in metrics(straight[0]) if "loss" in m]
    assert [m["step"] for m in steps] == list(range(1, 13))
    assert steps[0]["cross_entropy"] == pytest.approx(9 * math.log(8), rel=0.01)
    assert steps[0]["triplet"] > 3 * 0.5
    for m in steps:
        assert m["loss"] == pytest.approx(m["triplet"] + 2 * m["cross_entropy"], rel=1e-5)
    assert np.mean([m["loss"] for m in steps[-3:]]) < np.mean([m["loss"] for m in steps[:3]])


def test_same_seed_same_bits_and_another_seed_not(straight, script, small_run, tmp_path):
    for seed, workers, cache in ((0, 0, "none"), (1, 4, "ram")):
        done = script("train.py", *small_run, "--max_steps", 12, "--exp_dir", tmp_path, "--name", f"s{seed}", "--seed",
                      seed, "--num_workers", workers, "--cache", cache)  # fmt: skip
        assert done.returncode == 0, done.stderr
        equal = same(state_of(tmp_path / "tiny" / f"s{seed}" / "weights.pth"), state_of(straight[0] / "weights.pth"))
        assert equal == (seed == 0)


def test_stopped_and_resumed_equals_straight(small_run, tmp_path, script):
    """SIGTERM in the middle of an epoch: the step is finished and saved; resuming gives the same bits."""
    flags = [*small_run, "--max_steps", "60", "--exp_dir", str(tmp_path), "--name"]
    straight = script("train.py", *flags, "straight")
    assert straight.returncode == 0, straight.stderr
    command = [sys.executable, str(ROOT / "train.py"), *flags, "cut"]
    folder = tmp_path / "tiny" / "cut"
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (folder / "metrics.jsonl").exists():
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130, said
    assert f"--resume {folder}" in said and "SIGTERM" in said
    assert not (folder / "weights.pth").exists()
    reached = weights_file.load_checkpoint(folder / "checkpoint.pth")["step"]
    assert 0 < reached < 60
    done = script("train.py", "--resume", folder, "--dataset_path", small_run[3])
    assert done.returncode == 0, done.stderr
    assert f"after step {reached} of 60" in done.stdout
    assert same(state_of(folder / "weights.pth"), state_of(folder.with_name("straight") / "weights.pth"))
    assert [m["step"] for m in metrics(folder) if "loss" in m] == list(range(1, 61))


def test_existing_runs_are_kept(straight, script, small_run):
    folder = straight[0]
    before = (folder / "weights.pth").read_bytes()
    flags = [*small_run, "--max_steps", 1, "--exp_dir", folder.parent.parent, "--name", "straight"]
    done = script("train.py", *flags)
    assert done.returncode == 0 and f"this run is written to {folder}-2" in done.stdout
    assert (folder / "weights.pth").read_bytes() == before
    assert is_run(folder.with_name("straight-2"))
    done = script("train.py", *flags, "--resume")
    assert done.returncode == 2 and "no unfinished run" in done.stderr


def is_run(folder):
    return (folder / "weights.pth").is_file()


def test_changed_flags_are_refused_at_resume(straight, script, small_run, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("config.json", "checkpoint.pth"):
        (folder / name).write_bytes((straight[0] / name).read_bytes())
    done = script("train.py", "--resume", folder, "--dataset_path", small_run[3], "--lr", "0.5", "--margin", "2")
    assert done.returncode == 2
    assert "lr 0.01 -> 0.5" in done.stderr and "margin 1.2 -> 2.0" in done.stderr
    content = bytearray((folder / "checkpoint.pth").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "checkpoint.pth").write_bytes(content)
    done = script("train.py", "--resume", folder, "--dataset_path", small_run[3])
    assert done.returncode == 2 and "damaged" in done.stderr


def test_held_out_identities_choose_the_weights(script, small_run, tmp_path):
    done = script("train.py", *small_run, "--train_set", "train", "--num_val", 3, "--epochs", 3, "--eval_every", 1,
                  "--exp_dir", tmp_path, "--name", "val")  # fmt: skip
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "tiny" / "val"
    scores = [m["val_map"] for m in metrics(folder) if "val_map" in m]
    assert len(scores) == 3 and all(0 < s <= 1 for s in scores)
    best = weights_file.load_checkpoint(folder / "best.pth")
    assert best["map"] == max(scores) and best["classes"] == 5
    assert same(best["state"], state_of(folder / "weights.pth"))


@pytest.mark.parametrize("flags, words", [
    (["--dataset_type", "market1501"], ["market1501", "--profile demo"]),
    (["--split", "3"], ["splits.json", "--split 3"]),
    (["--batch_size", "64"], ["needs 16 identities", "has 8"]),
    (["--h", "80"], ["map height 5", "2 stripes"]),
    (["--train_set", "train", "--num_val", "8"], ["--num_val 8"]),
    (["--pretrained", "nowhere.pth"], ["nowhere.pth does not exist"]),
    (["--gpus", "0", "--cache", "gpu"], ["--cache ram"]),
    (["--batch_size", "4"], ["one identity per batch", "--batch_size 8"]),
    (["--seed", "9" * 30], ["--seed", "too large"]),
])  # fmt: skip
def test_bad_input(script, small_run, tmp_path, flags, words):
    done = script("train.py", *small_run, "--max_steps", 1, "--exp_dir", tmp_path, *flags)
    assert done.returncode == 2, done.stderr
    assert all(word in done.stderr for word in words) and "Traceback" not in done.stderr
    assert "Traceback" in script("train.py", *small_run, "--exp_dir", tmp_path, "--debug", *flags).stderr
    assert not list(tmp_path.glob("*/*"))  # no run that never made a step stands in the way of the next


def test_damaged_image_is_named(script, small_run, tmp_path):
    folder = make_dataset(tmp_path / "tiny")
    broken = sorted((folder / "images").iterdir())[3]
    broken.write_bytes(broken.read_bytes()[:300])
    for flags in (["--cache", "none", "--num_workers", 0], ["--cache", "ram"]):
        done = script("train.py", *small_run, "--dataset_path", tmp_path, "--exp_dir", tmp_path / "logs", *flags)
        assert done.returncode == 2 and broken.name in done.stderr, done.stderr
    assert len(list((tmp_path / "logs").glob("*/*"))) <= 1  # the second run never made a step


def test_pretrained_file_is_found_and_checked(script, small_run, tmp_path):
    """pretrained/ of the working folder; torchvision's classifier in it is dropped; a foreign file is refused."""
    from torchvision.models import resnet18, resnet34

    (tmp_path / "pretrained").mkdir()
    torch.manual_seed(5)
    network = resnet18()
    torch.save(network.state_dict(), tmp_path / "pretrained" / "resnet18-test.pth")
    flags = [*small_run, "--exp_dir", tmp_path, "--pretrained", "auto", "--max_steps", 1, "--base_lr", 0]
    done = script("train.py", *flags, "--name", "auto", cwd=tmp_path)
    assert done.returncode == 0 and "resnet18 starts from pretrained/resnet18-test.pth" in done.stdout, done.stderr
    state = state_of(tmp_path / "tiny" / "auto" / "weights.pth")
    assert torch.equal(state["base.layer4.1.conv2.weight"], network.layer4[1].conv2.weight.data)
    torch.save(network.state_dict(), tmp_path / "pretrained" / "resnet18.pth")
    done = script("train.py", *flags, cwd=tmp_path)
    assert done.returncode == 2 and "several weights" in done.stderr
    torch.save(resnet34().state_dict(), tmp_path / "other.pth")
    done = script("train.py", *flags, "--pretrained", "other.pth", cwd=tmp_path)
    assert done.returncode == 2 and "does not fit resnet18" in done.stderr


def test_optimiser_groups_have_their_own_rates(straight):
    groups = weights_file.load_checkpoint(straight[0] / "checkpoint.pth")["training"]["optimizer"]["param_groups"]
    assert groups[1]["lr"] == pytest.approx(1e-4)  # the last of 12 steps, after both drops
    assert groups[0]["lr"] == pytest.approx(groups[1]["lr"] / 10)
    assert all(g["weight_decay"] == 5e-4 and g["momentum"] == 0.9 for g in groups)


def test_not_finite_stops_before_the_step(script, small_run, tmp_path):
    done = script("train.py", *small_run, "--max_steps", 6, "--lr", "1e30", "--exp_dir", tmp_path, "--name", "nan")
    assert done.returncode == 1
    assert "not finite" in done.stderr and "triplet" in done.stderr and "Traceback" not in done.stderr


def test_broken_lists_are_found_before_the_first_step(script, small_run, tmp_path):
    """A query without a match in another camera would be found after hours otherwise."""
    folder = make_dataset(tmp_path / "tiny")
    test = json.loads((folder / "test.json").read_text(encoding="utf-8"))
    test[0]["gallery"] = [row for row in test[0]["gallery"] if row[2] != 0]
    test[0]["query"] = [row for row in test[0]["query"] if row[2] == 1]
    (folder / "test.json").write_text(json.dumps(test), encoding="utf-8")
    done = script("train.py", *small_run, "--dataset_path", tmp_path, "--exp_dir", tmp_path / "logs")
    assert done.returncode == 2 and "python -m reid check" in done.stderr, done.stderr
    assert not (tmp_path / "logs").exists()
