"""What the figures say, in plain words."""

import math
from collections.abc import Sequence

from offnominal.report.results import Setup, best_setup, label_setups
from offnominal.report.words import count, join, not_pretrained, percent, setting_words, spread

__all__ = ["best_line", "headline", "learning_line", "warning"]

#: A number of images is enough when it reaches this share of what the most images reach.
ENOUGH = 0.98


def headline(setups: Sequence[Setup]) -> list[str]:
    """One paragraph for each data set: what was run, and what came out best."""
    told = []
    for dataset in dict.fromkeys(setup.dataset for setup in setups):
        mine = [setup for setup in setups if setup.dataset == dataset]
        cells = {place: cell for setup in mine for place, cell in setup.cells.items()}
        data = {category: cell.settings["data"] for (category, _), cell in cells.items()}
        images = sum(each["test_good"] + each["test_defective"] for each in data.values())
        methods = join(list(dict.fromkeys(setup.method for setup in mine)))
        told.append(
            f"{methods} on {dataset}: {count(len(data), 'category')}, "
            f"{count(images, 'test image')}, {count(len(mine), 'setup')}, "
            f"{count(len({seed for _, seed in cells}), 'seed')}. {_best(mine)}"
        )
    return told


def warning(setups: Sequence[Setup]) -> str:
    """Which setups' weights were not pretrained, for the top of the page; empty if none's."""
    marked = [setup for setup in setups if setup.untrained]
    if not marked:
        return ""
    labels = "; ".join(setup.label for setup in marked)
    some = f"{len(marked):,} of {count(len(setups), 'setup')} ({labels})"
    which = "all setups" if len(marked) == len(setups) else some
    return not_pretrained(which, "; ".join(dict.fromkeys(setup.untrained for setup in marked)))


def learning_line(setups: Sequence[Setup], metric: str = "image_auroc") -> str:
    """How many images are enough, such as ``8 images reach 98 % of what 64 reach.``

    What a number of images reaches is its mean AUROC above 50 %, which is guessing: 98 % of 0.96
    is no more than 0.94, and a plain ratio of AUROCs would call a coin half as good as perfection.
    Empty if fewer than two numbers of images were finished. The setups differ in shots alone.
    """
    found = [
        (setup.shots, summary.mean - 0.5)
        for setup in sorted(setups, key=lambda s: math.inf if s.shots is None else s.shots)
        if setup.shots != 0 and (summary := setup.compared(metric)).whole
    ]
    if len(found) < 2:
        return ""
    most, top = found[-1]
    last = setting_words("shots", most)
    if top < 0.05:
        return f"Even {last} images do little better than guessing ({percent(0.5 + top)} %)."
    enough = next(place for place, (_, above) in enumerate(found) if above / top >= ENOUGH)
    # Where only the most are enough, the line is about those before.
    shots, above = found[min(enough, len(found) - 2)]
    words = setting_words("shots", shots, alone=True) + (" reaches" if shots == 1 else " reach")
    if above >= top:
        return f"{words} no less than {last}."
    more = ": more images still help" if enough == len(found) - 1 else ""
    return f"{words} {math.floor(100 * above / top)} % of what {last} reach{more}."


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


def _best(setups: Sequence[Setup]) -> str:
    best = best_setup(setups)
    if best is None:
        if all(setup.untrained for setup in setups):
            return "No figure says anything about a method: no weights were pretrained."
        return "No setup has every category finished yet."
    label = label_setups(setups)[setups.index(best)]
    summary, missed = best.compared("image_auroc"), best.compared("image_miss_at_1%")
    told = f"Best image AUROC: {spread(summary.mean, summary.std)} % ({label})."
    if missed.whole:
        told += (
            f" Were 1 % of the good parts rejected, it would miss {percent(missed.mean)} % of the "
            "defective ones."
        )
    return told
