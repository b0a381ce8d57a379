"""Files of a folder, zip or tar behind one interface.

Archives are never unpacked. Every member is checked first; the wanted members are then
copied out under new names.
"""

import lzma
import shutil
import stat
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple

from tqdm import tqdm

from reid.data.folders import files_below, is_hidden, is_image, log_hidden
from reid.data.prepare.member_names import decoded, stored_name
from reid.errors import InputError, MissingInput
from reid.files import link_or_copy

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
MAX_MEMBERS = 2_000_000
MAX_IMAGE = 64 << 20  # bytes of one image file; an image of a person has some thousand
FORMAT_ERRORS = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError)
DAMAGE = (*FORMAT_ERRORS, EOFError, OSError, ValueError, RuntimeError)


@contextmanager
def damage(path: Path, what: str, more: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Around reading: an error of DAMAGE or `more` becomes an InputError that names the file."""
    try:
        yield
    except DAMAGE + more as e:
        raise InputError(f"{path}: {what} cannot be read ({e}); the download may be cut short. Get it again") from e


@dataclass(frozen=True)
class Reader:
    """A file to read from. Its errors become InputError, unlike errors of writing the copy."""

    file: IO[bytes]
    path: Path
    name: str

    def read(self, size: int = -1) -> bytes:
        with damage(self.path, self.name):
            return self.file.read(size)


@dataclass(frozen=True)
class Source:
    """Regular files by relative name ('/' between its parts), sorted."""

    path: Path
    sizes: dict[str, int]  # bytes of each file
    opener: Callable[[str], IO[bytes]]
    offsets: dict[str, int] = field(default_factory=dict)  # positions in an archive
    scratch: Path | None = None  # where members of an archive can be extracted; None for a folder
    places: dict[str, Path] = field(default_factory=dict)  # files that are not at path / name

    @contextmanager
    def open(self, name: str) -> Iterator[Reader]:
        with damage(self.path, name):
            file = self.opener(name)
        with file:
            yield Reader(file, self.path, name)

    def read(self, name: str) -> bytes:
        with self.open(name) as file:
            return file.read()

    def file(self, name: str) -> Path:
        """The path of a file. A member of an archive is extracted until the source is closed."""
        if self.scratch is None:
            return self.places.get(name, self.path / name)
        path = self.scratch / PurePosixPath(name).name
        try:
            self.place({name: [path]})
        except OSError as e:
            raise InputError(
                f"{self.path}: {name} cannot be extracted to {self.scratch} ({e}); "
                "set TMPDIR to a folder with more space"
            ) from e
        return path

    def place(self, wanted: dict[str, list[Path]], link: bool = False) -> None:
        """Copies each named file to its paths, or links them to it, with a progress bar."""
        if link and self.scratch is not None:
            raise InputError(f"{self.path} is an archive, so its images can only be copied; unpack it to link them")
        # A compressed tar can only be read forwards.
        names = sorted(wanted, key=lambda name: self.offsets.get(name, 0))
        for name in tqdm(names, "linking" if link else "copying", unit=" images", disable=None):
            first, *others = wanted[name]
            if link:
                for path in wanted[name]:
                    link_or_copy(self.file(name), path)
                continue
            with self.open(name) as file, open(first, "wb") as out:
                shutil.copyfileobj(file, out)
            for path in others:
                shutil.copyfile(first, path)


@contextmanager
def open_source(path: str | Path) -> Iterator[Source]:
    """The files of a folder, of a .zip or .tar(.gz, .bz2, .xz), or one single file.

    Raises MissingInput, or InputError for damaged and encrypted archives, archive bombs,
    and members that are links, devices, outside the target folder or there twice.
    """
    path = Path(path)
    if not path.exists():
        raise MissingInput(f"--source {path} does not exist; give the archive as downloaded, or its folder")
    if path.is_dir():
        yield in_folder(path, files_below(path))
        return
    with damage(path, f"the archive ({path.stat().st_size:,} bytes)"):
        archive = open_archive(path)
    if archive is None:  # one file, for example a .mat
        yield in_folder(path.parent, {path.name: path.stat().st_size})
        return
    with archive, tempfile.TemporaryDirectory() as scratch:
        with damage(path, "the list of members"):
            members = checked(path, list(limited(path, members_of(archive))))
        names = sorted(members)
        sizes = {name: members[name].size for name in names}
        offsets = {name: members[name].offset for name in names}
        yield Source(path, sizes, lambda name: members[name].open(), offsets, Path(scratch))


def in_folder(folder: Path, sizes: dict[str, int]) -> Source:
    return Source(folder, sizes, lambda name: open(folder / name, "rb"))


def joined(parts: dict[str, Path]) -> Source:
    """The files of several folders, each as <its key in parts>/<name>."""
    sizes: dict[str, int] = {}
    places: dict[str, Path] = {}
    for part, folder in parts.items():
        if not folder.is_dir():
            raise MissingInput(f"--{part} {folder} is not a folder; give the folder of its images")
        for name, size in files_below(folder).items():
            sizes[f"{part}/{name}"] = size
            places[f"{part}/{name}"] = folder / name
    above = next(iter(parts.values())).parent
    return Source(above, sizes, lambda name: open(places[name], "rb"), places=places)


class Member(NamedTuple):
    """One file of an archive."""

    name: str | bytes  # bytes: in an encoding that the archive does not name
    size: int  # bytes, as the archive claims
    offset: int
    open: Callable[[], Any]  # as a binary file
    problem: str  # why it cannot be used, or ""


def open_archive(path: Path) -> zipfile.ZipFile | tarfile.TarFile | None:
    name = path.name.lower()
    if name.endswith(".zip"):
        return zipfile.ZipFile(path)
    return tarfile.open(path) if name.endswith(ARCHIVES) else None


def members_of(archive: zipfile.ZipFile | tarfile.TarFile) -> Iterator[Member]:
    """The members that are not folders."""
    if isinstance(archive, tarfile.TarFile):
        for tar in archive:
            if not tar.isdir():
                problem = "" if tar.isreg() else "is a link or device"
                yield Member(stored_name(tar), tar.size, tar.offset_data, partial(archive.extractfile, tar), problem)
        return
    for info in archive.infolist():
        problem = "is encrypted; unpack it yourself and give the folder" if info.flag_bits & 1 else ""
        if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
            problem = "is a link or device"
        if problem or not info.is_dir():
            opened = partial(archive.open, info)
            yield Member(stored_name(info), info.file_size, info.header_offset, opened, problem)


def limited(path: Path, members: Iterable[Member]) -> Iterator[Member]:
    """The members. Raises InputError at the first that is too much for the archive: it may be a bomb."""
    total, most = 0, (100 << 20) + 100 * path.stat().st_size
    for count, member in enumerate(members, 1):
        total += member.size
        if total > most or count > MAX_MEMBERS:
            problem = f"brings the content to {count:,} files and {total:,} bytes, too much for this archive"
            raise refused(path, member.name, problem)
        yield member


def refused(path: Path, name: str | bytes, problem: str) -> InputError:
    return InputError(f"{path}: member {name!r} {problem}; this is not a dataset archive as published")


def checked(path: Path, members: Sequence[Member]) -> dict[str, Member]:
    """{name: member}. Raises InputError at the first member that is not safe."""
    kept: dict[str, Member] = {}
    hidden: list[str] = []
    names = decoded(path, [member.name for member in members])
    for stored, member in zip(names, members):
        name, problem = stored.replace("\\", "/"), member.problem
        pure = PurePosixPath(name)
        if pure.is_absolute() or ".." in pure.parts or not pure.parts or ":" in pure.parts[0]:
            problem = "would be written outside the target folder"
        elif member.size > MAX_IMAGE and is_image(name):
            problem = f"claims {member.size:,} bytes, too many for an image"
        elif str(pure) in kept:
            problem = "occurs twice"
        if problem:
            raise refused(path, stored, problem)
        if is_hidden(name):
            hidden.append(name)
        else:
            kept[str(pure)] = member
    log_hidden(path, hidden)
    return kept
