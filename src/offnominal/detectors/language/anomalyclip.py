"""AnomalyCLIP: one learned pair of prompts, normal and abnormal, for any kind of part.

Zhou, Pang, Tian, He and Chen, "AnomalyCLIP: Object-agnostic Prompt Learning for Zero-shot Anomaly
Detection", ICLR 2024 (arXiv 2310.18961), and its released code.
"""

from typing import Any, ClassVar

from offnominal.backbones.positions import Positions
from offnominal.checks import check_range
from offnominal.detectors.language.learned import PromptedDetector
from offnominal.language.learned import AnomalyCLIPPrompts, LearnedPrompts

__all__ = ["AnomalyCLIP"]

_VALUE_BLOCKS = 19  # the released code's DPAM_layer 20 takes the last 19 of 24


class AnomalyCLIP(PromptedDetector):
    """Zero-shot detection by object-agnostic prompts that were trained on other parts.

    The image score is the softmax of the class token's cosines to both prompts, over the
    temperature; the class token is projected without the final layer norm, as in the released code.
    A patch's score is the same for a stream of value-value attention beside the ordinary one,
    summed over the levels (section 3.3 of the paper).

    Parameters
    ----------
    prompts : path or None
        File of ``offnominal train anomalyclip``, or a released checkpoint (``epoch_15.pth``).
    value_blocks : int or None
        Last blocks of the image tower whose value-value attention makes the maps; all of them where
        it has fewer. None: what the prompts were trained with, which is 19 for the released ones.
    positions : {"bilinear", "bicubic-antialias", "bicubic"}
        The released code resizes bilinearly.
    **options
        See :class:`~offnominal.detectors.language.learned.PromptedDetector`. ``class_name`` makes
        no difference: the prompts know no object. ``layers`` None, with a released checkpoint: the
        last block, as its test script has it; the paper's four are ``5,11,17,23``, counted from 0.

    Notes
    -----
    The map is smoothed at the image's own size, where the released code smooths one of 518 x 518.

    Examples
    --------
    >>> from offnominal import AnomalyCLIP
    >>> detector = AnomalyCLIP(prompts="prompts.safetensors").fit([])
    >>> [prediction] = detector.predict("part.png")
    >>> prediction.score
    """

    method: ClassVar[str] = "anomalyclip"
    kind: ClassVar[type[LearnedPrompts]] = AnomalyCLIPPrompts

    def __init__(
        self,
        value_blocks: int | None = None,
        positions: Positions = "bilinear",
        **options: Any,
    ) -> None:
        super().__init__(positions=positions, **options)
        if value_blocks is not None:
            check_range("value_blocks", value_blocks, whole=True, least=1)
        self.value_blocks = value_blocks

    def reading(self) -> dict[str, Any]:
        """All that the comparison with the prompts depends on but the weights, as plain values."""
        return super().reading() | {"value_blocks": self._values()}

    def values_from(self) -> int:
        """The first block of the value path."""
        return max(0, self.clip.level_count - self._values())

    def _values(self) -> int:
        stored: int = self.reading_.get("value_blocks", _VALUE_BLOCKS)
        return self.value_blocks or stored
