"""Import: files are built here as their authors' programs would. How they are read safely: test_pickles.py."""

import argparse
import sys
import types
import warnings

import pytest
import torch
from conftest import run_import
from torch import nn
from torchvision import models as torchvision_models

from reid.config import Config
from reid.errors import InputError
from reid.models import build_model
from reid.models.backbone import build_backbone, load_pretrained
from reid.models.pickles import read_foreign
from reid.models.published import published_names
from reid.models.rrid import RRID
from reid.models.weights import read_weights


def test_views_types_and_names(tmp_path):
    base = torch.arange(24.0)
    state = {
        "module._orig_mod.t": base.view(4, 6).T, "module.part": base[5:9], "module.empty": torch.empty(0, 3),
        "module.half": base.half(), "module.brain": base.bfloat16(), "module.count": torch.tensor(3),
    }  # fmt: skip
    for zipped in (True, False):
        torch.save({"state_dict": state, "epoch": 7}, tmp_path / "m.pth", _use_new_zipfile_serialization=zipped)
        got, other = read_foreign(tmp_path / "m.pth")
        assert other == [] and list(got) == ["t", "part", "empty", "half", "brain", "count"]
        for expected, value in zip(state.values(), got.values()):
            assert value.dtype == expected.dtype and torch.equal(value, expected)


def published_state(model: RRID) -> dict[str, torch.Tensor]:
    """The published layout of a model of ours, slot by slot."""
    own, state = model.state_dict(), {k: v for k, v in model.state_dict().items() if k.startswith("base.")}
    for layer, names in published_names(model.stripes).items():
        for i, name in enumerate(names):
            if layer == "classifiers":
                if model.classifiers is not None:
                    state |= {f"{name}.{k}": own[f"classifiers.{k}"][i].clone() for k in ("weight", "bias")}
                continue
            state[f"{name}.0.weight"] = own[f"{layer}.weight"][i][:, :, None, None].clone()
            state[f"{name}.0.bias"] = own[f"{layer}.bias"][i].clone()
            for k in ("weight", "bias", "running_mean", "running_var"):
                state[f"{name}.1.{k}"] = own[f"{layer}.norm.{k}"].view(len(names), -1)[i].clone()
            state[f"{name}.1.num_batches_tracked"] = torch.tensor(5)
    return state


def whole_model(state: dict[str, torch.Tensor]) -> nn.Module:
    """A DataParallel of a class from a module that exists nowhere, with these tensors."""
    module = types.ModuleType("their_model.net")
    kind = type("Net", (nn.Module,), {"__module__": "their_model.net"})
    module.Net = kind
    sys.modules["their_model"], sys.modules["their_model.net"] = types.ModuleType("their_model"), module
    root = kind()
    for name, value in state.items():
        at, (*path, leaf) = root, name.split(".")
        for part in path:
            if part not in at._modules:
                at.add_module(part, kind())
            at = at._modules[part]
        if leaf.startswith(("running", "num_")):
            at.register_buffer(leaf, value)
        else:
            at.register_parameter(leaf, nn.Parameter(value))
    return nn.DataParallel(root)


@pytest.fixture(scope="module")
def ours() -> RRID:
    torch.manual_seed(0)
    model = build_model(Config(stripes=(3, 2)), 6)
    for name, value in model.state_dict().items():
        if "running" in name or "bias" in name:
            value.uniform_(0.5, 1.5)
    return model.eval()


