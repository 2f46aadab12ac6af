"""The kinds of synthetic defects by name, each as one function of an image."""

from collections.abc import Callable, Sequence
from typing import Literal, get_args

import cv2
import numpy as np
from numpy.typing import NDArray

from offnominal.synthesis.cut_paste import Kind as Piece
from offnominal.synthesis.cut_paste import cut_paste
from offnominal.synthesis.exact import exact
from offnominal.synthesis.nsa import nsa
from offnominal.synthesis.perlin import perlin_defect
from offnominal.synthesis.seeds import Seed, seed_defect
from offnominal.synthesis.textures import Textures

__all__ = ["FROM_DEFECTS", "KINDS", "Draw", "Kind", "cut_pasted", "drawer"]

Kind = Literal["perlin", "cutpaste", "scar", "nsa", "seeds", "diffusion"]
KINDS: tuple[Kind, ...] = get_args(Kind)
FROM_DEFECTS = ("seeds", "diffusion")
"""Those that take some real defects."""

Image = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Rng = np.random.Generator
Made = tuple[Image, Mask]
Draw = Callable[[Image, Rng, Mask | None], Made]
"""Image, generator and object (None: all of the image) in; image and exact mask out."""

# Of the area, evenly on a logarithmic scale. The paper's patches take 2 to 15 % and its scars 0.03
# to 0.6 % of 256 pixels squared; real defects are smaller than such patches.
_PATCH = (0.003, 0.15)
_SCAR = (0.0005, 0.006)


def drawer(
    kind: Kind,
    textures: Textures | None = None,
    other: Callable[[Rng], tuple[Image, Mask | None]] | None = None,
    seeds: Sequence[Seed] = (),
) -> Draw:
    """What makes defects of a kind, but for ``diffusion``, whose painter is such a function itself.

    Parameters
    ----------
    kind : str
        One of :data:`KINDS`.
    textures : Textures or None
        For ``perlin``; None: procedural ones.
    other : callable or None
        For ``nsa``: gives another good image, and where the object is in it.
    seeds : sequence of Seed
        For ``seeds``.
    """
    if kind == "perlin":
        chosen = textures or Textures()
        return lambda image, rng, on: exact(image, perlin_defect(image, rng, chosen, on)[0], on)
    if kind == "cutpaste":
        return lambda image, rng, on: cut_pasted(image, "patch", rng, on)
    if kind == "scar":
        return lambda image, rng, on: cut_pasted(image, "scar", rng, on)
    if kind == "nsa" and other is not None:

        def blend(image: Image, rng: Rng, on: Mask | None) -> Made:
            source, source_on = other(rng)
            both = on is not None and source_on is not None
            return nsa(image, source, rng, on if both else None, source_on if both else None)

        return blend
    if kind == "seeds" and seeds:
        return lambda image, rng, on: seed_defect(image, seeds, rng, on)
    raise ValueError(f"{kind} lacks what it is made of")


def cut_pasted(image: Image, piece: Piece, rng: Rng, on: Mask | None = None) -> Made:
    """CutPaste with a size drawn, within the box around the object, and cut to the object.

    Parameters
    ----------
    image : uint8 array of shape (H, W, 3)
    piece : {"patch", "scar"}
    rng : numpy.random.Generator
    on : bool array of shape (H, W) or None

    Returns
    -------
    image : uint8 array of shape (H, W, 3)
    mask : bool array of shape (H, W)
        What changed.
    """
    low, high = np.log(_SCAR if piece == "scar" else _PATCH)
    share = float(np.exp(rng.uniform(low, high)))
    made = image.copy()
    left, top, width, height = (
        (0, 0, image.shape[1], image.shape[0])
        if on is None
        else cv2.boundingRect(on.astype(np.uint8))
    )
    if width and height:
        box = slice(top, top + height), slice(left, left + width)
        made[box], _ = cut_paste(np.ascontiguousarray(image[box]), piece, share, rng)
    return exact(image, made, on)
