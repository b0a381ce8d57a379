"""What reads torch.save files: payloads are proven live before being refused, and hostile files take no time."""

import argparse
import builtins
import collections
import datetime
import functools
import json
import os
import pathlib
import pickle
import struct
import subprocess
import sys
import types
import zipfile
from collections import OrderedDict
from io import BytesIO

import numpy as np
import pytest
import torch
from conftest import ROOT, run_import
from torch import nn

from reid.errors import InputError, MissingInput
from reid.models.pickles import MAGIC, PROTOCOL, read_foreign

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


class Settings(dict):
    """A dict of one's own, as configuration libraries have."""


class History(list):
    """A list of one's own."""


ORDINARY = {
    "numbers": [np.float64(0.5), np.float32(1), np.int64(3), np.bool_(True), np.str_("a"), 1j],
    "arrays": [np.arange(3.0), np.array(["a", None], object), np.ones((2, 3), order="F"), np.arange(4)[::2]],
    "random states": [np.random.get_state(), np.random.default_rng(0), np.random.RandomState(0)],
    "containers": [
        collections.Counter("aab"), collections.defaultdict(list, {1: [2]}), collections.deque([1, 2], 3),
        {1, 2}, frozenset("ab"), OrderedDict(a=1), {(1, "a"): 2, (1, ("b", 2)): 3, None: 4, b"k": 5, 2**70: 6, 0.5: 7},
    ],
    "paths": [pathlib.PurePosixPath("/a/b"), pathlib.PureWindowsPath("c:/a"), pathlib.Path("a")],
    "dates": [datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC), datetime.date(2020, 1, 1), datetime.timedelta(1)],
    "objects": [argparse.Namespace(lr=0.1), types.SimpleNamespace(a=1), functools.partial(nn.functional.relu, True)],
    "bytes": [b"\xff\x01", b"", bytearray(b"abc"), slice(1), range(3)],
    "torch": [torch.Size([1, 2]), torch.device("cpu"), torch.float32, torch.optim.SGD([nn.Parameter(torch.ones(1))])],
    "their own dict and list": [Settings(lr=0.1), History([1, 2])],
}  # fmt: skip


@pytest.mark.parametrize("what", ORDINARY)
@pytest.mark.parametrize("form", ["zip", "legacy", "protocol 4"])
def test_ordinary_company_of_weights(what, form, tmp_path):
    """What checkpoints carry beside weights does not keep them from being read."""
    weight = nn.Parameter(torch.arange(3.0))
    weight.decay = False  # a parameter with an attribute is another call
    content = {"state_dict": {"w": weight, "extra": ORDINARY[what]}, "also": ORDINARY[what]}
    file, protocol = tmp_path / "m.pth", 4 if form == "protocol 4" else 2
    torch.save(content, file, pickle_protocol=protocol, _use_new_zipfile_serialization=form != "legacy")
    state, other = read_foreign(file)
    assert torch.equal(state["w"], weight.data) and other == ["extra"]


def test_names_of_other_versions(tmp_path):
    """Python 3.13's paths, numpy before 2, and an OrderedDict as Python 2 wrote it."""
    path = b"cpathlib._local\nPosixPath\n(X\x01\x00\x00\x00atR"
    scalar = b"cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\nX\x02\x00\x00\x00f8K\x00K\x01\x87R0NtR"
    storage = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x02NtQ"
    tensor = b"ctorch._utils\n_rebuild_tensor\n(" + storage + b"K\x00K\x02\x85K\x01\x85tR"
    pairs = (
        b"](]X\x01\x00\x00\x00pa" + path + b"a](X\x01\x00\x00\x00s" + scalar + b"e](X\x01\x00\x00\x00w" + tensor + b"ee"
    )
    content = b"\x80\x02ccollections\nOrderedDict\n" + pairs + b"\x85R."
    pickles = [*(pickle.dumps(x, 2) for x in (MAGIC, PROTOCOL, SYSTEM)), content, pickle.dumps(["0"], 2)]
    (tmp_path / "m.pth").write_bytes(b"".join(pickles) + struct.pack("<qff", 2, 1.5, 2.5))
    state, other = read_foreign(tmp_path / "m.pth")
    assert state["w"].tolist() == [1.5, 2.5] and other == ["p", "s"]


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def reference(kind: bytes = b"ctorch\nFloatStorage\n", key: bytes = text("0")) -> bytes:
    """Opcodes that make a storage."""
    return b"(" + text("storage") + kind + key + text("cpu") + b"K\x02tQ"


