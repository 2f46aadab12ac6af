"""Ways to look at a test image: its flips, and its darks cut off.

Wang et al., "Search is All You Need for Few-shot Anomaly Detection", 2025 (arXiv 2504.11895),
augment the query as well as the references; which looks those are is the released code's.
"""

from collections.abc import Sequence
from typing import Literal, get_args

from torch import Tensor

from offnominal.detectors.common import check_choice
from offnominal.errors import OptionError

__all__ = ["QueryView", "parse_query_views", "query_view", "undo_view"]

QueryView = Literal["plain", "vflip", "hflip", "clamp"]


def parse_query_views(value: str | Sequence[str]) -> list[QueryView]:
    """Names of the query views, each once, in the order given.

    Raises
    ------
    OptionError
        If one is unknown, or there is none.
    """
    names = value.split(",") if isinstance(value, str) else list(value)
    for name in names:
        check_choice("query_views", name, get_args(QueryView))
    if not names:
        raise OptionError("query_views: give at least one, as plain")
    return list(dict.fromkeys(names))  # type: ignore[arg-type]  # checked just above


def query_view(pixels: Tensor, name: QueryView) -> Tensor:
    """Prepared pixels (..., h, w) as a query view shows them.

    ``clamp`` cuts normalised pixels at 0, which is the mean that the backbone normalises by.
    """
    if name == "vflip":
        return pixels.flip(-2)
    if name == "hflip":
        return pixels.flip(-1)
    return pixels.clamp(min=0) if name == "clamp" else pixels


def undo_view(patch_scores: Tensor, name: QueryView) -> Tensor:
    """Patch scores (..., gh, gw) of a query view, turned back."""
    if name == "vflip":
        return patch_scores.flip(-2)
    return patch_scores.flip(-1) if name == "hflip" else patch_scores
