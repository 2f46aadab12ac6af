"""What may be odd about a mask: what it is called, how bad it is, and what follows from it."""

from collections.abc import Iterator
from pathlib import Path

from offnominal.datasets.report import Severity

__all__ = ["MASK_DOUBTS", "Doubts", "named"]

# By kind, the worst first: severity, what it is called, what follows from it.
MASK_DOUBTS: dict[str, tuple[Severity, str, str]] = {
    "unreadable": ("error", "masks that cannot be read",
        "their images count for image metrics and not for pixel metrics; export them again"),
    "misshapen": ("error", "masks of another shape than their image",
        "they are left out of pixel metrics; export them at the image's size"),
    "faint": ("warning", "masks in which no pixel reaches the threshold",
        "they count as empty; if they hold class numbers, use --mask-threshold 1"),
    "empty": ("warning", "empty masks of defective images",
        "the images count as defective for image metrics and add nothing to pixel metrics"),
    "whole": ("warning", "masks that mark the whole image",
        "they are used as they are, so that every pixel counts as defective; export them again, "
        "with white marks on black"),
    "most": ("warning", "masks that mark more than half of their image",
        "they are used as they are; if they are inverted, export them with white marks on black"),
    "photo": ("warning", "masks with many grey levels, like photographs",
        "bright pixels count as defective; export the marks alone, white on black"),
    "turned-image": ("warning", "images turned by their EXIF data that have masks",
        "images are taken upright, and their masks as they lie on the upright picture; check one, "
        "or export both without EXIF data"),
    "turned-mask": ("warning", "masks turned by their EXIF data",
        "they are turned as it says; check one, or export them without EXIF data"),
    "alpha": ("warning", "masks with an alpha channel",
        "what is transparent is not marked, and in a picture of one colour what is opaque is; "
        "export them without one, white on black"),
    "colour": ("note", "masks in colour",
        "the brightest channel counts, on a white ground what is coloured; export them white on "
        "black to be sure"),
    "resized": ("note", "masks of another size than their image, but of its shape",
        "they are resized to the image by nearest neighbour"),
    "noisy": ("note", "masks with grey levels between 0 and the threshold",
        "those pixels count as good; --mask-threshold sets another border"),
}  # fmt: skip


class Doubts:
    """Collects what is odd about masks, by kind, with the first examples."""

    def __init__(self) -> None:
        self._found: dict[str, list[str]] = {kind: [] for kind in MASK_DOUBTS}

    def add(self, kind: str, mask: Path, root: Path, detail: str) -> None:
        """Note one. A mask that cannot be read is named in the detail itself."""
        self._found[kind].append(detail if kind == "unreadable" else named(mask, root, detail))

    def __iter__(self) -> Iterator[tuple[Severity, str, list[str], str]]:
        """Severity, what, all examples, and what follows, of each kind that was found."""
        for kind, (severity, what, action) in MASK_DOUBTS.items():
            if self._found[kind]:
                yield severity, what, self._found[kind], action

    def notes(self) -> list[str]:
        """A line for each kind but those that are for information only."""
        return [
            f"{what}: {len(found)}, such as {', '.join(found[:3])}: {action}"
            for severity, what, found, action in self
            if severity != "note"
        ]


def named(path: Path, root: Path, detail: str = "") -> str:
    """A path below the root, with a detail in brackets."""
    name = str(path.relative_to(root) if path.is_relative_to(root) else path)
    return f"{name} ({detail})" if detail else name
