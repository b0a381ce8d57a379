"""Training through the real script: what it writes, that it learns, stops, resumes, and refuses."""

import importlib.metadata
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, make_dataset, metrics, same, state_of

from reid.config import Config
from reid.errors import InputError, MissingInput
from reid.evaluation.features import read_features
from reid.evaluation.record import read_record
from reid.models import build_model
from reid.models import weights as weights_file
from reid.models.weights import load_model
from reid.training.schedule import rate_factor, rates, total_steps


@pytest.fixture(scope="module")
def straight(small_run, tmp_path_factory):
    """A straight run of 12 steps, by the real script in a process of its own."""
    logs = tmp_path_factory.mktemp("logs")
    flags = [*small_run, "--max_steps", "12", "--exp_dir", str(logs), "--name", "straight"]
    done = subprocess.run([sys.executable, "train.py", *flags], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return logs / "tiny" / "straight", done


def test_a_run_leaves_everything(straight):
    folder, done = straight
    names = {p.name for p in folder.iterdir()}
    assert {"config.json", "versions.json", "log.txt", "metrics.jsonl", "checkpoint.pth", "weights.pth",
            "weights.pth.sha256"} <= names  # fmt: skip
    assert any(name.startswith("events.out") for name in names)
    assert not [name for name in names if name.endswith(".tmp")]
    config = Config.from_json(json.loads((folder / "config.json").read_text()), "config.json")
    assert (config.max_steps, config.stripes, config.h) == (12, (2,), 64)
    (start,) = json.loads((folder / "versions.json").read_text())
    assert start["packages"]["torch"] == importlib.metadata.version("torch")
    assert len(start["dataset_fingerprint"]) == 64
    assert "no CUDA, MPS or XPU device" in done.stderr or torch.accelerator.is_available()
    assert str(folder) in (folder / "log.txt").read_text()
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


def test_stopped_and_resumed_equals_straight(straight, small_run, tmp_path, script):
    """SIGTERM in the middle of an epoch: the step is finished and saved; resuming gives the same bits."""
    command = [sys.executable, str(ROOT / "train.py"), *small_run, "--max_steps", "12", "--exp_dir", str(tmp_path),
               "--name", "cut"]  # fmt: skip
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
    assert 0 < reached < 12
    done = script("train.py", "--resume", folder, "--dataset_path", small_run[3])
    assert done.returncode == 0, done.stderr
    assert f"after step {reached} of 12" in done.stdout
    assert same(state_of(folder / "weights.pth"), state_of(straight[0] / "weights.pth"))
    assert [m["step"] for m in metrics(folder) if "loss" in m] == list(range(1, 13))


def test_covered_queries(straight, script, small_run, tmp_path):
    """--occlude scores queries without one sixth of the image; the gallery stays as it is."""
    weights = tmp_path / "w.pth"
    weights.write_bytes((straight[0] / "weights.pth").read_bytes())
    flags = ["--weights", weights, *small_run[:4], "--exp_dir", tmp_path]
    done = script("evaluate.py", *flags, "--occlude", 1, 6)
    assert done.returncode == 0, done.stderr
    assert "band 1 of 6" in done.stdout and "band 6 of 6" in done.stdout
    results = {p.parent.name: json.loads(p.read_text()) for p in tmp_path.glob("tiny/*/result.json")}
    assert set(results) == {"eval-w", "eval-w_occlude-1", "eval-w_occlude-6"}
    assert len({tuple(r["cmc"] + [r["map"]]) for r in results.values()}) > 1
    done = script("evaluate.py", *flags, "--occlude", 7)
    assert done.returncode == 2 and "--occlude 7 is unknown; choose from 0, 1" in done.stderr


def test_what_is_not_the_run_goes_elsewhere(straight, script, small_run, tmp_path):
    """Other weights beside the run's, other settings and other images never stand for the run's own result."""
    logs, flags = tmp_path / "logs", small_run[:4]
    for name in ("first", "second"):
        shutil.copytree(straight[0], logs / "tiny" / name)
    for name, seconds in (("first", 2_000_000_000), ("second", 1_000_000_000)):
        os.utime(logs / "tiny" / name / "weights.pth", (seconds, seconds))
    os.utime(logs / "tiny" / "second", (2_100_000_000, 2_100_000_000))  # as an evaluation there leaves it
    done = script("evaluate.py", *flags, "--exp_dir", logs)
    assert done.returncode == 0 and f"result in {logs / 'tiny' / 'first' / 'eval-tiny'}" in done.stdout, done.stderr
    run = logs / "tiny" / "first"
    before = (run / "eval-tiny" / "result.json").read_bytes()
    shutil.copy(run / "weights.pth", run / "previous.pth")
    for more, place in (
        (["--weights", run / "previous.pth"], logs / "tiny" / "eval-previous"),
        (["--weights", run / "weights.pth", "--h", 96], run / "eval-tiny_96x32"),
        (["--weights", run / "weights.pth", "--precision", "bf16"], run / "eval-tiny_precision-bf16"),
    ):
        done = script("evaluate.py", *flags, "--exp_dir", logs, *more)
        assert done.returncode == 0 and f"result in {place}\n" in done.stdout, done.stderr
    record = read_record(run / "eval-tiny_96x32" / "result.json")
    assert (record.h, record.w, record.precision) == (96, 32, "fp32")
    assert (run / "eval-tiny" / "result.json").read_bytes() == before
    done = script("evaluate.py", "--features", run / "eval-tiny" / "features.h5", "--occlude", 3)
    assert done.returncode == 2 and "--occlude covers images" in done.stderr


def test_features_of_images_that_were_replaced_are_made_anew(straight, script, tmp_path):
    """Of the same names and sizes in bytes."""
    folder = make_dataset(tmp_path / "tiny")
    flags = ["--dataset_type", "tiny", "--dataset_path", tmp_path, "--exp_dir", tmp_path / "logs",
             "--weights", straight[0] / "weights.pth"]  # fmt: skip
    shutil.copytree(straight[0], tmp_path / "run")
    flags[-1] = tmp_path / "run" / "weights.pth"
    for path in (folder / "images").iterdir():
        path.write_bytes(path.read_bytes().ljust(5000, b"\0"))
    path = tmp_path / "run" / "eval-tiny" / "features.h5"
    assert script("evaluate.py", *flags).returncode == 0
    before = read_features(path).query.features
    one, two = sorted((folder / "images").iterdir())[-4::3]
    content = one.read_bytes(), two.read_bytes()
    two.write_bytes(content[0])
    one.write_bytes(content[1])
    assert script("evaluate.py", *flags).returncode == 0
    (other,) = (p for p in path.parent.parent.glob("eval-*/features.h5") if p != path)
    assert (read_features(path).query.features == before).all()  # an evaluation is not overwritten
    assert (read_features(other).query.features != before).any()


def test_existing_runs_are_kept(straight, script, small_run):
    folder = straight[0]
    before = (folder / "weights.pth").read_bytes()
    flags = [*small_run, "--max_steps", 1, "--exp_dir", folder.parent.parent, "--name", "straight"]
    done = script("train.py", *flags)
    assert done.returncode == 0 and f"this run goes to {folder}-2" in done.stdout
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


def test_failed_download_says_what_to_do(tmp_path, monkeypatch):
    from reid.models import backbone

    def refuse(url, **_):
        raise OSError("no route")

    monkeypatch.setattr(backbone, "load_state_dict_from_url", refuse)
    with pytest.raises(MissingInput, match=r"resnet50-0676ba61\.pth failed \(no route\).*--pretrained none"):
        backbone.imagenet_file("resnet50", tmp_path)


def test_schedule():
    """Of 80 epochs 39 run at the full rate, 20 at a tenth, 21 at a hundredth; --max_steps keeps the fractions."""
    c = Config()
    assert total_steps(c, 809) == 80 * 809
    factors = [rate_factor(c, (e - 1) * 809, 80 * 809) for e in range(1, 81)]
    np.testing.assert_allclose(factors, [1] * 39 + [0.1] * 20 + [0.01] * 21)
    assert rate_factor(c, 39 * 809 - 1, 80 * 809) == 1
    cut = Config(max_steps=1600, warmup_steps=100)
    assert total_steps(cut, 809) == 1600
    factors = [rate_factor(cut, s, 1600) for s in range(1600)]
    np.testing.assert_allclose(factors[:100], np.arange(1, 101) / 100)
    np.testing.assert_allclose(factors[100:780], 1)
    np.testing.assert_allclose(factors[780:1180], 0.1)
    np.testing.assert_allclose(factors[1180:], 0.01)
    warm = Config(epochs=120, warmup_epochs=10, decay_schedule=(30,), max_steps=1200)
    np.testing.assert_allclose([rate_factor(warm, s, 1200) for s in range(100)], np.arange(1, 101) / 100)


def test_base_lr_from():
    """As published, the backbone learns at the heads' rate up to epoch 39 (D25)."""
    c = Config(base_lr_from=40)
    both = [rates(c, (e - 1) * 809, 80 * 809) for e in (1, 39, 40, 60)]
    np.testing.assert_allclose(both, [(1e-2, 1e-2), (1e-2, 1e-2), (1e-4, 1e-3), (1e-5, 1e-4)])
    assert rates(Config(), 0, 100) == (1e-3, 1e-2)


def test_optimiser_groups_have_their_own_rates(straight):
    groups = weights_file.load_checkpoint(straight[0] / "checkpoint.pth")["training"]["optimizer"]["param_groups"]
    assert groups[1]["lr"] == pytest.approx(1e-4)  # the last of 12 steps, after both drops
    assert groups[0]["lr"] == pytest.approx(groups[1]["lr"] / 10)
    assert all(g["weight_decay"] == 5e-4 and g["momentum"] == 0.9 for g in groups)


def test_not_finite_stops_before_the_step(script, small_run, tmp_path):
    done = script("train.py", *small_run, "--max_steps", 6, "--lr", "1e30", "--exp_dir", tmp_path, "--name", "nan")
    assert done.returncode == 1
    assert "not finite" in done.stderr and "triplet" in done.stderr and "Traceback" not in done.stderr


def test_failed_save_keeps_the_last_good_file(tmp_path, monkeypatch):
    path = tmp_path / "checkpoint.pth"
    weights_file.save_checkpoint(path, {"step": 1, "state": {"w": torch.arange(5.0)}})
    write = torch.save

    def full(content, target):
        write(content, target)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError):
        weights_file.save_checkpoint(path, {"step": 2, "state": {"w": torch.arange(6.0)}})
    assert weights_file.load_checkpoint(path)["step"] == 1
    assert os.listdir(tmp_path) == ["checkpoint.pth"]


