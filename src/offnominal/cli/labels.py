"""Defective images that a command line names, with what is known of each."""

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from offnominal.cli.terminal import count, say
from offnominal.errors import OptionError

if TYPE_CHECKING:
    from offnominal.labels.labelled import Labelled

__all__ = ["read_labels"]


def read_labels(
    defects: list[str],
    masks: Path | None,
    boxes: list[Path],
    classes: Literal["by-folder"] | None,
) -> "list[Labelled]":
    """The defective images, once it was said what they are; none where none are named."""
    if not defects:
        for name, given in (("--masks", masks), ("--boxes", boxes), ("--classes", classes)):
            if given:
                raise OptionError(f"{name}: is about --defects; name their folder as well")
        return []
    from offnominal.labels.gather import gather

    found = gather(defects, masks, boxes, classes)
    for line in found.notes:
        say(line)
    marked = sum(bool(one.marks) for one in found.labelled)
    names = Counter(kind for one in found.labelled for kind in one.kinds)
    listed = ", ".join(f"{name} {number}" for name, number in sorted(names.items()))
    say(f"{count(len(found.labelled), 'defective image')}, {marked} of them marked: {listed}")
    return found.labelled
