"""The whole path on synthetic parts: draw, fit, predict, measure, and a page to look at."""

import os
import re
import secrets
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from offnominal.backbones import DEFAULT
from offnominal.backbones.auto import packaged_backbone
from offnominal.datasets.masks import sample_mask
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
_PAGE = "index.html"
# What may lie in the folder of the parts, half-drawn ones included.
_DRAWN = re.compile(
    rf"{re.escape(_MARK)}|(\w+|\.\w+\.partial)/(train|test|ground_truth)/\w+/\d+(_mask)?\.png"
)
_CARDS = 12  # images shown for each look, unless there are more misses and false alarms
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
    backbone: str | None = None,
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
        As for any detector; None for both: the network that a package brings, which is the same
        with and without a connection.
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
        If the folder holds what the demonstration did not make, or cannot be written.
    """
    if seed < 0:
        raise OptionError(f"--seed {seed}: give 0 or more")
    note = ""
    if backbone is None and weights is None:
        backbone, note = packaged_backbone(DEFAULT)
    new = partial(
        AnomalyDINO,
        backbone=backbone,
        weights=weights,
    )
    new().load_network()  # what is missing is missed before anything is drawn
    _check_room(folder, looks)
    with _room(folder) as root:
        samples = write_dataset(root, looks, n_train, n_good, n_per_defect, seed)
    shown = {
        look: _show(look, [s for s in samples if s.category == look], new(), note, folder, progress)
        for look in looks
    }
    figures = [each.figures for each in shown.values()]
    page = write_page(
        folder / _PAGE,
        "Offnominal on synthetic parts",
        figures,
        [card for each in shown.values() for card in each.cards],
        scores=[each.scores for each in shown.values()],
        decisions={look: each.decisions for look, each in shown.items()},
        pictures=[each.picture for each in shown.values()],
    )
    return DemoResult(page, figures)


def _check_room(folder: Path, looks: Sequence[str]) -> None:
    """Refuse a folder in which something would be lost that no demonstration made."""
    root = folder / "parts"
    made = [root, folder / _PAGE, *(folder / f"{look}.offn" for look in looks)]
    strange = [path for path in made if os.path.lexists(path)]
    if (root / _MARK).is_file() and not root.is_symlink():
        strange = [
            path
            for path in root.rglob("*")
            if path.is_symlink() or not (path.is_dir() or _is_drawn(path.relative_to(root)))
        ]
    if strange:
        raise OptionError(
            f"-o {folder}: {strange[0]} is not from an earlier demonstration; name another folder"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OptionError(f"-o {folder}: cannot be made ({error.strerror})") from error
    if not os.access(folder, os.W_OK):
        raise OptionError(f"-o {folder}: nothing can be written there; name another folder")


def _is_drawn(name: Path) -> bool:
    return _DRAWN.fullmatch(name.as_posix()) is not None


@contextmanager
def _room(folder: Path) -> Iterator[Path]:
    """An empty folder for the parts, with the mark that tells whose they are.

    Earlier ones are back if the block ends with an error.
    """
    root, old = folder / "parts", folder / f".parts-{secrets.token_hex(8)}"
    try:
        if root.exists():
            root.rename(old)
        root.mkdir()
        (root / _MARK).touch()
    except OSError as error:
        raise OptionError(f"-o {folder}: cannot be written ({error.strerror})") from error
    try:
        yield root
    except BaseException:
        shutil.rmtree(root, ignore_errors=True)
        if old.exists():
            old.rename(root)
        raise
    shutil.rmtree(old, ignore_errors=True)


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
    note: str,
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
    mask = f"foreground mask: {'on' if detector.masks_ else 'off'}, {reason}"
    found = detector.orientation_test_["reason"] if detector.orientation_test_ else "as asked for"
    net = detector.load_network()
    decisions = [
        "; ".join(filter(None, [f"backbone: {net.name}", note or detector.backbone_note])),
        f"bank: {len(detector.bank):,} patches of {net.dim} values",
        mask,
        f"rotations: {detector.rotations_}, {found}",
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
    of = Counter(_outcome(*result) for result in results)
    return {
        "category": look,
        "caught": f"{of['hit']} of {of['hit'] + of['miss']}",
        "missed": str(of["miss"]),
        "false_alarms": f"{of['false alarm']} of {of['false alarm'] + of['good']}",
    } | {name: found[name] for name in _FIGURES}


def _mask(sample: Sample, prediction: Prediction) -> np.ndarray:
    height, width = prediction.image.shape[:2]
    mask = sample_mask(sample, (height, width))
    assert mask is not None  # all parts are drawn with theirs
    return mask


def _spread(results: Results) -> Results:
    """Every miss and every false alarm first, then some of every kind, taken in turn."""
    wrong = [pair for pair in results if _outcome(*pair) in ("miss", "false alarm")]
    kinds: dict[str, Results] = {}
    for pair in results:
        if pair not in wrong:
            kinds.setdefault(pair[0].defect, []).append(pair)
    turns = [
        group[turn] for turn in range(len(results)) for group in kinds.values() if turn < len(group)
    ]
    right = turns[: max(_CARDS - len(wrong), 0)]
    return [*wrong, *sorted(right, key=lambda pair: (-pair[0].label, -pair[1].score))]


def _outcome(sample: Sample, prediction: Prediction) -> Outcome:
    if sample.label:
        return "hit" if prediction.is_anomalous else "miss"
    return "false alarm" if prediction.is_anomalous else "good"


def _card(sample: Sample, prediction: Prediction) -> Card:
    missing = float("nan")
    return Card(
        category=sample.category,
        defect=sample.defect,
        outcome=_outcome(sample, prediction),
        score=prediction.score,
        threshold=missing if prediction.threshold is None else prediction.threshold,
        p_value=missing if prediction.p_value is None else prediction.p_value,
        image=prediction.image,
        truth=_mask(sample, prediction) if sample.label else None,
        map_picture=colour_map(prediction.anomaly_map, *prediction.colour_range),
        overlay=prediction.overlay(),
        name=sample.image.name,
    )
