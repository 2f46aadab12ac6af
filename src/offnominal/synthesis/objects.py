"""Where the object lies in an image, pixel by pixel, so that defects are made on it."""

from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from offnominal.backbones import DEFAULT, load_backbone
from offnominal.backbones.auto import packaged_backbone
from offnominal.foreground import MaskingTest, MaskMode, foreground_mask, masking_test
from offnominal.views import whole_view

__all__ = ["Objects"]

_SIDE = 320  # pixels of the copy in which the outline is found
_ROUNDS = 3
_LEAST = 0.4  # of the patches' area, that must be left within the outline


class Objects:
    """Finds the object by the features of a network, where there is one to be found.

    The mask is that of AnomalyDINO (see :mod:`offnominal.foreground`), whose patches reach beyond
    the object on every side; its outline is then found by GrabCut (Rother, Kolmogorov and Blake,
    SIGGRAPH 2004), since a defect beside the object is none.

    Parameters
    ----------
    mode : {"auto", "on", "off"}
        ``auto``: the masking test decides by some images whether there is a background, see
        :meth:`decide`; ``off``: there is none, and no network is loaded.
    backbone, weights : str or None
        As :func:`~offnominal.backbones.load_backbone` takes them; None for both: the network that
        a package brings.

    Attributes
    ----------
    test : MaskingTest or None
        What the masking test found, once it has been made: of the first image that it failed on.
    network : str
        Name and fingerprint of the network; empty where there is none.
    """

    def __init__(
        self,
        mode: MaskMode = "auto",
        backbone: str | None = None,
        weights: str | Path | None = None,
    ) -> None:
        self.mode: MaskMode = mode
        self.test: MaskingTest | None = None
        self.network = ""
        if mode != "off":
            if backbone is None and weights is None:
                backbone, _ = packaged_backbone(DEFAULT)
            self._network = load_backbone(backbone, weights)
            self.network = f"{self._network.name} {self._network.digest[:12]}".strip()

    @torch.inference_mode()
    def decide(self, images: Iterable[NDArray[np.uint8]]) -> None:
        """With ``auto``, look for the object only if it stands clear in each of some images."""
        for image in images if self.mode == "auto" else ():
            self.test = masking_test(*self._tokens(image), self._network.mask_threshold)
            if not self.test.passed:
                break

    @torch.inference_mode()
    def __call__(self, image: NDArray[np.uint8]) -> NDArray[np.bool_] | None:
        """Where the object is in an image (H, W, 3): bool (H, W); None: all of it is object."""
        if self.mode == "off" or (self.mode == "auto" and not (self.test and self.test.passed)):
            return None
        tokens, grid = self._tokens(image)
        mask = foreground_mask(tokens, grid, self._network.mask_threshold)
        return _outlined(image, mask)

    def _tokens(self, image: NDArray[np.uint8]) -> tuple[NDArray[np.float32], tuple[int, int]]:
        net = self._network
        view = whole_view(image, net.resolution, net.multiple, net.resize, net.mean, net.std)
        features = net(torch.from_numpy(view.pixels)[None])[0].numpy()
        return features.reshape(len(features), -1).T, (features.shape[1], features.shape[2])


def _outlined(image: NDArray[np.uint8], patches: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """A mask of patches (gh, gw), at the image's size and cut to the outline of what is in it."""
    height, width = image.shape[:2]
    scale = min(1.0, _SIDE / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    coarse = cv2.resize(patches.astype(np.float32), size) >= 0.5
    cut = np.where(coarse, cv2.GC_PR_FGD, cv2.GC_BGD).astype(np.uint8)
    if coarse.any() and not coarse.all():
        cv2.setRNGSeed(0)  # it draws first colours from OpenCV's own generator
        models = np.zeros((1, 65)), np.zeros((1, 65))
        nowhere = (0, 0, 1, 1)  # no rectangle: the mask says where to begin
        cv2.grabCut(small, cut, nowhere, *models, _ROUNDS, cv2.GC_INIT_WITH_MASK)
    fine = (cut == cv2.GC_PR_FGD) & coarse
    # Where the colours do not part, the patches say more.
    kept = fine if fine.sum() >= _LEAST * coarse.sum() else coarse
    large = cv2.resize(kept.astype(np.float32), (width, height))
    return np.asarray(large >= 0.5)
