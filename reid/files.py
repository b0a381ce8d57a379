"""Files that are written completely or not at all, locks between processes, links and digests."""

import csv
import errno
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout, UnixFileLock

from reid.errors import InputError

logger = logging.getLogger(__name__)

FULL = (errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC))
# errors of file systems without locks, for example some network file systems
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, getattr(errno, "ENOTSUP", errno.EOPNOTSUPP))
BLOCK = 1 << 20  # bytes


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yields a temporary path in the same folder. It replaces `path` if the body raises nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with open(temporary, "rb+") as f:
            os.fsync(f.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Makes a rename in `folder` survive a power failure, on systems that can sync a folder."""
    if hasattr(os, "O_DIRECTORY"):
        descriptor = os.open(folder, os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns an OSError raised while the body writes `path` into an InputError."""
    try:
        yield
    except OSError as e:
        reason = os.strerror(e.errno) if e.errno else str(e).split("\n")[0]
        hint = "free some space there, or choose" if e.errno in FULL else "choose"
        raise InputError(f"{path} cannot be written ({reason}); {hint} another path") from e


@contextmanager
def locked(path: Path, waits: bool = True) -> Iterator[None]:
    """Locks `path` against other processes with a lock file beside it. A killed process releases its lock.

    If another process has the lock: waits with a warning, or raises InputError if `waits` is false. If the file
    system has no locks: warns and continues without one.
    """
    lock = FileLock(path.with_name(path.name + ".lock"))
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        held = acquire(lock, path, waits)
    try:
        yield
    finally:
        # on Unix the file may be removed while locked: filelock does not lock a removed file
        if not held or isinstance(lock, UnixFileLock):
            with suppress(OSError):
                os.unlink(lock.lock_file)
        lock.release()


def acquire(lock: Any, path: Path, waits: bool) -> bool:
    """Acquires the lock. Returns False if the file system has no locks. Raises InputError, OSError."""
    try:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if not waits:
                raise InputError(f"another process is using {path}; run the command again when it has ended") from None
            logger.warning(f"waiting for another process that is using {path}")
            lock.acquire()
    except OSError as e:
        if e.errno not in NO_LOCKS:
            raise
        logger.warning(f"{path.parent} has no file locks ({e}); do not run another process on the same files")
        return False
    return True


def reserve(path: Path, size: int) -> None:
    """Appends zeros up to `size` bytes, and allocates the disk space. Raises OSError if the disk is full."""
    with open(path, "rb+") as f:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(f.fileno(), 0, size)
            return
        for start in range(f.seek(0, os.SEEK_END), size, BLOCK):
            f.write(bytes(min(BLOCK, size - start)))


def link_or_copy(source: Path, target: Path) -> None:
    """Makes `target` a symbolic link to `source`; a hard link or a copy if the system refuses links.

    Windows refuses symbolic links without a privilege, and hard links between drives. Raises OSError.
    """
    source = source.resolve(strict=True)
    if os.path.lexists(target):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
    for link in (os.symlink, os.link):
        with suppress(OSError, NotImplementedError):
            link(source, target)
            return
    shutil.copyfile(source, target)


def write_json(path: Path, content: Any) -> None:
    """Writes a JSON file atomically. Raises OSError."""
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def write_csv(path: Path, titles: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Writes a CSV file; None is an empty cell. Raises InputError."""
    with writing(path), atomic_file(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as f:
        csv.writer(f).writerows([titles, *rows])


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file."""
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
