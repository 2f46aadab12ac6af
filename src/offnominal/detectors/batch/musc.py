"""MuSc: the images of a batch score each other, patch by patch, at several levels.

Li, Huang, Xue and Zhou, "MuSc: Zero-Shot Industrial Anomaly Classification and Segmentation with
Mutual Scoring of the Unlabeled Images", ICLR 2024 (arXiv 2401.16753).
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter
from torch import Tensor

from offnominal.backbones.base import Backbone, Resize
from offnominal.backbones.clip import ClipBackbone
from offnominal.backbones.clip_blocks import Activation
from offnominal.backbones.positions import Positions
from offnominal.checks import check_choice, check_range
from offnominal.detectors.batch.base import BatchDetector
from offnominal.detectors.batch.mutual import (
    mutual_scores,
    neighbour_count,
    rescored_by_neighbours,
)
from offnominal.detectors.fusion import is_plain_transformer
from offnominal.detectors.options import Progress
from offnominal.errors import OptionError
from offnominal.scoring import Scores, Size
from offnominal.views import View, merge

__all__ = ["MuSc", "aligned_map"]

_RESOLUTION = 518  # the paper's, for patches of 14 pixels
_PATCH = 14
_LEVELS = 4
_BY_PRODUCT = ("dino", "dinov2", "dinov3")  # families whose class tokens are not normalised


class MuSc(BatchDetector):
    """Batched zero-shot detection by mutual scoring.

    A patch's score is its distance to the nearest patch of another image, averaged over the 30 %
    of the other images that have the nearest ones, over neighbourhoods of several sizes and over
    several blocks of a vision transformer. There is nothing to fit or to save, and no good image to
    set a threshold by: scores rank the images of the batch.

    Parameters
    ----------
    neighbourhoods : str or sequence of int
        Sides of the neighbourhoods that a patch is described by, odd, in patches: ``1,3,5``.
    share : float
        Share of the other images that a score is averaged over, on (0, 1].
    rscin : str or sequence of int
        Sizes of the groups of images that look alike, for ``aggregate="rscin"``: ``1,2,3``, the
        released code's for MVTec AD; for VisA it takes ``1,8,9``.
    aggregate : str
        ``rscin``: the largest value of the map at the size that the network saw, on [0, 1] over the
        batch, then averaged over images that look alike (RsCIN). Otherwise a statistic of the patch
        scores or of the map, as for every method: ``map-max``, ``max``, ``top1``...
    align_corners : bool
        Whether the map's corners are the centres of the outermost patches, as in the released
        code. False: patches lie where they were cut, as in other methods; the map moves by at most
        half a patch, at the border. Maps of tiles are always of that kind.
    activation : {"gelu", "quickgelu"} or None
        CLIP only. The released code runs OpenAI's weights, which were trained with QuickGELU, with
        GELU, and so are the published figures. None: what the weights were trained with.
    positions : {"bicubic", "bicubic-antialias", "bilinear"}
        CLIP only: how position embeddings are resized.
    unit_tokens : bool or None
        Whether images are compared by the cosine of their class tokens, or by the inner product.
        None: by the product with DINO and DINOv2, as the released code does, otherwise the cosine.
    backbone : str or None
        None: what the weights file says of itself, otherwise ``open_clip:ViT-L-14-336``.
    layers : sequence of int or None
        None: four blocks at equal distances, the last among them; the levels of other networks are
        the backbone's default.
    resolution : int or None
        None: 518 where patches are 14 pixels wide, otherwise the backbone's default.
    resize : {"short", "crop", "square"} or None
        The paper squashes images to a square.
    smoothing : float
        Of the anomaly map; the paper has none.
    search_memory : int
        Bound on the working memory of the comparison, in MiB.
    **options
        See :class:`~offnominal.detectors.features.FeatureDetector`.

    Notes
    -----
    Memory: the tokens of the whole batch at every level, 21 MiB an image with the default backbone,
    and the nearest distances of one level, 16 KiB for each image and each other one. Time grows
    with the square of the batch: 15 GFLOP a pair of images with the default backbone, once for all
    neighbourhoods and both directions.
    """

    method: ClassVar[str] = "musc"
    default_backbone: ClassVar[str] = "open_clip:ViT-L-14-336"

    own_score: ClassVar[str | None] = "rscin"

    def __init__(
        self,
        neighbourhoods: str | Sequence[int] = "1,3,5",
        share: float = 0.3,
        rscin: str | Sequence[int] = "1,2,3",
        aggregate: str = "rscin",
        align_corners: bool = True,
        activation: Activation | None = "gelu",
        positions: Positions = "bicubic",
        unit_tokens: bool | None = None,
        resize: Resize | None = "square",
        smoothing: float = 0.0,
        search_memory: int = 512,
        **options: Any,
    ) -> None:
        super().__init__(aggregate=aggregate, resize=resize, smoothing=smoothing, **options)
        if any(side % 2 == 0 for side in _sizes("neighbourhoods", neighbourhoods)):
            raise OptionError(f"neighbourhoods {neighbourhoods}: give odd numbers such as 1,3,5")
        check_range("share", share, above=0, most=1)
        _sizes("rscin", rscin)
        check_range("search_memory", search_memory, whole=True, least=1)
        if activation is not None:
            check_choice("activation", activation, Activation)
        check_choice("positions", positions, Positions)
        self.neighbourhoods = _plain(neighbourhoods)
        self.share = share
        self.rscin = _plain(rscin)
        self.align_corners = align_corners
        self.activation = activation
        self.positions: Positions = positions
        self.unit_tokens = unit_tokens
        self.search_memory = search_memory

    # -- the network ----------------------------------------------------------------------------

    def choose_levels(self, network: Backbone) -> Backbone:
        """Four blocks of a transformer at equal distances, unless ``layers`` names others."""
        if isinstance(network, ClipBackbone):
            network = network.adapted(self.positions, self.activation)
        count = network.level_count
        if self.layers is None and count >= _LEVELS and is_plain_transformer(network):
            return network.at_levels([count * i // _LEVELS - 1 for i in range(1, _LEVELS + 1)])
        return network

    def default_resolution(self, network: Backbone) -> int:
        """518 where patches are 14 pixels wide."""
        return _RESOLUTION if network.stride == _PATCH else network.resolution

    def check_count(self, count: int) -> None:
        """Raise an :class:`OptionError` if a batch is too small for its groups."""
        if neighbour_count(count, self.share) < 1:
            least = next(n for n in range(2, count + 10**6) if neighbour_count(n, self.share))
            raise OptionError(
                f"a batch of {count} readable images is too small: a patch's score is the mean "
                f"over {self.share:g} of the other images, rounded down, so musc needs {least} or "
                "more"
            )
        sizes = _sizes("rscin", self.rscin)
        if max(sizes) > count:
            raise OptionError(
                f"rscin {self.rscin}: a group of {max(sizes)} images is more than the batch has, "
                f"which is {count}; give smaller groups, as 1,2,3"
            )

    # -- the batch ------------------------------------------------------------------------------

    def begin(self) -> None:
        """Forget the batch before."""
        super().begin()
        self._owners: list[int] = []
        self._features: list[list[Tensor]] = []  # of each level, of each view: (gh, gw, C)
        self._views: list[list[View]] = []
        self._tokens: list[Tensor] = []
        self._scores: list[Scores] = []

    def take(self, index: int, image: np.ndarray) -> None:
        """Keep every level's features, and the class token."""
        # The released code takes CLIP's tokens as they are, and other networks' normalised.
        norm = not isinstance(self.load_network(), ClipBackbone)
        tokens = []
        for view in self.views(image):
            maps, summary = self.levels(torch.from_numpy(view.pixels)[None], norm)
            if not self._features:
                self._features = [[] for _ in maps]
            for level, each in zip(self._features, maps, strict=True):
                # One mean and one deviation for all channels and patches together.
                normed = F.layer_norm(each[0], each.shape[1:])
                level.append(normed.permute(1, 2, 0).contiguous())
            self._owners.append(index)
            tokens.append(self._class_token(summary[0]))
        self._tokens.append(torch.stack(tokens).mean(0))
        self._views.append(self.views_of((image.shape[0], image.shape[1])))

    def _class_token(self, summary: Tensor) -> Tensor:
        net = self.load_network()
        # Tokens of a block in the middle have no place in the space that the last one's go to.
        if isinstance(net, ClipBackbone) and net.layers[-1] == net.level_count - 1:
            summary = net.project(summary)
        unit = self.unit_tokens
        if unit is None:
            unit = net.family not in _BY_PRODUCT
        return F.normalize(summary, dim=0) if unit else summary

    def compare_all(self, count: int, progress: Progress | None) -> None:
        """Let all images score each other, level by level."""
        sides = _sizes("neighbourhoods", self.neighbourhoods)
        levels = len(self._features)
        total: list[Tensor] = []
        for done in range(levels):

            def tell(part: float, done: int = done) -> None:
                if progress:
                    progress("compare", int(count * (done + part) / levels))

            found = mutual_scores(
                # Each level's features are let go as soon as they have been compared.
                self._features.pop(0),
                self._owners,
                sides,
                self.share,
                self.search_memory * 2**20,
                tell,
            )
            here = [scores.mean(0) for scores in found]
            total = [_added(a, b) for a, b in zip(total, here, strict=True)] if total else here
        grids = iter(total)
        stride = self.load_network().stride
        merged = [
            merge(views, [(next(grids) / levels).cpu().numpy() for _ in views])
            for views in self._views
        ]
        raw = [aligned_map(p, (p.shape[0] * stride, p.shape[1] * stride)).max() for p, _ in merged]
        terms = rescored_by_neighbours(
            torch.tensor(np.array(raw), device=self._device),
            torch.stack(self._tokens),
            _sizes("rscin", self.rscin),
        ).tolist()
        self._scores = [
            Scores(patches, term, 1.0, window, stride)
            for (patches, window), term in zip(merged, terms, strict=True)
        ]

    def judge_image(self, index: int, image: np.ndarray) -> Scores:
        """What the comparison gave."""
        return self._scores[index]

    def map(self, scores: Scores, size: Size) -> np.ndarray:
        """Anomaly map, float32 (H, W); see ``align_corners``."""
        if not self.align_corners or scores.window is not None:
            return super().map(scores, size)
        heat = aligned_map(scores.patches, size)
        return gaussian_filter(heat, self.smoothing) if self.smoothing else heat


