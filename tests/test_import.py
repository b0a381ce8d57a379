"""Import: files are built here as their authors' programs would; payloads are proven live before being refused."""

import builtins
import os
import pickle
import struct
import subprocess
import sys
import types
import warnings
import zipfile
from collections import OrderedDict
from io import BytesIO

import pytest
import torch
from torch import nn
from torchvision import models as torchvision_models

from reid.config import Config
from reid.errors import InputError, MissingInput
from reid.models import build_model, read_weights
from reid.models.backbone import build_backbone, load_pretrained
from reid.models.legacy import MAGIC, PROTOCOL, read_foreign
from reid.models.published import published_names
from reid.models.rrid import RRID

SYSTEM = {"protocol_version": PROTOCOL, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}


class Calls:
    """Pickles to a call."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def gadgets(marker) -> dict[str, bytes]:
    """Pickles that write the file `marker` when they are loaded."""
    touch, code = f"touch {marker}", f"open({str(marker)!r}, 'w').close()"
    text = "S" + repr(touch).replace('"', "'") + "\n"
    short = b"\x8c" + bytes([len(touch)]) + touch.encode()
    return {
        "os.system": pickle.dumps(Calls(os.system, touch), 2),
        "builtins.eval": pickle.dumps(Calls(builtins.eval, code), 2),
        "builtins.exec": pickle.dumps(Calls(builtins.exec, code), 4),
        "subprocess.Popen": pickle.dumps(Calls(subprocess.Popen, ["touch", str(marker)]), 4),
        "INST": f"({text}ios\nsystem\n.".encode(),
        "OBJ": f"(cos\nsystem\n{text}o.".encode(),
        "dotted STACK_GLOBAL": b"\x80\x04\x8c\x0asubprocess\x8c\x09os.system\x93" + short + b"\x85R.",
        # an attribute __setstate__ set by one BUILD is called by the next
        "BUILD": b"\x80\x02ctypes\nSimpleNamespace\n)\x81}X\x0c\x00\x00\x00__setstate__cos\nsystem\nsb"
        + b"X" + struct.pack("<I", len(touch)) + touch.encode() + b"b.",
        "in an allowed call": pickle.dumps(OrderedDict([("weight", Calls(os.system, touch))]), 2),
    }  # fmt: skip


def in_legacy(payload: bytes) -> bytes:
    return b"".join(pickle.dumps(x, 2) for x in (MAGIC, PROTOCOL, SYSTEM)) + payload + pickle.dumps([], 2)


def in_zip(payload: bytes) -> bytes:
    stream = BytesIO()
    with zipfile.ZipFile(stream, "w") as z:
        z.writestr("archive/data.pkl", payload)
        z.writestr("archive/version", "3\n")
    return stream.getvalue()


@pytest.mark.parametrize("wrap", [bytes, in_legacy, in_zip], ids=["bare", "legacy", "zip"])
@pytest.mark.parametrize("gadget", gadgets("m"))
def test_malicious_pickles_do_not_run(gadget, wrap, tmp_path, script):
    marker, file = tmp_path / "marker", tmp_path / "model.pth"
    payload = gadgets(marker)[gadget]
    result = pickle.loads(payload)  # the payload is live
    getattr(result, "wait", int)()
    assert marker.exists()
    marker.unlink()
    file.write_bytes(wrap(payload))
    done = run_import(script, file, tmp_path)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    if gadget in ("os.system", "builtins.eval", "builtins.exec", "subprocess.Popen") or gadget.startswith("in "):
        name = {"in an allowed call": "posix.system", "os.system": "posix.system"}.get(gadget, gadget)
        assert f"wants to call {name}" in done.stderr.replace("__builtin__", "builtins")
    assert not marker.exists() and not (tmp_path / "out.pth").exists()


def run_import(script, file, folder, *flags):
    return script("reid/__main__.py", "import", file, folder / "out.pth", *flags)


@pytest.mark.parametrize("zipped", [True, False])
def test_malicious_entry_among_tensors(zipped, tmp_path, script):
    file, marker = tmp_path / "model.pth", tmp_path / "marker"
    content = {"conv1.weight": torch.zeros(3), "note": Calls(os.system, f"touch {marker}")}
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    torch.load(file, weights_only=False)  # live
    assert marker.exists()
    marker.unlink()
    done = run_import(script, file, tmp_path)
    assert done.returncode == 2 and "posix.system" in done.stderr and not marker.exists()


def test_calls_refused_by_their_whole_name(tmp_path):
    """Attributes of what is allowed are not allowed; neither is a call in place of a storage's type."""
    file = tmp_path / "m.pth"
    dotted = b"\x80\x04\x8c\x0ctorch._utils\x8c\x22_rebuild_tensor_v2.__globals__.get\x93)R."
    file.write_bytes(in_legacy(dotted))
    with pytest.raises(InputError, match=r"torch._utils._rebuild_tensor_v2.__globals__.get"):
        read_foreign(file)
    file.write_bytes(in_legacy(pickle.dumps(1)[:-1] + b"0(X\x07\x00\x00\x00storagecos\nsystem\nK\x01K\x01K\x01tQ."))
    with pytest.raises(InputError, match=r"storage of type os.system"):
        read_foreign(file)


