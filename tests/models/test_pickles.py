"""Files of torch.save from anybody: ordinary ones are read exactly, and no code of a malicious one runs."""

import argparse
import builtins
import collections
import copyreg
import datetime
import functools
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
from conftest import run_import
from torch import nn

from reid.errors import InputError, MissingInput
from reid.models import pickles
from reid.models.pickles import MAGIC, PROTOCOL, Cut, Stub, Table, read_foreign, unpickle

SYSTEM = {"protocol_version": PROTOCOL, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
EXTENSION = 250  # a code of copyreg's registry


class Calls:
    """Pickles to a call."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def reference(kind: bytes = b"ctorch\nFloatStorage\n", key: bytes = text("0"), count: bytes = b"K\x02") -> bytes:
    """Opcodes that make a storage."""
    return b"(" + text("storage") + kind + key + text("cpu") + count + b"tQ"


def one_tensor(size: bytes, stride: bytes = b"K\x01\x85") -> bytes:
    """Opcodes that make a tensor."""
    return b"ctorch._utils\n_rebuild_tensor\n(" + reference() + b"K\x00" + size + stride + b"tR"


def in_legacy(payload: bytes) -> bytes:
    return b"".join(pickle.dumps(x, 2) for x in (MAGIC, PROTOCOL, SYSTEM)) + payload + pickle.dumps([], 2)


def in_zip(payload: bytes) -> bytes:
    stream = BytesIO()
    with zipfile.ZipFile(stream, "w") as z:
        z.writestr("archive/data.pkl", payload)
        z.writestr("archive/data/0", struct.pack("<ff", 1.5, 2.5))
        z.writestr("archive/version", "3\n")
    return stream.getvalue()


def gadgets(marker) -> dict[str, bytes]:
    """Pickles that make the folder `marker` when pickle.loads loads them."""
    command, code = f"mkdir {marker}", f"__import__('os').mkdir({str(marker)!r})"
    system, line = b"cos\nsystem\n", b"S" + repr(command).encode() + b"\n"
    nested = pickle.dumps(Calls(os.mkdir, str(marker)), 2)
    saved = BytesIO()
    torch.save(Calls(os.mkdir, str(marker)), saved)
    return {
        "os.system": pickle.dumps(Calls(os.system, command), 2),
        "builtins.eval": pickle.dumps(Calls(builtins.eval, code), 2),
        "builtins.exec": pickle.dumps(Calls(builtins.exec, code), 4),
        "subprocess.call": pickle.dumps(Calls(subprocess.call, [sys.executable, "-S", "-c", code]), 4),
        "INST": b"(" + line + b"ios\nsystem\n.",
        "OBJ": b"(" + system + line + b"o.",
        "dotted name": b"\x80\x04" + text("subprocess") + text("os.system") + b"\x93" + text(command) + b"\x85R.",
        "NEWOBJ": b"\x80\x02cfunctools\npartial\n" + system + text(command) + b"\x86\x81)R.",
        "NEWOBJ_EX": b"\x80\x04cfunctools\npartial\n" + system + text(command) + b"\x86}\x92)R.",
        # an attribute __setstate__ that one BUILD sets is called by the next
        "BUILD": b"\x80\x02ctypes\nSimpleNamespace\n)\x81}" + text("__setstate__") + system + b"sb"
        + text(command) + b"b.",
        "EXT1": b"\x80\x02\x82" + bytes([EXTENSION]) + text(command) + b"\x85R.",
        "getattr": b"cbuiltins\ngetattr\n(cbuiltins\n__import__\n(S'os'\ntRS'system'\ntR(" + line + b"tR.",
        "attrgetter": b"coperator\nattrgetter\n(S'system'\ntR(cbuiltins\n__import__\n(S'os'\ntRtR(" + line + b"tR.",
        "map": b"cbuiltins\nlist\n(cbuiltins\nmap\n(" + system + b"(" + line + b"ltRtR.",
        "torch.storage._load_from_bytes": pickle.dumps(Calls(torch.storage._load_from_bytes, saved.getvalue()), 4),
        "pickle.loads": pickle.dumps(Calls(pickle.loads, nested), 4),
        "a function of a tensor subclass": b"\x80\x02ctorch._tensor\n_rebuild_from_type_v2\n(" + system
        + b"ctorch\nTensor\n" + text(command) + b"\x85}tR.",
        "in an allowed call": pickle.dumps(OrderedDict([("weight", Calls(os.system, command))]), 2),
    }  # fmt: skip


@pytest.fixture()
def extension():
    """os.system in copyreg's registry and in its cache, which pickle asks before find_class."""
    copyreg.add_extension("os", "system", EXTENSION)
    yield
    copyreg.remove_extension("os", "system", EXTENSION)


@pytest.mark.parametrize("gadget", gadgets("m"))
def test_malicious_pickles_do_not_run(gadget, tmp_path, extension, recwarn):
    marker, file = tmp_path / "marker", tmp_path / "model.pth"
    payload = gadgets(marker)[gadget]
    try:
        pickle.loads(payload)
    except Exception as e:  # a tensor subclass complains of the function's result
        print(e)
    assert marker.is_dir(), "the payload is not live"
    marker.rmdir()
    for content in (payload, in_legacy(payload), in_zip(payload)):
        file.write_bytes(content)
        with pytest.raises(InputError) as refused:
            read_foreign(file)
        assert not marker.exists()
    if gadget.partition(".")[0] in ("builtins", "subprocess", "torch"):
        assert f"calls {gadget}" in str(refused.value).replace("__builtin__", "builtins")


@pytest.mark.parametrize("zipped", [True, False])
def test_malicious_entry_among_tensors(zipped, tmp_path, script):
    file, marker = tmp_path / "model.pth", tmp_path / "marker"
    content = {"conv1.weight": torch.zeros(3), "note": Calls(os.mkdir, str(marker))}
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    torch.load(file, weights_only=False)  # live
    marker.rmdir()
    done = run_import(script, file, tmp_path)
    assert done.returncode == 2 and f"calls {os.mkdir.__module__}.mkdir" in done.stderr
    assert "Traceback" not in done.stderr and not marker.exists() and not (tmp_path / "out.pth").exists()


def test_attributes_of_allowed_names_are_not_allowed(tmp_path):
    """Neither as calls nor as the type of a storage."""
    file = tmp_path / "m.pth"
    for name in ("_rebuild_tensor_v2.__globals__.get", "_rebuild_tensor_v2.__init__", "_rebuild_sparse_tensor"):
        file.write_bytes(in_legacy(b"\x80\x04" + text("torch._utils") + text(name) + b"\x93)R."))
        with pytest.raises(InputError, match=f"calls torch._utils.{name}, "):
            read_foreign(file)
    file.write_bytes(in_legacy(reference(kind=b"cos\nsystem\n") + b"."))
    with pytest.raises(InputError, match=r"storage of type os.system"):
        read_foreign(file)


TARGETS = {
    "a class": b"cm\nNet\n",
    "an object": b"cm\nNet\n)\x81",
    "an allowed class": b"ccollections\nOrderedDict\n",
    "an allowed function": b"ctorch._utils\n_rebuild_tensor\n",
    "a table": b"ccollections\nOrderedDict\n)R",
    "a storage": reference(),
    "a tensor": one_tensor(b"K\x02\x85"),
    "a list": b"]",
    "a dict": b"}",
    "a tuple": b")",
    "a string": text("a"),
}


@pytest.mark.parametrize("target", TARGETS)
def test_states_change_no_class(target):
    """BUILD with attributes for __dict__ and for __slots__, which pickle would set with setattr."""
    names = (
        "__class__",
        "__setstate__",
        "__init__",
        "__new__",
        "__dict__",
        "__defaults__",
        "__code__",
        "kind",
        "start",
    )
    attributes = b"}(" + b"".join(text(name) + b"cos\nsystem\n" for name in names) + b"u"
    before = [dict(vars(c)) for c in (Stub, Table, Cut, pickles.Known, pickles.Storage, pickles.rebuild_tensor)]
    for state in (attributes, attributes + attributes + b"\x86", b"N" + attributes + b"\x86", b"K\x01", b")"):
        try:
            made, _ = unpickle(BytesIO(b"\x80\x02" + TARGETS[target] + state + b"b."))
        except (TypeError, AttributeError, pickle.UnpicklingError):
            continue
        assert type(made) in (Table, Cut, pickles.Storage) or type(made).__mro__[1] is Stub
        assert getattr(made, "start", 0) == 0 and getattr(made, "kind", "m.Net") == "m.Net"
        assert made.__setstate__(None) is None
    assert before == [dict(vars(c)) for c in (Stub, Table, Cut, pickles.Known, pickles.Storage, pickles.rebuild_tensor)]
    assert pickles.rebuild_tensor.__defaults__ is None


def test_stubs_only_record():
    """Items, arguments and keys of any kind; nothing is called, compared or looked up by name."""
    net, evil = b"cm\nNet\n)\x81", b"cos\nsystem\n"
    body = b"](" + net + b"(" + evil + evil + b"e" + net + evil + evil + b"s" + net + evil + b"a"
    body += b"cm\nNet\n(" + evil + b"t}" + text("a") + evil + b"s\x92"  # NEWOBJ_EX
    body += b"}(" + net + b"N" + evil + b"N" + net + b"\x85NNNu\x8f(" + net + evil + b"\x90e."
    made, _ = unpickle(BytesIO(b"\x80\x04" + body))
    assert [type(v).__name__ for v in made] == ["Stub"] * 4 + ["dict", "set"]
    assert [v.kind for v in made[:4]] == ["m.Net"] * 4 and [v.state for v in made[:4]] == [None] * 4
    assert len(made[4]) == 4 and len(made[5]) == 2 and not hasattr(made[0], "a")


PERSISTENT = {
    "a string": text("storage"),
    "a number": b"K\x05",
    "an empty tuple": b")",
    "a list": b"](" + text("storage") + b"NNNNe",
    "a short tuple": text("storage") + b"\x85",
    "no class": b"(" + text("storage") + text("FloatStorage") + text("0") + text("cpu") + b"K\x02t",
    "an object": b"(" + text("storage") + b"cm\nFloatStorage\n)\x81" + text("0") + text("cpu") + b"K\x02t",
    "an unknown type": reference(kind=b"ctorch\nload\n")[:-1],
    "another tag": b"(" + text("file") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + b"K\x02t",
    "no key": reference(key=b"N")[:-1],
    "a tuple as key": reference(key=b")")[:-1],
    "a number as view": reference()[:-2] + b"K\x01tQ"[:-1],
}


@pytest.mark.parametrize("pid", PERSISTENT)
def test_odd_persistent_ids(pid, tmp_path):
    file = tmp_path / "m.pth"
    file.write_bytes(in_zip(b"\x80\x02}" + text("w") + PERSISTENT[pid] + b"Qs."))
    with pytest.raises(InputError, match=r"m.pth cannot be read as weights \((Value|Type|Index)Error"):
        read_foreign(file)


def test_claimed_sizes_of_storages(tmp_path):
    """The number in the pickle is not believed; the one before the storage must fit into the file."""
    file, huge = tmp_path / "m.pth", b"\x8a\x07" + (2**48).to_bytes(7, "little")
    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu")
    made = one_tensor(b"K\x02\x85").replace(storage + b"K\x02", storage + huge)
    assert huge in made
    payload = b"\x80\x02}" + text("w") + made + b"s."
    file.write_bytes(in_zip(payload))
    assert read_foreign(file)[0]["w"].tolist() == [1.5, 2.5]
    start = in_legacy(payload)[: -len(pickle.dumps([], 2))] + pickle.dumps(["0"], 2)
    file.write_bytes(start + struct.pack("<qff", 2, 1.5, 2.5))
    assert read_foreign(file)[0]["w"].tolist() == [1.5, 2.5]
    for count in (3, 2**48, 2**62, -1, -(2**63)):
        file.write_bytes(start + struct.pack("<qff", count, 1.5, 2.5))
        with pytest.raises(InputError, match="a storage that ends after the file"):
            read_foreign(file)


def hostile() -> dict[str, tuple[str, bytes]]:
    """{name: (part of the message, payload)} of small files that would fill the memory or overflow the stack."""
    empty, huge = one_tensor(b"K\x00\x85"), b"\x8a\xff" + b"\x7f" * 255
    net, item = b"cm\nNet\n)\x81}", text("a") + b"h\x00s"
    parameters, modules, model = text("_parameters") + b"}", text("_modules") + b"}", text("model")
    many = b"".join(text(str(i)) + b"h\x00" for i in range(10_000))
    names = b"".join(b"c%d\na\n0" % i for i in range(20_000))
    twice = (net + modules + item + text("b") + b"h\x00ssbq\x00") * 60  # each module has the one before twice
    chain = (net + modules + text("a" * 400) + b"h\x00ssbq\x00") * 60
    subclass = b"ctorch._tensor\n_rebuild_from_type_v2\n"
    bodies = {
        "shared modules": ("too many modules", net + parameters + b"sbq\x00" + twice),
        "long names": (
            "too long names",
            net + parameters + text("a" * 200_000) + empty + b"ssbq\x00" + net + modules + b"(" + many + b"usb",
        ),
        "long prefixes": ("too long names", net + modules + b"sbq\x00" + chain),
        "many classes": ("10000 classes", names + b"N"),
        "one tensor with many names": (
            "larger than the file",
            b"}" + text("a") + one_tensor(b"K\x02\x85") + b"q\x00s(" + many + b"u",
        ),
        "long size": ("impossible shape", b"}" + text("a") + one_tensor(b"(" + huge * 8000 + b"t") + b"s"),
        "text as size": (
            "impossible shape",
            b"}" + text("a") + one_tensor(text("ab") + b"J\xff\xff\xff\x7f\x86") + b"s",
        ),
        "fewer strides": ("impossible shape", b"}" + text("a") + one_tensor(b"K\x01K\x01\x86") + b"s"),
        "tensor of a tensor": (
            "without a storage",
            b"}" + text("a") + one_tensor(b"K\x01\x85").replace(reference(), one_tensor(b"K\x01\x85")) + b"s",
        ),
        "checkpoint in itself": (r"found 0 in \(dict\)", b"}q\x00" + model + b"h\x00s"),
        "deep checkpoints": (r"found 0 in \(dict\)", b"}" + (b"q\x00}" + model + b"h\x00s") * 20_000),
        "deep objects": (r"found 0 in \(m.Net\)", b"Nq\x000" + (net + item + b"bq\x000") * 20_000 + b"h\x00"),
        "deep tuple as key": ("opcode TUPLE1", b"})" + b"\x85" * 300_000 + b"Ns"),
        "endless tensor subclass": (
            "RecursionError",
            subclass + b"q\x00" + b"h\x00N" * 3000 + b")" + b"\x87" * 3000 + b"R",
        ),
        "memo place": ("opcode LONG_BINPUT", b"Nr\xff\xff\xff\xff"),
        "memo place in digits": ("opcode PUT", b"Np99999999999\n"),
        "huge text": ("expected 4611686018427387904 bytes", b"\x8d" + struct.pack("<Q", 2**62)),
        "huge array": ("expected 1099511627776 bytes", b"\x96" + struct.pack("<Q", 2**40)),
        "huge number": ("not enough data", b"\x8b" + struct.pack("<I", 2**31 - 1)),
        "huge frame": ("truncated", b"\x95" + struct.pack("<Q", 2**62) + b"}"),
        "digits": ("1000000 digits", b"I" + b"9" * 1_000_000 + b"\n"),
        "reference of protocol 0": ("opcode PERSID", b"Pstorage\n"),
    }
    return {name: (match, b"\x80\x02" + body + b".") for name, (match, body) in bodies.items()}


HOSTILE = hostile()


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused(name, tmp_path):
    match, payload = HOSTILE[name]
    file = tmp_path / "m.pth"
    file.write_bytes(in_zip(payload))
    with pytest.raises(InputError, match=match) as refused:
        read_foreign(file)
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 600


@pytest.mark.parametrize(("limit", "value"), [("MAX_BYTES", 10_000), ("MAX_STEPS", 50), ("MAX_TUPLES", 3)])
def test_pickles_are_limited(limit, value, tmp_path, monkeypatch):
    file = tmp_path / "m.pth"
    torch.save({"w": torch.ones(1), "v": torch.ones(1), "note": "a" * 10_000}, file)
    assert list(read_foreign(file)[0]) == ["w", "v"]
    monkeypatch.setattr(pickles, limit, value)
    with pytest.raises(InputError, match="too much for a file of weights"):
        read_foreign(file)


def test_pairs_are_not_copied_again():
    """A list of n pairs named n times must not become n tables of n items."""
    pairs = b"((" + text("a") + b"Nl(" + text("b") + b"Nllq\x00"
    (one, other), _ = unpickle(BytesIO(pairs + b"0" + b"ccollections\nOrderedDict\nh\x00\x85R" * 2 + b"\x86."))
    assert list(one) == ["a", "b"] and not other


def test_storage_keys_of_the_older_layout(tmp_path):
    """The list of storages after the object is a pickle, too."""
    file, start = tmp_path / "m.pth", in_legacy(pickle.dumps({}, 2))[: -len(pickle.dumps([], 2))]
    for keys, match in [
        ([None], "not a string"),
        ([("0",)], "not a string"),
        (3, "TypeError"),
        (["0"], "KeyError: '0'"),
    ]:
        file.write_bytes(start + pickle.dumps(keys, 2) + struct.pack("<qff", 2, 1.5, 2.5))
        with pytest.raises(InputError, match=match):
            read_foreign(file)


def test_members_that_overlap(tmp_path):
    with zipfile.ZipFile(tmp_path / "m.pth", "w") as z:
        for name in ("data.pkl", "data/0", "data/1"):
            z.writestr(f"archive/{name}", bytes(1000))
        for info in z.filelist:
            info.file_size = info.compress_size = 2000
    with pytest.raises(InputError, match="ValueError: members that overlap"):
        read_foreign(tmp_path / "m.pth")


def test_message_is_one_line_of_printable_text(tmp_path):
    """Names in the file cannot move the cursor, and names of tensors are printable."""
    file = tmp_path / "m.pth"
    file.write_bytes(in_legacy(b"\x80\x02" + text("\x1b[2J\n") + text("a" * 9999) + b"\x93)R."))
    with pytest.raises(InputError, match=r"calls \\x1b\[2J\\n\.aaa") as raised:
        read_foreign(file)
    assert len(str(raised.value)) < 500
    torch.save({"a\nb": torch.ones(1)}, file)
    with pytest.raises(InputError, match="a name that no tensor has"):
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
    refused(b"\x80\x02\x8e\xff\xff\xff\xff\xff\xff\xff\x7f")  # 2^63 bytes
    refused(in_legacy(pickle.dumps([1, 2], 2)), "expected one model")
    with pytest.raises(MissingInput):
        read_foreign(tmp_path / "none.pth")


LIES = [
    (0, (2, 3), (3, 2)),
    (0, (2, 2), (2**47, 2**47)),
    (1, (2, 3), (3, 1)),
    (-1, (2,), (1,)),
    (5, (2,), (-1,)),
    (0, (2**40,), (0,)),
]


@pytest.mark.parametrize("lie", LIES)
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
    with pytest.raises(InputError, match=r"ends after its storage|impossible|larger than the file"):
        read_foreign(file)


class Settings(dict):
    """A subclass of dict, as in configuration libraries."""


class History(list):
    """A subclass of list."""


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
    "subclasses of dict and list": [Settings(lr=0.1), History([1, 2])],
}  # fmt: skip


