"""Names that come from outside, made safe to show, to print and to open in a spreadsheet."""

import json
import re
import struct
from typing import Any

__all__ = ["apart", "brief", "cell", "digits", "json_line", "printable"]

# What a spreadsheet takes for the beginning of a formula; some read the full-width signs as well.
_FORMULA = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")

_FLOAT32 = 3.4e38  # the largest, nearly


def printable(text: object) -> str:
    """A text in which nothing steers a terminal, breaks a line or has no encoding.

    Control characters, line separators, changes of direction and bytes of a name that were no
    UTF-8 (which Python keeps as lone surrogates) are written as escapes such as ``\\x1b``.
    """
    plain = str(text)
    if plain.isprintable():
        return plain
    return "".join(char if char.isprintable() or char == "\u3000" else _escaped(char)
                   for char in plain)  # fmt: skip


def brief(text: object, most: int = 200) -> str:
    """The beginning of what may be long, for a message."""
    told = printable(text)
    return told if len(told) <= most else f"{told[:most]} ..."


def cell(value: Any) -> Any:
    """A value for a CSV: texts printable, and never a formula; others as they are.

    A text that a spreadsheet would calculate gets an apostrophe in front, which spreadsheets take
    for "this is text".
    """
    if not isinstance(value, str):
        return value
    shown = printable(value)
    return f"'{shown}" if shown.lstrip(" ").startswith(_FORMULA) else shown


def digits(value: float) -> str:
    """A score with as many digits as it has: the fewest that give the same float32 back.

    At least four, at most nine; a number that is not finite in words.
    """
    for many in range(4, 10):
        told = f"{value:.{many}g}"
        if abs(value) > _FLOAT32 or struct.pack("f", float(told)) == struct.pack("f", value):
            break
    return told


def apart(score: float, threshold: float) -> tuple[str, str]:
    """A score and a threshold with few digits, but enough to see on which side the score lies."""
    for many in range(4, 18):
        told = f"{score:.{many}g}", f"{threshold:.{many}g}"
        if (float(told[0]) > float(told[1])) == (score > threshold):
            break
    return told


def json_line(row: dict[str, Any]) -> str:
    """One line of JSON, whatever the texts hold: reading it gives them back to the character.

    Raises
    ------
    ValueError
        If a number is not finite, which JSON has no word for.
    """
    line = json.dumps(row, ensure_ascii=False, allow_nan=False)
    return line if line.isprintable() else re.sub(r"[^ -~]", _json_escaped, line)


def _escaped(char: str) -> str:
    return char.encode("unicode_escape", "surrogatepass").decode("ascii")


def _json_escaped(match: re.Match[str]) -> str:
    return match[0] if match[0].isprintable() else json.dumps(match[0])[1:-1]
