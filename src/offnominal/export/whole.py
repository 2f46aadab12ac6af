"""The module of a single graph: sizing, program, score, map and decision of one image."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from offnominal.checks import PERCENT
from offnominal.detectors.trainable import Trainable
from offnominal.errors import OptionError
from offnominal.export.parity import OUTPUTS
from offnominal.export.program import program
from offnominal.export.resizing import Filter, Plan, Resized, resized_by
from offnominal.scoring import Size, Window, anomaly_map, network_map
from offnominal.sizing import to_pixels

__all__ = ["Whole", "plan_of"]

_FILTERS: tuple[Filter, ...] = ("bicubic", "bilinear", "lanczos")


class Whole(nn.Module):
    """Image uint8 (H, W, 3) -> score (1,), map (H, W), is_anomalous (1,), threshold (1,).

    Parameters
    ----------
    detector : Detector
        Fitted, with a threshold.
    size : (H, W)
    """

    outputs = OUTPUTS

    def __init__(self, detector: Any, size: Size) -> None:
        super().__init__()
        self.size = size
        self.aggregate: str = detector.aggregate
        self.own_score: str | None = detector.own_score
        self.program = program(detector)
        plan, self.window = plan_of(detector, size)
        self.resized = Resized(plan)
        mean, std = colours_of(detector)
        self.register_buffer("mean", torch.tensor(mean)[:, None, None])
        self.register_buffer("std", torch.tensor(std)[:, None, None])
        self.register_buffer("limit", torch.tensor([detector.threshold.value]).float())
        with torch.no_grad():
            patches = self._judged(torch.zeros(*size, 3, dtype=torch.uint8))["patches"]
        grid, seen = (patches.shape[0], patches.shape[1]), plan.window[2]
        down, across = map_matrices(grid, size, detector.smoothing, self.window)
        self.register_buffer("down", torch.from_numpy(down))
        self.register_buffer("across", torch.from_numpy(across))
        if self.aggregate.startswith("map-top"):
            stride = seen // grid[0]
            for name, count in zip(("rows", "columns"), grid, strict=True):
                table = torch.from_numpy(network_matrix(count, stride))
                self.register_buffer(name, table)

    def example(self) -> tuple[Tensor]:
        """An image to trace with."""
        return (torch.zeros(*self.size, 3, dtype=torch.uint8),)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What :attr:`outputs` names."""
        found = self._judged(image)
        heat = self.get_buffer("down") @ found["patches"] @ self.get_buffer("across").T
        score = self._score(found, heat).reshape(1)
        limit = self.get_buffer("limit")
        # A score that is no number is no pass.
        return score, heat, ~(score <= limit), limit.clone()

    def _judged(self, image: Tensor) -> dict[str, Tensor]:
        pixels = self.resized(image.permute(2, 0, 1).float())
        pixels = (pixels / 255 - self.get_buffer("mean")) / self.get_buffer("std")
        found = self.program(pixels[None])
        return dict(zip(self.program.outputs, found, strict=True))

    def _score(self, found: dict[str, Tensor], heat: Tensor) -> Tensor:
        if self.aggregate == self.own_score and "image" in found:
            return found["image"]
        score = self._statistic(found["patches"], heat)
        return score * found["weight"] if "weight" in found else score

    def _statistic(self, patches: Tensor, heat: Tensor) -> Tensor:
        """As :func:`offnominal.scoring.image_score` has it, of patches (gh, gw) and the map."""
        how = self.aggregate
        if how in ("max", "map-max"):
            return (patches if how == "max" else heat).max()
        if how == "mean":
            return patches.mean()
        match = PERCENT.fullmatch("quantile99" if how == "quantile" else how)
        if match is None:
            raise OptionError(f"--aggregate {how}: not inside a single graph; choose top1 or max")
        share = float(match[2]) / 100
        if match[1] == "map-top":
            patches = self.get_buffer("rows") @ patches @ self.get_buffer("columns").T
        flat = patches.flatten()
        if match[1] == "quantile":
            place = share * (len(flat) - 1)
            low = int(place)
            largest = flat.topk(len(flat) - low).values
            above = largest[-1] if low + 1 == len(flat) else largest[-2]
            return largest[-1] + (above - largest[-1]) * (place - low)
        return flat.topk(max(1, int(len(flat) * share))).values.mean()


def colours_of(detector: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation, of each channel on [0, 1], that pixels are normalised by."""
    of = detector if isinstance(detector, Trainable) else detector.load_network()
    return of.mean, of.std


def plan_of(detector: Any, size: Size) -> tuple[Plan, Window | None]:
    """How a detector sizes images (H, W), found to be so to the bit, and what its map covers.

    Raises
    ------
    OptionError
        If the graph's resizing does not give the pixels that the library prepares.
    """
    height, width = size
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    image[: height // 2] = np.where(image[: height // 2] > 127, 255, 0)  # what overshoots is cut
    if isinstance(detector, Trainable):
        side = detector.side
        full = round(side * detector.paper_crop) if detector.crop else side
        margin = (full - side) // 2
        resized, window = (full, full), (margin, margin, side, side)
        covered = detector.window(size)
        wanted = detector.sized(image).transpose(1, 2, 0)
    else:
        # Query views that are flipped or clamped are made of these in the program.
        [view, *_] = getattr(detector, "plain_views", detector.views)(image)
        (across, _, left), (_, down, top) = view.frame
        resized = round(height / down), round(width / across)
        window = (round(top / down), round(left / across), *view.size)
        covered = view.window
        wanted = view.pixels
    mean, std = colours_of(detector)
    for filter in _FILTERS:
        for rows_first in (False, True):
            plan = Plan(size, resized, window, filter, rows_first)
            found = resized_by(plan, image)
            made = found if wanted.dtype == np.uint8 else to_pixels(found, mean, std)  # type: ignore[arg-type]  # three of them
            if np.array_equal(made, wanted):
                return plan, covered
    raise OptionError(
        f"--single-graph: this machine's Pillow resizes {width} x {height} to {resized[1]} x "
        f"{resized[0]} in a way that the graph does not have; install another version of Pillow"
    )


def map_matrices(
    grid: Size, size: Size, sigma: float, window: Window | None
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Matrices (H, gh) and (W, gw) that make a map of patches: one side's of a map one wide."""
    found = []
    for axis in (0, 1):
        covered = None if window is None else (window[axis], 0, window[axis + 2], 1)
        units = np.eye(grid[axis], dtype=np.float32)
        each = [anomaly_map(one[:, None], (size[axis], 1), sigma, covered)[:, 0] for one in units]
        found.append(np.stack(each, axis=1))
    return found[0], found[1]


def network_matrix(count: int, stride: int) -> NDArray[np.float32]:
    """The matrix (count * stride, count) of one side of SubspaceAD's map."""
    units = np.eye(count, dtype=np.float32)
    return np.stack([network_map(one[:, None], stride)[:, 0] for one in units], axis=1)
