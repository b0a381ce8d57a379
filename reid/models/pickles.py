"""Reads any file written by torch.save without running code from it.

Both layouts are supported, the zip archive and the older sequence of pickles. The content is a state dict, a
checkpoint with a state dict inside, or a whole pickled model (torch 0.4 included).
"""

import math
import os
import pickle
import pickletools
import re
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reid.errors import InputError, MissingInput

# Why this is safe. A pickle is a program, but it gets classes and functions only from `find_class`, which imports
# nothing: each name becomes a new subclass of Stub, which stays empty or makes a Table, a Cut or a plain value from
# checked arguments. All classes here define `__setstate__`, so pickle sets no attributes itself; it can only call the
# class, `__setstate__`, `extend` and `__setitem__`. The other sources of objects are `persistent_load`, which returns
# a Storage, and the extension registry. Pickles that use the registry or are too large are refused before loading.
# A file may still take a long time to read; Ctrl-C stops it.

DTYPES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
# Calls that ordinary checkpoints contain besides weights. They are allowed and give an empty Stub.
INERT = re.compile(
    r"""numpy\.(dtype|ndarray|_?core\.multiarray\.(scalar|_reconstruct)|_?core\.numeric\._frombuffer)
    | numpy\.random\.(_pickle\.__\w+_ctor|bit_generator\.__pyx_unpickle_SeedSequence)
    | (builtins|__builtin__)\.(set|frozenset|bytes|bytearray|complex|slice|x?range) | _codecs\.encode
    | pathlib(\._local)?\.(Pure)?(Posix|Windows)?Path | datetime\.(date|time|datetime|timedelta|timezone)
    | decimal\.Decimal | fractions\.Fraction | functools\.partial | types\.SimpleNamespace""",
    re.VERBOSE | re.ASCII,
)
STATES = ("state_dict", "model", "model_state_dict", "state", "net", "network")  # where checkpoints keep the model
MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # the first two pickles of the older layout
REFUSED = {"EXT1", "EXT2", "EXT4", "PERSID", "NEXT_BUFFER", "READONLY_BUFFER"}  # opcodes torch.save never writes
MAX_STEPS = 5_000_000  # opcodes; a checkpoint with its optimizer has tens of thousands
MAX_BYTES = 2**28  # of one pickle; tensor data are stored outside it
MAX_TUPLES = 100_000  # 4 per tensor; the hash of a tuple that is nested deeper overflows the stack
MAX_CLASSES, MAX_TENSORS, MAX_NAME = 10_000, 100_000, 500


class Stub:
    """A class or function named in the file. Its instances keep attributes and drop items.

    pickle makes objects without `__init__` (NEWOBJ), so `__init__` means a call (REDUCE, INST, OBJ).
    """

    kind: str
    state: dict[Any, Any] | None = None

    def __init__(self, *_: Any, **__: Any) -> None:
        if not INERT.fullmatch(self.kind):
            raise InputError(f"it calls {self.kind}, which weights do not need. Nothing was run; do not use this file")

    def __setstate__(self, state: Any) -> None:
        parts = state if isinstance(state, tuple) and len(state) == 2 else (state,)  # the second: __slots__
        self.state = next((part for part in parts if isinstance(part, dict)), None)

    def extend(self, items: list[Any]) -> None: ...

    def __setitem__(self, key: Any, value: Any) -> None: ...


class Known:
    """Drops its attributes, for instance `_metadata` of state dicts."""

    def __setstate__(self, state: Any) -> None: ...


class Table(Known, dict):
    """An OrderedDict, Counter or defaultdict."""


@dataclass(eq=False, repr=False)
class Storage(Known):
    """A block of numbers, identified by its key in the file. start: offset of a view."""

    key: str
    dtype: torch.dtype
    start: int


@dataclass(eq=False, repr=False)
class Cut(Known):
    """A tensor: the part of a storage that it uses."""

    storage: Storage
    start: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


