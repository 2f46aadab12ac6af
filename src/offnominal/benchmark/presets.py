"""Questions, each with the settings that answer it.

All but the last are the ablations of the AnomalyDINO paper: Damm et al., 2024 (arXiv 2405.14529),
sections 4 and 5 and the appendices.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from offnominal.detectors.methods_supervised import SUPERVISED

__all__ = ["PRESETS", "Preset"]

_SIZES = ("dinov2_vits14", "dinov2_vitb14", "dinov2_vitl14")


@dataclass(frozen=True)
class Preset:
    """One question.

    Parameters
    ----------
    name : str
        As ``--preset`` takes it.
    title : str
        The question in words, for the report's heading.
    sets : dict
        Values of detector options.
    methods : tuple of str
    shots : tuple of int or None
        None: every good image.
    cached : bool
        Whether features may come from the cache; not where time is what is measured.
    paper : dict
        Options of the method that the paper's code has otherwise than the defaults.
    labelled : tuple of int
        Numbers of labelled defects to learn from; empty: labels play no part.
    """

    name: str
    title: str
    sets: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    methods: tuple[str, ...] = ("anomalydino",)
    shots: tuple[int | None, ...] = (1,)
    cached: bool = True
    paper: dict[str, Any] = field(default_factory=dict)
    labelled: tuple[int, ...] = ()

    @property
    def axes(self) -> tuple[str, ...]:
        """What varies, first what the figure shows."""
        return tuple(self.sets) or ("shots",)

    def sets_for(self, methods: Sequence[str]) -> dict[str, Sequence[Any]]:
        """Values of options for some methods; the paper's are for the paper's method only."""
        paper = self.paper if tuple(methods) == self.methods else {}
        return self.sets | {name: [one] for name, one in paper.items() if name not in self.sets}


_PRESETS = (
    Preset("shots", "How many good images are worth collecting?", shots=(1, 2, 4, 8, 16)),
    Preset(
        "preprocessing",
        "What do the foreground mask and rotated references bring?",
        {"rotations": ("none", "agnostic"), "mask": ("off", "auto", "on")},
    ),
    Preset(
        "aggregation",
        "Which statistic of the patch scores makes the best image score?",
        {"aggregate": ("top1", "top5", "max", "map-max", "quantile99", "mean")},
    ),
    Preset("resolution", "Which resolution is enough?", {"resolution": (224, 448, 672)}),
    Preset("backbone-size", "Does a larger backbone pay?", {"backbone": _SIZES}),
    Preset(
        "imagenet-vs-dinov2",
        "Features learned from labels, or without?",
        {"backbone": ("dinov2_vits14", "vit_s16", "resnet50", "wide_resnet50_2")},
    ),
    Preset(
        "inference-time",
        "What does accuracy cost in time?",
        {"backbone": _SIZES[:2], "resolution": (224, 448, 672)},
        cached=False,
    ),
    Preset(
        "batched-zero-shot",
        "How far do the test images get by judging each other, without any reference?",
        {"resolution": (448, 672)},
        methods=("anomalydino-batched",),
        shots=(0,),
    ),
)
_LABELS = Preset(
    "labels",
    "What is each labelled defect worth?",
    # Those with defects in what they learn, and known defects on top of two that train nothing.
    methods=(
        "anomalydino",
        "patchcore",
        *(one.name for one in SUPERVISED if one.defects != "none" and one.name != "regad"),
    ),
    shots=(None,),
    labelled=(0, 1, 2, 5, 10, 20, 50),
)
# The others set out to meet printed figures, which come from images that were cropped, and from
# references that were turned.
_PAPER = {
    "anomalydino": {"resize": "crop", "rotations": "agnostic"},
    "anomalydino-batched": {"resize": "crop"},
}
PRESETS = {one.name: replace(one, paper=_PAPER[one.methods[0]]) for one in _PRESETS}
PRESETS[_LABELS.name] = _LABELS
