"""SoftPatch: PatchCore for training sets that contain defects.

Jiang, Liu, Wang, Nie, Wu, Liu, Wang and Zheng, "SoftPatch: Unsupervised Anomaly Detection with
Noisy Data", NeurIPS 2022. What the paper leaves open is taken from the authors' released code, and
marked below.
"""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray

from offnominal.checks import check_choice, check_range
from offnominal.detectors.learned_state import must
from offnominal.detectors.memory_bank.patchcore import PatchCore
from offnominal.detectors.options import LeaveOneOut, Progress
from offnominal.errors import OptionError
from offnominal.memory.search.cutting import batches
from offnominal.scoring import Scores
from offnominal.sizing import Resize

__all__ = ["Discriminator", "SoftPatch", "gaussian_distance", "local_outlier_factor", "nearest"]

Floats = NDArray[np.float32]
Whole = NDArray[np.int64]
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
        self.weights_ = np.ones(0, np.float32)
        self._outlier_values = np.ones(0, np.float32)  # of all patches, while a fit lasts

    def release(self) -> None:
        """The bank's rows have theirs."""
        super().release()
        self._outlier_values = np.ones(0, np.float32)

    def check_learned(self) -> None:
        """Every row has its weight."""
        super().check_learned()
        must(self.weights_.shape == (len(self.bank),), "weights_ is not as long as the bank")

    @property
    def leave_one_out(self) -> LeaveOneOut:
        """Never exact: which patches are kept depends on all references, the one scored too."""
        return "approximate"

    def candidates(self, rows: Floats) -> Whole:
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
        positions = rows.reshape(count, -1, rows.shape[1]).swapaxes(0, 1)
        self._outlier_values = self._outlying(positions).T.ravel()
        return _lowest(self._outlier_values, self.noise)

    def thin(self, rows: Floats, there: Whole, progress: Progress | None) -> Whole:
        """Numbers of a coreset, whose rows take their outlier values along.

        As in the released code, it is a share of all patches, not of those that may be kept.
        """
        chosen = super().thin(rows, there, progress)
        self.weights_ = self._outlier_values[chosen]
        return chosen

    def model_of(self, entries: Whole, patches: Whole) -> Self:
        """The same with the weights of both."""
        model = super().model_of(entries, patches)
        model.weights_ = np.concatenate([self.weights_[entries], self._outlier_values[patches]])
        return model

    @property
    def keeps_all(self) -> bool:
        """Outliers are left out, whatever the coreset."""
        return False

    def _outlying(self, positions: Floats) -> Floats:
        """Outlier value (P, n) of the patches (P, n, dim) of P positions and n images."""
        dim = positions.shape[-1]
        if dim > _PROJECTED:
            # Drawn as PyTorch initialises a linear layer, which is what the released code uses: the
            # scale matters where something is added.
            positions = positions @ (_uniform(self.seed, dim, _PROJECTED) / np.float32(dim**0.5))
        if self.discriminator == "lof":
            return _by_blocks(positions, lambda p: local_outlier_factor(p, self.lof_neighbours))
        if self.discriminator == "nearest":
            return _by_blocks(positions, nearest) + 1
        return _by_blocks(positions, gaussian_distance) + 1

    def softened(self, distance: Floats, index: Whole) -> Floats:
        """Distances (n, k) times the weights of the entries."""
        return distance * self.weights_[index] if self.soft else distance

    def scored_all(self, scored: Mapping[int, Scores]) -> Mapping[int, Scores]:
        """Leave out those that are taken for defective."""
        numbers = list(scored)
        scores = [self.image_score(scored[n], self.references[n].size) for n in numbers]
        order = np.argsort(scores, kind="stable")
        good = order[: len(scored) - int(len(scored) * self.contamination)].tolist()
        return {numbers[place]: scored[numbers[place]] for place in good}


