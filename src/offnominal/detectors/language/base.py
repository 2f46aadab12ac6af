"""What detectors share that compare images with texts."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from offnominal.backbones import OPEN_CLIP
from offnominal.backbones.base import Backbone
from offnominal.backbones.clip import ClipBackbone, require_clip
from offnominal.backbones.clip_blocks import Activation
from offnominal.backbones.positions import Positions
from offnominal.checks import check_choice, check_range
from offnominal.detectors.features import FeatureDetector
from offnominal.detectors.learned_state import must
from offnominal.language.names import clean_name
from offnominal.memory import MemoryBank
from offnominal.tensors import to_numpy

__all__ = ["Banks", "LanguageDetector"]

_PAPERS = {336: 518}


class LanguageDetector(FeatureDetector):
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
    **options
        See :class:`~offnominal.detectors.features.FeatureDetector`. ``resolution`` None: 518 for
        CLIP's 336-pixel model, as the papers of these methods have it, otherwise the model's own.
    """

    needs_references: ClassVar[bool] = False
    accepts_references: ClassVar[bool] = False
    own_score: ClassVar[str | None] = "text"
    default_backbone: ClassVar[str] = "open_clip:ViT-L-14-336"
    backbone_family: ClassVar[str | None] = OPEN_CLIP

    def __init__(
        self,
        class_name: str | None = None,
        positions: Positions = "bicubic-antialias",
        activation: Activation | None = None,
        temperature: float = 0.07,
        aggregate: str = "text",
        **options: Any,
    ) -> None:
        super().__init__(aggregate=aggregate, **options)
        clean_name(class_name)
        check_choice("positions", positions, Positions)
        if activation is not None:
            check_choice("activation", activation, Activation)
        check_range("temperature", temperature, above=0)
        self.class_name = class_name
        self.positions: Positions = positions
        self.activation: Activation | None = activation
        self.temperature = temperature
        self.text_features_ = torch.empty(2, 0)

    @abstractmethod
    def describe(self) -> Tensor:
        """Text features (2, E), normal and abnormal, of length 1."""

    def begin(self) -> None:
        """Ask the text tower, which is not needed again."""
        self.text_features_ = self.describe()

    def check_learned(self) -> None:
        """Two texts, of the network's length."""
        super().check_learned()
        shape = (2, self.clip.embed_dim)
        must(self.text_features_.shape == shape, f"text_features_ are not of shape {shape}")

    @property
    def clip(self) -> ClipBackbone:
        """The network, whose text tower can be asked for."""
        return require_clip(self.load_network(), self.method)

    def choose_levels(self, network: Backbone) -> Backbone:
        """The network, if it is CLIP with texts, run by this detector's rules."""
        return require_clip(network, self.method).adapted(self.positions, self.activation)

    def default_resolution(self, network: Backbone) -> int:
        """The papers' for CLIP's 336-pixel model, otherwise the model's own."""
        return _PAPERS.get(network.resolution, network.resolution)

    def exportable(self) -> str | None:
        """Why not."""
        return (
            "its scores come from texts, which a language model's tower reads when it is opened; "
            "fit anomalydino or patchcore to good parts, or run it with Python"
        )

    def abnormality(self, embeddings: Tensor) -> Tensor:
        """How much more like the abnormal text embeddings (..., E) are: (...), on (0, 1).

        Softmax of the cosines to both texts, over the temperature; the abnormal entry.
        """
        cosines = F.normalize(embeddings, dim=-1) @ self.text_features_.T
        return (cosines / self.temperature).softmax(-1)[..., 1]


class Banks(list[MemoryBank]):
    """What good images showed: a memory bank for each kind of row that a view gives.

    ``memory`` is the bound on a search's working memory, in MiB.
    """

    def __init__(self, count: int, memory: int) -> None:
        super().__init__(MemoryBank(memory=memory * 2**20) for _ in range(count))

    def to(self, device: torch.device | str) -> Self:
        """Search on a device from now on."""
        for bank in self:
            bank.to(device)
        return self

    @property
    def empty(self) -> bool:
        """Whether no good image is known."""
        return not any(len(bank) for bank in self)

    def learn(self, rows: Sequence[Tensor], number: int, view: int) -> None:
        """Keep a reference's rows (n, D) of each kind."""
        for bank, each in zip(self, rows, strict=True):
            bank.add(to_numpy(each), number, view)

    def nearest(self, rows: Sequence[Tensor], without: int | None) -> list[Tensor]:
        """Squared distances (n,) of the rows of each kind to the nearest one that is kept."""
        found = []
        for bank, each in zip(self, rows, strict=True):
            squared, _ = bank.search(to_numpy(each), skip=without)
            found.append(torch.from_numpy(squared[:, 0]).to(each.device))
        return found