@pytest.mark.slow
@pytest.mark.parametrize("form", ["legacy whole, torch 0.4", "zip whole", "compiled state", "no classifiers"])
def test_published_weights_in_every_form(form, ours, tmp_path, script, monkeypatch):
    state = published_state(ours)
    if form == "no classifiers":
        content = {k: v for k, v in state.items() if not k.startswith("fc_")}
    elif form == "compiled state":
        content = {f"module._orig_mod.{k}": v for k, v in state.items()}
    else:
        content = whole_model(state)
    with warnings.catch_warnings(), monkeypatch.context() as patched:
        warnings.simplefilter("ignore")  # torch cannot find the source of the class
        if "0.4" in form:
            patched.setattr(nn.Parameter, "__reduce_ex__", lambda p, _: (nn.Parameter, (p.data, p.requires_grad)))
        torch.save(content, tmp_path / "theirs.pth", _use_new_zipfile_serialization="legacy" not in form)
    for name in ("their_model", "their_model.net"):
        sys.modules.pop(name, None)
    done = run_import(script, tmp_path / "theirs.pth", tmp_path, "--h", "192", "--w", "64")
    assert done.returncode == 0, done.stderr
    assert f"stripes 3 2, {'no classifiers' if form == 'no classifiers' else '6 classes'}" in done.stdout
    assert ("fc_local_*_list" in done.stdout) == (form != "no classifiers")
    model, config = read_weights(tmp_path / "out.pth")
    assert (config.h, config.w, config.stripes) == (192, 64, (3, 2))
    for name, value in model.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(value, ours.state_dict()[name]), name
    again = run_import(script, tmp_path / "theirs.pth", tmp_path)
    assert again.returncode == 2 and "already exists" in again.stderr
    itself = script("reid/__main__.py", "import", tmp_path / "out.pth", tmp_path / "out.pth", "--overwrite")
    assert itself.returncode == 2 and "the input file" in itself.stderr
    incomplete = {k: v for k, v in state.items() if k != "rest_3_conv_list.1.0.weight"}
    torch.save(incomplete, tmp_path / "theirs.pth")
    done = run_import(script, tmp_path / "theirs.pth", tmp_path, "--overwrite")
    assert done.returncode == 2 and "rest_3_conv_list.1.0.weight" in done.stderr


@pytest.mark.slow
def test_published_layout_handed_on(ours, tmp_path, script):
    """export takes the published layout as it is, classifiers too."""
    torch.save(published_state(ours), tmp_path / "theirs.pth")
    done = script("reid/__main__.py", "export", "--weights", tmp_path / "theirs.pth", "--format", "pth",
                  "--num_images", "4", "--out", tmp_path / "ours.pth")  # fmt: skip
    assert done.returncode == 0, done.stderr
    model = read_weights(tmp_path / "ours.pth")[0]
    state, expected = model.state_dict(), ours.state_dict()
    assert model.num_classes == 6 and state.keys() == expected.keys()
    assert all(torch.equal(v, expected[k]) for k, v in state.items() if not k.endswith("tracked"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "form"),
    [("resnet50", "{}"), ("resnet18", "backbone.{}"), ("resnet34", "module.{}"), ("mobilenet_v2", "model.{}")],
)
def test_backbones_under_any_prefix(name, form, tmp_path, script):
    torch.manual_seed(1)
    theirs = getattr(torchvision_models, name)(weights=None).state_dict()
    named = {form.format(k): v for k, v in theirs.items()} | {"heads.weight": torch.ones(2), "pixel_mean": 0.5}
    torch.save({"model": named, "iteration": 3}, tmp_path / "theirs.pth")
    done = run_import(script, tmp_path / "theirs.pth", tmp_path)
    assert done.returncode == 0, done.stderr
    assert name in done.stdout and "not tensors, not used: pixel_mean" in done.stdout
    backbone = build_backbone(name)
    load_pretrained(backbone, name, str(tmp_path / "out.pth"))
    assert all(torch.equal(v, theirs[k]) for k, v in backbone.state_dict().items())


@pytest.mark.slow
def test_other_architectures_are_refused(tmp_path, script):
    state = torchvision_models.resnet18(weights=None).state_dict()
    changed = {k.replace("bn1", "bn1.IN"): v for k, v in state.items()}
    more = state | {"layer3.9.conv1.weight": torch.zeros(1)}
    ours = {"E_p.weight": torch.zeros(1), "E_r.weight": torch.zeros(1)}
    cases = [
        (changed, "another architecture"),
        (more, "layer3.9"),
        ({"a": torch.ones(1)}, "neither"),
        (ours, "already"),
    ]
    for content, said in cases:
        torch.save(content, tmp_path / "theirs.pth")
        done = run_import(script, tmp_path / "theirs.pth", tmp_path)
        assert done.returncode == 2 and said in done.stderr and not (tmp_path / "out.pth").exists()


