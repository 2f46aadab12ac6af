"""What is given where images are taken: one, several, folders, patterns, stacks, batches.

Whatever it is becomes one image after the other; what comes lazily stays lazy.
"""

import glob
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from numbers import Number
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from offnominal.errors import ImageError, OptionError
from offnominal.images import Channels, ImageSource, as_rgb, check_channels, describe
from offnominal.paths import find_images
from offnominal.scans.scan import Scan
from offnominal.tensors import is_tensor

__all__ = ["ImageSources", "several"]

ImageSources = ImageSource | Iterable[ImageSource | Sequence[Any] | Mapping[str, Any]]
"""One image, a folder, a pattern, a stack or batch of images, or an iterable of any of these."""


class _Listed(list[ImageSource]):
    """Single images, each looked at already."""


class _Flow:
    """The same, one by one as they are asked for."""

    def __init__(self, images: Iterable[Any], channels: Channels) -> None:
        self._images, self._channels = images, channels

    def __iter__(self) -> Iterator[ImageSource]:
        for one in self._images:
            try:
                found = _images_of(one, self._channels)
            except OptionError:
                found = [one]  # reading says what is wrong: one name must not stop all others
            for image in found:
                # A view would keep all of its batch in memory for as long as it is kept itself.
                yield image.clone() if image is not one and is_tensor(image) else image


def several(images: ImageSources, channels: Channels = "rgb") -> Iterable[ImageSource]:
    """Single images, in order; of what this gave before, the same.

    Parameters
    ----------
    images : path, array, PIL image or tensor, or an iterable of them
        A folder or a pattern stands for the images that are in it, an array (B, H, W, C) or a
        tensor (B, C, H, W) for its images. What a data loader yields may be tensors, tuples of a
        tensor and labels, or mappings with an ``image``.
    channels : {"rgb", "bgr"}
        Order of the channels of arrays and tensors, as :func:`~offnominal.images.read_image` has
        it.

    Returns
    -------
    list, or an iterable that is as lazy as the one that was given

    Raises
    ------
    OptionError
        If a folder or a pattern holds no image, or ``channels`` is neither.
    ImageError
        If what is given is neither an image nor several, such as the bytes of a file.
    """
    check_channels(channels)
    if isinstance(images, _Listed | _Flow):
        return images
    if _is_one(images):
        return _Listed(_images_of(images, channels))
    if isinstance(images, Mapping | bytes | bytearray | memoryview) or not isinstance(
        images, Iterable
    ):
        what = f"{type(images).__name__} is no image and no list of images"
        told = "give paths, as find_images lists them, a folder, arrays, Pillow images or tensors"
        raise ImageError(what, told)
    if isinstance(images, list | tuple):
        return _Listed(image for one in images for image in _images_of(one, channels))
    return _Flow(images, channels)


def _is_one(given: Any) -> bool:
    """Whether it is an image or a batch, and no collection of them."""
    if isinstance(given, str | os.PathLike | np.ndarray | Image.Image | Scan) or is_tensor(given):
        return True
    if isinstance(given, Mapping):
        return "image" in given
    if not isinstance(given, list | tuple) or len(given) < 2 or not is_tensor(given[0]):
        return False
    second = given[1]
    if is_tensor(second):  # labels or masks; of a list of images they would be like the first
        first = given[0]
        masks = first.ndim == 4 and (second.ndim != 4 or second.shape[1] != first.shape[1])
        return bool(second.ndim < 2 or masks)
    return isinstance(second, Number)


def _images_of(given: Any, channels: Channels) -> Iterable[Any]:
    """The images that one of the things given stands for; what is none is left to the reader."""
    if isinstance(given, str | os.PathLike):
        return _found(given)
    if isinstance(given, Mapping) and "image" in given:
        return _images_of(given["image"], channels)
    if isinstance(given, list | tuple) and given and is_tensor(given[0]):
        if any(is_tensor(one) and one.shape == given[0].shape for one in given[1:]):
            told = 'yield the image alone, or a mapping with "image"'
            raise ImageError(f"batch of {describe(given[0])}", f"holds two of this shape: {told}")
        return _images_of(given[0], channels)
    if (isinstance(given, np.ndarray) or is_tensor(given)) and given.ndim == 4:
        return [as_rgb(one, channels) for one in given]
    return [as_rgb(given, channels)]


def _found(path: str | os.PathLike[str]) -> Sequence[ImageSource]:
    """Images that a folder or a pattern names; a file stands for itself, and so does no file."""
    name = os.fspath(path)
    if Path(name).is_dir():
        return find_images(name)
    if glob.has_magic(name) and not os.path.lexists(name):
        try:
            return find_images(name)
        except OptionError:
            if "*" in name or "?" in name:
                raise
            # Brackets are in the names of files, too: reading says that this one is not there.
    return [path]
