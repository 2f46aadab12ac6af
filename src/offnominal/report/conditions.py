"""How cells were run: what is common to all, and where they differ so that comparing is unsafe."""

import json
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
        values = list(dict.fromkeys(str(run.get(name, "not known")) for run in runs))
        rows.append((term, join(values)))
        if len(values) > 1:
            effect = "times" if name in _MACHINE else "figures"
            warnings.append(
                f"The cells were run under different conditions ({term.lower()}: "
                f"{join(values)}): their {effect} may not be comparable."
            )
    digests: dict[str, set[str]] = {}
    notes: Counter[str] = Counter()
    for cell in cells:
        place = f"{cell.settings['dataset']}/{cell.settings['category']}"
        digests.setdefault(place, set()).add(cell.settings["samples"])
        notes.update(cell.run.get("notes") or [])
        notes.update(f"left out: {each}" for each in cell.run.get("unreadable") or [])
    if changed := [place for place, found in sorted(digests.items()) if len(found) > 1]:
        warnings.append(
            f"The files of {join(changed)} changed between cells: those before and after are not "
            "comparable."
        )
    settings = [{k: json.dumps(v) for k, v in s.settings["options"].items()} for s in setups]
    common = set.intersection(*(set(each.items()) for each in settings))
    texts = [
        f"{heading(name)}: {setting_words(name, json.loads(value))}"
        for name, value in sorted(common)
        if value != "null"
    ]
    rows.append(("Settings of all", "; ".join(texts) or "none"))
    rows.append(("Data", ", ".join(dict.fromkeys(c.settings["data"]["root"] for c in cells))))
    times = [f"{note} ({n} cells)" if n > 1 else note for note, n in notes.items()]
    return {"rows": rows, "warnings": warnings, "notes": times}
