"""Options that several commands take, declared once.

Their defaults are None, so that those of the detector's constructor hold.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from offnominal.errors import OptionError

if TYPE_CHECKING:
    from offnominal.detectors.base import Detector

Backbone = Annotated[
    str | None,
    typer.Option(
        "--backbone",
        help="Short name (see `offnominal backbones`), any timm name, or open_clip:NAME. Default: "
        "what the weights file says of itself, otherwise the method's own, as dinov2_vits14.",
        show_default=False,
    ),
]
Weights = Annotated[
    str | None,
    typer.Option(
        "--weights",
        help="Local weights: safetensors or a .pth state dict, in timm's naming or the original.",
        show_default=False,
    ),
]
Layers = Annotated[
    str | None,
    typer.Option(
        "--layers",
        help="Feature levels of the backbone, as 2,3 or -1.",
        show_default="the backbone's own",
    ),
]
Resolution = Annotated[
    int | None,
    typer.Option(
        "--resolution",
        help="Smaller side of the image, in pixels.",
        show_default="the backbone's own; 448 for DINOv2",
    ),
]
Resize = Annotated[
    Literal["short", "square"] | None,
    typer.Option(
        "--resize",
        help="short: keep the aspect ratio. square: squash.",
        show_default="the backbone's own; short for DINOv2",
    ),
]
Tile = Annotated[
    int | None,
    typer.Option(
        "--tile",
        help="Overlapping tiles of this many pixels at full resolution, for very large images.",
        show_default="no tiles",
    ),
]
SixteenBit = Annotated[
    str | None,
    typer.Option(
        "--sixteen-bit",
        help="How 16-bit images become 8-bit: range, or two percentiles such as 0.5,99.5.",
        show_default="range",
    ),
]
Mask = Annotated[
    Literal["auto", "on", "off"] | None,
    typer.Option(
        "--mask", help="Foreground mask; auto: the masking test decides.", show_default="auto"
    ),
]
Aggregate = Annotated[
    str | None,
    typer.Option(
        "--aggregate",
        help="Image score from patch scores: top1 (mean of the top 1 %), max, map-max, mean, "
        "quantile99.",
        show_default="the method's own; top1 for anomalydino",
    ),
]
Search = Annotated[
    str | None,
    typer.Option(
        "--search",
        help="How the nearest patches are found: exact, or by an approximate index with a target "
        "for its recall, for very large banks: recall=0.99, or ivf, hnsw, ivfpq or disk, as "
        "hnsw,recall=0.95. For methods with a bank.",
        show_default="exact",
    ),
]
Storage = Annotated[
    Literal["fp32", "fp16", "int8"] | None,
    typer.Option(
        "--storage",
        help="How the bank keeps its patches: fp16 takes half of the room, int8 a quarter.",
        show_default="fp32",
    ),
]
ClassName = Annotated[
    str | None,
    typer.Option(
        "--class-name",
        help="What the part is called, as 'metal nut', for methods that read.",
        show_default="object",
    ),
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")]
Precision = Annotated[
    Literal["fp32", "bf16", "fp16"] | None,
    typer.Option("--precision", help="Of the backbone.", show_default="fp32"),
]
Strict = Annotated[bool, typer.Option("--strict", help="Stop at the first unreadable image.")]
FalseReject = Annotated[
    float | None,
    typer.Option(
        "--false-reject",
        help="Rate of good parts that may be rejected.",
        show_default="0.01",
    ),
]


Sets = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        help="Any other option of the method, as coreset=0.01; its page lists them; repeatable.",
        show_default=False,
    ),
]


def build_detector(method: str, given: dict[str, Any], sets: list[str] | None = None) -> "Detector":
    """Construct a method with the options that were given; the others keep their defaults.

    Raises
    ------
    OptionError
        If the method does not know an option that was given, or one is given twice.
    """
    from offnominal.detectors import detector_class

    chosen = {name: value for name, value in given.items() if value is not None}
    if sets:
        from offnominal.benchmark.grid import parse_sets

        for name, values in parse_sets(sets, [method]).items():
            if len(values) > 1 or name in chosen:
                raise OptionError(f"--set {name}: given more than once; give one value")
            chosen[name] = values[0]
    if "weights" in chosen:
        # The model file remembers where the weights lie, from wherever it is opened.
        # An ensemble lists a file for each member.
        files = chosen["weights"].split(",") if method == "ensemble" else [chosen["weights"]]
        chosen["weights"] = ",".join(str(Path(file.strip()).absolute()) for file in files)
    if isinstance(chosen.get("layers"), str):
        chosen["layers"] = _parse_layers(chosen["layers"])
    known = detector_class(method).option_names()
    for name in chosen:
        if name not in known:
            told = f"--{name.replace('_', '-')}: the method {method} has no such option"
            if name in ("search", "storage"):
                told = f"--{name}: {method} keeps no bank of patches to search; {_with_bank()} do"
            raise OptionError(told)
    return detector_class(method)(**chosen)


def _with_bank() -> str:
    """The methods that take ``--search`` and ``--storage``."""
    from offnominal.detectors import METHODS, detector_class

    fitted = [name for name in METHODS if not METHODS[name].batched]
    return ", ".join(name for name in fitted if "search" in detector_class(name).option_names())


def _parse_layers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise OptionError(f"--layers {text}: give whole numbers such as 2,3 or -1") from error
