"""How well anomaly maps find the defective pixels: AUROC, AP, F1-max, AUPRO, recall by size."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from offnominal.errors import OptionError
from offnominal.metrics.bins import Bins
from offnominal.metrics.curves import pixel_curves
from offnominal.metrics.pixels import Pixels, round_up
from offnominal.metrics.regions import SIZE_CLASSES, by_size, find_defects
from offnominal.metrics.rows import Figures, Rows, aupro_name

__all__ = ["PixelMetrics", "pixel_metrics"]

Floats = npt.NDArray[np.floating]
Doubles = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

_BUFFER = 12_000_000  # good pixels held before they are folded into the bins, 4 bytes each
_COST = 4  # memory of a defective pixel, its region and their sorting, in good pixels
_BLOCK = 2**24  # good pixels in a block of exact mode
_RATES = (0.01, 0.05, 0.3)


class PixelMetrics:
    """Pixel-level figures of a data set, one image at a time.

    Every image that has a mask belongs in it: good images with an empty mask, whose pixels are all
    good, and defective images with their mask. A defective image whose mask is empty or missing
    does not: where its defect lies is unknown, and its pixels would count as good. Leave it out.

    Parameters
    ----------
    mode : {"binned", "exact"}, default "binned"
        ``"binned"`` holds up to 12 million good pixels and sums up the rest in some 200,000 bins:
        at most about 150 MB, whatever the number of images. :attr:`error` bounds what that costs,
        under 1e-4 where later images score about as the first ones do, and 0 while the pixels fit.
        ``"exact"`` keeps every pixel: 4 bytes a good pixel and 8 a defective one (float32 maps;
        twice that for float64).
    limits : sequence of float, default (0.3, 0.05)
        False-positive rates, in (0, 1], up to which AUPRO is integrated.

    Raises
    ------
    OptionError
        If the mode is unknown, or a limit is outside its range.

    Examples
    --------
    >>> import numpy as np
    >>> metrics = PixelMetrics()
    >>> mask = np.zeros((64, 64), bool)
    >>> mask[20:30, 20:30] = True
    >>> metrics.update(mask.astype(np.float32), mask)
    >>> metrics.compute()["aupro"]
    1.0

    Notes
    -----
    The figures are those of Bergmann et al., "The MVTec Anomaly Detection Dataset", IJCV 2021,
    section 5, and of scikit-learn's functions on all the pixels of all the images together. Regions
    are 8-connected; pixels of equal score cross a threshold together; the overlap is averaged over
    the regions of all the images, integrated by trapezoids, interpolated at the limit, and divided
    by the limit.
    """

    def __init__(
        self,
        mode: Literal["binned", "exact"] = "binned",
        limits: Sequence[float] = (0.3, 0.05),
    ) -> None:
        if mode not in ("binned", "exact"):
            raise OptionError(f"mode is {mode!r}: give 'binned' or 'exact'")
        for limit in limits:
            if not 0 < limit <= 1:
                raise OptionError(f"limit is {limit}: a false-positive rate in (0, 1], as 0.3")
        self.mode = mode
        self.limits = tuple(limits)
        self._images = 0
        self._top = -np.inf
        self._precision: np.dtype[np.floating] = np.dtype(np.float32)
        self._good = self._defective = 0
        self._regions = np.zeros(len(SIZE_CLASSES), np.int64)
        self._pixels = Pixels(_BLOCK if mode == "exact" else _BUFFER)
        self._bins: Bins | None = None
        self._folded: Bins | None = None
        self._figures: Figures | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of memory held."""
        bins = {id(each): each.nbytes for each in (self._bins, self._folded) if each is not None}
        return self._pixels.nbytes + sum(bins.values())

    @property
    def error(self) -> float:
        """Bound on the error of :meth:`compute`'s figures but the threshold, rounding aside.

        From the best and the worst order of the pixels inside the bins; 0 in exact mode, and in
        binned mode while all the pixels fit.
        """
        if not self._good or not self._defective:
            return 0.0
        return max(error for _, error in self._summed().found().values())

    def update(self, anomaly_map: Floats, mask: Bools, source: object = None) -> None:
        """Add one image.

        Parameters
        ----------
        anomaly_map : float array of shape (H, W)
            Larger is more anomalous; any range. Neither clamped nor scaled.
        mask : bool array of shape (H, W)
            True where defective.
        source : object, optional
            What an error calls the image, such as its path; its position by default.

        Raises
        ------
        OptionError
            If the mask does not fit the map, or the map holds NaN or an infinite value. Nothing of
            the image is added then.
        """
        scores, mask = np.asarray(anomaly_map), np.asarray(mask)
        name = f"map {self._images}" if source is None else f"{source}"
        if scores.ndim != 2 or mask.shape != scores.shape or mask.dtype != np.bool_:
            whose = f"mask {self._images}" if source is None else f"{source}: the mask"
            raise OptionError(
                f"{whose} is {mask.dtype} of shape {mask.shape} and its map has shape "
                f"{scores.shape}: give a bool mask of the map's shape (height, width); "
                "offnominal.datasets.read_mask reads one at a given size"
            )
        if scores.dtype not in (np.float32, np.float64):
            small = scores.dtype == np.float16
            scores = scores.astype(np.float32 if small else np.float64)
        finite = np.isfinite(scores)
        if not finite.all():
            nans, wrong = np.count_nonzero(np.isnan(scores)), scores.size - np.count_nonzero(finite)
            raise OptionError(
                f"{name} holds values that are not finite ({nans} NaN, {wrong - nans} infinite, of "
                f"{scores.size}): nothing of it was added; leave the image out and report it"
            )
        defects = find_defects(scores, mask)
        good = scores.ravel() if defects is None else scores[~mask]
        if self.mode == "binned":
            self._make_room(good.size, scores.size - good.size)
        self._pixels.add(good, defects)
        self._images += 1
        self._precision = np.result_type(self._precision, scores.dtype)
        self._top = max(self._top, float(scores.max(initial=-np.inf)))
        self._good += good.size
        self._folded = self._figures = None
        if defects is not None:
            self._defective += defects.scores.size
            self._regions += np.bincount(defects.classes, minlength=len(SIZE_CLASSES))

    def compute(self) -> dict[str, float]:
        """The figures of all the images so far; more may be added afterwards.

        Returns
        -------
        dict of str to float
            ``pixel_auroc``, ``pixel_ap``, ``pixel_f1_max``, all in [0, 1];
            ``pixel_f1_max_threshold`` in units of the maps: pixels at or above it count as
            defective (of several equally good ones the highest); ``aupro`` for the limit 0.3, and
            ``aupro_LIMIT`` for any other, in [0, 1]. All are nan when there is no defective pixel,
            or no good one.
        """
        names = ("pixel_auroc", "pixel_ap", "pixel_f1_max", "pixel_f1_max_threshold")
        order = (*names, *(aupro_name(limit) for limit in self.limits))
        if not self._good or not self._defective:
            return dict.fromkeys(order, float("nan"))
        figures = self._summed()
        found = {name: value for name, (value, _) in figures.found().items()}
        found["pixel_f1_max_threshold"] = figures.threshold
        return {name: found[name] for name in order}

    def curves(self, points: int = 200) -> dict[str, dict[str, list[float]]]:
        """Curves for drawing.

        Parameters
        ----------
        points : int, default 200
            At most how many points a curve has, at even steps along it.

        Returns
        -------
        dict
            ``"roc"`` (x the false-positive rate, y the recall of defective pixels), ``"pr"`` (x the
            recall, y the precision) and ``"pro"`` (x the false-positive rate up to the largest of
            `limits`, y the per-region overlap). Each is a dict of the lists ``"x"``, ``"y"`` and
            ``"thresholds"``: pixels at or above the threshold count as defective. The lists are
            empty where :meth:`compute` gives nan.
        """
        if not self._good or not self._defective:
            empty: dict[str, list[float]] = {"x": [], "y": [], "thresholds": []}
            return {name: {key: [] for key in empty} for name in ("roc", "pr", "pro")}
        limit = max(self.limits, default=1.0)
        above = float(np.nextafter(self._precision.type(self._top), np.inf))
        return pixel_curves(self._rows(), self._totals(), above, limit, points)

    def regions(self) -> list[dict[str, object]]:
        """Recall of the defective regions by size.

        Returns
        -------
        list of dict
            One for each class of :data:`SIZE_CLASSES`, small to large: ``"name"``, ``"lower"``
            (inclusive) and ``"upper"`` (exclusive, but for the last) share of its image's area that
            a region takes, ``"regions"`` (how many), and for each false-positive rate r of 1, 5
            and 30 %: ``"recall_at_r%"``, the mean over the regions of the share of their pixels
            that is found, and ``"found_at_r%"``, the share of regions with any pixel found. A pixel
            is found at the tightest threshold that at most that share of the good pixels reaches.
            The last six are nan in a class without regions, or without good pixels.
        """
        # The tolerance keeps a product that is whole in exact arithmetic from rounding down.
        allowed = {rate: int(rate * self._good + 1e-9) for rate in _RATES}
        sums = {rate: self._caught(count) for rate, count in allowed.items()}
        return by_size(self._regions, sums, defined=self._good > 0)

    def _make_room(self, good: int, defective: int) -> None:
        """Fold what is held into the bins if the next image would not fit beside it."""
        held = self._pixels.good + _COST * self._pixels.defective
        if held and held + good + _COST * defective > _BUFFER:
            self._bins = (self._bins or Bins.empty()).fold(self._pixels)
            self._pixels.clear()

    def _totals(self) -> tuple[int, int, int]:
        return self._good, self._defective, int(self._regions.sum())

    def _table(self) -> Bins | None:
        """Bins with everything so far; None while the pixels themselves are all there."""
        if self._bins is None:
            return None
        if self._folded is None:
            self._folded = self._bins.fold(self._pixels)
        return self._folded

    def _rows(self) -> Iterator[Rows]:
        table = self._table()
        for rows in self._pixels.rows() if table is None else [table.rows()]:
            # A threshold between two numbers of the maps' precision would be rounded down when it
            # is compared with a map, to the scores that it should leave out.
            threshold = round_up(rows.threshold, self._precision).astype(np.float64)
            yield replace(rows, threshold=threshold)

    def _caught(self, false_positives: int) -> tuple[Doubles, Doubles]:
        table = self._table()
        return (self._pixels if table is None else table).caught(false_positives)

    def _summed(self) -> Figures:
        if self._figures is None:
            figures = Figures(*self._totals(), self.limits)
            for rows in self._rows():
                figures.add(rows)
            self._figures = figures
        return self._figures


