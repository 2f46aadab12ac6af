"""A machined aluminium flange on a plain table: an object smaller than its frame."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

import cv2
import numpy as np

from offnominal.datasets.looks.camera import SCALE, Floats, blur, haze, letter, soft_noise, stroke

__all__ = ["DAMAGES", "SHAPE", "Scene", "draw", "render", "silhouette"]

SHAPE = (320, 400)
HALF = (116.0, 82.0)  # half width and half height of the plate, in pixels of the picture
BOLTS = tuple((x, y) for x in (-90.0, 90.0) for y in (-56.0, 56.0))
CANVAS = (2 * 100 * SCALE, 2 * 136 * SCALE)  # the part lies level on this before it is placed


@dataclass(frozen=True)
class Scene:
    """A part, where it lies and how it is lit; arrays are CANVAS in size but for `table`."""

    turn: float  # degrees
    shift: tuple[float, float]  # from the frame's centre (x, y) in pixels
    light: tuple[float, float]  # unit vector (x, y) towards the light in the picture's plane
    brushed: Floats  # relative brightness of the machining marks, straight
    lathe: Floats  # and round
    table: Floats  # RGB, of the frame's size at SCALE
    height: Floats  # in pixels of the canvas; the slopes make the shading
    cover: Floats  # 1 where there is metal, 0 where the table shows
    paint: Floats | float = 0.0  # a colour over the metal, RGB
    paint_cover: Floats | float = 0.0  # and how much it hides, with one channel


@lru_cache(maxsize=1)
def _grid() -> tuple[Floats, Floats]:
    """Coordinates of the canvas in pixels of the picture, from the part's centre."""
    tall, wide = CANVAS
    y, x = np.mgrid[0:tall, 0:wide].astype(np.float32)
    return (x + 0.5 - wide / 2) / SCALE, (y + 0.5 - tall / 2) / SCALE


def _ramp(distance: Floats, width: float) -> Floats:
    """0 outside (distance <= 0), 1 from `width` inwards, with a soft shoulder."""
    t = np.clip(distance / width, 0, 1)
    return np.asarray(t * t * (3 - 2 * t))


@lru_cache(maxsize=4)
def _solid(missing: int | None = None) -> tuple[Floats, Floats]:
    """Height and cover of the part, optionally with one bolt hole not drilled."""
    x, y = _grid()
    corner = 22.0
    qx, qy = np.abs(x) - HALF[0] + corner, np.abs(y) - HALF[1] + corner
    outside = np.hypot(np.maximum(qx, 0), np.maximum(qy, 0))
    edge = corner - outside - np.minimum(np.maximum(qx, qy), 0)
    radius = np.hypot(x, y)
    height = 6 * _ramp(edge, 5.0) + 12 * _ramp(58 - radius, 5.0)
    height += 5 * _ramp(radius - 38, 3.0) * (radius < 50) - 5 * (radius < 50)
    height -= 5 * _ramp(30 - radius, 4.0)
    cover = np.clip(edge * SCALE + 0.5, 0, 1) * np.clip((radius - 26) * SCALE + 0.5, 0, 1)
    for number, (bolt_x, bolt_y) in enumerate(BOLTS):
        if number == missing:
            continue
        distance = np.hypot(x - bolt_x, y - bolt_y)
        height -= 6 * _ramp(15.5 - distance, 6.0)
        cover *= np.clip((distance - 9) * SCALE + 0.5, 0, 1)
    serial = np.zeros(CANVAS, np.uint8)
    letter(serial, "A7-204", (CANVAS[1] / 2, (CANVAS[0] / 2) + 70 * SCALE), 9 * SCALE)
    height -= 1.5 * blur(serial.astype(np.float32) / 255, 0.8)
    return height.astype(np.float32), cover.astype(np.float32)


def draw(rng: np.random.Generator) -> Scene:
    """Draw a good part."""
    tall, wide = SHAPE[0] * SCALE, SHAPE[1] * SCALE
    height, cover = _solid()
    x, y = _grid()
    radius = np.hypot(x, y) * SCALE
    rings = rng.standard_normal(int(radius.max()) + 2, np.float32)[radius.astype(np.intp)]
    marks = soft_noise(rng, CANVAS, (1.6, 90)) + 0.6 * soft_noise(rng, CANVAS, (1.2, 30))
    marks = marks * (1 + 0.25 * soft_noise(rng, CANVAS, 60)) + 0.8 * soft_noise(rng, CANVAS, 150)
    table = np.array([0.225, 0.245, 0.275], np.float32) * np.ones((tall, wide, 1), np.float32)
    speckle = soft_noise(rng, (tall, wide), 2.5) + 0.8 * soft_noise(rng, (tall, wide), 7)
    table *= 1 + 0.016 * speckle[..., None] + 0.02 * soft_noise(rng, (tall, wide), 140)[..., None]
    angle = math.radians(-128 + rng.uniform(-7, 7))
    return Scene(
        turn=float(rng.uniform(-6, 6)),
        shift=(float(rng.uniform(-9, 9)), float(rng.uniform(-8, 8))),
        light=(math.cos(angle), math.sin(angle)),
        brushed=marks.astype(np.float32),
        lathe=rings.astype(np.float32),
        table=table,
        height=height,
        cover=cover,
    )


