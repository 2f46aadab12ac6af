"""What pictures of other depths bring with them, noticed while images are read and told once."""

import warnings
from collections.abc import Callable, Iterable, Iterator
from functools import partial

from offnominal.errors import ImageError, ImageWarning
from offnominal.images import ImageSource, Picture, describe, read_picture
from offnominal.pixel_data import decoded_bytes
from offnominal.prefetch import read_ahead
from offnominal.scans.scan import Modality
from offnominal.text import printable

__all__ = ["read_images"]

# 16-bit values, a quarter of the range: what cameras of 10, 12 and 14 bits fill of it.
_DIM = 2**14


def read_images(
    images: Iterable[ImageSource],
    sixteen_bit: str,
    on_error: Callable[[ImageError], None] | None,
    known: list[int],
    learning: bool,
    modality: Modality = "auto",
) -> Iterator[tuple[ImageSource, Picture]]:
    """Images, read ahead.

    Parameters
    ----------
    images : iterable of paths, uint8 or uint16 arrays, PIL images or scans
    sixteen_bit : str
        See :func:`~offnominal.images.read_image`.
    on_error : callable or None
        Called with each bad image, which is left out; None: it is raised.
    known : list of int
        Bits of a channel, 8 or 16, of the pictures that a model was fitted on. Those of `images`
        join it if they are being learned from.
    learning : bool
    modality : str
        What of a scan becomes the image; see :func:`~offnominal.images.read_image`.

    Warns
    -----
    ImageWarning
        When the images are through, in one line for each kind with how many there were and the
        first of them: 16-bit values that fill little of their range, pictures of another depth than
        the model was fitted on, and depths that are mixed.
    """
    seen = _Depths(() if learning else known, sixteen_bit)
    work = partial(read_picture, sixteen_bit=sixteen_bit, modality=modality)
    try:
        for source, picture in read_ahead(images, work, on_error, decoded_bytes):
            seen.note(source, picture)
            if learning and picture.bits not in known:
                known.append(picture.bits)
            yield source, picture
            del picture
    finally:
        for text in seen.told():
            warnings.warn(text, ImageWarning, stacklevel=2)


class _Depths:
    """How many images were of each depth, and which came first."""

    def __init__(self, known: Iterable[int], sixteen_bit: str) -> None:
        self._known = tuple(known)
        self._may_be_dim = sixteen_bit == "range"
        self._first: dict[int | str, str] = {}
        self._count: dict[int | str, int] = {}
        self._brightest = 0

    def note(self, source: ImageSource, picture: Picture) -> None:
        kinds: list[int | str] = [picture.bits]
        if self._may_be_dim and picture.bits == 16 and picture.brightest < _DIM:
            kinds.append("dim")
            self._brightest = max(self._brightest, picture.brightest)
        for kind in kinds:
            self._first.setdefault(kind, describe(source))
            self._count[kind] = self._count.get(kind, 0) + 1

    def told(self) -> Iterator[str]:
        if "dim" in self._count:
            shown = round(self._brightest / 257)
            yield (
                f"{self._which('dim')} of 16 bits with no value above {self._brightest} of 65535, "
                f"which comes out nearly black, at most {shown} of 255: fit with --sixteen-bit "
                "0.5,99.5, or scale the files to their range"
            )
        for bits in (8, 16):
            if bits in self._count and self._known and bits not in self._known:
                yield (
                    f"{self._which(bits)} of {bits} bits, and the model was fitted on pictures of "
                    f"{self._known[0]}: scores may mean nothing; convert them alike, or fit anew"
                )
        if 8 in self._count and 16 in self._count and len(self._known) != 1:
            yield (
                f"depths are mixed, {self._which(8)} of 8 bits and {self._which(16)} of 16, and "
                "only the latter are converted: save them alike"
            )

    def _which(self, kind: int | str) -> str:
        count, first = self._count[kind], printable(self._first[kind])
        return f"1 image ({first})" if count == 1 else f"{count} images ({first} is the first)"
