"""CLIP as it is: images and patches compared with two sentences, or with two ensembles of them.

The baselines CLIP and CLIP-AC of Zhou et al., "AnomalyCLIP", ICLR 2024 (arXiv 2310.18961), after
Radford et al., 2021 (arXiv 2103.00020).
"""

from typing import Any, ClassVar

from torch import Tensor

from offnominal.detectors.features import ViewScores
from offnominal.detectors.language.base import LanguageDetector
from offnominal.language.names import clean_name
from offnominal.language.prompts import CLIP, PromptEnsemble, clip_ac
from offnominal.scoring import Size

__all__ = ["CLIPAC", "CLIPDetector"]


class CLIPDetector(LanguageDetector):
    """A picture, and each patch of it, is closer to "a normal ..." or to "an anomalous ...".

    ``p = softmax(cos(x, T) / temperature)``, with T the features of the two texts and x CLIP's
    embedding of the image or the projected last token of a patch; the score is the abnormal entry.

    CLIP was trained to match whole pictures with captions, so its patches say little: on MVTec AD
    the published pixel AUROC is below one half. It is a baseline to measure others against.

    Parameters
    ----------
    **options
        See :class:`~offnominal.detectors.language.base.LanguageDetector`.

    Examples
    --------
    >>> from offnominal import CLIPDetector
    >>> detector = CLIPDetector(class_name="metal nut").fit()
    >>> [prediction] = detector.predict("next.png")
    >>> prediction.score
    """

    method: ClassVar[str] = "clip"

    @property
    def ensemble(self) -> PromptEnsemble:
        """What is said of the part."""
        return CLIP

    def describe(self) -> Tensor:
        """Features of what is said of both states."""
        return self.ensemble.features(self.clip.load_text(), clean_name(self.class_name))

    def embed(self, pixels: Tensor) -> tuple[Tensor, Size]:
        """Projected tokens (1 + N, E), the class token first, and the grid of the others."""
        clip = self.clip
        with self._autocast():
            found = clip.tokens(pixels[None].to(self._device))
        return clip.project(found.last)[0], found.grid

    def compare(self, features: Any, without: int | None = None) -> ViewScores:
        """What texts say of the patches, and of the image."""
        tokens, grid = features
        scores = self.abnormality(tokens)
        return ViewScores(scores[1:].reshape(grid), scores[0])


class CLIPAC(CLIPDetector):
    """CLIP with each state said in the 80 sentences that its authors use for ImageNet.

    Parameters
    ----------
    **options
        See :class:`~offnominal.detectors.language.base.LanguageDetector`.
    """

    method: ClassVar[str] = "clip-ac"

    @property
    def ensemble(self) -> PromptEnsemble:
        """What is said of the part."""
        return clip_ac()
