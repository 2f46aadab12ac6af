"""Which images are trained on, with their masks at the size of the maps."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt
from PIL import Image

from offnominal.datasets.masks import sample_mask
from offnominal.datasets.sample import Sample
from offnominal.errors import DatasetError, OptionError

__all__ = ["Chosen", "Split", "choose_samples", "mask_of", "truth_at"]

Bools = npt.NDArray[np.bool_]

Split = Literal["test", "train", "all"]


class Chosen(NamedTuple):
    """The images of a training, sorted by category and file, and what was left out, in words."""

    samples: tuple[Sample, ...]
    notes: tuple[str, ...] = ()


def choose_samples(
    samples: Sequence[Sample], split: Split, masks: bool, root: Path, else_masks: str = "add masks"
) -> Chosen:
    """The images to train on.

    Parameters
    ----------
    samples : sequence of Sample
        Of a data set.
    split : {"test", "train", "all"}
        The papers train on the test split of one data set, good and defective, and test on others.
    masks : bool
        Whether the loss asks where defects lie. Defective images without a mask are left out then.
    root : Path
        The data set's folder, for messages.
    else_masks : str
        What to do where there is no mask, for messages.

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


def mask_of(sample: Sample, shape: tuple[int, int]) -> Bools:
    """An image's mask at its own size (H, W); all False for a good image.

    Raises
    ------
    DatasetError
        If a defective image has none.
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
