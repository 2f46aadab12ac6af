"""Detectors, and the registry that lists them without importing torch."""

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Literal

from offnominal.errors import OptionError

if TYPE_CHECKING:
    from offnominal.detectors.base import Detector

__all__ = ["METHODS", "Method", "detector_class"]


@dataclass(frozen=True)
class Method:
    """One line of the registry.

    Parameters
    ----------
    name : str
        As ``--method`` takes it.
    target : str
        ``module:class``, imported on use.
    needs : str
        What it learns from.
    about : str
        What it does, in a line.
    paper : str
        Authors, year, and where to find it.
    references : {"required", "none"}
        Whether it is fitted to good images.
    """

    name: str
    target: str
    needs: str
    about: str
    paper: str
    references: Literal["required", "none"] = "required"


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method(
            "anomalydino",
            "offnominal.detectors.anomalydino:AnomalyDINO",
            "1 or more good images",
            "nearest neighbours of DINOv2 patch features, mean of the top 1 %",
            "Damm et al., 2024, arXiv 2405.14529",
        ),
        Method(
            "anomalydino-batched",
            "offnominal.detectors.anomalydino_batched:BatchedAnomalyDINO",
            "nothing: a batch of mostly good images",
            "the images of a batch judge each other (predict --zero-shot-batch)",
            "Damm et al., 2024, appendix D",
            references="none",
        ),
    )
}


def detector_class(name: str) -> "type[Detector]":
    """The class behind a method's name.

    Raises
    ------
    OptionError
        If there is no such method.
    """
    if name not in METHODS:
        raise OptionError(f"--method {name}: choose one of {', '.join(METHODS)}")
    module, _, attribute = METHODS[name].target.partition(":")
    found: type[Detector] = getattr(import_module(module), attribute)
    return found
