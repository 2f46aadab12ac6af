"""Which labelled defects are learned from, and which are left to test on.

Images of one part, which are near-copies of one another, stay on one side: a detector that has seen
a scratch would otherwise be tested on the same scratch.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from offnominal.benchmark.cell import Cell, Tested
from offnominal.datasets import Sample
from offnominal.datasets.contents import relative
from offnominal.datasets.shots import draw_numbers
from offnominal.errors import ImageError, OptionError
from offnominal.images import read_image
from offnominal.labels.alike import Thumbnail, groups_of, thumbnail
from offnominal.labels.labelled import Labelled, Mark

__all__ = ["Drawn", "draw_defects", "kind_left_out", "labels_of", "parts"]


@dataclass(frozen=True)
class Drawn:
    """The defective images of a draw.

    Attributes
    ----------
    learned : list of Sample
        To learn from, in the order of the draw, so that fewer are the first of more.
    tested : dict of str to list of Sample
        What there is to test on, by :attr:`~offnominal.benchmark.cell.Cell.tested`.
    digest : str
        Of the places of those that were set aside, and of all that is tested on.
    """

    learned: list[Sample]
    tested: dict[Tested, list[Sample]]
    digest: str = ""


def kind_left_out(test: Sequence[Sample], seed: int) -> str | None:
    """The kind of defect that a draw learns nothing of: by turns, in the order of their names.

    None where there is only one kind, which would leave nothing to learn from.
    """
    kinds = sorted({sample.defect for sample in test if sample.label})
    return kinds[seed % len(kinds)] if len(kinds) > 1 else None


def draw_defects(
    test: Sequence[Sample], part_of: Mapping[Path, int], cell: Cell, root: Path
) -> Drawn:
    """Divide the test images of a category into labelled defects and what is tested on.

    Parts are drawn at random by the cell's seed, never more than half of them, and of each part one
    image before a second of any. Every other image of a part that was drawn is neither learned from
    nor tested on.

    Parameters
    ----------
    test : sequence of Sample
        Test images of the category.
    part_of : mapping of Path to int
        For each defective image the part that it shows, as :func:`parts` tells them apart.
    cell : Cell
        Its ``seed``, ``defects``, ``set_aside`` and ``left_out`` count.
    root : Path
        Of the data set.

    Raises
    ------
    OptionError
        If there are fewer defects to set aside.
    """
    if not cell.set_aside:
        return Drawn([], {"all": list(test)})
    bad = sorted((s for s in test if s.image in part_of), key=lambda s: (s.image.name, s.image))
    known: dict[int, list[Sample]] = {}
    for sample in bad:
        if sample.defect != cell.left_out:
            known.setdefault(part_of[sample.image], []).append(sample)
    groups = list(known.values())
    order = draw_numbers(len(groups), len(groups) // 2, cell.seed)
    chosen = [groups[number] for number in order][: cell.set_aside]
    rounds = max(map(len, chosen), default=0)
    pool = [group[turn] for turn in range(rounds) for group in chosen if turn < len(group)]
    if len(pool) < cell.set_aside:
        raise OptionError(
            f"half of the {len(groups)} different parts with a defect are kept to test on, and the "
            f"others have {len(pool)} images: give no larger number of labelled defects"
        )
    gone = {part_of[group[0].image] for group in chosen}
    left = [s for s in test if not s.label or part_of.get(s.image) not in gone]
    tested: dict[Tested, list[Sample]] = {
        "all": left,
        "known": [s for s in left if s.defect != cell.left_out],
        "left out": [s for s in left if not s.label or s.defect == cell.left_out],
    }
    names = [[relative(s.image, root) for s in some] for some in (pool[: cell.set_aside], left)]
    digest = hashlib.sha256(json.dumps(names).encode("utf-8", "surrogateescape")).hexdigest()
    return Drawn(pool[: cell.defects], tested, digest[:16])


def labels_of(learned: Sequence[Sample], marked: bool) -> list[Labelled]:
    """What a detector is told of defective images: the kind of each, and its mask where asked."""
    found = []
    for each in learned:
        known = each.mask is not None and marked
        mark = Mark(each.defect, mask=each.mask, threshold=each.mask_threshold) if known else None
        found.append(Labelled(each.image, (each.defect,), (mark,) if mark else ()))
    return found


def parts(samples: Sequence[Sample]) -> dict[Path, int]:
    """Which part each image shows, as far as pictures tell: those that are alike are of one part.

    An image that cannot be read is of no known part, and in no draw.
    """
    found: dict[Path, Thumbnail] = {}
    for sample in samples:
        with suppress(ImageError):
            found[sample.image] = thumbnail(read_image(sample.image))
    return dict(zip(found, groups_of(list(found.values())), strict=True))