def aligned_map(patches: np.ndarray, size: Size) -> np.ndarray:
    """The released code's map: bilinear, the outermost patches' centres at the map's corners.

    Parameters
    ----------
    patches : float32 array of shape (gh, gw)
    size : (H, W)

    Returns
    -------
    float32 array of shape (H, W)
    """
    grid = torch.from_numpy(patches)[None, None]
    large: np.ndarray = F.interpolate(grid, size, mode="bilinear", align_corners=True)[0, 0].numpy()
    return large


def _added(one: Tensor, other: Tensor) -> Tensor:
    """The sum of two grids of scores; of a pyramid's levels the coarser one is enlarged."""
    fine, coarse = (one, other) if one.numel() >= other.numel() else (other, one)
    if fine.shape != coarse.shape:
        shape = (fine.shape[0], fine.shape[1])
        coarse = F.interpolate(coarse[None, None], shape, mode="bilinear")[0, 0]
    return fine + coarse


def _sizes(option: str, value: str | Sequence[int]) -> list[int]:
    """Whole numbers from 1, from text or a sequence."""
    try:
        sizes = [int(part) for part in (value.split(",") if isinstance(value, str) else value)]
    except (TypeError, ValueError):
        sizes = []
    if not sizes or min(sizes) < 1:
        raise OptionError(f"{option} {value!r}: give whole numbers from 1, as 1,3,5")
    return sizes


def _plain(value: str | Sequence[int]) -> str | tuple[int, ...]:
    return value if isinstance(value, str) else tuple(value)