def test_damaged_files(tmp_path):
    """Truncated, nested, foreign, empty and lying files: an InputError that names the file."""
    good = tmp_path / "good.pth"
    file = tmp_path / "bad.pth"

    def refused(content: bytes, match: str = "bad.pth"):
        file.write_bytes(content)
        with pytest.raises(InputError, match=match):
            read_foreign(file)

    for zipped in (True, False):
        torch.save({"w": torch.randn(50, 50), "b": torch.ones(7)}, good, _use_new_zipfile_serialization=zipped)
        whole = good.read_bytes()
        for share in (0.01, 0.2, 0.5, 0.9, 0.999):
            refused(whole[: int(len(whole) * share)])
    nested = BytesIO()
    with zipfile.ZipFile(nested, "w") as z:
        z.write(good, "inner/good.pth")
    refused(nested.getvalue(), "unpack it")
    with zipfile.ZipFile(nested, "w", zipfile.ZIP_DEFLATED) as z:
        z.writestr("archive/data.pkl", bytes(10_000_000))
    refused(nested.getvalue(), "compressed")
    refused(b"")
    refused(b"<html>not found</html>")
    refused(b"\x80\x02\x8e\xff\xff\xff\xff\xff\xff\xff\x7f")  # a text of 2^63 bytes
    refused(in_legacy(pickle.dumps([1, 2], 2)), "expected a model")
    with pytest.raises(MissingInput):
        read_foreign(tmp_path / "none.pth")


@pytest.mark.parametrize("lie", [(0, (2, 3), (3, 2)), (1, (2, 3), (3, 1)), (-1, (2,), (1,)), (0, (2**40,), (0,))])
def test_tensors_stay_inside_their_storage(lie, tmp_path):
    file = tmp_path / "m.pth"
    torch.save({"w": torch.arange(6.0)}, file, _use_new_zipfile_serialization=False)
    content = file.read_bytes()
    offset, size, stride = (pickle.dumps(x, 2)[2:-1] for x in lie)
    before = b"K\x00K\x06\x85q\x06K\x01\x85"
    at = content.index(b"QK\x00K\x06\x85") + 1
    end = content.index(b"\x85", content.index(b"\x85", at) + 1) + 1
    assert content[at:end].startswith(before[:4])
    file.write_bytes(content[:at] + offset + size + stride + content[end:])
    with pytest.raises(InputError, match=r"storage|impossible|larger"):
        read_foreign(file)


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
    assert again.returncode == 2 and "already there" in again.stderr
    incomplete = {k: v for k, v in state.items() if k != "rest_3_conv_list.1.0.weight"}
    torch.save(incomplete, tmp_path / "theirs.pth")
    done = run_import(script, tmp_path / "theirs.pth", tmp_path, "--overwrite")
    assert done.returncode == 2 and "rest_3_conv_list.1.0.weight" in done.stderr


def test_published_layout_handed_on(ours, tmp_path, script):
    """export takes the published layout as it is; with no class count in the file its classifiers stay behind."""
    torch.save(published_state(ours), tmp_path / "theirs.pth")
    done = script("reid/__main__.py", "export", "--weights", tmp_path / "theirs.pth", "--format", "pth",
                  "--num_images", "4", "--out", tmp_path / "ours.pth")  # fmt: skip
    assert done.returncode == 0, done.stderr
    state = read_weights(tmp_path / "ours.pth")[0].state_dict()
    assert not [k for k in state if k.startswith("classifier")]
    assert all(torch.equal(v, ours.state_dict()[k]) for k, v in state.items() if not k.endswith("tracked"))


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
