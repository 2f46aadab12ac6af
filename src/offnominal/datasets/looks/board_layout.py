"""The circuit board's fixed artwork: where its tracks, pads, parts and print lie.

All lengths are pixels of the picture, from the top left of the frame.
"""

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
import numpy.typing as npt

from offnominal.datasets.looks.camera import SCALE, Floats, blur, letter, points, soft_noise, stroke

__all__ = ["CHIP", "FRAME", "MARGIN", "PARTS", "PINS", "SHAPE", "TRACKS", "Art", "Part", "artwork"]

SHAPE = (288, 384)
MARGIN = 10  # of board beyond each side of the frame, so that shifts never show an edge
FRAME = ((SHAPE[0] + 2 * MARGIN) * SCALE, (SHAPE[1] + 2 * MARGIN) * SCALE)
CHIP = (196.0, 150.0, 46.0)  # centre (x, y) and half side of the body
PITCH = 9.0

Point = tuple[float, float]
Line = tuple[Point, ...]


@dataclass(frozen=True)
class Part:
    """A two-ended part: its kind, centre, turn in degrees, name, and where its name is printed."""

    kind: str
    x: float
    y: float
    turn: int
    name: str
    label: Point


PARTS = (
    Part("resistor", 42, 44, 0, "R1", (42, 29)),
    Part("resistor", 42, 76, 0, "R2", (42, 61)),
    Part("resistor", 42, 108, 0, "R3", (42, 93)),
    Part("capacitor", 92, 44, 90, "C1", (108, 44)),
    Part("capacitor", 92, 262, 0, "C2", (92, 246)),
    Part("resistor", 150, 268, 0, "R4", (150, 253)),
    Part("resistor", 196, 268, 0, "R5", (196, 253)),
    Part("capacitor", 242, 268, 0, "C3", (242, 253)),
    Part("capacitor", 150, 34, 0, "C4", (150, 19)),
    Part("resistor", 196, 34, 0, "R6", (196, 19)),
    Part("resistor", 242, 34, 0, "R7", (242, 19)),
    Part("diode", 296, 120, 90, "D1", (312, 108)),
    Part("crystal", 66, 166, 90, "Y1", (40, 166)),
    Part("electrolytic", 318, 46, 0, "C5", (318, 82)),
)


def _pins() -> tuple[tuple[Point, Point], ...]:
    """Root on the body and foot on the board of each of the chip's 32 pins, 8 a side."""
    x, y, half = CHIP
    pins = []
    for side in range(4):
        cos, sin = [(1, 0), (0, 1), (-1, 0), (0, -1)][side]
        for k in range(8):
            off = (k - 3.5) * PITCH
            near, far = half, half + 13
            root = (x + cos * near - sin * off, y + sin * near + cos * off)
            foot = (x + cos * far - sin * off, y + sin * far + cos * off)
            pins.append((root, foot))
    return tuple(pins)


PINS = _pins()


def _tracks() -> tuple[Line, ...]:
    """Fan the pins out to vias, and join the parts."""
    tracks: list[Line] = []
    for number, (_, foot) in enumerate(PINS):
        side, k = divmod(number, 8)
        axis, out = side % 2, 1 if side < 2 else -1
        aside = foot[1 - axis]
        spread = 0.4 * (aside - CHIP[1 - axis])
        # Outer pins bend first, so that tracks never cross.
        bend = foot[axis] + out * (16.3 - 3.5 * abs(k - 3.5)) * (1.0, 0.7)[axis]
        end = CHIP[axis] + out * (91 - 7 * (k % 2))
        line = [(foot[axis], aside), (bend, aside)]
        line += [(bend + out * abs(spread), aside + spread), (end, aside + spread)]
        tracks.append(tuple(point if axis == 0 else point[::-1] for point in line))
    tracks += [
        ((51, 44), (66, 44), (78, 56), (92, 56)),
        ((51, 76), (70, 76), (84, 90), (84, 96)),
        ((51, 108), (62, 108), (70, 116), (76, 116)),
        ((33, 44), (20, 44), (12, 52), (12, 236), (28, 252)),
        ((33, 76), (24, 76), (20, 80), (20, 226), (30, 236)),
        ((33, 108), (28, 113), (28, 216), (36, 224)),
        ((66, 146), (66, 132), (74, 124), (88, 124)),
        ((66, 186), (66, 196), (78, 208), (82, 208), (82, 236), (82, 262)),
        ((102, 262), (118, 262), (124, 268), (141, 268)),
        ((159, 268), (187, 268)),
        ((205, 268), (232, 268)),
        ((252, 268), (276, 268), (290, 254), (340, 254)),
        ((92, 34), (92, 22), (100, 14), (150, 6), (390, 6)),
        ((160, 34), (187, 34)),
        ((205, 34), (233, 34)),
        ((251, 34), (268, 34), (280, 46), (305, 46)),
        ((331, 46), (356, 46), (366, 56), (366, 110), (350, 126)),
        ((296, 130), (296, 148), (310, 162), (344, 162)),
        ((296, 110), (296, 98), (306, 88), (366, 88)),
        ((286, 186), (300, 186), (310, 196), (344, 196)),
    ]
    return tuple(tracks)


