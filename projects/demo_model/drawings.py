"""Draw captioned pictures: a count of one shape, in a colour, a size, a place, on a background.

Everything follows from a scene and a seed, so the pictures need no files. The scenes are split
once into those to train on and those to hold out; a held-out combination is never trained on.
"""

from __future__ import annotations

import colorsys
import io
import itertools
import math
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageDraw

COUNTS = {"a": 1, "two": 2, "three": 3}
SIZES = {"small": 0.095, "large": 0.135}
COLOURS = {
    "red": (0.995, 0.85, 0.85),
    "orange": (0.075, 0.95, 0.97),
    "yellow": (0.145, 0.85, 0.98),
    "green": (0.36, 0.80, 0.62),
    "blue": (0.61, 0.80, 0.85),
    "purple": (0.76, 0.65, 0.65),
    "pink": (0.91, 0.48, 1.00),
    "black": (0.60, 0.15, 0.14),
}
SHAPES = ("circle", "square", "triangle", "star", "heart", "cross", "ring", "moon")
PLACES = ("at the top", "at the bottom", "on the left", "on the right", "in the middle")
BACKGROUNDS = {
    "white": (250, 250, 250),
    "grey": (176, 180, 186),
    "beige": (238, 218, 180),
    "mint": (186, 232, 212),
}
HELD_OUT_SCENES = 1200
SPLIT_SEED = 20
SUPERSAMPLING = 4
SIDES = (160, 240)

Point = tuple[float, float]
Contour = list[Point]


@dataclass(frozen=True)
class Scene:
    """Say what is in a picture: the words of its caption."""

    count: str
    size: str
    colour: str
    shape: str
    place: str
    background: str

    @property
    def caption(self) -> str:
        """Say the scene in plain English."""
        noun = self.shape if COUNTS[self.count] == 1 else _plural(self.shape)
        group = f"{self.count} {self.size} {self.colour} {noun}"
        return f"{group} {self.place} on a {self.background} background"


@dataclass(frozen=True)
class Drawing:
    """Hold one picture together with the scene it shows."""

    scene: Scene
    picture: Image.Image

    @property
    def caption(self) -> str:
        """Say the scene in plain English."""
        return self.scene.caption

    def png(self) -> bytes:
        """Encode the picture as PNG."""
        return self._encoded("PNG")

    def jpeg(self) -> bytes:
        """Encode the picture as JPEG, 4:4:4, quality 95."""
        return self._encoded("JPEG", quality=95, subsampling=0)

    def _encoded(self, kind: str, **options: int) -> bytes:
        buffer = io.BytesIO()
        self.picture.save(buffer, kind, **options)
        return buffer.getvalue()


def held_out(n: int = 200, seed: int = 0) -> list[Drawing]:
    """Draw n pictures of distinct scenes that are absent from training.

    Args:
        n: How many pictures, at most HELD_OUT_SCENES.
        seed: Chooses the scenes and how each is drawn.

    Returns:
        The drawings, in an order that the seed decides.
    """
    scenes = held_out_scenes()
    if not 0 <= n <= len(scenes):
        raise ValueError(f"n must be from 0 to {len(scenes)}, not {n}")
    order = np.random.default_rng(seed).permutation(len(scenes))[:n]
    return [draw(scenes[i], seed) for i in order]


def training(copies: int = 1, seed: int = 0, stride: int = 1) -> Iterator[Drawing]:
    """Draw the training scenes, and then all of them again, copies times in total.

    Args:
        copies: How many different pictures of each scene.
        seed: Decides how the scenes are drawn; each copy takes a seed of its own.
        stride: Draw every stride-th scene only.

    Yields:
        One drawing after another, in the order of training_scenes.
    """
    for copy in range(copies):
        for scene in training_scenes()[::stride]:
            yield draw(scene, seed * 1000 + copy)


def training_scenes() -> tuple[Scene, ...]:
    """List the scenes to train on."""
    return _split()[0]


def held_out_scenes() -> tuple[Scene, ...]:
    """List the scenes that training never shows."""
    return _split()[1]


def draw(scene: Scene, seed: int) -> Drawing:
    """Draw a scene; another seed gives another picture of the same scene.

    All of the content lies inside the centre square, which is what an image processor that
    resizes the shortest edge and crops the centre will keep.

    Args:
        scene: What to draw.
        seed: Decides the picture's sides and the jitter of place, size, tilt, hue and background.

    Returns:
        The drawing.
    """
    rng = np.random.default_rng([seed, _numbers()[scene]])
    width, height = (int(side) for side in rng.integers(SIDES[0], SIDES[1] + 1, size=2))
    picture = _background(BACKGROUNDS[scene.background], width, height, rng)
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    fill = _jittered(COLOURS[scene.colour], rng)
    edge = tuple(round(channel * 0.72) for channel in fill)
    radius = SIZES[scene.size] * side * rng.uniform(0.97, 1.03)
    drift = rng.uniform(-0.018, 0.018, size=2)
    for x, y in _spots(COUNTS[scene.count], scene.place):
        stray = drift + rng.uniform(-0.008, 0.008, size=2)
        tilt = math.radians(rng.uniform(-7, 7))
        outside, inside = _masks(scene.shape, radius, tilt)
        corner = (
            round(left + (x + stray[0]) * side - outside.width / 2),
            round(top + (y + stray[1]) * side - outside.height / 2),
        )
        shift = max(1, round(side * 0.012))
        shade = outside.point([round(level * 0.16) for level in range(256)])
        picture.paste((20, 20, 40), (corner[0] + shift, corner[1] + shift), shade)
        picture.paste(edge, corner, outside)
        picture.paste(fill, corner, inside)
    return Drawing(scene, picture)


