"""The whole path on synthetic parts: draw, fit, predict, measure, and a page to look at."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from offnominal.datasets.masks import read_mask
from offnominal.datasets.sample import Sample
from offnominal.datasets.synthetic import LOOKS, write_dataset
from offnominal.detectors.memory_bank.anomalydino import AnomalyDINO
from offnominal.errors import OptionError
from offnominal.images import read_image
from offnominal.metrics import image_metrics, pixel_metrics
from offnominal.pictures import colour_map
from offnominal.prediction import Prediction
from offnominal.report import Card, Outcome, Scores, write_page

__all__ = ["DemoResult", "run_demo"]

_MARK = ".drawn-by-offnominal-demo"
_FALSE_REJECT = 0.05  # 24 references can promise 4 %
_CARDS = 12  # images shown for each look


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
    progress: Callable[[str, int], None] | None = None,
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
        If the folder holds parts that the demonstration did not draw.
    """
    samples = _draw(folder / "parts", looks, n_train, n_good, n_per_defect, seed)
    figures: list[dict[str, object]] = []
    cards: list[Card] = []
    scores: list[Scores] = []
    decisions: dict[str, list[str]] = {}
    pictures: list[tuple[str, np.ndarray]] = []
    for look in looks:
        train = [s for s in samples if s.category == look and s.split == "train"]
        test = [s for s in samples if s.category == look and s.split == "test"]
        detector = AnomalyDINO(
            backbone=backbone,
            weights=weights,
            rotations="none",  # the parts come in one orientation
            false_reject=_FALSE_REJECT,
        )
        detector.fit([s.image for s in train], progress=_named(progress, look))
        detector.save(folder / f"{look}.offn")
        images = [s.image for s in test]
        predictions = list(detector.stream(images, progress=_named(progress, look)))
        figures.append(_measure(look, test, predictions))
        scores.append(_scores(look, test, predictions))
        cards += [
            _card(s, p) for s, p in _spread(list(zip(test, predictions, strict=True)), _CARDS)
        ]
        decisions[look] = _decisions(detector)
        reason = detector.masking_test_["reason"] if detector.masking_test_ else "not asked for"
        pictures.append(
            (
                f"{look}: foreground mask {'on' if detector.masks_ else 'off'}, {reason}",
                detector.foreground_picture(read_image(train[0].image)),
            )
        )
    page = write_page(
        folder / "index.html",
        "Offnominal on synthetic parts",
        figures,
        cards,
        scores=scores,
        decisions=decisions,
        pictures=pictures,
    )
    return DemoResult(page, figures)


def _draw(
    root: Path, looks: Sequence[str], n_train: int, n_good: int, n_per_defect: int, seed: int
) -> list[Sample]:
    if root.exists():
        if not (root / _MARK).exists():
            raise OptionError(f"-o {root.parent}: {root} is not from an earlier demonstration")
        shutil.rmtree(root)
    root.mkdir(parents=True)
    (root / _MARK).touch()
    return write_dataset(root, looks, n_train, n_good, n_per_defect, seed)


def _named(
    progress: Callable[[str, int], None] | None, look: str
) -> Callable[[str, int], None] | None:
    return None if progress is None else lambda stage, done: progress(f"{look}: {stage}", done)


def _measure(look: str, test: list[Sample], predictions: list[Prediction]) -> dict[str, object]:
    maps = [p.anomaly_map for p in predictions]
    masks = [
        np.zeros(m.shape, np.bool_)
        if sample.mask is None
        else read_mask(sample.mask, (m.shape[0], m.shape[1]))
        for sample, m in zip(test, maps, strict=True)
    ]
    by_image = image_metrics([s.label for s in test], [p.score for p in predictions])
    by_pixel = pixel_metrics(maps, masks)
    chosen = ("image_auroc", "image_ap", "image_f1_max")
    row: dict[str, object] = {"category": look}
    row |= {name: by_image[name] for name in chosen}
    return row | {name: by_pixel[name] for name in ("pixel_auroc", "aupro")}


def _scores(look: str, test: list[Sample], predictions: list[Prediction]) -> Scores:
    good = [p.score for s, p in zip(test, predictions, strict=True) if not s.label]
    defective = [p.score for s, p in zip(test, predictions, strict=True) if s.label]
    threshold = predictions[0].threshold
    return Scores(look, good, defective, float("nan") if threshold is None else threshold)


def _spread(
    results: list[tuple[Sample, Prediction]], count: int
) -> list[tuple[Sample, Prediction]]:
    """Some results of every kind: the first ones of each, taken in turn."""
    kinds: dict[str, list[tuple[Sample, Prediction]]] = {}
    for sample, prediction in results:
        kinds.setdefault(sample.defect, []).append((sample, prediction))
    turns = [
        group[turn] for turn in range(len(results)) for group in kinds.values() if turn < len(group)
    ]
    chosen = turns[:count]
    return sorted(chosen, key=lambda pair: (-pair[0].label, -pair[1].score))


def _card(sample: Sample, prediction: Prediction) -> Card:
    outcomes: dict[tuple[bool, bool], Outcome] = {
        (True, True): "hit",
        (True, False): "miss",
        (False, True): "false alarm",
        (False, False): "good",
    }
    heat = prediction.anomaly_map
    size = (heat.shape[0], heat.shape[1])
    missing = float("nan")
    return Card(
        category=sample.category,
        defect=sample.defect,
        outcome=outcomes[bool(sample.label), bool(prediction.is_anomalous)],
        score=prediction.score,
        threshold=missing if prediction.threshold is None else prediction.threshold,
        p_value=missing if prediction.p_value is None else prediction.p_value,
        image=prediction.image,
        truth=None if sample.mask is None else read_mask(sample.mask, size),
        map_picture=colour_map(heat, *prediction.colour_range),
        overlay=prediction.overlay(),
        name=sample.image.name,
    )


def _decisions(detector: AnomalyDINO) -> list[str]:
    test = detector.masking_test_
    net = detector.load_network()
    return [
        f"backbone: {net.name}: {len(detector.bank):,} patches of {net.dim} values in the bank",
        f"foreground mask: {'on' if detector.masks_ else 'off'}"
        + (f": {test['reason']}" if test else ""),
        f"threshold: {detector.threshold}",
    ]