TRACKS = _tracks()
VIAS: tuple[Point, ...] = (
    *(line[-1] for line in TRACKS[:32]),
    *((28, 252), (30, 236), (36, 224), (84, 96), (76, 116), (88, 124), (350, 126), (366, 88)),
    *((20, 270), (58, 224), (120, 284), (270, 90), (270, 228), (374, 270), (64, 22), (124, 60)),
)
HEADER = tuple((354.0, 162.0 + 23 * k) for k in range(5))
PADS = {  # offsets of the two pads from the centre, and their size, per kind of part
    "resistor": (9.5, 9.0, 12.0),
    "capacitor": (9.5, 10.0, 13.0),
    "diode": (10.5, 9.0, 12.0),
    "crystal": (20.0, 11.0, 16.0),
    "electrolytic": (22.0, 14.0, 10.0),
}


def across(part: Part) -> tuple[Point, Point]:
    """Centres of the two pads of a part."""
    off = PADS[part.kind][0]
    step = (off, 0.0) if part.turn == 0 else (0.0, off)
    return (part.x - step[0], part.y - step[1]), (part.x + step[0], part.y + step[1])


@dataclass(frozen=True)
class Art:
    """The bare board, all arrays FRAME in size (SCALE, with MARGIN around).

    Attributes
    ----------
    copper : float array
        1 where there is copper under the green lacquer.
    gold, drill : float array
        1 where gold plating shows, and where a hole is.
    silk : float array
        1 where white print is.
    weave : float array
        Glass cloth under the lacquer, mean 0.
    """

    copper: Floats
    gold: Floats
    drill: Floats
    silk: Floats
    weave: Floats


