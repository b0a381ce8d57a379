"""Archives: hostile, truncated and damaged ones are refused and write nothing."""

import io
import stat
import tarfile
import zipfile
from pathlib import Path

import pytest
from test_prepare import COUNTS, MARKET, snapshot, write_tar, write_zip

from reid.data.prepare import prepare
from reid.data.published import PUBLISHED
from reid.errors import InputError


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setitem(PUBLISHED, "market1501", COUNTS)


def tar_with(path: Path, name: str, kind: bytes = tarfile.REGTYPE, link: str = "", size: int = 0) -> Path:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, size
    with tarfile.open(path, "w") as archive:
        archive.addfile(info, io.BytesIO(bytes(size)))
    return path


def zip_with(path: Path, name: str, mode: int = stat.S_IFREG | 0o644, content: bytes = b"x", **how) -> Path:
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    with zipfile.ZipFile(path, "w", **how) as archive:
        archive.writestr(info, content, compress_type=how.get("compression"))
    return path


def bomb(path: Path) -> Path:
    """300 MB of zeros in 300 kB."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for i in range(6):
            archive.writestr(f"query/{i}.dat", bytes(50 << 20))
    return path


def encrypted(path: Path) -> Path:
    write_zip(path, ["query/a.jpg"])
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)
    return path


def doubled(path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive, pytest.warns(UserWarning, match=r"Duplicate name"):
        archive.writestr("query/a.jpg", b"1")
        archive.writestr("query/a.jpg", b"2")
    return path


HOSTILE = {  # how it is written -> the message
    "zip slip": (lambda p: zip_with(p / "a.zip", "query/../../evil.jpg"), "would be written outside the target folder"),
    "zip slip of Windows": (lambda p: zip_with(p / "a.zip", "..\\evil.jpg"), "would be written outside"),
    "absolute name": (lambda p: zip_with(p / "a.zip", "/tmp/evil.jpg"), "would be written outside"),
    "drive": (lambda p: zip_with(p / "a.zip", "C:/evil.jpg"), "would be written outside"),
    "link in zip": (lambda p: zip_with(p / "a.zip", "query/a.jpg", stat.S_IFLNK | 0o777), "is a link or device"),
    "tar slip": (lambda p: tar_with(p / "a.tar", "../evil.jpg"), "would be written outside"),
    "tar absolute": (lambda p: tar_with(p / "a.tar", "/evil.jpg"), "would be written outside"),
    "link": (lambda p: tar_with(p / "a.tar", "query/a.jpg", tarfile.SYMTYPE, "/etc/passwd"), "is a link or device"),
    "hard link": (lambda p: tar_with(p / "a.tar", "query/a.jpg", tarfile.LNKTYPE, "b"), "is a link or device"),
    "device": (lambda p: tar_with(p / "a.tar", "query/a.jpg", tarfile.CHRTYPE), "is a link or device"),
    "pipe": (lambda p: tar_with(p / "a.tar", "query/a.jpg", tarfile.FIFOTYPE), "is a link or device"),
    "large image": (
        lambda p: zip_with(p / "a.zip", "a.jpg", content=bytes(65 << 20), compression=zipfile.ZIP_DEFLATED),
        "claims 68,157,440 bytes, too many for an image",
    ),
    "bomb": (lambda p: bomb(p / "a.zip"), "brings the content to . files and .* bytes, too much for this archive"),
    "name twice": (lambda p: doubled(p / "a.zip"), "occurs twice"),
    "encrypted": (lambda p: encrypted(p / "a.zip"), "is encrypted; unpack it yourself"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_archives_are_refused_and_write_nothing(tmp_path, case):
    write, message = HOSTILE[case]
    (tmp_path / "in").mkdir()
    path = write(tmp_path / "in")
    with pytest.raises(InputError, match=message) as caught:
        prepare("market1501", path, tmp_path / "sets")
    assert path.name in str(caught.value) and snapshot(tmp_path) == ["in", f"in/{path.name}"]


@pytest.mark.parametrize("write, suffix", [(write_zip, "zip"), (write_tar, "tar"), (write_tar, "tar.gz")])
def test_truncated_archives(small, tmp_path, write, suffix):
    path = write(tmp_path / f"a.{suffix}", MARKET)
    content = path.read_bytes()
    for share in (0, 0.3, 0.7):
        path.write_bytes(content[: int(len(content) * share)])
        with pytest.raises(InputError, match=r"download may be cut short|has no "):
            prepare("market1501", path, tmp_path / "sets")
        assert not (tmp_path / "sets/market1501").exists()


def test_a_damaged_member_is_named_and_leaves_nothing(small, tmp_path):
    path = write_zip(tmp_path / "a.zip", MARKET)
    content = bytearray(path.read_bytes())
    content[content.rindex(b"query/0001_c1s1_001051_00.jpg", 0, content.index(b"PK\x01\x02")) + 200] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"a.zip: query/0001_c1s1_001051_00.jpg cannot be read \(Bad CRC"):
        prepare("market1501", path, tmp_path / "sets")
    assert list((tmp_path / "sets").iterdir()) == []
