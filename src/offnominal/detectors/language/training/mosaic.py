"""Mosaics of four images, which APRIL-GAN's layers may be trained on in the place of single ones.

Chen et al., "APRIL-GAN", 2023 (arXiv 2305.17382), and the released code.
"""

from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt
import torch

from offnominal.datasets.sample import Sample

__all__ = ["Four", "draw_mosaics", "join_four"]

Four = tuple[int, int, int, int]


def draw_mosaics(
    samples: Sequence[Sample], rate: float, generator: torch.Generator
) -> dict[int, Four]:
    """Which images of an epoch give way to a mosaic, and of what.

    Each of the four is of a kind of defect, or good, drawn from those of the category, and is then
    drawn among its images, so that a kind with few images comes as often as the others.

    Parameters
    ----------
    samples : sequence of Sample
    rate : float
        Share of images, on [0, 1]. At 0 nothing is drawn from the generator.
    generator : torch.Generator

    Returns
    -------
    dict
        By the number of the image that gives way, the numbers of four of its category: top left,
        top right, bottom left, bottom right.
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


def join_four(pictures: Sequence[npt.NDArray[np.uint8]]) -> npt.NDArray[np.uint8]:
    """Four images or masks as one of twice the first one's size.

    Parameters
    ----------
    pictures : sequence of uint8 arrays of shape (H, W) or (H, W, 3)
        Those of another size than the first are brought to it. (The released code pastes them as
        they are, over one another or with black beside them.)
    """
    height, width = pictures[0].shape[:2]
    a, b, c, d = (
        picture
        if picture.shape[:2] == (height, width)
        else cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)
        for picture in pictures
    )
    joined = np.concatenate([np.concatenate([a, b], axis=1), np.concatenate([c, d], axis=1)])
    return joined.astype(np.uint8, copy=False)
