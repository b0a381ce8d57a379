"""Anybody's torch.save files, whole pickled models of torch 0.4.1 days included, read without running them.

A pickle is a program. Here its opcodes are worked off by plain code that knows lists, dicts, tensors and, for every
class, an inert Record: nothing is imported, no attribute of anything is looked up, and a call of anything but CALLS is
refused. Whole models become tables of their modules, and these a state dict with names.
"""

import math
import mmap
import pickletools
import struct
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from reid.errors import InputError, MissingInput

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # the two pickles at the start of a file that is no zip
DTYPES = {
    "FloatStorage": torch.float32, "DoubleStorage": torch.float64, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
}  # fmt: skip
STATES = ("state_dict", "model", "model_state_dict", "state", "net", "network")  # where checkpoints keep the model
MAX_TENSORS = 100_000


class Name(NamedTuple):
    """A class or function that a file names; never looked up."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(eq=False)
class Record:
    """An object of a class that is not known here: what the file says of it."""

    kind: Name
    state: dict = field(default_factory=dict)


class Storage(NamedTuple):
    """A block of numbers, by its key in the file; `start` is where a view on it begins."""

    key: str
    dtype: torch.dtype
    start: int


class Cut(NamedTuple):
    """A tensor: which numbers of a storage it is."""

    storage: Storage
    offset: int
    size: tuple
    stride: tuple


def rebuild_tensor(storage, offset, size, stride, *_) -> Cut:
    return Cut(storage, offset, size, stride)


def unchanged(value, *_) -> Any:
    return value


def nothing(*_) -> None:
    return None


# what a file may call, and what is done instead
CALLS: dict[tuple[str, str], Callable] = {
    ("torch._utils", "_rebuild_tensor"): rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): unchanged,
    ("torch.nn.parameter", "Parameter"): unchanged,  # torch 0.4
    ("collections", "OrderedDict"): dict,
    ("torch", "Size"): tuple,
    ("torch", "device"): nothing,
    ("torch.serialization", "_get_layout"): nothing,
    **{(module, "set"): list for module in ("builtins", "__builtin__")},
}


def call(function: Any, arguments: Any) -> Any:
    if not isinstance(function, Name) or function not in CALLS:
        raise InputError(f"it wants to call {function if isinstance(function, Name) else 'something unnamed'}, which "
                         "no weights need; nothing of it was run. Do not use this file")  # fmt: skip
    return CALLS[function](*arguments)


def made(kind: Any, arguments: tuple = ()) -> Any:
    """An object of a class without its __init__, as `kind.__new__` would make it."""
    if not isinstance(kind, Name):
        raise ValueError("an object of what is no class")
    return call(kind, arguments) if kind in CALLS else Record(kind)


def persistent(token: Any, sizes: dict[str, int]) -> Any:
    """torch's own kind of reference: a storage, or a class with its source text, which is dropped."""
    if token[0] == "module":
        return token[1]
    _, kind, key, _, _, *view = token
    if token[0] != "storage" or kind.name not in DTYPES:
        raise ValueError(f"storage of type {kind}")
    storage = Storage(str(key), DTYPES[kind.name], view[0][1] if view and view[0] else 0)
    sizes[storage.key] = storage.dtype.itemsize
    return storage


def build(target: Any, state: Any) -> None:
    """An object's attributes; those of dicts (state dicts carry _metadata) are dropped."""
    if isinstance(target, Record):
        for part in state if isinstance(state, tuple) else (state,):
            if isinstance(part, dict):
                target.state.update(part)
    elif not isinstance(target, dict):
        raise InputError(f"it wants to set up a {type(target).__name__}, which no weights need; nothing of it was run")