@pytest.mark.parametrize("what, words", [
    (lambda p: torch.save({"a": torch.ones(1)}, p), "neither weights of this project nor"),
    (lambda p: p.write_bytes(b""), "cannot be read as weights"),
    (lambda p: p.write_text("<html>"), "cannot be read as weights"),
    (lambda p: torch.save([1, 2], p), "holds a list"),
    (lambda p: torch.save({"format": 9}, p), "format 9"),
    (lambda p: torch.save({"a": np.random.default_rng}, p), "cannot be read as weights"),
])  # fmt: skip
def test_weights_that_cannot_be_used(tmp_path, what, words):
    path = tmp_path / "weights.pth"
    what(path)
    with pytest.raises(InputError, match=words):
        load_model(path)


def test_weights_of_another_architecture_or_class_count(tmp_path):
    config = Config(backbone="resnet18", stripes=(2,))
    content = {"format": 1, "config": config.to_json(), "classes": 5, "state": build_model(config, 5).state_dict()}
    for change in ({"classes": 6}, {"config": Config(backbone="resnet34", stripes=(2,)).to_json()},
                   {"config": Config(backbone="resnet18", stripes=(3,)).to_json()}):  # fmt: skip
        torch.save({**content, **change}, tmp_path / "weights.pth")
        with pytest.raises(InputError, match="does not fit the model"):
            load_model(tmp_path / "weights.pth")
    with pytest.raises(MissingInput, match="is not there"):
        load_model(Path("gone.pth"))


