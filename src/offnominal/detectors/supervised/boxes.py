"""Boxes: torchvision's detectors learn to find defects as a whole, and to say what they are.

Ren, He, Girshick and Sun, "Faster R-CNN", NeurIPS 2015 (arXiv 1506.01497); Lin, Goyal, Girshick, He
and Dollar, "Focal Loss for Dense Object Detection" (RetinaNet), ICCV 2017 (arXiv 1708.02002); Tian,
Shen, Chen and He, "FCOS", ICCV 2019 (arXiv 1904.01355); SSDLite: Sandler et al., "MobileNetV2",
CVPR 2018 (arXiv 1801.04381).
"""

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from offnominal.checks import check_choice, check_range
from offnominal.detectors.features import ViewScores, one_view
from offnominal.detectors.supervised.finetuned import FineTuned
from offnominal.detectors.supervised.pyramid import FIRST, Head, box_targets, make_detector
from offnominal.errors import OptionError
from offnominal.regions import Box
from offnominal.scoring import Scores, Size
from offnominal.training.budget import Schedule
from offnominal.training.images import Batch

__all__ = ["Boxes"]


class Boxes(FineTuned):
    """A detector of torchvision's that finds defects as boxes, each with a class.

    It learns from boxes, and from those around each connected piece of a mask or outline. Defective
    images without marks are left out: nobody knows where theirs is. The image score is that of the
    surest box, the map that of the surest box at each pixel.

    Parameters
    ----------
    head : {"retinanet", "fasterrcnn", "fcos", "ssdlite"}
        What finds boxes on a feature pyramid. Good images teach ``ssdlite`` nothing: it learns what
        is no defect beside defects alone.
    width : int
        Channels of the pyramid, a multiple of 32; 256 in torchvision's own detectors.
    **options
        See :class:`~offnominal.detectors.supervised.finetuned.FineTuned`.

    Examples
    --------
    >>> from offnominal import Boxes, Labelled, Mark
    >>> marked = Mark("scratch", box=(120, 80, 64, 12))
    >>> bad = [Labelled("bad/0.png", ("scratch",), (marked,))]
    >>> detector = Boxes(budget="20m").fit("good/", defects=bad)
    >>> [prediction] = detector.predict("next.png")
    >>> prediction.boxes
    """

    method: ClassVar[str] = "boxes"
    learns_by: ClassVar[Literal["classes", "boxes", "pixels"]] = "boxes"
    schedule: ClassVar[Schedule] = Schedule(batch=8, steps=300, paper_epochs=12, clip=10.0)
    use_of_marks: ClassVar[Literal["ignored", "used", "needed"]] = "needed"

    def __init__(self, head: Head = "retinanet", width: int = 64, **options: Any) -> None:
        super().__init__(**options)
        check_choice("head", head, Head)
        check_range("width", width, least=32, most=1024, whole=True)
        if width % 32:
            raise OptionError(f"--width {width}: give a multiple of 32")
        self.head: Head = head
        self.width = width

    def build(self) -> None:
        """Encoder, pyramid, and what finds boxes on it."""
        told = self.timm_name, self.arguments, self.width, len(self.kinds_), self.side
        self.net = make_detector(self.head, *told)

    def encoder(self) -> nn.Module:
        """The network of timm's."""
        found: nn.Module = self.net.backbone.body
        return found

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """What torchvision's detector loses on images whose boxes are known."""
        known, targets = box_targets(batch, FIRST[self.head])
        parts: dict[str, Tensor] = self.net(list(batch.pixels[known]), targets)
        return {"total": torch.stack([*parts.values()]).sum(), **parts}

    def find(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of pixels (1, 3, side, side) boxes (n, 4), left, top, right and bottom, the surest first.

        Their classes, counted from 0, and their scores on [0, 1] come after them.
        """
        [found] = self.net(list(pixels.float()))
        order = found["scores"].argsort(descending=True, stable=True)
        classes = found["labels"][order] - FIRST[self.head]
        return found["boxes"][order], classes, found["scores"][order]

    def compare(self, pixels: Tensor) -> ViewScores:
        """The surest box at each place, of all, and of each class."""
        return self.drawn(*self.find(pixels))

    def drawn(self, boxes: Tensor, classes: Tensor, scores: Tensor) -> ViewScores:
        """What :meth:`find` found, as a map."""
        step = max(1, self.side // self.finest)
        side = self.side // step
        grid = scores.new_zeros(side, side)
        low = (boxes[:, :2] / step).floor().long().clamp(0, side - 1)
        high = (boxes[:, 2:] / step).ceil().long().clamp(1, side)
        # The surest one is drawn last.
        for place in range(len(boxes) - 1, -1, -1):
            (left, top), (right, bottom) = low[place].tolist(), high[place].tolist()
            grid[top : max(bottom, top + 1), left : max(right, left + 1)] = scores[place]
        each = scores.new_zeros(len(self.kinds_)).scatter_reduce(0, classes, scores, "amax")
        return ViewScores(grid, each.max(), kinds=each)

    def scored(self, pixels: Tensor, size: Size) -> Scores:
        """Scores of prepared pixels (1, 3, side, side) of an image (H, W), and its boxes."""
        with self._autocast():
            found = self.find(pixels)
        drawn = self.drawn(*found)
        scores = one_view(self.condensed(drawn), (self.side, self.side))
        down, across = size[0] / self.side, size[1] / self.side
        names, boxes = self.kinds_, []
        for corners, kind, score in zip(*(each.tolist() for each in found), strict=True):
            left, top, right, bottom = corners
            box = left * across, top * down, (right - left) * across, (bottom - top) * down
            boxes.append(Box(box, names[kind], score))
        known = dict(zip(names, drawn.kinds.tolist(), strict=True))
        return scores._replace(kinds=known, boxes=tuple(boxes))

    def exportable(self) -> str | None:
        """Why not."""
        return "it finds as many boxes as there are, and no program of tensors alone does"
