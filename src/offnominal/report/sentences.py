"""What the figures say, in plain words."""

import math
from collections.abc import Sequence

from offnominal.benchmark.store import FinishedCell
from offnominal.report.results import Setup, best_setup, label_setups
from offnominal.report.words import count, join, percent, setting_words, spread

__all__ = ["best_line", "headline", "learning_line"]

#: A number of images is enough when it reaches this share of what the most images reach.
ENOUGH = 0.98


def headline(cells: Sequence[FinishedCell], setups: Sequence[Setup]) -> list[str]:
    """One paragraph for each data set: what was run, and what came out best."""
    told = []
    for dataset in dict.fromkeys(setup.dataset for setup in setups):
        mine = [setup for setup in setups if setup.dataset == dataset]
        own = [cell for cell in cells if cell.settings["dataset"] == dataset]
        told.append(f"{_what(dataset, mine, own)} {_best(mine)}".strip())
    return told


def learning_line(setups: Sequence[Setup], metric: str = "image_auroc") -> str:
    """How many images are enough, such as ``8 images reach 98 % of what 64 reach.``

    What a number of images reaches is its mean AUROC above 50 %, which is guessing: 98 % of 0.96
    is no more than 0.94, and a plain ratio of AUROCs would call a coin half as good as perfection.

    Parameters
    ----------
    setups : sequence of Setup
        That differ in shots alone.
    metric : str
        A figure for which 0.5 is guessing.

    Returns
    -------
    str
        Empty if fewer than two numbers of images were finished.
    """
    found = [
        (setup, summary.mean)
        for setup in sorted(setups, key=_most)
        if setup.shots != 0 and not setup.untrained and (summary := setup.compared(metric)).whole
    ]
    if len(found) < 2:
        return ""
    last, top = found[-1]
    most = "all" if last.shots is None else str(last.shots)
    if top - 0.5 < 0.05:
        return f"Even {most} images do little better than guessing ({percent(top)} %)."
    shares = [(setup, (mean - 0.5) / (top - 0.5)) for setup, mean in found]
    enough, share = next((s, share) for s, share in shares if share >= ENOUGH)
    if enough is last:
        before, share = shares[-2]
        fewer = setting_words("shots", before.shots, alone=True)
        return (
            f"{fewer} {_reach(before)} {math.floor(100 * share)} % of what {most} reach: "
            "more images still help."
        )
    told = setting_words("shots", enough.shots, alone=True)
    amount = f"{math.floor(100 * share)} % of what" if share < 1 else "no less than"
    return f"{told} {_reach(enough)} {amount} {most}{' reach' if share < 1 else ''}."


def best_line(setups: Sequence[Setup], labels: Sequence[str], metric: str = "image_auroc") -> str:
    """Which setup is best, and by how much; empty if there is nothing to compare.

    Setups whose weights were not pretrained are passed over.
    """
    ranked = sorted(
        (
            (summary.mean, label, summary)
            for setup, label in zip(setups, labels, strict=True)
            if not setup.untrained and (summary := setup.compared(metric)).whole
        ),
        key=lambda each: -each[0],
    )
    if len(ranked) < 2:
        return ""
    (first, label, summary), (second, other, _) = ranked[:2]
    gap = 100 * (first - second)
    line = f"Best image AUROC: {spread(first, summary.std)} % ({label})"
    if round(gap, 1) == 0:
        return f"{line}; {other}: the same."
    deviation = 0 if math.isnan(summary.std) else 100 * summary.std
    close = ", no more than the spread over seeds" if gap <= deviation else ""
    return f"{line}; {other}: {gap:.1f} points less{close}."


def _most(setup: Setup) -> float:
    return math.inf if setup.shots is None else setup.shots


def _reach(setup: Setup) -> str:
    return "reaches" if setup.shots == 1 else "reach"


def _what(dataset: str, setups: Sequence[Setup], cells: Sequence[FinishedCell]) -> str:
    by_category = {cell.settings["category"]: cell for cell in cells}
    images = sum(
        cell.settings["data"]["test_good"] + cell.settings["data"]["test_defective"]
        for cell in by_category.values()
    )
    methods = list(dict.fromkeys(setup.method for setup in setups))
    seeds = {cell.settings["seed"] for cell in cells}
    parts = [
        f"{join(methods)} on {dataset}: {count(len(by_category), 'category')},",
        f"{count(images, 'test image')}, {count(len(setups), 'setup')},",
        f"{count(len(seeds), 'seed')}.",
    ]
    return " ".join(parts)


def _best(setups: Sequence[Setup]) -> str:
    best = best_setup(setups)
    if best is None:
        if all(setup.untrained for setup in setups):
            return "No figure says anything about a method: no weights were pretrained."
        return "No setup has every category finished yet."
    label = dict(zip(map(id, setups), label_setups(setups), strict=True))[id(best)]
    summary = best.compared("image_auroc")
    told = f"Best image AUROC: {spread(summary.mean, summary.std)} % ({label})."
    missed = best.compared("image_miss_at_1%")
    if missed.whole:
        told += (
            f" Were 1 % of the good parts rejected, it would miss {percent(missed.mean)} % of the "
            "defective ones."
        )
    return told
