"""A drawn pedestrian of the demo dataset."""

import math
from types import SimpleNamespace

import numpy as np
from PIL import Image, ImageDraw

FRONT, SIDE, BACK = 0, 1, 2  # how a camera sees a person
Point = tuple[float, float]
Colour = tuple[int, ...]  # RGB


def shade(colour, light: float) -> Colour:
    return tuple(int(min(255, max(0, c * light))) for c in colour)


class Pedestrian:
    """A walking person, `tall` pixels high, with the top of the head at (x, top).

    look: as demo.identity returns it.
    """

    def __init__(self, picture: Image.Image, look: SimpleNamespace, turn: int, rng, x: float, top: float, tall: float):
        self.picture, self.look, self.turn = picture, look, turn
        self.canvas = ImageDraw.Draw(picture)
        self.x, self.top, self.tall = x, top, tall
        self.side = turn == SIDE
        self.facing = rng.choice([-1, 1]) if self.side else 1
        self.stride = math.sin(rng.uniform(0, 2 * math.pi)) * (0.30 if self.side else 0.12)
        self.wide = tall * 0.118 * look.build * (0.72 if self.side else 1.0)
        self.thick = tall * 0.052 * look.build
        heights = (top + tall * part for part in (0.165, 0.49, 0.73, 0.965))
        self.shoulder, self.hip, self.knee, self.foot = heights

    def draw(self) -> None:
        """Draws from the far side to the near side."""
        bag = self.look.bag
        self.arm(-1, 0.8)
        self.leg(-1, 0.82)
        self.leg(1, 1.0)
        if bag == "backpack" and self.side:
            self.backpack()
        if self.look.cut == "skirt":
            self.skirt()
        self.torso()
        if bag == "backpack" and not self.side:
            self.backpack()
        if bag == "shoulder":
            self.shoulder_bag()
        self.arm(1, 1.0)
        self.head()

    def limb(self, start: Point, end: Point, width: float, colour: Colour) -> None:
        """A line with round ends."""
        self.canvas.line([start, end], fill=colour, width=int(width), joint="curve")
        r = width / 2
        for x, y in (start, end):
            self.canvas.ellipse([x - r, y - r, x + r, y + r], fill=colour)

    def panel(self, x: float, half: float, y0: float, y1: float, radius: float, light: float = 1.0) -> None:
        """A part of a bag, with rounded corners, around x."""
        colour = shade(shade(self.look.bag_colour, 1.0), light)
        self.canvas.rounded_rectangle([x - half, y0, x + half, y1], radius, fill=colour)

    def leg(self, sign: int, light: float) -> None:
        look, x, thick, facing = self.look, self.x, self.thick, self.facing
        spread = 0 if self.side else sign * self.wide * 0.5
        swing = sign * self.stride
        bend = max(0.0, -swing) * 0.8
        knee_x = x + spread + math.sin(swing) * (self.knee - self.hip) * facing
        foot_x = knee_x + (math.sin(swing - bend) * (self.foot - self.knee)) * facing
        bottom, skin = shade(look.bottom, light), shade(look.skin, light)
        hip, knee, foot = (x + spread * 0.8, self.hip), (knee_x, self.knee), (foot_x, self.foot)
        self.limb(hip, knee, thick * 1.5, skin if look.cut == "skirt" else bottom)
        self.limb(knee, foot, thick * 1.15, bottom if look.cut == "trousers" else skin)
        toe = facing * thick * 1.1 if self.side else 0
        left, right = foot_x - thick * 0.75 + min(toe, 0), foot_x + thick * 0.75 + max(toe, 0)
        shoe = [left, self.foot - thick * 0.5, right, self.foot + thick * 0.6]
        self.canvas.ellipse(shoe, fill=shade(look.shoes, light))

    def arm(self, sign: int, light: float) -> None:
        look, tall, thick, facing = self.look, self.tall, self.thick, self.facing
        wide = 0 if self.side else sign * self.wide
        swing = -sign * self.stride * 0.9
        shoulder_x = self.x + wide * 0.98
        elbow_x = shoulder_x + wide * 0.12 + math.sin(swing) * tall * 0.15 * facing
        x = elbow_x + math.sin(swing + 0.25) * tall * 0.13 * (facing if self.side else 0)
        y = self.hip + tall * 0.015
        sleeve, skin = shade(look.top, light), shade(look.skin, light)
        elbow = (elbow_x, (self.shoulder + self.hip) / 2)
        self.limb((shoulder_x, self.shoulder + thick * 0.5), elbow, thick, sleeve)
        self.limb(elbow, (x, y), thick * 0.85, sleeve if look.sleeves == "long" else skin)
        hand = [x - thick * 0.45, y - thick * 0.3, x + thick * 0.45, y + thick * 0.7]
        self.canvas.ellipse(hand, fill=skin)
        if look.bag == "hand" and sign == 1:
            self.canvas.line([x, y, x, y + thick], fill=(60, 50, 44), width=2)
            self.panel(x, thick, y + thick, y + thick * 3.2, 4)

    def skirt(self) -> None:
        x, wide = self.x, self.wide
        waist, hem = self.hip - self.tall * 0.05, self.knee - self.tall * 0.03
        outline = [(x - wide * 0.75, waist), (x + wide * 0.75, waist)]
        outline += [(x + wide * 1.15, hem), (x - wide * 1.15, hem)]
        self.canvas.polygon(outline, fill=shade(self.look.bottom, 1.0))

    def backpack(self) -> None:
        """The bag from the side or the back; its straps from the front."""
        x, wide, tall, shoulder, hip = self.x, self.wide, self.tall, self.shoulder, self.hip
        if self.turn == SIDE:
            self.panel(x - self.facing * wide * 1.25, wide * 0.7, shoulder, hip - tall * 0.06, wide * 0.4)
        elif self.turn == BACK:
            self.panel(x, wide * 0.75, shoulder + tall * 0.02, hip - tall * 0.05, wide * 0.3)
            self.panel(x, wide * 0.5, hip - tall * 0.15, hip - tall * 0.07, 3, light=0.75)
        else:
            for s in (-wide, wide):
                strap = [x + s * 0.5, shoulder, x + s * 0.6, hip - tall * 0.1]
                self.canvas.line(strap, fill=shade(self.look.bag_colour, 1.0), width=int(self.thick * 0.4))

    def shoulder_bag(self) -> None:
        x, tall, hip = self.x, self.tall, self.hip
        to = -self.wide if self.turn == BACK else self.wide
        strap = [x - to * 0.7, self.shoulder, x + to * 0.9, hip]
        colour = shade(shade(self.look.bag_colour, 1.0), 0.8)
        self.canvas.line(strap, fill=colour, width=int(self.thick * 0.35))
        self.panel(x + to * 0.95, self.wide * 0.5, hip - tall * 0.03, hip + tall * 0.09, 5)

    def torso(self) -> None:
        """The top, lit from the left."""
        x, wide, tall, shoulder, hip = self.x, self.wide, self.tall, self.shoulder, self.hip
        neck, low = shoulder - tall * 0.02, shoulder + tall * 0.03
        left = [(x - wide * 0.6, neck), (x - wide, low), (x - wide * 0.82, hip)]
        right = [(2 * x - px, y) for px, y in reversed(left)]
        mask = Image.new("L", self.picture.size)
        ImageDraw.Draw(mask).polygon(left + right, fill=255)
        light = np.linspace(1.12, 0.78, self.picture.width)[None, :, None]
        lit = (np.asarray(self.cloth(), float) * light).clip(0, 255).astype(np.uint8)
        self.picture.paste(Image.fromarray(lit), mask=mask)

    def cloth(self) -> Image.Image:
        """The pattern of the top, on a picture of its own."""
        x, tall, shoulder = self.x, self.tall, self.shoulder
        pattern, trim, step = self.look.pattern, shade(self.look.trim, 1.0), tall * 0.05
        cloth = Image.new("RGB", self.picture.size, shade(self.look.top, 1.0))
        canvas, (width, height) = ImageDraw.Draw(cloth), self.picture.size
        if pattern in ("stripes", "plaid"):
            for i in range(-1, 9):
                y = shoulder + i * step
                canvas.rectangle([0, y, width, y + step * 0.4], fill=trim)
        if pattern == "plaid":
            for i in range(-4, 5):
                line = [x + i * step, 0, x + i * step + step * 0.3, height]
                canvas.rectangle(line, fill=shade(self.look.trim, 0.8))
        if pattern == "halves":
            canvas.rectangle([0, (shoulder + self.hip) / 2, width, self.hip], fill=trim)
        if pattern == "logo" and not self.side:
            half, y0, y1 = self.wide * 0.4, shoulder + tall * 0.07, shoulder + tall * 0.15
            canvas.ellipse([x - half, y0, x + half, y1], fill=trim)
        return cloth

    def head(self) -> None:
        look, canvas, x, tall, facing = self.look, self.canvas, self.x, self.tall, self.facing
        rx, ry, y = tall * 0.052, tall * 0.068, self.top + tall * 0.078
        hair, skin = shade(look.hair, 1.0), shade(look.skin, 1.0)

        def box(wide: float, above: float, below: float) -> list[float]:
            return [x - rx * wide, y - ry * above, x + rx * wide, y + ry * below]

        neck = [x - rx * 0.45, y, x + rx * 0.45, self.top + tall * 0.165]
        canvas.rectangle(neck, fill=shade(skin, 0.85))
        if look.hairdo == "long":
            long = [x - rx * 1.2, y - ry, x + rx * 1.2, self.top + tall * 0.2]
            canvas.rounded_rectangle(long, rx, fill=hair)
        canvas.ellipse(box(1, 1, 1), fill=hair if self.turn == BACK else skin)
        if look.hairdo == "bun":
            bun = x - (facing * rx * 1.1 if self.side else 0)
            canvas.ellipse([bun - rx * 0.6, y - ry * 1.5, bun + rx * 0.6, y - ry * 0.6], fill=hair)
        if look.hairdo == "cap":
            cap = shade(look.cap, 1.0)
            canvas.pieslice(box(1.1, 1.15, 0.75), 180, 360, fill=cap)
            if self.side:
                left, right = sorted((x, x + facing * rx * 1.9))
                canvas.rectangle([left, y - ry * 0.32, right, y - ry * 0.14], fill=cap)
        elif self.side:
            start, end = (90, 300) if facing == 1 else (240, 450)
            canvas.pieslice(box(1.1, 1.1, 1), start, end, fill=hair)
        elif self.turn == FRONT:
            canvas.pieslice(box(1.08, 1.1, 0.7), 180, 360, fill=hair)