def _place(scene: Scene, image: Floats) -> Floats:
    """Lay what is drawn on the canvas into the frame, both at SCALE."""
    matrix = cv2.getRotationMatrix2D((CANVAS[1] / 2, CANVAS[0] / 2), scene.turn, 1)
    matrix[0, 2] += (SHAPE[1] / 2 + scene.shift[0]) * SCALE - CANVAS[1] / 2
    matrix[1, 2] += (SHAPE[0] / 2 + scene.shift[1]) * SCALE - CANVAS[0] / 2
    size = (SHAPE[1] * SCALE, SHAPE[0] * SCALE)
    return np.asarray(cv2.warpAffine(image, matrix.astype(np.float32), size), np.float32)


def silhouette(scene: Scene) -> Floats:
    """How much of each pixel of the frame at SCALE is the object; the holes show the table."""
    return _place(scene, scene.cover)


def render(scene: Scene) -> Floats:
    """Shade the part, lay it on the table with its shadow: RGB in [0, 1] at SCALE."""
    cos, sin = math.cos(math.radians(scene.turn)), math.sin(math.radians(scene.turn))
    # The canvas turns under a fixed lamp, so the lamp turns the other way over the canvas.
    lamp_x = scene.light[0] * cos - scene.light[1] * sin
    lamp_y = scene.light[0] * sin + scene.light[1] * cos
    slope_x = cv2.Sobel(scene.height, cv2.CV_32F, 1, 0, scale=0.125)
    slope_y = cv2.Sobel(scene.height, cv2.CV_32F, 0, 1, scale=0.125)
    steep = 1 / np.sqrt(1 + slope_x * slope_x + slope_y * slope_y)
    facing = -(slope_x * lamp_x + slope_y * lamp_y) * steep
    x, y = _grid()
    radius = np.hypot(x, y)
    # Concentric marks reflect the lamp where they run across its direction: a bow tie.
    along = (x * lamp_x + y * lamp_y) / np.maximum(radius, 1)
    turned = (radius < 54) & (radius > 26)
    bow = 0.60 + 0.26 * (along**2) ** 2 - 0.10 * (1 - along**2) + 0.03 * scene.lathe
    flat = 0.60 + 0.0006 * (x * lamp_x + y * lamp_y) + 0.020 * scene.brushed
    tone = np.where(turned, bow, flat) + 0.36 * facing + 0.5 * np.maximum(facing, 0) ** 3
    tone -= 0.10 * (1 - steep)
    # Corners between the plate and the boss receive less light.
    hollow = haze(scene.height, 5.0 * SCALE / 2) - scene.height
    tone *= 1 - 0.045 * np.clip(hollow, 0, 4)
    metal = tone[..., None] * np.array([0.985, 1.0, 1.02], np.float32)
    shaded_paint = scene.paint * (0.55 + 0.75 * tone[..., None])
    metal = metal + scene.paint_cover * (shaded_paint - metal)

    cover = silhouette(scene)
    tall, wide = cover.shape
    throw = [(-lamp * 7 * SCALE) for lamp in scene.light]
    shift = np.array([[1, 0, throw[0]], [0, 1, throw[1]]], np.float32)
    shadow = haze(cv2.warpAffine(cover, shift, (wide, tall)), 5.0 * SCALE)
    contact = haze(cover, 2.2 * SCALE)
    table = scene.table * (1 - 0.46 * shadow - 0.42 * contact)[..., None]
    placed = _place(scene, metal.astype(np.float32))
    return np.clip(table + cover[..., None] * (placed - table), 0, 1)


def _on_plate(rng: np.random.Generator) -> tuple[float, float]:
    """A spot (x, y) in pixels of the picture on the flat of the plate, clear of the holes."""
    while True:
        x, y = rng.uniform(-HALF[0] + 14, HALF[0] - 14), rng.uniform(-HALF[1] + 14, HALF[1] - 14)
        clear = min(np.hypot(x - bolt_x, y - bolt_y) for bolt_x, bolt_y in BOLTS) > 22
        if clear and np.hypot(x, y) > 62:
            return float(x), float(y)


