"""Queries and their answers as one picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image as PILImage
from PIL import ImageDraw

from reid.data.loader import fitted
from reid.errors import InputError
from reid.files import atomic_file, writing
from reid.gallery.store import Answers
from reid.report.fonts import Fonts

TILE_H, TILE_W, GAP = 192, 96, 6  # pixels: height and least width of a tile, and the space between tiles
WIDEST = 2 * TILE_H
LINES, LINE_H = 5, 14  # of text below a tile


class Tile(NamedTuple):
    """pixels: of the image in its own aspect ratio, None where it cannot be read."""

    pixels: np.ndarray | None
    texts: tuple[str, ...]


def draw_answers(queries: Sequence[str], found: Sequence[Answers], root: Path) -> tuple[PILImage.Image, int]:
    """(a picture, how many images of answers are missing in it).

    It has a row for each query: the query, then its answers with rank, distance, labels and name. Raises InputError
    where the images of all answers are missing.
    """
    rows = []
    for query, answers in zip(queries, found):
        tiles = [Tile(pixels(query), ("query", Path(query).name))]
        for i, (distance, name, identity, camera, source) in enumerate(zip(*answers[1:]), 1):
            known = (named("identity", identity), named("camera", camera))
            texts = (f"{i}: {distance:.3f}", *filter(None, known), "/".join(Path(source).parts[-2:]))
            tiles.append(Tile(pixels(str(root / name)), texts))
        rows.append(tiles)
    drawn = [tile for row in rows for tile in row[1:]]
    missing = sum(tile.pixels is None for tile in drawn)
    if drawn and missing == len(drawn):
        raise InputError(f"none of the images of the answers is in {root}; give their folder with --root")
    return draw(rows), missing


def named(kind: str, label: str) -> str:
    """A label, with what it is the label of where it is only a number."""
    return f"{kind} {label}" if label.isdecimal() else label


def pixels(path: str) -> np.ndarray | None:
    try:
        return fitted(path, TILE_H, WIDEST)
    except InputError:
        return None


def draw(rows: Sequence[Sequence[Tile]]) -> PILImage.Image:
    """All tiles have the width of the widest."""
    tiles = [tile for row in rows for tile in row]
    fonts = Fonts.of(text for tile in tiles for text in tile.texts)
    tile_w = max([TILE_W, *(tile.pixels.shape[1] for tile in tiles if tile.pixels is not None)])
    tile_h = TILE_H + LINES * LINE_H
    width = max(map(len, rows)) * (tile_w + GAP) + GAP
    picture = PILImage.new("RGB", (width, len(rows) * (tile_h + GAP) + GAP), "white")
    canvas = ImageDraw.Draw(picture)
    for row, line in enumerate(rows):
        for column, tile in enumerate(line):
            x, y = GAP + column * (tile_w + GAP), GAP + row * (tile_h + GAP)
            if tile.pixels is None:
                canvas.rectangle((x, y, x + TILE_W - 1, y + TILE_H - 1), "grey")
                canvas.text((x + GAP, y + GAP), "no image", fill="white")
            else:
                picture.paste(PILImage.fromarray(tile.pixels), (x, y + TILE_H - len(tile.pixels)))
            write(canvas, fonts, (x, y + TILE_H), tile.texts, tile_w)
    return picture


def write(canvas: ImageDraw.ImageDraw, fonts: Fonts, corner: tuple[int, int], texts: Sequence[str], width: int) -> None:
    """Writes the texts below each other; the last one, a name, may take the lines that are left."""
    x, y = corner
    left = LINES
    for i, text in enumerate(texts, 1):
        font, readable = fonts.for_pillow(text)
        for line in cut(readable, font, width, 1 if i < len(texts) else left):
            canvas.text((x, y), line, fill="black", font=font)
            y += LINE_H
            left -= 1


def cut(text: str, font, width: int, most: int) -> list[str]:
    """The text in at most so many lines of this width; the rest is left out."""
    lines = [""]
    for character in text:
        if lines[-1] and font.getlength(lines[-1] + character) > width:
            lines.append("")
        lines[-1] += character
    return lines[:most]


def kind_of(path: Path) -> str:
    """Pillow's name of a picture's format. Raises InputError for an unsupported one."""
    kind = PILImage.registered_extensions().get(path.suffix.lower())
    if kind not in ("PNG", "JPEG", "WEBP"):
        raise InputError(f"--picture {path}: expected a name ending in .png, .jpg or .webp")
    return kind


def save_picture(picture: PILImage.Image, path: Path) -> None:
    with writing(path), atomic_file(path) as temporary:
        try:
            picture.save(temporary, kind_of(path))
        except ValueError as e:  # WebP and JPEG have a largest width
            raise InputError(
                f"{path}: a picture of {picture.width} x {picture.height} pixels cannot be saved "
                f"({e}); use .png, or a smaller --top"
            ) from e
