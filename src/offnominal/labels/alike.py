"""Images that are one picture: copies, flips, turns, other exposures, slight crops of one another.

They must not be divided: a detector that learned from the one would be tested on what it knows.

A picture's fingerprint is its fine structure, wherever there is some, whatever the light: 64 pixels
square, less the mean around each and over the deviation around each. Pairs that agree roughly, in
one of the eight orientations, are laid upon one another, by shifts and stretches of both axes, and
compared in detail. Parts on one fixture all agree to some degree, so that what counts is by how
much more two agree than others of the set do that are nearly as like.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from offnominal.errors import ImageError
from offnominal.images import ImageSource, read_image
from offnominal.scans.draw import shown_with
from offnominal.scans.scan import Scan, is_scan

__all__ = ["Thumbnail", "groups_of", "same_pictures", "thumbnail"]

Floats = NDArray[np.float32]
Thumbnail = NDArray[np.uint8]

_SIDE = 64  # of a thumbnail
_COARSE = 32  # side at which all are compared with all
_ROUGHLY = 0.3  # correlation there that is looked into
_NEAREST = 6  # of an image, the most that are looked into
_ALIKE = 0.68  # of the way from the correlation of others to that of equal ones
_SAMPLE = 64  # pairs that say how much others agree
_UNLIKE = 15  # more others than that are hardly the same picture
_FLOOR = 1.0  # grey levels of deviation that count as structure
_WINDOW = 3  # pixels to each side over which means are taken
_FURTHEST = 0.3  # of half a side, that one is shifted or stretched against the other
_AT_ONCE = 64  # pairs
_ROWS = 512  # images compared with all at a time

Pair = tuple[int, int]


def same_pictures(images: Sequence[ImageSource]) -> list[int]:
    """The group of each image: the place of the first that is the same picture.

    What cannot be read is a group of its own.

    Parameters
    ----------
    images : sequence of paths, arrays, Pillow images or tensors

    Examples
    --------
    >>> from offnominal.labels.alike import same_pictures
    >>> same_pictures(["a.png", "b.png", "a-flipped.png"])
    [0, 1, 0]
    """
    with ThreadPoolExecutor() as pool:
        small = list(pool.map(_read, images))
    there = [place for place, one in enumerate(small) if one is not None]
    groups = list(range(len(small)))
    for place, first in zip(there, groups_of([t for t in small if t is not None]), strict=True):
        groups[place] = there[first]
    return groups


def _read(image: ImageSource) -> Thumbnail | None:
    try:
        return thumbnail(read_image(image))
    except ImageError:
        return None


def thumbnail(image: NDArray[Any]) -> Thumbnail:
    """What is kept of an image, uint8 (H, W, 3), to compare it: uint8 (64, 64), grey.

    Of a scan, float32 (H, W, 6), that of its colour, or of its relief where it has none.
    """
    if is_scan(image):
        image, _ = shown_with(Scan.of(image), image[..., 5])
    picture = Image.fromarray(image).convert("L")
    return np.asarray(picture.resize((_SIDE, _SIDE), Image.Resampling.BOX))


def groups_of(thumbnails: Sequence[Thumbnail]) -> list[int]:
    """The group of each image: the place of the first image that is the same picture.

    Of an image only the six others that are roughly the most like it are looked into.

    Parameters
    ----------
    thumbnails : sequence of uint8 array of shape (64, 64)
        As :func:`thumbnail` makes them.
    """
    count = len(thumbnails)
    first = list(range(count))

    def root(place: int) -> int:
        while first[place] != place:
            place = first[place]
        return place

    def join(one: int, other: int) -> None:
        low, high = sorted((root(one), root(other)))
        first[high] = low

    same: dict[bytes, int] = {}
    for place, small in enumerate(thumbnails):
        join(place, same.setdefault(small.tobytes(), place))
    distinct = sorted(same.values())
    if len(distinct) > 1:
        grey = np.stack([thumbnails[place] for place in distinct])
        near = _nearest(grey)
        border = _border(grey, near)
        for rank in range(min(_NEAREST, near.places.shape[1])):
            pairs: dict[Pair, int] = {}
            for one, other in enumerate(near.places[:, rank].tolist()):
                apart = root(distinct[one]) != root(distinct[other])
                if apart and near.values[one, rank] >= _ROUGHLY and (other, one) not in pairs:
                    pairs[one, other] = int(near.turns[one, rank])
            for pair, value in _compared(grey, pairs):
                if value >= border:
                    join(distinct[pair[0]], distinct[pair[1]])
    return [root(place) for place in range(count)]


class _Nearest(NamedTuple):
    """The others that agree roughly the best with each image, the best first; all (n, k)."""

    places: NDArray[np.intp]
    values: Floats
    turns: NDArray[np.int8]  # in which of the eight orientations of the other


def _nearest(grey: NDArray[np.uint8]) -> _Nearest:
    count = len(grey)
    coarse = _structure(_shrunk(grey, _COARSE))
    turned = [_turned(coarse, turn).reshape(count, -1).T for turn in range(8)]
    found = []
    for start in range(0, count, _ROWS):
        rows = coarse[start : start + _ROWS].reshape(-1, _COARSE**2)
        best = np.full((len(rows), count), -1, np.float32)
        turns = np.zeros(best.shape, np.int8)
        for turn, columns in enumerate(turned):
            value = rows @ columns
            turns[value > best] = turn
            np.maximum(best, value, out=best)
        each = np.arange(len(rows))
        best[each, start + each] = -2
        places = np.argsort(-best, 1, kind="stable")[:, : min(_UNLIKE + 1, count - 1)]
        found.append((places, *(np.take_along_axis(own, places, 1) for own in (best, turns))))
    return _Nearest(*(np.concatenate(own) for own in zip(*found, strict=True)))


def _border(grey: NDArray[np.uint8], near: _Nearest) -> float:
    """The correlation in detail from which two are one picture.

    Told by pairs that agree well and are not the same: parts on one fixture, a weave on itself.
    """
    count = len(grey)
    rank = min(_UNLIKE, count // 2, near.places.shape[1] - 1)
    some = np.unique(np.linspace(0, count - 1, _SAMPLE).astype(int)).tolist()
    pairs = {(one, int(near.places[one, rank])): int(near.turns[one, rank]) for one in some}
    values = [value for _, value in _compared(grey, pairs)] if count > 2 else []
    usual = max(0.0, float(np.median(values))) if values else 0.0
    return usual + _ALIKE * (1 - usual)


def _compared(grey: NDArray[np.uint8], pairs: Mapping[Pair, int]) -> Iterator[tuple[Pair, float]]:
    """Pairs, whose second is turned as is told, with their correlation in detail."""
    ways: dict[int, list[Pair]] = defaultdict(list)
    for pair, turn in pairs.items():
        ways[turn].append(pair)
    for turn, own in ways.items():
        for start in range(0, len(own), _AT_ONCE):
            some = np.array(own[start : start + _AT_ONCE])
            values = _detail(grey[some[:, 0]], _turned(grey[some[:, 1]], turn))
            yield from zip(own[start : start + _AT_ONCE], values.tolist(), strict=True)


def _turned(pictures: NDArray[Any], turn: int) -> NDArray[Any]:
    """Square pictures (..., n, n) in one of the eight orientations."""
    return np.rot90(pictures[..., ::-1] if turn > 3 else pictures, turn % 4, (-2, -1))


def _shrunk(grey: NDArray[np.uint8], side: int) -> Floats:
    """Pictures (..., n, n), their side divided by a whole number."""
    by = grey.shape[-1] // side
    shape = (*grey.shape[:-2], side, by, side, by)
    small: Floats = grey.reshape(shape).mean((-3, -1), dtype=np.float32)
    return small


def _blurred(pictures: Floats, reach: int) -> Floats:
    """Means over squares, of pictures (..., h, w)."""
    for axis in (-2, -1):
        length = pictures.shape[axis]
        wide = [(0, 0)] * pictures.ndim
        wide[axis] = (reach + 1, reach)
        sums = np.pad(pictures, wide, "reflect").cumsum(axis, dtype=np.float64)
        upper = np.take(sums, range(2 * reach + 1, length + 2 * reach + 1), axis)
        pictures = ((upper - np.take(sums, range(length), axis)) / (2 * reach + 1)).astype("f4")
    return pictures


def _structure(grey: Floats) -> Floats:
    """Pictures (..., h, w) without their light; unit length."""
    rest = grey - _blurred(grey, _WINDOW)
    rest /= np.sqrt(_blurred(np.square(rest), _WINDOW) + _FLOOR**2)
    length = np.sqrt(np.square(rest).sum((-2, -1), keepdims=True))
    even: Floats = rest / np.maximum(length, 1e-6)
    return even


def _detail(still: Thumbnail, moved: Thumbnail) -> Floats:
    """Correlations (P,) of pictures (P, n, n) in detail, the second laid upon the first."""
    # Shift and stretch of each axis, as shares of half a side, by Gauss and Newton, on pictures
    # that become finer.
    warp = np.zeros((len(still), 4), np.float32)
    for side in (16, 32, _SIDE):
        one, other = (_structure(_shrunk(each, side)) for each in (still, moved))
        axis = np.linspace(-1, 1, side, dtype=np.float32)
        for _ in range(4 if side < _SIDE else 2):
            laid = _laid(other, warp)
            down, right = np.gradient(laid, axis=(1, 2))
            slopes = np.stack([down, down * axis[:, None], right, right * axis], 1) * (side / 2)
            slopes = slopes.reshape(len(still), 4, -1)
            square = slopes @ slopes.transpose(0, 2, 1)
            square += np.eye(4) * (0.01 * np.trace(square, axis1=1, axis2=2)[:, None, None] + 1e-9)
            step = np.linalg.solve(square, slopes @ (one - laid).reshape(len(still), -1, 1))
            warp = np.clip(warp + step[..., 0], -_FURTHEST, _FURTHEST).astype(np.float32)
    laid = _laid(other, warp)
    inside = laid != 0
    one = one * inside
    lengths = np.sqrt(np.square(one).sum((1, 2)) * np.square(laid).sum((1, 2)))
    value: Floats = (one * laid).sum((1, 2)) / np.maximum(lengths, 1e-6)
    return value


def _laid(pictures: Floats, warp: Floats) -> Floats:
    """Pictures (P, n, n), shifted and stretched, zero where there is nothing."""
    side = pictures.shape[-1]
    axis = np.linspace(-1, 1, side, dtype=np.float32)
    place = np.arange(side, dtype=np.float32)

    def along(shift: Floats, stretch: Floats) -> Floats:
        at = (axis * (1 + stretch[:, None]) + shift[:, None] + 1) * ((side - 1) / 2)
        weights: Floats = np.maximum(0, 1 - np.abs(at[:, :, None] - place), dtype=np.float32)
        return weights

    rows, columns = along(warp[:, 0], warp[:, 1]), along(warp[:, 2], warp[:, 3])
    return (rows @ pictures @ columns.transpose(0, 2, 1)).astype(np.float32, copy=False)
