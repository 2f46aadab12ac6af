"""Backbones: pixels in, patch features out."""

import sys
import warnings
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from offnominal.backbones.catalogue import ALEXNET, CATALOGUE, DEFAULT, JOIN, OPEN_CLIP
from offnominal.errors import BackboneError, OptionError

if TYPE_CHECKING:  # listing backbones must not cost an import of torch
    from offnominal.backbones.base import Backbone

__all__ = ["AUTO", "CATALOGUE", "DEFAULT", "JOIN", "MAE", "OPEN_CLIP", "PDN", "POINTS"]
__all__ += ["backbone_name", "load_backbone", "takes_points"]

AUTO = "auto"  # what stands for no name
POINTS = "fpfh"  # how names of those begin that look at points
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
    if name is not None and JOIN in name:  # each part is held to its own file
        return name
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


def takes_points(name: str | None) -> bool:
    """Whether a backbone, or a part of a joined one, looks at points."""
    return any(part.startswith(POINTS) for part in (name or "").split(JOIN))


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
        whose weights are in a local file only; ``fpfh``, which looks at the points of a scan; or
        several with ``+`` between, as ``wide_resnet50_2+fpfh``, whose features are joined. None:
        what the weights file says of itself, otherwise DINOv2 S.
    weights : path or None
        A local file: safetensors or a ``.pth`` state dict, in timm's naming or in the original one.
        None: from the hub's cache, or fetched from the hub. Of joined networks a file for each that
        has weights, in their order, with commas between.
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
    if JOIN in name:
        return _joined(name, weights, layers)
    if name in CATALOGUE and not CATALOGUE[name].timm:
        if weights is not None or layers is not None:
            raise OptionError(f"--backbone {name} takes neither --weights nor --layers")
        if takes_points(name):
            from offnominal.backbones.points import PointFeatures

            return PointFeatures(name)
        from offnominal.backbones.builtin import Builtin

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


def _joined(name: str, weights: str | Path | None, layers: Sequence[int] | None) -> "Backbone":
    """Several by their names; ``weights`` and ``layers`` go to those that have some."""
    from offnominal.backbones.joined import JoinedBackbone

    names = [each.strip() for each in name.split(JOIN)]
    if not all(names):
        raise OptionError(f"--backbone {name}: give a name on each side of {JOIN}")
    trained = [each not in CATALOGUE or bool(CATALOGUE[each].timm) for each in names]
    given = [] if weights is None else str(weights).split(",")
    if given and len(given) != sum(trained):
        raise OptionError(
            f"--weights {weights}: {len(given)} for {sum(trained)} networks of --backbone {name} "
            "that have weights; give as many with commas between, or none"
        )
    if layers is not None and not any(trained):
        raise OptionError(f"--layers: no part of --backbone {name} has any")
    files = iter(given)
    return JoinedBackbone(
        [
            load_backbone(each, next(files, None), layers) if has else load_backbone(each)
            for each, has in zip(names, trained, strict=True)
        ]
    )
