"""Figures as SVG that takes the page's colours, and the style that all of them share."""

import io
import re
import warnings
from contextlib import AbstractContextManager
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offnominal.text import printable

if TYPE_CHECKING:
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

__all__ = ["GOOD", "INK", "SERIES", "SHEET", "SOFT", "WIDTH", "WRONG"]
__all__ += ["percent_ticks", "series", "style", "svg"]

WIDTH = 9.2  #: inches, for two panels side by side

# Light colours; in the page each becomes a variable, so that a dark page has its own. Okabe and
# Ito's set, which people with any kind of colour vision can tell apart, without its yellow.
INK, SOFT, LINE, SHEET = "#1c2126", "#57606a", "#dcdeda", "#fffffe"
GOOD, WRONG = "#6c7a89", "#c14a00"
SERIES = ("#0072b2", "#d55e00", "#009e73", "#b0578d", "#b17a00", "#3a9bd6", "#4d4d4f")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")

_VARIABLES = {INK: "ink", SOFT: "soft", LINE: "line", SHEET: "sheet"}
_VARIABLES |= {GOOD: "series-good", WRONG: "series-wrong"}
_VARIABLES |= {colour: f"series-{number}" for number, colour in enumerate(SERIES)}


def style() -> AbstractContextManager[Any]:
    """Settings for every figure, as long as the context lasts."""
    import matplotlib.style

    return matplotlib.style.context(Path(__file__).with_name("figures.mplstyle"))


def svg(figure: "Figure", words: str) -> str:
    """A figure as an SVG element to put into a page.

    Parameters
    ----------
    figure : matplotlib.figure.Figure
    words : str
        What it shows, for those who cannot see it.
    """
    with style(), warnings.catch_warnings():
        # Words stay words, and the reader's own fonts have what ours lack.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.S)
    # One page holds many figures: groups that are all named alike lose their names.
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    text = re.sub(r"font: (?:\w+ )?([\d.]+)px [^;\"]+", _font, text)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var(--{variable})")
    text = re.sub(r"\n\s*", "\n", text)
    width, height = figure.get_size_inches()
    opening = (
        f'<svg viewBox="0 0 {72 * width:g} {72 * height:g}" role="img" '
        f'aria-label="{escape(printable(words))}" style="width: {96 * width:.0f}px" '
        'xmlns:xlink="http://www.w3.org/1999/xlink">'
    )
    return re.sub(r"<svg[^>]*>", lambda _: opening, text, count=1).strip()


def series(number: int) -> tuple[str, str, str]:
    """Colour, marker and line style of the n-th line; the colours come round after seven."""
    turn, step = divmod(number, len(SERIES))
    # Another marker as well, since a single point has no line to tell it by.
    return SERIES[step], MARKERS[(step + turn) % len(MARKERS)], ("-", "--", ":")[turn % 3]


def percent_ticks(axis: "Axis") -> None:
    """Shares on an axis are printed in percent."""
    axis.set_major_formatter(lambda value, _: f"{100 * value:.3g}")


def _font(match: re.Match[str]) -> str:
    """Fonts are the page's; a title stays bold."""
    weight = "; font-weight: 600" if "bold" in match[0] else ""
    return f"font-size: {match[1]}px{weight}"
