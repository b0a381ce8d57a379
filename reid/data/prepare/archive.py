"""Files of a folder, zip or tar under one interface. Archives are never unpacked: wanted members are copied out
under names of our own, after every member was checked."""

import lzma
import os
import shutil
import stat
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path, PurePosixPath
from typing import IO

from tqdm import tqdm

from reid.errors import InputError, MissingInput
from reid.files import link_or_copy

IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm")
ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
MAX_MEMBERS = 2_000_000
MAX_IMAGE = 64 << 20  # bytes of one image file; a person crop has some thousand
DAMAGE = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, OSError, ValueError,
          RuntimeError, NotImplementedError)  # fmt: skip


@dataclass(frozen=True)
class Source:
    """Regular files by relative name ('/' between parts), sorted, with their sizes in bytes."""

    path: Path
    sizes: dict[str, int]
    stream: Callable[[Collection[str]], Iterator[tuple[str, IO[bytes]]]]  # opens the named files in stored order
    scratch: Path | None = None  # where members of an archive can be extracted; None for a folder

    def file(self, name: str) -> Path:
        """A named file as a path: where it lies, or extracted for as long as the source is open."""
        if self.scratch is None:
            return self.path / name
        path = self.scratch / PurePosixPath(name).name
        try:
            self.place({name: [path]})
        except OSError as e:
            raise InputError(f"{self.path}: {name} cannot be extracted to {self.scratch} ({e}); set TMPDIR") from e
        return path

    def read(self, name: str) -> bytes:
        return b"".join(file.read() for _, file in self.opened([name]))

    def place(self, wanted: dict[str, list[Path]], link: bool = False) -> None:
        """Copies each named file byte for byte to its paths (or makes links to it), with a progress bar."""
        if link and self.scratch is not None:
            raise InputError(f"{self.path} is an archive, and its images can only be copied; unpack it to link them")
        if link:
            for name, paths in tqdm(wanted.items(), "linking", unit=" images", disable=None):
                for path in paths:
                    link_or_copy(self.path / name, path)
            return
        for name, file in tqdm(self.opened(wanted), "copying", len(wanted), unit=" images", disable=None):
            with open(wanted[name][0], "wb") as out:
                shutil.copyfileobj(file, out)
            for path in wanted[name][1:]:
                shutil.copyfile(wanted[name][0], path)

    def opened(self, names: Collection[str]) -> Iterator[tuple[str, "Reader"]]:
        """(name, open file) of the named files; damage met when they are opened or read raises InputError."""
        files = self.stream(names)
        name = next(iter(names), "")
        while True:
            with damage(self.path, name):
                entry = next(files, None)
            if entry is None:
                return
            name, file = entry
            yield name, Reader(file, self.path, name)


@dataclass(frozen=True)
class Reader:
    """A file whose damage, met while it is read, is told from trouble with what is written."""

    file: IO[bytes]
    path: Path
    name: str

    def read(self, size: int = -1) -> bytes:
        with damage(self.path, self.name):
            return self.file.read(size)


@contextmanager
def damage(path: Path, what: str) -> Iterator[None]:
    try:
        yield
    except DAMAGE as e:
        raise InputError(f"{path}: {what} cannot be read ({e}); was the download cut short? Get it again") from e


@contextmanager
def open_source(path: str | Path) -> Iterator[Source]:
    """The files of a folder, .zip, .tar(.gz, .bz2, .xz) or of one single file.

    Raises MissingInput; InputError for a damaged or encrypted archive, a member with an absolute name or '..', a
    link, a device, a name that is there twice, and for sizes or counts of no real dataset (archive bombs).
    """
    path = Path(path)
    if not path.exists():
        raise MissingInput(f"--source {path} is not there; give the archive as downloaded, or its folder")
    if path.is_dir():
        yield Source(path, dict(sorted(walk(path))), lambda names: open_files(path, names))
        return
    with damage(path, f"the archive ({path.stat().st_size:,} bytes)"):
        archive = open_archive(path)
    if archive is None:  # one file, a .mat for instance
        yield Source(path.parent, {path.name: path.stat().st_size}, lambda names: open_files(path.parent, names))
        return
    with archive:
        with damage(path, "the list of members"):
            members = checked(path, tar_members(archive) if is_tar(archive) else zip_members(archive))
        sizes = {name: members[name][1] for name in sorted(members)}
        with tempfile.TemporaryDirectory() as scratch:
            yield Source(path, sizes, lambda names: open_members(archive, members, names), Path(scratch))


