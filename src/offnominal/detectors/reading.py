"""How a detector reads images, and what of a scan it sees."""

from collections.abc import Iterable, Iterator

import numpy as np

from offnominal.depths import read_images
from offnominal.detectors.options import OnError
from offnominal.errors import ImageError
from offnominal.images import Channels, ImageSource, Picture, as_rgb, describe, read_picture
from offnominal.scans.scan import Modality
from offnominal.sources import several

__all__ = ["Reading"]


class Reading:
    """Images as a detector's options have them.

    Attributes
    ----------
    sixteen_bit, modality
        Options of :class:`~offnominal.detectors.base.Detector`.
    depths_ : list of int
        Bits of a channel of what was learned from.
    fitted : bool
        Whether the detector has learned.
    """

    sixteen_bit: str
    modality: Modality
    depths_: list[int]
    fitted: bool

    def read(
        self, images: Iterable[ImageSource], on_error: OnError | None
    ) -> Iterator[tuple[ImageSource, np.ndarray]]:
        """Images as arrays, read ahead: uint8 (H, W, 3), or float32 (H, W, 6) of scans.

        Bad ones are handed to ``on_error``.
        """
        return ((source, one.pixels) for source, one in self.pictures(images, on_error))

    def pictures(
        self, images: Iterable[ImageSource], on_error: OnError | None
    ) -> Iterator[tuple[ImageSource, Picture]]:
        """The same with what else is known of each."""
        reading = (several(images), self.sixteen_bit, on_error, self.depths_, not self.fitted)
        for source, read in read_images(*reading, self.seen_as):
            try:
                taken = self.taken(read, describe(source))
            except ImageError as error:
                if on_error is None:
                    raise
                on_error(error)
            else:
                yield source, taken

    def taken(self, picture: Picture, name: str) -> Picture:
        """An image as the detector takes it: a cloud without a grid thinned, others as they are.

        Raises
        ------
        ImageError
            If it cannot be one of those that this detector is for.
        """
        return picture

    def image_of(self, source: ImageSource, channels: Channels = "rgb") -> np.ndarray:
        """One image as this detector reads it."""
        read = read_picture(as_rgb(source, channels), self.sixteen_bit, self.seen_as)
        return self.taken(read, describe(source)).pixels

    @property
    def seen_as(self) -> Modality:
        """What is seen of a scan, once it is settled: never ``auto``."""
        return "colour" if self.modality == "auto" else self.modality