def unpickle(file: Any, sizes: dict[str, int] | None = None) -> Any:
    """The object of one pickle at the file's place, which moves behind it; `sizes` gets the bytes of a number for
    each storage key. Raises InputError for a call that is not allowed; ValueError, IndexError, KeyError, TypeError and
    others for what is no sound pickle."""
    sizes = {} if sizes is None else sizes
    stack: list = []
    marks: list[int] = []
    memo: dict[int, Any] = {}

    def popped() -> list:
        """What stands above the last mark."""
        start = marks.pop()
        items = stack[start:]
        del stack[start:]
        return items

    constants = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
    containers = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_SET": list}
    for opcode, value, _ in pickletools.genops(file):
        name = opcode.name
        if name in constants:
            stack.append(constants[name])
        elif name in containers:
            stack.append(containers[name]())
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            memo[value] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[value])
        elif name == "MARK":
            marks.append(len(stack))
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            n = int(name[-1])
            stack[-n:] = [tuple(stack[-n:])]
        elif name == "TUPLE":
            stack.append(tuple(popped()))
        elif name == "LIST":
            stack.append(popped())
        elif name == "DICT":
            items = popped()
            stack.append(dict(zip(items[::2], items[1::2])))
        elif name == "FROZENSET":
            stack.append(popped())
        elif name == "BUILD":
            state = stack.pop()
            build(stack[-1], state)
        elif name == "APPEND":
            item = stack.pop()
            extend(stack[-1], [item])
        elif name == "SETITEM":
            key, item = stack.pop(-2), stack.pop()
            update(stack[-1], [key, item])
        elif name in ("APPENDS", "ADDITEMS", "SETITEMS"):
            items = popped()
            (update if name == "SETITEMS" else extend)(stack[-1], items)
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            parts = value.split(" ", 1) if name == "GLOBAL" else [stack.pop(), stack.pop()][::-1]
            stack.append(Name(*map(str, parts)))
        elif name == "REDUCE":
            arguments = stack.pop()
            stack.append(call(stack.pop(), arguments))
        elif name in ("NEWOBJ", "NEWOBJ_EX"):
            keywords = stack.pop() if name == "NEWOBJ_EX" else {}
            arguments = stack.pop()
            stack.append(made(stack.pop(), () if keywords else arguments))
        elif name in ("INST", "OBJ"):  # calls the class, or makes an old-style object when there are no arguments
            items = popped()
            kind = Name(*value.split(" ", 1)) if name == "INST" else items.pop(0)
            stack.append(call(kind, items) if items else made(kind))
        elif name == "BINPERSID":
            stack.append(persistent(stack.pop(), sizes))
        elif name == "POP":
            stack.pop()
        elif name == "POP_MARK":
            popped()
        elif name == "DUP":
            stack.append(stack[-1])
        elif name == "STOP":
            return stack.pop()
        elif opcode.arg is not None and opcode.stack_after and not opcode.stack_before:
            if name in ("EXT1", "EXT2", "EXT4", "PERSID"):
                raise ValueError(f"opcode {name}")
            stack.append(value)  # a number or a text
        elif name not in ("PROTO", "FRAME"):
            raise ValueError(f"opcode {name}")
    raise ValueError("no end")


def extend(target: Any, items: list) -> None:
    if not isinstance(target, list):
        raise ValueError("items of what is no list")
    target.extend(items)


def update(target: Any, items: list) -> None:
    if not isinstance(target, dict):
        raise ValueError("items of what is no dict")
    target.update(zip(items[::2], items[1::2]))