def open_archive(path: Path) -> zipfile.ZipFile | tarfile.TarFile | None:
    name = path.name.lower()
    if name.endswith(".zip"):
        return zipfile.ZipFile(path)
    if name.endswith(ARCHIVES):
        return tarfile.open(path)
    return None


def is_tar(archive) -> bool:
    return isinstance(archive, tarfile.TarFile)


def walk(folder: Path) -> Iterator[tuple[str, int]]:
    """Files below a folder; linked folders are followed, each real folder once."""
    seen: set[str] = set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [f for f in folders if not f.startswith((".", "__MACOSX"))]
        if os.path.realpath(parent) in seen:
            folders.clear()
            continue
        seen.add(os.path.realpath(parent))
        for file in files:
            full = os.path.join(parent, file)
            if os.path.isfile(full) and not file.startswith("."):
                yield Path(full).relative_to(folder).as_posix(), os.path.getsize(full)


def open_files(folder: Path, names: Iterable[str]) -> Iterator[tuple[str, IO[bytes]]]:
    for name in names:
        with open(folder / name, "rb") as file:
            yield name, file


def zip_members(archive: zipfile.ZipFile) -> Iterator[tuple[str, zipfile.ZipInfo, int, str | None]]:
    """(name, member, size, what is wrong with it) of each file."""
    for info in archive.infolist():
        mode = info.external_attr >> 16
        wrong = "is encrypted; unpack it yourself and give the folder" if info.flag_bits & 1 else None
        if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
            wrong = "is a link or device"
        if not info.is_dir() or wrong:
            yield info.filename, info, info.file_size, wrong


def tar_members(archive: tarfile.TarFile) -> Iterator[tuple[str, tarfile.TarInfo, int, str | None]]:
    for info in archive:
        if not info.isdir():
            yield info.name, info, info.size, None if info.isreg() else "is a link or device"


def checked(path: Path, members: Iterable[tuple]) -> dict[str, tuple]:
    """{name: (member, size)} when every member can be trusted; stops at the first that cannot."""
    kept: dict[str, tuple] = {}
    total, most = 0, (100 << 20) + 100 * path.stat().st_size
    for count, (raw, member, size, wrong) in enumerate(members):
        name = raw.replace("\\", "/")
        parts = PurePosixPath(name).parts
        total += size
        if name.startswith("/") or ".." in parts or (parts and ":" in parts[0]) or not parts:
            wrong = "would leave the folder it is unpacked in"
        elif size > MAX_IMAGE and name.lower().endswith(IMAGES):
            wrong = f"claims {size:,} bytes, too many for an image"
        elif total > most or count >= MAX_MEMBERS:
            wrong = f"brings the content to {count + 1:,} files and {total:,} bytes, too much for this archive"
        elif str(PurePosixPath(name)) in kept:
            wrong = "is there twice"
        if wrong:
            raise InputError(f"{path}: member {raw!r} {wrong}; this is no archive of a dataset as published")
        if "__MACOSX" not in parts and not parts[-1].startswith("."):
            kept[str(PurePosixPath(name))] = (member, size)
    return kept


def open_members(archive, members: dict[str, tuple], names: Collection[str]) -> Iterator[tuple[str, IO[bytes]]]:
    """In the order in which the archive stores them: a compressed tar can only be read forwards."""
    place = attrgetter("offset_data" if is_tar(archive) else "header_offset")
    for name in sorted(names, key=lambda n: place(members[n][0])):
        with (archive.extractfile if is_tar(archive) else archive.open)(members[name][0]) as file:
            yield name, file
