"""Files of a folder, zip or tar behind one interface.

Archives are never unpacked. Every member is checked first; the wanted members are then
copied out under new names.
"""

import logging
import lzma
import shutil
import stat
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from tqdm import tqdm

from reid.data.folders import files_below, is_hidden, is_image, log_hidden
from reid.errors import InputError, MissingInput
from reid.files import link_or_copy

logger = logging.getLogger(__name__)

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
MAX_MEMBERS = 2_000_000
MAX_IMAGE = 64 << 20  # bytes of one image file; an image of a person has some thousand
PIECE = 1 << 20  # bytes that are copied at once
UTF8_FLAG = 0x800  # of a zip member
DAMAGE = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, OSError, ValueError, RuntimeError)


@contextmanager
def damage(path: Path, what: str, more: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Around reading: an error of DAMAGE or `more` becomes an InputError that names the file."""
    try:
        yield
    except DAMAGE + more as e:
        raise InputError(f"{path}: {what} cannot be read ({e}); the download may be cut short. Get it again") from e


class Member(NamedTuple):
    """One file of an archive."""

    name: str | bytes  # bytes: in an encoding that the archive does not name
    size: int  # bytes, as the archive claims
    offset: int
    open: Callable[[], Any]  # as a binary file
    problem: str  # why it cannot be used, or ""


@dataclass(frozen=True)
class Source:
    """Regular files by relative name ('/' between its parts), sorted.

    sizes: bytes of each file. files: where each is. scratch: a folder for extracted members of an archive.
    """

    path: Path
    sizes: dict[str, int]
    files: dict[str, Path | Member]
    scratch: Path | None = None

    def pieces(self, name: str) -> Iterator[bytes]:
        """The content of a file. Raises InputError where it cannot be read."""
        found = self.files[name]
        with damage(self.path, name), found.open("rb") if isinstance(found, Path) else found.open() as file:
            while piece := file.read(PIECE):
                yield piece

    def read(self, name: str) -> bytes:
        return b"".join(self.pieces(name))

    def in_order(self, names: Iterable[str]) -> list[str]:
        """The names by position: a compressed tar can only be read forwards."""
        return sorted(names, key=lambda name: getattr(self.files[name], "offset", 0))

    def file(self, name: str) -> Path:
        """The path of a file. A member of an archive is extracted until the source is closed."""
        found = self.files[name]
        if isinstance(found, Path):
            return found
        path = Path(self.scratch or "", PurePosixPath(name).name)
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
        for name in tqdm(self.in_order(wanted), "linking" if link else "copying", unit=" images", disable=None):
            first, *others = wanted[name]
            if link:
                for path in wanted[name]:
                    link_or_copy(self.file(name), path)
                continue
            with open(first, "wb") as out:
                out.writelines(self.pieces(name))
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
    size = path.stat().st_size
    if not path.name.lower().endswith(ARCHIVES):  # one file, for example a .mat
        yield in_folder(path.parent, {path.name: size})
        return
    opener: Callable = zipfile.ZipFile if path.name.lower().endswith(".zip") else tarfile.open
    with damage(path, f"the archive ({size:,} bytes)"):
        archive = opener(path)
    with archive, tempfile.TemporaryDirectory() as scratch:
        with damage(path, "the list of members"):
            files = checked(path, list(limited(path, members_of(archive))))
        yield Source(path, {name: files[name].size for name in sorted(files)}, {**files}, Path(scratch))


def in_folder(folder: Path, sizes: dict[str, int]) -> Source:
    return Source(folder, sizes, {name: folder / name for name in sizes})


def joined(parts: dict[str, Path]) -> Source:
    """The files of several folders, each as <its key in parts>/<name>."""
    result = Source(next(iter(parts.values())).parent, {}, {})
    for part, folder in parts.items():
        if not folder.is_dir():
            raise MissingInput(f"--{part} {folder} is not a folder; give the folder of its images")
        for name, size in files_below(folder).items():
            result.sizes[f"{part}/{name}"] = size
            result.files[f"{part}/{name}"] = folder / name
    return result


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


def checked(path: Path, members: list[Member]) -> dict[str, Member]:
    """{name: member}. Raises InputError at the first member that is not safe."""
    kept: dict[str, Member] = {}
    hidden: list[str] = []
    for stored, member in zip(decoded(path, [member.name for member in members]), members):
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


def stored_name(info: zipfile.ZipInfo | tarfile.TarInfo) -> str | bytes:
    """A member's name; its bytes where the archive does not name an encoding for them.

    So it is in a zip without the UTF-8 flag and in a tar of the old formats.
    """
    if isinstance(info, tarfile.TarInfo):
        foreign = any("\udc80" <= character <= "\udcff" for character in info.name)  # bytes that are not UTF-8
        return info.name.encode("utf-8", "surrogateescape") if foreign else info.name
    original = info.orig_filename.partition("\0")[0]
    with_unicode_field = info.filename.replace("\\", "/") != original.replace("\\", "/")
    if info.flag_bits & UTF8_FLAG or original.isascii() or with_unicode_field:
        return info.filename
    return original.encode("cp437")  # as zipfile decoded it


def decoded(path: Path, names: list[str | bytes]) -> list[str]:
    """The names as text. The bytes of one archive are in one encoding, which is logged."""
    unknown = [name for name in names if isinstance(name, bytes)]
    if not unknown:
        return [str(name) for name in names]
    encoding = encoding_of(b"\n".join(unknown))
    logger.info(
        f"{path}: {len(unknown):,} names are not marked as UTF-8; read as {encoding}, the first: "
        f"{unknown[0].decode(encoding)}. If they are wrong, unpack the archive and give its folder"
    )
    return [name.decode(encoding) if isinstance(name, bytes) else name for name in names]


def encoding_of(names: bytes) -> str:
    """UTF-8 if the names are, else GBK if they read as Chinese, else code page 437, which Windows has in English."""
    with suppress(UnicodeDecodeError):
        names.decode()
        return "utf-8"
    with suppress(UnicodeDecodeError):
        beyond = [character for character in names.decode("gb18030") if not character.isascii()]
        # western letters also decode as GBK, but to rare characters outside GB2312
        common = sum(bool(character.encode("gb2312", "ignore")) for character in beyond)
        return "gb18030" if 2 * common > len(beyond) else "cp437"
    return "cp437"
