"""CLIP models by open_clip's names: how each is built, and where its weights come from."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from offnominal.backbones import hub
from offnominal.backbones import weights as files
from offnominal.backbones.catalogue import CLIP_TAGS, OPEN_CLIP
from offnominal.backbones.clip_blocks import Activation
from offnominal.checks import meant
from offnominal.errors import BackboneError, WeightsError

__all__ = ["ClipModel", "build", "describe", "fit", "hub_files", "weights_file"]

_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)
_IMAGE = "visual."
# Beside the text tower: sizes in OpenAI's files, and what compares the two towers.
_SPARE = (
    "input_resolution", "context_length", "vocab_size", "logit_scale", "logit_bias", "attn_mask"
)  # fmt: skip
# What the configuration of two transformers with a class token and a linear projection may say.
_PLAIN = {
    "vision_cfg": {
        "image_size", "layers", "width", "patch_size", "head_width", "mlp_ratio", "ls_init_value"
    },
    "text_cfg": {"context_length", "vocab_size", "width", "heads", "layers", "ls_init_value"},
}  # fmt: skip


class ClipModel(NamedTuple):
    """What is known of a CLIP model before its weights are read.

    ``config`` is as open_clip's ``CLIP`` takes it, ``activation`` what it was trained with, and
    ``hub`` the repository of its weights, a slash, and perhaps the file; empty if there is none.
    """

    name: str
    config: dict[str, Any]
    activation: Activation
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    hub: str


def describe(name: str, metadata: Mapping[str, str], path: Path | None) -> ClipModel:
    """Look a model up by its name, or take what a weights file says of it.

    The entry ``open_clip`` of the file's metadata, a JSON object, is a configuration that goes
    before the name's; ``mean`` and ``std`` likewise. The path is for messages.

    Raises
    ------
    BackboneError
        If open_clip knows neither the name nor the tag.
    WeightsError
        If the file's configuration cannot be read.
    """
    plain, tag = _split(name)
    wanted = tag or CLIP_TAGS.get(plain, "")
    source = _open_clip().get_pretrained_cfg(plain, wanted) if wanted else {}
    if "open_clip" in metadata:
        config = _parse(metadata["open_clip"], path)
        quick = config.get("quick_gelu")
    else:
        config = _known(plain, name)
        if tag and not source:
            there = _tags(plain)
            raise BackboneError(
                f"--backbone {name}: open_clip has no such weights of {plain}; it has {there}"
            )
        quick = "-quickgelu" in name or source.get("quick_gelu") or config.get("quick_gelu")
    mean, std = files.normalisation(
        metadata, path, tuple(source.get("mean", _MEAN)), tuple(source.get("std", _STD))
    )
    activation: Activation = "quickgelu" if quick else "gelu"
    return ClipModel(name, config, activation, mean, std, source.get("hf_hub", ""))


def build(model: ClipModel) -> Any:
    """open_clip's module on the meta device, without weights.

    Raises
    ------
    BackboneError
        If it is not the plain form: two transformers, a class token, a linear projection.
    """
    config = {key: value for key, value in model.config.items() if key != "quick_gelu"}
    if (
        set(config) != {"embed_dim", *_PLAIN}
        or any(set(config[part]) - allowed for part, allowed in _PLAIN.items())
        or not isinstance(config["vision_cfg"].get("layers"), int)  # a list is a ResNet
    ):
        raise BackboneError(
            f"{model.name} is not CLIP's own pair of transformers; choose one such as "
            f"{', '.join(OPEN_CLIP + each for each in CLIP_TAGS)}"
        )
    try:
        with torch.device("meta"):
            return _open_clip().CLIP(**config)
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        raise BackboneError(f"open_clip cannot build {model.name}: {error}") from error


def hub_files(name: str) -> list[tuple[str, str]]:
    """Repository and file names of a model's weights on the hub, the preferred one first."""
    repository, _, filename = describe(name, {}, None).hub.rpartition("/")
    plain, tag = _split(name)
    if not repository:
        raise BackboneError(
            f"{name}: which weights? open_clip knows {_tags(plain)}; name one after a dot, or use "
            "--weights FILE"
        )
    # open_clip has two tags for one file in places; nobody is to get other weights than asked for.
    other = repository.rpartition(".")[2]
    if tag and other != tag and other in _tags(plain).split(", "):
        raise BackboneError(
            f"{name}: open_clip fetches {other} for it; name that one, or use --weights FILE"
        )
    return [(repository, each) for each in ([filename] if filename else hub.CLIP_FILES)]


def weights_file(name: str, patience: float | None = None) -> Path:
    """The file that holds a model's weights, fetched if it is not on this machine.

    ``patience`` is :func:`offnominal.backbones.hub.download`'s.

    Raises
    ------
    BackboneError
        If open_clip knows no weights on the hub for it.
    WeightsError
        If it cannot be had.
    """
    # A repository has one file or the other.
    places = hub_files(name)
    return hub.download(places[0][0], [filename for _, filename in places], name, patience)


def fit(tower: nn.Module, path: Path, name: str, image: bool) -> None:
    """Load the image tower or the text tower from a file; the other need not be in it."""
    tensors = files.read_weights(path)
    own = {
        key.removeprefix(_IMAGE): value
        for key, value in tensors.items()
        if key.startswith(_IMAGE) == image and key not in _SPARE
    }
    if not own:
        lacks = (
            "no tensor's name starts with visual.: not CLIP in OpenAI's or open_clip's naming; it "
            f"has {', '.join(list(tensors)[:3])}"
            if image
            else "holds CLIP's image tower only; text features need the text tower as well"
        )
        raise WeightsError(f"{path}: {lacks}")
    files.fit_to(tower, own, str(path), name)


def _split(name: str) -> tuple[str, str]:
    """open_clip's name of a model, whatever its activation, and its weights' tag or nothing."""
    architecture, _, tag = name.removeprefix(OPEN_CLIP).partition(".")
    return architecture.removesuffix("-quickgelu"), tag


def _tags(architecture: str) -> str:
    return ", ".join(_open_clip().list_pretrained_tags_by_model(architecture)) or "none"


def _open_clip() -> Any:
    import open_clip  # seconds, and only CLIP needs it

    return open_clip


def _known(architecture: str, name: str) -> dict[str, Any]:
    names = _open_clip().list_models()
    # Of its own models only: other names make open_clip fetch from the hub, or read a folder.
    config = _open_clip().get_model_config(architecture) if architecture in names else None
    if config is None:
        near = meant(architecture, names).replace("mean ", f"mean {OPEN_CLIP}")
        told = near or f"choose one such as {', '.join(OPEN_CLIP + each for each in CLIP_TAGS)}"
        raise BackboneError(f"--backbone {name}: open_clip has no such model; {told}".rstrip())
    return dict(config)


def _parse(text: str, path: Path | None) -> dict[str, Any]:
    try:
        config = json.loads(text)
        if not {"embed_dim", *_PLAIN} <= set(config):
            raise ValueError("embed_dim, vision_cfg and text_cfg are needed")
    except (ValueError, TypeError) as error:
        raise WeightsError(
            f"{path}: its metadata gives open_clip's configuration as {text[:80]!r} ({error})"
        ) from error
    return dict(config)
