"""File names in archives that do not name their encoding.

A zip without the UTF-8 flag and a tar of the old formats hold names as bytes. Windows writes them in
the code page of its language: GBK in China, code page 437 in English.
"""

import logging
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

logger = logging.getLogger(__name__)

UTF8_FLAG = 0x800  # of a zip member


def stored_name(info: zipfile.ZipInfo | tarfile.TarInfo) -> str | bytes:
    """A member's name; its bytes where the archive does not name an encoding for them."""
    if isinstance(info, tarfile.TarInfo):
        try:
            info.name.encode()
        except UnicodeEncodeError:  # bytes that are not UTF-8 are surrogates
            return info.name.encode("utf-8", "surrogateescape")
        return info.name
    original = info.orig_filename
    with_unicode_field = info.filename.replace("\\", "/") != original.partition("\0")[0].replace("\\", "/")
    if info.flag_bits & UTF8_FLAG or original.isascii() or with_unicode_field:
        return info.filename
    return original.partition("\0")[0].encode("cp437")  # as zipfile decoded it


def decoded(path: Path, names: Sequence[str | bytes]) -> list[str]:
    """The names as text. The bytes of one archive are in one encoding, which is logged.

    UTF-8 if all of them are, else GBK if they read as Chinese, else code page 437.
    """
    unknown = [name for name in names if isinstance(name, bytes)]
    if not unknown:
        return [str(name) for name in names]
    encoding = encoding_of(unknown)
    texts = [name.decode(encoding) if isinstance(name, bytes) else name for name in names]
    example = unknown[0].decode(encoding)
    logger.info(
        f"{path}: {len(unknown):,} names are not marked as UTF-8; read as {encoding}, the first: {example}. "
        "If they are wrong, unpack the archive and give its folder"
    )
    return texts


def encoding_of(names: Sequence[bytes]) -> str:
    """utf-8, gb18030 or cp437, which decodes all of the names."""
    for encoding in ("utf-8", "gb18030"):
        try:
            text = "".join(name.decode(encoding) for name in names)
        except UnicodeDecodeError:
            continue
        if encoding == "utf-8" or is_chinese(text):
            return encoding
    return "cp437"


def is_chinese(text: str) -> bool:
    """Whether most characters beyond ASCII are in GB2312.

    Western letters of code page 437 also decode as GBK, but to rare characters outside GB2312.
    """
    beyond = [character for character in text if not character.isascii()]
    common = sum(bool(character.encode("gb2312", "ignore")) for character in beyond)
    return 2 * common > len(beyond)
