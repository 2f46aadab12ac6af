"""A populated circuit board from above: aligned, with small shifts and placement tolerances."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import cv2
import numpy as np
import numpy.typing as npt

from offnominal.datasets.looks import board_layout as layout
from offnominal.datasets.looks import board_parts
from offnominal.datasets.looks.board_layout import CHIP, FRAME, MARGIN, PARTS, PINS, SHAPE, TRACKS
from offnominal.datasets.looks.camera import SCALE, Floats, blur, haze, soft_noise, stroke

__all__ = ["DEFECTS", "SHAPE", "Scene", "damage", "draw", "render"]

LACQUER = np.array([0.030, 0.215, 0.125], np.float32)
COVERED_COPPER = np.array([0.070, 0.375, 0.205], np.float32)
GOLD = np.array([0.84, 0.69, 0.38], np.float32)
GLASS = np.array([0.52, 0.53, 0.36], np.float32)
PRINT = np.array([0.90, 0.91, 0.87], np.float32)
LAMP = (-0.6, -0.8)  # direction towards the light, a unit vector (x, y)


@dataclass(frozen=True)
class Scene:
    """One board.

    Attributes
    ----------
    turn, shift : float, tuple of float
        Rotation in degrees and shift (x, y) in pixels of the picture under the camera.
    offsets : float array of shape (len(PARTS) + 1, 3)
        Placement error of each part and, last, of the chip: x, y in pixels, turn in degrees.
    mottle, dust : float array, FRAME
        Slow unevenness of the lacquer, and specks of dust.
    marking : str
        Date code on the chip.
    copper : float array, FRAME
        1 where there is copper.
    missing : tuple of int
        Parts that were not placed.
    bridge : uint8 array or None, FRAME
        255 where there is solder that should not be.
    bare, film : pair of float arrays of shapes FRAME + (3,) and FRAME + (1,), or None
        Colour and cover of what a scratch lays open under the parts, and of what lies on top.
    """

    turn: float
    shift: tuple[float, float]
    offsets: Floats
    mottle: Floats
    dust: Floats
    marking: str
    copper: Floats
    missing: tuple[int, ...] = ()
    bridge: npt.NDArray[np.uint8] | None = None
    bare: tuple[Floats, Floats] | None = None
    film: tuple[Floats, Floats] | None = None


def draw(rng: np.random.Generator) -> Scene:
    """Draw a good board."""
    offsets = rng.normal(0, (0.5, 0.5, 1.0), (len(PARTS) + 1, 3))
    offsets[-1] *= 0.5
    return Scene(
        turn=float(rng.uniform(-0.6, 0.6)),
        shift=(float(rng.uniform(-3, 3)), float(rng.uniform(-3, 3))),
        offsets=np.clip(offsets, -2, 2).astype(np.float32),
        mottle=soft_noise(rng, FRAME, 130) + 0.4 * soft_noise(rng, FRAME, 14),
        dust=np.clip(soft_noise(rng, FRAME, 3.0) - 3.0, 0, 1),
        marking=f"{rng.integers(23, 27)}{rng.integers(10, 52)}",
        copper=layout.artwork().copper,
    )


def _bare(scene: Scene) -> tuple[Floats, Floats]:
    """Colour and height of the board without parts."""
    art = layout.artwork()
    copper = scene.copper
    green = 1 + 0.05 * scene.mottle + 0.03 * art.weave * (1 - 0.6 * copper)
    colour = (LACQUER + copper[..., None] * (COVERED_COPPER - LACQUER)) * green[..., None]
    for cover, paint in ((art.gold, GOLD), (art.silk, PRINT)):
        colour += cover[..., None] * (paint - colour)
    colour *= (1 - 0.93 * art.drill)[..., None]
    if scene.bare is not None:
        colour += scene.bare[1] * (scene.bare[0] - colour)
    height = 0.75 * copper + 0.7 * art.gold - 1.2 * art.drill + 0.25 * art.silk
    return colour.astype(np.float32), height.astype(np.float32)


def render(scene: Scene) -> Floats:
    """Place the parts, light the board, lay it under the camera: RGB in [0, 1] at SCALE."""
    colour, height = _bare(scene)
    easel = board_parts.Easel()
    board_parts.solder_pads(easel, scene.missing)
    for number, part in enumerate(PARTS):
        if number not in scene.missing:
            board_parts.place(easel, part, scene.offsets[number])
    board_parts.place_chip(easel, scene.offsets[-1], scene.marking)
    if scene.bridge is not None:
        easel.colour[scene.bridge > 127] = board_parts.SOLDER
        easel.cover = np.maximum(easel.cover, scene.bridge)
        easel.gloss = np.maximum(easel.gloss, scene.bridge)
        bead = (blur(layout.unit(scene.bridge), 2.5) * 90).astype(np.uint8)
        easel.height = np.maximum(easel.height, bead)

    cover = layout.unit(easel.cover)[..., None]
    colour += cover * (layout.unit(easel.colour) - colour)
    tall = easel.height.astype(np.float32) / 20
    height = height * (1 - cover[..., 0]) + blur(tall, 1.3)
    gloss = np.maximum(layout.unit(easel.gloss), layout.artwork().gold * 0.6)
    slope_x = cv2.Sobel(height, cv2.CV_32F, 1, 0, scale=0.125)
    slope_y = cv2.Sobel(height, cv2.CV_32F, 0, 1, scale=0.125)
    steep = 1 / np.sqrt(1 + slope_x * slope_x + slope_y * slope_y)
    facing = -(slope_x * LAMP[0] + slope_y * LAMP[1]) * steep
    light = 1 + (0.55 + 0.15 * gloss) * facing
    shadow = np.clip(_thrown(tall) - tall, 0, 4) / 4
    light *= 1 - 0.5 * shadow * (1 - 0.4 * gloss)
    shine = gloss * np.maximum(facing, 0) ** 2 * 0.8 + 0.05 * np.maximum(facing, 0)
    colour = colour * light[..., None] + shine[..., None] + 0.25 * scene.dust[..., None]
    if scene.film is not None:
        colour += scene.film[1] * (scene.film[0] - colour)

    middle = (FRAME[1] / 2, FRAME[0] / 2)
    matrix = cv2.getRotationMatrix2D(middle, scene.turn, 1)
    matrix[:, 2] += (np.asarray(scene.shift) - MARGIN) * SCALE
    size = (SHAPE[1] * SCALE, SHAPE[0] * SCALE)
    return np.clip(cv2.warpAffine(colour, matrix, size), 0, 1).astype(np.float32)


def _thrown(tall: Floats) -> Floats:
    """Soft shadows: the heights, shifted away from the lamp and blurred."""
    move = np.array([[1, 0, -LAMP[0] * 4 * SCALE], [0, 1, -LAMP[1] * 4 * SCALE]], np.float32)
    return haze(cv2.warpAffine(tall, move, (FRAME[1], FRAME[0])), 2.2 * SCALE)


def _missing(scene: Scene, rng: np.random.Generator) -> Scene:
    return replace(scene, missing=(int(rng.integers(len(PARTS))),))


def _bridge(scene: Scene, rng: np.random.Generator) -> Scene:
    side, k = int(rng.integers(4)), int(rng.integers(7))
    spots = np.array([PINS[side * 8 + k][1], PINS[side * 8 + k + 1][1]])
    spots[:, side % 2] += rng.uniform(-2.5, 2.5)
    canvas = np.zeros(FRAME, np.uint8)
    stroke(canvas, layout.at(spots), round(rng.uniform(2.5, 6.5) * SCALE))
    for spot in spots:
        layout.disc(canvas, (float(spot[0]), float(spot[1])), float(rng.uniform(2.4, 4.2)))
    soft = blur(canvas.astype(np.float32), 2.0) + 14 * soft_noise(rng, FRAME, 7)
    return replace(scene, bridge=np.clip((soft - 110) * 4, 0, 255).astype(np.uint8))


def _cut_track(scene: Scene, rng: np.random.Generator) -> Scene:
    hidden = np.zeros(FRAME, np.uint8)
    for part in PARTS:
        layout.disc(hidden, (part.x, part.y), 26)
    layout.box(hidden, CHIP[:2], (2 * CHIP[2] + 30, 2 * CHIP[2] + 30))
    while True:
        line = np.asarray(TRACKS[rng.integers(len(TRACKS))])
        leg = int(rng.integers(len(line) - 1))
        spot = line[leg] + rng.uniform(0.2, 0.8) * (line[leg + 1] - line[leg])
        inside = 8 < spot[0] < SHAPE[1] - 8 and 8 < spot[1] < SHAPE[0] - 8
        row, column = np.round(layout.at(spot)[::-1]).astype(int)
        if inside and not hidden[row, column]:
            break
    along = line[leg + 1] - line[leg]
    turn = math.degrees(math.atan2(along[1], along[0])) + rng.uniform(-25, 25)
    gap = np.zeros(FRAME, np.uint8)
    layout.box(gap, (float(spot[0]), float(spot[1])), (float(rng.uniform(4, 12)), 5.5), turn=turn)
    cut = blur(layout.unit(gap), 0.9)
    glass = np.ones((*FRAME, 1), np.float32) * GLASS
    return replace(scene, copper=scene.copper * (1 - cut), bare=(glass, 0.6 * cut[..., None]))


def _scratch(scene: Scene, rng: np.random.Generator) -> Scene:
    x, y = rng.uniform(45, SHAPE[1] - 45), rng.uniform(45, SHAPE[0] - 45)
    length, angle, bend = rng.uniform(28, 100), rng.uniform(0, 2 * np.pi), rng.uniform(-0.6, 0.6)
    t = np.linspace(-0.5, 0.5, 30)
    steps = np.stack([np.cos(angle + bend * t), np.sin(angle + bend * t)], -1) * length / len(t)
    path = layout.at(np.cumsum(steps, 0) - steps.sum(0) / 2 + (x, y))
    groove = np.zeros(FRAME, np.uint8)
    for start in range(len(path) - 2):
        width = int(rng.integers(1, 4))
        stroke(groove, path[start : start + 3], width, int(rng.integers(150, 256)))
    depth = blur(layout.unit(groove), 0.7) * rng.uniform(0.6, 0.95)
    bare = np.where(scene.copper[..., None] > 0.5, [0.80, 0.58, 0.40], [0.66, 0.68, 0.55])
    return replace(scene, bare=(bare.astype(np.float32), depth[..., None].astype(np.float32)))


def _contamination(scene: Scene, rng: np.random.Generator) -> Scene:
    x, y = rng.uniform(40, SHAPE[1] - 40), rng.uniform(40, SHAPE[0] - 40)
    rows, columns = np.mgrid[0 : FRAME[0], 0 : FRAME[1]].astype(np.float32)
    left, top = layout.at((x, y))
    size = float(rng.uniform(9, 30)) * SCALE
    reach = (
        np.hypot(columns - float(left), (rows - float(top)) * float(rng.uniform(0.8, 1.5))) / size
    )
    edge = 1 - reach + 0.28 * soft_noise(rng, FRAME, size * 0.6) + 0.06 * soft_noise(rng, FRAME, 6)
    rim = np.exp(-(((edge - 0.07) / 0.06) ** 2))
    body = np.clip(edge * 8, 0, 1) * (0.30 + 0.10 * soft_noise(rng, FRAME, 5))
    amount = np.clip(body + 0.30 * rim, 0, 1) * float(rng.uniform(0.8, 1.5))
    residue = np.array([[0.74, 0.66, 0.42], [0.84, 0.85, 0.82], [0.42, 0.25, 0.10]], np.float32)
    colour = np.ones((*FRAME, 1), np.float32) * residue[rng.integers(3)]
    return replace(scene, film=(colour, np.clip(amount, 0, 0.9)[..., None].astype(np.float32)))


_DAMAGES: dict[str, Callable[[Scene, np.random.Generator], Scene]] = {
    "missing_part": _missing,
    "solder_bridge": _bridge,
    "cut_track": _cut_track,
    "scratch": _scratch,
    "contamination": _contamination,
}
DEFECTS = tuple(_DAMAGES)


def damage(scene: Scene, defect: str, rng: np.random.Generator) -> Scene:
    """Copy a scene with one defect, whose place and size are drawn from `rng`."""
    return _DAMAGES[defect](scene, rng)
