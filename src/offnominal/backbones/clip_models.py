"""CLIP models by open_clip's names: what is known of each before its weights are read."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from torch import nn

from offnominal.backbones import OPEN_CLIP
from offnominal.backbones import weights as files
from offnominal.backbones.catalogue import CLIP_TAGS
from offnominal.backbones.clip_blocks import Activation
from offnominal.errors import BackboneError, WeightsError

__all__ = [
    "DEFAULT_TAGS",
    "PREFIX",
    "ClipModel",
    "build",
    "describe",
    "plain_name",
    "tag_names",
]

PREFIX = OPEN_CLIP
DEFAULT_TAGS = CLIP_TAGS
_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class ClipModel:
    """What is known of a CLIP model before its weights are read.

    Attributes
    ----------
    name : str
        As it was asked for.
    config : dict
        As open_clip's ``CLIP`` takes it.
    activation : {"quickgelu", "gelu"}
        What it was trained with.
    mean, std : tuple of three floats
    hub : str
        Repository of its weights, a slash, and perhaps the file; empty if there is none.
    """

    name: str
    config: dict[str, Any]
    activation: Activation
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    hub: str


def describe(name: str, metadata: Mapping[str, str], path: Path | None) -> ClipModel:
    """Look a model up by its name, or take what a weights file says of it.

    Parameters
    ----------
    name : str
        ``open_clip:`` and one of open_clip's names, with or without a tag after a dot.
    metadata : mapping
        Of the weights file. Its entry ``open_clip``, a JSON object, is a configuration that goes
        before the name's; ``mean`` and ``std`` likewise.
    path : Path or None
        The weights file, for messages.

    Raises
    ------
    BackboneError
        If open_clip knows neither the name nor the tag.
    WeightsError
        If the file's configuration cannot be read.
    """
    plain, tag = plain_name(name)
    source = _pretrained(plain, tag or DEFAULT_TAGS.get(plain, ""))
    mean, std = tuple(source.get("mean", _MEAN)), tuple(source.get("std", _STD))
    if path is not None:
        for key, value in (("mean", metadata.get("mean")), ("std", metadata.get("std"))):
            if value is not None:
                three = files.three_floats(value, key, path)
                mean, std = (three, std) if key == "mean" else (mean, three)
    if "open_clip" in metadata:
        config = _parse(metadata["open_clip"], path)
        quick = bool(config.get("quick_gelu"))
    else:
        config = _known(plain, name)
        if tag and not source:
            tags = ", ".join(tag_names(plain)) or "none"
            raise BackboneError(
                f"--backbone {name}: open_clip has no such weights of {plain}; it has {tags}"
            )
        quick = "-quickgelu" in name or bool(source.get("quick_gelu") or config.get("quick_gelu"))
    activation: Activation = "quickgelu" if quick else "gelu"
    return ClipModel(name, config, activation, mean, std, source.get("hf_hub", ""))


def plain_name(name: str) -> tuple[str, str]:
    """open_clip's name of a model, whatever its activation, and its weights' tag or nothing."""
    architecture, _, tag = name.removeprefix(PREFIX).partition(".")
    return architecture.removesuffix("-quickgelu"), tag


def _pretrained(architecture: str, tag: str) -> dict[str, Any]:
    found: dict[str, Any] = _open_clip().get_pretrained_cfg(architecture, tag) if tag else {}
    return found


def _open_clip() -> Any:
    try:
        import open_clip
    except ImportError as error:
        raise BackboneError(
            "CLIP with its text tower needs open_clip: pip install open_clip_torch"
        ) from error
    return open_clip


def _known(architecture: str, name: str) -> dict[str, Any]:
    config: dict[str, Any] | None = _open_clip().get_model_config(architecture)
    if config is None:
        names = _open_clip().list_models()
        near = get_close_matches(architecture, names, n=3, cutoff=0.5) or list(DEFAULT_TAGS)
        raise BackboneError(
            f"--backbone {name}: open_clip has no such model; did you mean "
            f"{' or '.join(PREFIX + each for each in near)}?"
        )
    return config


def tag_names(architecture: str) -> list[str]:
    """Tags of the weights that open_clip knows for a model."""
    tags: list[str] = _open_clip().list_pretrained_tags_by_model(architecture)
    return tags


def _parse(text: str, path: Path | None) -> dict[str, Any]:
    try:
        config = json.loads(text)
        if not {"embed_dim", "vision_cfg", "text_cfg"} <= set(config):
            raise ValueError("embed_dim, vision_cfg and text_cfg are needed")
    except (ValueError, TypeError) as error:
        raise WeightsError(
            f"{path}: its metadata gives open_clip's configuration as {text[:80]!r} ({error})"
        ) from error
    return dict(config)


def build(model: ClipModel) -> Any:
    """open_clip's module on the meta device, without weights.

    Raises
    ------
    BackboneError
        If it is not the plain form: two transformers, a class token, a linear projection.
    """
    parts = ("embed_dim", "vision_cfg", "text_cfg")
    refusal = BackboneError(
        f"{model.name} is not CLIP's own pair of transformers; choose one such as "
        f"{', '.join(PREFIX + each for each in DEFAULT_TAGS)}"
    )
    if set(model.config) - {*parts, "quick_gelu"}:
        raise refusal
    try:
        with torch.device("meta"):
            module = _open_clip().CLIP(**{part: model.config[part] for part in parts})
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        raise BackboneError(f"open_clip cannot build {model.name}: {error}") from error
    if not _is_plain(module):
        raise refusal
    return module


def _is_plain(module: Any) -> bool:
    visual = module.visual
    towers = (getattr(visual, "transformer", None), getattr(module, "transformer", None))
    return (
        all(hasattr(tower, "resblocks") for tower in towers)
        and all(
            type(block).__name__ == "ResidualAttentionBlock"
            for tower in towers
            if tower is not None
            for block in tower.resblocks
        )
        and getattr(visual, "attn_pool", 0) is None
        and getattr(visual, "pool_type", "") == "tok"
        and not getattr(visual, "final_ln_after_pool", True)
        and isinstance(getattr(module, "text_projection", None), nn.Parameter)
        and getattr(module, "text_pool_type", "") == "argmax"
    )
