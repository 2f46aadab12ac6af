"""Features of a scan's points on the grid of patches: FPFH, which nothing is learned for.

Horwitz and Hoshen, "Back to the Feature: Classical 3D Features are (Almost) All You Need for 3D
Anomaly Detection", CVPR workshops 2023 (arXiv 2203.05550).
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from offnominal.backbones.base import Backbone
from offnominal.backbones.positions import is_traced
from offnominal.errors import BackboneError, OptionError
from offnominal.scans.fpfh import WIDTH, describe

__all__ = ["PointFeatures"]

Floats = NDArray[Any]

_STRIDE = 8
RELEASED = "fpfh-released"


class PointFeatures(Backbone):
    """FPFH of the points of a scan, averaged over patches of 8 x 8 pixels.

    Normals are laid through the 30 nearest points, histograms through the 100 nearest, as the paper
    has it. They are counted and not measured, so what a feature spans follows the density of the
    points: 224 pixels across, at which images are looked at unless the user says otherwise, it is
    about eleven pixels.

    Parameters
    ----------
    name : {"fpfh", "fpfh-released"}
        ``fpfh``: normals are turned to the camera, and a patch is the mean over the points that it
        has. A patch without any has the features of the nearest one, so that what was not measured
        is no anomaly. ``fpfh-released``, to compare with the released code: normals keep the sign
        that falls out, points with a coordinate of exactly zero are lost, and pixels without a
        point count as zeros.

    Notes
    -----
    **Clouds without a grid** are (B, 6, 1, N): features are those of all the points, so that
    detectors bring clouds to one density first; see :mod:`offnominal.scans.voxels`.
    """

    family = "fpfh"
    mean = (0.0, 0.0, 0.0)
    std = (1.0, 1.0, 1.0)
    dim = WIDTH
    resolution = 224
    resize = "square"
    stride = _STRIDE
    multiple = _STRIDE
    normalize = "none"
    layers = (0,)
    takes_points = True

    def __init__(self, name: str = "fpfh") -> None:
        super().__init__()
        self.name = name
        self.released = name == RELEASED
        self.orient = not self.released
        self.digest = f"{name}-1"  # goes up whenever the same points give other features
        if name not in ("fpfh", RELEASED):
            raise BackboneError(f"--backbone {name}: features of points are fpfh and {RELEASED}")
        self.eval()

    def forward(self, pixels: Tensor) -> Tensor:
        """Features (B, 33, h / 8, w / 8) of points; of clouds (B, 6, 1, N) features (B, 33, 1, N).

        Parameters
        ----------
        pixels : Tensor of shape (B, C, h, w), float32
            The last three channels are x, y and z in metres, NaN where nothing was measured.

        Raises
        ------
        BackboneError
            If a side is not a multiple of 8, or an image has no two points.
        OptionError
            If this is to be written down as a graph.
        """
        if is_traced():
            raise OptionError(
                f"--backbone {self.name}: neighbours of points are looked up, which no graph "
                "does; the model runs where it was fitted, with torch"
            )
        if pixels.shape[1] not in (3, 6):
            raise BackboneError(
                f"{self.name} takes scans, 3 or 6 channels of which the last are x, y and z, not "
                f"{pixels.shape[1]}"
            )
        cloud = pixels.shape[2] == 1
        if not cloud:
            self.check_size(pixels)
        images = pixels[:, -3:].permute(0, 2, 3, 1).float().cpu().numpy()
        made = [self._of_cloud(one) if cloud else self._of_grid(one) for one in images]
        return torch.stack(made).to(pixels.device)

    def _of_grid(self, points: Floats) -> Tensor:
        if self.released:
            points = np.where((points == 0).any(2, keepdims=True), np.nan, points)
        measured = np.asarray(np.isfinite(points).all(2))
        points = np.where(measured[..., None], points, np.nan)
        if measured.sum() < 2:
            raise BackboneError(f"{self.name}: a scan without two points that were measured")
        if self.released:  # single precision puts one pair of a million into another bin
            points = points.astype(np.float64)
        found = describe(points, orient=self.orient)[1]
        features = np.nan_to_num(found).astype(np.float32)
        grid = tuple(side // _STRIDE for side in measured.shape)
        maps = torch.from_numpy(features).permute(2, 0, 1)
        if self.released:
            return F.adaptive_avg_pool2d(F.avg_pool2d(maps, 3, stride=1), grid)
        share = F.avg_pool2d(torch.from_numpy(measured)[None].float(), _STRIDE)
        means = F.avg_pool2d(maps, _STRIDE) / share
        rows, columns = distance_transform_edt(
            (share[0] == 0).numpy(), return_distances=False, return_indices=True
        )
        return means[:, rows, columns]

    def _of_cloud(self, points: Floats) -> Tensor:
        if points.shape[1] < 2:
            raise BackboneError(f"{self.name}: a cloud without two points")
        far = 1e9  # metres: none of those that are counted is too far
        features = describe(points, self.orient, normal_radius=far, radius=far)[1]
        return torch.from_numpy(features).permute(2, 0, 1)