def read_foreign(path: str | Path) -> tuple[dict[str, Tensor], list[str]]:
    """(tensors by name, what else the state dict held) of a file that torch.save wrote, in any version: a state dict,
    a checkpoint with one inside, or a whole model. `module.` and `_orig_mod.` before names are taken away.

    No code of the file runs and no class of it is imported. Raises MissingInput, InputError.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingInput(f"weights file {path} is not there (or is a folder)")
    try:
        with opened(path) as (content, fetch):
            entries = state_entries(content)
            cuts = {k: v for k, v in entries.items() if isinstance(v, Cut)}
            if sum(math.prod(c.size) * c.storage.dtype.itemsize for c in cuts.values()) > 8 * path.stat().st_size:
                raise ValueError("tensors many times larger than the file")
            return {k: tensor(c, fetch) for k, c in cuts.items()}, [k for k in entries if k not in cuts]
    except InputError as e:
        raise InputError(f"{path}: {e}") from e
    except Exception as e:  # of damaged input anything may come: struct.error, KeyError, BadZipFile, MemoryError ...
        raise InputError(f"{path} cannot be read as weights ({type(e).__name__}: {e}): it is cut short, damaged, or "
                         "not a file of torch.save; copy it again") from e  # fmt: skip


@contextmanager
def opened(path: Path) -> Iterator[tuple[Any, Callable[[str], bytearray]]]:
    """(the file's object, a function from storage key to its bytes)."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if data[:4] == b"PK\x03\x04":
            with zipfile.ZipFile(file) as archive:
                roots = [n.removesuffix("data.pkl") for n in archive.namelist() if n.endswith("/data.pkl")]
                if len(roots) != 1 or roots[0].count("/") != 1:
                    raise InputError("a zip archive, but not one of torch.save; unpack it first")

                def member(name: str) -> bytes:
                    info = archive.getinfo(roots[0] + name)
                    if info.compress_type != zipfile.ZIP_STORED or info.file_size > len(data):
                        raise InputError(f"{info.filename} is compressed, which torch.save never does")
                    return archive.read(info)

                names = archive.namelist()
                if roots[0] + "byteorder" in names and member("byteorder") != b"little":
                    raise InputError("its numbers are big-endian; save it again on a usual machine")
                content = unpickle(BytesIO(member("data.pkl")))
                yield content, lru_cache(1)(lambda key: bytearray(member(f"data/{key}")))
            return
        if unpickle(data) != MAGIC or unpickle(data) != PROTOCOL or not unpickle(data)["little_endian"]:
            raise ValueError("not torch's magic number, version and byte order at the start")
        sizes: dict[str, int] = {}
        blocks: dict[str, slice] = {}
        content = unpickle(data, sizes)
        for key in unpickle(data):
            (count,) = struct.unpack("<q", data.read(8))
            start, length = data.tell(), count * sizes[str(key)]
            if count < 0 or start + length > len(data):
                raise ValueError(f"storage {key} ends behind the file")
            blocks[str(key)] = slice(start, start + length)
            data.seek(start + length)
        yield content, lru_cache(1)(lambda key: bytearray(data[blocks[key]]))


def tensor(cut: Cut, fetch: Callable[[str], bytearray]) -> Tensor:
    """A tensor's numbers, after a look at whether they lie inside its storage."""
    numbers = (cut.offset, cut.storage.start, *cut.size, *cut.stride)
    if len(cut.size) != len(cut.stride) or not all(type(n) is int and n >= 0 for n in numbers):
        raise ValueError("a tensor of impossible shape")
    count, start = math.prod(cut.size), cut.storage.start + cut.offset
    if not count:
        return torch.empty(cut.size, dtype=cut.storage.dtype)
    data = fetch(cut.storage.key)
    last = start + sum((n - 1) * s for n, s in zip(cut.size, cut.stride))
    if max(last + 1, count) * cut.storage.dtype.itemsize > len(data):
        raise ValueError("a tensor reaches behind its storage")
    flat = torch.frombuffer(data, dtype=cut.storage.dtype)
    return flat.as_strided(cut.size, cut.stride, start).clone(memory_format=torch.contiguous_format)


def state_entries(content: Any) -> dict[str, Any]:
    """{name: Cut or something else} of a state dict, a checkpoint or a whole model."""
    if isinstance(content, Record):
        entries = module_entries(content)
    elif isinstance(content, dict):
        inner = next((content[k] for k in STATES if isinstance(content.get(k), (dict, Record))), None)
        if inner is not None:
            return state_entries(inner)
        entries = content
    else:
        raise InputError(f"holds a {type(content).__name__}, expected a model or a state dict with names")
    if not any(isinstance(v, Cut) for v in entries.values()):
        what = f"an object of {content.kind}" if isinstance(content, Record) else "a dict"
        raise InputError(f"holds {what} without any tensors, expected a model or a state dict")
    return {bare(str(k)): v for k, v in entries.items()}


def bare(name: str) -> str:
    """Without what DataParallel and torch.compile put before names."""
    return ".".join(part for part in name.split(".") if part not in ("module", "_orig_mod"))


def module_entries(model: Record) -> dict[str, Any]:
    """The state dict of a whole model: parameters and buffers of all its modules, by torch's names."""
    entries: dict[str, Any] = {}
    todo = [("", model, 0)]
    while todo:
        prefix, module, depth = todo.pop()
        if depth > 100 or len(entries) > MAX_TENSORS or len(todo) > MAX_TENSORS:
            raise ValueError("modules nested without end")
        for table in ("_parameters", "_buffers"):
            own = module.state.get(table, {})
            entries.update({f"{prefix}{k}": v for k, v in own.items() if v is not None})
        children = [(f"{prefix}{k}.", m, depth + 1) for k, m in module.state.get("_modules", {}).items() if m]
        todo.extend(reversed(children))
    return entries
