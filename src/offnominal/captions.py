"""Words in pictures, and the picture of a result: image, heat and what came of it, in one."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow
from PIL import ImageDraw, ImageFont

from offnominal.pictures import Image, overlay, resized
from offnominal.text import apart, digits, printable

__all__ = ["INK", "LINE", "PAPER", "PASS", "REJECT", "SOFT", "Heat", "Layout", "Verdict"]
__all__ += ["captioned", "font", "layout", "shorten", "thumbnail", "titled", "write"]

Colour = tuple[int, int, int]
Box = tuple[int, int, int, int]

INK, SOFT, LINE, PAPER = (28, 33, 38), (87, 96, 106), (220, 222, 218), (255, 255, 255)
REJECT, PASS = (179, 38, 30), (0, 114, 80)

_SMALLEST = 340  # a panel's longer side, in pixels: smaller images are enlarged
_ENLARGE = 6.0
_THUMB = 208  # the longer side of a thumbnail's halves
_GREY = 112  # of the bar's ground, on which the heat lies as it does on a part


class Verdict(NamedTuple):
    """What a picture says of an image: whether it is rejected, and by what."""

    rejected: bool | None
    score: float
    threshold: float | None

    def words(self) -> tuple[str, str]:
        """Such as ``("REJECT", "score 0.0712, threshold 0.0504")``."""
        word = {True: "REJECT", False: "ok", None: "no threshold"}[self.rejected]
        if self.threshold is None:  # a chat model's verdict may be its own
            return word, f"score {digits(self.score)}"
        score, threshold = apart(self.score, self.threshold)
        return word, f"score {score}, threshold {threshold}"

    @property
    def colour(self) -> Colour:
        """Of the ground under the verdict."""
        return {True: REJECT, False: PASS, None: SOFT}[self.rejected]


class Heat(NamedTuple):
    """An anomaly map, float (H, W), drawn from ``low`` to ``high``; regions are above ``limit``."""

    map: NDArray[np.floating]
    low: float
    high: float
    limit: float | None


class Layout(NamedTuple):
    """Where a captioned picture has what, in its own pixels; boxes are left, top, width, height.

    Attributes
    ----------
    size : (width, height)
    image, heat : box
        The image, and the same with its heat.
    text : int
        Height of letters.
    """

    size: tuple[int, int]
    image: Box
    heat: Box
    text: int


def layout(height: int, width: int) -> Layout:
    """Layout of the picture of an image of a size; nothing else decides on it."""
    scale = min(max(1.0, _SMALLEST / max(height, width)), _ENLARGE)
    wide, high = max(1, round(width * scale)), max(1, round(height * scale))
    text = max(15, round((2 * wide + high) / 90))
    edge, bar, head = text // 2, round(5.6 * text), round(3.6 * text)
    whole = max(2 * wide + 3 * edge + bar, 30 * text)
    image = (edge, head, wide, high)
    heat = (2 * edge + wide, head, wide, high)
    return Layout((whole, head + max(high, 6 * text) + edge), image, heat, text)


def captioned(
    image: Image, heat: Heat, verdict: Verdict, name: str, ground: Image | None = None
) -> Image:
    """An image beside the same with its heat, under a line that says what came of it.

    Parameters
    ----------
    image : uint8 array of shape (H, W, 3)
    heat : Heat
        Of the same H and W.
    verdict : Verdict
    name : str
        Of the image.
    ground : uint8 array of shape (H, W, 3), or None
        What the heat lies on, such as a scan's relief; None: the image.

    Returns
    -------
    uint8 array of shape (height, width, 3)
        Both as :func:`layout` has them. Small images are enlarged, none is made smaller.
    """
    plan = layout(*image.shape[:2])
    size = plan.image[2:]
    large = resized(image, size)
    level = resized(np.asarray(heat.map, np.float32), size)
    above = None if heat.limit is None else level > heat.limit
    sheet = Pillow.new("RGB", plan.size, PAPER)
    sheet.paste(Pillow.fromarray(large), plan.image[:2])
    under = large if ground is None else resized(ground, size)
    hot = overlay(under, level, heat.low, heat.high, above)
    sheet.paste(Pillow.fromarray(hot), plan.heat[:2])
    _head(sheet, plan, verdict, name)
    if heat.high > heat.low:
        _bar(sheet, plan, heat)
    return np.asarray(sheet, np.uint8)


def thumbnail(image: Image, heat: Heat, ground: Image | None = None) -> Image:
    """The same two without words, small and side by side: uint8 (h, 2 w, 3), for a page of many."""
    height, width = image.shape[:2]
    scale = min(1.0, _THUMB / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    small, level = resized(image, size), resized(heat.map.astype(np.float32), size)
    above = None if heat.limit is None else level > heat.limit
    under = small if ground is None else resized(ground, size)
    return np.hstack([small, overlay(under, level, heat.low, heat.high, above)])


def titled(title: str, words: str, panels: Sequence[tuple[str, Image]]) -> Image:
    """Pictures of one size side by side, each with its caption, under a title and what it means.

    Parameters
    ----------
    title, words : str
    panels : sequence of (str, uint8 array of shape (H, W, 3))

    Returns
    -------
    uint8 array of shape (height, width, 3)
    """
    plan = layout(*panels[0][1].shape[:2])
    left, top, wide, high = plan.image
    text, step = plan.text, wide + left
    width = max(left + step * len(panels), plan.size[0])
    below = top + round(1.7 * text)  # a line more, for the captions
    sheet = Pillow.new("RGB", (width, below + high + left), PAPER)
    pen = ImageDraw.Draw(sheet)
    write(pen, (left, left), shorten(title, width - 2 * left, round(1.15 * text), False),
          round(1.15 * text), INK)  # fmt: skip
    write(pen, (left, left + 1.7 * text), shorten(words, width - 2 * left, text, False), text, SOFT)
    for number, (caption, picture) in enumerate(panels):
        x = left + number * step
        write(pen, (x, top + 0.3 * text), shorten(caption, wide, text, False), text, INK)
        sheet.paste(Pillow.fromarray(resized(picture, (wide, high))), (x, below))
    return np.asarray(sheet, np.uint8)


def _head(sheet: Pillow.Image, plan: Layout, verdict: Verdict, name: str) -> None:
    pen, text, edge = ImageDraw.Draw(sheet), plan.text, plan.image[0]
    word, told = verdict.words()
    large = round(1.15 * text)
    wide = int(font(large).getlength(word)) + 2 * edge
    pen.rounded_rectangle((edge, edge, edge + wide, edge + 1.5 * large), edge, fill=verdict.colour)
    pen.text((edge + wide / 2, edge + 0.76 * large), word, PAPER, font(large), anchor="mm")
    pen.text((wide + 2.5 * edge, edge + 0.76 * large), told, INK, font(large), anchor="lm")
    room = plan.size[0] - 2 * edge
    write(pen, (edge, edge + 1.9 * text), shorten(name, room, text), text, SOFT)


def _bar(sheet: Pillow.Image, plan: Layout, heat: Heat) -> None:
    """The scale of the heat, with the value from which regions are outlined."""
    pen, text = ImageDraw.Draw(sheet), plan.text
    left, top = plan.heat[0] + plan.heat[2] + text // 2, plan.heat[1]
    high, wide = min(max(plan.heat[3], 6 * text), 24 * text), text
    ramp = np.linspace(heat.high, heat.low, high, dtype=np.float32)[:, None].repeat(wide, 1)
    ground = np.full((high, wide, 3), _GREY, np.uint8)
    sheet.paste(Pillow.fromarray(overlay(ground, ramp, heat.low, heat.high)), (left, top))
    small = round(0.8 * text)
    marks = {heat.high: top + small // 2, heat.low: top + high - small // 2}
    if heat.limit is not None and heat.low <= heat.limit <= heat.high:
        at = top + high * (heat.high - heat.limit) / (heat.high - heat.low)
        pen.line((left - 2, at, left + wide + 2, at), INK, max(2, text // 8))
        marks = {value: y for value, y in marks.items() if abs(y - at) > 1.2 * small}
        marks[heat.limit] = round(at)
        pen.text((left + wide + 5, at + 1.1 * small), "outline", SOFT, font(small), anchor="lm")
    for value, y in marks.items():
        pen.text((left + wide + 5, y), f"{value:.3g}", INK, font(small), anchor="lm")


def write(
    pen: ImageDraw.ImageDraw,
    corner: tuple[float, float],
    words: str,
    size: int,
    colour: Colour,
) -> int:
    """Write words with their upper left corner at a place; returns their width."""
    words = printable(words)
    pen.text(corner, words, fill=colour, font=font(size))
    return int(font(size).getlength(words))


def shorten(words: str, width: int, size: int, path: bool = True) -> str:
    """Words that are no wider than so many pixels: the middle of a long path is left out."""
    letters, words = font(size), printable(words)
    if letters.getlength(words) <= width:
        return words
    name = Path(words).name if path else words
    for kept in range(len(words) - 1, 3, -1):
        tail = max(kept // 2, min(len(name), kept - 2)) if path else 0
        short = f"{words[: kept - tail]}…{words[len(words) - tail :]}"
        if letters.getlength(short) <= width:
            return short
    return "…"


@lru_cache(maxsize=64)
def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Letters of a height, in pixels: the font that Pillow brings."""
    return ImageFont.load_default(size)
