"""Supervised methods whose encoder is a network of timm's, pretrained, and trained further."""

import json
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import timm
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from offnominal.backbones import AUTO, backbone_name, load_backbone
from offnominal.backbones.timm import TimmBackbone
from offnominal.backbones.weights import build_arguments, digest, read_metadata
from offnominal.checks import check_range
from offnominal.detectors.options import OnError
from offnominal.detectors.supervised.base import Supervised
from offnominal.detectors.supervised.encoder import take_over, timm_name
from offnominal.detectors.trained import Learned
from offnominal.errors import ModelFileError, OptionError
from offnominal.labels.labelled import DEFECTIVE, Defects
from offnominal.training.images import Images, ImageStore
from offnominal.training.norms import adapt_norms

__all__ = ["FineTuned"]

_MEASURED = 64  # images whose statistics batch norms begin with
_SLOWER = 0.3  # the rate of what is pretrained, in that of what is new
_WARM_UP = 0.05  # of the schedule
_NORMAL = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class FineTuned(Supervised):
    """What is built on a network of timm's that goes on learning.

    What it became is saved with the rest, so that a model file needs no weights beside it. A method
    writes :meth:`encoder` as well.

    Parameters
    ----------
    backbone : str or None
        Any network of timm's, by its short name (see ``offnominal backbones``) or timm's; ``auto``
        or None: what the weights file says of itself, otherwise EfficientNet-Lite2, whose weights
        are installed with the extra ``fit``.
    weights : path or None
        A local file of what the network begins with, safetensors or a ``.pth`` state dict. None:
        from the installed package, the hub's cache, or fetched from the hub.
    pretrained : bool
        Begin with weights; False: everything is drawn from ``seed``, and learns from the images at
        hand alone.
    lr : float
        Learning rate of what is new; the encoder's is 0.3 of it where it is pretrained.
    **options
        See :class:`~offnominal.detectors.supervised.base.Supervised`.
    """

    default_backbone: ClassVar[str] = "efficientnet_lite2"
    # What at least one defective image must have: a mark, one with its pixels, or nothing.
    learns_by: ClassVar[Literal["classes", "boxes", "pixels"]] = "pixels"
    side_multiple: ClassVar[int] = 32
    learns_from: ClassVar[tuple[str, ...]] = ("weights",)

    def __init__(
        self,
        backbone: str | None = AUTO,
        weights: str | None = None,
        pretrained: bool = True,
        lr: float = 1e-3,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if weights is not None and not pretrained:
            raise OptionError(f"--weights {weights} --no-pretrained: give one of the two")
        check_range("lr", lr, above=0, most=1)
        self.backbone = None if backbone == AUTO else backbone
        self.weights = str(weights) if weights is not None else None
        self.pretrained, self.lr = pretrained, lr

    def _clear(self) -> None:
        super()._clear()
        # What the encoder is, and how it takes its pixels; with what it began.
        self.began_: dict[str, Any] = {}

    @abstractmethod
    def encoder(self) -> nn.Module:
        """The network of timm's inside of what :meth:`build` made."""

    def fresh(self) -> tuple[str, ...]:
        """How the names of those of its tensors begin that no weights are for."""
        return ()

    def store_defects(
        self, defects: Defects, store: ImageStore, on_error: OnError | None
    ) -> Learned:
        """Take the defective images in, if there is enough known of them."""
        learned = super().store_defects(defects, store, on_error)
        labels = learned.labels
        if labels is not None and self.learns_by != "classes":
            what, there = "an outline or mask", bool((labels.targets == DEFECTIVE).any())
            if self.learns_by == "boxes":
                what = "a box, outline or mask of a known class"
                there = any(min(kinds, default=-1) >= 0 for kinds in labels.instance_kinds)
            if not there:
                raise OptionError(
                    f"{self.method}: no defective image has {what} to learn from; give --masks "
                    "or --boxes, or take --method classes, which needs none"
                )
        return learned

    @property
    def timm_name(self) -> str:
        """The encoder as timm calls it."""
        return str(self.began_["timm"])

    @property
    def arguments(self) -> dict[str, Any]:
        """How it is built, where its weights say so."""
        return dict(self.began_["arguments"])

    def make_networks(self) -> None:
        """Build the networks, from the seed; at a fit with the encoder's weights."""
        begin = None if self.began_ else self._begin()
        # They are the detector's own, of the network that it begins with.
        self.mean, self.std = (tuple(self.began_[name]) for name in ("mean", "std"))  # type: ignore[misc]
        super().make_networks()
        if begin is not None:
            take_over(self.encoder(), begin, self.timm_name, self.fresh())

    def _begin(self) -> dict[str, Tensor] | None:
        """The weights to begin with; None where there are to be none."""
        name = backbone_name(self.backbone, self.weights, self.default_backbone)
        metadata = read_metadata(Path(self.weights)) if self.weights else {}
        called = timm_name(name)
        mean, std = _NORMAL
        tensors, weights = None, ""
        if self.pretrained:
            network = load_backbone(name, self.weights)
            assert isinstance(network, TimmBackbone)
            mean, std, tensors = network.mean, network.std, network.model.state_dict()
            weights = digest(network.model)
        self.began_ = {
            "name": name,
            "timm": called,
            "arguments": build_arguments(metadata),
            "mean": list(mean),
            "std": list(std),
            "weights": weights,
        }
        return tensors

    def prepare(self, images: Images) -> None:
        """Give pretrained batch norms the statistics of good images, so that steps keep them."""
        if self.pretrained:
            chosen = range(min(len(images), _MEASURED))
            adapt_norms(self.encoder(), images.some(chosen).batches())

    def optimisers(self) -> list[Optimizer]:
        """AdamW; what is pretrained moves slower than what is new."""
        inner = {id(each) for each in self.encoder().parameters()} if self.pretrained else set()
        parameters = list(self.parameters())
        slow = [each for each in parameters if id(each) in inner]
        fast = [each for each in parameters if id(each) not in inner]
        groups: list[dict[str, Any]] = [{"params": fast}]
        if slow:
            groups.append({"params": slow, "lr": _SLOWER * self.lr})
        return [AdamW(groups, lr=self.lr, weight_decay=1e-2)]

    def rate(self, done: float) -> float:
        """A short rise, then a line towards 0."""
        return min((done + 0.01) / _WARM_UP, (1 - done) / (1 - _WARM_UP), 1.0)

    def header(self) -> dict[str, Any]:
        """All that is no array; the encoder by its name, settled at the fit."""
        found = super().header()
        found["options"] |= {"backbone": self.began_["name"], "weights": None}
        return found

    def restore(self, header: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
        """Take over what was learned; the weights that it began with are not needed."""
        began = header.get("learned", {}).get("began_")
        must_be = {"name": str, "timm": str, "arguments": dict, "mean": list, "std": list}
        if not isinstance(began, dict) or not all(
            isinstance(began.get(name), kind) for name, kind in must_be.items()
        ):
            raise ModelFileError("its header does not say which encoder it was fitted with")
        # Any other argument of timm's might read or fetch a file.
        words = {key: json.dumps(value) for key, value in began["arguments"].items()}
        if build_arguments(words) != began["arguments"]:
            raise ModelFileError("its encoder has arguments that no weights file gives")
        if not timm.is_model(began["timm"].partition(".")[0]):
            raise ModelFileError(f"fitted on {began['timm'][:60]}, which this timm lacks")
        self.began_ = began
        super().restore(header, arrays)
