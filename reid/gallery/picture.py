"""Queries and their answers as one picture."""

from pathlib import Path

from PIL import Image as PILImage
from PIL import ImageDraw

from reid.data.loader import decode
from reid.errors import InputError
from reid.files import atomic_file, writing
from reid.gallery.hdf5 import Answers

TILE_H, TILE_W, TEXT_H, GAP = 192, 96, 38, 6  # pixels of the picture


def draw_answers(queries: list[str], found: list[Answers], root: Path) -> PILImage.Image:
    """A row for each query: the query, then its answers with rank, distance and pid; grey if an image is missing."""
    columns = 1 + max(len(answers.names) for answers in found)
    width, height = columns * (TILE_W + GAP) + GAP, len(found) * (TILE_H + TEXT_H + GAP) + GAP
    picture = PILImage.new("RGB", (width, height), "white")
    canvas = ImageDraw.Draw(picture)

    def tile(row: int, column: int, path: str, text: str) -> None:
        x, y = GAP + column * (TILE_W + GAP), GAP + row * (TILE_H + TEXT_H + GAP)
        try:
            image = PILImage.fromarray(decode(path, TILE_H, TILE_W))
        except InputError:
            image = PILImage.new("RGB", (TILE_W, TILE_H), "grey")
        picture.paste(image, (x, y))
        canvas.text((x, y + TILE_H + 1), text, fill="black")

    for row, (query, answers) in enumerate(zip(queries, found)):
        tile(row, 0, query, f"query\n{in_lines(query)}")
        for i, (distance, name, pid) in enumerate(zip(answers.distances, answers.names, answers.pids), 1):
            tile(row, i, str(root / name), f"{i}: {distance:.3f}" + (f" pid {pid}" if pid >= 0 else "") +
                 f"\n{in_lines(name)}")  # fmt: skip
    return picture


def in_lines(path: str, width: int = 16) -> str:
    """A file's name in two lines."""
    name = Path(path).name
    return f"{name[:width]}\n{name[width : 2 * width]}"


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
            raise InputError(f"{path}: a picture of {picture.width} x {picture.height} pixels cannot be saved "
                             f"({e}); use .png, or a smaller --top") from e  # fmt: skip
