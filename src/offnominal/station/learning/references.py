"""Pictures of good parts that a product is learned from: checked as they come, kept as they are."""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from offnominal.atomic import replacing
from offnominal.errors import ImageError, OptionError
from offnominal.images import read_image
from offnominal.paths import IMAGE_SUFFIXES
from offnominal.pictures import resized, save_picture
from offnominal.station.files import Files

__all__ = ["Refused", "keep", "known", "path_of", "small", "take_out", "within"]

_SMALL = 320  # the longer side of a preview, in pixels
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")


class Refused(NamedTuple):
    """A file that was not taken, and why, in words."""

    file: str
    why: str


def known(files: Files, product: int) -> list[str]:
    """Names of a product's pictures, in their order."""
    folder = files.references(product)
    if not folder.is_dir():
        return []
    found = (one.name for one in folder.iterdir() if one.suffix.lower() in IMAGE_SUFFIXES)
    return sorted(name for name in found if not name.startswith("."))


def path_of(files: Files, product: int, name: str) -> Path:
    """The file of one of them.

    Raises
    ------
    OptionError
        If there is none of that name.
    """
    if name not in known(files, product):
        raise OptionError(f"{name}: no such picture")
    return files.references(product) / name


def keep(files: Files, product: int, name: str, content: bytes) -> str:
    """Keep a picture that can be read; the same one twice is kept once.

    Parameters
    ----------
    name : str
        As its owner calls it; what a file system might take for more than a name is taken off.

    Returns
    -------
    str
        Its name from now on, which ends in the beginning of its SHA-256.

    Raises
    ------
    ImageError
        If it cannot be looked at, in the words of :func:`~offnominal.images.read_image`.
    """
    own = Path(name.replace("\\", "/")).name or "picture"
    suffix = Path(own).suffix.lower()
    suffix = suffix if suffix in IMAGE_SUFFIXES else ".png"  # its content is what counts
    digest = hashlib.sha256(content).hexdigest()
    stem = _UNSAFE.sub("-", Path(own).stem).strip("-.")[:60] or "picture"
    folder = files.references(product)
    folder.mkdir(parents=True, exist_ok=True)
    for known_name in known(files, product):
        if f"-{digest[:10]}." in known_name:
            return known_name
    kept = f"{stem}-{digest[:10]}{suffix}"
    with replacing(folder / kept) as temporary:
        temporary.write_bytes(content)
        try:
            read_image(temporary)
        except ImageError as error:
            raise ImageError(own, error.reason) from error
    return kept


def take_out(files: Files, product: int, names: Sequence[str]) -> int:
    """Remove pictures, and say how many; models that learned from them stay as they are."""
    there = set(known(files, product))
    gone = [name for name in names if name in there]
    for name in gone:
        (files.references(product) / name).unlink(missing_ok=True)
        _small_file(files, product, name).unlink(missing_ok=True)
    return len(gone)


def small(files: Files, product: int, name: str) -> Path:
    """A preview, JPEG, drawn once; browsers show no TIFF, and lines take large pictures.

    Raises
    ------
    OptionError
        If there is no such picture.
    ImageError
        If it cannot be read any more.
    """
    file = _small_file(files, product, name)
    if not file.exists():
        image = read_image(path_of(files, product, name))
        scale = min(1.0, _SMALL / max(image.shape[:2]))
        size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
        file.parent.mkdir(parents=True, exist_ok=True)
        save_picture(file, resized(image, size))
    return file


def _small_file(files: Files, product: int, name: str) -> Path:
    return files.references(product) / ".small" / f"{name}.jpg"


def within(roots: Sequence[Path], given: str) -> Path:
    """A path that a page was given, if it lies in a folder that pages may read.

    Raises
    ------
    OptionError
        If it does not, links followed, or is not there.
    """
    allowed = [root.resolve() for root in roots]
    named = ", ".join(map(str, roots))
    path = Path(given.strip())
    path = (path if path.is_absolute() else roots[0] / path).resolve()
    if not any(path.is_relative_to(root) for root in allowed):
        raise OptionError(f"{given}: pages read in {named} only; put it there, or set `folders`")
    if not path.exists():
        raise OptionError(f"{given}: does not exist in {named}; check the name")
    return path
