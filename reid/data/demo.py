"""The demo dataset: pedestrians drawn from numbers, so that everything runs without a download.

An identity is clothing, shoes, hair, bag and build; identities come in groups that share a top, so colour alone
does not tell them apart. A camera is a viewpoint, a light with its own colour cast, blur, noise and a street. An
image is a moment of a walk, cropped by an imperfect detector. All from np.random.default_rng([.., pid, camera,
index]): the same bytes on every run with the same Pillow.
"""

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter
from tqdm import tqdm

TRAIN, TEST, DISTRACTORS, CAMERAS = 64, 32, 8, 4  # identities; Market-1501 has 751, 750, one class of distractors, 6
TRAIN_SHOTS, GALLERY_SHOTS = 4, 2  # images of an identity in a camera; a test identity has one query besides
ALIKE = 4  # identities of a group that share their top
CAST, SHIFT, OCCLUDED = 0.28, 0.05, 0.12  # strength of the colour casts, of the misaligned crops, share half hidden
W, H, FINER = 64, 128, 3  # pixels; drawn this many times finer

COLOURS = {  # what people wear, RGB
    "black": (38, 38, 44), "white": (226, 224, 218), "grey": (128, 130, 134), "red": (186, 44, 46),
    "orange": (226, 128, 44), "yellow": (224, 196, 62), "green": (56, 128, 74), "teal": (44, 136, 142),
    "blue": (50, 84, 168), "navy": (34, 46, 92), "purple": (116, 66, 140), "pink": (222, 136, 164),
    "brown": (112, 76, 50), "beige": (204, 180, 140),
}  # fmt: skip
TOPS = ("black", "white", "red", "blue", "green", "orange", "grey", "purple", "yellow", "teal", "pink", "brown")
BOTTOMS = ("black", "navy", "grey", "beige", "brown", "blue", "white", "green")
SHOES = ("black", "white", "brown", "red", "grey")
BAGS = ("black", "red", "brown", "blue", "green", "yellow")
HAIR = ((28, 24, 22), (66, 44, 30), (122, 84, 46), (196, 160, 92), (150, 146, 142))
SKIN = ((242, 208, 180), (222, 178, 142), (184, 134, 98), (128, 88, 62), (86, 58, 42))


class Camera(NamedTuple):
    """What a camera makes of a person."""

    turn: int  # 0 sees people from the front, 1 from the side, 2 from the back
    gains: tuple[float, float, float]  # of R, G, B, before CAST
    light: float
    blur: float  # pixels
    noise: float  # of 255
    wall: tuple[int, int, int]
    ground: tuple[int, int, int]


CAMERA = (
    Camera(0, (0.5, 0.0, -0.6), 1.05, 0.4, 4, (164, 156, 142), (138, 134, 130)),
    Camera(1, (-0.7, 0.0, 0.8), 0.82, 0.7, 7, (112, 128, 142), (96, 98, 104)),
    Camera(2, (-0.3, 0.5, -0.3), 0.95, 0.5, 5, (104, 132, 96), (158, 148, 128)),
    Camera(1, (0.9, -0.1, -0.9), 0.68, 0.9, 9, (150, 112, 92), (112, 100, 96)),
)


