"""Which images are trained on, mosaics of them, and masks at the size of the maps.

Mosaics of four may stand in the place of single images for APRIL-GAN's layers (Chen et al., 2023,
arXiv 2305.17382, and the released code).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import cv2
import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from offnominal.datasets.masks import sample_mask
from offnominal.datasets.sample import Sample
from offnominal.errors import DatasetError, OptionError

__all__ = [
    "Chosen",
    "Four",
    "Split",
    "choose_samples",
    "draw_mosaics",
    "join_four",
    "mask_of",
    "truth_at",
]

Bools = npt.NDArray[np.bool_]
Four = tuple[int, int, int, int]

Split = Literal["test", "train", "all"]


class Chosen(NamedTuple):
    """The images of a training, sorted by category and file, and what was left out, in words."""

    samples: tuple[Sample, ...]
    notes: tuple[str, ...] = ()


def choose_samples(
    samples: Sequence[Sample], split: Split, masks: bool, root: Path, else_masks: str = "add masks"
) -> Chosen:
    """The images of a data set to train on.

    Parameters
    ----------
    samples : sequence of Sample
    split : {"test", "train", "all"}
        The papers train on the test split of one data set, good and defective, and test on others.
    masks : bool
        Whether the loss asks where defects lie. Defective images without a mask are left out then.
    root, else_masks : Path, str
        For messages: the data set's folder, and what to do where there is no mask.

    Raises
    ------
    DatasetError
        If there is no defective image, no good one, or no mask.
    OptionError
        If `split` is none.
    """
    if split not in get_args(Split):
        raise OptionError(f"--split {split}: choose one of {', '.join(get_args(Split))}")
    mine = [s for s in samples if split in ("all", s.split)]
    defective = [s for s in mine if s.label == 1]
    if not defective or len(defective) == len(mine):
        where = "there is" if split == "all" else f"the {split} split has"
        lacks, remedy = "good", "add some, or choose another split with --split"
        if not defective:
            other = any(s.label == 1 for s in samples)
            lacks = "defective"
            remedy = "choose another with --split" if other else "name a data set that has some"
        raise DatasetError(
            f"{root}: {where} no {lacks} image, and a training takes good and defective ones: "
            f"{remedy}"
        )
    without = {s.image for s in defective if s.mask is None} if masks else set()
    if len(without) == len(defective):
        raise DatasetError(
            f"{root}: none of the {len(defective)} defective images has a mask, and the loss "
            f"compares maps with masks: {else_masks}"
        )
    notes = [f"{len(without)} defective images without a mask are left out"] if without else []
    mine = [s for s in mine if s.image not in without]
    return Chosen(tuple(sorted(mine, key=lambda s: (s.category, s.image))), tuple(notes))


def draw_mosaics(
    samples: Sequence[Sample], rate: float, generator: torch.Generator
) -> dict[int, Four]:
    """Which images of an epoch give way to a mosaic, and of what.

    Each of the four is of a kind of defect, or good, drawn from those of the category, and is then
    drawn among its images, so that a kind with few images comes as often as the others.

    The share ``rate`` of the images gives way; at 0 nothing is drawn from the generator. What comes
    back has, by the number of the image that gives way, the numbers of four of its category: top
    left, top right, bottom left, bottom right.
    """
    if not rate:
        return {}
    kinds: dict[str, dict[str, list[int]]] = {}
    for number, sample in enumerate(samples):
        kinds.setdefault(sample.category, {}).setdefault(sample.defect, []).append(number)

    def draw(count: int) -> int:
        return int(torch.randint(count, (), generator=generator))

    def draw_one(category: str) -> int:
        images = list(kinds[category].values())
        kind = images[draw(len(images))]
        return kind[draw(len(kind))]

    chosen = torch.rand(len(samples), generator=generator) < rate
    found: dict[int, Four] = {}
    for number in chosen.nonzero().flatten().tolist():
        category = samples[number].category
        a, b, c, d = (draw_one(category) for _ in range(4))
        found[number] = (a, b, c, d)
    return found


def mask_of(sample: Sample, shape: tuple[int, int]) -> Bools:
    """An image's mask at its own size (H, W), all False for a good image.

    A defective image without one is a :class:`DatasetError`.
    """
    mask = sample_mask(sample, shape)
    if mask is None:
        raise DatasetError(f"{sample.image}: a defective image without a mask")
    return mask


def truth_at(mask: Bools, side: int) -> Bools:
    """A mask (H, W) at the size (side, side) that maps are compared at.

    The released codes' way: bilinear with antialiasing on grey levels 0 and 255, then above half.
    """
    if not mask.any():
        return np.zeros((side, side), np.bool_)
    grey = Image.fromarray(mask.astype(np.uint8) * 255)
    return np.asarray(grey.resize((side, side), Image.Resampling.BILINEAR)) > 127


def join_four(pictures: Sequence[npt.NDArray[np.uint8]]) -> npt.NDArray[np.uint8]:
    """Four images (H, W, 3) or masks (H, W) as one of twice the first one's size; one as it is.

    Those of another size than the first are brought to it. (The released code pastes them as they
    are, over one another or with black beside them.)
    """
    if len(pictures) == 1:
        return pictures[0]
    height, width = pictures[0].shape[:2]
    a, b, c, d = (
        each
        if each.shape[:2] == (height, width)
        else cv2.resize(each, (width, height), interpolation=cv2.INTER_AREA)
        for each in pictures
    )
    joined = np.concatenate([np.concatenate([a, b], axis=1), np.concatenate([c, d], axis=1)])
    return joined.astype(np.uint8, copy=False)
