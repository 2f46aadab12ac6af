"""What detectors share that compare images with texts."""

from abc import abstractmethod
from collections.abc import Iterator
from typing import ClassVar, Unpack, get_args

import numpy as np
import torch
from torch import Tensor

from offnominal.backbones import OPEN_CLIP
from offnominal.backbones.base import Backbone
from offnominal.backbones.clip import ClipBackbone, require_clip
from offnominal.backbones.clip_blocks import Activation, Positions
from offnominal.detectors.base import Detector, Progress, Size
from offnominal.detectors.common import CommonOptions, check_choice
from offnominal.errors import OptionError
from offnominal.language.names import clean_name
from offnominal.scoring import check_aggregate

__all__ = ["LanguageDetector", "LanguageOptions"]

_PAPERS = {336: 518}


class LanguageOptions(CommonOptions, total=False):
    """Options that :class:`LanguageDetector` adds, for those who pass them on."""

    class_name: str | None
    positions: Positions
    activation: Activation | None
    temperature: float
    aggregate: str


class LanguageDetector(Detector):
    """A detector that tells good from bad by what texts say of both.

    No image of a good part is needed. Text features are computed once, by ``fit``, and saved; a
    saved detector needs the image tower only.

    Parameters
    ----------
    class_name : str or None
        What the part is called, as ``metal nut``; None: ``object``, which fits anything.
    positions : {"bicubic-antialias", "bicubic", "bilinear"}
        How CLIP's position embeddings are resized to the image's grid.
    activation : {"quickgelu", "gelu"} or None
        None: what the weights were trained with.
    temperature : float
        What cosines are divided by before the softmax over the two states.
    aggregate : str
        ``text``: the image's own comparison with the texts. Any other statistic is one of the
        patch scores, as ``max`` or ``top1``.
    **common
        See :class:`~offnominal.detectors.base.Detector`. ``resolution`` None: 518 for CLIP's
        336-pixel model, as the papers of these methods have it, otherwise the model's own.
    """

    needs_references: ClassVar[bool] = False
    default_backbone: ClassVar[str] = "open_clip:ViT-L-14-336"
    backbone_family: ClassVar[str | None] = OPEN_CLIP

    text_features_: Tensor

    def __init__(
        self,
        class_name: str | None = None,
        positions: Positions = "bicubic-antialias",
        activation: Activation | None = None,
        temperature: float = 0.07,
        aggregate: str = "text",
        **common: Unpack[CommonOptions],
    ) -> None:
        super().__init__(**common)
        clean_name(class_name)
        check_choice("positions", positions, get_args(Positions))
        if activation is not None:
            check_choice("activation", activation, get_args(Activation))
        if temperature <= 0:
            raise OptionError(f"temperature {temperature}: give more than 0, as 0.07")
        if aggregate != "text":
            check_aggregate(aggregate)
        self.class_name = class_name
        self.positions: Positions = positions
        self.activation: Activation | None = activation
        self.temperature = temperature
        self.aggregate = aggregate
        self.register_buffer("text_features_", torch.empty(2, 0))

    @abstractmethod
    def _describe(self) -> Tensor:
        """Text features (2, E), normal and abnormal, of length 1."""

    @abstractmethod
    def _compare(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Patch scores (B, gh, gw) and the images' own scores (B,) of a batch (B, 3, h, w)."""

    @property
    def clip(self) -> ClipBackbone:
        """The network, whose text tower can be asked for."""
        return require_clip(self.load_network(), self.method)

    def choose_levels(self, network: Backbone) -> Backbone:
        """The network, if it is CLIP with texts, run by this detector's rules."""
        return require_clip(network, self.method).adapted(self.positions, self.activation)

    def _default_resolution(self, net: Backbone) -> int:
        return _PAPERS.get(net.resolution, net.resolution)

    def _fit(self, images: Iterator[tuple[int, np.ndarray]], progress: Progress | None) -> None:
        if next(images, None) is not None:
            raise OptionError(
                f"{self.method} learns from no image: give none, and good images to calibrate for "
                "a threshold"
            )
        self.text_features_ = self._describe()

    def _patch_scores(self, pixels: Tensor) -> Tensor:
        return self._compare(pixels.to(self._device))[0]

    def _score_view(self, pixels: Tensor) -> tuple[Tensor, float | None]:
        patch_scores, own = self._compare(pixels[None].to(self._device))
        return patch_scores[0], float(own[0])

    def forward(self, pixels: Tensor, size: Size | None = None) -> tuple[Tensor, Tensor]:
        """Image scores and patch scores of a batch; see :meth:`Detector.forward`."""
        patch_scores, own = self._compare(pixels.to(self._device))
        if self.aggregate == "text":
            return own, patch_scores
        where = size or (pixels.shape[-2], pixels.shape[-1])
        scores = [self._image_score(each, where) for each in patch_scores]
        return torch.stack(scores), patch_scores

    def _image_score(
        self,
        patch_scores: Tensor,
        size: Size,
        cover: Size | None = None,
        image_term: float | None = None,
    ) -> Tensor:
        if self.aggregate == "text" and image_term is not None:
            return torch.tensor(image_term, dtype=torch.float64)
        return super()._image_score(patch_scores, size, cover, image_term)