def identity(pid: int) -> dict[str, Any]:
    """What a person looks like, whatever the camera."""
    group, own = np.random.default_rng([7, pid // ALIKE]), np.random.default_rng([8, pid])

    def tint(names, rng) -> np.ndarray:
        return np.clip(np.array(COLOURS[rng.choice(names)]) + rng.integers(-14, 15, 3), 0, 255)

    top, trim = tint(TOPS, group), tint(TOPS, group)
    return {
        "top": top,
        "trim": trim,
        "pattern": group.choice(["plain", "plain", "stripes", "plaid", "logo", "halves"]),
        "sleeves": own.choice(["long", "short"]),
        "bottom": tint(BOTTOMS, own),
        "cut": own.choice(["trousers", "trousers", "trousers", "shorts", "skirt"]),
        "shoes": tint(SHOES, own),
        "hair": HAIR[own.integers(len(HAIR))],
        "hairdo": own.choice(["short", "short", "long", "bun", "cap"]),
        "cap": tint(TOPS, own),
        "skin": SKIN[own.integers(len(SKIN))],
        "bag": own.choice(["none", "none", "backpack", "shoulder", "hand"]),
        "bag_colour": tint(BAGS, own),
        "build": own.uniform(0.85, 1.25),
        "height": own.uniform(0.92, 1.04),
    }


def draw(pid: int, camid: int, index: int) -> Image.Image:
    """One image, 64 x 128."""
    who, camera = identity(pid), CAMERA[camid]
    rng = np.random.default_rng([9, pid, camid, index])
    w, h = W * FINER, H * FINER
    picture = street(camera, rng, w, h)
    canvas = ImageDraw.Draw(picture)
    tall = 0.86 * h * who["height"] * rng.uniform(0.93, 1.05)
    x, floor = w * (0.5 + rng.normal(0, SHIFT)), h * (0.965 + rng.normal(0, SHIFT / 2))
    canvas.ellipse([x - 0.3 * w, floor - 0.02 * h, x + 0.42 * w, floor + 0.02 * h], fill=shade(camera.ground, 0.7))
    person(picture, who, camera.turn, rng, x, floor - tall, tall)
    if rng.random() < OCCLUDED:
        occluder(canvas, rng, w, h)
    small = picture.resize((W, H), Image.Resampling.LANCZOS).filter(ImageFilter.GaussianBlur(camera.blur))
    gains = camera.light * rng.uniform(0.9, 1.1) * (1 + CAST * np.array(camera.gains))
    pixels = np.asarray(small, float) * gains + rng.normal(0, camera.noise, (H, W, 1))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def street(camera: Camera, rng: np.random.Generator, w: int, h: int) -> Image.Image:
    """Wall with windows, kerb, ground; the same place seen from a little elsewhere each time."""
    wall, ground = camera.wall, camera.ground
    picture = Image.new("RGB", (w, h), wall)
    canvas = ImageDraw.Draw(picture)
    offset, kerb = rng.integers(0, w), h * rng.uniform(0.62, 0.72)
    for column in range(-1, 3):
        for row in range(3):
            left, top = column * 0.55 * w + offset * 0.55, (0.03 + 0.22 * row) * h
            canvas.rectangle([left, top, left + 0.3 * w, top + 0.13 * h], fill=shade(wall, rng.uniform(0.6, 1.25)))
    canvas.rectangle([0, kerb, w, h], fill=ground)
    canvas.rectangle([0, kerb, w, kerb + 0.015 * h], fill=shade(ground, 1.25))
    for line in range(3):
        y = kerb + (0.06 + 0.1 * line) * h
        canvas.line([0, y, w, y + 0.02 * h], fill=shade(ground, 0.9), width=2)
    return picture


def person(picture: Image.Image, who: dict[str, Any], turn: int, rng, x: float, top: float, tall: float) -> None:
    """Draws a walking person whose head begins at (x, top), `tall` pixels high. turn: 0 front, 1 side, 2 back."""
    canvas = ImageDraw.Draw(picture)
    side = turn == 1
    facing = rng.choice([-1, 1]) if side else 1
    phase = rng.uniform(0, 2 * math.pi)
    stride = math.sin(phase) * (0.30 if side else 0.12)
    wide = tall * 0.118 * who["build"] * (0.72 if side else 1.0)
    shoulder, hip, knee, foot = (top + tall * part for part in (0.165, 0.49, 0.73, 0.965))
    thick = tall * 0.052 * who["build"]

    def limb(points, width, colour) -> None:
        canvas.line(points, fill=tuple(colour), width=int(width), joint="curve")
        for px, py in (points[0], points[-1]):
            canvas.ellipse([px - width / 2, py - width / 2, px + width / 2, py + width / 2], fill=tuple(colour))

    def leg(sign: int, light: float) -> None:
        spread = 0 if side else sign * wide * 0.5
        swing = sign * stride
        kx = x + spread + math.sin(swing) * (knee - hip) * facing
        bend = max(0.0, -swing) * 0.8
        fx = kx + (math.sin(swing - bend) * (foot - knee)) * facing
        bottom, skin = shade(who["bottom"], light), shade(who["skin"], light)
        limb([(x + spread * 0.8, hip), (kx, knee)], thick * 1.5, bottom if who["cut"] != "skirt" else skin)
        limb([(kx, knee), (fx, foot)], thick * 1.15, bottom if who["cut"] == "trousers" else skin)
        toe = facing * thick * 1.1 if side else 0
        box = (
            sorted([fx - thick * 0.75, fx + thick * 0.75 + toe])
            if toe >= 0
            else [fx - thick * 0.75 + toe, fx + thick * 0.75]
        )
        canvas.ellipse([box[0], foot - thick * 0.5, box[1], foot + thick * 0.6], fill=shade(who["shoes"], light))

    def arm(sign: int, light: float) -> None:
        swing = -sign * stride * 0.9
        sx = x + (0 if side else sign * wide * 0.98)
        ex = sx + (0 if side else sign * wide * 0.12) + math.sin(swing) * tall * 0.15 * facing
        hx, hy = ex + math.sin(swing + 0.25) * tall * 0.13 * (facing if side else 0), hip + tall * 0.015
        sleeve, skin = shade(who["top"], light), shade(who["skin"], light)
        limb([(sx, shoulder + thick * 0.5), (ex, (shoulder + hip) / 2)], thick, sleeve)
        limb([(ex, (shoulder + hip) / 2), (hx, hy)], thick * 0.85, sleeve if who["sleeves"] == "long" else skin)
        canvas.ellipse([hx - thick * 0.45, hy - thick * 0.3, hx + thick * 0.45, hy + thick * 0.7], fill=skin)
        if who["bag"] == "hand" and sign == 1:
            canvas.line([hx, hy, hx, hy + thick], fill=(60, 50, 44), width=2)
            panel(hx, thick, hy + thick, hy + thick * 3.2, 4, tuple(who["bag_colour"]))

    def panel(middle: float, half: float, y0: float, y1: float, radius: float, colour) -> None:
        canvas.rounded_rectangle([middle - half, y0, middle + half, y1], radius, fill=colour)

    bag = shade(who["bag_colour"], 1.0)
    arm(-1, 0.8)
    leg(-1, 0.82)
    leg(1, 1.0)
    if who["bag"] == "backpack" and side:
        panel(x - facing * wide * 1.25, wide * 0.7, shoulder, hip - tall * 0.06, wide * 0.4, bag)
    if who["cut"] == "skirt":
        waist, hem = hip - tall * 0.05, knee - tall * 0.03
        outline = [(x - wide * 0.75, waist), (x + wide * 0.75, waist), (x + wide * 1.15, hem), (x - wide * 1.15, hem)]
        canvas.polygon(outline, fill=shade(who["bottom"], 1.0))
    torso(picture, who, x, wide, shoulder, hip, tall, turn)
    if who["bag"] == "backpack" and turn == 2:
        panel(x, wide * 0.75, shoulder + tall * 0.02, hip - tall * 0.05, wide * 0.3, bag)
        panel(x, wide * 0.5, hip - tall * 0.15, hip - tall * 0.07, 3, shade(bag, 0.75))
    if who["bag"] == "backpack" and turn == 0:
        for s in (-wide, wide):
            strap = [x + s * 0.5, shoulder, x + s * 0.6, hip - tall * 0.1]
            canvas.line(strap, fill=bag, width=int(thick * 0.4))
    if who["bag"] == "shoulder":
        to = -wide if turn == 2 else wide
        canvas.line([x - to * 0.7, shoulder, x + to * 0.9, hip], fill=shade(bag, 0.8), width=int(thick * 0.35))
        panel(x + to * 0.95, wide * 0.5, hip - tall * 0.03, hip + tall * 0.09, 5, bag)
    arm(1, 1.0)
    head(canvas, who, turn, facing, x, top, tall)


def torso(
    picture: Image.Image, who, x: float, wide: float, shoulder: float, hip: float, tall: float, turn: int
) -> None:
    """The top with its pattern, lit from the left."""
    mask = Image.new("L", picture.size)
    neck, low = shoulder - tall * 0.02, shoulder + tall * 0.03
    left = [(x - wide * 0.6, neck), (x - wide, low), (x - wide * 0.82, hip)]
    right = [(2 * x - px, y) for px, y in reversed(left)]
    ImageDraw.Draw(mask).polygon(left + right, fill=255)
    cloth = Image.new("RGB", picture.size, tuple(int(c) for c in who["top"]))
    canvas, trim, step = ImageDraw.Draw(cloth), shade(who["trim"], 1.0), tall * 0.05
    rows = [shoulder + i * step for i in range(-1, 9)]
    if who["pattern"] in ("stripes", "plaid"):
        for y in rows:
            canvas.rectangle([0, y, picture.width, y + step * 0.4], fill=trim)
    if who["pattern"] == "plaid":
        for i in range(-4, 5):
            canvas.rectangle([x + i * step, 0, x + i * step + step * 0.3, picture.height], fill=shade(who["trim"], 0.8))
    if who["pattern"] == "halves":
        canvas.rectangle([0, (shoulder + hip) / 2, picture.width, hip], fill=trim)
    if who["pattern"] == "logo" and turn != 1:
        canvas.ellipse([x - wide * 0.4, shoulder + tall * 0.07, x + wide * 0.4, shoulder + tall * 0.15], fill=trim)
    columns = np.linspace(1.12, 0.78, picture.width)[None, :, None]  # light from the left
    lit = (np.asarray(cloth, float) * columns).clip(0, 255).astype(np.uint8)
    picture.paste(Image.fromarray(lit), mask=mask)


def head(canvas: ImageDraw.ImageDraw, who, turn: int, facing: int, x: float, top: float, tall: float) -> None:
    rx, ry, y = tall * 0.052, tall * 0.068, top + tall * 0.078
    hair, skin = shade(who["hair"], 1.0), shade(who["skin"], 1.0)
    canvas.rectangle([x - rx * 0.45, y, x + rx * 0.45, top + tall * 0.165], fill=shade(skin, 0.85))
    if who["hairdo"] == "long":
        canvas.rounded_rectangle([x - rx * 1.2, y - ry, x + rx * 1.2, top + tall * 0.2], rx, fill=hair)
    canvas.ellipse([x - rx, y - ry, x + rx, y + ry], fill=hair if turn == 2 else skin)
    if who["hairdo"] == "bun":
        bx = x - (facing * rx * 1.1 if turn == 1 else 0)
        canvas.ellipse([bx - rx * 0.6, y - ry * 1.5, bx + rx * 0.6, y - ry * 0.6], fill=hair)
    if who["hairdo"] == "cap":
        cap = shade(who["cap"], 1.0)
        canvas.pieslice([x - rx * 1.1, y - ry * 1.15, x + rx * 1.1, y + ry * 0.75], 180, 360, fill=cap)
        if turn == 1:
            canvas.rectangle(sorted_box(x, x + facing * rx * 1.9, y - ry * 0.32, y - ry * 0.14), fill=cap)
    elif turn == 1:
        canvas.pieslice(
            [x - rx * 1.1, y - ry * 1.1, x + rx * 1.1, y + ry], *((90, 300) if facing == 1 else (240, 450)), fill=hair
        )
    elif turn == 0:
        canvas.pieslice([x - rx * 1.08, y - ry * 1.1, x + rx * 1.08, y + ry * 0.7], 180, 360, fill=hair)


def sorted_box(x0: float, x1: float, y0: float, y1: float) -> list[float]:
    return [min(x0, x1), y0, max(x0, x1), y1]


def occluder(canvas: ImageDraw.ImageDraw, rng: np.random.Generator, w: int, h: int) -> None:
    """A post before the person, or a low wall."""
    grey = int(rng.integers(50, 150))
    if rng.random() < 0.5:
        left = rng.uniform(0.1, 0.8) * w
        canvas.rectangle([left, 0, left + 0.1 * w, h], fill=(grey, grey, grey + 6))
    else:
        canvas.rectangle([0, rng.uniform(0.7, 0.82) * h, w, h], fill=(grey, grey - 6, grey - 14))


def shade(colour, light: float) -> tuple[int, int, int]:
    return tuple(int(min(255, max(0, c * light))) for c in colour)


def render_demo(folder: Path) -> None:
    """Writes images/, test.json, splits.json and meta.json into `folder`, which is made or empty."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    identities: list[list[list[str]]] = []
    test: dict[str, list] = {"query": [], "gallery": []}
    for pid in tqdm(range(TRAIN + TEST + DISTRACTORS), "drawing", unit=" people", disable=None):
        identities.append([[] for _ in range(CAMERAS)])
        shots = TRAIN_SHOTS if pid < TRAIN else 1 + GALLERY_SHOTS if pid < TRAIN + TEST else 1
        for camid in range(CAMERAS):
            for index in range(shots):
                name = f"{pid:08d}_{camid:04d}_{index:08d}.jpg"
                draw(pid, camid, index).save(folder / "images" / name, quality=88)
                identities[pid][camid].append(name)
                if pid >= TRAIN:
                    asked = index == 0 and pid < TRAIN + TEST
                    test["query" if asked else "gallery"].append([name, pid, camid])
    people, others = list(range(TRAIN, TRAIN + TEST)), list(range(TRAIN + TEST, TRAIN + TEST + DISTRACTORS))
    splits = [{"trainval": list(range(TRAIN)), "query": people, "gallery": people + others}]
    meta = {"name": "demo", "shot": "multiple", "num_cameras": CAMERAS, "identities": identities, "distractors": others}
    for name, content in (("test.json", [test]), ("splits.json", splits), ("meta.json", meta)):
        (folder / name).write_text(json.dumps(content))
