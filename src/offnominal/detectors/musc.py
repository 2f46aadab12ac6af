"""MuSc: the images of a batch score each other, patch by patch, at several levels.

Li, Huang, Xue and Zhou, "MuSc: Zero-Shot Industrial Anomaly Classification and Segmentation with
Mutual Scoring of the Unlabeled Images", ICLR 2024 (arXiv 2401.16753).
"""

from collections.abc import Sequence
from typing import ClassVar, Unpack, get_args

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter
from torch import Tensor

from offnominal.backbones.base import Backbone, Resize
from offnominal.backbones.clip import ClipBackbone
from offnominal.backbones.clip_blocks import Activation, Positions
from offnominal.detectors.base import Progress, Scored, Size
from offnominal.detectors.batched import BatchDetector
from offnominal.detectors.common import CommonOptions, check_choice
from offnominal.detectors.mutual import mutual_scores, neighbour_count, rescored_by_neighbours
from offnominal.detectors.views import Views
from offnominal.errors import OptionError
from offnominal.scoring import check_aggregate

__all__ = ["MuSc", "aligned_map"]

_RSCIN = "rscin"  # the aggregate that takes the scores of images that look alike into account
_RESOLUTION = 518  # the paper's, for patches of 14 pixels
_PATCH = 14
_LEVELS = 4


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
    resize : {"short", "square"} or None
        The paper squashes images to a square.
    smoothing : float
        Of the anomaly map; the paper has none.
    search_memory : int
        Bound on the working memory of the comparison, in MiB.
    **options
        See :class:`~offnominal.detectors.base.Detector`.

    Notes
    -----
    Memory: the tokens of the whole batch at every level, 21 MiB an image with the default backbone,
    and the nearest distances of one level, 16 KiB for each image and each other one. Time grows
    with the square of the batch: 15 GFLOP a pair of images with the default backbone, once for all
    neighbourhoods and both directions.
    """

    method: ClassVar[str] = "musc"
    default_backbone: ClassVar[str] = "open_clip:ViT-L-14-336"

    def __init__(  # type: ignore[misc]  # resize and smoothing have other defaults here
        self,
        neighbourhoods: str | Sequence[int] = "1,3,5",
        share: float = 0.3,
        rscin: str | Sequence[int] = "1,2,3",
        aggregate: str = _RSCIN,
        align_corners: bool = True,
        activation: Activation | None = "gelu",
        positions: Positions = "bicubic",
        unit_tokens: bool | None = None,
        resize: Resize | None = "square",
        smoothing: float = 0.0,
        search_memory: int = 512,
        **options: Unpack[CommonOptions],
    ) -> None:
        super().__init__(resize=resize, smoothing=smoothing, **options)
        if any(side % 2 == 0 for side in _sizes("neighbourhoods", neighbourhoods)):
            raise OptionError(f"neighbourhoods {neighbourhoods}: give odd numbers such as 1,3,5")
        if not 0 < share <= 1:
            raise OptionError(f"share {share}: give a share above 0 and up to 1, as 0.3")
        _sizes("rscin", rscin)
        if aggregate != _RSCIN:
            check_aggregate(aggregate)
        if search_memory < 1:
            raise OptionError(f"search_memory {search_memory}: give at least 1 MiB")
        if activation is not None:
            check_choice("activation", activation, get_args(Activation))
        check_choice("positions", positions, get_args(Positions))
        self.neighbourhoods = _plain(neighbourhoods)
        self.share = share
        self.rscin = _plain(rscin)
        self.aggregate = aggregate
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
        if self.layers is None and count >= _LEVELS and network.multiple == network.stride:
            return network.at_levels([count * i // _LEVELS - 1 for i in range(1, _LEVELS + 1)])
        return network

    def _default_resolution(self, net: Backbone) -> int:
        return _RESOLUTION if net.stride == _PATCH else net.resolution

    def _check_count(self, count: int) -> None:
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

    def _begin(self) -> None:
        self._owners: list[int] = []
        self._features: list[list[Tensor]] = []  # of each level, of each view: (gh, gw, C)
        self._layouts: list[Views] = []
        self._tokens: list[Tensor] = []
        self._scores: list[Tensor] = []
        self._terms: list[float] = []

    def _take(self, index: int, image: np.ndarray) -> None:
        views = self.views(image)
        # The released code takes CLIP's tokens as they are, and other networks' normalised.
        norm = not isinstance(self.load_network(), ClipBackbone)
        tokens = []
        for pixels in views.pixels:
            maps, summary = self.levels(pixels[None], norm)
            if not self._features:
                self._features = [[] for _ in maps]
            for level, each in zip(self._features, maps, strict=True):
                # One mean and one deviation for all channels and patches together.
                normed = F.layer_norm(each[0], each.shape[1:])
                level.append(normed.permute(1, 2, 0).contiguous())
            self._owners.append(index)
            tokens.append(self._class_token(summary[0]))
        self._tokens.append(torch.stack(tokens).mean(0))
        self._layouts.append(views.layout())

    def _class_token(self, summary: Tensor) -> Tensor:
        net = self.load_network()
        # Tokens of a block in the middle have no place in the space that the last one's go to.
        if isinstance(net, ClipBackbone) and net.layers[-1] == net.level_count - 1:
            summary = net.project(summary)
        unit = "dino" not in net.name if self.unit_tokens is None else self.unit_tokens
        return F.normalize(summary, dim=0) if unit else summary

    def _compare(self, count: int, progress: Progress | None) -> None:
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
            grids = [scores.mean(0) for scores in found]
            total = [_added(a, b) for a, b in zip(total, grids, strict=True)] if total else grids
        views = iter(total)
        for layout in self._layouts:
            own = [next(views) / levels for _ in range(max(1, len(layout.tiles)))]
            self._scores.append(layout.merge(own))
        raw = torch.stack([self._raw_score(each) for each in self._scores])
        sizes = _sizes("rscin", self.rscin)
        self._terms = rescored_by_neighbours(raw, torch.stack(self._tokens), sizes).tolist()

    def _raw_score(self, patch_scores: Tensor) -> Tensor:
        stride = self.load_network().stride
        size = (patch_scores.shape[0] * stride, patch_scores.shape[1] * stride)
        return aligned_map(patch_scores, size).max()

    def _judge(self, index: int, image: np.ndarray) -> Scored:
        size = (image.shape[0], image.shape[1])
        cover = self._layouts[index].cover
        return Scored(self._scores[index], size, cover, self._terms[index])

    def _image_score(
        self,
        patch_scores: Tensor,
        size: Size,
        cover: Size | None = None,
        image_term: float | None = None,
    ) -> Tensor:
        if self.aggregate == _RSCIN:
            return torch.tensor(image_term, dtype=torch.float64)
        return super()._image_score(patch_scores, size, cover)

    def _map(self, patch_scores: Tensor, size: Size, cover: Size | None) -> Tensor:
        if not self.align_corners or cover is not None:
            return super()._map(patch_scores, size, cover)
        heat = aligned_map(patch_scores, size)
        if self.smoothing:
            blurred = gaussian_filter(heat.cpu().numpy(), self.smoothing)
            heat = torch.from_numpy(blurred).to(heat.device)
        return heat


def aligned_map(patch_scores: Tensor, size: Size) -> Tensor:
    """The released code's map: bilinear, the outermost patches' centres at the map's corners.

    Parameters
    ----------
    patch_scores : Tensor of shape (gh, gw), float32
    size : (H, W)

    Returns
    -------
    Tensor of shape (H, W), float32
    """
    return F.interpolate(patch_scores[None, None], size, mode="bilinear", align_corners=True)[0, 0]


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
    except ValueError:
        sizes = []
    if not sizes or min(sizes) < 1:
        raise OptionError(f"{option} {value!r}: give whole numbers from 1, as 1,3,5")
    return sizes


def _plain(value: str | Sequence[int]) -> str | tuple[int, ...]:
    return value if isinstance(value, str) else tuple(value)
