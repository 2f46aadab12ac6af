"""Looking a data set over before it is used: what is in it, what is odd, and what follows."""

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, cast

from offnominal.datasets.dataset import Dataset
from offnominal.datasets.doubts import Doubts, named
from offnominal.datasets.masks import inspect_mask
from offnominal.datasets.report import Contents, Finding, Report, Severity
from offnominal.datasets.sample import Sample
from offnominal.datasets.scan_doubts import ScanFacts, facts_of, scan_findings
from offnominal.images import content_digest, read_image
from offnominal.labels.alike import Thumbnail, groups_of, thumbnail
from offnominal.labels.gather import Boxes, Classes
from offnominal.labels.summary import check_labels
from offnominal.prefetch import prefetch
from offnominal.scans.files import read_scan
from offnominal.scans.places import is_scan_file

__all__ = ["check"]

_EXAMPLES = 3


class _Facts(NamedTuple):
    """What reading one image and its mask taught."""

    size: tuple[int, int]
    digest: str
    doubts: list[tuple[str, str]]  # about the mask, as `inspect_mask` has them
    small: Thumbnail | None  # None of a scan without colours
    scan: ScanFacts | None = None


Read = Sequence[tuple[Sample, _Facts]]

# One side, the other, severity, what the same picture on both is called, what follows from it.
_DUPLICATES: tuple[tuple[str, str, Severity, str, str], ...] = (
    ("learned", "defective", "error",
     "images to learn from that are also defective images to test on",
     "both are used as they are, so that the defect is learned as good; remove one of each"),
    ("good", "defective", "error", "good images to test on that are also defective ones",
     "both are used as they are, and no score can tell them apart; remove one of each"),
    ("learned", "good", "warning", "images to learn from that are also good images to test on",
     "both are used as they are, and the test is too easy by them; remove one of each"),
    ("learned", "learned", "note", "images to learn from that are there more than once",
     "all are used; few-shot draws may hold the same picture twice"),
)  # fmt: skip


def check(
    dataset: Dataset,
    progress: Callable[[int], None] | None = None,
    workers: int | None = None,
    *,
    boxes: Boxes | None = None,
    classes: Classes | None = None,
) -> Report:
    """Read every image and every mask of a data set, and say what it is like.

    Parameters
    ----------
    dataset : Dataset
        The data set.
    progress : callable or None
        Called with the number of images done.
    workers : int or None
        Threads; by default as many as there are processors, at most 8.
    boxes : path, several, or None
        Annotations of the defective images, as :func:`~offnominal.labels.gather.gather` reads them.
    classes : {"by-folder"} or None
        With it, the kinds of defect that the data set has name the classes of its defects, and not
        the annotations.

    Returns
    -------
    Report
    """
    workers = workers or min(8, os.cpu_count() or 1)
    read: list[tuple[Sample, _Facts]] = []
    broken: list[str] = []
    stream = prefetch(dataset.samples, _look, workers, 2 * workers)
    for done, (sample, facts, error) in enumerate(stream, 1):
        if facts is not None:
            read.append((sample, facts))
        else:
            broken.append(str(error))
        if progress is not None:
            progress(done)
    labels, odd = None, list[Finding]()
    if boxes is not None or classes is not None:
        labels, odd = check_labels(
            [(s, facts.size) for s, facts in read if s.label], boxes, classes
        )
    contents = tuple(_contents(name, dataset.samples, read) for name in dataset.categories)
    findings = [
        *_found(
            "error", "images that cannot be read", broken,
            "they are listed and left out, and the others are used; copy or export them again",
        ),
        *_mask_findings(dataset.root, read),
        *_duplicates(dataset.root, read),
        *_same_pictures(dataset.root, read),
        *scan_findings([(s.category, named(s.image, dataset.root), facts.scan)
                        for s, facts in read if facts.scan is not None]),
        *odd,
        *_gaps(contents),
        *(Finding("note", note, 0, (), "") for note in dataset.notes),
    ]  # fmt: skip
    findings.sort(key=lambda finding: ("error", "warning", "note").index(finding.severity))
    masks = sum(kind == "unreadable" for _, facts in read for kind, _ in facts.doubts)
    root = str(dataset.root)
    return Report(
        dataset.name, root, dataset.layout, contents, tuple(findings), len(broken) + masks, labels
    )


def _found(severity: Severity, what: str, hits: Sequence[str], action: str) -> list[Finding]:
    return [Finding(severity, what, len(hits), tuple(hits[:_EXAMPLES]), action)] if hits else []


