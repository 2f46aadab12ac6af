"""CoOp adapted to anomaly detection: learned context before ``normal NAME`` and ``anomalous NAME``.

Zhou, Yang, Loy and Liu, "Learning to Prompt for Vision-Language Models", IJCV 2022 (arXiv
2109.01134). The adaptation is that of AnomalyCLIP's comparisons (Zhou et al., ICLR 2024).
"""

from typing import ClassVar

from offnominal.detectors.language.learned import PromptedDetector
from offnominal.language.learned import CoOpPrompts, LearnedPrompts

__all__ = ["CoOp"]


class CoOp(PromptedDetector):
    """Zero-shot detection by prompts whose context was learned, and which name the part.

    The image score is the softmax of the class token's cosines to both prompts, over the
    temperature; a patch's score is the same for its token. Both pass through the final layer norm
    and the projection, as CLIP means it for the class token. The patches of CLIP were never
    compared with texts in its training, so maps are poor; the method is a baseline.

    Parameters
    ----------
    prompts : path or None
        File of ``offnominal train coop``.
    **options
        See :class:`~offnominal.detectors.language.learned.PromptedDetector`.

    Examples
    --------
    >>> from offnominal import CoOp
    >>> detector = CoOp(prompts="coop.safetensors", class_name="metal nut").fit([])
    >>> [prediction] = detector.predict("nut.png")
    >>> prediction.score
    """

    method: ClassVar[str] = "coop"
    kind: ClassVar[type[LearnedPrompts]] = CoOpPrompts
