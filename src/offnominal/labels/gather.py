"""Defective images with what is known of each: whole images, masks, boxes, outlines and classes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from offnominal.checks import check_choice
from offnominal.datasets.folders import Paths, find_defects, pair_masks
from offnominal.datasets.masks import inspect_mask, read_mask
from offnominal.datasets.reading import GOOD_NAMES, Reading, counted, such_as
from offnominal.datasets.sample import Sample
from offnominal.errors import DatasetError, OptionError
from offnominal.labels.fitting import cut_by, fitted, upright_size
from offnominal.labels.formats import read_annotations
from offnominal.labels.formats.entry import Entry, Problem, Tell
from offnominal.labels.labelled import ANY_KIND, Labelled, Mark
from offnominal.labels.matching import match
from offnominal.labels.notes import Notes

__all__ = ["Gathered", "gather", "label_samples"]

Boxes = str | Path | Sequence[str | Path]
Classes = Literal["by-folder"]

# What is odd about a mask, and what follows; the rest counts as it is.
_UNUSABLE = {
    "unreadable": "cannot be read",
    "misshapen": "is of another shape than its image",
    "faint": "reaches the threshold in no pixel",
}
_ODD = {
    "empty": ("empty masks of defective images", "where their defects are is not known"),
    "whole": ("masks that mark the whole image", "used as they are"),
    "most": ("masks that mark more than half of their image", "used as they are"),
    "photo": ("masks with many grey levels, like photographs", "what is bright is marked"),
    "turned-image": ("images turned by their EXIF data that have masks", "taken upright"),
    "turned-mask": ("masks turned by their EXIF data", "turned as it says"),
}


class Gathered(NamedTuple):
    """Defective images, and what was decided on the way.

    Attributes
    ----------
    labelled : list of Labelled
    notes : list of str
        In words, a line each.
    """

    labelled: list[Labelled]
    notes: list[str]


def gather(
    defects: Paths,
    masks: str | Path | None = None,
    boxes: Boxes | None = None,
    classes: Classes | None = None,
    *,
    mask_threshold: int = 128,
    tell: Tell | None = None,
) -> Gathered:
    """Defective images of folders, files and patterns, with the masks and annotations they have.

    Some may have masks, some boxes or outlines, some nothing: then it is known only that they are
    defective.

    Parameters
    ----------
    defects : path, pattern, or several
        Defective images, as :func:`~offnominal.paths.find_images` finds them.
    masks : path or None
        Folder of masks, called as their images; those among the images are found as well.
    boxes : path, several, or None
        Annotations: files or folders, in any of the formats that
        :func:`~offnominal.labels.formats.read_annotations` reads.
    classes : {"by-folder"} or None
        ``by-folder``: the folder below one of ``defects``, or that folder itself where there is
        none below, names the class of all that is in it. None: the classes that the annotations
        name; ``defect`` where they name none.
    mask_threshold : int
        Smallest grey level of a mask, 1 to 255, that means defective.
    tell : callable or None
        Told of each :class:`Problem` with a mask or an annotation, which is then left out. None:
        the first is raised.

    Returns
    -------
    Gathered
        In the order of the files.

    Raises
    ------
    OptionError
        If there are no such images, or some lie in a folder that is called as good ones are.
    DatasetError
        If a mask or an annotation does not fit its image, or all masks or annotations fit none.
    """
    if classes is not None:
        check_choice("--classes", classes, Classes)
    reading = Reading()
    found, beside = find_defects(defects, masks, reading)
    found = list({image.absolute(): (image, place) for image, place in found}.values())
    below = {image: image.parts[-len(place.parts) - 1 : -1] for image, place in found}
    if good := [i for i, folders in below.items() if GOOD_NAMES & {f.lower() for f in folders}]:
        raise OptionError(
            f"{good[0]}: lies among the defects, in a folder of good parts by its name; name the "
            "folders of defective ones with --defects"
        )
    samples = []
    kinds = _folders(found) if classes else {}
    pairs = pair_masks(found, masks, beside, reading)
    if masks is not None and not any(m is not None and m.is_relative_to(masks) for *_, m in pairs):
        raise DatasetError(
            f"{masks}: holds a mask of none of the {counted(pairs, 'defective image')}, "
            f"{such_as(image.name for image, *_ in pairs)}; call masks as their images, as "
            f"{pairs[0][0].stem}_mask.png, or correct --masks or --defects"
        )
    for image, _, mask in pairs:
        kind = kinds.get(image, "")
        samples.append(Sample(image, 1, mask, kind, "", "", mask_threshold))
    gathered = label_samples(samples, boxes, tell)
    notes = reading.notes + gathered.notes
    return Gathered(gathered.labelled, notes + [str(reading.passed)] * bool(reading.passed.total()))


def label_samples(
    samples: Sequence[Sample], boxes: Boxes | None = None, tell: Tell | None = None
) -> Gathered:
    """The same of defective images whose masks and classes are known already.

    Parameters
    ----------
    samples : sequence of Sample
        Where one's ``defect`` is empty, the annotations name its classes.
    boxes, tell
        As :func:`gather` takes them.
    """
    problems: list[Problem] = []
    notes, lines = Notes(), list[str]()
    heard = problems.append if tell is None else tell
    entries = {} if boxes is None else _entries(boxes, samples, heard, lines)
    labelled = [_labelled(sample, entries.get(sample.image), heard, notes) for sample in samples]
    if problems:
        rest = len(problems) - 1
        more = f" (and {rest} more that do not fit: `offnominal datasets check` lists them)"
        raise DatasetError(f"{problems[0]}{more if rest else ''}")
    return Gathered(labelled, lines + notes.lines())


def _folders(found: Sequence[tuple[Path, Path]]) -> dict[Path, str]:
    """The class of each image, by its folder."""
    bases = {image: image.parents[len(place.parts) - 1] for image, place in found}
    deep = {bases[image] for image, place in found if len(place.parts) > 1}
    # A folder with others below it holds what belongs to none of them.
    return {
        image: place.parts[0]
        if len(place.parts) > 1
        else ANY_KIND if bases[image] in deep else bases[image].absolute().name
        for image, place in found
    }  # fmt: skip


def _entries(
    boxes: Boxes, samples: Sequence[Sample], tell: Tell, lines: list[str]
) -> dict[Path, Entry]:
    """What the annotations say of each image."""
    several = [boxes] if isinstance(boxes, str | Path) else boxes
    entries = [entry for one in several for entry in read_annotations(Path(one), tell, lines)]
    chosen, left = match(entries, [sample.image for sample in samples], tell)
    if entries and len(left) == len(entries):
        files = ", ".join(map(str, several))
        raise DatasetError(
            f"{files}: annotates none of the {counted(samples, 'defective image')}, "
            f"{such_as(s.image.name for s in samples)}; it names "
            f"{such_as(entry.names[0] for entry in entries)}: name the images as it does"
        )
    if unused := [entry.where for entry in left if entry.drawn]:
        lines.append(
            f"annotated images that are not among the defects: {len(unused)}, {such_as(unused)}: "
            "not used"
        )
    if bare := [entry.where for entry in chosen.values() if not (entry.drawn or entry.kinds)]:
        lines.append(
            f"defective images that are annotated with nothing: {len(bare)}, {such_as(bare)}: "
            "where their defects are is not known"
        )
    return chosen


def _labelled(sample: Sample, entry: Entry | None, tell: Tell, notes: Notes) -> Labelled:
    marks = [] if entry is None else fitted(entry, sample.image, tell, notes)
    kinds = [mark.kind for mark in marks] + list(entry.kinds if entry else ())
    if entry is not None and (good := [k for k in entry.kinds if k.lower() in GOOD_NAMES]):
        what = f"calls the image {good[0]}, which lies among the defects"
        tell(Problem(entry.where, what, "correct the class, or move the image"))
    if sample.defect:
        for kind in sorted({*kinds} - {sample.defect, ANY_KIND}):
            what = f"marks called {kind} in images of the class {sample.defect}"
            notes.add(what, sample.image.name, "the folder names the class")
        kinds = [sample.defect]
        marks = [Mark(sample.defect, mark.box, mark.polygons, mark.mask) for mark in marks]
    if sample.mask is not None and _fits(sample, tell, notes):
        marks = _masked(sample, marks, kinds, tell)
    return Labelled(sample.image, tuple(sorted(set(kinds))) or (ANY_KIND,), tuple(marks))


def _masked(sample: Sample, marks: list[Mark], kinds: list[str], tell: Tell) -> list[Mark]:
    """The marks of an image with a mask that fits."""
    assert sample.mask is not None
    found = upright_size(sample.image)
    if marks and found is not None:
        mask = read_mask(sample.mask, found[0], sample.mask_threshold)
        return cut_by(mask, marks, f"{sample.mask.name} of {sample.image}", tell)
    kind = kinds[0] if len(set(kinds)) == 1 else ANY_KIND
    return [Mark(kind, mask=sample.mask, threshold=sample.mask_threshold)]


def _fits(sample: Sample, tell: Tell, notes: Notes) -> bool:
    """Whether a mask says where a defect is; what is odd is noted, what is wrong told."""
    if (found := upright_size(sample.image)) is None:
        return False  # whoever reads the image says what is wrong with it
    union, doubts = inspect_mask(sample, found[0])
    for kind, detail in doubts:
        if kind in _UNUSABLE:
            what = f"{_UNUSABLE[kind]} ({detail})" if detail else _UNUSABLE[kind]
            told = "export it again, at the size of its image"
            if kind == "faint":
                told = "save it with white marks on black"
            tell(Problem(str(sample.mask), what, told))
        elif kind in _ODD:
            notes.add(_ODD[kind][0], sample.mask, _ODD[kind][1])
    return union is not None and bool(union.any())
