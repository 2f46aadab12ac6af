"""Ground-truth masks: files or folders of files in, boolean arrays out."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from offnominal.datasets.reading import MASK_SUFFIXES, images_in
from offnominal.datasets.sample import Sample
from offnominal.errors import DatasetError, ImageError
from offnominal.images import MAX_PIXELS
from offnominal.scans.files import read_scan
from offnominal.scans.truth import read_truth

__all__ = ["inspect_mask", "looks_like_mask", "mask_levels", "read_mask", "sample_mask"]

Bools = npt.NDArray[np.bool_]
Levels = npt.NDArray[np.uint8]

_ASPECT = 0.01  # masks drawn on a smaller copy of the image have its shape but for rounding
_ORIENTATION = 0x0112
# Levels this near black or white are marks or ground; JPEG's noise stays within.
_BLACK, _WHITE = 32, 224
_FEW_LEVELS = 16  # class numbers have fewer levels between these, photographs more


def read_mask(path: Path, shape: tuple[int, int], threshold: int = 128) -> Bools:
    """Read a ground-truth mask: True where the part is defective.

    Parameters
    ----------
    path : Path
        An image file, or a folder of them, whose union counts. See `mask_levels` for colours and
        transparency. Masks are turned as their own EXIF data say.
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
        If a file cannot be read, holds more than 8 bits a pixel or several pages, or has another
        aspect ratio than `shape`; or if a folder holds no image.
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
        All False for a good image. Of a cloud (1, N), a label for each point.
        None for a defective one without a mask: where its defect lies
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
    if sample.mask.suffix.lower() == ".txt":
        return _truth(sample, tuple(shape))
    return read_mask(sample.mask, shape, sample.mask_threshold)


def inspect_mask(
    sample: Sample, shape: tuple[int, int]
) -> tuple[Bools | None, list[tuple[str, str]]]:
    """The mask of a defective image, and what is odd about it.

    Parameters
    ----------
    sample : Sample
    shape : tuple of int
        Height and width of its image, upright.

    Returns
    -------
    bool array of shape (H, W), or None
        None where there is no mask, or none that can be used.
    list of (str, str)
        A kind of :data:`~offnominal.datasets.doubts.MASK_DOUBTS`, and a detail.
    """
    if sample.mask is None:
        return None, []
    if sample.mask.suffix.lower() == ".txt":
        return _inspect_truth(sample, shape)
    threshold, union = sample.mask_threshold, np.zeros(shape, np.bool_)
    doubts: dict[str, str] = {}
    turns, largest = set(), 0
    try:
        for file in mask_files(sample.mask):
            own = _size_of(file)
            size = f"{own[1]}x{own[0]} for {shape[1]}x{shape[0]}"
            if not same_aspect(own, shape):
                if same_aspect(own, shape[::-1]) and _turn_of_file(sample.image) > 4:
                    size += ", as its image was before its EXIF turn"
                return None, [("misshapen", size)]
            levels, turn, odd = _decode(file)
            marked = levels >= threshold
            union |= _fit(marked, shape, file)
            turns.add(turn)
            largest = max(largest, int(levels.max()))
            doubts |= dict.fromkeys(odd, "")
            if levels.shape != shape:
                doubts["resized"] = size
            if (~marked & (levels > 0)).any():
                doubts["noisy"] = ""
    except DatasetError as error:
        return None, [("unreadable", str(error))]
    if largest < threshold:
        doubts.pop("noisy", None)
        doubts |= {"faint": f"largest level {largest}"} if largest else {"empty": ""}
    elif (share := float(union.mean())) > 0.5:
        doubts |= {"whole": ""} if share == 1 else {"most": f"{share:.0%}"}
    # Where both are turned alike, the mask was drawn on the picture as it is shown.
    if turns != {turn := _turn_of_file(sample.image)}:
        # A quarter turn gives another shape, unless the picture is a square: it fits upright.
        if turn in (2, 3, 4) or (turn > 4 and same_aspect(shape, shape[::-1])):
            doubts["turned-image"] = ""
        if turns != {1}:
            doubts["turned-mask"] = ""
    return union, list(doubts.items())


def _truth(sample: Sample, shape: tuple[int, ...]) -> Bools:
    """The truth of a cloud, a label for each of its points."""
    assert sample.mask is not None  # who calls this has looked
    try:
        found = read_truth(sample.mask, read_scan(sample.image))
    except ImageError as error:
        raise DatasetError(str(error)) from error
    except OSError as error:
        raise DatasetError(f"{sample.mask}: cannot be read ({error.strerror})") from error
    if found.shape != tuple(shape):
        raise DatasetError(
            f"{sample.mask}: labels {found.size:,} points, and what was looked at has "
            f"{shape[0]} x {shape[1]}; give the truth of the same cloud"
        )
    return found


