"""An ensemble: the same method on several backbones, their scores and maps averaged.

Roth et al., "Towards Total Recall in Industrial Anomaly Detection", CVPR 2022, section 4.2 and
table 4, average the scores and the maps of PatchCore on WideResNet-101-2, ResNeXt-101 and
DenseNet-201. Their released code brings each member to the range of 0 to 1 first, by the smallest
and the largest value of the whole test set. A part on a line is judged before the next one is seen,
so here each member is divided by what it gives good parts: the mean image score of its references,
each scored without itself.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Self, Unpack, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offnominal.backbones.base import Backbone
from offnominal.calibration import p_value
from offnominal.detectors import detector_class
from offnominal.detectors.base import Detector, OnError, Progress, Scored
from offnominal.detectors.common import CommonOptions, choose_device
from offnominal.detectors.prediction import Prediction
from offnominal.errors import BackboneError, OptionError
from offnominal.images import ImageSource

__all__ = ["PAPER_BACKBONES", "Ensemble", "EnsemblePrediction"]

PAPER_BACKBONES = "wide_resnet101_2,resnext101_32x8d,densenet201"
_PAPER_SETTINGS: dict[str, Any] = {"coreset": 0.01, "dim": 384}


@dataclass(frozen=True, eq=False)
class EnsemblePrediction(Prediction):
    """The average of the members' predictions, which it keeps.

    Attributes
    ----------
    members : tuple of Prediction
        Each in its own scale.
    """

    members: tuple[Prediction, ...] = field(default=(), repr=False)


class _Joined(Scored):
    """Patch scores, size and cover of an image, with the ensemble's score and peak."""

    score: float
    peak: float


class _Backbones(Backbone):
    """Stands for the members' backbones where a detector is asked for its own."""

    def __init__(self, networks: Sequence[Backbone]) -> None:
        super().__init__()
        self.name = ",".join(network.name for network in networks)
        digests = ",".join(network.digest for network in networks)
        self.digest = hashlib.sha256(digests.encode()).hexdigest()
        self.multiple = max(network.multiple for network in networks)
        self.stride = min(network.stride for network in networks)

    def forward(self, pixels: Tensor) -> Tensor:
        """Not there: each member has features of its own."""
        raise BackboneError("an ensemble has no features of its own; ask its members")


