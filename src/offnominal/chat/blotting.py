"""A key made unreadable wherever an endpoint repeats it, plain or in a usual disguise."""

import html
import re
from base64 import b64encode
from collections.abc import Callable

__all__ = ["blotter"]

_BLOT = "(key)"
_LONG = 8  # characters from which on what a key is encoded as is surely no word
# What may stand between two characters of a key that was broken over lines.
_GAP = r"[\s\x00-\x1f\x7f-\x9f\xad\u200b-\u200f\u2060\ufeff]*"


def blotter(key: str | None) -> Callable[[str], str]:
    """What replaces a key in a text: as it is, by URL, JSON, HTML, hexadecimal or base64 rules."""
    if not key:
        return lambda text: text
    spelled = [f"(?i:{_GAP.join(map(_spellings, key))})"]
    if len(key) >= _LONG:
        raw = key.encode()
        spelled.append(f"(?i:{_GAP.join(raw.hex())})")
        spelled += [_base64(raw, before) for before in range(3)]
    pattern = re.compile("|".join(spelled))
    return lambda text: pattern.sub(_BLOT, text)


def _spellings(char: str) -> str:
    code = ord(char)
    ways = {char, f"\\{char}", f"%{code:02x}", f"\\u{code:04x}", f"&#{code};", f"&#x{code:x};"}
    ways.add(html.escape(char))
    return f"(?:{'|'.join(map(re.escape, sorted(ways)))})"


def _base64(raw: bytes, before: int) -> str:
    """Of a text in which so many bytes, modulo 3, come first: the digits that the key alone makes.

    Both alphabets of base64 count.
    """
    first, last = -(-8 * before // 6), 8 * (before + len(raw)) // 6
    digits = b64encode(bytes(before) + raw).decode()[first:last]
    other = {"+": r"[+\-]", "/": r"[/_]"}
    return _GAP.join(other.get(digit, digit) for digit in digits)