def local_outlier_factor(positions: Floats, neighbours: int) -> Floats:
    """Local outlier factor of every patch among those of its position.

    Breunig, Kriegel, Ng and Sander, "LOF: Identifying Density-Based Local Outliers", SIGMOD 2000,
    definitions 5 to 7: near 1 where a patch lies as densely as its neighbours do, larger outside.

    Parameters
    ----------
    positions : float32 array of shape (P, n, D)
    neighbours : int
        At most n - 1 are used.

    Returns
    -------
    float32 array of shape (P, n), positive
    """
    distances = _distances(positions)
    count = min(neighbours, distances.shape[-1] - 1)
    index = distances.argpartition(count - 1, axis=-1)[..., :count]
    near = np.take_along_axis(distances, index, -1)
    reach = np.maximum(near, _take(near.max(-1), index))
    # The addend keeps copies, which have no distance, finite; it is scikit-learn's.
    density = 1 / (reach.mean(-1) + np.float32(1e-10))
    factor: Floats = _take(density, index).mean(-1) / density
    return factor


def nearest(positions: Floats) -> Floats:
    """Distance (P, n) of every patch (P, n, D) to the nearest of another image at its position."""
    closest: Floats = _distances(positions).min(-1)
    return closest


def gaussian_distance(positions: Floats) -> Floats:
    """Mahalanobis distance (P, n) of every patch (P, n, D) from the Gaussian of its position.

    The covariance is divided by n - 1, and 0.01 is added to its diagonal, as in the released code.
    """
    centred = positions - positions.mean(1, keepdims=True, dtype=np.float64)
    covariance = centred.mT @ centred / (positions.shape[1] - 1)
    factor = np.linalg.cholesky(covariance + _REGULARISER * np.eye(positions.shape[-1]))
    whitened = np.linalg.solve(factor, centred.mT)
    distance: Floats = np.linalg.norm(whitened, axis=1).astype(np.float32)
    return distance


def _uniform(seed: int, *shape: int) -> Floats:
    """Numbers on [-1, 1): those that torch.rand draws with this seed, from 24 bits each."""
    bits = np.random.RandomState(seed).randint(2**32, size=shape, dtype=np.uint32) & 0xFFFFFF
    return bits.astype(np.float32) * np.float32(2**-23) - 1


def _distances(positions: Floats) -> Floats:
    """Distances (P, n, n) within each position; infinite on the diagonal."""
    count = positions.shape[1]
    distances = np.full((len(positions), count, count), np.inf, np.float32)
    for one in range(count - 1):
        # Differences, not products: no digits are lost where patches are alike.
        apart = positions[:, one + 1 :] - positions[:, one : one + 1]
        found = np.sqrt(np.einsum("pnd,pnd->pn", apart, apart))
        distances[:, one, one + 1 :] = distances[:, one + 1 :, one] = found
    return distances


def _take(values: Floats, index: Whole) -> Floats:
    """Values (P, n) at numbers (P, n, k)."""
    flat = np.take_along_axis(values, index.reshape(len(index), -1), 1)
    return flat.reshape(index.shape)


def _by_blocks(positions: Floats, judge: Callable[[Floats], Floats]) -> Floats:
    """Judge a few positions at a time, so that memory stays bounded."""
    count, dim = positions.shape[1:]
    step = max(1, _BLOCK // max(count, dim) ** 2)
    return np.concatenate([judge(positions[some]) for some in batches(len(positions), step)])


def _lowest(values: Floats, dropped: float) -> Whole:
    """Numbers, ascending, of the values at or under their ``1 - dropped`` quantile."""
    ordered = np.sort(values)
    # Interpolated between neighbours.
    place = (1 - dropped) * (len(values) - 1)
    low, share = int(place), place - int(place)
    high = min(low + 1, len(values) - 1)
    limit = ordered[low] + np.float32(share) * (ordered[high] - ordered[low])
    return np.flatnonzero(values <= limit)
