"""Whether what a detector was made of was trained at all, so that its figures mean something."""

from pathlib import Path

from offnominal.backbones.base import Backbone
from offnominal.backbones.weights import read_metadata, untrained_reason
from offnominal.detectors.base import Detector

__all__ = ["untrained"]


def untrained(detector: Detector) -> str:
    """Why a detector's figures say nothing of its method; empty if nothing is known against them.

    Asked are the weights of every network in it, and the files of learned prompts or layers that
    its options name, where they lie there still. A file says so of itself, under ``pretrained`` in
    its safetensors metadata.

    Parameters
    ----------
    detector : Detector
        Its network is loaded if it is not there yet.

    Returns
    -------
    str
        Reasons, such as ``drawn at random from seed 0``.
    """
    detector.load_network()
    networks = [module for module in detector.modules() if isinstance(module, Backbone)]
    reasons = [network.untrained for network in networks]
    files = [getattr(detector, option) for option in detector.file_options]
    reasons += [untrained_reason(read_metadata(Path(file))) for file in files if file is not None]
    return "; ".join(dict.fromkeys(filter(None, reasons)))
