"""BTF: a bank of colour and of shape, side by side at each patch.

Horwitz and Hoshen, "Back to the Feature: Classical 3D Features are (Almost) All You Need for 3D
Anomaly Detection", CVPR workshops 2023 (arXiv 2203.05550).
"""

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from offnominal.detectors.features import FeatureDetector
from offnominal.detectors.memory_bank.patchcore import PatchCore
from offnominal.memory.storage import lengths
from offnominal.views import View

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["BTF"]

Floats = NDArray[np.float32]


class BTF(PatchCore):
    """PatchCore on a colour network's features joined with FPFH of the scan's points.

    Levels of the colour network are averaged over 3 x 3 positions, without a border, and brought to
    the grid of patches by averages, as the released code does; those of points are patches already.

    Parameters
    ----------
    scale : bool
        Whether the parts of a joined backbone are brought to one scale, each divided by the median
        distance between its own patches of the first good scan. False: as they come, as in the
        released code, where the colour part is the longer one by as much as the network makes it.
    reweight_neighbours : int
        Entries around the nearest one that the score's weight is taken from, itself among them.
    **options
        See :class:`~offnominal.detectors.memory_bank.patchcore.PatchCore`; ``patch``, ``level_dim``
        and ``dim`` change nothing here. ``backbone`` is ``wide_resnet50_2+fpfh``; ``fpfh`` alone
        takes scans without colour. ``backbone="wide_resnet50_2+fpfh-released"``, ``scale=False``
        and ``false_reject`` aside, scores are those of the released code.

    Notes
    -----
    The released code divides distances by the root of the features' length in the weight of the
    score, and leaves the nearest entry itself out of the sum. The map there is rounded to 8 bits
    before it is smoothed, which is not done here.

    Examples
    --------
    >>> from offnominal import BTF
    >>> detector = BTF(backbone="fpfh").fit("bagel/train/good/xyz")
    >>> [prediction] = detector.predict("bagel/test/hole/xyz/000.tiff")
    """

    method: ClassVar[str] = "btf"
    exports: ClassVar[bool] = False
    embedding: ClassVar[tuple[str, ...]] = ()
    default_backbone: ClassVar[str] = "wide_resnet50_2+fpfh"

    def __init__(self, scale: bool = True, reweight_neighbours: int = 3, **options: Any) -> None:
        super().__init__(reweight_neighbours=reweight_neighbours, **options)
        self.scale = scale

    def views(self, image: np.ndarray) -> list[View]:
        """Resize an image, uint8 (H, W, 3), or a scan, whose colour goes bicubically as there."""
        return super().views(image) if self.crop else FeatureDetector.views(self, image)

    def match_parts(self, pixels: Floats) -> None:
        """Bring the parts to one scale, unless they are to stay as they come."""
        if self.scale:
            super().match_parts(pixels)

    def embed(self, pixels: "Tensor") -> "Tensor":
        """Features (dim, gh, gw) of all parts, on the finest grid among them."""
        import torch
        import torch.nn.functional as F

        from offnominal.backbones.joined import JoinedBackbone

        network: Any = self.torch_network()
        batch = pixels[None].to(self._device)
        joined = isinstance(network, JoinedBackbone)
        each = network.given(batch) if joined else [(network, batch, 1.0)]
        levels = []
        for member, own, scale in each:
            with self._autocast():
                maps = member.levels(own).maps
            levels += [(one.float() * scale, member.takes_points) for one in maps]
        rows, columns = max((one.shape[-2:] for one, _ in levels), key=lambda s: s[0] * s[1])
        grid = (int(rows), int(columns))
        parts = []
        for one, ready in levels:
            pooled = one if ready else F.avg_pool2d(one, 3, stride=1)
            parts.append(
                pooled if pooled.shape[-2:] == grid else F.adaptive_avg_pool2d(pooled, grid)
            )
        return torch.cat(parts, 1)[0]

    def _weight(self, row: Floats, nearest: int, left: int, without: int | None) -> float:
        """Weight of the image score, as the released code has it; see the notes."""
        [centre] = self.bank.take(np.array([nearest]))
        _, around = self.bank.search(centre[None], min(self.reweight_neighbours, left), without)
        unit = np.sqrt(len(row))
        others = around[0][around[0] != nearest][: self.reweight_neighbours - 1]
        distances = lengths(self.bank.take(others) - row).astype(float) / unit
        own = float(lengths((centre - row)[None])[0]) / unit
        # exp itself overflows beyond 709.
        return float(1 - 1 / np.exp(distances - own).sum())
