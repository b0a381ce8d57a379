"""The demo dataset: drawn pedestrians, so that everything runs without a download.

An identity is clothing, shoes, hair, bag and build; groups of identities share a top, so
colour alone does not distinguish them. A camera is a viewpoint, a light, blur, noise and a
street. An image shows one pose, cropped by an imperfect detector. Random numbers come from
np.random.default_rng([.., pid, camera, index]): the same Pillow version draws the same bytes.
"""

from pathlib import Path, PurePath
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter
from tqdm import tqdm

from reid.data.pedestrian import Colour, Pedestrian, shade
from reid.data.prepare.plan import Plan, Split

# identities; Market-1501 has 751, 750 and one pid of distractors, and six cameras
TRAIN, TEST, DISTRACTORS, CAMERAS = 64, 32, 8, 4
# images of an identity in a camera; a test identity also has one query
TRAIN_SHOTS, GALLERY_SHOTS = 4, 2
ALIKE = 4  # identities of a group that share their top
CAST = 0.28  # strength of the colour casts
SHIFT = 0.05  # of the misaligned crops
OCCLUDED = 0.12  # share of the images with a partly hidden person
W, H, FINER = 64, 128, 3  # pixels; drawn this many times finer

COLOURS = {  # of clothes, RGB
    "black": (38, 38, 44),
    "white": (226, 224, 218),
    "grey": (128, 130, 134),
    "red": (186, 44, 46),
    "orange": (226, 128, 44),
    "yellow": (224, 196, 62),
    "green": (56, 128, 74),
    "teal": (44, 136, 142),
    "blue": (50, 84, 168),
    "navy": (34, 46, 92),
    "purple": (116, 66, 140),
    "pink": (222, 136, 164),
    "brown": (112, 76, 50),
    "beige": (204, 180, 140),
}
TOPS = ["black", "white", "red", "blue", "green", "orange", "grey", "purple", "yellow", "teal", "pink", "brown"]
BOTTOMS = ["black", "navy", "grey", "beige", "brown", "blue", "white", "green"]
SHOES = ["black", "white", "brown", "red", "grey"]
BAGS = ["black", "red", "brown", "blue", "green", "yellow"]
HAIR = ((28, 24, 22), (66, 44, 30), (122, 84, 46), (196, 160, 92), (150, 146, 142))
SKIN = ((242, 208, 180), (222, 178, 142), (184, 134, 98), (128, 88, 62), (86, 58, 42))


class Camera(NamedTuple):
    """How a camera shows a person."""

    turn: int  # it sees people from the front (0), the side (1) or the back (2)
    gains: tuple[float, float, float]  # of R, G, B, before CAST
    light: float
    blur: float  # pixels
    noise: float  # of 255
    wall: Colour
    ground: Colour


CAMERA = (
    Camera(0, (0.5, 0.0, -0.6), 1.05, 0.4, 4, (164, 156, 142), (138, 134, 130)),
    Camera(1, (-0.7, 0.0, 0.8), 0.82, 0.7, 7, (112, 128, 142), (96, 98, 104)),
    Camera(2, (-0.3, 0.5, -0.3), 0.95, 0.5, 5, (104, 132, 96), (158, 148, 128)),
    Camera(1, (0.9, -0.1, -0.9), 0.68, 0.9, 9, (150, 112, 92), (112, 100, 96)),
)


