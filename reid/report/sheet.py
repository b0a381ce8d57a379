"""A contact sheet: groups of images side by side, as one HTML file."""

import base64
import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from html import escape
from pathlib import Path
from typing import NamedTuple

from PIL import ImageOps

from reid.data.loader import open_image, read
from reid.errors import InputError
from reid.files import atomic_file, writing

MOST_GROUPS = 500  # of a sheet; 2,000 thumbnails of a page are about 20 MB
SIDE = 256  # pixels of the longer side of a thumbnail
STYLE = (
    "body{font:14px/1.4 system-ui,sans-serif;margin:2em}section{margin:0 0 2em}h2{font-size:1em}"
    "figure{display:inline-block;margin:0 1em 0 0;vertical-align:top;max-width:22em}"
    "figcaption{overflow-wrap:anywhere}"
)


class Shown(NamedTuple):
    """An image of the sheet and the text below it."""

    path: str
    text: str


class Group(NamedTuple):
    """Images that are shown side by side, below a heading."""

    heading: str
    images: Sequence[Shown]


def write_sheet(path: Path, title: str, groups: Sequence[Group]) -> None:
    """Writes the first MOST_GROUPS groups. Raises InputError where the disk refuses."""
    shown = groups[:MOST_GROUPS]
    with ThreadPoolExecutor() as pool:
        sections = "".join(pool.map(section, shown))
    count = f"{len(groups):,} groups"
    if len(shown) < len(groups):
        count += f"; the first {len(shown)} are shown"
    page = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{STYLE}</style></head><body><h1>{escape(title)}</h1><p>{count}</p>{sections}</body></html>\n"
    )
    with writing(path), atomic_file(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def section(group: Group) -> str:
    figures = "".join(
        f"<figure>{thumbnail(image.path)}<figcaption>{escape(image.text)}</figcaption></figure>"
        for image in group.images
    )
    return f"<section><h2>{escape(group.heading)}</h2>{figures}</section>"


def thumbnail(path: str) -> str:
    """An image of at most SIDE x SIDE pixels as HTML; a note where it cannot be read."""
    try:
        image = open_image(read(path)).convert("RGB")
    except InputError as e:
        return f"<p>{escape(str(e))}</p>"
    out = io.BytesIO()
    ImageOps.contain(image, (SIDE, SIDE)).save(out, "JPEG", quality=85)
    size, content = f"{image.width} x {image.height} pixels", base64.b64encode(out.getvalue()).decode()
    return f'<img alt="{size}" title="{size}" src="data:image/jpeg;base64,{content}">'
