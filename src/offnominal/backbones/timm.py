"""Any timm network with patch tokens or feature maps, behind one call."""

import copy
import hashlib
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import timm
import torch
import torch.nn.functional as F
from timm.layers.conv2d_same import Conv2dSame
from torch import Tensor, nn

from offnominal.backbones import hub
from offnominal.backbones import weights as files
from offnominal.backbones.base import Backbone, Levels
from offnominal.backbones.catalogue import CATALOGUE, MASK_THRESHOLDS, closest, family_of
from offnominal.backbones.positions import use_original_positions
from offnominal.errors import BackboneError

__all__ = ["TimmBackbone", "hub_file", "weights_file"]

# Several threads may use a network for the first time.
_LAYING_OUT = threading.Lock()


class TimmBackbone(Backbone):
    """A frozen timm network.

    A vision transformer gives the normalised tokens of its last block; a convolutional network
    gives its maps of stride 8 and 16, each averaged over 3 x 3 neighbours (the locally aware
    features of PatchCore, Roth et al., 2022, eq. 1-3), the coarser one upsampled bilinearly, and
    both concatenated.

    Parameters and errors are those of :func:`~offnominal.backbones.load_backbone`; ``layers`` count
    as timm does: blocks of a transformer, stages of a convolutional network.
    """

    def __init__(
        self,
        name: str,
        weights: str | Path | None = None,
        layers: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.name = name
        path = Path(weights) if weights is not None else None
        metadata = files.read_metadata(path) if path else {}
        timm_name = _timm_name(name)
        self.model = _create(timm_name, files.build_arguments(metadata))
        path = path or weights_file(name)
        files.fit_to(self.model, files.read_weights(path), str(path), name)
        self.digest = files.digest(self.model)
        self.untrained = files.untrained_reason(metadata)

        config = self.model.pretrained_cfg
        self.mean, self.std = files.normalisation(
            metadata, path, tuple(config["mean"]), tuple(config["std"])
        )
        self.family = family_of(timm_name)
        self.mask_threshold = MASK_THRESHOLDS.get(self.family)
        # Those with registers were trained with the rule that timm follows.
        if self.family in ("dino", "dinov2") and self.model.reg_token is None:
            use_original_positions(self.model)

        self._levels = _levels(self.model, name)
        strides = [stride for _, stride in self._levels]
        self.is_transformer = len(set(strides)) == 1
        self.level_count = len(strides)
        middle = [i for i, stride in enumerate(strides) if stride in (8, 16)]
        self._choose_layers(layers, middle if middle and not self.is_transformer else [-1])
        entry = CATALOGUE.get(name)
        self.resolution = entry.resolution if entry else int(config["input_size"][-1])
        self.eval().requires_grad_(False)

    def _use(self, layers: tuple[int, ...]) -> None:
        kept = getattr(self.model, "kept_levels", self.level_count)
        if layers[-1] >= kept:
            raise BackboneError(
                f"{self.name} was trimmed to its first {kept} levels, which leaves out level "
                f"{layers[-1]}: load it anew"
            )
        chosen = [self._levels[index] for index in layers]
        self.layers = layers
        self.dim = sum(channels for channels, _ in chosen)
        self.stride = min(reduction for _, reduction in chosen)
        self.multiple = max(reduction for _, reduction in chosen)

    def with_original_positions(self) -> Self:
        """With the rule of DINO and of DINOv2 without registers; see :class:`Backbone`."""
        if self.family not in ("dino", "dinov2"):
            return super().with_original_positions()
        if "_pos_embed" in vars(self.model):
            return self  # it follows that rule already
        other = self._with(copy.copy(self.model))  # shallow: one set of weights
        use_original_positions(other.model)
        other.digest = hashlib.sha256(f"{self.digest} original positions".encode()).hexdigest()
        return other

    @property
    def architecture(self) -> str:
        """The name of the network that timm builds it by."""
        return _timm_name(self.name)

    def _with(self, model: nn.Module) -> Self:
        """The same around another network."""
        other = copy.copy(self)
        vars(other)["_modules"] = {"model": model}
        return other

    def trim(self) -> None:
        """Drop blocks or stages behind the levels in use; see :class:`Backbone`."""
        kept = self.layers[-1] + 1
        if kept < self.level_count and hasattr(self.model, "prune_intermediate_layers"):
            # The head is empty anyway, and the norm is applied to every level of a transformer.
            self.model.prune_intermediate_layers(list(self.layers), prune_head=False)
            self.model.kept_levels = kept

    def fresh(self) -> Self:
        """A network of the same kind and levels that knows nothing yet, for training.

        Its weights are drawn by torch's generator as timm initialises them, but for residual
        blocks, which begin as torchvision's do: not as the identity.
        """
        name = _timm_name(self.name)
        residual = timm.models.is_model_in_modules(name.split(".")[0], ["resnet"])
        options: dict[str, Any] = {"zero_init_last": False} if residual else {}
        model: Any = timm.create_model(name, pretrained=False, num_classes=0, **options)
        model.laid_out = True  # as it is: an optimiser holds its tensors
        other = self._with(model.to(memory_format=torch.channels_last))
        other.trim()
        return other

    def reflected(self) -> Self:
        """A copy that pads with reflections, of another digest; see :class:`Backbone`."""
        other = self._with(copy.deepcopy(self.model))
        padded = [
            one
            for one in other.modules()
            if isinstance(one, nn.Conv2d) and one.padding not in ((0, 0), 0)
        ]
        # Those that find out their padding from the image pad by themselves, with zeros.
        if not padded or any(isinstance(one, Conv2dSame) for one in other.modules()):
            return super().reflected()
        for one in padded:
            one.padding_mode = "reflect"
        other.digest = hashlib.sha256(f"{self.digest} reflected".encode()).hexdigest()
        return other

    def levels(self, pixels: Tensor, norm: bool = True) -> Levels:
        """Feature levels and a vector for the whole image; see :class:`Backbone`."""
        if not self.is_transformer:
            maps = self._intermediates(pixels)
            return Levels(maps, maps[-1].mean((2, 3)))
        found = self._intermediates(pixels, norm=norm, return_prefix_tokens=True)
        last_map, last_prefix = found[-1]
        has_class = getattr(self.model, "cls_token", None) is not None
        summary = last_prefix[:, 0] if has_class else last_map.mean((2, 3))
        return Levels([each for each, _ in found], summary)

    def token_levels(self, pixels: Tensor) -> list[Tensor]:
        """All tokens of each level; see :class:`Backbone`."""
        if not self.is_transformer:
            return super().token_levels(pixels)
        found = self._intermediates(pixels, norm=False, return_prefix_tokens=True)
        return [torch.cat([first, each.flatten(2).mT], dim=1) for each, first in found]

    def _intermediates(self, pixels: Tensor, **options: Any) -> list[Any]:
        self.check_size(pixels)
        if not self.is_transformer:
            # A CPU's convolutions are 10 to 30 % faster where a pixel's channels lie together, and
            # what takes features position by position reads them without a copy. Filters are laid
            # out so only now: what was trimmed before is never copied.
            _lay_out_by_pixel(self.model)
            pixels = pixels.contiguous(memory_format=torch.channels_last)
        try:
            found: list[Any] = self.model.forward_intermediates(
                pixels,
                indices=list(self.layers),
                stop_early=True,
                output_fmt="NCHW",
                intermediates_only=True,
                **options,
            )
        except AssertionError as error:  # timm's way of saying that the size is fixed
            raise BackboneError(
                f"{self.name} does not take {pixels.shape[-2]} x {pixels.shape[-1]} px ({error}); "
                f"use --resize square --resolution {self.model.pretrained_cfg['input_size'][-1]}"
            ) from error
        return found

    def forward(self, pixels: Tensor) -> Tensor:
        """Patch features (B, dim, h / stride, w / stride); see :class:`Backbone`."""
        if self.is_transformer:
            maps = self._intermediates(pixels, norm=True)
            return maps[0] if len(maps) == 1 else torch.cat(maps, dim=1)
        maps = self._intermediates(pixels)
        maps = [F.avg_pool2d(m, 3, stride=1, padding=1, count_include_pad=False) for m in maps]
        finest = max((m.shape[-2:] for m in maps), key=lambda size: size[0] * size[1])
        aligned = [
            m
            if m.shape[-2:] == finest
            else F.interpolate(m, size=finest, mode="bilinear", align_corners=False)
            for m in maps
        ]
        return torch.cat(aligned, dim=1)


def hub_file(timm_name: str) -> tuple[str, str]:
    """Repository and file name of a network's weights on the hub."""
    try:
        config = timm.get_pretrained_cfg(timm_name, allow_unregistered=False)
    except RuntimeError as error:
        plain = timm_name.partition(".")[0]
        known = ", ".join(timm.list_pretrained(f"{plain}.*")) or "no weights of it"
        raise BackboneError(f"--backbone {timm_name}: timm knows {known}") from error
    if config is None or not config.hf_hub_id:
        raise BackboneError(f"timm has no weights on the hub for {timm_name}: use --weights FILE")
    return config.hf_hub_id, config.hf_hub_filename or "model.safetensors"


def weights_file(name: str, patience: float | None = None) -> Path:
    """The weights of a network: from the package that brings them, or the hub's cache, or the hub.

    ``patience`` is :func:`offnominal.backbones.hub.download`'s.

    Raises
    ------
    WeightsError
        If they cannot be had; the message names the ways out.
    """
    if name in CATALOGUE and (path := hub.have(name, patience)) is not None:
        return path
    repository, filename = hub_file(_timm_name(name))
    return hub.download(repository, [filename], name, patience)


def _timm_name(name: str) -> str:
    timm_name = CATALOGUE[name].timm if name in CATALOGUE else name
    if not timm.is_model(timm_name.split(".")[0]):
        raise BackboneError(f"unknown backbone {name!r}: {closest(name)}")
    return timm_name


def _create(timm_name: str, arguments: dict[str, Any]) -> Any:
    """Build a network without weights; on the meta device where nothing but weights is stored."""
    options: dict[str, Any] = {"pretrained": False, "num_classes": 0, **arguments}
    if timm.models.is_model_in_modules(timm_name.split(".")[0], ["vision_transformer"]):
        options["dynamic_img_size"] = True
    try:
        with torch.device("meta"):
            model: nn.Module = timm.create_model(timm_name, **options)
        stored = set(model.state_dict())
        if all(name in stored for name, _ in model.named_buffers()):
            return model
        # Some buffers are computed when the network is built, such as rotary positions.
        return timm.create_model(timm_name, **options)
    except (RuntimeError, TypeError, ValueError) as error:
        raise BackboneError(f"timm cannot build {timm_name}: {error}") from error


def _lay_out_by_pixel(model: Any) -> None:
    """Store filters with a pixel's channels together, once, as convolutions on a CPU read them.

    Everything is copied, filters or not: otherwise the rest would keep the weights file mapped.
    """
    with _LAYING_OUT, torch.inference_mode(False), torch.no_grad():
        if getattr(model, "laid_out", False):
            return
        tensors = {
            name: tensor.clone(
                memory_format=torch.channels_last if tensor.ndim == 4 else torch.contiguous_format
            )
            for name, tensor in model.state_dict().items()
        }
        model.load_state_dict(tensors, assign=True)
        model.requires_grad_(False)
        model.laid_out = True


def _levels(model: Any, name: str) -> list[tuple[int, int]]:
    """Channels and stride of each level."""
    info = getattr(model, "feature_info", None)
    if info is None or not hasattr(model, "forward_intermediates"):
        raise BackboneError(f"{name} gives no feature maps; choose a network that does")
    return [(int(level["num_chs"]), int(level["reduction"])) for level in info]
