"""Which images are trained on, with their masks at the size of the maps."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
from PIL import Image

from offnominal.datasets.masks import sample_mask
from offnominal.datasets.sample import Sample
from offnominal.errors import DatasetError, OptionError

__all__ = ["Chosen", "Split", "choose_samples", "mask_of", "truth_at"]

Bools = npt.NDArray[np.bool_]

Split = Literal["test", "train", "all"]


@dataclass(frozen=True)
class Chosen:
    """The images of a run.

    Attributes
    ----------
    samples : tuple of Sample
        Sorted by category and file.
    notes : tuple of str
        What was left out, in words.
    """

    samples: tuple[Sample, ...]
    notes: tuple[str, ...] = ()

    @property
    def counts(self) -> tuple[int, int]:
        """How many are good, and how many defective."""
        defective = sum(sample.label for sample in self.samples)
        return len(self.samples) - defective, defective


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
    mine = [s for s in samples if split == "all" or s.split == split]
    where = f"{root}: " + ("" if split == "all" else f"the {split} split has ")
    none = "there is " if split == "all" else ""
    defective = [s for s in mine if s.label == 1]
    if not defective:
        other = any(s.label == 1 for s in samples)
        remedy = "choose another with --split" if other else "name a data set that has some"
        raise DatasetError(
            f"{where}{none}no defective image, and a training takes good and defective ones: "
            f"{remedy}"
        )
    if len(defective) == len(mine):
        raise DatasetError(
            f"{where}{none}no good image, and a training takes good and defective ones: add some, "
            "or choose another split with --split"
        )
    notes = []
    if masks:
        without = {s.image for s in defective if s.mask is None}
        if len(without) == len(defective):
            raise DatasetError(
                f"{root}: none of the {len(defective)} defective images has a mask, and the loss "
                f"compares maps with masks: {else_masks}"
            )
        if without:
            notes.append(f"{len(without)} defective images without a mask are left out")
            mine = [s for s in mine if s.image not in without]
    mine.sort(key=lambda s: (s.category, s.image))
    return Chosen(tuple(mine), tuple(notes))


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
    """A mask at the size that maps are compared at.

    The released codes' way: bilinear with antialiasing on grey levels 0 and 255, then above half.

    Parameters
    ----------
    mask : bool array of shape (H, W)
    side : int
        Of the square that the image is squashed to, in pixels.

    Returns
    -------
    bool array of shape (side, side)
    """
    if not mask.any():
        return np.zeros((side, side), np.bool_)
    grey = Image.fromarray(mask.astype(np.uint8) * 255)
    return np.asarray(grey.resize((side, side), Image.Resampling.BILINEAR)) > 127
