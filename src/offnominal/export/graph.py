"""One ONNX file with everything in it, from an image's bytes to the decision, for any language.

Input ``image``: uint8 (H, W, 3), RGB, of the size that is named at export. Outputs: ``score``
float32 (1,), ``map`` float32 (H, W), ``is_anomalous`` bool (1,), ``threshold`` float32 (1,).
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offnominal._version import __version__
from offnominal.atomic import writing
from offnominal.checks import parse_sixteen_bit
from offnominal.errors import OptionError
from offnominal.export.fitted import by_torch, refuse_exported, refuse_known
from offnominal.export.parity import Parity, compare_graph, sample_images
from offnominal.scoring import Size

if TYPE_CHECKING:
    from offnominal.detectors.base import Detector

__all__ = ["SingleGraph", "compare_graph", "graph_size", "refuse", "single_graph"]

TOLERANCE = 1e-4
"""Of a score relative to the library's, and of a map relative to its peak."""
HALF_TOLERANCE = 1e-3
"""The same of a bank in half precision: what is looked up is rounded to its steps of 1 in 2048, and
an engine's last digits may tip a value to the next one."""


@dataclass(frozen=True)
class SingleGraph:
    """A graph that was written.

    Attributes
    ----------
    path : Path
    size : (H, W)
        Of the images that it takes.
    opset : int
    bytes : int
        Of the file.
    parity : tuple of Parity
        How each engine compares with the library, on the images that it was run on.
    compared : str
        Which these were, in words.
    """

    path: Path
    size: Size
    opset: int
    bytes: int
    parity: tuple[Parity, ...]
    compared: str = ""


def graph_size(detector: "Detector", size: str | Size | None = None) -> Size:
    """Height and width of the images that a graph takes.

    Parameters
    ----------
    detector : Detector
    size : (H, W), text such as ``"480x640"`` (height first), or None
        None: the size of the references.

    Raises
    ------
    OptionError
        If it is no size, or the references do not share one.
    """
    if size is None:
        known = {one.size for one in detector.references if one.active}
        if len(known) == 1:
            return next(iter(known))
        sizes = ", ".join(f"{h}x{w}" for h, w in sorted(known)[:4])
        told = f"the references have {len(known)} sizes ({sizes}{', ...' * (len(known) > 4)})"
        raise OptionError(
            f"--size: {told if known else 'there are no references to take it from'}; a graph "
            "takes one size, so name it, height first, as --size 480x640"
        )
    try:
        height, width = map(int, size.lower().split("x") if isinstance(size, str) else size)
    except (TypeError, ValueError):
        height = width = 0
    if not (1 <= height <= 2**14 and 1 <= width <= 2**14):
        raise OptionError(f"--size {size}: give height and width in pixels, as 480x640")
    return height, width


def refuse(detector: "Detector") -> None:
    """Raise an :class:`OptionError` that names what cannot be inside, and what to do instead."""
    detector.check_fitted()
    refuse_exported(detector, "--single-graph: ")
    refuse_known(detector, "--single-graph")
    if told := detector.exportable():
        raise OptionError(f"--single-graph: {detector.method}: {told}")
    for wrong, told in (
        (
            getattr(detector, "masks_", False),
            "a mask of the background is in use, which takes a decomposition of each image's own "
            "features; fit anew with --mask off",
        ),
        (
            getattr(detector, "reweight", False) and getattr(detector, "neighbours", 1) > 1,
            "re-weighting with --neighbours above 1 is not inside; fit anew with --set "
            "reweight=false, or --neighbours 1",
        ),
        (getattr(detector, "tile", None), "--tile is not inside; fit anew without it, or export "
         "without --single-graph"),
        (
            getattr(detector, "storage", "") == "int8",
            "--storage int8 is not inside; fit anew with --storage fp32 or fp16",
        ),
        (
            getattr(detector, "precision", "fp32") != "fp32",
            f"it was fitted with --precision {getattr(detector, 'precision', '')}, and a graph "
            "computes in float32; fit anew with --precision fp32",
        ),
        (
            len(detector.categories) > 1,
            "it has several categories, each with a threshold of its own; fit one model for each",
        ),
        (
            parse_sixteen_bit(detector.sixteen_bit) is not None,
            f"--sixteen-bit {detector.sixteen_bit} depends on all pixels of a 16-bit image, and a "
            "graph takes 8 bits; fit anew with --sixteen-bit range",
        ),
        (
            detector.threshold is None,
            "it has no threshold, so the graph could not decide; set one with `offnominal "
            "calibrate` and good images",
        ),
    ):  # fmt: skip
        if wrong:
            raise OptionError(f"--single-graph: {told}")


