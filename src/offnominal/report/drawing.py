"""Figures as SVG that takes the page's colours, and the style that all of them share."""

import io
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from offnominal.report.words import untrained_words

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "GOOD",
    "INK",
    "SERIES",
    "SHEET",
    "SOFT",
    "WRONG",
    "mark_untrained",
    "percent_axis",
    "series",
    "style",
    "svg",
]

# Light colours; in the page each becomes a variable, so that a dark page has its own. Okabe and
# Ito's set, which people with any kind of colour vision can tell apart, without its yellow.
INK, SOFT, LINE, SHEET = "#1c2126", "#57606a", "#dcdeda", "#fffffe"
GOOD, WRONG = "#6c7a89", "#c14a00"
SERIES = ("#0072b2", "#d55e00", "#009e73", "#b0578d", "#b17a00", "#3a9bd6", "#4d4d4f")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")

_VARIABLES = {
    INK: "--ink",
    SOFT: "--soft",
    LINE: "--line",
    SHEET: "--sheet",
    GOOD: "--series-good",
    WRONG: "--series-wrong",
    **{colour: f"--series-{number}" for number, colour in enumerate(SERIES)},
}


@contextmanager
def style() -> Iterator[None]:
    """Settings for every figure: few lines, words of the page's own size."""
    import matplotlib as mpl

    settings: Any = {  # matplotlib types each key by its name
        "svg.fonttype": "none",  # words stay words: small, and they can be searched
        "svg.hashsalt": "offnominal",  # names of clip paths are the same in every run
        "text.parse_math": False,  # a dollar sign in a folder's name is a dollar sign
        "font.size": 9,
        "font.family": "sans-serif",
        "text.color": INK,
        "axes.labelcolor": SOFT,
        "axes.edgecolor": LINE,
        "axes.facecolor": SHEET,
        "figure.facecolor": SHEET,
        "axes.titlesize": 9.5,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.titlepad": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": LINE,
        "grid.linewidth": 0.6,
        "xtick.color": SOFT,
        "ytick.color": SOFT,
        "xtick.major.size": 0,
        "ytick.major.size": 0,
        "xtick.minor.size": 0,
        "ytick.minor.size": 0,
        "lines.linewidth": 1.6,
        "lines.markersize": 5,
        "legend.frameon": False,
        "legend.fontsize": 8.5,
        "legend.handlelength": 1.6,
        "figure.constrained_layout.use": True,
        "path.simplify_threshold": 0.3,
    }
    with mpl.rc_context(settings):
        yield


def svg(figure: "Figure", words: str) -> str:
    """A figure as an SVG element to put into a page.

    Parameters
    ----------
    figure : matplotlib.figure.Figure
    words : str
        What it shows, for those who cannot see it.
    """
    from html import escape

    with style():
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.S)
    # One page holds many figures: groups that are all named alike lose their names.
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    text = re.sub(r"font: (?:\w+ )?([\d.]+)px [^;\"]+", _font, text)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    text = re.sub(r"\n\s*", "\n", text)
    inches = figure.get_size_inches()
    width = round(96 * float(inches[0]))
    opening = (
        f'<svg viewBox="0 0 {72 * inches[0]:g} {72 * inches[1]:g}" role="img" '
        f'aria-label="{escape(words)}" style="width: {width}px" '
        'xmlns:xlink="http://www.w3.org/1999/xlink">'
    )
    return re.sub(r"<svg[^>]*>", lambda _: opening, text, count=1).strip()


def series(number: int) -> tuple[str, str, str]:
    """Colour, marker and line style of the n-th line; the colours come round after seven."""
    lines = ("-", "--", ":")
    step = number % len(SERIES)
    turn = number // len(SERIES)
    # Another marker as well, since a single point has no line to tell it by.
    return SERIES[step], MARKERS[(step + turn) % len(MARKERS)], lines[turn % len(lines)]


def mark_untrained(figure: "Figure", reasons: Iterable[str]) -> None:
    """Say what a dagger means inside the figure, since figures are passed on without their page."""
    if words := untrained_words(reasons):
        figure.suptitle(words, x=0.005, ha="left", fontsize=8.5, color=WRONG)


def percent_axis(axes: "Axes", low: float, high: float) -> None:
    """A vertical axis of shares in percent, a little wider than its values, at most 100."""
    room = max(0.06 * (high - low), 0.005)
    axes.set_ylim(max(0, low - room), min(1.0 + 0.25 * room, high + room))
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g}")


def _font(match: re.Match[str]) -> str:
    weight = "; font-weight: 600" if "bold" in match[0] else ""
    return f"font-size: {match[1]}px{weight}"
