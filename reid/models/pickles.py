"""The pickles inside torch.save files, read without running them.

A pickle is a program. Here its opcodes are worked off by plain code that knows lists, dicts, tensors and, for every
class, an inert Record: nothing is imported, no attribute of anything is looked up, and a call of anything but CALLS and
INERT is refused. The work stays in proportion to the file: nothing that a file made is hashed, compared, printed or
copied as a whole, since a hundred bytes make a tuple of tuples that has 2^40 leaves.
"""

import pickletools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from reid.errors import InputError

DTYPES = {
    "FloatStorage": torch.float32, "DoubleStorage": torch.float64, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
}  # fmt: skip
MAX_STEPS = 5_000_000  # opcodes; a checkpoint with its optimizer has some ten thousand


class Name(NamedTuple):
    """A class or function that a file names; never looked up."""

    module: str
    name: str

    def __str__(self) -> str:
        return ascii(f"{self.module}.{self.name}"[:200])[1:-1]  # for one line of a message, whatever is in it


@dataclass(eq=False, repr=False)
class Record:
    """An object of a class that is not known here: what the file says of it."""

    kind: Name
    state: dict = field(default_factory=dict)


@dataclass(eq=False, repr=False)
class Storage:
    """A block of numbers, by its key in the file; `start` is where a view on it begins."""

    key: str
    dtype: torch.dtype
    start: int


@dataclass(eq=False, repr=False)
class Cut:
    """A tensor: which numbers of a storage it is."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


def rebuild_tensor(storage, offset, size, stride, *_) -> Cut:
    """Raises ValueError for a shape that no tensor has; whether it lies inside its storage is seen later."""
    if not isinstance(storage, Storage) or not isinstance(size, tuple) or not isinstance(stride, tuple):
        raise ValueError("a tensor of no storage or shape")
    if len(size) != len(stride) or len(size) > 64:
        raise ValueError("a tensor of impossible shape")
    if not all(type(n) is int and 0 <= n < 2**48 for n in (storage.start, offset, *size, *stride)):
        raise ValueError("a tensor of impossible shape")
    return Cut(storage, offset, size, stride)


def unchanged(value, *_) -> Any:
    return value


def nothing(*_) -> None:
    return None


def as_dict(content: Any = None, *_) -> dict:
    """Pairs (Python 2 wrote an OrderedDict so) move over: a list that is named again must not be gone through again."""
    if content is None or isinstance(content, dict):
        return {} if content is None else content
    if not isinstance(content, list):
        raise ValueError("a dict of what is no list of pairs")
    result: dict = {}
    for k, v in content:
        result[as_key(k)] = v
    content.clear()
    return result


# what a file may call, and what is done instead
CALLS: dict[tuple[str, str], Callable] = {
    ("torch._utils", "_rebuild_tensor"): rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): unchanged,
    ("torch._utils", "_rebuild_parameter_with_state"): unchanged,  # a parameter with attributes
    ("torch._tensor", "_rebuild_from_type_v2"): lambda function, _, arguments, *__: call(function, arguments),
    ("torch.nn.parameter", "Parameter"): unchanged,  # torch 0.4
    ("torch", "Size"): unchanged,
    ("torch", "device"): nothing,
    ("torch.serialization", "_get_layout"): nothing,
    ("collections", "OrderedDict"): as_dict,
    ("collections", "Counter"): as_dict,
    ("collections", "defaultdict"): lambda *_: {},  # items follow
    ("collections", "deque"): lambda *_: [],
    **{(m, n): lambda v=(), *_: v or [] for m in ("builtins", "__builtin__") for n in ("set", "frozenset")},
}
# what ordinary checkpoints carry beside weights, known to be harmless; read as a Record
INERT = {
    (module, name)
    for modules, names in (
        ("numpy", "dtype ndarray"),
        ("numpy.core.multiarray numpy._core.multiarray", "scalar _reconstruct"),
        ("numpy.core.numeric numpy._core.numeric", "_frombuffer"),
        ("numpy.random._pickle", "__randomstate_ctor __generator_ctor __bit_generator_ctor"),
        ("numpy.random.bit_generator", "__pyx_unpickle_SeedSequence"),
        ("_codecs", "encode"),  # bytes, in protocol 2
        ("builtins __builtin__", "bytes bytearray complex slice range xrange"),
        ("pathlib pathlib._local", "Path PosixPath WindowsPath PurePath PurePosixPath PureWindowsPath"),
        ("functools", "partial"),
        ("datetime", "datetime date time timedelta timezone"),
        ("decimal", "Decimal"),
        ("fractions", "Fraction"),
        ("types", "SimpleNamespace"),
    )
    for module in modules.split()
    for name in names.split()
}


def call(function: Any, arguments: Any) -> Any:
    if isinstance(function, Name) and function in INERT:
        return Record(function)
    if not isinstance(function, Name) or function not in CALLS:
        raise InputError(f"it wants to call {function if isinstance(function, Name) else 'something unnamed'}, which "
                         "no weights need; nothing of it was run. Do not use this file")  # fmt: skip
    if not isinstance(arguments, (tuple, list)) or len(arguments) > 16:
        raise ValueError(f"impossible arguments of {function}")
    return CALLS[function](*arguments)


def made(kind: Any, arguments: tuple = ()) -> Any:
    """An object of a class without its __init__, as `kind.__new__` would make it."""
    if not isinstance(kind, Name):
        raise ValueError("an object of what is no class")
    return call(kind, arguments) if kind in CALLS else Record(kind)


def named(module: Any, name: Any) -> Name:
    if not isinstance(module, str) or not isinstance(name, str):
        raise ValueError("a name that is no text")
    return Name(module, name)


def persistent(token: Any, sizes: dict[str, int]) -> Any:
    """torch's own kind of reference: a storage, or a class with its source text, which is dropped."""
    if not isinstance(token, tuple) or len(token) > 6:
        raise ValueError("a reference that is not torch's")
    if token[0] == "module":
        return token[1]
    tag, kind, key, _, _, *view = token
    if tag != "storage" or not isinstance(kind, Name) or kind.name not in DTYPES:
        raise ValueError(f"storage of type {kind if isinstance(kind, Name) else '?'}")
    if not isinstance(key, str):
        raise ValueError("a storage's key that is no text")
    storage = Storage(key, DTYPES[kind.name], view[0][1] if view and view[0] else 0)
    sizes[storage.key] = storage.dtype.itemsize
    return storage


