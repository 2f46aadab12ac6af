"""How cells were run: what is common to all, and where they differ so that comparing is unsafe."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from offnominal.benchmark.store import FinishedCell
from offnominal.report.results import Setup
from offnominal.report.words import heading, join, setting_words

__all__ = ["conditions"]

_STATED = {"version": "Offnominal", "python": "Python"}
_MACHINE = {"device": "Device", "cpu": "Processor", "threads": "Threads"}


def conditions(cells: Sequence[FinishedCell], setups: Sequence[Setup]) -> dict[str, Any]:
    """``rows`` of what is common to all cells, ``warnings`` where they differ, and ``notes``."""
    rows, warnings = [], []
    packages = sorted({name for cell in cells for name in cell.run.get("packages") or {}})
    for name, term in (_STATED | _MACHINE | {name: name for name in packages}).items():
        runs = [(cell.run.get("packages") or {}) | cell.run for cell in cells]
        known = ["not known" if run.get(name) is None else str(run[name]) for run in runs]
        values = list(dict.fromkeys(known))
        rows.append((term, join(values)))
        if len(values) > 1:
            effect = "times" if name in _MACHINE else "figures"
            warnings.append(
                f"The cells were run under different conditions ({term.lower()}: "
                f"{join(values)}): their {effect} may not be comparable."
            )
    told = [cell.settings for cell in cells]
    states = {(each["dataset"], each["category"], each["samples"]) for each in told}
    places = Counter(f"{dataset}/{category}" for dataset, category, _ in states)
    if changed := sorted(place for place, number in places.items() if number > 1):
        warnings.append(
            f"The files of {join(changed)} changed between cells: those before and after are not "
            "comparable."
        )
    common = [
        f"{heading(name)}: {setting_words(name, value)}"
        for name, value in sorted(setups[0].settings["options"].items())
        if value is not None and all(setup.value(name) == value for setup in setups)
    ]
    rows.append(("Settings of all", "; ".join(common) or "none"))
    rows.append(("Data", ", ".join(dict.fromkeys(each["data"]["root"] for each in told))))
    notes = Counter(
        note
        for cell in cells
        for note in (
            *(cell.run.get("notes") or []),
            *(f"left out: {each}" for each in cell.run.get("unreadable") or []),
        )
    )
    times = [f"{note} ({n} cells)" if n > 1 else note for note, n in notes.items()]
    return {"rows": rows, "warnings": warnings, "notes": times}
