"""PatchCore: locally aware mid-level features, a coreset of them, nearest neighbours.

Roth, Pemula, Zepeda, Schölkopf, Brox and Gehler, "Towards Total Recall in Industrial Anomaly
Detection", CVPR 2022 (arXiv 2106.08265).
"""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from torch import Tensor

from offnominal.backbones.base import Backbone
from offnominal.detectors.features import ViewScores, joined, tokens_of
from offnominal.detectors.memory_bank.base import BankDetector
from offnominal.detectors.memory_bank.locally_aware import locally_aware
from offnominal.detectors.options import LeaveOneOut, Progress, check_choice, check_range
from offnominal.detectors.references import References
from offnominal.errors import OptionError
from offnominal.memory import MemoryBank
from offnominal.memory.coreset import farthest_rows, select_coreset
from offnominal.memory.storage import as_stored
from offnominal.scoring import Scores
from offnominal.sizing import fit_size
from offnominal.views import View, cropped_view

__all__ = ["Distance", "PatchCore"]

Distance = Literal["euclidean", "squared"]


class PatchCore(BankDetector):
    """A memory bank of locally aware patch features, thinned to a coreset.

    Parameters
    ----------
    coreset : float
        Share of the patches that the bank keeps, on (0, 1]. The paper compares 0.25, 0.1 and 0.01;
        1 keeps all.
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
    project : int
        Length that rows are projected to at random while the coreset is selected (section 3.2), 128
        in the released code; 0: not at all, which costs little here and keeps a better selection.
    seed : int
        Of the coreset's first row and of that projection.
    folds : int
        In how many parts the references are dealt to set the threshold, each part scored by a
        model of the others; at least 2. Where there are fewer references, each is a part.
    aggregate : str
        ``max``, which ``reweight`` multiplies.
    **options
        See :class:`~offnominal.detectors.memory_bank.base.BankDetector`. Without ``backbone``, the
        network is what the weights file says of itself, otherwise WideResNet-50-2; ``layers`` are
        those of stride 8 and 16, the second and third stage of a residual network; ``resolution``
        is 256.

    Notes
    -----
    While fitting, every patch of every reference is held in float32: 4 MiB for a square image
    with the defaults, or an eighth of that where the network is narrow. The fitted bank is
    ``coreset`` times that, and one such bank more is held while the threshold is set.

    **Threshold.** With ``coreset=1`` each reference is scored against the bank without its own
    entries: exact leave-one-out, and the false-reject rate is promised, as for AnomalyDINO. A
    coreset without a reference's own entries has gaps that a new part does not meet, since other
    patches would have been chosen in their place. So the references are dealt into ``folds``, and
    each is scored against a coreset of the other folds' patches: cross-conformal prediction (Vovk,
    2015). If a new part were scored by these models too, at most about twice the rate asked for
    would be rejected at worst, and about the rate in practice (Barber, Candès, Ramdas and
    Tibshirani, 2021, theorem 4). It is scored by the model of all references, which knows more, so
    its score tends to be lower. ``calibrate`` with further good images gives a threshold with a
    promise. The folds take as long as ``(folds - 1) ** 2 / folds`` more coresets.

    **Growing.** Of an image that is added, the share ``coreset`` of its patches joins the bank,
    those farthest from it. The other references keep the scores that they had; where ``coreset`` is
    1, they are scored anew.

    Examples
    --------
    >>> from offnominal import PatchCore
    >>> detector = PatchCore(backbone="resnet18").fit(["good/0.png", "good/1.png"])
    >>> [prediction] = detector.predict("next.png")
    """

    method: ClassVar[str] = "patchcore"
    fewest: ClassVar[int] = 1  # images that a model can be made of
    default_backbone: ClassVar[str] = "wide_resnet50_2"
    cropping: ClassVar[str] = "--crop and --resize crop"

    def __init__(
        self,
        coreset: float = 0.1,
        reweight: bool = True,
        reweight_neighbours: int = 9,
        distance: Distance = "euclidean",
        crop: int = 0,
        patch: int = 3,
        level_dim: int | None = None,
        dim: int | None = None,
        project: int = 0,
        seed: int = 0,
        folds: int = 5,
        aggregate: str = "max",
        **options: Any,
    ) -> None:
        super().__init__(aggregate=aggregate, **options)
        check_range("coreset", coreset, above=0, most=1)
        check_choice("distance", distance, Distance)
        check_range("reweight_neighbours", reweight_neighbours, whole=True, least=2)
        check_range("crop", crop, least=0)
        for name, length in (("level_dim", level_dim), ("dim", dim)):
            if length is not None:
                check_range(name, length, whole=True, least=1, most=65_536)
        check_range("project", project, least=0)
        check_range("seed", seed, whole=True, least=0, below=2**32)
        check_range("folds", folds, whole=True, least=2)
        check_range("patch", patch, least=1)
        if patch % 2 != 1:
            raise OptionError(f"--patch {patch}: give an odd number of positions, as 3")
        self.coreset = coreset
        self.reweight = reweight
        self.reweight_neighbours = reweight_neighbours
        self.distance: Distance = distance
        self.crop = crop
        self.patch = patch
        self.level_dim = level_dim
        self.dim = dim
        self.project = project
        self.seed = seed
        self.folds = folds
        self.begin()

    def begin(self) -> None:
        """An empty bank, and one for all patches of the references, while a fit lasts."""
        super().begin()
        self._all = MemoryBank().to(self._device)
        self._fold: tuple[int, Self] | None = None
        self._progress: Progress | None = None

    def release(self) -> None:
        """The bank is thinned."""
        self._all = MemoryBank()
        self._fold = self._progress = None

    @property
    def leave_one_out(self) -> LeaveOneOut:
        """Only of the whole bank: see the class's notes on the threshold."""
        return "exact" if self.coreset == 1 else "approximate"

    @property
    def keeps_all(self) -> bool:
        """Whether there is no coreset."""
        return self.coreset == 1

    @property
    def nearest_decides(self) -> bool:
        """Whether the nearest row alone decides a patch's score and an image's."""
        return self.neighbours == 1 and not self.reweight

    # -- from the image to features -----------------------------------------------------------

    def default_resolution(self, network: Backbone) -> int:
        """The paper's."""
        return 256

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

    def embed(self, pixels: Tensor) -> Tensor:
        """Locally aware features (dim, gh, gw)."""
        maps = self.levels(pixels[None]).maps
        return locally_aware(maps, self.patch, self.level_dim, self.dim)[0]

    def rows(self, features: Tensor) -> Tensor:
        """Features as the bank takes them, (n, dim)."""
        return tokens_of(features)

    # -- learning -----------------------------------------------------------------------------

    def learn(self, number: int, image: np.ndarray) -> Any:
        """Keep all of a reference's patches for the fit, or put a further one's in the bank."""
        views = self.views(image)
        found = [self.rows(self.embed(torch.from_numpy(view.pixels))) for view in views]
        if self.fitted:
            rows = torch.cat(found)
            chosen = torch.arange(len(rows), device=rows.device)
            if not self.keeps_all:
                count = max(1, int(len(rows) * self.coreset))
                chosen = farthest_rows(rows, self.bank, count).sort().values
            self._put(number, found, chosen)
            return None if self.keeps_all else found
        if number == 0 and self.expected:
            self._all.reserve(self.expected * sum(map(len, found)))
        for place, rows in enumerate(found):
            self._all.add(rows, number, place, counts=self.keeps_all)
        return None

    def finish(self, progress: Progress | None) -> None:
        """Thin the references' patches to a coreset."""
        self._progress = progress
        self._fill(self._all, range(len(self.references)), progress)
        super().finish(progress)

    def _fill(self, every: MemoryBank, numbers: Sequence[int], progress: Progress | None) -> None:
        """Take a coreset of what some of the references showed."""
        chosen = self.choose(every.take(slice(None)), every.is_of(numbers), progress)
        if len(chosen) == len(every) and self.storage == every.storage:
            every.memory = self.bank.memory
            self.bank = every
            return
        for number in numbers:
            own = every.rows_of(number)
            kept = chosen[(chosen >= own[0]) & (chosen <= own[-1])] - own[0]
            self._put(number, _rows_by_view(every, number), kept)

    def choose(self, rows: Tensor, among: Tensor, progress: Progress | None) -> Tensor:
        """Numbers of the rows that the bank keeps, ascending (section 3.2).

        ``rows`` (n, dim) are those of all references, ``among`` (n,) bool those to choose from.
        """
        return self.thin(rows, among, max(1, int(int(among.sum()) * self.coreset)), progress)

    def thin(self, rows: Tensor, among: Tensor, count: int, progress: Progress | None) -> Tensor:
        """Numbers of a coreset of some rows, ascending: then an image's rows lie together."""
        left = among.nonzero()[:, 0]
        if count >= len(left):
            return left
        project = self.project or None
        found = select_coreset(
            rows, count, seed=self.seed, project=project, among=among, progress=progress
        )
        return found.sort().values

    def _put(self, number: int, views: list[Tensor], chosen: Tensor) -> None:
        """Put some of an image's rows into the bank: numbers over all views, ascending."""
        start = 0
        for place, rows in enumerate(views):
            patch = chosen[(chosen >= start) & (chosen < start + len(rows))] - start
            self.bank.add(rows[patch], number, place, patch, counts=self.keeps_all)
            start += len(rows)

    # -- from features to scores --------------------------------------------------------------

    def score_reference(self, number: int, kept: Any) -> Scores:
        """Score all patches of a reference by a model that does not know it.

        While a fit lasts that is :meth:`without`; of an image that was added, the bank without what
        it gave, which was chosen to join the others and left no gaps among them.
        """
        if self.keeps_all:
            return super().score_reference(number, None)
        self.measured_ = sorted({*self.measured_, number})
        views = self.views_of(self.references[number].size)
        found = []
        for view, rows in zip(views, kept or _rows_by_view(self._all, number), strict=True):
            scores, weight = self.judge(rows, number)
            found.append(ViewScores(scores.reshape(self.grid_of(view)), None, weight))
        return joined(views, found)

    def without(self, number: int) -> Self | None:
        """The model of the folds that a reference is not in; None: there can be none.

        That is what a fit to them gives, from the same features. One is kept at a time.
        """
        fold = number % self.folds
        others = [n for n in range(len(self.references)) if n % self.folds != fold]
        if self.keeps_all or not len(self._all) or len(others) < self.fewest:
            return None
        if self._fold is None or self._fold[0] != fold:
            self._fold = None  # not two at once
            model = self.twin({})
            model.references = References(self.references[n] for n in others)
            model._fill(self._all, others, self._progress)
            self._fold = fold, model
        return self._fold[1]

    def patch_distance(self, squared: Tensor) -> Tensor:
        """Mean distance (n,) to the nearest entries, from squared ones (n, k) (eq. 6)."""
        return self.unit(squared).mean(-1)

    def unit(self, squared: Tensor) -> Tensor:
        """Distances as they count, from squared ones."""
        return squared if self.distance == "squared" else squared.sqrt()

    def softened(self, distance: Tensor, index: Tensor) -> Tensor:
        """Distances (n, k) to the nearest entries, as they count."""
        return distance

    def judge(self, rows: Tensor, without: int | None = None) -> tuple[Tensor, Tensor | None]:
        """Compare a view's rows with the bank (eq. 6), and find the weight of eq. 7."""
        if without is not None and (model := self.without(without)):
            return model.judge(rows)
        left = self.bank.left(without)
        if not left:
            return rows.new_full((len(rows),), torch.inf), None
        squared, index = self.bank.search(rows, min(self.neighbours, left), without)
        scores = self.softened(self.unit(squared), index).mean(-1)
        if not self.reweight or left < 2:
            return scores, None
        worst = scores.argmax()
        row = as_stored(rows[worst][None], self.storage)[0]
        return scores, self._weight(row, index[worst, 0], left, without)

    def _weight(self, row: Tensor, nearest: Tensor, left: int, without: int | None) -> Tensor:
        """Weight of the image score (eq. 7).

        One minus the softmax, over the bank's entries around the nearest one, of the distances from
        the patch to them, taken at the nearest one: small where that entry lies alone, and at most
        1. Always of Euclidean distances, as printed.
        """
        [centre] = self.bank.take(nearest[None])
        _, around = self.bank.search(centre[None], min(self.reweight_neighbours, left), without)
        distances = torch.linalg.vector_norm(self.bank.take(around[0]) - row, dim=1)
        own = torch.linalg.vector_norm(centre - row)
        # exp itself overflows beyond 88.
        return 1 - torch.exp(own - distances.logsumexp(0))

    def compare(self, features: Tensor, without: int | None = None) -> ViewScores:
        """Distance of each patch to its nearest entries, and the weight of the image score."""
        scores, weight = self.judge(self.rows(features), without)
        return ViewScores(scores.reshape(features.shape[1:]), None, weight)


def _rows_by_view(bank: MemoryBank, number: int) -> list[Tensor]:
    """All rows of a reference, those of each view together."""
    own = bank.rows_of(number)
    counts = torch.bincount(bank.view[own].long()).tolist()
    return list(torch.split(bank.take(slice(int(own[0]), int(own[-1]) + 1)), counts))
