"""Which mask belongs to which image, told by names and places; and masks that lie among images."""

import re
from collections.abc import Sequence
from pathlib import Path

from offnominal.datasets.reading import MASK_SUFFIXES, counted, images_below, such_as
from offnominal.paths import PassedOver

__all__ = ["MaskFolder", "is_mask_folder", "set_masks_aside"]

# What masks are called, on their own or beside the image's name.
_WORD = "(?:masks?|gts?|ground[ _.-]?truths?|labels?|seg|segmentations?|annotations?)"
_AFFIXED = re.compile(rf"(?:(.+?)[ _.-]+{_WORD}|{_WORD}[ _.-]+(.+))", re.DOTALL)


def is_mask_folder(name: str) -> bool:
    """Whether a folder is called as folders of masks are, such as ``Masks`` or ``ground truth``."""
    return re.fullmatch(_WORD, name.lower()) is not None


class MaskFolder:
    """The masks of a folder, found by the name of their image.

    An image ``a/007.png`` finds ``a/007_mask.png``, ``a/007.png``, ``a_mask/007.png``,
    ``a/007_GT.bmp`` and the like, whatever the suffix, or a folder ``a/007`` of several masks. Case
    matters only where names differ in nothing else.

    Parameters
    ----------
    folder : Path
    ending : str
        Only files whose name has it are masks, in lower case.
    anywhere : bool
        Where the places do not match, take a mask of the right name from any place, if there is
        only one.
    shared : collection of str
        Names, in lower case and without suffix, that several images have: by such a name alone a
        mask belongs to none.
    files : sequence of Path or None
        The masks; None: all those of the folder.
    """

    def __init__(
        self,
        folder: Path,
        ending: str = "",
        anywhere: bool = False,
        shared: frozenset[str] = frozenset(),
        files: Sequence[Path] | None = None,
    ) -> None:
        self.folder, self.anywhere, self.shared = folder, anywhere, shared
        self.taken: set[Path] = set()
        self.ambiguous: list[Path] = []
        self.for_several: list[Path] = []
        self.passed = PassedOver()
        self._by_place: dict[str, list[Path]] = {}
        self._by_stem: dict[str, list[Path]] = {}
        listed = images_below(folder, self.passed, MASK_SUFFIXES) if files is None else files
        self.files = [f for f in listed if f.stem.lower().endswith(ending)]
        for file in self.files:
            relative = file.relative_to(folder)
            *above, stem = _place(relative).split("/")
            plain = _plain(stem) or stem
            own = [_plain(part) or part for part in above if not is_mask_folder(part)]
            for parts in {(*above, stem), (*above, plain), (*own, plain)}:
                self._by_place.setdefault("/".join(parts), []).append(file)
            for name in {stem, plain}:
                self._by_stem.setdefault(name, []).append(file)
        for home in sorted({file.parent for file in self.files} - {folder}):
            self._by_place.setdefault(home.relative_to(folder).as_posix().lower(), []).append(home)

    def find(self, relative: Path) -> Path | None:
        """The mask of an image, whose place below its own folder is given."""
        stem = relative.stem.lower()
        found = self._by_place.get(_place(relative), [])
        sure = bool(found)
        if not found and self.anywhere:
            found = [f for f in self._by_stem.get(stem, []) if f not in self.taken]
            if found and stem in self.shared:
                self.for_several.append(relative)
                return None
        # Of a/1 and A/1 on a disk that tells them apart each has its own.
        own = relative.with_suffix("").as_posix()
        found = [f for f in found if own in f.relative_to(self.folder).as_posix()] or found
        if len(found) > 1:
            self.ambiguous.append(relative)
        if not found or (len(found) > 1 and not sure):
            return None
        self.taken.update(found)
        return min(found, key=lambda file: (_rank(file.stem.lower(), stem), found.index(file)))

    def notes(self) -> list[str]:
        """What to say of masks that fit no image, of images that several fit, of other files."""
        notes = []
        left = [f for f in self.files if f not in self.taken and f.parent not in self.taken]
        if left:
            notes.append(
                f"{counted(left, 'mask')} without an image of that name, {such_as(left)}: not used"
            )
        if self.ambiguous:
            notes.append(
                f"several masks fit {counted(self.ambiguous, 'image')}, {such_as(self.ambiguous)}: "
                "NAME_mask is taken before NAME, and none from other folders"
            )
        if self.for_several:
            notes.append(
                f"{counted(self.for_several, 'image')} of one name in several folders, "
                f"{such_as(self.for_several)}, and a mask of that name elsewhere: taken for none"
            )
        return notes + ([f"{self.folder.name}: {self.passed}"] if self.passed.total() else [])


def set_masks_aside(
    images: Sequence[Path], base: Path, notes: list[str]
) -> tuple[list[Path], MaskFolder]:
    """Tell masks that lie among images from them: ``NAME_mask`` beside ``NAME``, ``masks/NAME``.

    The name has to say so, and the picture to look like it: a folder ``label`` may as well hold
    parts whose label is torn.

    Parameters
    ----------
    images : sequence of Path
        All of a listing.
    base : Path
        Folder above all of them.
    notes : list of str
        Gets a line if there are any.

    Returns
    -------
    list of Path
        The images.
    MaskFolder
        The masks, for images by their place below ``base``.
    """
    places = {_place(image.relative_to(base)) for image in images}
    folders = {"/".join(parts[:end]) for parts in (place.split("/") for place in places)
               for end in range(1, len(parts))}  # fmt: skip
    masks = [image for image in images
             if _named_as_mask(_place(image.relative_to(base)), places, folders)]  # fmt: skip
    if masks:
        # Here, as opening a data set must wait for NumPy and Pillow only where it needs them.
        from offnominal.datasets.masks import looks_like_mask

        masks = [mask for mask in masks if looks_like_mask(mask)]
    if masks:
        notes.append(
            f"masks among the images: {len(masks)}, {such_as(m.relative_to(base) for m in masks)}: "
            "taken as masks, not as parts"
        )
    aside = set(masks)
    return [image for image in images if image not in aside], MaskFolder(base, files=masks)


def _named_as_mask(place: str, places: set[str], folders: set[str]) -> bool:
    *above, stem = place.split("/")
    if (plain := _plain(stem)) and "/".join((*above, plain)) in places:
        return True
    for depth, part in enumerate(above):
        plain = _plain(part)
        if is_mask_folder(part) or (plain and "/".join((*above[:depth], plain)) in folders):
            return True
    return False


def _place(relative: Path) -> str:
    return relative.with_suffix("").as_posix().lower()


def _plain(name: str) -> str:
    """``007`` of ``007_mask`` or ``mask_007``; empty where nothing says that it is a mask."""
    match = _AFFIXED.fullmatch(name)
    return (match[1] or match[2]) if match else ""


def _rank(mask: str, image: str) -> int:
    return 0 if mask == f"{image}_mask" else 1 if mask == image else 2
