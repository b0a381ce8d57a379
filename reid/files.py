"""Files that are written whole or not at all, locks between processes, digests."""

import fcntl
import hashlib
import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from reid.errors import InputError

logger = logging.getLogger(__name__)


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yields a temporary path in the same folder; what was written there replaces `path` when all went well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with open(temporary, "rb+") as f:
            os.fsync(f.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    if hasattr(os, "O_DIRECTORY"):  # the rename itself must survive a power cut
        folder = os.open(path.parent, os.O_DIRECTORY)
        os.fsync(folder)
        os.close(folder)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Around work that writes `path`: what the system refuses becomes an InputError."""
    try:
        yield
    except OSError as e:
        reason = os.strerror(e.errno) if e.errno else str(e).split("\n")[0]
        raise InputError(f"{path} cannot be written ({reason}); make room there, or give another place") from e


@contextmanager
def locked(path: Path, waits: bool = True) -> Iterator[None]:
    """Alone among processes at what `path` stands for, by a lock file beside it; a killed process lets go of it.

    Where another one is there, waits for it and says so, or raises InputError.
    """
    lock, held = path.with_name(path.name + ".lock"), False
    while not held:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            file = lock.open("w")
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not waits:
                    raise InputError(
                        f"another process is at work on {path}; type the same again when it is done"
                    ) from None
                logger.warning(f"waiting for another process that changes {path}")
                fcntl.flock(file, fcntl.LOCK_EX)
            except OSError as e:  # some network file systems have none
                logger.warning(f"no locks in {path.parent} ({e}); keep other processes away from it")
            with suppress(FileNotFoundError):  # the lock of a process that was done meanwhile
                held = os.path.samestat(os.fstat(file.fileno()), lock.stat())
            if held:
                try:
                    yield
                finally:
                    lock.unlink(missing_ok=True)


def write_json(path: Path, content: dict) -> None:
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n")


def sha256(path: Path) -> str:
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
