"""Images with a piece of themselves pasted elsewhere, and the head that learns to tell them.

Li, Sohn, Yoon and Pfister, "CutPaste", CVPR 2021 (arXiv 2104.04015), sections 2.1 and 2.2.
"""

from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from offnominal.synthesis.cut_paste import KINDS, Kind, cut_paste

__all__ = ["TwoWay", "pasted", "projection_head"]

TwoWay = Literal["patch", "scar", "union"]

_PATCH = (0.02, 0.15)  # of the image's area (section 2.1)
_SCAR = ((2.0, 16.0), (10.0, 25.0))  # width and height (section 2.2), of the paper's 256 pixels


def projection_head(dim: int, classes: int) -> nn.Sequential:
    """Two fully connected layers, as most of the released runs have them, and a classifier."""
    layers: list[nn.Module] = []
    for before, after in ((dim, 512), (512, 128)):
        layers += [nn.Linear(before, after), nn.BatchNorm1d(after), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(128, classes))


def pasted(images: Tensor, task: TwoWay, rng: np.random.Generator) -> Tensor:
    """Images (B, 3, h, w), uint8, each with a piece of itself pasted elsewhere."""
    made = []
    for image in images.permute(0, 2, 3, 1).numpy():
        kind: Kind = KINDS[int(rng.integers(2))] if task == "union" else task
        area = rng.uniform(*_PATCH)
        if kind == "scar":
            area = rng.uniform(*_SCAR[0]) * rng.uniform(*_SCAR[1]) / 256**2
        made.append(torch.from_numpy(cut_paste(image, kind, area, rng)[0]))
    return torch.stack(made).permute(0, 3, 1, 2)