def one_tensor(size: bytes, stride: bytes = b"K\x01\x85") -> bytes:
    """Opcodes that make a tensor."""
    return b"ctorch._utils\n_rebuild_tensor\n(" + reference() + b"K\x00" + size + stride + b"tR"


def hostile() -> dict[str, bytes]:
    """Small files that a careless reader works on for minutes or fills the memory with."""
    doubled = b")" + b"2\x86" * 40  # a tuple of twice a tuple of twice ...
    listed = b"(" + b"N" * 200_000  # what is not copied for each of the 200 000 times that it is named
    empty = one_tensor(b"K\x00\x85")
    alike = range(0, 60_000 * (2**61 - 1), 2**61 - 1)  # numbers of the same hash
    network = b"cm\nNet\n)\x81q\x00}" + text("_parameters") + b"}s" + text("_modules") + b"}sb"
    twice = text("a") + b"h\x00s" + text("b") + b"h\x00s"
    deeper = b"cm\nNet\n)\x81}" + text("_modules") + b"}" + twice + b"sbq\x00"  # a module with twice the one before
    bodies = {
        "doubled key": b"}" + doubled + b"K\x01s",
        "doubled module": doubled + text("a") + b"\x93",
        "doubled name": text("a") + doubled + b"\x93",
        "doubled storage key": reference(key=doubled),
        "doubled storage type": reference(kind=doubled),
        "doubled size": one_tensor(doubled),
        "doubled pairs": b"ccollections\nOrderedDict\n](" + doubled + b"Nla\x85R",
        "doubled list": b"]" + b"2\x86" * 40,
        "doubled state": b"cm\nNet\n)\x81" + doubled + b"b",
        "doubled name of a tensor": b"cm\nNet\n)\x81}" + text("_parameters") + b"}" + doubled + empty + b"ssb",
        "shared modules": network + deeper * 60,
        "long names": b"cm\nNet\n)\x81}" + text("_parameters") + b"}" + text("a" * 200_000) + empty + b"ssbq\x00"
        + b"cm\nNet\n)\x81}" + text("_modules") + b"}(" + b"".join(text(str(i)) + b"h\x00" for i in range(40_000))
        + b"usb",
        "sets": b"cbuiltins\nset\nq\x01" + listed + b"lq\x00](" + b"h\x01h\x00\x85R" * 200_000 + b"e",
        "sizes": b"ctorch\nSize\nq\x01" + listed + b"lq\x00](" + b"h\x01h\x00\x85R" * 200_000 + b"e",
        "arguments": b"ctorch\ndevice\nq\x01" + listed + b"tq\x00" + b"h\x01h\x00R0" * 200_000 + b"}",
        "pairs": b"ccollections\nOrderedDict\nq\x01(" + b"(NNl" * 50_000 + b"lq\x00"
        + b"h\x01h\x00\x85R0" * 50_000 + b"}",
        "states": b"(" + b"".join(text(str(i)) + b"N" for i in range(50_000)) + b"dq\x00cm\nNet\n)\x81"
        + b"h\x00b" * 200_000,
        "references": reference()[:-2] + b"N" * 200_000 + b"tq\x00" + b"h\x00Q0" * 200_000 + b"}",
        "numbers that hash alike": b"(" + b"".join(b"\x8a\x10" + n.to_bytes(16, "little") + b"N" for n in alike)
        + b"d",
        "memo that hashes alike": b"N" + b"".join(b"p%d\n" % n for n in alike),
        "product of texts": b"}" + text("a") + one_tensor(text("ab") + b"\x8a\x06\x00\x00\x00\x00\x00\x01\x86") + b"s",
        "product of numbers": b"}" + text("a") + one_tensor(b"(" + (b"\x8a\xff" + b"\x7f" * 255) * 8000 + b"t") + b"s",
        "nested checkpoints": b"}q\x00" + text("model") + b"h\x00s",
        "deep checkpoints": b"}" + (b"q\x00}" + text("model") + b"h\x00s") * 100_000,
        "deep tuples": b")" + b"\x85" * 300_000,
        "deep objects": b"Nq\x000" + (b"cm\nNet\n)\x81}" + text("a") + b"h\x00sbq\x000") * 50_000 + b"h\x00",
        "stripes": b"}" + text("local_500000000_conv_list.0.0.weight") + empty + b"s",
        "networks": b"}" + empty + b"q\x000(" + b"".join(
            text(f"{i}.layer4.1.conv2.weight") + b"h\x00" for i in range(30_000)) + b"u",
        "huge text": b"\x8d" + struct.pack("<Q", 2**62),
        "huge number": b"\x8b" + struct.pack("<I", 2**31 - 1),
        "huge frame": b"\x95" + struct.pack("<Q", 2**63) + b"}",
        "digits": b"I" + b"9" * 1_000_000 + b"\n",
    }  # fmt: skip
    return {k: b"\x80\x02" + v + b"." for k, v in bodies.items()}


