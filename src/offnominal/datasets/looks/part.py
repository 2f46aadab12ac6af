"""A machined aluminium flange on a plain table: an object smaller than its frame."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

import cv2
import numpy as np

from offnominal.datasets.looks.camera import SCALE, Floats, blur, soft_noise, stroke

__all__ = ["DAMAGES", "SHAPE", "Scene", "draw", "render", "silhouette"]

SHAPE = (320, 400)
HALF = (116.0, 82.0)  # half width and half height of the plate, in pixels of the picture
BOLTS = tuple((x, y) for x in (-90.0, 90.0) for y in (-56.0, 56.0))
CANVAS = (2 * 100 * SCALE, 2 * 136 * SCALE)  # the part lies level on this before it is placed

# Coordinates of the canvas in pixels of the picture, from the part's centre.
_Y, _X = (np.mgrid[0 : CANVAS[0], 0 : CANVAS[1]].astype(np.float32) + 0.5) / SCALE
_Y, _X = _Y - CANVAS[0] / 2 / SCALE, _X - CANVAS[1] / 2 / SCALE
_RADIUS = np.hypot(_X, _Y)


@dataclass(frozen=True)
class Scene:
    """A part, where it lies and how it is lit; arrays are CANVAS in size but for `table`."""

    turn: float  # degrees
    shift: tuple[float, float]  # from the frame's centre (x, y) in pixels
    light: float  # direction of the light in the picture's plane, in radians
    marks: Floats  # relative brightness of the machining marks: straight, and round on the boss
    table: Floats  # RGB, of the frame's size at SCALE
    height: Floats  # in pixels of the canvas; the slopes make the shading
    cover: Floats  # 1 where there is metal, 0 where the table shows
    paint: Floats | float = 0.0  # a colour over the metal, RGB
    paint_cover: Floats | float = 0.0  # and how much it hides, with one channel


def _ramp(distance: Floats, width: float) -> Floats:
    """0 outside (distance <= 0), 1 from `width` inwards, with a soft shoulder."""
    t = np.clip(distance / width, 0, 1)
    return np.asarray(t * t * (3 - 2 * t))


def _inside(distance: Floats) -> Floats:
    """1 where a distance in pixels of the picture is positive, with a smooth edge."""
    return np.asarray(np.clip(distance * SCALE + 0.5, 0, 1))


@lru_cache(maxsize=8)
def _solid(missing: int | None = None) -> tuple[Floats, Floats]:
    """Height and cover of the part, optionally with one bolt hole not drilled."""
    corner = 22.0
    qx, qy = np.abs(_X) - HALF[0] + corner, np.abs(_Y) - HALF[1] + corner
    outside = np.hypot(np.maximum(qx, 0), np.maximum(qy, 0))
    edge = corner - outside - np.minimum(np.maximum(qx, qy), 0)
    height = 6 * _ramp(edge, 5.0) + 12 * _ramp(58 - _RADIUS, 5.0)
    # A groove in the boss, and a chamfer around its bore.
    height -= 5 * (_RADIUS < 50) * (1 - _ramp(_RADIUS - 38, 3.0)) + 5 * _ramp(30 - _RADIUS, 4.0)
    cover = _inside(edge) * _inside(_RADIUS - 26)
    for number, (x, y) in enumerate(BOLTS):
        if number != missing:
            distance = np.hypot(_X - x, _Y - y)
            height -= 6 * _ramp(15.5 - distance, 6.0)
            cover *= _inside(distance - 9)
    return height.astype(np.float32), cover.astype(np.float32)


def draw(rng: np.random.Generator) -> Scene:
    """Draw a good part."""
    frame = SHAPE[0] * SCALE, SHAPE[1] * SCALE
    height, cover = _solid()
    rings = rng.standard_normal(500, np.float32)[(_RADIUS * SCALE).astype(np.intp)]
    brushed = soft_noise(rng, CANVAS, (1.6, 90)) + 0.6 * soft_noise(rng, CANVAS, (1.2, 30))
    brushed = brushed + 0.8 * soft_noise(rng, CANVAS, 150)
    speckle = 0.016 * soft_noise(rng, frame, 2.5) + 0.013 * soft_noise(rng, frame, 7)
    table = 1 + speckle + 0.02 * soft_noise(rng, frame, 140)
    return Scene(
        turn=float(rng.uniform(-6, 6)),
        shift=(float(rng.uniform(-9, 9)), float(rng.uniform(-8, 8))),
        light=math.radians(-128 + rng.uniform(-7, 7)),
        marks=np.where(_RADIUS < 54, 0.03 * rings, 0.02 * brushed),
        table=table[..., None] * np.array([0.225, 0.245, 0.275], np.float32),
        height=height,
        cover=cover,
    )


def _place(scene: Scene, image: Floats) -> Floats:
    """Lay what is drawn on the canvas into the frame, both at SCALE."""
    matrix = cv2.getRotationMatrix2D((CANVAS[1] / 2, CANVAS[0] / 2), scene.turn, 1)
    matrix[0, 2] += (SHAPE[1] / 2 + scene.shift[0]) * SCALE - CANVAS[1] / 2
    matrix[1, 2] += (SHAPE[0] / 2 + scene.shift[1]) * SCALE - CANVAS[0] / 2
    size = (SHAPE[1] * SCALE, SHAPE[0] * SCALE)
    return np.asarray(cv2.warpAffine(image, matrix, size), np.float32)


def silhouette(scene: Scene) -> Floats:
    """How much of each pixel of the frame at SCALE is the object; the holes show the table."""
    return _place(scene, scene.cover)


def render(scene: Scene) -> Floats:
    """Shade the part, lay it on the table with its shadow: RGB in [0, 1] at SCALE."""
    # The canvas turns under a fixed lamp, so the lamp turns the other way over the canvas.
    lamp = scene.light + math.radians(scene.turn)
    toward = _X * math.cos(lamp) + _Y * math.sin(lamp)
    slope_x = cv2.Sobel(scene.height, cv2.CV_32F, 1, 0, scale=0.125)
    slope_y = cv2.Sobel(scene.height, cv2.CV_32F, 0, 1, scale=0.125)
    steep = 1 / np.sqrt(1 + slope_x * slope_x + slope_y * slope_y)
    facing = -(slope_x * math.cos(lamp) + slope_y * math.sin(lamp)) * steep
    # Round marks reflect the lamp where they run across its direction: a bow tie.
    along = (toward / np.maximum(_RADIUS, 1)) ** 2
    tone = 0.60 + np.where(_RADIUS < 54, 0.26 * along**2 - 0.10 * (1 - along), 0.0006 * toward)
    tone = tone + scene.marks + 0.36 * facing + 0.5 * np.maximum(facing, 0) ** 3
    tone -= 0.10 * (1 - steep)
    metal = tone[..., None] * np.array([0.985, 1.0, 1.02], np.float32)
    painted = scene.paint * (0.55 + 0.75 * tone[..., None])
    metal = metal + scene.paint_cover * (painted - metal)

    cover = silhouette(scene)
    throw = np.array([-math.cos(scene.light), -math.sin(scene.light)]) * 7 * SCALE
    cast = cv2.warpAffine(cover, np.column_stack([np.eye(2), throw]), cover.shape[::-1])
    shadow = 0.46 * blur(cast, 5.0 * SCALE) + 0.42 * blur(cover, 2.2 * SCALE)
    table = scene.table * (1 - shadow)[..., None]
    placed = _place(scene, metal.astype(np.float32))
    return np.asarray(np.clip(table + cover[..., None] * (placed - table), 0, 1))


def _on_plate(rng: np.random.Generator) -> tuple[float, float]:
    """A spot (x, y) in pixels of the picture on the flat of the plate, clear of the holes."""
    while True:
        x, y = rng.uniform(-HALF[0] + 14, HALF[0] - 14), rng.uniform(-HALF[1] + 14, HALF[1] - 14)
        clear = min(np.hypot(x - bolt_x, y - bolt_y) for bolt_x, bolt_y in BOLTS) > 22
        if clear and np.hypot(x, y) > 62:
            return float(x), float(y)


def _scratch(scene: Scene, rng: np.random.Generator) -> Scene:
    length, angle, bend = rng.uniform(24, 130), rng.uniform(0.35, 2.8), rng.uniform(-0.7, 0.7)
    t = np.linspace(-0.5, 0.5, 24)
    steps = np.stack([np.cos(angle + bend * t), np.sin(angle + bend * t)], -1) * length / len(t)
    path = np.cumsum(steps, 0) - steps.sum(0) / 2 + _on_plate(rng)
    centre = np.array([CANVAS[1], CANVAS[0]]) / 2
    groove = stroke(CANVAS, path * SCALE + centre, int(rng.integers(2, 5)))
    groove = groove * np.float32(rng.uniform(0.7, 1.0))
    return replace(
        scene,
        height=scene.height - np.float32(rng.uniform(1.2, 2.0)) * groove,
        paint=1.02,  # bare metal
        paint_cover=0.75 * groove[..., None] ** 2,
    )


def _dent(scene: Scene, rng: np.random.Generator) -> Scene:
    x, y = _on_plate(rng)
    size, aspect = rng.uniform(5, 13), rng.uniform(0.7, 1.4)
    reach = np.hypot((_X - x) * aspect, (_Y - y) / aspect) / size
    reach = reach * (1 + 0.12 * soft_noise(rng, CANVAS, 14))
    bowl = np.exp(-(reach**4)) - 0.22 * np.exp(-(((reach - 1.35) / 0.3) ** 2))
    return replace(scene, height=(scene.height - 0.62 * size * bowl).astype(np.float32))


def _chip(scene: Scene, rng: np.random.Generator) -> Scene:
    size, place, end = rng.uniform(8, 22), rng.uniform(-0.75, 0.75), rng.choice([-1, 1])
    x, y = (place, end) if rng.integers(2) else (end, place)
    reach = np.hypot(_X - x * HALF[0], _Y - y * HALF[1]) - size
    reach += 1.6 * soft_noise(rng, CANVAS, 11) + 0.7 * soft_noise(rng, CANVAS, 4)
    rough = soft_noise(rng, CANVAS, 3) * np.exp(-((reach / 2.5) ** 2)) * 1.6
    height = scene.height - 3.5 * (1 - _ramp(reach, 4.0)) + rough
    return replace(scene, height=height.astype(np.float32), cover=scene.cover * _inside(reach))


def _rust(scene: Scene, rng: np.random.Generator) -> Scene:
    x, y = _on_plate(rng)
    reach = np.hypot(_X - x, _Y - y) / rng.uniform(7, 30)
    field = 1 - reach + 0.30 * soft_noise(rng, CANVAS, 16) + 0.20 * soft_noise(rng, CANVAS, 5)
    amount = np.clip(field * 1.7, 0, 1) * np.clip(1.35 - reach * 0.7, 0, 1) * rng.uniform(0.55, 0.9)
    grain = 1 + 0.16 * soft_noise(rng, CANVAS, 2.5) + 0.12 * soft_noise(rng, CANVAS, 9)
    paint = grain[..., None] * np.array([0.56, 0.33, 0.17], np.float32)
    return replace(scene, paint=paint, paint_cover=amount[..., None])


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
