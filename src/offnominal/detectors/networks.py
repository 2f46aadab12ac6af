"""The networks of a detector, one or several, and whether what they learned is known to be none."""

from pathlib import Path

from offnominal.backbones.metadata import read_metadata, untrained_reason
from offnominal.detectors.backboned import BackboneDetector
from offnominal.detectors.base import Detector

__all__ = ["untrained", "with_networks"]


def with_networks(detector: Detector) -> list[BackboneDetector]:
    """The detector if it has a network, or the members of several; none of a chat model."""
    several = ("detectors", "members")  # of a fusion, and of an ensemble
    members = next(
        (getattr(detector, one) for one in several if hasattr(detector, one)), [detector]
    )
    return [member for member in members if isinstance(member, BackboneDetector)]


def untrained(detector: Detector) -> str:
    """Why a detector's figures say nothing of its method; empty if nothing is known against them.

    Asked are the weights of its networks, which are loaded if they are not there yet, and the files
    of learned prompts or layers that its options name. A file says so of itself, under
    ``pretrained`` in its safetensors metadata, such as ``no: drawn at random from seed 0``.
    """
    if (deployed := getattr(detector, "deployed", None)) is not None:
        return str(deployed.network.untrained)
    reasons = [member.load_network().untrained for member in with_networks(detector)]
    files = [getattr(detector, option) for option in detector.file_options]
    reasons += [untrained_reason(read_metadata(Path(file))) for file in files if file is not None]
    return "; ".join(dict.fromkeys(filter(None, reasons)))
