"""Weights files: what cannot be used is refused with a reason."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from reid.config import Config
from reid.errors import InputError, MissingInput
from reid.models import build_model
from reid.models import weights as weights_file
from reid.models.weights import load_model


def test_failed_download_says_what_to_do(tmp_path, monkeypatch):
    from reid.models import backbone

    def refuse(url, **_):
        raise OSError("no route")

    monkeypatch.setattr(backbone, "load_state_dict_from_url", refuse)
    with pytest.raises(MissingInput, match=r"resnet50-0676ba61\.pth failed \(no route\).*--pretrained none"):
        backbone.imagenet_file("resnet50", tmp_path)


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
    (lambda p: torch.save({"a": torch.ones(1)}, p), "has weights neither of this project nor"),
    (lambda p: p.write_bytes(b""), "cannot be read as weights"),
    (lambda p: p.write_text("<html>", encoding="utf-8"), "cannot be read as weights"),
    (lambda p: torch.save([1, 2], p), "is a list"),
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
    with pytest.raises(MissingInput, match="does not exist"):
        load_model(Path("gone.pth"))
