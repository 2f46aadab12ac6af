"""Ground-truth masks: files or folders of files in, boolean arrays out."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from offnominal.datasets.reading import images_in
from offnominal.datasets.sample import Sample
from offnominal.errors import DatasetError

__all__ = ["mask_levels", "read_mask", "sample_mask"]

Bools = npt.NDArray[np.bool_]

_ASPECT = 0.01  # masks drawn on a smaller copy of the image have its shape but for rounding


def read_mask(path: Path, shape: tuple[int, int], threshold: int = 128) -> Bools:
    """Read a ground-truth mask: True where the part is defective.

    Parameters
    ----------
    path : Path
        An image file, or a folder of them, whose union counts. Colour is reduced to grey. Masks
        are taken as they are stored: an orientation in their EXIF data is not applied.
    shape : tuple of int
        Height and width of the image, upright. A mask of another size but of the same aspect ratio
        (within 1 %) is resized to it by nearest neighbour.
    threshold : int, default 128
        Smallest grey level, of 0 to 255, that means defective. Half by default, since masks stored
        as JPEG carry faint noise around their edges; 1 suits masks that hold class numbers.

    Returns
    -------
    bool array of shape (H, W)

    Raises
    ------
    DatasetError
        If a file cannot be read, holds more than 8 bits a pixel, or has another aspect ratio than
        `shape`; or if a folder holds no image.
    """
    union = np.zeros(shape, np.bool_)
    for file in mask_files(path):
        union |= _fit(mask_levels(file) >= threshold, tuple(shape), file)
    return union


def sample_mask(sample: Sample, shape: tuple[int, int]) -> Bools | None:
    """The mask that pixel metrics take for an image.

    Parameters
    ----------
    sample : Sample
        The image.
    shape : tuple of int
        Its height and width, upright.

    Returns
    -------
    bool array of shape (H, W), or None
        All False for a good image. None for a defective one without a mask: where its defect lies
        is not known, so that it takes no part in pixel metrics.

    Raises
    ------
    DatasetError
        As `read_mask` does.
    """
    if sample.label == 0:
        return np.zeros(shape, np.bool_)
    if sample.mask is None:
        return None
    return read_mask(sample.mask, shape, sample.mask_threshold)


def mask_files(path: Path) -> list[Path]:
    """The files of a mask: itself, or those of its folder."""
    if not path.is_dir():
        return [path]
    files = images_in(path)
    if not files:
        raise DatasetError(f"{path}: no mask in this folder; add one, or remove the folder")
    return files


def mask_levels(path: Path) -> npt.NDArray[np.uint8]:
    """Grey levels of one mask file as stored, uint8 of shape (H, W); raises as `read_mask` does."""
    try:
        with Image.open(path) as picture:
            if picture.mode.startswith(("I", "F")):
                raise DatasetError(f"{path}: a mask must hold 8 bits a pixel; convert it to 8 bits")
            return np.asarray(picture.convert("L"))
    except FileNotFoundError as error:
        raise DatasetError(f"{path}: no such mask; check the ground_truth folder") from error
    # A damaged header makes Pillow raise nearly anything, as in `read_image`.
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, EOFError) as error:
        raise DatasetError(f"{path}: the mask cannot be read ({error}); export it again") from error


def same_aspect(size: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    """Whether two (H, W) have the same aspect ratio, within 1 %."""
    return abs(size[1] * shape[0] / (size[0] * shape[1]) - 1) <= _ASPECT


def _fit(mask: Bools, shape: tuple[int, ...], path: Path) -> Bools:
    if mask.shape == shape:
        return mask
    if not same_aspect(mask.shape, shape):
        raise DatasetError(
            f"{path}: the mask is {mask.shape[1]}x{mask.shape[0]} pixels and its image "
            f"{shape[1]}x{shape[0]}; export the mask at its image's size"
        )
    resized = Image.fromarray(mask).resize((shape[1], shape[0]), Image.Resampling.NEAREST)
    return np.asarray(resized, np.bool_)
