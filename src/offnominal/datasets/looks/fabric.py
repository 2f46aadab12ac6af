"""A twill of blue warp and pale weft, seen close: a texture that fills its frame."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from offnominal.datasets.looks.camera import SCALE, Floats, blur, haze, soft_noise, stroke

__all__ = ["DAMAGES", "SHAPE", "Scene", "draw", "render"]

SHAPE = (320, 320)
PITCH = 7.0  # from yarn to yarn, in pixels of the picture
FRAME = (SHAPE[0] * SCALE, SHAPE[1] * SCALE)
_WRONG_YARNS = np.array([[0.23, 0.24, 0.27], [0.60, 0.43, 0.34], [0.26, 0.36, 0.50]], np.float32)
INDIGO = np.array([0.225, 0.295, 0.42], np.float32)
ECRU = np.array([0.66, 0.65, 0.615], np.float32)


@dataclass(frozen=True)
class Scene:
    """A piece of cloth; arrays are FRAME in size but for those of yarns."""

    u: Floats  # where a pixel lies in the weave: number of warp yarns from the left
    v: Floats  # and of weft yarns from the top
    warp_tone: Floats  # relative brightness of each warp yarn, (n,)
    weft_tone: Floats  # and of the weft at each crossing, (m, n)
    slub: Floats  # slow unevenness of the yarns, mean 0, deviation about 1
    fibre: Floats  # and fine
    shade: Floats  # brightness of folds, 1 where flat
    lost_warp: tuple[int, float, float] | None = None  # number of a yarn, rows from and to
    dye: Floats | float = 0.0  # a colour that darkens the yarns, RGB
    dye_cover: Floats | float = 0.0  # and how much, with one channel
    # Rows of the weft from and to which another yarn was woven in, its number, how far it differs.
    weft_band: tuple[float, float, int, float] = (0.0, 0.0, 0, 0.0)
    over: Floats | float = 0.0  # what lies above the cloth or shows through it, RGB
    over_cover: Floats | float = 0.0  # and how much, with one channel


@lru_cache(maxsize=1)
def _grid() -> tuple[Floats, Floats]:
    """Row and column of each pixel at SCALE."""
    rows, columns = np.mgrid[0 : FRAME[0], 0 : FRAME[1]].astype(np.float32)
    return rows, columns


def _from_crossing(position: Floats) -> Floats:
    """Distance in yarns, -2 to 2, from the nearest crossing that has the weft on top."""
    phase = position - 0.5
    return np.asarray(phase - 4 * np.floor(phase / 4 + 0.5))


def draw(rng: np.random.Generator) -> Scene:
    """Draw a good piece of cloth."""
    rows, columns = _grid()
    y, x = rows / SCALE, columns / SCALE
    lean = rng.uniform(-0.035, 0.035)
    u = (x + lean * y + 1.1 * soft_noise(rng, FRAME, 180)) / PITCH + rng.uniform(2, 30)
    v = (y - 0.6 * lean * x + 1.1 * soft_noise(rng, FRAME, 180)) / PITCH + rng.uniform(2, 30)
    u += 0.05 * soft_noise(rng, FRAME, (22, 9))
    v += 0.06 * soft_noise(rng, FRAME, (9, 22))
    weft_tone = 1 + 0.05 * rng.standard_normal((120, 1))
    return Scene(
        u=u,
        v=v,
        warp_tone=(1 + 0.075 * rng.standard_normal(120)).astype(np.float32),
        weft_tone=(weft_tone + 0.06 * rng.standard_normal((120, 120))).astype(np.float32),
        slub=soft_noise(rng, FRAME, (40, 5)) * 0.7 + soft_noise(rng, FRAME, 12) * 0.7,
        fibre=soft_noise(rng, FRAME, 1.6),
        shade=1 + 0.03 * soft_noise(rng, FRAME, 200),
    )


def render(scene: Scene) -> Floats:
    """Weave the cloth and light it: RGB in [0, 1] at SCALE."""
    column, row = np.floor(scene.u), np.floor(scene.v)
    warp_yarn, weft_yarn = column.astype(np.intp), row.astype(np.intp)
    across_warp, across_weft = scene.u - column - 0.5, scene.v - row - 0.5
    # Three over, one under: the weft shows where (row + column) is a multiple of 4, which steps
    # by one yarn from row to row and makes the twill's diagonal.
    warp_dips = np.clip(2.3 * np.abs(_from_crossing(scene.v + column)) - 0.65, 0, 1)
    weft_rises = np.clip(1.45 - 1.9 * np.abs(_from_crossing(scene.u + row)), 0, 1)
    round_warp = np.sqrt(np.clip(1 - (across_warp * 1.9) ** 2, 0, 1))
    round_weft = np.sqrt(np.clip(1 - (across_weft * 1.85) ** 2, 0, 1))
    warp_height = (0.35 + 0.75 * warp_dips) * round_warp - 0.05 + 0.04 * scene.fibre
    if scene.lost_warp is not None:
        yarn, start, stop = scene.lost_warp
        warp_height[(warp_yarn == yarn) & (scene.v >= start) & (scene.v < stop)] = -1
    weft_height = (0.22 + 0.72 * weft_rises) * round_weft
    on_top = np.clip((warp_height - weft_height) * 4 + 0.5, 0, 1)[..., None]

    # Yarn is twisted: fine diagonal lines along it.
    warp_twist = np.sin((scene.v * 2.1 + across_warp * 1.7) * 2 * np.pi).astype(np.float32)
    weft_twist = np.sin((scene.u * 2.1 - across_weft * 1.7) * 2 * np.pi).astype(np.float32)
    rough = 1 + 0.075 * scene.fibre + 0.055 * scene.slub
    warp_shade = (0.46 + 0.58 * round_warp * (0.72 + 0.28 * warp_dips)) * (1 + 0.055 * warp_twist)
    warp_shade *= (
        scene.warp_tone[warp_yarn % scene.warp_tone.size] * rough * (1 - 0.22 * across_warp)
    )
    weft_shade = (0.40 + 0.62 * round_weft) * (0.74 + 0.26 * weft_rises) * (1 + 0.045 * weft_twist)
    weft_shade *= (
        scene.weft_tone[weft_yarn % 120, warp_yarn % 120] * rough * (1 - 0.22 * across_weft)
    )
    # Indigo wears off where the yarn stands proudest.
    worn = np.clip(0.10 + 0.20 * round_warp * warp_dips + 0.05 * scene.slub, 0, 1)[..., None]
    warp = (INDIGO + worn * (ECRU - INDIGO) * 0.75) * warp_shade[..., None]
    weft = ECRU * weft_shade[..., None]
    first, last, colour, strength = scene.weft_band
    if strength:
        banded = (strength * ((scene.v >= first) & (scene.v < last)))[..., None]
        weft = weft + banded * (weft * _WRONG_YARNS[colour] * 1.45 - weft)
        # A yarn of another thickness also changes how the warp lies over it.
        warp = warp * (1 - 0.25 * banded)
    cloth = weft + on_top * (warp - weft)
    depth = np.clip(np.maximum(warp_height, weft_height) * 1.5, 0, 1)
    cloth = cloth * (0.45 + 0.55 * depth)[..., None] * scene.shade[..., None]
    cloth = cloth * (1 - scene.dye_cover * (1 - scene.dye))
    cloth = cloth + scene.over_cover * (scene.over - cloth)
    return np.asarray(np.clip(cloth * 1.22, 0, 1), np.float32)


def _spot(rng: np.random.Generator, margin: float) -> tuple[float, float]:
    """A place (x, y) at SCALE, at least `margin` pixels of the picture from the frame."""
    low, high = margin * SCALE, (SHAPE[0] - margin) * SCALE
    return float(rng.uniform(low, high)), float(rng.uniform(low, high))


def _reach(x: float, y: float) -> Floats:
    rows, columns = _grid()
    return np.asarray(np.hypot(columns - x, rows - y))


def _broken_end(scene: Scene, rng: np.random.Generator) -> Scene:
    x, y = _spot(rng, 50)
    yarn = int(scene.u[int(y), int(x)])
    middle, half = float(scene.v[int(y), int(x)]), rng.uniform(4, 16)
    # The yarns beside a missing one close up a little.
    near = np.abs(scene.v - middle) < half
    pull = np.clip(1 - np.abs(scene.u - yarn - 0.5) / 2.5, 0, 1) * near
    away = np.sign(scene.u - yarn - 0.5)
    closed = scene.u + (np.abs(scene.u - yarn - 0.5) > 0.5) * away * 0.18 * pull
    return replace(
        scene,
        u=closed.astype(np.float32),
        lost_warp=(yarn, middle - half, middle + half),
    )


def _pulled_thread(scene: Scene, rng: np.random.Generator) -> Scene:
    x, y = _spot(rng, 40)
    rows, columns = _grid()
    along, off = (columns - x) / (rng.uniform(16, 34) * SCALE), (rows - y) / (5 * SCALE)
    pull = np.exp(-(along**2) - off**2)
    loop = np.zeros(FRAME, np.uint8)
    t = np.linspace(0, 1, 24)
    rise, reach = rng.uniform(7, 15) * SCALE, rng.uniform(10, 24) * SCALE
    path = np.stack([x + reach * (t - 0.5) * 2, y - rise * np.sqrt(np.sin(np.pi * t))], -1)
    path += np.stack([np.sin(t * 9) * 3, np.cos(t * 7) * 3], -1) * rng.uniform(0.4, 1)
    stroke(loop, path, 2 * SCALE + 1)
    cover = blur(loop.astype(np.float32) / 255, 0.8)
    round_off = np.clip(blur(loop.astype(np.float32) / 255, 2.0) * 1.2, 0, 1)
    under = np.roll(haze(cover, 2.5 * SCALE), (3 * SCALE, 2 * SCALE), (0, 1))
    thread = ECRU * (0.5 + 0.42 * round_off * (1 + 0.08 * scene.fibre))[..., None]
    return replace(
        scene,
        v=(scene.v + 0.75 * pull).astype(np.float32),
        shade=scene.shade * (1 - 0.75 * np.clip(under, 0, 0.6)),
        over=thread.astype(np.float32),
        over_cover=cover[..., None],
    )


def _hole(scene: Scene, rng: np.random.Generator) -> Scene:
    x, y = _spot(rng, 35)
    size = rng.uniform(4.5, 15) * SCALE
    uneven = 0.22 * soft_noise(rng, FRAME, size * 0.8) + 0.10 * soft_noise(rng, FRAME, 6)
    reach = _reach(x, y) / size + uneven
    # Yarns around a hole draw back from it.
    rows, columns = _grid()
    slack = 0.55 * np.exp(-((reach - 1) ** 2) / 0.16)
    direction = np.maximum(_reach(x, y), 1)
    gone = np.clip((1 - reach) * size / 3, 0, 1)
    frayed = [np.zeros(FRAME, np.uint8), np.zeros(FRAME, np.uint8)]  # ends of warp and of weft
    for _ in range(int(14 + size)):
        axis, end = int(rng.integers(2)), float(rng.choice([-1.0, 1.0]))
        aside = rng.uniform(-0.95, 0.95)
        rim = end * np.sqrt(1 - aside**2) * 1.15
        t = np.linspace(0, 1, 6)
        inwards = rim - end * rng.uniform(0.2, 0.85) * t
        sideways = aside + rng.uniform(-0.35, 0.35) * t**2
        pair = (sideways, inwards) if axis == 0 else (inwards, sideways)
        path = np.stack([x + size * pair[0], y + size * pair[1]], -1)
        stroke(frayed[axis], path, int(rng.integers(1, 4)), int(rng.integers(110, 240)))
    dark = np.array([0.045, 0.042, 0.045], np.float32) * (1 + 0.5 * np.clip(reach, 0, 1))[..., None]
    shown, hairs = dark, np.zeros(FRAME, np.float32)
    for canvas, colour in zip(frayed, (INDIGO * 1.1, ECRU * 0.85), strict=True):
        fibres = blur(canvas.astype(np.float32) / 255, 0.7)
        shown = shown + fibres[..., None] * (colour - shown)
        hairs = np.maximum(hairs, fibres)
    return replace(
        scene,
        u=scene.u + (slack * (columns - x) / direction * 0.6).astype(np.float32),
        v=scene.v + (slack * (rows - y) / direction * 0.6).astype(np.float32),
        over=shown.astype(np.float32),
        over_cover=np.maximum(gone, hairs * (reach < 1.2))[..., None].astype(np.float32),
    )


def _stain(scene: Scene, rng: np.random.Generator) -> Scene:
    x, y = _spot(rng, 40)
    size = rng.uniform(9, 36) * SCALE
    edge = 1 - _reach(x, y) / size + 0.20 * soft_noise(rng, FRAME, size * 0.7)
    edge = edge + 0.07 * soft_noise(rng, FRAME, 9)
    # Liquid leaves most of its colour where its edge dried.
    ring = np.exp(-(((edge - 0.08) / 0.07) ** 2))
    amount = (np.clip(edge * 9, 0, 1) * 0.72 + 0.28 * ring) * rng.uniform(0.35, 0.85)
    dye = np.array([[0.42, 0.36, 0.26], [0.25, 0.24, 0.24], [0.55, 0.40, 0.30]], np.float32)
    return replace(
        scene,
        dye=dye[rng.integers(3)],
        dye_cover=np.clip(amount, 0, 1)[..., None].astype(np.float32),
    )


def _wrong_weft(scene: Scene, rng: np.random.Generator) -> Scene:
    first = float(np.floor(scene.v[int(_spot(rng, 40)[1]), FRAME[1] // 2]))
    last = first + float(rng.integers(1, 5))
    colour, strength = int(rng.integers(len(_WRONG_YARNS))), float(rng.uniform(0.5, 0.95))
    return replace(scene, weft_band=(first, last, colour, strength))


def _crease(scene: Scene, rng: np.random.Generator) -> Scene:
    x, y = _spot(rng, 70)
    angle, length = rng.uniform(0, np.pi), rng.uniform(35, 90) * SCALE
    width = rng.uniform(4, 8) * SCALE
    rows, columns = _grid()
    cos, sin = float(np.cos(angle)), float(np.sin(angle))
    along = ((columns - x) * cos + (rows - y) * sin) / length
    off = (rows - y) * cos - (columns - x) * sin + 10 * SCALE * along**2
    off = (off + 1.5 * SCALE * soft_noise(rng, FRAME, 60)) / width
    fade = np.clip(1.6 - 1.6 * np.abs(along), 0, 1)
    fold = (np.exp(-((off - 0.7) ** 2) * 1.6) - 1.15 * np.exp(-((off + 0.7) ** 2) * 1.6)) * fade
    squeeze = 0.5 * np.exp(-(off**2)) * off * fade
    strength = rng.uniform(0.28, 0.5)
    return replace(
        scene,
        u=(scene.u - squeeze * sin).astype(np.float32),
        v=(scene.v + squeeze * cos).astype(np.float32),
        shade=(scene.shade * (1 + strength * fold)).astype(np.float32),
    )


#: What each kind of defect does to a scene; its place and size are drawn.
DAMAGES: dict[str, Callable[[Scene, np.random.Generator], Scene]] = {
    "broken_end": _broken_end,
    "pulled_thread": _pulled_thread,
    "hole": _hole,
    "stain": _stain,
    "wrong_weft": _wrong_weft,
    "crease": _crease,
}