@pytest.mark.slow
def test_targets_that_cannot_be_written(tmp_path, script, ours):
    """One line, for backbones and for whole models."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("", encoding="utf-8")
    torch.save(torchvision_models.resnet18(weights=None).state_dict(), tmp_path / "backbone.pth")
    torch.save(published_state(ours), tmp_path / "whole.pth")
    targets = ["folder", "/proc/x/y.pth", "file/y.pth", "a" * 300]
    for source, target in [("backbone.pth", t) for t in targets] + [("whole.pth", t) for t in targets[:2]]:
        flags = ["--h", "192", *(["--overwrite"] if target == "folder" else [])]
        done = script("reid/__main__.py", "import", tmp_path / source, tmp_path / target, *flags)
        assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
        assert "cannot be written" in done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["backbone.pth", "file", "folder", "whole.pth"]


@pytest.mark.slow
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_not_finite(bad, tmp_path, script, ours):
    backbone, whole = torchvision_models.resnet18(weights=None).state_dict(), published_state(ours)
    backbone["fc.bias"][3] = bad  # not taken
    torch.save(backbone, tmp_path / "theirs.pth")
    assert run_import(script, tmp_path / "theirs.pth", tmp_path).returncode == 0
    (tmp_path / "out.pth").unlink()
    backbone["layer1.0.conv1.weight"][0, 1, 2, 0] = bad
    whole["relation_3_conv_list.1.0.bias"][7] = bad
    for state, name in ((backbone, "layer1.0.conv1.weight"), (whole, "relation_3_conv_list.1.0.bias")):
        torch.save(state, tmp_path / "theirs.pth")
        done = run_import(script, tmp_path / "theirs.pth", tmp_path, "--h", "192")
        assert done.returncode == 2 and f"{name} is not finite" in done.stderr and "damaged" in done.stderr
        assert not (tmp_path / "out.pth").exists()


def test_models_inside_lists(tmp_path):
    """A list with exactly one model or state dict is read; the message gives the types in any other list."""
    file, state = tmp_path / "m.pth", {"w": torch.ones(2)}
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    model(torch.ones(2)).sum().backward()
    optimizer.step()
    for content, names in [
        ((state, 3), ["w"]),
        ([model, {"epoch": 3}], ["weight", "bias"]),
        ((7, {"state_dict": state}, optimizer.state_dict(), optimizer), ["w"]),
    ]:
        torch.save(content, file)
        assert list(read_foreign(file)[0]) == names
    for content, found in [
        (torch.ones(2), r"0 in \(tensor\)"),
        ([state, {"x": torch.ones(1)}, "a"], r"2 in \(dict, dict, str\)"),
        ((torch.ones(2), 3, [4], None), r"0 in \(tensor, int, list, NoneType\)"),
        ([torch.ones(2)] * 9, r"0 in \(tensor, .*, \.\.\.\)"),
        ([torch.ones(2)] * 30, r"0 in \(list\)"),
        ({"epoch": 3}, r"0 in \(dict\)"),
        (argparse.Namespace(a=1), r"0 in \(argparse.Namespace\)"),
    ]:
        torch.save(content, file)
        with pytest.raises(InputError, match=f"expected one model or state dict with tensors, found {found}; save"):
            read_foreign(file)


@pytest.mark.parametrize("flags", [("--h", "-5"), ("--w", "0")])
def test_sizes_below_one(flags, tmp_path, script):
    torch.save(torchvision_models.resnet18(weights=None).state_dict(), tmp_path / "theirs.pth")
    done = run_import(script, tmp_path / "theirs.pth", tmp_path, *flags)
    assert done.returncode == 2 and "at least 1" in done.stderr and not (tmp_path / "out.pth").exists()


def test_published_shapes_that_do_not_go_together(ours, tmp_path, script):
    state = published_state(ours)
    state["rest_3_conv_list.1.0.bias"] = torch.ones(7)
    torch.save(state, tmp_path / "theirs.pth")
    done = run_import(script, tmp_path / "theirs.pth", tmp_path, "--h", "192")
    assert done.returncode == 2 and "Traceback" not in done.stderr and "size" in done.stderr