def build(target: Any, state: Any) -> None:
    """An object's attributes; those of dicts (state dicts carry _metadata) and tensors are dropped. The state is
    kept, not copied: the same may be named for a million objects."""
    if isinstance(target, Record):
        parts = state if isinstance(state, tuple) and len(state) == 2 else (state,)  # two: one of them of __slots__
        target.state = next((part for part in parts if isinstance(part, dict)), target.state)
    elif not isinstance(target, (dict, Cut)):
        raise InputError(f"it wants to set up a {type(target).__name__}, which no weights need; nothing of it was run")


def as_key(value: Any) -> Any:
    """A dict's key: a text, or a number too small for numbers that hash alike. Any other, a tuple for instance, only
    keeps its value in the dict: nobody asks for it, and to hash it may take for ever."""
    return value if isinstance(value, str) or (type(value) is int and abs(value) < 2**60) else object()


def extend(target: Any, items: list) -> None:
    if isinstance(target, list):
        target.extend(items)
    elif not isinstance(target, Record):  # of somebody's own kind of list; dropped
        raise ValueError("items of what is no list")


def update(target: Any, items: list) -> None:
    if isinstance(target, dict):
        target.update(zip(map(as_key, items[::2]), items[1::2]))
    elif not isinstance(target, Record):  # of somebody's own kind of dict, as configurations are; dropped
        raise ValueError("items of what is no dict")


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
    for step, (opcode, value, _) in enumerate(pickletools.genops(file)):
        name = opcode.name
        if step >= MAX_STEPS:
            raise ValueError(f"more than {MAX_STEPS} steps")
        if name in constants:
            stack.append(constants[name])
        elif name in containers:
            stack.append(containers[name]())
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            if not 0 <= value < 2**32:
                raise ValueError("an impossible place of the memo")
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
            stack.append({})
            update(stack[-1], items)
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
            stack.append(named(*parts))
        elif name == "REDUCE":
            arguments = stack.pop()
            stack.append(call(stack.pop(), arguments))
        elif name in ("NEWOBJ", "NEWOBJ_EX"):
            keywords = stack.pop() if name == "NEWOBJ_EX" else {}
            arguments = stack.pop()
            stack.append(made(stack.pop(), () if keywords else arguments))
        elif name in ("INST", "OBJ"):  # calls the class, or makes an old-style object when there are no arguments
            items = popped()
            kind = named(*value.split(" ", 1)) if name == "INST" else items.pop(0)
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