def _inspect_truth(
    sample: Sample, shape: tuple[int, int]
) -> tuple[Bools | None, list[tuple[str, str]]]:
    try:
        found = _truth(sample, shape)
    except DatasetError as error:
        return None, [("unreadable", str(error))]
    share = float(found.mean())
    kind = "empty" if not share else "whole" if share == 1 else "most" if share > 0.5 else ""
    detail = f"{share:.0%}" if kind == "most" else ""
    return found, [(kind, detail)] if kind else []


def looks_like_mask(path: Path) -> bool:
    """Whether nearly all of a picture is black or white, or has few levels as class numbers do."""
    try:
        levels = mask_levels(path)
    except DatasetError:
        return False
    counts = np.bincount(levels.ravel(), minlength=256)
    between = int(counts[_BLACK:_WHITE].sum())
    return between <= 0.05 * levels.size or int(np.count_nonzero(counts)) <= 8


def mask_files(path: Path) -> list[Path]:
    """The files of a mask: itself, or those of its folder."""
    if not path.is_dir():
        return [path]
    files = images_in(path, suffixes=MASK_SUFFIXES)
    if not files:
        raise DatasetError(f"{path}: no mask in this folder; add one, or remove the folder")
    return files


def mask_levels(path: Path) -> Levels:
    """Grey levels of one mask file, uint8 of shape (H, W); raises as `read_mask` does.

    Of colours the brightest channel counts, or, where most of the picture is white, how far they
    are from grey. What is transparent is black; where the picture is of one colour, the opacity
    itself counts.
    """
    return _decode(path)[0]


def same_aspect(size: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    """Whether two (H, W) have the same aspect ratio, within 1 %."""
    return abs(size[1] * shape[0] / (size[0] * shape[1]) - 1) <= _ASPECT


def _decode(path: Path) -> tuple[Levels, int, set[str]]:
    """Levels of a mask file, upright; its EXIF turn; and what is odd about it."""
    with _opened(path) as picture:
        turn = _turn_of(picture)
        levels, odd = _levels(picture if turn == 1 else ImageOps.exif_transpose(picture))
        return levels, turn, odd


def _size_of(path: Path) -> tuple[int, int]:
    """Height and width of a mask file, upright, before anything is decoded."""
    with _opened(path) as picture:
        size = picture.height, picture.width
        return size[::-1] if _turn_of(picture) > 4 else size


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    try:
        with Image.open(path) as picture:
            if picture.mode.startswith(("I", "F")):
                raise DatasetError(f"{path}: a mask must hold 8 bits a pixel; convert it to 8 bits")
            if (pages := getattr(picture, "n_frames", 1)) > 1 and picture.format != "MPO":
                raise DatasetError(
                    f"{path}: the mask holds {pages} pages or frames; save them as files of their "
                    "own, in a folder of the image's name"
                )
            if picture.width * picture.height > MAX_PIXELS:
                raise DatasetError(f"{path}: the mask is larger than any image; export it again")
            yield picture
    except DatasetError:
        raise
    except FileNotFoundError as error:
        raise DatasetError(f"{path}: no such mask; check the ground_truth folder") from error
    # A damaged header makes Pillow raise nearly anything, as in `read_image`.
    except Exception as error:
        raise DatasetError(f"{path}: the mask cannot be read ({error}); export it again") from error


def _levels(picture: Image.Image) -> tuple[Levels, set[str]]:
    odd: set[str] = set()
    if picture.mode in ("1", "L") and "transparency" not in picture.info:
        levels: Levels = np.asarray(picture.convert("L"))
    else:
        # Modes that reach RGBA only by way of another.
        by_way_of = {"La": "LA", "RGBa": "RGBA"}.get(picture.mode)
        whole = picture.convert(by_way_of) if by_way_of else picture
        clear = "A" in whole.getbands() or "transparency" in whole.info
        pixels = np.asarray(whole.convert("RGBA" if clear else "RGB"))
        colours, alpha = pixels[..., :3], pixels[..., 3:].squeeze(2) if clear else None
        if alpha is not None and alpha.min() < 255:
            odd.add("alpha")
            colours = (colours.astype(np.uint16) * alpha[..., None] // 255).astype(np.uint8)
        bright, dark = colours.max(axis=2), colours.min(axis=2)
        levels = bright
        if int((bright - dark).max()) >= 128:
            odd.add("colour")
            if np.count_nonzero(dark >= 128) > dark.size / 2:
                levels = bright - dark
        if alpha is not None and "alpha" in odd and levels.max() < 128:
            levels = alpha  # black on nothing, or all of one colour
    counts = np.bincount(levels.ravel(), minlength=256)[_BLACK:_WHITE]
    if counts.sum() > levels.size / 10 and np.count_nonzero(counts) > _FEW_LEVELS:
        odd.add("photo")
    return levels, odd


def _turn_of(picture: Image.Image) -> int:
    """EXIF orientation, 1 to 8; 1 is upright."""
    turn = picture.getexif().get(_ORIENTATION, 1)
    return turn if turn in range(1, 9) else 1


def _turn_of_file(path: Path) -> int:
    try:
        with Image.open(path) as picture:
            return _turn_of(picture)
    except Exception:
        return 1  # reading the image says what is wrong with it


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
