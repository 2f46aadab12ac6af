"""Growing and shrinking a fitted detector: what every method answers, if only that it cannot.

The work itself is in :mod:`offnominal.detectors.banked`, for methods that keep patches.
"""

import difflib
import string
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NoReturn

import numpy as np
from torch import nn

from offnominal.calibration import Threshold
from offnominal.errors import ImageError, OptionError
from offnominal.images import ImageSource, content_digest, describe, read_image
from offnominal.memory import MemoryBank

if TYPE_CHECKING:
    from offnominal.detectors.base import Detector, OnError, Progress
    from offnominal.detectors.explaining import Explanation
    from offnominal.detectors.places import Origin

__all__ = ["Change", "Growing", "Version", "find_reference", "utc"]

What = Literal["fit", "add", "forget", "merge", "undo", "compact"]
Rescored = Literal["affected", "all", "kept", "none"]

_DIGEST = 64  # hexadecimal digits
_SHORT_DIGEST = 8  # the fewest that are taken for the beginning of one
_NEAREST_NAMES = 5


@dataclass(frozen=True)
class Version:
    """One step in what a detector knows.

    Attributes
    ----------
    number : int
        1 for the first.
    what : {"fit", "add", "forget", "merge", "compact"}
    images : tuple of str
        Names of the images that were learned from, added, forgotten or brought in.
    references : int
        How many images it knew afterwards.
    rows : int
        Length of its bank afterwards.
    when : str or None
        UTC, as ``2026-03-01T09:30:00Z``, if it was given: a model file that is made again from the
        same images is the same to the byte, so no clock is asked.
    """

    number: int
    what: str
    images: tuple[str, ...]
    references: int
    rows: int
    when: str | None


@dataclass(frozen=True)
class Change:
    """What a step changed.

    Attributes
    ----------
    what : {"add", "forget", "merge", "undo", "compact"}
    images : tuple of str
        Names of the images that came or went.
    known : tuple of str
        Names of those that were left out because the detector knows their pixels already.
    references, rows : (int, int)
        Before and after.
    threshold : (Threshold or None, Threshold or None)
        Before and after.
    rescored : {"affected", "all", "kept", "none"}
        How the other references were scored anew. ``affected``: exactly, by comparing their patches
        with the rows that came, or anew where the nearest row went. ``all``: every one, exactly.
        ``kept``: not, since the bank holds a part of their patches only; their scores can be too
        high, but not too low. ``none``: there was nothing to score, or held-out images set the
        thresholds.
    """

    what: What
    images: tuple[str, ...]
    known: tuple[str, ...]
    references: tuple[int, int]
    rows: tuple[int, int]
    threshold: tuple[Threshold | None, Threshold | None]
    rescored: Rescored = "none"