@pytest.mark.parametrize("what", ORDINARY)
@pytest.mark.parametrize("form", ["zip", "legacy", "protocol 4"])
def test_ordinary_values_beside_weights(what, form, tmp_path):
    """Weights are read from checkpoints that contain the usual other objects."""
    weight = nn.Parameter(torch.arange(3.0))
    weight.decay = False  # a parameter with an attribute is pickled by another call
    tagged = torch.ones(2)
    tagged.note = "a"  # and so is a tensor
    content = {"state_dict": {"w": weight, "t": tagged, "extra": ORDINARY[what]}, "also": ORDINARY[what]}
    file, protocol = tmp_path / "m.pth", 4 if form == "protocol 4" else 2
    torch.save(content, file, pickle_protocol=protocol, _use_new_zipfile_serialization=form != "legacy")
    state, other = read_foreign(file)
    assert torch.equal(state["w"], weight.data) and torch.equal(state["t"], torch.ones(2)) and other == ["extra"]


def test_names_of_other_versions(tmp_path):
    """Python 3.13's paths, numpy before 2, and an OrderedDict and a string as Python 2 wrote them."""
    path = b"cpathlib._local\nPosixPath\n(X\x01\x00\x00\x00atR"
    scalar = b"cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\nX\x02\x00\x00\x00f8K\x00K\x01\x87R0NtR"
    tensor = one_tensor(b"K\x02\x85")
    pairs = b"](](" + text("p") + path + b"e](U\x01\xe9Ne](" + text("s") + scalar + b"e](" + text("w") + tensor + b"ee"
    content = b"\x80\x02ccollections\nOrderedDict\n" + pairs + b"\x85R."
    pickles = [*(pickle.dumps(x, 2) for x in (MAGIC, PROTOCOL, SYSTEM)), content, pickle.dumps(["0"], 2)]
    (tmp_path / "m.pth").write_bytes(b"".join(pickles) + struct.pack("<qff", 2, 1.5, 2.5))
    state, other = read_foreign(tmp_path / "m.pth")
    assert state["w"].tolist() == [1.5, 2.5] and other == ["p", "é", "s"]