def test_several_datasets_train_together_and_are_scored_one_by_one(script, small_run, tmp_path):
    """Identities are kept apart: 8 + 6 classes. Scored on a set it was trained on and on one it was not."""
    make_dataset(tmp_path / "data" / "one")
    make_dataset(tmp_path / "data" / "two", train_ids=6, cameras=3)
    make_dataset(tmp_path / "data" / "other", test_ids=3)
    flags = [*small_run, "--dataset_path", tmp_path / "data", "--exp_dir", tmp_path / "logs", "--max_steps", 2]
    done = script("train.py", *flags, "--dataset_type", "one", "two", "--name", "joint")
    assert done.returncode == 0, done.stderr
    weights = tmp_path / "logs" / "one+two" / "joint" / "weights.pth"
    assert weights_file.load_checkpoint(weights)["classes"] == 14
    done = script(
        "evaluate.py", "--dataset_path", tmp_path / "data", "--weights", weights, "--dataset_type", "one", "other"
    )
    assert done.returncode == 0, done.stderr
    for name, queries in (("one", 8), ("other", 6)):
        result = json.loads((weights.parent / f"eval-{name}" / "result.json").read_text())
        assert result["n_query"] == queries and 0 < result["map"] <= 1
    done = script("evaluate.py", "--dataset_path", tmp_path / "data", "--weights", weights)
    assert done.stdout.count("mAP step") == 2 and "eval-two" in done.stdout


def test_broken_lists_are_found_before_the_first_step(script, small_run, tmp_path):
    """A query without a match in another camera would be found after hours otherwise."""
    folder = make_dataset(tmp_path / "tiny")
    test = json.loads((folder / "test.json").read_text())
    test[0]["gallery"] = [row for row in test[0]["gallery"] if row[2] != 0]
    test[0]["query"] = [row for row in test[0]["query"] if row[2] == 1]
    (folder / "test.json").write_text(json.dumps(test))
    done = script("train.py", *small_run, "--dataset_path", tmp_path, "--exp_dir", tmp_path / "logs")
    assert done.returncode == 2 and "python -m reid check" in done.stderr, done.stderr
    assert not (tmp_path / "logs").exists()
