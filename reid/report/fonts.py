"""Fonts that have the characters of the user's labels, for Pillow and for matplotlib."""

import importlib.util
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from PIL import ImageFont

logger = logging.getLogger(__name__)

PACKAGE, PACKAGED = "noto_cjk_sans_jp_regular", "NotoSansCJKjp-Regular.otf"  # the extra `cjk`
# searched by Pillow in the font folders of the system
SYSTEM = (
    *("NotoSansCJK-Regular.ttc", "NotoSansCJKsc-Regular.otf", "NotoSansSC-Regular.otf", "NotoSansSC-Regular.ttf"),
    *("SourceHanSansSC-Regular.otf", "SourceHanSansCN-Regular.otf", "wqy-microhei.ttc", "wqy-zenhei.ttc"),
    *("DroidSansFallbackFull.ttf", "DroidSansFallback.ttf", "uming.ttc", "ipag.ttf", "NanumGothic.ttf"),
    *("msyh.ttc", "simsun.ttc", "YuGothM.ttc", "meiryo.ttc", "malgun.ttf", "Nirmala.ttf", "LeelawUI.ttf"),  # Windows
    *("Hiragino Sans GB.ttc", "PingFang.ttc", "STHeiti Light.ttc", "AppleSDGothicNeo.ttc", "Arial Unicode.ttf"),
    *("DejaVuSans.ttf", "NotoSans-Regular.ttf", "NotoSansThai-Regular.ttf", "NotoSansDevanagari-Regular.ttf"),
    *("segoeui.ttf", "arial.ttf", "FreeSans.ttf", "unifont.otf", "unifont.ttf"),
)
UNASSIGNED = "\U0010ffff"  # no font has it, so its picture is that of a missing character
SIZE = 12  # pixels
LONGEST = 24  # characters of a label in a figure


@dataclass(frozen=True)
class Fonts:
    """Font files, in the order in which they are used. The first may be None, for Pillow's own font."""

    files: tuple[Path | None, ...]

    @classmethod
    def of(cls, texts: Iterable[str], first: Path | None = None) -> "Fonts":
        """`first`, and as many other fonts as the texts need. Logs a warning where characters are in no font."""
        texts = list(texts)
        missing = {c for text in texts for c in text if c.isprintable() and not c.isspace()} - characters(first, texts)
        files = [first]
        for file in candidates() if missing else ():
            found = missing & characters(file, missing)
            if found:
                files.append(file)
                missing -= found
            if not missing:
                break
        if missing:
            example = next(text for text in texts if missing & set(text))
            logger.warning(
                f"no font here has {len(missing)} characters of the labels, as in {example}; pictures show their "
                'codes. Install a font that has them; for Chinese, Japanese and Korean: pip install -e ".[cjk]"'
            )
        return cls(tuple(files))

    def readable(self, text: str) -> str:
        """The text, in which characters that no font has are codes, as \\u674e."""
        known = set().union(*(characters(file, text) for file in self.files))
        return "".join(c if c in known or c.isspace() else code(c) for c in text)

    @classmethod
    def for_figures(cls, texts: Iterable[str]) -> "Fonts":
        """The fonts of the texts, as those of matplotlib until its settings are restored."""
        import matplotlib
        from matplotlib.font_manager import fontManager

        first = Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
        fonts = cls.of(texts, first)
        names = ["DejaVu Sans"]
        for file in filter(None, fonts.files[1:]):
            fontManager.addfont(file)
            names.append(fontManager.ttflist[-1].name)
        matplotlib.rcParams["font.family"] = names
        return fonts

    def in_figure(self, text: str) -> str:
        """The text as matplotlib draws it: shortened, and without formulas between dollar signs."""
        short = text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
        return self.readable(short).replace("$", r"\$")

    def for_pillow(self, text: str, size: int = SIZE) -> tuple[ImageFont.ImageFont | ImageFont.FreeTypeFont, str]:
        """(the font that has most of the text, the text in which other characters are codes)."""
        best = max(self.files, key=lambda file: len(characters(file, text)))
        return opened(best, size), Fonts((best,)).readable(text)


def code(character: str) -> str:
    return character.encode("ascii", "backslashreplace").decode() if not character.isascii() else "?"


def characters(file: Path | None, wanted: Iterable[str]) -> set[str]:
    """The characters of the wanted texts that a font has."""
    return {c for text in wanted for c in text if has(file, c)}


@cache
def has(file: Path | None, character: str) -> bool:
    font = opened(file, SIZE)
    if not isinstance(font, ImageFont.FreeTypeFont):  # Pillow without FreeType has a bitmap font
        return character.isascii() and character.isprintable()
    return character.isspace() or picture(font, character) != picture(font, UNASSIGNED)


def picture(font: ImageFont.FreeTypeFont, character: str) -> tuple[tuple[int, int], bytes]:
    mask = font.getmask(character)
    return mask.size, bytes(mask)


@cache
def opened(file: Path | None, size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(size) if file is None else ImageFont.truetype(str(file), size)


@cache
def candidates() -> Sequence[Path]:
    """The fonts of this machine that have characters of many scripts: that of the extra `cjk`, then the system's."""
    found = []
    package = importlib.util.find_spec(PACKAGE)
    for folder in (package.submodule_search_locations or ()) if package else ():
        if (Path(folder) / PACKAGED).is_file():
            found.append(Path(folder) / PACKAGED)
    for name in SYSTEM:
        try:
            found.append(Path(str(ImageFont.truetype(name, SIZE).path)))
        except (OSError, ImportError):
            continue
    return found