def _canvas_points(xy: Floats) -> Floats:
    return (xy * SCALE + (CANVAS[1] / 2, CANVAS[0] / 2)).astype(np.float32)


def _scratch(scene: Scene, rng: np.random.Generator) -> Scene:
    x, y = _on_plate(rng)
    length, angle, bend = rng.uniform(24, 130), rng.uniform(0.35, 2.8), rng.uniform(-0.7, 0.7)
    t = np.linspace(-0.5, 0.5, 24)
    heading = angle + bend * t
    steps = np.stack([np.cos(heading), np.sin(heading)], -1) * length / len(t)
    path = _canvas_points(np.cumsum(steps, 0) - steps.sum(0) / 2 + (x, y))
    groove = np.zeros(CANVAS, np.uint8)
    width = int(rng.integers(2, 5))
    for start in range(len(path) - 2):
        stroke(groove, path[start : start + 3], width, int(rng.integers(170, 256)))
    depth = blur(groove.astype(np.float32) / 255, 0.9)
    bare = (0.75 * np.clip(depth, 0, 1) ** 2)[..., None].astype(np.float32)
    height = scene.height - np.float32(rng.uniform(1.2, 2.0)) * depth
    return replace(scene, height=height, paint=1.02, paint_cover=bare)


def _dent(scene: Scene, rng: np.random.Generator) -> Scene:
    x, y = _grid()
    centre_x, centre_y = _on_plate(rng)
    size, aspect = rng.uniform(5, 13), rng.uniform(0.7, 1.4)
    reach = np.hypot((x - centre_x) * aspect, (y - centre_y) / aspect) / size
    reach = reach * (1 + 0.12 * soft_noise(rng, CANVAS, 14))
    bowl = np.exp(-(reach**4)) - 0.22 * np.exp(-(((reach - 1.35) / 0.3) ** 2))
    return replace(scene, height=scene.height - np.float32(0.62 * size) * bowl.astype(np.float32))


def _chip(scene: Scene, rng: np.random.Generator) -> Scene:
    x, y = _grid()
    size, place = rng.uniform(8, 22), rng.uniform(-0.75, 0.75)
    side = int(rng.integers(4))
    end = (-1, 1)[side % 2]
    along, across = (place, end) if side < 2 else (end, place)
    reach = np.hypot(x - along * HALF[0], y - across * HALF[1]) - size
    reach += 1.6 * soft_noise(rng, CANVAS, 11) + 0.7 * soft_noise(rng, CANVAS, 4)
    gone = np.clip(reach * SCALE + 0.5, 0, 1).astype(np.float32)
    rough = soft_noise(rng, CANVAS, 3) * np.exp(-((reach / 2.5) ** 2)) * 1.6
    height = scene.height - 3.5 * (1 - _ramp(reach, 4.0)) + rough
    return replace(scene, height=height.astype(np.float32), cover=scene.cover * gone)


def _rust(scene: Scene, rng: np.random.Generator) -> Scene:
    x, y = _grid()
    centre_x, centre_y = _on_plate(rng)
    size = rng.uniform(7, 30)
    reach = np.hypot(x - centre_x, y - centre_y) / size
    field = 1 - reach + 0.30 * soft_noise(rng, CANVAS, 16) + 0.20 * soft_noise(rng, CANVAS, 5)
    amount = np.clip(field * 1.7, 0, 1) * np.clip(1.35 - reach * 0.7, 0, 1) * rng.uniform(0.55, 0.9)
    grain = 1 + 0.16 * soft_noise(rng, CANVAS, 2.5) + 0.12 * soft_noise(rng, CANVAS, 9)
    paint = np.array([0.56, 0.33, 0.17], np.float32) * grain[..., None]
    return replace(
        scene,
        paint=paint.astype(np.float32),
        paint_cover=amount[..., None].astype(np.float32),
    )


def _missing_hole(scene: Scene, rng: np.random.Generator) -> Scene:
    height, cover = _solid(missing=int(rng.integers(len(BOLTS))))
    return replace(scene, height=height, cover=cover)


#: What each kind of defect does to a scene; its place and size are drawn.
DAMAGES: dict[str, Callable[[Scene, np.random.Generator], Scene]] = {
    "scratch": _scratch,
    "dent": _dent,
    "chip": _chip,
    "rust": _rust,
    "missing_hole": _missing_hole,
}