def identity(pid: int) -> SimpleNamespace:
    """The appearance of a person, the same for all cameras."""
    group, own = np.random.default_rng([7, pid // ALIKE]), np.random.default_rng([8, pid])

    def tint(names: list[str], rng: np.random.Generator) -> np.ndarray:
        return np.clip(np.array(COLOURS[rng.choice(names)]) + rng.integers(-14, 15, 3), 0, 255)

    return SimpleNamespace(  # the order determines the random numbers
        top=tint(TOPS, group),
        trim=tint(TOPS, group),
        pattern=group.choice(["plain", "plain", "stripes", "plaid", "logo", "halves"]),
        sleeves=own.choice(["long", "short"]),
        bottom=tint(BOTTOMS, own),
        cut=own.choice(["trousers", "trousers", "trousers", "shorts", "skirt"]),
        shoes=tint(SHOES, own),
        hair=HAIR[own.integers(len(HAIR))],
        hairdo=own.choice(["short", "short", "long", "bun", "cap"]),
        cap=tint(TOPS, own),
        skin=SKIN[own.integers(len(SKIN))],
        bag=own.choice(["none", "none", "backpack", "shoulder", "hand"]),
        bag_colour=tint(BAGS, own),
        build=own.uniform(0.85, 1.25),
        height=own.uniform(0.92, 1.04),
    )


def draw(pid: int, camid: int, index: int) -> Image.Image:
    """One image, 64 x 128."""
    look, camera = identity(pid), CAMERA[camid]
    rng = np.random.default_rng([9, pid, camid, index])
    w, h = W * FINER, H * FINER
    picture = street(camera, rng, w, h)
    canvas = ImageDraw.Draw(picture)
    tall = 0.86 * h * look.height * rng.uniform(0.93, 1.05)
    x, floor = w * (0.5 + rng.normal(0, SHIFT)), h * (0.965 + rng.normal(0, SHIFT / 2))
    shadow = [x - 0.3 * w, floor - 0.02 * h, x + 0.42 * w, floor + 0.02 * h]
    canvas.ellipse(shadow, fill=shade(camera.ground, 0.7))
    Pedestrian(picture, look, camera.turn, rng, x, floor - tall, tall).draw()
    if rng.random() < OCCLUDED:
        occluder(canvas, rng, w, h)
    small = picture.resize((W, H), Image.Resampling.LANCZOS)
    small = small.filter(ImageFilter.GaussianBlur(camera.blur))
    gains = camera.light * rng.uniform(0.9, 1.1) * (1 + CAST * np.array(camera.gains))
    pixels = np.asarray(small, float) * gains + rng.normal(0, camera.noise, (H, W, 1))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def street(camera: Camera, rng: np.random.Generator, w: int, h: int) -> Image.Image:
    """Wall with windows, kerb and ground; the viewpoint varies a little."""
    wall, ground = camera.wall, camera.ground
    picture = Image.new("RGB", (w, h), wall)
    canvas = ImageDraw.Draw(picture)
    offset, kerb = rng.integers(0, w), h * rng.uniform(0.62, 0.72)
    for column in range(-1, 3):
        for row in range(3):
            left, top = column * 0.55 * w + offset * 0.55, (0.03 + 0.22 * row) * h
            window = [left, top, left + 0.3 * w, top + 0.13 * h]
            canvas.rectangle(window, fill=shade(wall, rng.uniform(0.6, 1.25)))
    canvas.rectangle([0, kerb, w, h], fill=ground)
    canvas.rectangle([0, kerb, w, kerb + 0.015 * h], fill=shade(ground, 1.25))
    for line in range(3):
        y = kerb + (0.06 + 0.1 * line) * h
        canvas.line([0, y, w, y + 0.02 * h], fill=shade(ground, 0.9), width=2)
    return picture


def occluder(canvas: ImageDraw.ImageDraw, rng: np.random.Generator, w: int, h: int) -> None:
    """A post in front of the person, or a low wall."""
    grey = int(rng.integers(50, 150))
    if rng.random() < 0.5:
        left = rng.uniform(0.1, 0.8) * w
        canvas.rectangle([left, 0, left + 0.1 * w, h], fill=(grey, grey, grey + 6))
    else:
        canvas.rectangle([0, rng.uniform(0.7, 0.82) * h, w, h], fill=(grey, grey - 6, grey - 14))


def plan() -> Plan:
    """The images of the dataset by name, to be drawn by `place`."""
    result = Plan([], [Split()], CAMERAS)
    split = result.splits[0]
    for pid in range(TRAIN + TEST + DISTRACTORS):
        is_test = TRAIN <= pid < TRAIN + TEST
        shots = TRAIN_SHOTS if pid < TRAIN else 1 + GALLERY_SHOTS if is_test else 1
        for camid in range(CAMERAS):
            for index in range(shots):
                rows = split.trainval if pid < TRAIN else split.gallery
                if is_test and index == 0:
                    rows = split.query
                rows.append(len(result.images))
                result.images.append((f"{pid:08d}_{camid:04d}_{index:08d}.jpg", pid, camid))
    return result


def place(wanted: dict[str, list[Path]]) -> None:
    for name, paths in tqdm(wanted.items(), "drawing", unit=" images", disable=None):
        picture = draw(*map(int, PurePath(name).stem.split("_")))
        for path in paths:
            picture.save(path, quality=88)
