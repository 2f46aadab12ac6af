"""The fitted detector that graphs are made of, and held to: on the CPU, by torch."""

from copy import deepcopy
from typing import Any

from offnominal.detectors.features import FeatureDetector
from offnominal.errors import OptionError

__all__ = ["as_learned", "by_torch", "refuse_exported", "refuse_known"]


def refuse_exported(detector: Any, flag: str = "") -> None:
    """Raise an :class:`OptionError` if a detector was exported already, or looks at points."""
    if detector.seen_as == "scan":
        raise OptionError(
            f"{flag}{detector.method} looks at points of scans, whose neighbours are looked up, "
            "which no graph does; the model runs where it was fitted, with torch"
        )
    if getattr(detector, "deployed", None) is not None:
        raise OptionError(f"{flag}it is an exported model already: export the one that was fitted")


def refuse_known(detector: Any, flag: str) -> None:
    """Raise an :class:`OptionError` if a graph would leave out what a detector knows of defects."""
    if getattr(detector, "known_defects", None) is not None:
        raise OptionError(
            f"{flag}: {detector.method} knows defects, which would be left out; export without "
            f"{flag}, which keeps them, or fit without --defects"
        )


def by_torch(detector: Any) -> Any:
    """The same detector on the CPU with a network of torch's; the one given stays as it is.

    What was learned is shared, but of a detector on a card, which is copied.

    Raises
    ------
    OptionError
        If it was exported, or its weights' file is another by now.
    """
    if str(getattr(detector, "_device", "cpu")).partition(":")[0] != "cpu":
        detector = deepcopy(detector)
        detector.device = "cpu"
        detector.use_device()
    if not isinstance(detector, FeatureDetector):
        return detector
    other = detector.run_by("torch")
    other.torch_network()
    return other


def as_learned(detector: Any) -> Any:
    """The same detector by the engine that it was fitted with, where that is not in float32.

    Raises
    ------
    OptionError
        If that is torch, whose features in less than float32 a graph does not give.
    """
    if detector.learned_by in ("", "torch"):
        raise OptionError(
            f"{detector.method}: fitted with --precision {detector.precision} by torch, whose "
            "features no exported model gives; fit anew with --engine openvino, or with "
            "--precision fp32"
        )
    return detector.run_by(detector.learned_by)