def rebuild_tensor(cls: type, storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Cut:
    """Raises ValueError for an impossible shape; `tensor` checks that the shape fits into the storage."""
    if not isinstance(storage, Storage) or type(size) is not tuple or type(stride) is not tuple:
        raise ValueError("a tensor without a storage or a shape")
    numbers = (storage.start, offset, *size, *stride)
    if len(size) != len(stride) or not all(type(n) is int and 0 <= n < 2**48 for n in numbers):
        raise ValueError("a tensor of impossible shape")
    return Cut(storage, storage.start + offset, size, stride)


def rebuild_table(cls: type, content: Any = None, *_: Any) -> dict:
    """Moves pairs (Python 2) out of their list, so that a list with many references is copied only once."""
    if isinstance(content, dict):
        return content
    table = Table(content or ())
    if content is not None:
        content.clear()
    return table


def first(cls: type, value: Any, *_: Any) -> Any:
    return value


CALLS: dict[str, Callable[..., Any]] = {  # the __new__ of their stubs
    "torch._utils._rebuild_tensor": rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": rebuild_tensor,
    "torch._utils._rebuild_parameter": first,
    "torch._utils._rebuild_parameter_with_state": first,
    "torch._tensor._rebuild_from_type_v2": lambda cls, stub, kind, arguments, *_: stub(*arguments),
    "torch.nn.parameter.Parameter": first,  # torch 0.4
    "torch.Size": first,
    "torch.device": lambda *_: None,
    "torch.serialization._get_layout": lambda *_: None,
    "collections.OrderedDict": rebuild_table,
    "collections.Counter": rebuild_table,
    "collections.defaultdict": lambda *_: Table(),  # its items follow
    "collections.deque": lambda *_: [],
}


class Reader(pickle.Unpickler):
    """Reads one pickle; `sizes` is the bytes per number for each storage key."""

    def __init__(self, content: bytes) -> None:
        super().__init__(BytesIO(content), encoding="latin-1")
        self.stubs: dict[str, type[Stub]] = {}
        self.sizes: dict[str, int] = {}

    def find_class(self, module: str, name: str) -> type[Stub]:
        kind = ascii(f"{module}.{name}"[:200])[1:-1]  # printable
        if kind not in self.stubs:
            if len(self.stubs) == MAX_CLASSES:
                raise ValueError(f"more than {MAX_CLASSES} classes")
            made = {"__new__": CALLS[kind]} if kind in CALLS else {}
            self.stubs[kind] = type("Stub", (Stub,), {"kind": kind, **made})
        return self.stubs[kind]

    def persistent_load(self, pid: Any) -> Any:
        """A storage, or a class with its source text, which is dropped."""
        if type(pid) is tuple and pid[0] == "module":
            return pid[1]
        tag, kind, key, _, _, *view = pid
        name = getattr(kind, "kind", "unknown") if isinstance(kind, type) else "unknown"
        dtype = DTYPES.get(name.rpartition(".")[2])
        if tag != "storage" or dtype is None or type(key) is not str:
            raise ValueError(f"not a storage, a storage of type {name}, or one without a key")
        self.sizes[key] = dtype.itemsize
        return Storage(key, dtype, view[0][1] if view and view[0] else 0)


def unpickle(file: Any) -> tuple[Any, dict[str, int]]:
    """Reads the pickle at the file's position: (object, bytes per number for each storage key)."""
    start = file.tell()
    tuples = 0
    for step, (opcode, value, position) in enumerate(pickletools.genops(file)):
        name = opcode.name
        tuples += name.startswith("TUPLE")
        large = step == MAX_STEPS or tuples > MAX_TUPLES or position - start > MAX_BYTES
        if large or name in REFUSED or (name.endswith("PUT") and (value or 0) > MAX_STEPS):  # pickle's memo is a list
            raise ValueError(f"opcode {name} at step {step}, too large for a weights file")
    length = file.tell() - start
    file.seek(start)
    reader = Reader(file.read(length))
    return reader.load(), reader.sizes


def read_foreign(path: str | Path) -> tuple[dict[str, Tensor], list[str]]:
    """(tensors by name, names of everything else in the state dict) of any file written by torch.save.

    `module.` and `_orig_mod.` are removed from the names. No code of the file runs and no class of it is imported.
    Raises MissingInput, InputError.
    """
    path = Path(path)
    if not os.path.isfile(path):  # Path.is_file would raise for a folder without read permission
        raise MissingInput(f"weights file {path} does not exist (or is a folder)")
    try:
        with open(path, "rb") as file:
            zipped = file.read(4) == b"PK\x03\x04"
            file.seek(0)
            content, fetch = (open_zip if zipped else open_sequence)(file, path.stat().st_size)
            entries = state_entries(content)
            cuts = {k: v for k, v in entries.items() if isinstance(v, Cut)}
            sizes = (math.prod(c.size) * c.storage.dtype.itemsize for c in cuts.values())
            if sum(sizes) + 100 * len(cuts) > 8 * path.stat().st_size:
                raise ValueError("tensors many times larger than the file")
            by_storage = sorted(cuts, key=lambda k: cuts[k].storage.key)  # each storage is fetched once
            tensors = {k: tensor(cuts[k], fetch) for k in by_storage}
            return {k: tensors[k] for k in cuts}, [k for k in entries if k not in cuts]
    except InputError as e:
        raise InputError(f"{path}: {e}") from e
    except Exception as e:  # damaged input raises anything: struct.error, KeyError, BadZipFile, MemoryError ...
        raise InputError(
            f"{path} cannot be read as weights ({type(e).__name__}: {str(e)[:200]}): it is cut short, damaged, or not "
            "a file of torch.save; copy it again"
        ) from e


def open_zip(file: Any, total: int) -> tuple[Any, Callable[[str], bytearray]]:
    """(object, function from a storage key to its bytes) of a file that torch >= 1.6 writes."""
    archive = zipfile.ZipFile(file)
    names = archive.namelist()
    roots = [n.removesuffix("data.pkl") for n in names if n.endswith("/data.pkl")]
    if len(roots) != 1 or roots[0].count("/") != 1:
        raise InputError("a zip archive, but not one of torch.save; unpack it first")
    for info in archive.infolist():
        if info.compress_type != zipfile.ZIP_STORED:
            raise InputError(f"{info.filename!r} is compressed, which torch.save never does")
    if sum(info.file_size for info in archive.infolist()) > total:
        raise ValueError("members that overlap")
    if roots[0] + "byteorder" in names and archive.read(roots[0] + "byteorder") != b"little":
        raise InputError("its numbers are big-endian; save it again on a little-endian machine")
    content, _ = unpickle(BytesIO(archive.read(roots[0] + "data.pkl")))
    return content, lru_cache(1)(lambda key: bytearray(archive.read(f"{roots[0]}data/{key}")))


def open_sequence(file: Any, total: int) -> tuple[Any, Callable[[str], bytearray]]:
    """The same for the older layout: magic number, version, system, object and storage keys as pickles, then data."""
    magic, version, system = (unpickle(file)[0] for _ in range(3))
    if magic != MAGIC or version != PROTOCOL or not system["little_endian"]:
        raise ValueError("not torch's magic number, version and byte order at the start")
    content, sizes = unpickle(file)
    blocks: dict[str, tuple[int, int]] = {}
    for key in unpickle(file)[0]:
        if type(key) is not str:
            raise ValueError("a storage key that is not a string")
        length = struct.unpack("<q", file.read(8))[0] * sizes[key]
        blocks[key] = file.tell(), length
        if not 0 <= length <= total - file.tell():
            raise ValueError("a storage that ends after the file")
        file.seek(length, os.SEEK_CUR)

    def fetch(key: str) -> bytearray:
        file.seek(blocks[key][0])
        return bytearray(file.read(blocks[key][1]))

    return content, lru_cache(1)(fetch)


def tensor(cut: Cut, fetch: Callable[[str], bytearray]) -> Tensor:
    """A copy of the tensor's numbers. Raises ValueError if they are not inside the storage."""
    count = math.prod(cut.size)
    if not count:
        return torch.empty(cut.size, dtype=cut.storage.dtype)
    data = fetch(cut.storage.key)
    last = cut.start + sum((n - 1) * s for n, s in zip(cut.size, cut.stride))
    if max(last + 1, count) * cut.storage.dtype.itemsize > len(data):
        raise ValueError("a tensor that ends after its storage")
    flat = torch.frombuffer(data, dtype=cut.storage.dtype)
    return flat.as_strided(cut.size, cut.stride, cut.start).clone(memory_format=torch.contiguous_format)


def state_entries(content: Any) -> dict[str, Any]:
    """{name: Cut or something else} of a state dict, a checkpoint or a model, or of a short list with one of them."""
    parts = content if isinstance(content, (list, tuple)) and len(content) <= 20 else [content]
    found = [entries for entries in map(find_entries, parts) if entries is not None]
    if len(found) != 1:
        kinds = ", ".join(map(describe, parts[:5])) + ", ..." * (len(parts) > 5)
        raise InputError(
            f"expected one model or state dict with tensors, found {len(found)} in ({kinds}); "
            "save model.state_dict() alone"
        )
    named = {bare(str(k)): v for k, v in found[0].items() if isinstance(k, (str, int))}
    if odd := [k for k in named if len(k) > MAX_NAME or not k.isprintable()]:
        raise ValueError(f"an invalid tensor name: {odd[0][:50]!a}")
    return named


def find_entries(content: Any) -> dict[Any, Any] | None:
    """The entries of a state dict, a checkpoint or a model; None if there are no tensors."""
    for _ in range(10):
        states = [content.get(k) for k in STATES] if isinstance(content, dict) else []
        content = next((state for state in states if isinstance(state, (dict, Stub))), content)
    entries = module_entries(content) if isinstance(content, Stub) else content
    return entries if isinstance(entries, dict) and any(isinstance(v, Cut) for v in entries.values()) else None


def describe(value: Any) -> str:
    """A value's type, for messages."""
    if isinstance(value, Stub):
        return value.kind
    return {Cut: "tensor", Table: "dict"}.get(type(value), type(value).__name__)


def bare(name: str) -> str:
    """The name without the prefixes of DataParallel and torch.compile."""
    return ".".join(part for part in name.split(".") if part not in ("module", "_orig_mod"))


def module_entries(model: Stub) -> dict[str, Any]:
    """The state dict of a whole model: parameters and buffers of all its modules, by torch's names.

    Shared modules can multiply the names, so their number and length are limited.
    """
    entries: dict[str, Any] = {}
    todo, seen = [("", model)], 0
    while todo:
        prefix, module = todo.pop()
        tables = [(module.state or {}).get(table, {}) for table in ("_parameters", "_buffers", "_modules")]
        seen += 1 + sum(map(len, tables))
        if seen > MAX_TENSORS or len(prefix) > MAX_NAME or any(len(k) > MAX_NAME for table in tables for k in table):
            raise ValueError("too many modules, or names that are too long")
        *own, children = [[(prefix + k, v) for k, v in table.items() if v is not None] for table in tables]
        for named in own:
            entries.update(named)
        todo.extend((f"{name}.", child) for name, child in reversed(children))
    return entries
