"""Backbones: pixels in, patch features out."""

import sys
import warnings
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from offnominal.backbones.catalogue import ALEXNET, CATALOGUE, DEFAULT, OPEN_CLIP
from offnominal.errors import BackboneError, OptionError

if TYPE_CHECKING:  # listing backbones must not cost an import of torch
    from offnominal.backbones.base import Backbone

__all__ = ["AUTO", "CATALOGUE", "DEFAULT", "MAE", "OPEN_CLIP", "PDN", "backbone_name"]
__all__ += ["load_backbone"]

AUTO = "auto"  # what stands for no name
MAE = "mae_"  # and those of masked autoencoders with their decoder
PDN = "pdn_"  # and those of patch description networks, EfficientAD's teachers

# The bars of the hub's client and of timm complain, when they are imported in a notebook, that
# ipywidgets is not there; they write text then, and all is well.
if "ipykernel" in sys.modules and "tqdm.auto" not in sys.modules:
    with warnings.catch_warnings(), suppress(ImportError):
        warnings.filterwarnings("ignore", message="IProgress not found")
        import_module("tqdm.auto")


def backbone_name(
    name: str | None = None, weights: str | Path | None = None, default: str = DEFAULT
) -> str:
    """The backbone that `load_backbone` would build, without building it.

    ``default`` is what it is where neither says; methods have defaults of their own.
    """
    named = None
    if weights is not None:
        from offnominal.backbones.weights import read_metadata, recognised

        named = read_metadata(Path(weights)).get("model")
        if name is None:
            named = named or recognised(Path(weights))
    if name is None:
        return named or default
    architecture = CATALOGUE[name].timm if name in CATALOGUE else name
    if named is not None and named.split(".")[0] != architecture.split(".")[0]:
        raise BackboneError(f"{weights}: says that it is {named}, but --backbone is {name}")
    return name


def load_backbone(
    name: str | None = None,
    weights: str | Path | None = None,
    layers: Sequence[int] | None = None,
) -> "Backbone":
    """Build a frozen backbone and load its weights.

    Parameters
    ----------
    name : str or None
        A short name (``offnominal backbones`` lists them), any timm name, or ``open_clip:`` and one
        of open_clip's, as ``open_clip:ViT-L-14-336``, for CLIP with its text tower; ``alexnet``,
        whose weights are in a local file only. None: what the weights file says of itself,
        otherwise DINOv2 S.
    weights : path or None
        A local file: safetensors or a ``.pth`` state dict, in timm's naming or in the original one.
        None: from the hub's cache, or fetched from the hub.
    layers : sequence of int or None
        Feature levels; None is the backbone's own default.

    Raises
    ------
    BackboneError
        If the name is unknown, or contradicts what the weights file says.
    WeightsError
        If the weights cannot be had or do not fit; never falls back to another backbone.
    """
    from offnominal.backbones.base import Origin

    name = backbone_name(name, weights)
    network: Any = _built(name, weights, layers)
    file = None if weights is None else str(weights)
    chosen = None if layers is None else tuple(layers)
    network.origin = Origin(name, file, chosen, network.digest)
    return cast("Backbone", network)


def _built(name: str, weights: str | Path | None, layers: Sequence[int] | None) -> "Backbone":
    if name in CATALOGUE and not CATALOGUE[name].timm:
        from offnominal.backbones.builtin import Builtin

        if weights is not None or layers is not None:
            raise OptionError(f"--backbone {name} takes neither --weights nor --layers")
        return Builtin(aligned=name == "builtin-aligned")
    if name.startswith(OPEN_CLIP):
        from offnominal.backbones.clip import ClipBackbone

        return ClipBackbone(name, weights, layers)
    if name.startswith(MAE):
        from offnominal.backbones.mae import MaskedAutoencoder

        return MaskedAutoencoder.load(name, weights, layers)
    if name == ALEXNET:
        from offnominal.backbones.alexnet import AlexNet

        return AlexNet(weights, layers)
    if name.startswith(PDN):
        from offnominal.backbones.pdn import PatchDescriber

        return PatchDescriber.load(name, weights, layers)
    from offnominal.backbones.timm import TimmBackbone

    return TimmBackbone(name, weights, layers)