READ_EACH = """
import contextlib, io, json, resource, sys, time
import reid.commands.import_weights
from reid.__main__ import main
resource.setrlimit(resource.RLIMIT_AS, (12 << 30,) * 2)
for file in sys.argv[1:]:
    start = time.process_time()
    with contextlib.redirect_stderr(io.StringIO()) as said:
        code = main(["import", file, file + ".out"])
    print(json.dumps([file, code, time.process_time() - start, said.getvalue()]), flush=True)
"""


@pytest.fixture(scope="module")
def refusals(tmp_path_factory) -> dict[str, tuple[int, float, str]]:
    """{hostile file: exit code, seconds, message}, of a process that can be stopped: what they do hears no signals."""
    folder, files = tmp_path_factory.mktemp("hostile"), []
    for name, payload in hostile().items():
        files.append(folder / f"{name}.pth")
        with zipfile.ZipFile(files[-1], "w") as z:
            z.writestr("archive/data.pkl", payload)
            z.writestr("archive/data/0", bytes(8))
    command = [sys.executable, "-c", READ_EACH, *map(str, files)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        out, _ = process.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        process.kill()
        out, _ = process.communicate()
    return {pathlib.Path(file).stem: tuple(rest) for file, *rest in map(json.loads, out.splitlines())}


@pytest.mark.parametrize("name", hostile())
def test_hostile_files_are_refused_at_once(name, refusals):
    assert name in refusals, f"the process stopped after {list(refusals)[-1:]}"
    code, seconds, message = refusals[name]
    assert code == 2 and seconds < 3, (seconds, message)
    assert message.startswith("error: ") and message.count("\n") == 1 and len(message) < 600


def test_hostile_keys_of_the_old_format(tmp_path):
    """The list of storages behind the object is a pickle, too."""
    file = tmp_path / "m.pth"
    file.write_bytes(in_legacy(pickle.dumps({}, 2))[: -len(pickle.dumps([], 2))] + b"\x80\x02](Nae.")
    with pytest.raises(InputError, match="key that is no text"):
        read_foreign(file)


def test_members_that_overlap(tmp_path):
    with zipfile.ZipFile(tmp_path / "m.pth", "w") as z:
        for name in ("data.pkl", "data/0", "data/1"):
            z.writestr(f"archive/{name}", bytes(1000))
        for info in z.filelist:
            info.file_size = info.compress_size = 2000
    with pytest.raises(InputError, match="ValueError: members that overlap"):
        read_foreign(tmp_path / "m.pth")


def test_message_is_one_line_of_plain_text(tmp_path):
    """Names of the file do not move the cursor, and tensors' names can be printed."""
    file = tmp_path / "m.pth"
    file.write_bytes(in_legacy(b"\x80\x02" + text("\x1b[2J\n") + text("a" * 9999) + b"\x93)R."))
    with pytest.raises(InputError, match=r"call \\x1b\[2J\\n\.aaa") as raised:
        read_foreign(file)
    assert len(str(raised.value)) < 500
    torch.save({"a\nb": torch.ones(1)}, file)
    with pytest.raises(InputError, match="a name that no tensor has"):
        read_foreign(file)