def single_graph(
    detector: "Detector",
    path: str | Path,
    size: str | Size | None = None,
    images: Sequence[Any] = (),
    tolerance: float | None = None,
) -> SingleGraph:
    """Write a fitted detector as one ONNX file, once it was found to score as the library does.

    Parameters
    ----------
    detector : Detector
        Fitted, with a threshold.
    path : path
        Where to write; what is there is replaced when all is well, and stays otherwise.
    size : (H, W), text such as ``"480x640"``, or None
        Of the images; None: that of the references.
    images : sequence of paths or arrays
        To compare on, of that size; none: references that are still there, mirrored, and two that
        are drawn.
    tolerance : float or None
        The largest difference of a score, relative to the library's or to the threshold, whichever
        is more, and of a map, relative to its peak or to the pixel threshold; None: 1e-4, or 1e-3
        with ``storage="fp16"``. A decision must be the same but where a score is as near to the
        threshold.

    Raises
    ------
    OptionError
        If something cannot be inside, or the graph scores otherwise: there is no file then.
    """
    refuse(detector)
    taken = graph_size(detector, size)
    if tolerance is None:
        half = hasattr(detector, "bank") and getattr(detector, "storage", "") == "fp16"
        tolerance = HALF_TOLERANCE if half else TOLERANCE
    from offnominal.export.onnxfile import write_onnx
    from offnominal.export.whole import Whole

    detector = by_torch(detector)
    whole = Whole(detector, taken)
    words = f"{len(images)} image{'s' * (len(images) > 1)}"
    if not images:
        images, words = sample_images(detector, taken)
    with writing(Path(path)) as temporary:
        about = metadata(detector, taken)
        opset = write_onnx(whole, whole.example(), temporary, ["image"], whole.outputs, about)
        found = tuple(compare_graph(detector, temporary, images, size=taken, tolerance=tolerance))
        for one in found:
            one.check(str(path))
        size_of_file = temporary.stat().st_size
    return SingleGraph(Path(path), taken, opset, size_of_file, found, words)


def metadata(detector: "Detector", size: Size) -> dict[str, str]:
    """What the file says of itself: all of it text, lists and tables as JSON."""
    from offnominal.backbones.catalogue import CATALOGUE

    threshold = detector.threshold
    assert threshold is not None
    net = getattr(detector, "network", None)
    known = CATALOGUE.get(net.name) if net is not None else None
    about = {
        "producer": f"offnominal {__version__}",
        "method": detector.method,
        "backbone": net.name if net is not None else "",
        "weights_sha256": net.digest if net is not None else "",
        "weights_licence": known.licence if known else "",
        "input": f"image: uint8 ({size[0]}, {size[1]}, 3), RGB",
        "score": f"{detector.aggregate}, in the method's own unit; above the threshold: reject",
        "map": "patch scores at the image's pixels, in the method's own unit",
        "threshold": f"{threshold.value:.9g}",
        "threshold_kind": threshold.kind,
        "false_reject": "" if threshold.kind == "manual" else f"{threshold.false_reject:g}",
    }
    if pixels := detector.pixel_threshold:
        about["pixel_threshold"] = f"{pixels.value:.9g}"
    options = {k: v for k, v in detector.options().items() if k not in ("weights", "device")}
    about["options"] = json.dumps(options, default=str, sort_keys=True)
    return {f"offnominal.{name}": text for name, text in about.items() if text}