class Ensemble(Detector):
    """Several detectors of one method, each on a backbone of its own.

    The image score is the mean over the members of their image scores, and the map the mean of
    their maps, each divided by the member's scale; 1 is what the average good part scores.

    Parameters
    ----------
    of : str
        The members' method, as ``--method`` takes it.
    settings : mapping or None
        Options of that method, the same for all members, as ``{"coreset": 0.25}``. None: for
        PatchCore those of the paper's ensemble, 1 % of features of length 384.
    **common
        See :class:`~offnominal.detectors.base.Detector`; handed on to every member, but for
        ``backbone`` and ``weights``, which list one for each member with commas between. Without
        ``backbone``, those of the paper.

    Notes
    -----
    Every member reads the images for itself while fitting, so give paths, or a list of arrays.

    **Threshold.** The members' scores of a reference, each without its own entries, are averaged
    as those of a new part are. The scales come from the same references, which moves each of them
    by a share of 1 / n; otherwise what the members' method says of its threshold holds. The peak of
    an averaged map is bounded by the average of the members' peaks, and the pixel threshold is set
    from that bound: it can only be too high.

    Raises
    ------
    OptionError
        If there are fewer than 2 members or references, or ``weights`` lists another number.
    """

    method: ClassVar[str] = "ensemble"
    default_backbone: ClassVar[str] = PAPER_BACKBONES

    scales_: Tensor

    def __init__(
        self,
        of: str = "patchcore",
        settings: Mapping[str, Any] | None = None,
        **common: Unpack[CommonOptions],
    ) -> None:
        super().__init__(**common)
        if self.backbone is None:
            self.backbone = self.default_backbone
        self.of = of
        self.settings = dict(settings) if settings is not None else None
        names = [name.strip() for name in self.backbone.split(",")]
        weights = self.weights.split(",") if self.weights is not None else [None] * len(names)
        if len(names) < 2 or len(weights) != len(names):
            raise OptionError(
                f"--backbone {self.backbone}: {len(names)} for an ensemble with {len(weights)} "
                "weights files; list at least two with commas between, and as many weights, or none"
            )
        chosen = self.settings
        if chosen is None:
            chosen = _PAPER_SETTINGS if of == "patchcore" else {}
        shared = {key: value for key, value in common.items() if key not in ("backbone", "weights")}
        members = []
        for name, file in zip(names, weights, strict=True):
            options = shared | dict(chosen) | {"backbone": name, "weights": file}
            members.append(_build(of, options))
        self.members = nn.ModuleList(members)
        self.register_buffer("scales_", torch.ones(0, dtype=torch.float64))
        # untyped in PyTorch
        self.register_state_dict_post_hook(_without_networks)  # type: ignore[no-untyped-call]

    @property
    def _members(self) -> list[Detector]:
        return [cast(Detector, member) for member in self.members]

    @property
    def promises(self) -> bool:
        """As its members do."""
        return all(member.promises for member in self._members)

    # -- learned state ------------------------------------------------------------------------

    def extra_state(self) -> dict[str, Any]:
        """Learned state that is not a tensor, the members' among it."""
        return super().extra_state() | {
            "members_state_": [member.extra_state() for member in self._members]
        }

    @property
    def members_state_(self) -> list[dict[str, Any]]:
        """Learned state of each member that is not a tensor."""
        return [member.extra_state() for member in self._members]

    @members_state_.setter
    def members_state_(self, states: list[dict[str, Any]]) -> None:
        for member, state in zip(self._members, states, strict=True):
            for name, value in state.items():
                setattr(member, name, value)

    def prepare_state(self) -> None:
        """Make room in every member."""
        self.load_network()
        for member in self._members:
            member.prepare_state()

    def load_network(self) -> Backbone:
        """Build the members' backbones on first use; what is returned stands for all of them."""
        if self.network is None:
            networks = [member.load_network() for member in self._members]
            self._device = choose_device(self.device)
            self.network = _Backbones(networks)
            self.to(self._device)
        return self.network

    def use_network(self, network: Backbone, shared: bool = True) -> None:
        """Refused: an ensemble builds the backbones of its members."""
        raise OptionError("an ensemble takes no backbone from outside; name those of its members")

    # -- learning -----------------------------------------------------------------------------

    def fit(
        self,
        images: Iterable[ImageSource] = (),
        on_error: OnError | None = None,
        progress: Progress | None = None,
    ) -> Self:
        """Learn from images of good parts; see :class:`Detector`."""
        sources = list(images)
        self.load_network()
        for number, member in enumerate(self._members):
            # What one member could not read the next cannot read either: it is told once.
            member.fit(sources, on_error if number == 0 else _again(on_error), progress)
        first = self._members[0]
        self.copies_ = first.copies_
        self._set_scales()
        self.references_ = first.references_
        self.fitted_ = True
        return self

    def _fit(self, images: Iterator[tuple[int, np.ndarray]], progress: Progress | None) -> None:
        raise NotImplementedError  # `fit` above lets the members read the images

    def _set_scales(self) -> None:
        """Scale each member by its references, and set the thresholds from all of them."""
        scores = torch.stack([member.good_scores_.cpu() for member in self._members])
        peaks = torch.stack([member.good_peaks_.cpu() for member in self._members])
        if scores.shape[1] < 2:
            raise OptionError("an ensemble is scaled by its references: give 2 or more good images")
        self.scales_ = scores.mean(1).clamp_min(torch.finfo(torch.float64).tiny).to(self._device)
        divisor = self.scales_.cpu()[:, None]
        self.good_scores_ = (scores / divisor).mean(0)
        self.good_peaks_ = (peaks / divisor).mean(0)
        self.calibration_ = self._members[0].calibration_

    def rescored(self, **changes: Any) -> Self:
        """The same members, scoring another way; see :class:`Detector`."""
        if self.calibration_ == "held-out":
            raise OptionError("an ensemble cannot be scored anew after calibrate: fit it here")
        settings = {name: changes.pop(name) for name in ("aggregate",) if name in changes}
        members = [member.rescored(**changes, **settings) for member in self._members]
        other = type(self)(**(self.options() | changes), device=self.device)
        other.__dict__ = self.__dict__ | {name: getattr(other, name) for name in changes}
        if settings:
            base = _PAPER_SETTINGS if self.settings is None and self.of == "patchcore" else {}
            other.settings = dict(self.settings or base) | settings
        other._modules = self._modules | {"members": nn.ModuleList(members)}
        other._buffers = dict(self._buffers)
        other._set_scales()
        return other

    # -- predicting ---------------------------------------------------------------------------

    def _patch_scores(self, pixels: Tensor) -> Tensor:
        return self.forward(pixels)[1]

    def forward(self, pixels: Tensor, size: tuple[int, int] | None = None) -> tuple[Tensor, Tensor]:
        """Image scores and patch scores of a batch; see :class:`Detector`.

        All members are given the same pixels, so it serves members that size and normalise images
        alike, as ImageNet's residual networks do.
        """
        found = [member(pixels, size) for member in self._members]
        scales = self.scales_.float()
        scores = torch.stack([s / k for (s, _), k in zip(found, scales, strict=True)]).mean(0)
        grids = [grid / k for (_, grid), k in zip(found, scales, strict=True)]
        return scores, _mean_grid(grids)

    @torch.inference_mode()
    def _predict_image(self, source: str, image: np.ndarray) -> Prediction:
        return self._averaged([m._predict_image(source, image) for m in self._members])

    def _averaged(self, found: list[Prediction]) -> Prediction:
        scales = self.scales_.tolist()
        pairs = list(zip(found, scales, strict=True))
        score = sum(one.score / scale for one, scale in pairs) / len(pairs)
        heat = sum((one.anomaly_map / np.float32(scale) for one, scale in pairs), np.float32(0))
        grids = [torch.from_numpy(one.patch_scores / np.float32(scale)) for one, scale in pairs]
        threshold, pixel_threshold = self.threshold, self.pixel_threshold
        return EnsemblePrediction(
            source=found[0].source,
            score=score,
            anomaly_map=np.asarray(heat / np.float32(len(pairs)), dtype=np.float32),
            patch_scores=_mean_grid([grid[None] for grid in grids])[0].numpy(),
            image=found[0].image,
            threshold=threshold.value if threshold else None,
            pixel_threshold=pixel_threshold.value if pixel_threshold else None,
            p_value=p_value(score, self.good_scores_.cpu().numpy()),
            members=tuple(found),
        )

    def rescore(self, prediction: Prediction) -> Prediction:
        """A prediction of the same fit, with this ensemble's scoring and thresholds."""
        assert isinstance(prediction, EnsemblePrediction)
        pairs = zip(self._members, prediction.members, strict=True)
        return self._averaged([member.rescore(one) for member, one in pairs])

    def _scored(self, prediction: Prediction) -> Scored:
        size = (prediction.image.shape[0], prediction.image.shape[1])
        joined = _Joined(torch.from_numpy(prediction.patch_scores), size, None)
        joined.score, joined.peak = prediction.score, float(prediction.anomaly_map.max())
        return joined

    def _set_good(
        self, scored: list[Scored], calibration: Literal["none", "leave-one-out", "held-out"]
    ) -> None:
        """Set the thresholds from the scores and the peaks of good images, as they were found."""
        known = [one for one in scored if isinstance(one, _Joined)]
        self.good_scores_ = torch.tensor([one.score for one in known], dtype=torch.float64)
        self.good_peaks_ = torch.tensor([one.peak for one in known], dtype=torch.float64)
        self.calibration_ = calibration


def _build(method: str, options: dict[str, Any]) -> Detector:
    kind = detector_class(method)
    for name in options:
        if name not in kind.option_names():
            raise OptionError(f"settings {name}: the method {method} has no such option")
    return kind(**options)


def _again(on_error: OnError | None) -> Callable[[Any], None] | None:
    return None if on_error is None else lambda _: None


def _mean_grid(grids: list[Tensor]) -> Tensor:
    """Mean of patch scores (B, gh, gw) on the finest member's grid."""
    finest = max((grid.shape[-2:] for grid in grids), key=lambda size: size[0] * size[1])
    sized = [
        grid
        if grid.shape[-2:] == finest
        else F.interpolate(grid[:, None], size=finest, mode="bilinear", align_corners=False)[:, 0]
        for grid in grids
    ]
    return torch.stack(sized).mean(0)


def _without_networks(
    module: nn.Module, state: dict[str, Any], prefix: str, metadata: dict[str, Any]
) -> None:
    """Leave the members' weights out of what is saved, as those of a single detector are."""
    for name in list(state):
        if name.startswith(f"{prefix}members.") and ".network." in name:
            del state[name]
