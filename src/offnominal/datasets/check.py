"""Looking a data set over before it is used: what is in it, what is odd, and what follows."""

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from offnominal.datasets.dataset import Dataset
from offnominal.datasets.masks import mask_files, mask_levels, same_aspect
from offnominal.datasets.report import Contents, Finding, Report
from offnominal.datasets.sample import Sample
from offnominal.errors import DatasetError
from offnominal.images import content_digest, read_image
from offnominal.prefetch import prefetch

__all__ = ["check"]

_EXAMPLES = 3


@dataclass(frozen=True)
class _Facts:
    """What reading one image and its mask taught."""

    size: tuple[int, int]
    digest: str
    mask: str = ""  # one of the problems below, or empty
    detail: str = ""


def check(
    dataset: Dataset,
    progress: Callable[[int], None] | None = None,
    workers: int | None = None,
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
    findings = [
        Finding(
            "error", "images that cannot be read", len(broken), tuple(broken[:_EXAMPLES]),
            "they are listed and left out, and the others are used; copy or export them again",
        )
    ] if broken else []  # fmt: skip
    findings += _mask_findings(dataset.root, read)
    findings += _duplicates(dataset.root, read)
    contents = tuple(_contents(name, dataset.samples, read) for name in dataset.categories)
    findings += _gaps(contents)
    findings += [Finding("note", note, 0, (), "") for note in dataset.notes]
    order = {"error": 0, "warning": 1, "note": 2}
    findings.sort(key=lambda finding: order[finding.severity])
    return Report(
        dataset.name,
        str(dataset.root),
        dataset.layout,
        contents,
        tuple(findings),
        len(broken) + sum(facts.mask == "unreadable" for _, facts in read),
    )


def _look(sample: Sample) -> _Facts:
    image = read_image(sample.image)
    size = image.shape[:2]
    problem, detail = _mask_problem(sample, size) if sample.mask is not None else ("", "")
    return _Facts((size[0], size[1]), content_digest(image), problem, detail)


def _mask_problem(sample: Sample, size: tuple[int, ...]) -> tuple[str, str]:
    """What is odd about a mask, the worst first, and a detail; two empty texts if nothing is."""
    assert sample.mask is not None
    try:
        levels = [mask_levels(file) for file in mask_files(sample.mask)]
    except DatasetError as error:
        return "unreadable", str(error)
    for mask in levels:
        if not same_aspect(mask.shape, size):
            return "misshapen", f"{mask.shape[1]}x{mask.shape[0]} for {size[1]}x{size[0]}"
    if not any(bool(mask.any()) for mask in levels):
        return "empty", ""
    if not any(bool((mask >= sample.mask_threshold).any()) for mask in levels):
        return "faint", f"largest level {max(int(mask.max()) for mask in levels)}"
    if any(mask.shape != size for mask in levels):
        return "resized", f"{levels[0].shape[1]}x{levels[0].shape[0]} for {size[1]}x{size[0]}"
    if any(bool(((mask > 0) & (mask < sample.mask_threshold)).any()) for mask in levels):
        return "noisy", ""
    return "", ""


# Problem, severity, what it is called, what follows from it.
_MASK_PROBLEMS: tuple[tuple[str, Literal["error", "warning", "note"], str, str], ...] = (
    (
        "unreadable",
        "error",
        "masks that cannot be read",
        "their images count for image metrics and not for pixel metrics; export them again",
    ),
    (
        "misshapen",
        "error",
        "masks of another shape than their image",
        "they are left out of pixel metrics; export them at the image's size",
    ),
    (
        "faint",
        "warning",
        "masks in which no pixel reaches the threshold",
        "they count as empty; if they hold class numbers, use --mask-threshold 1",
    ),
    (
        "empty",
        "warning",
        "empty masks of defective images",
        "the images count as defective for image metrics and add nothing to pixel metrics",
    ),
    (
        "resized",
        "note",
        "masks of another size than their image, but of its shape",
        "they are resized to the image by nearest neighbour",
    ),
    (
        "noisy",
        "note",
        "masks with grey levels between 0 and the threshold",
        "those pixels count as good; --mask-threshold sets another border",
    ),
)


def _mask_findings(root: Path, read: Sequence[tuple[Sample, _Facts]]) -> list[Finding]:
    findings = []
    for problem, severity, what, action in _MASK_PROBLEMS:
        hits = [(s, facts.detail) for s, facts in read if facts.mask == problem]
        if hits:
            examples = tuple(
                detail if problem == "unreadable" else _named(s.mask, root, detail)
                for s, detail in hits[:_EXAMPLES]
            )
            findings.append(Finding(severity, what, len(hits), examples, action))
    masked = {s.category for s, _ in read if s.mask is not None}
    bare = [s for s, _ in read if s.label and s.split == "test" and s.mask is None]
    if missing := [s for s in bare if s.category in masked]:
        findings.append(
            Finding(
                "warning", "defective images without a mask", len(missing),
                tuple(_named(s.image, root) for s in missing[:_EXAMPLES]),
                "they count for image metrics and are left out of pixel metrics",
            )
        )  # fmt: skip
    if without := sorted({s.category for s in bare} - masked):
        what = f"no masks at all in {', '.join(without)}"
        findings.append(Finding("note", what, 0, (), "there are image metrics, no pixel metrics"))
    return findings


def _duplicates(root: Path, read: Sequence[tuple[Sample, _Facts]]) -> list[Finding]:
    """Images with the same pixels, within a category, whatever their format."""
    groups: dict[tuple[str, str], list[Sample]] = defaultdict(list)
    for sample, facts in read:
        groups[sample.category, facts.digest].append(sample)
    twins = [group for group in groups.values() if len(group) > 1]

    def learned(sample: Sample) -> bool:
        return sample.split == "train" and not sample.label

    def between(first: Callable[[Sample], bool], second: Callable[[Sample], bool]) -> list[str]:
        pairs = []
        for group in twins:
            one = next((s for s in group if first(s)), None)
            other = next((s for s in group if second(s) and s is not one), None)
            if one and other:
                pairs.append(f"{_named(one.image, root)} = {_named(other.image, root)}")
        return pairs

    kinds: tuple[tuple[Literal["error", "warning", "note"], str, list[str], str], ...] = (
        (
            "error",
            "images to learn from that are also defective images to test on",
            between(learned, lambda s: s.split == "test" and bool(s.label)),
            "both are used as they are, so that the defect is learned as good; remove one of each",
        ),
        (
            "error",
            "good images to test on that are also defective ones",
            between(
                lambda s: s.split == "test" and not s.label,
                lambda s: s.split == "test" and bool(s.label),
            ),
            "both are used as they are, and no score can tell them apart; remove one of each",
        ),
        (
            "warning",
            "images to learn from that are also good images to test on",
            between(learned, lambda s: s.split == "test" and not s.label),
            "both are used as they are, and the test is too easy by them; remove one of each",
        ),
        (
            "note",
            "images to learn from that are there more than once",
            between(learned, learned),
            "all are used; few-shot draws may hold the same picture twice",
        ),
    )
    return [
        Finding(severity, what, len(pairs), tuple(pairs[:_EXAMPLES]), action)
        for severity, what, pairs, action in kinds
        if pairs
    ]


def _contents(
    category: str, samples: Sequence[Sample], read: Sequence[tuple[Sample, _Facts]]
) -> Contents:
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


def _gaps(contents: Sequence[Contents]) -> list[Finding]:
    findings = []
    kinds: tuple[tuple[Callable[[Contents], bool], str, str], ...] = (
        (
            lambda c: c.train == 0,
            "no good images to learn from",
            "only zero-shot methods can be run",
        ),
        (lambda c: c.test_good == 0, "no good images to test on", "image metrics are undefined"),
        (lambda c: not c.test_defective, "no defective images", "no metric is defined"),
    )
    for lacks, what, action in kinds:
        if names := [c.category for c in contents if lacks(c)]:
            findings.append(Finding("warning", f"{what} in {', '.join(names)}", 0, (), action))
    return findings


def _named(path: Path | None, root: Path, detail: str = "") -> str:
    assert path is not None
    name = str(path.relative_to(root) if path.is_relative_to(root) else path)
    return f"{name} ({detail})" if detail else name
