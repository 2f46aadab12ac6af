"""torchvision's detectors on a feature pyramid over any network of timm's."""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
import timm
import torch
from torch import Tensor, nn
from torchvision.models.detection import FCOS, FasterRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.models.detection.ssd import SSD
from torchvision.models.detection.ssdlite import SSDLiteHead
from torchvision.ops import FeaturePyramidNetwork

from offnominal.errors import OptionError
from offnominal.labelling import label
from offnominal.training.images import Batch

__all__ = ["FIRST", "Head", "box_targets", "make_detector"]

Head = Literal["retinanet", "fasterrcnn", "fcos", "ssdlite"]

FIRST: Mapping[str, int] = {"retinanet": 0, "fasterrcnn": 1, "fcos": 0, "ssdlite": 1}
"""The number of the first class: some count the background as one."""

_SHAPES = (1 / 3, 1.0, 3.0)  # height by width of what is looked for: scratches are long
_SIZES = (2.0, 2.83)  # its side, in strides of a level; half of torchvision's, defects are small
_LEAST_SCORE = 1e-3  # of a box that is kept, so that good images have a score as well
_MOST = 50  # boxes of an image
_SPECK = 4  # pixels of a piece that is no box of its own, beside larger ones


class _Pyramid(nn.Module):
    """Features of a network of timm's at some strides, joined from coarse to fine."""

    def __init__(
        self, name: str, arguments: Mapping[str, Any], strides: Sequence[int], width: int
    ) -> None:
        super().__init__()
        try:
            with torch.device("meta"):
                drawn: Any = timm.create_model(name, features_only=True)
            levels = drawn.feature_info.reduction()
            chosen = [levels.index(stride) for stride in strides]
            told: dict[str, Any] = {"features_only": True, "out_indices": chosen, **arguments}
            body: Any = timm.create_model(name, pretrained=False, **told)
        except (AttributeError, RuntimeError, TypeError, ValueError) as error:
            wanted = ", ".join(map(str, strides))
            raise OptionError(
                f"--backbone {name}: gives no features of strides {wanted}; choose a convolutional "
                "network, as resnet18"
            ) from error
        self.body = body
        self._last = getattr(body, "output_fmt", "NCHW") == "NHWC"
        self.pyramid = FeaturePyramidNetwork(body.feature_info.channels(), width)
        self.out_channels = width

    def forward(self, pixels: Tensor) -> "OrderedDict[str, Tensor]":
        """Levels (B, width, h / stride, w / stride), the finest first, by their number."""
        found = [one.permute(0, 3, 1, 2) if self._last else one for one in self.body(pixels)]
        levels: OrderedDict[str, Tensor] = self.pyramid(
            OrderedDict((str(place), one) for place, one in enumerate(found))
        )
        return levels


def make_detector(
    head: Head, name: str, arguments: Mapping[str, Any], width: int, classes: int, side: int
) -> Any:
    """A detector of torchvision's for images of one side that are normalised already.

    Parameters
    ----------
    head : {"retinanet", "fasterrcnn", "fcos", "ssdlite"}
    name, arguments
        Of timm's network, and how it is built.
    width : int
        Channels of the pyramid.
    classes : int
        Of defects.
    side : int
        In pixels.

    Raises
    ------
    OptionError
        If the network has no such levels.
    """
    strides = (4, 8, 16, 32) if head == "fasterrcnn" else (8, 16, 32)
    pyramid = _Pyramid(name, arguments, strides, width)
    asis = {"image_mean": [0.0] * 3, "image_std": [1.0] * 3}
    if head != "ssdlite":
        asis |= {"min_size": side, "max_size": side, "fixed_size": (side, side)}  # type: ignore[dict-item]
    return _MAKE[head](pyramid, FIRST[head] + classes, strides, side, asis)


def _kept(prefix: str = "") -> dict[str, Any]:
    return {f"{prefix}score_thresh": _LEAST_SCORE, f"{prefix}detections_per_img": _MOST}


def _anchors(strides: Sequence[int]) -> Any:
    sizes = tuple(tuple(times * stride for times in _SIZES) for stride in strides)
    return AnchorGenerator(sizes, (_SHAPES,) * len(strides))


