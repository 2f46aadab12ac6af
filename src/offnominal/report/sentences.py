"""What the figures say, in plain words."""

import math
from collections.abc import Sequence

from offnominal.benchmark.store import FinishedCell
from offnominal.report.results import Setup, best_setup, label_setups
from offnominal.report.words import count, join, not_pretrained, percent, setting_words, spread

__all__ = ["best_line", "headline", "learning_line", "warning"]

#: A number of images is enough when it reaches this share of what the most images reach.
ENOUGH = 0.98

_MOST_NAMED = 8


def headline(cells: Sequence[FinishedCell], setups: Sequence[Setup]) -> list[str]:
    """One paragraph for each data set: what was run, and what came out best."""
    told = []
    for dataset in dict.fromkeys(setup.dataset for setup in setups):
        mine = [setup for setup in setups if setup.dataset == dataset]
        data = {
            cell.settings["category"]: cell.settings["data"]
            for cell in cells
            if cell.settings["dataset"] == dataset
        }
        images = sum(each["test_good"] + each["test_defective"] for each in data.values())
        seeds = {seed for setup in mine for seed in setup.seeds}
        methods = join(list(dict.fromkeys(setup.method for setup in mine)))
        told.append(
            f"{methods} on {dataset}: {count(len(data), 'category')}, "
            f"{count(images, 'test image')}, {count(len(mine), 'setup')}, "
            f"{count(len(seeds), 'seed')}. {_best(mine)}"
        )
    return told


def warning(setups: Sequence[Setup]) -> str:
    """Which setups' weights were not pretrained, for the top of the page; empty if none's."""
    marked = [setup for setup in setups if setup.untrained]
    if not marked:
        return ""
    which = f"{len(marked):,} of {count(len(setups), 'setup')}"
    if len(marked) == len(setups):
        which = "all setups"
    elif len(marked) <= _MOST_NAMED:
        which += f" ({'; '.join(setup.label for setup in marked)})"
    return not_pretrained(which, "; ".join(dict.fromkeys(setup.untrained for setup in marked)))


def learning_line(setups: Sequence[Setup], metric: str = "image_auroc") -> str:
    """How many images are enough, such as ``8 images reach 98 % of what 64 reach.``

    What a number of images reaches is its mean AUROC above 50 %, which is guessing: 98 % of 0.96
    is no more than 0.94, and a plain ratio of AUROCs would call a coin half as good as perfection.
    Empty if fewer than two numbers of images were finished. The setups differ in shots alone.
    """
    found = [
        (setup, summary.mean)
        for setup in sorted(setups, key=lambda s: math.inf if s.shots is None else s.shots)
        if setup.shots != 0 and (summary := setup.compared(metric)).whole
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
        amount = f"{math.floor(100 * share)} % of what {most} reach"
        return f"{_reaches(before)} {amount}: more images still help."
    if share < 1:
        return f"{_reaches(enough)} {math.floor(100 * share)} % of what {most} reach."
    return f"{_reaches(enough)} no less than {most}."


def best_line(setups: Sequence[Setup], labels: Sequence[str], metric: str = "image_auroc") -> str:
    """Which setup is best, and by how much; empty if there is nothing to compare."""
    both = zip(setups, labels, strict=True)
    known = [(setup.compared(metric), label) for setup, label in both]
    ranked = sorted((each for each in known if each[0].whole), key=lambda each: -each[0].mean)
    if len(ranked) < 2:
        return ""
    (first, label), (second, other) = ranked[:2]
    gap = 100 * (first.mean - second.mean)
    line = f"Best image AUROC: {spread(first.mean, first.std)} % ({label})"
    if round(gap, 1) == 0:
        return f"{line}; {other}: the same."
    close = ", no more than the spread over seeds" if gap <= 100 * first.std else ""
    return f"{line}; {other}: {gap:.1f} points less{close}."


def _reaches(setup: Setup) -> str:
    words = setting_words("shots", setup.shots, alone=True)
    return f"{words} {'reaches' if setup.shots == 1 else 'reach'}"


def _best(setups: Sequence[Setup]) -> str:
    best = best_setup(setups)
    if best is None:
        if all(setup.untrained for setup in setups):
            return "No figure says anything about a method: no weights were pretrained."
        return "No setup has every category finished yet."
    label = label_setups(setups)[setups.index(best)]
    summary = best.compared("image_auroc")
    told = f"Best image AUROC: {spread(summary.mean, summary.std)} % ({label})."
    missed = best.compared("image_miss_at_1%")
    if missed.whole:
        told += (
            f" Were 1 % of the good parts rejected, it would miss {percent(missed.mean)} % of the "
            "defective ones."
        )
    return told
