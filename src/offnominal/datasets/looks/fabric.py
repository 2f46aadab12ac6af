"""A twill of blue warp and pale weft, seen close: a texture that fills its frame."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from offnominal.datasets.looks.camera import SCALE, Floats, blur, soft_noise, stroke

__all__ = ["DAMAGES", "SHAPE", "Scene", "draw", "render"]

SHAPE = (320, 320)
PITCH = 7.0  # from yarn to yarn, in pixels of the picture
FRAME = (SHAPE[0] * SCALE, SHAPE[1] * SCALE)
INDIGO = np.array([0.225, 0.295, 0.42], np.float32)
ECRU = np.array([0.66, 0.65, 0.615], np.float32)
_DYES = np.array([[0.42, 0.36, 0.26], [0.25, 0.24, 0.24], [0.55, 0.40, 0.30]], np.float32)
_WRONG_YARNS = np.array([[0.33, 0.35, 0.39], [0.87, 0.62, 0.49], [0.38, 0.52, 0.72]], np.float32)

# Row and column of each pixel at SCALE.
_Y, _X = np.mgrid[0 : FRAME[0], 0 : FRAME[1]].astype(np.float32)


@dataclass(frozen=True)
class Scene:
    """A piece of cloth; arrays are FRAME in size but for the tones of yarns, RGB the last axis."""

    u: Floats  # where a pixel lies in the weave: number of warp yarns from the left
    v: Floats  # and of weft yarns from the top
    warp_tone: Floats  # relative brightness of each yarn
    weft_tone: Floats
    fibre: Floats  # unevenness of the yarns, mean 0, deviation about 1
    shade: Floats  # brightness of folds, 1 where flat
    lost: Floats | float = 0.0  # 1 where the warp is missing
    weft_dye: Floats | float = 1.0  # colour by which another weft differs
    dye: Floats | float = 1.0  # colour of what the cloth has soaked up
    over: Floats | float = 0.0  # what lies above the cloth or shows through it
    cover: Floats | float = 0.0  # and how much


def draw(rng: np.random.Generator) -> Scene:
    """Draw a good piece of cloth."""
    y, x = _Y / SCALE, _X / SCALE
    lean = rng.uniform(-0.035, 0.035)
    u = (x + lean * y + 1.1 * soft_noise(rng, FRAME, 180)) / PITCH + rng.uniform(2, 30)
    v = (y - 0.6 * lean * x + 1.1 * soft_noise(rng, FRAME, 180)) / PITCH + rng.uniform(2, 30)
    return Scene(
        u=u + 0.05 * soft_noise(rng, FRAME, (22, 9)),
        v=v + 0.06 * soft_noise(rng, FRAME, (9, 22)),
        warp_tone=1 + 0.065 * rng.standard_normal(120, np.float32),
        weft_tone=1 + 0.06 * rng.standard_normal(120, np.float32),
        fibre=0.8 * soft_noise(rng, FRAME, 1.6) + 0.6 * soft_noise(rng, FRAME, 12),
        shade=1 + 0.03 * soft_noise(rng, FRAME, 200),
    )


def _from_crossing(position: Floats) -> Floats:
    """Distance in yarns, 0 to 2, from the nearest crossing that has the weft on top."""
    phase = position - 0.5
    return np.asarray(np.abs(phase - 4 * np.floor(phase / 4 + 0.5)))


def render(scene: Scene) -> Floats:
    """Weave the cloth and light it: RGB in [0, 1] at SCALE."""
    column, row = np.floor(scene.u), np.floor(scene.v)
    across_warp, across_weft = scene.u - column - 0.5, scene.v - row - 0.5
    # Three over, one under: the weft shows where (row + column) is a multiple of 4, which steps
    # by one yarn from row to row and makes the twill's diagonal.
    dips = np.clip(2.3 * _from_crossing(scene.v + column) - 0.65, 0, 1)
    rises = np.clip(1.45 - 1.9 * _from_crossing(scene.u + row), 0, 1)
    round_warp = np.sqrt(np.clip(1 - (across_warp * 1.9) ** 2, 0, 1))
    round_weft = np.sqrt(np.clip(1 - (across_weft * 1.85) ** 2, 0, 1))
    warp_height = (0.35 + 0.75 * dips) * round_warp - 0.05 + 0.04 * scene.fibre - scene.lost
    weft_height = (0.22 + 0.72 * rises) * round_weft
    on_top = np.clip((warp_height - weft_height) * 4 + 0.5, 0, 1)[..., None]

    rough = 1 + 0.09 * scene.fibre
    warp_tone = scene.warp_tone[column.astype(np.intp) % 120] * rough * (1 - 0.22 * across_warp)
    weft_tone = scene.weft_tone[row.astype(np.intp) % 120] * rough * (1 - 0.22 * across_weft)
    warp_tone *= 0.46 + 0.58 * round_warp * (0.72 + 0.28 * dips)
    weft_tone *= (0.40 + 0.62 * round_weft) * (0.74 + 0.26 * rises)
    # Indigo wears off where the yarn stands proudest.
    worn = np.clip(0.10 + 0.20 * round_warp * dips + 0.04 * scene.fibre, 0, 1)[..., None]
    warp = (INDIGO + worn * (ECRU - INDIGO) * 0.75) * warp_tone[..., None]
    weft = ECRU * weft_tone[..., None] * scene.weft_dye
    cloth = weft + on_top * (warp - weft)
    depth = np.clip(np.maximum(warp_height, weft_height) * 1.5, 0, 1)
    cloth = cloth * (0.45 + 0.55 * depth)[..., None] * scene.shade[..., None] * scene.dye
    cloth = cloth + scene.cover * (scene.over - cloth)
    return np.asarray(np.clip(cloth * 1.22, 0, 1), np.float32)


def _spot(rng: np.random.Generator, margin: float) -> tuple[float, float]:
    """A place (x, y) at SCALE, at least `margin` pixels of the picture from the frame."""
    low, high = margin * SCALE, (SHAPE[0] - margin) * SCALE
    return float(rng.uniform(low, high)), float(rng.uniform(low, high))


def _broken_end(scene: Scene, rng: np.random.Generator) -> Scene:
    x, y = _spot(rng, 50)
    yarn, middle = np.floor(scene.u[int(y), int(x)]), scene.v[int(y), int(x)]
    lost = (np.floor(scene.u) == yarn) & (np.abs(scene.v - middle) < rng.uniform(4, 16))
    return replace(scene, lost=lost.astype(np.float32))


def _pulled_thread(scene: Scene, rng: np.random.Generator) -> Scene:
    x, y = _spot(rng, 40)
    along, off = (_X - x) / (rng.uniform(16, 34) * SCALE), (_Y - y) / (5 * SCALE)
    pull = 0.75 * np.exp(-(along**2) - off**2)
    t = np.linspace(0, np.pi, 24)
    rise, reach = rng.uniform(7, 15) * SCALE, rng.uniform(10, 24) * SCALE
    path = np.stack([x - reach * np.cos(t), y - rise * np.sqrt(np.sin(t))], -1)
    loop = stroke(FRAME, path, 2 * SCALE + 1)
    shadow = np.roll(blur(loop, 2.5 * SCALE), (3 * SCALE, 2 * SCALE), (0, 1))
    thread = ECRU * (0.5 + 0.4 * blur(loop, 2.0))[..., None]
    return replace(
        scene,
        v=scene.v + pull,
        shade=scene.shade * (1 - 0.75 * np.minimum(shadow, 0.6)),
        over=thread,
        cover=loop[..., None],
    )


def _hole(scene: Scene, rng: np.random.Generator) -> Scene:
    x, y = _spot(rng, 35)
    size = rng.uniform(5.5, 16) * SCALE
    distance = np.hypot(_X - x, _Y - y)
    reach = distance / size + 0.22 * soft_noise(rng, FRAME, size * 0.8)
    # Its edge is frayed, and the yarns around it draw back.
    gone = np.clip((1 - reach - 0.12 * soft_noise(rng, FRAME, (2, 6))) * size / 3, 0, 1)
    slack = 0.33 * np.exp(-((reach - 1) ** 2) / 0.16) / np.maximum(distance, 1)
    return replace(
        scene,
        u=scene.u + slack * (_X - x),
        v=scene.v + slack * (_Y - y),
        over=0.05,
        cover=gone[..., None],
    )


def _stain(scene: Scene, rng: np.random.Generator) -> Scene:
    x, y = _spot(rng, 40)
    size = rng.uniform(9, 36) * SCALE
    edge = 1 - np.hypot(_X - x, _Y - y) / size + 0.20 * soft_noise(rng, FRAME, size * 0.7)
    # Liquid leaves most of its colour where its edge dried.
    ring = np.exp(-(((edge - 0.08) / 0.07) ** 2))
    amount = np.clip((np.clip(edge * 9, 0, 1) * 0.72 + 0.28 * ring), 0, 1) * rng.uniform(0.35, 0.85)
    return replace(scene, dye=1 - amount[..., None] * (1 - _DYES[rng.integers(3)]))


def _wrong_weft(scene: Scene, rng: np.random.Generator) -> Scene:
    first = np.floor(scene.v[int(_spot(rng, 40)[1]), FRAME[1] // 2])
    band = (scene.v >= first) & (scene.v < first + rng.integers(1, 5))
    band = rng.uniform(0.5, 0.95) * band
    colour = _WRONG_YARNS[rng.integers(3)]
    # A yarn of another thickness also changes how the warp lies over it.
    return replace(
        scene,
        weft_dye=1 - band[..., None] * (1 - colour),
        shade=scene.shade * (1 - 0.2 * band),
    )


def _crease(scene: Scene, rng: np.random.Generator) -> Scene:
    x, y = _spot(rng, 70)
    angle, length, width = rng.uniform(0, np.pi), rng.uniform(35, 90), rng.uniform(4, 8)
    cos, sin = float(np.cos(angle)), float(np.sin(angle))
    along = ((_X - x) * cos + (_Y - y) * sin) / (length * SCALE)
    off = ((_Y - y) * cos - (_X - x) * sin) / SCALE + 10 * along**2
    off = (off + 1.5 * soft_noise(rng, FRAME, 60)) / width
    # A bright ridge beside a dark furrow, which fade at their ends.
    fold = np.exp(-1.6 * (off - 0.7) ** 2) - 1.15 * np.exp(-1.6 * (off + 0.7) ** 2)
    fold = fold * np.clip(1.6 - 1.6 * np.abs(along), 0, 1) * rng.uniform(0.28, 0.5)
    return replace(scene, shade=scene.shade * (1 + fold))


#: What each kind of defect does to a scene; its place and size are drawn.
DAMAGES: dict[str, Callable[[Scene, np.random.Generator], Scene]] = {
    "broken_end": _broken_end,
    "pulled_thread": _pulled_thread,
    "hole": _hole,
    "stain": _stain,
    "wrong_weft": _wrong_weft,
    "crease": _crease,
}
