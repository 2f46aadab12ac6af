"""What checking a data set reports."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

__all__ = ["Contents", "Finding", "Labels", "Report", "Severity"]

Severity = Literal["error", "warning", "note"]


@dataclass(frozen=True)
class Finding:
    """Something odd.

    Attributes
    ----------
    severity : {"error", "warning", "note"}
        ``error``: something is left out, or figures are wrong. ``warning``: figures may not
        mean what they seem to. ``note``: for information.
    what : str
        What was found.
    count : int
        How many images or masks it concerns; 0 where it concerns none in particular.
    examples : tuple of str
        The first few.
    action : str
        What the program does about it, and what a user can do; empty where nothing follows.
    """

    severity: Severity
    what: str
    count: int
    examples: tuple[str, ...]
    action: str


@dataclass(frozen=True)
class Contents:
    """What a category holds.

    Attributes
    ----------
    category : str
        Its name.
    train, validation, test_good : int
        Good images by split.
    test_defective : dict of str to int
        Defective images to test on, by kind of defect.
    masks : int
        How many of those have a mask.
    sizes : tuple of (int, int, int)
        Width, height and count of the images that could be read, the most frequent size first.
    """

    category: str
    train: int
    validation: int
    test_good: int
    test_defective: dict[str, int]
    masks: int
    sizes: tuple[tuple[int, int, int], ...]


@dataclass(frozen=True)
class Labels:
    """What is known of the defective images, from masks and annotations.

    Attributes
    ----------
    images, marks : dict of str to int
        How many of each class there are.
    marked, boxed, unmarked : int
        Images in which defects are marked exactly, at least one of them; by boxes only; not at all.
    sizes : (int, int, int), or None
        The longer side of the marks in pixels: of the smallest, the middle one and the largest.
    """

    images: dict[str, int]
    marks: dict[str, int]
    marked: int
    boxed: int
    unmarked: int
    sizes: tuple[int, int, int] | None


@dataclass(frozen=True)
class Report:
    """What `check` found.

    Attributes
    ----------
    name, root, layout
        Of the data set.
    categories : tuple of Contents
        In the order of their names.
    findings : tuple of Finding
        Errors first, then warnings, then notes.
    unreadable : int
        Images and masks that cannot be read.
    labels : Labels or None
        Where annotations or classes were asked for.
    """

    name: str
    root: str
    layout: str
    categories: tuple[Contents, ...]
    findings: tuple[Finding, ...]
    unreadable: int
    labels: Labels | None = None

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values, to be written as JSON."""
        return asdict(self)
