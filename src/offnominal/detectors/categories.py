"""Several categories in one model: which image is of which, so that each has its own threshold."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from offnominal.detectors.references import Reference
from offnominal.errors import OptionError
from offnominal.good_scores import CalibrationScores
from offnominal.text import printable

if TYPE_CHECKING:  # reading a model's header takes no image, nor what reads one
    from offnominal.images import Channels, ImageSource
    from offnominal.sources import ImageSources

__all__ = ["Categorised", "check_all_there", "check_category", "grouped", "names_of"]
__all__ += ["refuse_several", "scores_of", "told_apart"]

Categorised = Mapping[str, "ImageSources"]
"""Images of good parts by the name of their category."""

_LONGEST = 200


def told_apart(
    images: Categorised, channels: "Channels" = "rgb"
) -> "tuple[list[ImageSource], dict[int, str]]":
    """All images, and the category of each by its identity.

    Raises
    ------
    OptionError
        If a name is not fit for one, a category has fewer than two images, or an image is given for
        two.
    """
    from offnominal.images import describe
    from offnominal.sources import several

    listed: list[ImageSource] = []
    names: dict[int, str] = {}
    for name, own in images.items():
        if not name.strip() or printable(name) != name or len(name) > _LONGEST:
            raise OptionError(f"category {name[:_LONGEST]!r}: give it a name of plain characters")
        found = list(several(own, channels))
        if len(found) < 2:
            raise OptionError(f"category {name}: {len(found)} images; give 2 or more, better 50")
        for one in found:
            if names.setdefault(id(one), name) != name:
                raise OptionError(f"{describe(one)}: is of {names[id(one)]} and of {name}")
        listed += found
    return listed, names


def check_all_there(references: Sequence[Reference], names: set[str]) -> None:
    """Raise an :class:`OptionError` if next to nothing of a category is left without copies."""
    for name in sorted(names):
        left = sum(one.category == name for one in references)
        if left < 2:
            raise OptionError(
                f"category {name}: {left} of its images could be read and are no exact copies of "
                "others; give 2 or more, better 50"
            )


def names_of(references: Sequence[Reference]) -> tuple[str, ...]:
    """The categories, sorted; none where nothing was said of any."""
    if not references or not references[0].category:
        return ()  # either all have one or none; of thousands of references this is asked often
    return tuple(sorted({one.category for one in references if one.active} - {""}))


def grouped(references: Sequence[Reference]) -> list[list[int]]:
    """Numbers of the references of each category; one group where nothing was said of any."""
    groups: dict[str, list[int]] = {}
    for number, one in enumerate(references):
        groups.setdefault(one.category, []).append(number)
    return [groups[name] for name in sorted(groups)]


def check_category(references: Sequence[Reference], category: str | None) -> None:
    """Raise an :class:`OptionError` that lists the categories, unless it is clear which is meant.

    A model of one category, or of none that was named, needs none.
    """
    names = names_of(references)
    listed = ", ".join(names)
    if category is None and len(names) > 1:
        raise OptionError(
            f"the model knows {len(names)} categories, each with a threshold of its own: say which "
            f"it is to judge by, with --category NAME or detector.category = NAME, of {listed}"
        )
    if category is not None and category not in names:
        told = f"choose one of {listed}" if names else "the model has no categories; leave it out"
        raise OptionError(f"--category {category}: {told}")


def refuse_several(references: Sequence[Reference]) -> None:
    """Raise an :class:`OptionError` where a model of several categories were to be calibrated."""
    if len(names_of(references)) > 1:
        raise OptionError(
            "a model of several categories keeps the thresholds of its fit, each from images that "
            "were held back; fit it anew with more good images, or with another --false-reject"
        )


def scores_of(
    scores: CalibrationScores, references: Sequence[Reference], category: str | None
) -> CalibrationScores:
    """Scores of one category's references, or all of them where there is one category only."""
    check_category(references, category)
    if len(names_of(references)) < 2:
        return scores
    return scores.of([n for n, one in enumerate(references) if one.category == category])
