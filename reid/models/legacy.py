"""Anybody's torch.save files, whole pickled models of torch 0.4.1 days included, read without running them.

Their pickles are worked off by pickles.py. Whole models become tables of their modules, and these a state dict with
names; their number and length is bounded, since modules that share modules multiply.
"""

import math
import mmap
import os
import struct
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reid.errors import InputError, MissingInput
from reid.models.pickles import Cut, Name, Record, Storage, unpickle

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # the two pickles at the start of a file that is no zip
STATES = ("state_dict", "model", "model_state_dict", "state", "net", "network")  # where checkpoints keep the model
MAX_TENSORS, MAX_NAME = 100_000, 500


def read_foreign(path: str | Path) -> tuple[dict[str, Tensor], list[str]]:
    """(tensors by name, what else the state dict held) of a file that torch.save wrote, in any version: a state dict,
    a checkpoint with one inside, or a whole model. `module.` and `_orig_mod.` before names are taken away.

    No code of the file runs and no class of it is imported. Raises MissingInput, InputError.
    """
    path = Path(path)
    if not os.path.isfile(path):  # Path.is_file raises where a folder cannot be looked into
        raise MissingInput(f"weights file {path} is not there (or is a folder)")
    try:
        with opened(path) as (content, fetch):
            entries = state_entries(content)
            cuts = {k: v for k, v in entries.items() if isinstance(v, Cut)}
            if len(cuts) > MAX_TENSORS:
                raise ValueError(f"{len(cuts)} tensors")
            if sum(math.prod(c.size) * c.storage.dtype.itemsize for c in cuts.values()) > 8 * path.stat().st_size:
                raise ValueError("tensors many times larger than the file")
            in_file = sorted(cuts, key=lambda k: cuts[k].storage.key)  # so that each storage is fetched once
            tensors = {k: tensor(cuts[k], fetch) for k in in_file}
            return {k: tensors[k] for k in cuts}, [k for k in entries if k not in cuts]
    except InputError as e:
        raise InputError(f"{path}: {e}") from e
    except Exception as e:  # of damaged input anything may come: struct.error, KeyError, BadZipFile, MemoryError ...
        raise InputError(f"{path} cannot be read as weights ({type(e).__name__}: {str(e)[:200]}): it is cut short, "
                         "damaged, or not a file of torch.save; copy it again") from e  # fmt: skip


@contextmanager
def opened(path: Path) -> Iterator[tuple[Any, Callable[[str], bytearray]]]:
    """(the file's object, a function from storage key to its bytes)."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if data[:4] == b"PK\x03\x04":
            with zipfile.ZipFile(file) as archive:
                roots = [n.removesuffix("data.pkl") for n in archive.namelist() if n.endswith("/data.pkl")]
                if len(roots) != 1 or roots[0].count("/") != 1:
                    raise InputError("a zip archive, but not one of torch.save; unpack it first")

                for info in archive.infolist():
                    if info.compress_type != zipfile.ZIP_STORED:
                        raise InputError(f"{info.filename!r} is compressed, which torch.save never does")
                if sum(info.file_size for info in archive.infolist()) > len(data):
                    raise ValueError("members that overlap")

                def member(name: str) -> bytes:
                    return archive.read(roots[0] + name)

                if roots[0] + "byteorder" in archive.namelist() and member("byteorder") != b"little":
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
            if not isinstance(key, str):
                raise ValueError("a storage's key that is no text")
            (count,) = struct.unpack("<q", data.read(8))
            start, length = data.tell(), count * sizes[key]
            if count < 0 or start + length > len(data):
                raise ValueError(f"storage {key} ends behind the file")
            blocks[key] = slice(start, start + length)
            data.seek(start + length)
        yield content, lru_cache(1)(lambda key: bytearray(data[blocks[key]]))


def tensor(cut: Cut, fetch: Callable[[str], bytearray]) -> Tensor:
    """A tensor's numbers, after a look at whether they lie inside its storage."""
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
    """{name: Cut or something else} of a state dict, a checkpoint or a whole model, or of a short list with one."""
    entries = find_entries(content)
    if entries is None and isinstance(content, (list, tuple)) and len(content) <= 20:
        found = [e for e in map(find_entries, content) if e is not None]
        if len(found) > 1:
            raise InputError(f"holds {what(content)}, {len(found)} of them models or state dicts; save one alone")
        entries = found[0] if found else None
    if entries is None:
        without = " without any tensors" if isinstance(content, (dict, Record)) else ""
        raise InputError(f"holds {what(content)}{without}, expected a model or a state dict with names")
    named = {bare(str(k)): v for k, v in entries.items() if isinstance(k, (str, int))}
    if odd := [k for k in named if len(k) > MAX_NAME or not k.isprintable()]:
        raise ValueError(f"a name that no tensor has: {odd[0][:50]!a}")
    return named


def find_entries(content: Any) -> dict[Any, Any] | None:
    """What stands beside the tensors of a state dict, a checkpoint or a whole model; None where no tensors are."""
    for _ in range(10):
        states = [content.get(k) for k in STATES] if isinstance(content, dict) else []
        content = next((state for state in states if isinstance(state, (dict, Record))), content)
    entries = module_entries(content) if isinstance(content, Record) else content
    return entries if isinstance(entries, dict) and any(isinstance(v, Cut) for v in entries.values()) else None


def what(content: Any) -> str:
    """A value of the file in words."""
    if isinstance(content, Record):
        return f"an object of {content.kind}"
    if isinstance(content, (list, tuple)):
        parts = [f"a {type(v).__name__}" if isinstance(v, (list, tuple)) else what(v) for v in content[:5]]
        parts += ["..."] * (len(content) > 5)
        return f"a {type(content).__name__} of {len(content)} ({', '.join(parts)})"
    if isinstance(content, (int, float)):
        return "a number"
    words = {Cut: "a tensor", Storage: "numbers", Name: "the name of a class", type(None): "nothing", str: "a text"}
    return words.get(type(content), f"a {type(content).__name__}")


def bare(name: str) -> str:
    """Without what DataParallel and torch.compile put before names."""
    return ".".join(part for part in name.split(".") if part not in ("module", "_orig_mod"))


def module_entries(model: Record) -> dict[str, Any]:
    """The state dict of a whole model: parameters and buffers of all its modules, by torch's names."""
    entries: dict[str, Any] = {}
    todo, seen = [("", model)], 0
    while todo:
        prefix, module = todo.pop()
        tables = [module.state.get(table, {}) for table in ("_parameters", "_buffers", "_modules")]
        seen += 1 + sum(map(len, tables))
        if seen > MAX_TENSORS or len(prefix) > MAX_NAME or any(len(k) > MAX_NAME for table in tables for k in table):
            raise ValueError("modules nested without end")
        *own, children = [[(prefix + k, v) for k, v in table.items() if v is not None] for table in tables]
        for named in own:
            entries.update(named)
        todo.extend((f"{name}.", child) for name, child in reversed(children))
    return entries