def _retinanet(
    pyramid: _Pyramid, classes: int, strides: Sequence[int], side: int, asis: dict[str, Any]
) -> nn.Module:
    anchors = _anchors(strides)
    each = anchors.num_anchors_per_location()[0]
    norm = partial(nn.GroupNorm, 32)
    head = RetinaNetHead(pyramid.out_channels, each, classes, norm_layer=norm)
    told = {"anchor_generator": anchors, "head": head}
    made: nn.Module = RetinaNet(pyramid, classes, **told, **asis, **_kept())
    return made


def _fasterrcnn(
    pyramid: _Pyramid, classes: int, strides: Sequence[int], side: int, asis: dict[str, Any]
) -> nn.Module:
    told = {"rpn_anchor_generator": _anchors(strides), **_kept("box_")}
    made: nn.Module = FasterRCNN(pyramid, classes, **told, **asis)
    return made


def _fcos(
    pyramid: _Pyramid, classes: int, strides: Sequence[int], side: int, asis: dict[str, Any]
) -> nn.Module:
    points = AnchorGenerator(tuple((stride,) for stride in strides), ((1.0,),) * len(strides))
    made: nn.Module = FCOS(pyramid, classes, anchor_generator=points, **asis, **_kept())
    return made


def _ssdlite(
    pyramid: _Pyramid, classes: int, strides: Sequence[int], side: int, asis: dict[str, Any]
) -> nn.Module:
    scales = [min(1.0, _SIZES[0] * stride / side) for stride in strides] + [1.0]
    boxes = DefaultBoxGenerator([[3]] * len(strides), scales=scales)
    channels = [pyramid.out_channels] * len(strides)
    norm = partial(nn.BatchNorm2d, eps=1e-3, momentum=0.03)
    head = SSDLiteHead(channels, boxes.num_anchors_per_location(), classes, norm)
    made: nn.Module = SSD(pyramid, boxes, (side, side), classes, head=head, **asis, **_kept())
    return made


_MAKE: dict[str, Callable[..., nn.Module]] = {
    "retinanet": _retinanet,
    "fasterrcnn": _fasterrcnn,
    "fcos": _fcos,
    "ssdlite": _ssdlite,
}


def box_targets(batch: Batch, first: int = 0) -> tuple[list[int], list[dict[str, Tensor]]]:
    """Which images of a batch to learn from, and their boxes as torchvision's detectors take them.

    A mark whose pixels hang together is one box, one in several pieces as many. A defective image
    without a mark is left out.

    Parameters
    ----------
    batch : Batch
    first : int
        The number of the first class.

    Returns
    -------
    list of int
        Places in the batch.
    list of dict
        ``boxes`` (n, 4) float32, left, top, right and bottom in pixels, counted from the edges;
        ``labels`` (n,) int64, the class.
    """
    assert batch.instances is not None
    assert batch.labels is not None
    known, targets = [], []
    device = batch.pixels.device
    bad = batch.labels.tolist()
    for place, instances in enumerate(batch.instances.cpu().numpy()):
        boxes: list[tuple[int, int, int, int]] = []
        labels: list[int] = []
        parts, _ = label(instances > 0)
        for number in np.unique(instances[instances > 0]).tolist():
            own = instances == number
            # What another mark lies across still hangs together.
            pieces = [np.nonzero(own & (parts == part)) for part in np.unique(parts[own])]
            least = min(_SPECK, max(len(rows) for rows, _ in pieces))
            for rows, columns in pieces:
                if len(rows) >= least:
                    low, high = (columns.min(), rows.min()), (columns.max() + 1, rows.max() + 1)
                    boxes.append((*low, *high))
                    labels.append(first + batch.instance_kinds[place][number - 1])
        # Where nothing is marked, or of a mark the class is not known, there is nothing to learn.
        if bad[place] and (not boxes or min(labels) < first):
            continue
        known.append(place)
        corners = torch.tensor(boxes, dtype=torch.float32, device=device).view(-1, 4)
        told = torch.tensor(labels, dtype=torch.int64, device=device)
        targets.append({"boxes": corners, "labels": told})
    return known, targets
