"""Masks written as the lengths of their runs, by COCO and by Label Studio.

Read here and not by pycocotools, which hands out whatever lay in memory where runs end early.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from offnominal.images import MAX_PIXELS

__all__ = ["brush_mask", "coco_mask", "coco_runs"]

_FIRST = 48  # the character that stands for 0


def coco_runs(text: str) -> list[int]:
    """The run lengths that COCO packs into a string.

    A number is written from its lowest five bits up, six bits a character: the sixth says that
    more follow, the fifth of the last is the sign. From the third number on, each is the difference
    to the last but one.

    Raises
    ------
    ValueError
        If it is none of COCO's.
    """
    runs: list[int] = []
    value = shift = 0
    for char in text:
        bits = ord(char) - _FIRST
        if not 0 <= bits < 64 or shift > 30:
            raise ValueError(f"run lengths hold {char!r}")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value = shift = 0
    if shift:
        raise ValueError("run lengths end within a number")
    return runs


def coco_mask(runs: Sequence[int], size: tuple[int, int]) -> NDArray[np.bool_]:
    """The mask (H, W) of runs down its columns, of background first.

    Raises
    ------
    ValueError
        If the runs are not as long as the mask.
    """
    height, width = size
    lengths = np.asarray(runs, np.int64)
    if (lengths < 0).any() or not 0 < height * width <= MAX_PIXELS:
        raise ValueError(f"run lengths of a mask of {width}x{height} pixels cannot be")
    if (total := int(lengths.sum())) != height * width:
        raise ValueError(f"run lengths cover {total} pixels of {width}x{height}")
    marked = np.repeat(np.arange(len(lengths)) % 2 == 1, lengths)
    return np.ascontiguousarray(marked.reshape(width, height).T)


def brush_mask(data: Sequence[int], size: tuple[int, int]) -> NDArray[np.bool_]:
    """The mask (H, W) that Label Studio's brush drew.

    The bytes hold a picture in red, green, blue and opacity, value after value, as bits: how many
    values there are (32 bits), the bits of a value less one (5), and the bits of each of four sizes
    of a run, less one (4 each). Then run after run: one bit whether a single value is repeated,
    two bits for the size, the length less one, and the value or the values. Opacity marks.

    Raises
    ------
    ValueError
        If it is no such picture, or one of another size.
    """
    height, width = size
    bits = np.unpackbits(np.frombuffer(bytes(data), np.uint8))
    at = 0

    def number(count: int) -> int:
        nonlocal at
        at += count
        if at > len(bits):
            raise ValueError("the brush's data end early")
        return int("".join(map(str, bits[at - count : at])), 2)

    total, depth = number(32), number(5) + 1
    sizes = [number(4) + 1 for _ in range(4)]
    if total != 4 * height * width or total > 4 * MAX_PIXELS or depth > 8:
        raise ValueError(f"the brush's data are of {total // 4} pixels, not {width}x{height}")
    values = np.zeros(total, np.uint8)
    done = 0
    while done < total:
        repeated = number(1)
        length = number(sizes[number(2)]) + 1
        if done + length > total:
            raise ValueError("the brush's data run over the picture's end")
        if repeated:
            values[done : done + length] = number(depth)
        else:
            some = np.zeros((length, 8), np.uint8)
            if at + length * depth > len(bits):
                raise ValueError("the brush's data end early")
            some[:, 8 - depth :] = bits[at : at + length * depth].reshape(length, depth)
            at += length * depth
            values[done : done + length] = np.packbits(some, 1)[:, 0]
        done += length
    # Half of it, as of any mask: strokes have soft edges.
    return values.reshape(height, width, 4)[..., 3] >= 1 << (depth - 1)
