"""Networks of timm's that are trained along, and saved with what they are part of."""

from collections.abc import Mapping
from typing import Any

import timm
import torch
from torch import Tensor, nn

from offnominal.backbones import CATALOGUE
from offnominal.backbones.catalogue import closest
from offnominal.errors import BackboneError, OptionError, WeightsError

__all__ = ["convolutional", "last_features", "take_over", "timm_name"]


def convolutional(backbone: str, method: str) -> tuple[nn.Module, int]:
    """A network up to its last features, its weights drawn anew; and how many channels they have.

    Parameters
    ----------
    backbone : str
        A short name, or timm's.
    method : str
        For whom, for errors.

    Raises
    ------
    OptionError
        If it is a transformer, or gives no levels.
    BackboneError
        If timm has no such network.
    """
    name = timm_name(backbone)
    try:
        # Residual blocks that begin as the identity, timm's way, are not those of the papers.
        plain = timm.models.is_model_in_modules(name.split(".")[0], ["resnet"])
        options: dict[str, Any] = {"zero_init_last": False} if plain else {}
        encoder: Any = timm.create_model(name, num_classes=0, **options)
        levels = encoder.feature_info
        strides = {int(level["reduction"]) for level in levels}
        encoder.prune_intermediate_layers(1, prune_head=True)
    except (AttributeError, RuntimeError, TypeError, ValueError) as error:
        told = f"{method} takes a convolutional network, as resnet18 ({error})"
        raise OptionError(f"--backbone {backbone}: {told}") from error
    if len(strides) == 1:
        told = f"{method} takes a convolutional network, as resnet18"
        raise OptionError(f"--backbone {backbone}: {told}")
    return encoder, int(levels[-1]["num_chs"])


def timm_name(backbone: str) -> str:
    """What timm calls a network, by its short name or timm's.

    Raises
    ------
    BackboneError
        If timm has no such network.
    """
    known = CATALOGUE.get(backbone)
    name = known.timm if known else backbone
    if not name or not timm.is_model(name.partition(".")[0]):
        told = "choose one of its, as resnet18" if known else closest(backbone)
        raise BackboneError(f"--backbone {backbone}: not a network of timm's; {told}")
    return name


def last_features(encoder: Any, pixels: Tensor) -> Tensor:
    """Features (B, C, h / 32, w / 32) of normalised pixels (B, 3, h, w)."""
    [features] = encoder.forward_intermediates(pixels, indices=1, intermediates_only=True)
    assert isinstance(features, Tensor)
    return features


def take_over(
    network: nn.Module, tensors: Mapping[str, Tensor], name: str, fresh: tuple[str, ...]
) -> None:
    """Load weights of a whole network into one that gives its features.

    timm names the same tensors with dots or underscores, depending on what a network is for.
    """
    plain = {_plain(key): value for key, value in tensors.items()}
    state = network.state_dict()
    wanted = {key: _plain(key) for key in state if not key.startswith(fresh)}
    lacking = [key for key, short in wanted.items() if short not in plain]
    odd = [k for k, s in wanted.items() if s in plain and plain[s].shape != state[k].shape]
    if lacking or odd:
        told = ", ".join((lacking or odd)[:3])
        raise WeightsError(f"{name}: its weights do not fit it as an encoder ({told})")
    with torch.no_grad():
        for key, short in wanted.items():
            state[key].copy_(plain[short])


def _plain(key: str) -> str:
    return key.removeprefix("model.").replace(".", "_")
