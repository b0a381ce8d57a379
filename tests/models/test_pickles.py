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
from contextlib import suppress
from io import BytesIO

import numpy as np
import pytest
import torch
from conftest import run_import
from torch import nn

from reid.errors import InputError, MissingInput
from reid.models import pickles
from reid.models.pickles import MAGIC, PROTOCOL, Cut, Known, Storage, Stub, Table, read_foreign, unpickle

SYSTEM = {"protocol_version": PROTOCOL, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
EXTENSION = 250  # a code of copyreg's registry


class Calls:
    """Pickles to a call."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def ops(value) -> bytes:
    """Opcodes that make a plain value."""
    stream = BytesIO()
    pickler = pickle.Pickler(stream, 2)
    pickler.fast = True  # without memo
    pickler.dump(value)
    return stream.getvalue()[2:-1]


def named(name: str) -> bytes:
    """Opcodes that make a class or function."""
    return "c{}\n{}\n".format(*name.rsplit(".", 1)).encode()


def reference(kind: bytes = named("torch.FloatStorage"), key="0", count=2, tag="storage") -> bytes:
    """Opcodes that make a storage."""
    return b"(" + ops(tag) + kind + ops(key) + ops("cpu") + ops(count) + b"tQ"


def one_tensor(offset=0, size=(2,), stride=(1,), storage: bytes = reference()) -> bytes:
    """Opcodes that make a tensor."""
    return named("torch._utils._rebuild_tensor") + b"(" + storage + ops(offset) + ops(size) + ops(stride) + b"tR"


def state_of(tensor: bytes) -> bytes:
    """A pickle with a state dict of one tensor, w."""
    return b"\x80\x02}" + ops("w") + tensor + b"s."


def refused(path, content: bytes, match: str | None = None) -> str:
    """The message, one line that names the file."""
    path.write_bytes(content)
    with pytest.raises(InputError, match=match) as raised:
        read_foreign(path)
    message = str(raised.value)
    assert path.name in message and "\n" not in message and len(message) < 600
    return message


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
    nested, system, partial = Calls(os.mkdir, str(marker)), named("os.system"), named("functools.partial")
    argument, module = ops(command), named("builtins.__import__") + ops("os") + b"\x85R"
    saved = BytesIO()
    torch.save(nested, saved)
    bodies = {
        "INST": b"(" + argument + b"ios\nsystem\n",
        "OBJ": b"(" + system + argument + b"o",
        "dotted name": b"\x80\x04" + ops("subprocess") + ops("os.system") + b"\x93" + argument + b"\x85R",
        "NEWOBJ": partial + system + argument + b"\x86\x81)R",
        "NEWOBJ_EX": partial + system + argument + b"\x86}\x92)R",
        # an attribute __setstate__ that one BUILD sets is called by the next
        "BUILD": named("types.SimpleNamespace") + b")\x81}" + ops("__setstate__") + system + b"sb" + argument + b"b",
        "EXT1": b"\x82" + bytes([EXTENSION]) + argument + b"\x85R",
        "getattr": named("builtins.getattr") + module + ops("system") + b"\x86R" + argument + b"\x85R",
        "attrgetter": named("operator.attrgetter") + ops("system") + b"\x85R" + module + b"\x85R" + argument + b"\x85R",
        "map": named("builtins.list") + named("builtins.map") + system + argument + b"\x85\x86R\x85R",
        "tensor subclass": named("torch._tensor._rebuild_from_type_v2") + b"(" + system + b"N" + argument + b"\x85}tR",
    }
    calls = {
        "os.system": Calls(os.system, command),
        "builtins.eval": Calls(builtins.eval, code),
        "builtins.exec": Calls(builtins.exec, code),
        "subprocess.call": Calls(subprocess.call, [sys.executable, "-S", "-c", code]),
        "pickle.loads": Calls(pickle.loads, pickle.dumps(nested)),
        "torch.storage._load_from_bytes": Calls(torch.storage._load_from_bytes, saved.getvalue()),
        "in an allowed call": OrderedDict(weight=nested),
    }
    return {k: b"\x80\x02" + v + b"." for k, v in bodies.items()} | {k: pickle.dumps(v) for k, v in calls.items()}


@pytest.fixture()
def extension():
    """os.system in copyreg's registry and in its cache, which pickle asks before find_class."""
    copyreg.add_extension("os", "system", EXTENSION)
    yield
    copyreg.remove_extension("os", "system", EXTENSION)


@pytest.mark.parametrize("gadget", gadgets("m"))
def test_malicious_pickles_do_not_run(gadget, tmp_path, extension):
    marker, payload = tmp_path / "marker", gadgets(tmp_path / "marker")[gadget]
    with suppress(AttributeError):  # of the result of "tensor subclass"
        pickle.loads(payload)
    assert marker.is_dir(), "the payload is not live"
    marker.rmdir()
    for content in (payload, in_legacy(payload), in_zip(payload)):
        message = refused(tmp_path / "m.pth", content)
        assert not marker.exists()
    if gadget.startswith(("builtins", "subprocess", "torch")):
        assert f"calls {gadget}, which weights do not need" in message


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
    for name in ("_rebuild_tensor_v2.__globals__.get", "_rebuild_tensor_v2.__init__", "_rebuild_sparse_tensor"):
        payload = b"\x80\x04" + ops("torch._utils") + ops(name) + b"\x93)R."
        refused(tmp_path / "m.pth", in_zip(payload), f"calls torch._utils.{name}, ")


TARGETS = {
    "class": named("m.Net"),
    "object": named("m.Net") + b")\x81",
    "allowed class": named("collections.OrderedDict"),
    "table": named("collections.OrderedDict") + b")R",
    "storage": reference(),
    "tensor": one_tensor(),
    **{type(v).__name__: ops(v) for v in ([], {}, (), "", 1, None)},
}
SET_BY_BUILD = "__class__ __setstate__ __init__ __new__ __dict__ __defaults__ __code__ kind start"


@pytest.mark.parametrize("target", TARGETS)
def test_attributes_in_the_file_change_nothing(target):
    """BUILD with attributes for __dict__ and for __slots__; pickle sets the latter with setattr."""

    def classes():
        return [dict(vars(c)) for c in (Stub, Known, Table, Storage, Cut)]

    before = classes()
    attributes = b"}(" + b"".join(ops(name) + named("os.system") for name in SET_BY_BUILD.split()) + b"u"
    for state in (attributes, attributes + attributes + b"\x86", b"N" + attributes + b"\x86", ops(1), ops(())):
        with suppress(TypeError, AttributeError, pickle.UnpicklingError):
            made, _ = unpickle(BytesIO(b"\x80\x02" + TARGETS[target] + state + b"b."))
            assert isinstance(made, (Stub, Known)) and made.__setstate__(None) is None
            assert getattr(made, "start", 0) == 0 and getattr(made, "kind", "m.Net") == "m.Net"
    assert classes() == before


def test_stubs_only_record():
    """Items, arguments and keys of any kind; nothing is called or looked up by name."""
    net, evil = named("m.Net") + b")\x81", named("os.system")
    body = b"](" + net + b"(" + evil + evil + b"e" + net + evil + evil + b"s" + net + evil + b"a"
    body += named("m.Net") + evil + b"\x85}" + ops("a") + evil + b"s\x92"  # NEWOBJ_EX
    body += b"}(" + net + b"N" + evil + b"N" + net + b"\x85NNNu\x8f(" + net + evil + b"\x90e."
    (*stubs, table, items), _ = unpickle(BytesIO(b"\x80\x04" + body))
    assert [v.kind for v in stubs] == ["m.Net"] * 4 and [v.state for v in stubs] == [None] * 4
    assert len(table) == 4 and len(items) == 2 and not hasattr(stubs[0], "a")


PERSISTENT = {
    **{repr(v): ops(v) + b"Q" for v in ("storage", 5, (), ["storage", 1, 2, 3, 4], ("storage",))},
    "a string as class": reference(kind=ops("FloatStorage")),
    "an object as class": reference(kind=named("torch.FloatStorage") + b")\x81"),
    "an unknown class": reference(kind=named("torch.load")),
    "another tag": reference(tag="file"),
    "no key": reference(key=None),
    "a tuple as key": reference(key=("0",)),
    "a number as view": reference()[:-2] + ops(1) + b"tQ",
}


@pytest.mark.parametrize("pid", PERSISTENT)
def test_odd_persistent_ids(pid, tmp_path):
    payload = in_zip(state_of(PERSISTENT[pid]))
    refused(tmp_path / "m.pth", payload, r"m.pth cannot be read as weights \((Value|Type|Index)Error")


def test_claimed_sizes_of_storages(tmp_path):
    """The size in the pickle is ignored; the one before the storage must fit into the file."""
    file, payload = tmp_path / "m.pth", state_of(one_tensor(storage=reference(count=2**48)))
    start = in_legacy(payload).removesuffix(pickle.dumps([], 2)) + pickle.dumps(["0"], 2)
    for content in (in_zip(payload), start + struct.pack("<qff", 2, 1.5, 2.5)):
        file.write_bytes(content)
        assert read_foreign(file)[0]["w"].tolist() == [1.5, 2.5]
    for count in (3, 2**48, 2**62, -1, -(2**63)):
        refused(file, start + struct.pack("<qff", count, 1.5, 2.5), "a storage that ends after the file")


LIES = [
    ((0, (2, 2), (2, 1)), "ends after its storage"),
    ((1, (2,), (1,)), "ends after its storage"),
    ((0, (2, 2), (2**47, 2**47)), "ends after its storage"),
    ((0, (2**40,), (0,)), "larger than the file"),
    ((-1, (2,), (1,)), "impossible shape"),
    ((1, (2,), (-1,)), "impossible shape"),
    ((0, (2,), (2**48,)), "impossible shape"),
    ((0, (2, 1), (1,)), "impossible shape"),
    ((0, ("a", 2**40), (1, 1)), "impossible shape"),
    ((0, (2**2000,) * 4000, (1,) * 4000), "impossible shape"),
    ((0, [2], (1,)), "without a storage"),
    ((0, (2,), (1,), one_tensor()), "without a storage"),
]


@pytest.mark.parametrize(("lie", "match"), LIES, ids=range(len(LIES)))
def test_tensors_stay_inside_their_storage(lie, match, tmp_path):
    refused(tmp_path / "m.pth", in_zip(state_of(one_tensor(*lie))), match)


def hostile() -> dict[str, tuple[str, bytes]]:
    """{name: (part of the message, opcodes)} of small files that would fill the memory or overflow the stack."""
    net, item, model = named("m.Net") + b")\x81}", ops("a") + b"h\x00s", ops("model")
    parameters, modules = ops("_parameters") + b"}", ops("_modules") + b"}"
    many = b"(" + b"".join(ops(str(i)) + b"h\x00" for i in range(10_000)) + b"u"
    twice = (net + modules + item + ops("b") + b"h\x00ssbq\x00") * 60  # each module has the one before twice
    chain = (net + modules + ops("a" * 400) + b"h\x00ssbq\x00") * 60
    long = net + parameters + ops("a" * 200_000) + one_tensor(size=(0,)) + b"ssbq\x00"
    subclass = named("torch._tensor._rebuild_from_type_v2") + b"q\x00" + b"h\x00N" * 3000 + b")" + b"\x87" * 3000 + b"R"
    return {
        "shared modules": ("too many modules", net + parameters + b"sbq\x00" + twice),
        "long names": ("names that are too long", long + net + modules + many + b"sb"),
        "long prefixes": ("names that are too long", net + modules + b"sbq\x00" + chain),
        "many classes": ("10000 classes", b"".join(named(f"{i}.a") + b"0" for i in range(20_000)) + b"N"),
        "many names of a tensor": ("larger than the file", b"}" + ops("a") + one_tensor() + b"q\x00s" + many),
        "checkpoint in itself": (r"found 0 in \(dict\)", b"}q\x00" + model + b"h\x00s"),
        "deep checkpoints": (r"found 0 in \(dict\)", b"}" + (b"q\x00}" + model + b"h\x00s") * 20_000),
        "deep objects": (r"found 0 in \(m.Net\)", b"Nq\x000" + (net + item + b"bq\x000") * 20_000 + b"h\x00"),
        "deep tuple as key": ("opcode TUPLE1", b"})" + b"\x85" * 300_000 + b"Ns"),
        "endless tensor subclass": ("RecursionError", subclass),
        "memo place": ("opcode LONG_BINPUT", b"Nr\xff\xff\xff\xff"),
        "memo place in digits": ("opcode PUT", b"Np99999999999\n"),
        "huge text": ("expected 4611686018427387904 bytes", b"\x8d" + struct.pack("<Q", 2**62)),
        "huge array": ("expected 1099511627776 bytes", b"\x96" + struct.pack("<Q", 2**40)),
        "huge number": ("not enough data", b"\x8b" + struct.pack("<I", 2**31 - 1)),
        "huge frame": ("truncated", b"\x95" + struct.pack("<Q", 2**62) + b"}"),
        "digits": ("1000000 digits", b"I" + b"9" * 1_000_000 + b"\n"),
        "reference of protocol 0": ("opcode PERSID", b"Pstorage\n"),
    }


HOSTILE = hostile()


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused(name, tmp_path):
    match, body = HOSTILE[name]
    refused(tmp_path / "m.pth", in_zip(b"\x80\x02" + body + b"."), match)


@pytest.mark.parametrize(("limit", "value"), [("MAX_BYTES", 10_000), ("MAX_STEPS", 50), ("MAX_TUPLES", 3)])
def test_pickles_are_limited(limit, value, tmp_path, monkeypatch):
    file = tmp_path / "m.pth"
    torch.save({"w": torch.ones(1), "v": torch.ones(1), "note": "a" * 10_000}, file)
    assert list(read_foreign(file)[0]) == ["w", "v"]
    monkeypatch.setattr(pickles, limit, value)
    refused(file, file.read_bytes(), "too large for a weights file")


def test_pairs_are_not_copied_again():
    """A list of n pairs named n times must not become n tables of n items."""
    pairs = ops([["a", 1], ["b", 2]]) + b"q\x000"
    table = named("collections.OrderedDict") + b"h\x00\x85R"
    (one, other), _ = unpickle(BytesIO(pairs + table + table + b"\x86."))
    assert one == {"a": 1, "b": 2} and other == {}


@pytest.mark.parametrize(
    ("keys", "match"),
    [([None], "not a string"), ([("0",)], "not a string"), (3, "TypeError"), (["0"], "KeyError: '0'")],
)
def test_storage_keys_of_the_older_layout(keys, match, tmp_path):
    """The list of storages after the object is a pickle, too."""
    start = in_legacy(pickle.dumps({}, 2)).removesuffix(pickle.dumps([], 2))
    refused(tmp_path / "m.pth", start + pickle.dumps(keys, 2) + struct.pack("<qff", 2, 1.5, 2.5), match)


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
    payload = b"\x80\x02" + ops("\x1b[2J\n") + ops("a" * 9999) + b"\x93)R."
    refused(file, in_legacy(payload), r"calls \\x1b\[2J\\n\.aaa")
    torch.save({"a\nb": torch.ones(1)}, file)
    refused(file, file.read_bytes(), "an invalid tensor name")


def test_damaged_files(tmp_path):
    """Truncated, nested, foreign, empty and lying files: an InputError that names the file."""
    good, bad = tmp_path / "good.pth", tmp_path / "bad.pth"
    for zipped in (True, False):
        torch.save({"w": torch.randn(50, 50), "b": torch.ones(7)}, good, _use_new_zipfile_serialization=zipped)
        whole = good.read_bytes()
        for share in (0.01, 0.2, 0.5, 0.9, 0.999):
            refused(bad, whole[: int(len(whole) * share)])
    nested = BytesIO()
    with zipfile.ZipFile(nested, "w") as z:
        z.write(good, "inner/good.pth")
    refused(bad, nested.getvalue(), "unpack it")
    with zipfile.ZipFile(nested, "w", zipfile.ZIP_DEFLATED) as z:
        z.writestr("archive/data.pkl", bytes(10_000_000))
    refused(bad, nested.getvalue(), "compressed")
    refused(bad, b"")
    refused(bad, b"<html>not found</html>")
    refused(bad, in_legacy(pickle.dumps([1, 2], 2)), "expected one model")
    with pytest.raises(MissingInput):
        read_foreign(tmp_path / "none.pth")


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
    tensor = one_tensor()
    pairs = b"](](" + ops("p") + path + b"e](U\x01\xe9Ne](" + ops("s") + scalar + b"e](" + ops("w") + tensor + b"ee"
    content = b"\x80\x02ccollections\nOrderedDict\n" + pairs + b"\x85R."
    pickles = [*(pickle.dumps(x, 2) for x in (MAGIC, PROTOCOL, SYSTEM)), content, pickle.dumps(["0"], 2)]
    (tmp_path / "m.pth").write_bytes(b"".join(pickles) + struct.pack("<qff", 2, 1.5, 2.5))
    state, other = read_foreign(tmp_path / "m.pth")
    assert state["w"].tolist() == [1.5, 2.5] and other == ["p", "é", "s"]
