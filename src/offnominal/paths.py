"""Finding images: files, folders and glob patterns in, a list of files out."""

import glob
import os
from collections.abc import Iterable
from pathlib import Path

from offnominal.errors import OptionError

__all__ = ["IMAGE_SUFFIXES", "find_images", "walk"]

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"})


def find_images(paths: Iterable[str | Path]) -> list[Path]:
    """List the images that files, folders and glob patterns name.

    Parameters
    ----------
    paths : iterable of str or pathlib.Path
        Files, taken whatever their suffix; folders, searched with all folders below them; glob
        patterns, where ``**`` stands for any number of folders, which match folders and files.
        In folders and patterns only `IMAGE_SUFFIXES` count, in either case, and hidden files and
        folders do not.

    Returns
    -------
    list of pathlib.Path
        In the order of `paths`, sorted within each, every file once.

    Raises
    ------
    OptionError
        If one of `paths` does not exist, matches no image, or cannot be listed.
    """
    if isinstance(paths, str | Path):
        paths = [paths]
    found: dict[str, Path] = {}
    for path in map(str, paths):
        if Path(path).is_dir():
            images = sorted(walk(path))
            if not images:
                suffixes = " ".join(sorted(IMAGE_SUFFIXES))
                raise OptionError(f"{path}: no images in this folder (looked for {suffixes})")
        elif os.path.lexists(path):
            images = [Path(path)]
        elif glob.has_magic(path):
            images = sorted(_match(path))
            if not images:
                raise OptionError(f"{path}: the pattern matches no image; check it, and quote it")
        else:
            raise OptionError(f"{path}: no such file or folder; check the path")
        for image in images:
            found.setdefault(os.path.abspath(image), image)  # noqa: PTH100 (symlinks stay apart)
    return list(found.values())


def walk(folder: str | Path) -> list[Path]:
    """Images in a folder and in all folders below it, without hidden ones, in no order."""

    def refuse(error: OSError) -> None:
        raise OptionError(f"{error.filename}: cannot be listed ({error.strerror})") from error

    images: list[Path] = []
    seen: set[str] = set()
    for here, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        # A link to a folder above would otherwise be followed round and round.
        real = os.path.realpath(here)
        folders[:] = [] if real in seen else [f for f in sorted(folders) if not f.startswith(".")]
        if real not in seen:
            images += [Path(here, f) for f in files if not f.startswith(".") and _is_image_name(f)]
        seen.add(real)
    return images


def _match(pattern: str) -> list[Path]:
    images: list[Path] = []
    for match in glob.glob(pattern, recursive=True):  # noqa: PTH207 (patterns may be absolute)
        if Path(match).is_dir():
            images += walk(match)
        elif _is_image_name(match):
            images.append(Path(match))
    return images


def _is_image_name(name: str) -> bool:
    return Path(name).suffix.lower() in IMAGE_SUFFIXES