def at(xy: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """From pixels of the frame to pixels of the artwork."""
    return (np.asarray(xy, np.float64) + MARGIN) * SCALE


def _colour(value: int | tuple[int, int, int]) -> tuple[int, int, int]:
    return (value, value, value) if isinstance(value, int) else value


def disc(
    canvas: npt.NDArray[np.uint8],
    centre: Point,
    radius: float,
    value: int | tuple[int, int, int] = 255,
) -> None:
    """Fill a circle with a grey level or a colour, in place."""
    middle = points(at(centre))[0, 0]
    reach = round(radius * SCALE * 16)
    cv2.circle(canvas, (int(middle[0]), int(middle[1])), reach, _colour(value), -1, cv2.LINE_AA, 4)


def box(
    canvas: npt.NDArray[np.uint8],
    centre: Point,
    size: Point,
    value: int | tuple[int, int, int] = 255,
    turn: float = 0.0,
) -> None:
    """Fill a rectangle of `size` (width, height) turned by `turn` degrees, in place."""
    half = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * np.asarray(size) / 2
    cos, sin = np.cos(np.radians(turn)), np.sin(np.radians(turn))
    corners = half @ np.array([[cos, sin], [-sin, cos]]) + centre
    cv2.fillPoly(canvas, [points(at(corners))], _colour(value), cv2.LINE_AA, shift=4)


def unit(canvas: npt.NDArray[np.uint8]) -> Floats:
    """From 0..255 to 0..1."""
    return canvas.astype(np.float32) / 255


@lru_cache(maxsize=1)
def artwork() -> Art:
    """Draw the bare board once."""
    track, pad, gold, drill, silk = (np.zeros(FRAME, np.uint8) for _ in range(5))
    for line in TRACKS:
        stroke(track, at(line), round(3 * SCALE))
    for via in VIAS:
        disc(track, via, 4.4)
        disc(gold, via, 3.3)
        disc(drill, via, 1.5)
    for number, hole in enumerate(HEADER):
        disc(track, hole, 9.5)
        if number == 0:
            box(gold, hole, (16, 16))
        else:
            disc(gold, hole, 8)
        disc(drill, hole, 4.2)
    for item in PARTS:
        _, wide, tall = PADS[item.kind]
        for spot in across(item):
            box(pad, spot, (wide, tall) if item.turn == 0 else (tall, wide))
    for number, (_, foot) in enumerate(PINS):
        box(pad, foot, (13, 5.2) if number // 8 % 2 == 0 else (5.2, 13))
    disc(gold, (18, 18), 5)
    disc(gold, (366, 22), 5)
    # The rest of the board is a ground plane, kept clear of everything else.
    other = np.maximum(track, pad)
    disc(other, (18, 18), 9)
    disc(other, (366, 22), 9)
    gap = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (4 * SCALE + 1, 4 * SCALE + 1))
    plane = 255 - cv2.dilate(other, gap)
    copper = np.maximum(np.maximum(plane, track), pad)

    for item in PARTS:
        _print(silk, item.name, item.label, 8.5)
        _outline(silk, item)
    x, y, half = CHIP
    _print(silk, "U1", (x - half - 16, y - half - 12), 9)
    disc(silk, (x - half - 5, y - half - 5), 2.2)
    left, right = HEADER[0][0] - 12, HEADER[0][0] + 12
    top, bottom = HEADER[0][1] - 12, HEADER[-1][1] + 12
    frame = [(left, top), (right, top), (right, bottom), (left, bottom), (left, top)]
    stroke(silk, at(frame), 2)
    _print(silk, "J1", (326, 166), 9)
    _print(silk, "CTRL-04", (310, 232), 10, 3)
    _print(silk, "REV 2", (60, 275), 8)

    rng = np.random.default_rng(20)
    rows, columns = np.mgrid[0 : FRAME[0], 0 : FRAME[1]].astype(np.float32)
    weave = np.sin(rows * (2 * np.pi / 9)) * 0.5 + np.sin(columns * (2 * np.pi / 9)) * 0.5
    weave = weave + 0.8 * soft_noise(rng, FRAME, 40)
    open_copper = 1 - unit(np.maximum(np.maximum(pad, gold), drill))
    return Art(
        copper=blur(unit(copper), 0.8),
        gold=unit(gold),
        drill=unit(drill),
        silk=unit(silk) * open_copper,
        weave=weave.astype(np.float32),
    )


def _print(
    silk: npt.NDArray[np.uint8], text: str, spot: Point, height: float, width: int = 2
) -> None:
    """Print text centred on a spot."""
    middle = at(spot)
    letter(silk, text, (float(middle[0]), float(middle[1])), height * SCALE, width)


def _outline(silk: npt.NDArray[np.uint8], item: Part) -> None:
    """Print a part's outline."""
    if item.kind == "electrolytic":
        ring = points(at((item.x, item.y)))[0, 0]
        reach = 28 * SCALE * 16
        centre = (int(ring[0]), int(ring[1]))
        cv2.circle(silk, centre, reach, (255,) * 3, 2, cv2.LINE_AA, 4)
        return
    off, wide, tall = PADS[item.kind]
    long, short = off + wide / 2 + 2.5, tall / 2 + 2.5
    half_x, half_y = (long, short) if item.turn == 0 else (short, long)
    for side in (-1, 1):
        corners = [(side * half_x, -half_y), (side * half_x, half_y)]
        stroke(silk, at([(item.x + cx, item.y + cy) for cx, cy in corners]), 2)
