"""SoftPatch: PatchCore for training sets that contain defects.

Jiang, Liu, Wang, Nie, Wu, Liu, Wang and Zheng, "SoftPatch: Unsupervised Anomaly Detection with
Noisy Data", NeurIPS 2022. What the paper leaves open is taken from the authors' released code, and
marked below.
"""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor

from offnominal.backbones.base import Resize
from offnominal.detectors.learned_state import must
from offnominal.detectors.memory_bank.patchcore import PatchCore
from offnominal.detectors.options import LeaveOneOut, Progress, check_choice, check_range
from offnominal.errors import OptionError
from offnominal.scoring import Scores

__all__ = ["Discriminator", "SoftPatch", "gaussian_distance", "local_outlier_factor", "nearest"]

Discriminator = Literal["lof", "nearest", "gaussian"]

_PROJECTED = 128  # length that features are projected to before images are compared
_REGULARISER = 0.01  # added to the covariances' diagonal
_BLOCK = 2**24  # entries of the distance matrices made at once: 64 MiB


class SoftPatch(PatchCore):
    """PatchCore that first removes the patches that look unlike those of the other images.

    Every position of the grid is judged by itself: the patches that all images show there are
    compared, and each gets an outlier value. The patches with the highest values never enter the
    bank. Those that stay take their value along, as the soft weight of every distance that is
    measured to them.

    Parameters
    ----------
    discriminator : {"lof", "nearest", "gaussian"}
        The outlier value of a patch among those of the same position (section 3.2): the local
        outlier factor; the distance to the nearest other image's patch, plus 1; or the Mahalanobis
        distance, plus 1 (the 1 is the released code's).
    noise : float
        Share of all patches that is left out of the bank, on [0, 1). It is a share of patches, not
        of images: a defect covers few patches of its image.
    lof_neighbours : int
        Neighbours of the local outlier factor; at most one less than there are images.
    soft : bool
        Whether distances are multiplied by the weight of the nearest entry (section 3.3).
    contamination : float
        Share of the references that is taken for defective when the threshold is set, on [0, 1):
        so many of the highest-scoring ones are left out.
    **options
        See :class:`~offnominal.detectors.memory_bank.patchcore.PatchCore`. The image score is the
        plain maximum unless ``reweight`` asks for PatchCore's eq. 7 as well. ``tile`` is not taken.

    Notes
    -----
    Positions are compared across images, so all images must have the same grid (as with the default
    crop), and parts should lie in the same place; with free positions there is still something to
    compare, but less of it.

    **Threshold.** The references are scored as PatchCore's are. Without ``contamination`` the
    defective ones among them count as good, which makes the threshold too high: few good parts are
    rejected, and few bad ones. With ``contamination`` at or above the true share, and defective
    references that score above good ones, the threshold is that of the good ones; every good
    reference that is left out instead lowers it, so the rate of rejected good parts can exceed
    ``false_reject`` by up to ``contamination``. ``calibrate`` with images known to be good gives
    a threshold with a promise.

    Raises
    ------
    OptionError
        If there are fewer than 2 images, or their grids differ.
    """

    method: ClassVar[str] = "softpatch"
    takes_tiles: ClassVar[bool] = False
    no_growth = (
        "it judges and weights every patch by those of all other images at its place, which are "
        "not kept. Fit it anew with the images that it should know, or use patchcore where all of "
        "them are known to be good"
    )

    def __init__(
        self,
        discriminator: Discriminator = "lof",
        noise: float = 0.15,
        lof_neighbours: int = 5,
        soft: bool = True,
        contamination: float = 0.0,
        reweight: bool = False,
        resize: Resize | None = "square",
        **options: Any,
    ) -> None:
        super().__init__(reweight=reweight, resize=resize, **options)
        check_choice("discriminator", discriminator, Discriminator)
        check_range("noise", noise, least=0, below=1)
        check_range("contamination", contamination, least=0, below=1)
        check_range("lof_neighbours", lof_neighbours, whole=True, least=1)
        self.discriminator = discriminator
        self.noise = noise
        self.lof_neighbours = lof_neighbours
        self.soft = soft
        self.contamination = contamination

    def begin(self) -> None:
        """An empty bank without weights."""
        super().begin()
        self.weights_ = torch.ones(0)
        self._outlier_values = torch.ones(0)  # of all patches, while a fit lasts

    def release(self) -> None:
        """The bank's rows have theirs."""
        super().release()
        self._outlier_values = torch.ones(0)

    def check_learned(self) -> None:
        """Every row has its weight."""
        super().check_learned()
        must(self.weights_.shape == (len(self.bank),), "weights_ is not as long as the bank")

    @property
    def leave_one_out(self) -> LeaveOneOut:
        """Never exact: which patches are kept depends on all references, the one scored too."""
        return "approximate"

    def candidates(self, rows: Tensor) -> Tensor:
        """Numbers of the rows that are not outliers."""
        count = len(self.references)
        grids = {self.grid_of(self.views_of(one.size)[0]) for one in self.references}
        if count < 2:
            raise OptionError("softpatch compares images with one another: give at least 2")
        if len(grids) > 1:
            raise OptionError(
                f"softpatch compares images position by position, but they have {len(grids)} "
                "different grids: use a crop, or resize them to squares (--resize square)"
            )
        positions = rows.reshape(count, -1, rows.shape[1]).transpose(0, 1)
        self._outlier_values = self._outlying(positions).T.flatten()
        return _lowest(self._outlier_values, self.noise)

    def thin(self, rows: Tensor, there: Tensor, progress: Progress | None) -> Tensor:
        """Numbers of a coreset, whose rows take their outlier values along.

        As in the released code, it is a share of all patches, not of those that may be kept.
        """
        chosen = super().thin(rows, there, progress)
        self.weights_ = self._outlier_values[chosen].contiguous()
        return chosen

    def model_of(self, entries: Tensor, patches: Tensor) -> Self:
        """The same with the weights of both."""
        model = super().model_of(entries, patches)
        model.weights_ = torch.cat([self.weights_[entries], self._outlier_values[patches]])
        return model

    @property
    def keeps_all(self) -> bool:
        """Outliers are left out, whatever the coreset."""
        return False

    def _outlying(self, positions: Tensor) -> Tensor:
        """Outlier value (P, n) of the patches (P, n, dim) of P positions and n images."""
        generator = torch.Generator().manual_seed(self.seed)
        dim = positions.shape[-1]
        if dim > _PROJECTED:
            # Drawn as PyTorch initialises a linear layer, which is what the released code uses: the
            # scale matters where something is added.
            draw = torch.rand(dim, _PROJECTED, generator=generator) * 2 - 1
            positions = positions @ (draw / dim**0.5).to(positions.device)
        if self.discriminator == "lof":
            return _by_blocks(positions, lambda p: local_outlier_factor(p, self.lof_neighbours))
        if self.discriminator == "nearest":
            return _by_blocks(positions, nearest) + 1
        return _by_blocks(positions, gaussian_distance) + 1

    def softened(self, distance: Tensor, index: Tensor) -> Tensor:
        """Distances (n, k) times the weights of the entries."""
        return distance * self.weights_[index] if self.soft else distance

    def scored_all(self, scored: Mapping[int, Scores]) -> Mapping[int, Scores]:
        """Leave out those that are taken for defective."""
        numbers = list(scored)
        scores = [self.image_score(scored[n], self.references[n].size) for n in numbers]
        order = torch.tensor(scores).argsort(stable=True)
        good = order[: len(scored) - int(len(scored) * self.contamination)].tolist()
        return {numbers[place]: scored[numbers[place]] for place in good}