def _look(sample: Sample) -> _Facts:
    if is_scan_file(sample.image):
        scan = read_scan(sample.image)
        size = (scan.points.shape[0], scan.points.shape[1])
        small = thumbnail(scan.colour) if scan.organised and scan.colour is not None else None
        doubts = inspect_mask(sample, size)[1]
        return _Facts(size, content_digest(scan.as_array()), doubts, small, facts_of(scan))
    image = read_image(sample.image)
    size = (image.shape[0], image.shape[1])
    doubts = inspect_mask(sample, size)[1]
    return _Facts(size, content_digest(image), doubts, thumbnail(image))


def _mask_findings(root: Path, read: Read) -> Iterable[Finding]:
    doubts = Doubts()
    for s, facts in read:
        for kind, detail in facts.doubts:
            doubts.add(kind, s.mask or s.image, root, detail)
    for severity, what, hits, action in doubts:
        yield from _found(severity, what, hits, action)
    masked = {s.category for s, _ in read if s.mask is not None}
    bare = [s for s, _ in read if s.label and s.split == "test" and s.mask is None]
    yield from _found(
        "warning", "defective images without a mask",
        [named(s.image, root) for s in bare if s.category in masked],
        "they count for image metrics and are left out of pixel metrics",
    )  # fmt: skip
    if without := sorted({s.category for s in bare} - masked):
        what = f"no masks at all in {', '.join(without)}"
        yield Finding("note", what, 0, (), "there are image metrics, no pixel metrics")


def _duplicates(root: Path, read: Read) -> Iterable[Finding]:
    """Images with the same pixels, within a category, whatever their format."""
    groups: dict[tuple[str, str], list[tuple[str, str]]] = defaultdict(list)
    for s, facts in read:
        use = {"train": "" if s.label else "learned", "test": "defective" if s.label else "good"}
        groups[s.category, facts.digest].append((use.get(s.split, ""), named(s.image, root)))
    for first, second, severity, what, action in _DUPLICATES:
        pairs = []
        for group in groups.values():
            ones = [name for use, name in group if use == first]
            others = [name for use, name in group if use == second and name not in ones[:1]]
            if ones and others:
                pairs.append(f"{ones[0]} = {others[0]}")
        yield from _found(severity, what, pairs, action)


def _same_pictures(root: Path, read: Read) -> Iterable[Finding]:
    """Images within a category that are one picture, in other light, turned, or cut a little."""
    several: list[list[tuple[Sample, _Facts]]] = []
    for category in sorted({s.category for s, _ in read}):
        own = [(s, facts) for s, facts in read if s.category == category]
        groups: dict[int, list[tuple[Sample, _Facts]]] = defaultdict(list)
        own = [one for one in own if one[1].small is not None]
        small = [facts.small for _, facts in own if facts.small is not None]
        for place, group in enumerate(groups_of(small)):
            groups[group].append(own[place])
        # Those that are equal pixel by pixel are told as such.
        several += [g for g in groups.values() if len({facts.digest for _, facts in g}) > 1]
    both = [g for g in several if len({s.split for s, _ in g} & {"train", "test"}) > 1]
    one_side = [g for g in several if g not in both]
    for severity, what, groups_there, action in (
        ("warning", "images to learn from that are one picture with images to test on", both,
         "the test is too easy by them; keep the images of one part on one side"),
        ("note", "images of one side that are one picture", one_side,
         "draws of labelled defects keep them together"),
    ):  # fmt: skip
        pairs = [" = ".join(named(s.image, root) for s, _ in _apart(g)) for g in groups_there]
        many = sum(map(len, groups_there))
        told = f"{many} images in all, in other light, turned, or cut a little"
        yield from _found(cast(Severity, severity), what, pairs, f"{told}; {action}")


def _apart(group: list[tuple[Sample, _Facts]]) -> list[tuple[Sample, _Facts]]:
    """Two of a group, of different splits where there are such."""
    first = group[0]
    return [first, next((one for one in group if one[0].split != first[0].split), group[1])]


def _contents(category: str, samples: Sequence[Sample], read: Read) -> Contents:
    own = [s for s in samples if s.category == category]
    good = Counter(s.split for s in own if not s.label)
    defective = [s for s in own if s.label and s.split == "test"]
    sizes = Counter(facts.size for s, facts in read if s.category == category)
    return Contents(
        category,
        good["train"],
        good["validation"],
        good["test"],
        dict(sorted(Counter(s.defect for s in defective).items())),
        sum(s.mask is not None for s in defective),
        tuple((width, height, n) for (height, width), n in sizes.most_common()),
    )


def _gaps(contents: Sequence[Contents]) -> Iterable[Finding]:
    for part, what, action in (
        ("train", "no good images to learn from", "only zero-shot methods can be run"),
        ("test_good", "no good images to test on", "image metrics are undefined"),
        ("test_defective", "no defective images", "no metric is defined"),
    ):
        if lacking := [each.category for each in contents if not getattr(each, part)]:
            yield Finding("warning", f"{what} in {', '.join(lacking)}", 0, (), action)
