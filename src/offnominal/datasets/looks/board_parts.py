"""The circuit board's parts: how each kind is drawn, at its place, on the layers of a board."""

import cv2
import numpy as np
import numpy.typing as npt

from offnominal.datasets.looks import board_layout as layout
from offnominal.datasets.looks.board_layout import CHIP, FRAME, PADS, PARTS, PINS, Part, Point
from offnominal.datasets.looks.camera import SCALE, Floats, letter, points

__all__ = ["SOLDER", "Easel", "place", "place_chip", "solder_pads"]

Colour = tuple[int, int, int]
SOLDER: Colour = (178, 184, 190)
PASTE: Colour = (150, 153, 156)
TIN: Colour = (196, 199, 203)
BLACK: Colour = (34, 35, 38)
EPOXY: Colour = (42, 43, 46)
CERAMIC: Colour = (171, 138, 100)
STEEL: Colour = (188, 190, 192)


class Easel:
    """Layers on which parts are drawn, uint8, FRAME in size.

    ``colour`` (RGB), ``cover`` (255 where a part hides the board), ``height`` (20 a pixel of the
    artwork) and ``gloss`` (255 for mirror-like metal).
    """

    def __init__(self) -> None:
        self.colour = np.zeros((*FRAME, 3), np.uint8)
        self.cover = np.zeros(FRAME, np.uint8)
        self.height = np.zeros(FRAME, np.uint8)
        self.gloss = np.zeros(FRAME, np.uint8)

    def box(
        self,
        centre: Point,
        size: Point,
        colour: Colour,
        height: int,
        gloss: int = 0,
        turn: float = 0.0,
    ) -> None:
        """Lay a rectangle on all the layers; a height of 0 keeps what is there."""
        # The colour reaches a little further than the cover, so that soft edges do not go dark.
        layout.box(self.colour, centre, (size[0] + 1, size[1] + 1), colour, turn)
        layout.box(self.cover, centre, size, 255, turn)
        layout.box(self.gloss, centre, size, gloss, turn)
        if height:
            layout.box(self.height, centre, size, height, turn)

    def disc(
        self, centre: Point, radius: float, colour: Colour, height: int, gloss: int = 0
    ) -> None:
        """Lay a circle on all the layers."""
        layout.disc(self.colour, centre, radius + 0.5, colour)
        layout.disc(self.cover, centre, radius, 255)
        layout.disc(self.gloss, centre, radius, gloss)
        layout.disc(self.height, centre, radius, height)


def solder_pads(easel: Easel, missing: tuple[int, ...]) -> None:
    """Tin every pad; a pad whose part is missing keeps dull paste, flat."""
    for number, part in enumerate(PARTS):
        _, wide, tall = PADS[part.kind]
        size = (wide, tall) if part.turn == 0 else (tall, wide)
        for spot in layout.across(part):
            easel.box(spot, size, PASTE if number in missing else SOLDER, 14, 200)
    for number, (_, foot) in enumerate(PINS):
        easel.box(foot, (13, 5.2) if number // 8 % 2 == 0 else (5.2, 13), SOLDER, 14, 230)


def _local(part: Part, offset: Floats) -> tuple[Point, float, npt.NDArray[np.float64]]:
    turn = part.turn + float(offset[2])
    cos, sin = np.cos(np.radians(turn)), np.sin(np.radians(turn))
    centre = (part.x + float(offset[0]), part.y + float(offset[1]))
    return centre, turn, np.array([[cos, sin], [-sin, cos]])


def place(easel: Easel, part: Part, offset: Floats) -> None:
    """Draw a part at its place, moved by `offset` (x, y in pixels, turn in degrees)."""
    centre, turn, axes = _local(part, offset)

    def spot(along: float, off: float = 0.0) -> Point:
        moved = np.array([along, off]) @ axes
        return (centre[0] + float(moved[0]), centre[1] + float(moved[1]))

    def text(words: str, height: float, value: int) -> None:
        middle = layout.at(centre)
        at = (float(middle[0]), float(middle[1]))
        letter(easel.colour, words, at, height * SCALE, 2, value, turn)

    if part.kind == "resistor":
        easel.box(centre, (22, 10.5), TIN, 66, 180, turn)
        easel.box(centre, (14, 10.5), BLACK, 76, 0, turn)
        text({"R1": "103", "R2": "472", "R3": "103"}.get(part.name, "221"), 5.5, 205)
    elif part.kind == "capacitor":
        easel.box(centre, (23, 12), TIN, 88, 180, turn)
        easel.box(centre, (14.5, 12), CERAMIC, 96, 30, turn)
    elif part.kind == "diode":
        easel.box(centre, (24, 9), TIN, 40, 180, turn)
        easel.box(centre, (18, 12), (206, 204, 190), 84, 20, turn)
        easel.box(centre, (10, 8), (226, 208, 120), 0, 40, turn)
        easel.box(spot(-7), (2, 12), (60, 120, 70), 0, 0, turn)
    elif part.kind == "crystal":
        for end in (-1, 1):
            easel.disc(spot(10.5 * end), 11.5, STEEL, 110, 120)
        easel.box(centre, (21, 23), STEEL, 110, 120, turn)
        for end in (-1, 1):
            easel.disc(spot(10.5 * end), 9.5, STEEL, 126, 120)
        easel.box(centre, (21, 19), STEEL, 126, 120, turn)
        text("16M00", 6.5, 86)
    elif part.kind == "electrolytic":
        easel.box(centre, (46, 46), (30, 30, 33), 24, 0, turn)
        easel.disc(centre, 23, (92, 94, 99), 150, 60)
        easel.disc(centre, 21, (188, 190, 194), 160, 90)
        _stripe(easel, centre, turn)
        text("47", 8, 60)


def _stripe(easel: Easel, centre: Point, turn: float) -> None:
    """Black segment that marks the negative side of an electrolytic capacitor."""
    middle = points(layout.at(centre))[0, 0]
    reach = round(21 * SCALE * 16)
    arc = cv2.ellipse2Poly((0, 0), (reach, reach), round(turn), 120, 240, 3) + middle
    cv2.fillPoly(
        easel.colour, [arc.reshape(-1, 1, 2).astype(np.int32)], (36, 36, 40), cv2.LINE_AA, 4
    )


def place_chip(easel: Easel, offset: Floats, marking: str) -> None:
    """Draw the chip with its 32 pins; `offset` as for a part."""
    x, y, half = CHIP[0] + float(offset[0]), CHIP[1] + float(offset[1]), CHIP[2]
    for number, (root, foot) in enumerate(PINS):
        size = (9, 3.8) if number // 8 % 2 == 0 else (3.8, 9)
        for share, height in ((0.18, 56), (0.62, 30)):
            at = (
                root[0] + share * (foot[0] - root[0]) + float(offset[0]),
                root[1] + share * (foot[1] - root[1]) + float(offset[1]),
            )
            easel.box(at, size, TIN, height, 235, float(offset[2]))
    turn = float(offset[2])
    easel.box((x, y), (2 * half, 2 * half), EPOXY, 90, 12, turn)
    easel.box((x, y), (2 * half - 5, 2 * half - 5), EPOXY, 112, 12, turn)
    easel.disc((x - half + 11, y - half + 11), 4, (50, 51, 54), 104, 10)
    for line, (words, letters) in enumerate((("ON-7032", 10.0), ("MCU A1", 8.5), (marking, 8.5))):
        middle = layout.at((x, y - 14 + 17 * line))
        at = (float(middle[0]), float(middle[1]))
        letter(easel.colour, words, at, letters * SCALE, 2, 158, turn)
