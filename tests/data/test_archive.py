"""Archives: hostile, truncated and damaged ones are refused and write nothing."""

import io
import stat
import tarfile
import zipfile
from pathlib import Path

import pytest
from test_prepare import COUNTS, MARKET, snapshot, write_tar, write_zip

from reid.data.prepare import prepare
from reid.data.prepare.archive import open_source
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


def zip_of_windows(path: Path, names: list[str], encoding: str) -> Path:
    """A zip without the UTF-8 flag, with names as the Explorer of that language writes them."""
    with zipfile.ZipFile(path, "w") as archive:
        for i, name in enumerate(names):
            archive.writestr(f"{i:0{len(name.encode(encoding))}}", b"x")
    content = path.read_bytes()
    for i, name in enumerate(names):
        stored = name.encode(encoding)
        content = content.replace(b"%0*d" % (len(stored), i), stored)
    path.write_bytes(content)
    return path


def tar_of_linux(path: Path, names: list[str], encoding: str) -> Path:
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT, encoding=encoding) as archive:
        for name in names:
            archive.addfile(tarfile.TarInfo(name), io.BytesIO())
    return path


@pytest.mark.parametrize(
    "names, encoding, said",
    [
        (["张伟/IMG 1.jpg", "王芳/2.jpg"], "gbk", "gb18030"),
        (["张喆/1.jpg", "王芳/2.jpg"], "gbk", "gb18030"),  # the second character is not in GB2312
        (["张伟/1.jpg", "Зоя/2.jpg"], "utf-8", "utf-8"),  # macOS sets no flag
        (["René_c1.jpg", "Zoë_c2.jpg"], "cp437", "cp437"),
    ],
)
def test_names_of_archives_from_elsewhere(tmp_path, caplog, names, encoding, said):
    caplog.set_level("INFO", "reid")
    paths = [zip_of_windows(tmp_path / "a.zip", names, encoding)]
    if encoding == "gbk":  # in a tar UTF-8 is the rule
        paths.append(tar_of_linux(tmp_path / "a.tar", names, encoding))
    for path in paths:
        caplog.clear()
        with open_source(path) as source:
            assert sorted(source.sizes) == sorted(names) and source.read(names[0]) in (b"x", b"")
        assert f"2 names are not marked as UTF-8; read as {said}, the first: {names[0]}" in caplog.text


def test_names_that_are_marked_as_utf8_are_kept(tmp_path, caplog):
    caplog.set_level("INFO", "reid")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("张伟/é.jpg", b"x")
    tar_of_linux(tmp_path / "a.tar", ["张伟/é.jpg"], "utf-8")
    for name in ("a.zip", "a.tar"):
        with open_source(tmp_path / name) as source:
            assert [*source.sizes] == ["张伟/é.jpg"]
    assert "not marked" not in caplog.text


def test_hidden_folders_of_archives_are_left_out_as_those_of_folders(tmp_path, caplog):
    caplog.set_level("INFO", "reid")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name in ("p/1.jpg", ".trash/2.jpg", "__MACOSX/p/._1.jpg"):
            archive.writestr(name, b"x")
    with open_source(tmp_path / "a.zip") as source:
        assert [*source.sizes] == ["p/1.jpg"]
    assert "2 hidden images are left out" in caplog.text
