"""Figures that authors printed for a cell, with their sources, to set beside one's own."""

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from typing import Any

from offnominal.backbones.catalogue import CATALOGUE, DEFAULT

__all__ = ["Published", "dataset_key", "find_published"]

_ALIASES = {
    "mvtecad": "mvtec",
    "mvtecanomalydetection": "mvtec",
    "visapytorch": "visa",
    "magnetictile": "mtd",
    "magnetictiledefects": "mtd",
    "dtdsynthetic": "dtd",
    "realiad": "real-iad",
}


@dataclass(frozen=True)
class Published:
    """One figure as its authors printed it.

    Attributes
    ----------
    value : float
        In percent.
    std : float or None
        Standard deviation over the authors' own repetitions, in percentage points.
    source : str
        Who printed it, and where.
    note : str
        What makes the comparison a loose one; empty if nothing is known to.
    """

    value: float
    std: float | None
    source: str
    note: str


def dataset_key(name: str) -> str:
    """A data set's name as the published figures use it: ``MVTec AD`` is ``mvtec``."""
    plain = re.sub(r"[^a-z0-9]", "", name.lower())
    return _ALIASES.get(plain, plain)


def find_published(
    settings: Mapping[str, Any],
    metric: str,
    categories: Collection[str],
    category: str | None = None,
) -> Published | None:
    """The published figure for a cell or for the mean of a whole data set.

    Parameters
    ----------
    settings : mapping
        ``dataset``, ``method``, ``shots`` and ``options`` of a cell.
    metric : str
        Such as ``image_auroc``.
    categories : collection of str
        The categories that the mean is over. A mean over some of a data set's categories has no
        published counterpart, so None is returned for it.
    category : str or None
        None: the mean over the data set; otherwise the figure of this category alone.

    Returns
    -------
    Published or None
        None too if the options that the authors state differ from those in `settings`.
    """
    data = _load()
    name = dataset_key(settings["dataset"])
    if category is None and not _is_whole(data["categories"].get(name, 1), categories):
        return None
    options = _effective(settings["options"])
    shots = settings["shots"]
    ways = ("full",) if shots is None else ("0", "batched") if shots == 0 else (str(shots),)
    for way in ways:
        for record in data["by_cell"].get((settings["method"], name, way, metric, category), ()):
            stated = record.get("options", {})
            # An option that the method does not have cannot differ; a backbone always can.
            if all(options.get(k, None if k == "backbone" else v) == v for k, v in stated.items()):
                return Published(
                    record["value"],
                    record.get("std"),
                    data["sources"][record["source"]],
                    record.get("note", ""),
                )
    return None


@lru_cache(maxsize=1)
def _load() -> dict[str, Any]:
    text = files("offnominal.benchmark").joinpath("published.json").read_text("utf-8")
    data: dict[str, Any] = json.loads(text)
    by_cell: dict[tuple[str | None, ...], list[dict[str, Any]]] = {}
    for record in data["figures"]:
        fields = ("method", "dataset", "shots", "metric", "category")
        by_cell.setdefault(tuple(record.get(field) for field in fields), []).append(record)
    return data | {"by_cell": by_cell}


def _is_whole(expected: list[str] | int, categories: Collection[str]) -> bool:
    if isinstance(expected, int):
        return len(categories) == expected
    return {name.lower() for name in expected} == {name.lower() for name in categories}


def _effective(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options with the defaults that the backbone fills in."""
    filled = dict(options)
    if filled.get("backbone") is None and filled.get("weights") is None:
        filled["backbone"] = DEFAULT
    if filled.get("resolution") is None and filled.get("backbone") in CATALOGUE:
        filled["resolution"] = CATALOGUE[filled["backbone"]].resolution
    return filled
