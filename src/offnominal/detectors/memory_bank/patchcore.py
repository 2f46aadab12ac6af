"""PatchCore: locally aware mid-level features, a coreset of them, nearest neighbours.

Roth, Pemula, Zepeda, Schölkopf, Brox and Gehler, "Towards Total Recall in Industrial Anomaly
Detection", CVPR 2022 (arXiv 2106.08265).
"""

from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from offnominal.checks import check_choice, check_range
from offnominal.detectors.features import ViewScores, tokens_of
from offnominal.detectors.memory_bank.thinned import ThinnedBank
from offnominal.errors import OptionError
from offnominal.memory.storage import as_stored, lengths
from offnominal.sizing import fit_size
from offnominal.views import View, cropped_view

if TYPE_CHECKING:
    from torch import Tensor

    from offnominal.backbones.base import Backbone

__all__ = ["Distance", "PatchCore"]

Floats = NDArray[np.float32]
Distance = Literal["euclidean", "squared"]


class PatchCore(ThinnedBank):
    """A memory bank of locally aware patch features, thinned to a coreset.

    Parameters
    ----------
    reweight : bool
        Whether the image score is weighted by how crowded the bank is around the nearest entry of
        the most anomalous patch (eq. 7), as in the paper. False: the plain statistic, as in the
        released code. The weight multiplies whatever ``aggregate`` gives; in the paper that is
        ``max``.
    reweight_neighbours : int
        Entries in that neighbourhood, the nearest entry itself among them; at least 2. (b in the
        paper, which gives no number.)
    distance : {"euclidean", "squared"}
        As the paper has it (eq. 6), or squared, as the released code has it. The order of images
        under ``max`` without re-weighting is the same; maps and averages are not.
    crop : int
        Side of the central part of the resized image that is looked at, in pixels; what lies
        outside it is NOT inspected, and the map is 0 there. 0: the whole image. The paper's is 224
        of 256, which suits a data set whose parts lie in the middle; a fault at the rim of a part
        would pass, so it is not the default. Not used with ``tile``.
    patch : int
        Side of the neighbourhood that makes features locally aware, odd.
    level_dim, dim : int or None
        Lengths of each level's features and of the final ones. None: the paper's 1024 where the
        levels have that many channels together; of narrower networks as many as the levels have,
        which are then joined as they are.
    aggregate : str
        ``max``, which ``reweight`` multiplies.
    **options
        See :class:`~offnominal.detectors.memory_bank.thinned.ThinnedBank`, whose notes tell of
        memory and of the threshold. Without ``backbone``, the network is what the weights file says
        of itself, otherwise WideResNet-50-2; ``layers`` are those of stride 8 and 16, the second
        and third stage of a residual network; ``resolution`` is 256.

    Examples
    --------
    >>> from offnominal import PatchCore
    >>> detector = PatchCore(backbone="resnet18").fit(["good/0.png", "good/1.png"])
    >>> [prediction] = detector.predict("next.png")
    """

    method: ClassVar[str] = "patchcore"
    looks: ClassVar[bool] = True
    takes_defects: ClassVar[bool] = True
    exports: ClassVar[bool] = True
    embedding: ClassVar[tuple[str, ...]] = ("patch", "level_dim", "dim")
    default_backbone: ClassVar[str] = "wide_resnet50_2"
    cropping: ClassVar[str] = "--crop and --resize crop"

    def __init__(
        self,
        reweight: bool = True,
        reweight_neighbours: int = 9,
        distance: Distance = "euclidean",
        crop: int = 0,
        patch: int = 3,
        level_dim: int | None = None,
        dim: int | None = None,
        aggregate: str = "max",
        **options: Any,
    ) -> None:
        super().__init__(aggregate=aggregate, **options)
        check_choice("distance", distance, Distance)
        check_range("reweight_neighbours", reweight_neighbours, whole=True, least=2)
        check_range("crop", crop, least=0)
        for name, length in (("level_dim", level_dim), ("dim", dim)):
            if length is not None:
                check_range(name, length, whole=True, least=1, most=65_536)
        check_range("patch", patch, least=1)
        if patch % 2 != 1:
            raise OptionError(f"--patch {patch}: give an odd number of positions, as 3")
        self.reweight = reweight
        self.reweight_neighbours = reweight_neighbours
        self.distance: Distance = distance
        self.crop = crop
        self.patch = patch
        self.level_dim = level_dim
        self.dim = dim
        self.begin()

    @property
    def nearest_decides(self) -> bool:
        """Whether the nearest row alone decides a patch's score and an image's."""
        return self.neighbours == 1 and not self.reweight

    # -- from the image to features -----------------------------------------------------------

    def default_resolution(self, network: "Backbone") -> int:
        """The paper's; of points their own."""
        return network.resolution if network.takes_points else 256

    def views(self, image: np.ndarray) -> list[View]:
        """Resize an image, uint8 (H, W, 3), bilinearly as the released code does, and crop it."""
        if self.tile:
            return super().views(image)
        net = self.load_network()
        resolution = self.resolution or self.default_resolution(net)
        size = (image.shape[0], image.shape[1])
        resize = self.resize or net.resize
        if self.crop and resize == "short":
            resize = "crop"  # the shape to the pixel: what is seen is settled by the crop itself
        resized, (height, width) = fit_size(*size, resolution, net.multiple, resize)
        top = left = 0
        if self.crop:
            step = net.multiple
            if self.crop > min(resized):
                told = f"an image is sized to {resized[1]} x {resized[0]}; give that or less"
                raise OptionError(f"--crop {self.crop}: {told}, or raise --resolution")
            height = width = self.crop // step * step
            if not height:
                raise OptionError(f"--crop {self.crop}: {net.name} takes at least {step} px")
            # Rounded as torchvision's CenterCrop rounds.
            top, left = round((resized[0] - height) / 2), round((resized[1] - width) / 2)
        window, stretched = (top, left, height, width), not self.crop
        return [cropped_view(image, resized, window, net.mean, net.std, laid_over=stretched)]

    def embed(self, pixels: "Tensor") -> "Tensor":
        """Locally aware features (dim, gh, gw)."""
        from offnominal.backbones.locally_aware import locally_aware

        maps = self.levels(pixels[None]).maps
        return locally_aware(maps, self.patch, self.level_dim, self.dim)[0]

    def rows(self, features: Any) -> Floats:
        """Features as the bank takes them, (n, dim)."""
        found: Floats = tokens_of(features)
        return found

    # -- from features to scores --------------------------------------------------------------

    def patch_distance(self, squared: Floats) -> Floats:
        """Mean distance (n,) to the nearest entries, from squared ones (n, k) (eq. 6)."""
        mean: Floats = self.unit(squared).mean(-1)
        return mean

    def unit(self, squared: Floats) -> Floats:
        """Distances as they count, from squared ones."""
        return squared if self.distance == "squared" else np.sqrt(squared)

    def softened(self, distance: Floats, index: NDArray[np.int64]) -> Floats:
        """Distances (n, k) to the nearest entries, as they count."""
        return distance

    def judge(self, rows: Floats, without: int | None = None) -> tuple[Floats, float | None]:
        """Compare a view's rows with the bank (eq. 6), and find the weight of eq. 7."""
        if without is not None and (model := self.without(without)):
            return model.judge(rows)
        left = self.bank.left(without)
        if not left:
            return np.full(len(rows), np.inf, np.float32), None
        squared, index = self.bank.search(rows, min(self.neighbours, left), without)
        scores: Floats = self.softened(self.unit(squared), index).mean(-1)
        if not self.reweight or left < 2:
            return scores, None
        worst = int(scores.argmax())
        row = as_stored(rows[worst][None], self.storage)[0]
        return scores, self._weight(row, int(index[worst, 0]), left, without)

    def _weight(self, row: Floats, nearest: int, left: int, without: int | None) -> float:
        """Weight of the image score (eq. 7).

        One minus the softmax, over the bank's entries around the nearest one, of the distances from
        the patch to them, taken at the nearest one: small where that entry lies alone, and at most
        1. Always of Euclidean distances, as printed.
        """
        [centre] = self.bank.take(np.array([nearest]))
        _, around = self.bank.search(centre[None], min(self.reweight_neighbours, left), without)
        distances = lengths(self.bank.take(around[0]) - row).astype(np.float64)
        own = float(lengths((centre - row)[None])[0])
        # exp itself overflows beyond 88.
        return float(1 - 1 / np.exp(distances - own).sum())

    def compare(self, features: Any, without: int | None = None) -> ViewScores:
        """Distance of each patch to its nearest entries, and the weight of the image score."""
        scores, weight = self.judge(self.rows(features), without)
        return ViewScores(scores.reshape(features.shape[1:]), None, weight)
