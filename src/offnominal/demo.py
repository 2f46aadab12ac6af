"""The whole path on synthetic parts: draw, fit, predict, measure, and a page to look at."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from filelock import FileLock, Timeout

from offnominal.datasets.masks import sample_mask
from offnominal.datasets.sample import Sample
from offnominal.datasets.synthetic import LOOKS, write_dataset
from offnominal.detectors.memory_bank.anomalydino import AnomalyDINO
from offnominal.errors import OptionError
from offnominal.images import read_image
from offnominal.metrics import image_metrics, pixel_metrics
from offnominal.pictures import colour_map
from offnominal.prediction import Prediction
from offnominal.report import Card, Scores, write_page

__all__ = ["DemoResult", "run_demo"]

_MARK = ".drawn-by-offnominal-demo"
_FALSE_REJECT = 0.05  # 24 references can promise 4 %
_CARDS = 12  # images shown for each look
_FIGURES = ("image_auroc", "image_ap", "image_f1_max", "pixel_auroc", "aupro")

Progress = Callable[[str, int], None]
Results = list[tuple[Sample, Prediction]]


@dataclass(frozen=True)
class DemoResult:
    """What the demonstration made.

    Attributes
    ----------
    page : Path
        The page to open.
    figures : list of dict
        Metrics of each look.
    """

    page: Path
    figures: list[dict[str, object]]


def run_demo(
    folder: Path,
    backbone: str | None = "builtin-aligned",
    weights: str | None = None,
    seed: int = 0,
    looks: Sequence[str] = LOOKS,
    progress: Progress | None = None,
    n_train: int = 24,
    n_good: int = 12,
    n_per_defect: int = 4,
) -> DemoResult:
    """Draw parts, fit a detector to each look, score its test images, write a page.

    Parameters
    ----------
    folder : Path
        Gets ``parts/`` (images and masks in MVTec layout), ``LOOK.offn`` and ``index.html``.
    backbone, weights : str or None
        As for any detector.
    seed : int
        The same seed gives the same parts, scores and page.
    looks : sequence of str
        Which looks to draw.
    progress : callable or None
        Called with a look's stage and the number of images that it has done.
    n_train, n_good, n_per_defect : int
        Images for each look.

    Raises
    ------
    OptionError
        If the folder holds parts that the demonstration did not draw, another demonstration is at
        it, or it cannot be written.
    """
    with _claimed(folder):
        return _run(
            folder, backbone, weights, seed, looks, progress, (n_train, n_good, n_per_defect)
        )


def _run(
    folder: Path,
    backbone: str | None,
    weights: str | None,
    seed: int,
    looks: Sequence[str],
    progress: Progress | None,
    numbers: tuple[int, int, int],
) -> DemoResult:
    samples = _drawn(folder, looks, numbers, seed)
    new = partial(
        AnomalyDINO,
        backbone=backbone,
        weights=weights,
        rotations="none",  # the parts come in one orientation
        false_reject=_FALSE_REJECT,
    )
    shown = {
        look: _show(look, [s for s in samples if s.category == look], new(), folder, progress)
        for look in looks
    }
    figures = [each.figures for each in shown.values()]
    page = write_page(
        folder / "index.html",
        "Offnominal on synthetic parts",
        figures,
        [card for each in shown.values() for card in each.cards],
        scores=[each.scores for each in shown.values()],
        decisions={look: each.decisions for look, each in shown.items()},
        pictures=[each.picture for each in shown.values()],
    )
    return DemoResult(page, figures)


@contextmanager
def _claimed(folder: Path) -> Iterator[None]:
    """The folder for one demonstration at a time; what cannot be written there is said."""
    root = folder / "parts"
    if root.exists() and not (root / _MARK).exists():
        raise OptionError(f"-o {folder}: {root} is not from an earlier demonstration")
    lock = FileLock(folder / ".lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with lock.acquire(blocking=False):
            yield
    except Timeout as error:
        told = "another demonstration is writing into it; wait for it, or name another folder"
        raise OptionError(f"-o {folder}: {told}") from error
    except OSError as error:
        reason = error.strerror or str(error)
        raise OptionError(f"-o {folder}: cannot be written ({reason}); name another") from error
    finally:
        if not lock.is_locked:
            with suppress(OSError):
                (folder / ".lock").unlink()


def _drawn(
    folder: Path, looks: Sequence[str], numbers: tuple[int, int, int], seed: int
) -> list[Sample]:
    """The parts; those of an earlier demonstration go when the new ones are there."""
    root, draft = folder / "parts", folder / ".parts"
    shutil.rmtree(draft, ignore_errors=True)
    try:
        draft.mkdir()
        (draft / _MARK).touch()
        samples = write_dataset(draft, looks, *numbers, seed)
        if root.exists():
            shutil.rmtree(root)
        draft.rename(root)
    finally:
        shutil.rmtree(draft, ignore_errors=True)

    def moved(path: Path) -> Path:
        return root / path.relative_to(draft)

    return [
        replace(sample, image=moved(sample.image), mask=sample.mask and moved(sample.mask))
        for sample in samples
    ]


class _Shown(NamedTuple):
    """What the page shows of one look."""

    figures: dict[str, object]
    cards: list[Card]
    scores: Scores
    decisions: list[str]
    picture: tuple[str, np.ndarray]


def _show(
    look: str,
    samples: list[Sample],
    detector: AnomalyDINO,
    folder: Path,
    progress: Progress | None,
) -> _Shown:
    def tell(stage: str, done: int) -> None:
        if progress:
            progress(f"{look}: {stage}", done)

    train = [s.image for s in samples if s.split == "train"]
    test = [s for s in samples if s.split == "test"]
    detector.fit(train, progress=tell).save(folder / f"{look}.offn")
    results = list(zip(test, detector.stream([s.image for s in test], progress=tell), strict=True))
    reason = detector.masking_test_["reason"] if detector.masking_test_ else "not asked for"
    mask = f"foreground mask {'on' if detector.masks_ else 'off'}, {reason}"
    net = detector.load_network()
    decisions = [
        f"backbone: {net.name}: {len(detector.bank):,} patches of {net.dim} values in the bank",
        mask,
        f"threshold: {detector.threshold}",
    ]
    threshold = detector.threshold.value if detector.threshold else float("nan")
    good, bad = ([p.score for s, p in results if s.label == label] for label in (0, 1))
    return _Shown(
        _measure(look, results),
        [_card(*result) for result in _spread(results)],
        Scores(look, good, bad, threshold),
        decisions,
        (f"{look}: {mask}", detector.foreground_picture(read_image(train[0]))),
    )


def _measure(look: str, results: Results) -> dict[str, object]:
    maps = [p.anomaly_map for _, p in results]
    masks = [_mask(s, p) for s, p in results]
    found = image_metrics([s.label for s, _ in results], [p.score for _, p in results])
    found |= pixel_metrics(maps, masks)
    return {"category": look} | {name: found[name] for name in _FIGURES}


def _mask(sample: Sample, prediction: Prediction) -> np.ndarray:
    height, width = prediction.image.shape[:2]
    mask = sample_mask(sample, (height, width))
    assert mask is not None  # all parts are drawn with theirs
    return mask


def _spread(results: Results) -> Results:
    """Some results of every kind: the first ones of each, taken in turn."""
    kinds: dict[str, Results] = {}
    for sample, prediction in results:
        kinds.setdefault(sample.defect, []).append((sample, prediction))
    turns = [
        group[turn] for turn in range(len(results)) for group in kinds.values() if turn < len(group)
    ]
    return sorted(turns[:_CARDS], key=lambda pair: (-pair[0].label, -pair[1].score))


def _card(sample: Sample, prediction: Prediction) -> Card:
    rejected, missing = bool(prediction.is_anomalous), float("nan")
    return Card(
        category=sample.category,
        defect=sample.defect,
        outcome=("hit" if rejected else "miss")
        if sample.label
        else ("false alarm" if rejected else "good"),
        score=prediction.score,
        threshold=missing if prediction.threshold is None else prediction.threshold,
        p_value=missing if prediction.p_value is None else prediction.p_value,
        image=prediction.image,
        truth=_mask(sample, prediction) if sample.label else None,
        map_picture=colour_map(prediction.anomaly_map, *prediction.colour_range),
        overlay=prediction.overlay(),
        name=sample.image.name,
    )