def pixel_metrics(
    maps: Sequence[Floats] | Floats,
    masks: Sequence[Bools] | Bools,
    limit: float = 0.3,
    mode: Literal["binned", "exact"] = "exact",
) -> dict[str, float]:
    """Pixel-level AUROC, average precision, best F1 and AUPRO over a whole data set.

    :class:`PixelMetrics` in one call, for maps that are all in memory.

    Parameters
    ----------
    maps : sequence of float arrays, each of shape (H, W)
        Anomaly maps of any range; larger is more anomalous. Sizes may differ between images.
    masks : sequence of bool arrays, each of the shape of its map
        True where defective. An image whose mask is empty adds good pixels only.
    limit : float, default 0.3
        AUPRO integrates over false-positive rates from 0 to this, and divides by it; in (0, 1].
    mode : {"exact", "binned"}, default "exact"
        As for :class:`PixelMetrics`.

    Returns
    -------
    dict of str to float
        ``pixel_auroc``, ``pixel_ap``, ``pixel_f1_max`` and ``aupro`` (at any limit), in [0, 1], and
        ``pixel_f1_max_threshold`` in units of the maps (pixels at or above it count as defective).
        All are nan when there is no defective pixel, or no good one.

    Raises
    ------
    OptionError
        If a mask does not fit its map, a map holds a value that is not finite, or `limit` is
        outside its range.
    """
    metrics = PixelMetrics(mode, limits=(limit,))
    if len(maps) != len(masks):
        raise OptionError(f"there are {len(maps)} maps and {len(masks)} masks: give one for each")
    for anomaly_map, mask in zip(maps, masks, strict=True):
        metrics.update(anomaly_map, mask)
    found = metrics.compute()
    found["aupro"] = found.pop(aupro_name(limit))
    return found
