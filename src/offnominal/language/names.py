"""What parts are called: one name on the command line, or a file with a name for each category."""

import csv
import json
from pathlib import Path

from offnominal.errors import OptionError

__all__ = ["AGNOSTIC", "clean_name", "read_class_names"]

AGNOSTIC = "object"
"""Said of any part that has no name (Zhou et al., 2024, section 3.2)."""


def clean_name(name: str | None) -> str:
    """A part's name as prompts take it: without spaces around it, ``object`` for None.

    Any script will do; CLIP was trained on captions that are mostly English, so an English name
    tells it most.

    Raises
    ------
    OptionError
        If the name is blank.
    """
    if name is None:
        return AGNOSTIC
    cleaned = " ".join(name.split())
    if not cleaned:
        raise OptionError("--class-name: blank; say what the part is, as 'metal nut', or leave out")
    return cleaned


def read_class_names(path: str | Path) -> dict[str, str]:
    """Names of a data set's categories.

    Parameters
    ----------
    path : path
        UTF-8. JSON: an object such as ``{"pcb1": "circuit board"}``. CSV: a category and a name on
        each line; a first line ``category,name`` is taken for a heading.

    Returns
    -------
    dict
        Name by category, in the file's order.

    Raises
    ------
    OptionError
        If the file cannot be read, is neither, names a category twice, or has a blank name.
    """
    path = Path(path)
    start = f"--class-names {path}"
    try:
        text = path.read_text(encoding="utf-8-sig")
        rows = _from_json(text) if path.suffix.lower() == ".json" else _from_csv(text)
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(f"{start}: cannot be read as UTF-8 text ({error})") from error
    except ValueError as error:
        raise OptionError(f"{start}: {error}") from error
    names: dict[str, str] = {}
    for category, name in rows:
        if category in names:
            raise OptionError(f"{start}: {category} has two names; keep one")
        if not name.strip():
            raise OptionError(f"{start}: {category} has a blank name; give one")
        names[category] = clean_name(name)
    if not names:
        raise OptionError(f"{start}: no names in it")
    return names


def _from_json(text: str) -> list[tuple[str, str]]:
    # Pairs rather than a dict: json keeps the last of two equal keys without a word.
    try:
        pairs = json.loads(text, object_pairs_hook=list)
    except ValueError as error:
        raise ValueError(f"not JSON ({error})") from error
    if not isinstance(pairs, list) or not all(
        isinstance(pair, tuple) and isinstance(pair[1], str) for pair in pairs
    ):
        raise ValueError('write an object such as {"pcb1": "circuit board"}')
    return pairs


def _from_csv(text: str) -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for number, row in enumerate(csv.reader(text.splitlines(), skipinitialspace=True), start=1):
        cells = [cell.strip() for cell in row]
        if not any(cells) or (number == 1 and [c.lower() for c in cells] == ["category", "name"]):
            continue
        if len(cells) != 2 or not cells[0]:
            raise ValueError(f"line {number}: write a category, a comma and its name")
        rows.append((cells[0], cells[1]))
    return rows
