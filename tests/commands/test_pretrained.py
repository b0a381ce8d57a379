"""Trainings that start from trained weights: what is taken from each kind of file, what is new, what is refused."""

import hashlib
import json
import sys

import pytest
import torch
from conftest import make_dataset, make_weights, run_import, run_reid, state_of
from test_import_weights import published_state, whole_model
from torchvision import models as torchvision_models

from reid.config import Config
from reid.models import build_model
from reid.models.pretrained import read_start, start_from

pytestmark = pytest.mark.slow


@pytest.fixture()
def trained(script, small_run, tmp_path):
    """trained(file, *flags): the output and state of a training of one step whose rates are 0."""

    def work(file, *flags):
        frozen = ["--lr", 0, "--base_lr", 0, "--max_steps", 1, "--exp_dir", tmp_path / "logs", "--name", "new"]
        done = script("train.py", *small_run, *frozen, "--pretrained", file, *flags)
        assert done.returncode == 0, done.stderr
        folder = max((tmp_path / "logs").glob("*/*/weights.pth"), key=lambda f: f.stat().st_mtime).parent
        (start,) = json.loads((folder / "versions.json").read_text(encoding="utf-8"))
        assert start["pretrained"]["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
        return done.stdout, state_of(folder / "weights.pth")

    return work


def row(table, part):
    (line,) = [line for line in table.splitlines() if line.startswith(part + " ")]
    return line.split(maxsplit=3)[1:]


def equal(part, state, theirs):
    """Whether the parameters of a part are those of the file."""
    names = [k for k in theirs if k.startswith(part + ".") and not any(s in k for s in ("running", "tracked"))]
    return bool(names) and all(torch.equal(state[k], theirs[k]) for k in names)


def test_our_weights_on_the_same_and_on_other_identities(straight, trained, tmp_path):
    file = straight[0] / "weights.pth"
    theirs = state_of(file)
    out, state = trained(file)
    assert all(equal(part, state, theirs) for part in ("base", "E_p", "E_r", "R", "classifiers"))
    assert row(out, "classifiers") == ["2", "2"] and "rrid 2 on resnet18, 8 classes" in out
    make_dataset(tmp_path / "data" / "other", cameras=3)  # as many identities
    out, state = trained(file, "--dataset_path", tmp_path / "data", "--dataset_type", "other")
    assert all(equal(part, state, theirs) for part in ("base", "E_p", "E_r", "R"))
    assert not equal("classifiers", state, theirs)
    assert row(out, "classifiers") == ["2", "0", "new: not known to be for the same identities"]
    assert "in the file, not used: classifiers (2)" in out
    out, state = trained(file, "--model", "mgn", "--stripes", 2, "--pretrained", file)
    assert torch.equal(state["base.branches.1.layer4.1.conv2.weight"], theirs["base.layer4.1.conv2.weight"])
    assert row(out, "reduce")[1:] == ["0", "new: not in the file"]


def test_files_of_others(trained, tmp_path):
    """The published layout, in a pickled model too; a backbone inside a checkpoint, under a prefix."""
    torch.manual_seed(3)
    model = build_model(Config(backbone="resnet18", stripes=(2,)), 5)
    theirs, file = model.state_dict(), tmp_path / "theirs.pth"
    torch.save(published_state(model), file)
    out, state = trained(file)
    assert all(equal(part, state, theirs) for part in ("base", "E_p", "E_r", "R"))
    assert row(out, "classifiers")[1:] == ["0", "new: of another shape"]
    network = torchvision_models.resnet18(weights=None).state_dict()
    torch.save({"model": {f"backbone.{k}": v for k, v in network.items()} | {"heads.w": torch.ones(2)}}, file)
    out, state = trained(file)
    assert torch.equal(state["base.layer4.1.conv2.weight"], network["layer4.1.conv2.weight"])
    assert row(out, "E_p")[1:] == ["0", "new: not in the file"]
    assert "in the file, not used: backbone (2), heads (1)" in out  # the backbone's fc


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch cannot find the source of the class
def test_a_pickled_model_runs_no_code(tmp_path):
    torch.manual_seed(3)
    model = build_model(Config(backbone="resnet18", stripes=(2,)), 5)
    torch.save(whole_model(published_state(model)), tmp_path / "whole.pth")
    for name in ("their_model", "their_model.net"):
        sys.modules.pop(name, None)
    other = build_model(Config(backbone="resnet18", stripes=(2,)), 5)
    start_from(other, read_start(str(tmp_path / "whole.pth"), "resnet18"), "resnet18", "")
    assert equal("E_p", other.state_dict(), model.state_dict())
    assert "their_model" not in sys.modules


def test_files_that_cannot_be_used(script, small_run, tmp_path):
    weights = make_weights(tmp_path / "r34.pth", backbone="resnet34")
    damaged = bytearray(weights.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    (tmp_path / "damaged.pth").write_bytes(damaged)
    (tmp_path / "cut.pth").write_bytes(weights.read_bytes()[:5000])
    torch.save({"a": torch.ones(2)}, tmp_path / "unknown.pth")
    cases = [
        ("gone.pth", "does not exist; give a weights file, auto (ImageNet) or none"),
        (".", "is a folder; give a weights file, such as its weights.pth"),
        ("r34.pth", "(rrid 2 on resnet34, 5 classes) does not fit resnet18"),
        ("damaged.pth", "damaged"),
        ("cut.pth", "it is cut short, damaged"),
        ("unknown.pth", "neither of the published RRID nor of a backbone"),
    ]
    for name, words in cases:
        done = script("train.py", *small_run, "--exp_dir", tmp_path / "logs", "--pretrained", tmp_path / name)
        assert done.returncode == 2 and words in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert not list((tmp_path / "logs").glob("*/*"))


def test_messages_lead_on(script, small_run, weights, tmp_path):
    """From evaluate to import, from import to train; our own files from import to train."""
    theirs = tmp_path / "theirs.pth"
    torch.save(torchvision_models.resnet18(weights=None).state_dict(), theirs)
    done = script("evaluate.py", *small_run[:4], "--weights", theirs)
    assert done.returncode == 2
    assert f"python -m reid import {theirs} weights.pth" in done.stderr and f"--pretrained {theirs}" in done.stderr
    done = run_import(script, theirs, tmp_path)
    assert done.returncode == 0 and "without heads" in done.stdout and "use it with train --pretrained" in done.stdout
    done = run_reid(script, "import", weights, tmp_path / "again.pth")
    assert done.returncode == 2 and "use it as it is, with --weights or train --pretrained" in done.stderr
