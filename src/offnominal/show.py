"""A prediction shown: as a figure, and as a piece of a notebook's page."""

import base64
import html
import io
from pathlib import PureWindowsPath
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image as PillowImage

from offnominal.captions import Heat, Verdict
from offnominal.errors import OptionError
from offnominal.pictures import Image
from offnominal.text import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["figure", "page"]

_WIDEST, _HIGHEST = 360, 320  # pixels of a picture in a page
_INCHES = 3.0  # height of a figure's pictures


def page(image: Image, overlay: Image, verdict: Verdict, p_value: float | None, source: str) -> str:
    """HTML with the image beside its overlay, small, inside the page."""
    word, facts = verdict.words()
    if p_value is not None:
        facts += f", p = {p_value:.3g}"
    name = html.escape(printable(source))
    badge = (
        f"background:rgb{verdict.colour};color:#fff;font-weight:bold;padding:1px 8px;"
        "border-radius:4px"
    )
    pictures = "".join(_inline(one, f"{what} {name}") for one, what in
                       ((image, "image"), (overlay, "heat over")))  # fmt: skip
    return (
        f'<figure style="margin:4px 0 12px">{pictures}<figcaption style="margin-top:4px">'
        f'<span style="{badge}">{word}</span> {html.escape(facts)}<br><small>{name}</small>'
        "</figcaption></figure>"
    )


def figure(image: Image, heat: Heat, overlay: Image, verdict: Verdict, source: str) -> "Figure":
    """Image, map and overlay side by side; the map's scale marks where regions begin."""
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise OptionError(f"plot needs matplotlib ({error}): pip install matplotlib") from error
    height, width = image.shape[:2]
    across = float(np.clip(_INCHES * width / height, 1.5, 9))
    size = (3 * across + 1.2, across * height / width + 0.9)
    drawn, (left, middle, right) = pyplot.subplots(1, 3, figsize=size, layout="constrained")
    left.imshow(image)
    drawn_map = middle.imshow(heat.map, cmap="inferno", vmin=heat.low, vmax=heat.high)
    right.imshow(overlay)
    for axes, title in ((left, "image"), (middle, "anomaly map"), (right, "regions")):
        axes.set_title(title, fontsize="medium")
        axes.set_axis_off()
    bar = drawn.colorbar(drawn_map, ax=middle, fraction=0.05, pad=0.02)
    if heat.limit is not None:
        bar.ax.axhline(heat.limit, color="cyan", linewidth=2)
    word, facts = verdict.words()
    name = "/".join(PureWindowsPath(source).parts[-2:]) or source  # MVTec's 000.png says too little
    title = printable(f"{word}: {facts}") + "\n" + printable(name)
    colour = tuple(part / 255 for part in verdict.colour)
    drawn.suptitle(title.replace("$", r"\$"), color=colour)
    # Where no window shows it, pyplot would only keep it, and a notebook draw it twice.
    if getattr(drawn.canvas, "required_interactive_framework", None) is None:
        pyplot.close(drawn)
    return drawn


def _inline(picture: Image, alt: str) -> str:
    """A picture, made to fit into a page, as an element that holds it."""
    made = PillowImage.fromarray(picture)
    scale = min(_WIDEST / made.width, _HIGHEST / made.height)
    size = (max(1, round(made.width * scale)), max(1, round(made.height * scale)))
    how = PillowImage.Resampling.BOX if scale > 1 else PillowImage.Resampling.LANCZOS
    data = io.BytesIO()
    made.resize(size, how).save(data, "jpeg", quality=82)
    uri = base64.b64encode(data.getvalue()).decode()
    place = "display:inline-block;max-width:48%;margin:0 6px 0 0"
    return f'<img alt="{alt}" style="{place}" src="data:image/jpeg;base64,{uri}">'