def local_outlier_factor(positions: Tensor, neighbours: int) -> Tensor:
    """Local outlier factor of every patch among those of its position.

    Breunig, Kriegel, Ng and Sander, "LOF: Identifying Density-Based Local Outliers", SIGMOD 2000,
    definitions 5 to 7: near 1 where a patch lies as densely as its neighbours do, larger outside.

    Parameters
    ----------
    positions : Tensor of shape (P, n, D), float32
    neighbours : int
        At most n - 1 are used.

    Returns
    -------
    Tensor of shape (P, n), positive
    """
    distances = _distances(positions)
    count = min(neighbours, distances.shape[-1] - 1)
    near, index = distances.topk(count, dim=-1, largest=False)
    reach = torch.maximum(near, _take(near[..., -1], index))
    # The addend keeps copies, which have no distance, finite; it is scikit-learn's.
    density = 1 / (reach.mean(-1) + 1e-10)
    return _take(density, index).mean(-1) / density


def nearest(positions: Tensor) -> Tensor:
    """Distance (P, n) of every patch (P, n, D) to the nearest of another image at its position."""
    return _distances(positions).amin(-1)


def gaussian_distance(positions: Tensor) -> Tensor:
    """Mahalanobis distance (P, n) of every patch (P, n, D) from the Gaussian of its position.

    The covariance is divided by n - 1, and 0.01 is added to its diagonal, as in the released code.
    """
    centred = (positions - positions.mean(1, keepdim=True)).double()
    covariance = centred.mT @ centred / (positions.shape[1] - 1)
    eye = torch.eye(positions.shape[-1], dtype=torch.float64, device=positions.device)
    factor = torch.linalg.cholesky(covariance + _REGULARISER * eye)
    whitened: Tensor = torch.linalg.solve_triangular(factor, centred.mT, upper=False)
    distance: Tensor = torch.linalg.vector_norm(whitened, dim=1)
    return distance.float()


def _distances(positions: Tensor) -> Tensor:
    """Distances (P, n, n) within each position; infinite on the diagonal."""
    distances = torch.cdist(positions, positions, compute_mode="donot_use_mm_for_euclid_dist")
    distances.diagonal(dim1=-2, dim2=-1).fill_(torch.inf)
    return distances


def _take(values: Tensor, index: Tensor) -> Tensor:
    """Values (P, n) at numbers (P, n, k)."""
    return values.gather(1, index.flatten(1)).view_as(index)


def _by_blocks(positions: Tensor, judge: Callable[[Tensor], Tensor]) -> Tensor:
    """Judge a few positions at a time, so that memory stays bounded."""
    count, dim = positions.shape[1:]
    step = max(1, _BLOCK // max(count, dim) ** 2)
    return torch.cat([judge(block) for block in torch.split(positions, step)])


def _lowest(values: Tensor, dropped: float) -> Tensor:
    """Numbers, ascending, of the values at or under their ``1 - dropped`` quantile."""
    ordered = values.sort().values
    # Interpolated between neighbours, as torch.quantile does for fewer values than 2 ** 24.
    place = (1 - dropped) * (len(values) - 1)
    low, share = int(place), place - int(place)
    high = min(low + 1, len(values) - 1)
    limit = ordered[low] + share * (ordered[high] - ordered[low])
    return (values <= limit).nonzero().flatten()