class Growing(nn.Module):
    """The part of a detector's contract that is about single references.

    Here every method says that it takes another fit. Detectors with a memory bank can do all of it
    (:class:`~offnominal.detectors.banked.Banked`).
    """

    method: ClassVar[str]
    references_: list[dict[str, Any]]

    def add(
        self,
        images: "Iterable[ImageSource]",
        on_error: "OnError | None" = None,
        progress: "Progress | None" = None,
        when: datetime | None = None,
    ) -> Change:
        """Learn from more good images at once, without looking at the earlier ones again.

        Meant for false alarms that somebody confirmed to be good. The thresholds are set anew, the
        added images among those that they come from.

        Parameters
        ----------
        images : iterable of paths, uint8 or uint16 arrays, or PIL images
            Exact copies of references, or of one another, are left out and reported.
        on_error : callable or None
            Called with each unreadable image, which is left out; None: it is raised, and the
            detector stays as it was.
        progress : callable or None
            Called with the stage and the number of images that it has done.
        when : datetime or None
            Noted in the history.

        Raises
        ------
        OptionError
            If the method cannot learn so.
        """
        self._refuse("learn from single further images")

    def forget(
        self,
        image: "ImageSource | Sequence[ImageSource]",
        when: datetime | None = None,
        progress: "Progress | None" = None,
    ) -> Change:
        """Give up what was learned from a reference, or several, and set the thresholds anew.

        What is given up stays in the saved file, so that :meth:`undo` can bring it back, until
        :meth:`compact`.

        Parameters
        ----------
        image : path, digest, array or PIL image, or a sequence of them
            The name that the reference was learned under, or the end of it; the beginning of its
            digest; or the image itself.
        when : datetime or None
            Noted in the history.
        progress : callable or None
            Called with the stage and the number of references that it has done.

        Raises
        ------
        OptionError
            If there is no such reference, several, no reference left, or the method cannot.
        """
        self._refuse("forget a single image")

    def undo(self, progress: "Progress | None" = None) -> Change:
        """Go back to before the last step of :meth:`history`, exactly.

        Parameters
        ----------
        progress : callable or None
            Called with the stage and the number of references that it has done.

        Raises
        ------
        OptionError
            If there is none, or the method cannot.
        """
        self._refuse("go back a step")

    def merge(
        self, other: "Detector", when: datetime | None = None, progress: "Progress | None" = None
    ) -> Change:
        """Take over what another detector of the same kind has learned.

        References that both know count once. The other stays as it is.

        Parameters
        ----------
        other : Detector
            Of the same method, options and backbone.
        when : datetime or None
            Noted in the history.
        progress : callable or None
            Called with the stage and the number of images that it has done.

        Raises
        ------
        OptionError
            If they do not go together, naming what differs; or the method cannot.
        """
        self._refuse("take over what another detector has learned")

    def compact(self) -> Change:
        """Drop what was forgotten for good, and with it the steps that :meth:`undo` could take."""
        self._refuse("drop what was forgotten")

    def origin(self, row: int) -> "Origin":
        """Where a row of the memory bank comes from.

        Parameters
        ----------
        row : int
            Number of the row in the bank.

        Raises
        ------
        OptionError
            If there is no such row, or the method keeps no patches.
        """
        self._refuse("name the place that a patch comes from")

    def explain(
        self,
        image: "ImageSource",
        worst: int = 5,
        references: Iterable[str | Path] = (),
    ) -> "Explanation":
        """The most anomalous patches of an image beside their nearest nominal ones.

        Parameters
        ----------
        image : path, uint8 or uint16 array, or PIL image
        worst : int
            At most so many, from distinct regions.
        references : iterable of paths
            Folders to look through for references that are no longer where they were learned from;
            they are recognised by their pixels.

        Raises
        ------
        ImageError
            If the image, or a reference that is to be shown, cannot be read.
        OptionError
            If the method keeps no patches.
        """
        self._refuse("show the nearest nominal patch")

    def history(self) -> list[Version]:
        """The steps by which the detector came to know what it knows, the first one first."""
        names = tuple(reference["file"] for reference in self.references_)
        return [Version(1, "fit", names, len(names), self.bank_rows, None)]

    @property
    def bank_rows(self) -> int:
        """Patches in the memory bank, or in all of them; 0 where a method has none."""
        return sum(
            len(part)
            for name, part in self.named_modules()
            if isinstance(part, MemoryBank) and not {"attic", "summaries"} & set(name.split("."))
        )

    @property
    def calibration_note(self) -> str | None:
        """What should be known of held-out scores that were measured with another bank."""
        return None

    def _refuse(self, what: str) -> NoReturn:
        raise OptionError(
            f"{self.method} cannot {what}, since it does not keep the patches of its references "
            "one by one: fit it anew, with the images that it should know; or choose a method "
            "with a memory bank (anomalydino, multilayer-nn, patchcore)"
        )


def utc(when: datetime | None) -> str | None:
    """A time as the history has it; one without a time zone is taken for local time."""
    if when is None:
        return None
    return when.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def find_reference(
    image: ImageSource, references: Sequence[dict[str, Any]], sixteen_bit: str = "range"
) -> dict[str, Any]:
    """The reference that a name, a digest or an image stands for.

    Raises
    ------
    OptionError
        If there is none, listing the nearest names, or several.
    """
    if isinstance(image, str | Path):
        name = str(image)
        for found in (_named(name, references), _digested(name, references)):
            if found:
                return _only(found, name)
        try:
            digest = content_digest(read_image(name, sixteen_bit))
        except ImageError:
            found = _ending(name, references)
        else:
            found = _digested(digest, references) or _ending(name, references)
    else:
        name = describe(image)
        digest = content_digest(read_image(image, sixteen_bit))
        found = _digested(digest, references)
    if found:
        return _only(found, name)
    raise OptionError(
        f"{name}: not among the {len(references)} references{_near(name, references)}"
    )


def _named(name: str, references: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [reference for reference in references if reference["file"] == name]


def _digested(name: str, references: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    if not _SHORT_DIGEST <= len(name) <= _DIGEST or not set(name) <= set(string.hexdigits):
        return []
    return [reference for reference in references if reference["digest"].startswith(name.lower())]


def _ending(name: str, references: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """References whose path ends in a name, by whole folders."""
    wanted = Path(name).parts
    return [r for r in references if Path(r["file"]).parts[-len(wanted) :] == wanted]


def _only(found: list[dict[str, Any]], name: str) -> dict[str, Any]:
    if len(found) > 1:
        listed = "".join(f"\n  {r['file']}  digest {r['digest'][:12]}" for r in found[:10])
        raise OptionError(
            f"{name}: stands for {len(found)} references; name one by its whole path or its "
            f"digest:{listed}"
        )
    return found[0]


def _near(name: str, references: Sequence[dict[str, Any]]) -> str:
    """The names nearest to a name that is not among them, in words."""
    files = [reference["file"] for reference in references]
    last = Path(name).name.lower()
    ratios = [
        difflib.SequenceMatcher(None, last, Path(file).name.lower(), autojunk=False).ratio()
        + 0.1 * difflib.SequenceMatcher(None, name, file, autojunk=False).ratio()
        for file in files
    ]
    nearest = np.argsort(-np.asarray(ratios), kind="stable")[:_NEAREST_NAMES]
    listed = "".join(f"\n  {files[number]}" for number in nearest)
    return f"; the nearest names are{listed}\n`offnominal history` lists what a model knows"