@cache
def _numbers() -> dict[Scene, int]:
    parts = itertools.product(COUNTS, SIZES, COLOURS, SHAPES, PLACES, BACKGROUNDS)
    return {Scene(*part): number for number, part in enumerate(parts)}


@cache
def _split() -> tuple[tuple[Scene, ...], tuple[Scene, ...]]:
    scenes = list(_numbers())
    order = np.random.default_rng(SPLIT_SEED).permutation(len(scenes))
    shuffled = [scenes[i] for i in order]
    held = sorted(shuffled[:HELD_OUT_SCENES], key=astuple)
    return tuple(sorted(shuffled[HELD_OUT_SCENES:], key=astuple)), tuple(held)


def _plural(shape: str) -> str:
    return f"{shape}es" if shape.endswith("s") else f"{shape}s"


def _jittered(colour: tuple[float, float, float], rng: np.random.Generator) -> tuple[int, int, int]:
    hue, saturation, value = colour
    hue = (hue + rng.uniform(-0.01, 0.01)) % 1
    saturation = min(1.0, saturation + rng.uniform(-0.05, 0.05))
    value = min(1.0, value + rng.uniform(-0.04, 0.04))
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(red * 255), round(green * 255), round(blue * 255)


def _background(
    colour: tuple[int, int, int], width: int, height: int, rng: np.random.Generator
) -> Image.Image:
    """Fill a picture with a colour, clouded a little by smooth noise."""
    cloud = np.array(colour) + rng.uniform(-3, 3, size=3) + rng.normal(0, 3, size=(12, 12, 1))
    small = Image.fromarray(np.clip(np.rint(cloud), 0, 255).astype(np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC)


def _spots(count: int, place: str) -> list[Point]:
    """Place the members of a group in the unit square."""
    along = {1: (0.5,), 2: (0.32, 0.68), 3: (0.18, 0.5, 0.82)}[count]
    if place == "in the middle":
        if count == 3:
            return [(0.5, 0.33), (0.32, 0.66), (0.68, 0.66)]
        return [(at, 0.5) for at in along]
    if place in ("at the top", "at the bottom"):
        return [(at, 0.2 if place == "at the top" else 0.8) for at in along]
    return [(0.2 if place == "on the left" else 0.8, at) for at in along]


def _masks(shape: str, radius: float, tilt: float) -> tuple[Image.Image, Image.Image]:
    """Draw a shape's mask, and the mask less a rim, antialiased."""
    scale = radius * SUPERSAMPLING
    half = math.ceil(radius * 1.15) + 1
    middle = half * SUPERSAMPLING
    cos, sin = math.cos(tilt) * scale, math.sin(tilt) * scale
    contours = [
        [(middle + x * cos - y * sin, middle + x * sin + y * cos) for x, y in contour]
        for contour in _contours(shape)
    ]
    outside = Image.new("L", (2 * middle, 2 * middle))
    pen = ImageDraw.Draw(outside)
    for number, contour in enumerate(contours):
        pen.polygon(contour, fill=0 if number else 255)
    inside = outside.copy()
    pen = ImageDraw.Draw(inside)
    for contour in contours:
        pen.line([*contour, contour[0], contour[1]], fill=0, width=round(scale * 0.18))
    return outside.reduce(SUPERSAMPLING), inside.reduce(SUPERSAMPLING)


@cache
def _contours(shape: str) -> list[Contour]:
    """Outline a shape about the origin, y downwards; contours after the first are holes."""
    if shape == "circle":
        return [_arc(1.0, 0, 360)]
    if shape == "ring":
        return [_arc(1.0, 0, 360), _arc(0.52, 0, 360)]
    if shape == "square":
        return [[(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)]]
    if shape == "triangle":
        return [[(0.0, -1.0), (1.05, 0.82), (-1.05, 0.82)]]
    if shape == "star":
        tips = [(1.1 if k % 2 == 0 else 0.42, math.radians(36 * k - 90)) for k in range(10)]
        return [[(r * math.cos(a), r * math.sin(a) + 0.06) for r, a in tips]]
    if shape == "cross":
        arm, end = 0.3, 1.02
        return [
            [
                *[(-arm, -end), (arm, -end), (arm, -arm), (end, -arm), (end, arm), (arm, arm)],
                *[(arm, end), (-arm, end), (-arm, arm), (-end, arm), (-end, -arm), (-arm, -arm)],
            ]
        ]
    if shape == "moon":
        return [_crescent(shift=0.42, bite=0.86)]
    if shape == "heart":
        turns = [math.radians(6 * k) for k in range(60)]
        return [[(math.sin(t) ** 3 * 1.05, _heart_height(t)) for t in turns]]
    raise ValueError(f"no such shape: {shape}")


def _arc(radius: float, start: float, end: float) -> Contour:
    degrees = np.linspace(start, end, 48, endpoint=end - start != 360)
    return [
        (radius * math.cos(math.radians(d)), radius * math.sin(math.radians(d))) for d in degrees
    ]


def _crescent(shift: float, bite: float) -> Contour:
    """Outline the unit circle less a circle of radius bite whose centre is shifted right."""
    tip = (1 + shift**2 - bite**2) / (2 * shift)
    outer = math.degrees(math.acos(tip))
    inner = math.degrees(math.acos((tip - shift) / bite))
    hollow = [(x + shift, y) for x, y in _arc(bite, inner, 360 - inner)]
    return [*_arc(1.0, outer, 360 - outer), *reversed(hollow)]


def _heart_height(t: float) -> float:
    curve = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
    return -(curve + 2.5) / 15.5
