"""How cells were run: what is common to all, and where they differ so that comparing is unsafe."""

import json
from collections.abc import Sequence
from typing import Any

from offnominal.benchmark.store import FinishedCell
from offnominal.report.results import Setup
from offnominal.report.words import axis_heading, join, setting_words

__all__ = ["conditions"]


def conditions(cells: Sequence[FinishedCell], setups: Sequence[Setup]) -> dict[str, Any]:
    """How the cells were run: what is common to all, and warnings where they differ."""
    rows, warnings = [], []
    for name, heading in (
        ("version", "Offnominal"),
        ("python", "Python"),
        ("device", "Device"),
        ("cpu", "Processor"),
        ("threads", "Threads"),
    ):
        values = list(dict.fromkeys(str(cell.run.get(name, "not known")) for cell in cells))
        rows.append((heading, join(values)))
        if len(values) > 1:
            effect = "times" if name in ("device", "cpu", "threads") else "figures"
            warnings.append(
                f"The cells were run under different conditions ({heading.lower()}: "
                f"{join(values)}): their {effect} may not be comparable."
            )
    packages: dict[str, set[str]] = {}
    for cell in cells:
        for name, version in (cell.run.get("packages") or {}).items():
            packages.setdefault(name, set()).add(str(version))
    told = [f"{name} {' and '.join(sorted(found))}" for name, found in sorted(packages.items())]
    rows.append(("Packages", ", ".join(told) or "not known"))
    mixed = [name for name, found in sorted(packages.items()) if len(found) > 1]
    if mixed:
        warnings.append(f"The cells were run with different versions of {join(mixed)}.")
    changed = _changed(cells)
    if changed:
        warnings.append(
            f"The files of {join(changed)} changed between cells: those before and after are not "
            "comparable."
        )
    common = set.intersection(*(_options(setup) for setup in setups))
    texts = [f"{axis_heading(k)}: {setting_words(k, json.loads(v))}" for k, v in sorted(common)]
    rows.append(("Settings of all", "; ".join(texts) or "none"))
    roots = list(dict.fromkeys(cell.settings["data"]["root"] for cell in cells))
    rows.append(("Data", ", ".join(roots)))
    return {"rows": rows, "warnings": warnings, "notes": _notes(cells)}


def _options(setup: Setup) -> set[tuple[str, str]]:
    found = setup.settings["options"].items()
    return {(name, json.dumps(value)) for name, value in found if value is not None}


def _changed(cells: Sequence[FinishedCell]) -> list[str]:
    digests: dict[tuple[str, str], set[str]] = {}
    for cell in cells:
        place = cell.settings["dataset"], cell.settings["category"]
        digests.setdefault(place, set()).add(cell.settings["samples"])
    return [f"{a}/{b}" for (a, b), found in sorted(digests.items()) if len(found) > 1]


def _notes(cells: Sequence[FinishedCell]) -> list[str]:
    notes: dict[str, int] = {}
    for cell in cells:
        unreadable = cell.run.get("unreadable") or []
        for note in [*(cell.run.get("notes") or []), *(f"left out: {u}" for u in unreadable)]:
            notes[note] = notes.get(note, 0) + 1
    return [f"{note} ({number} cells)" if number > 1 else note for note, number in notes.items()]
