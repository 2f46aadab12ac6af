"""A prediction that was made of a chat model's answer."""

from dataclasses import dataclass
from typing import Any

from offnominal.chat.answer import Answer
from offnominal.detectors.prediction import Prediction

__all__ = ["ChatPrediction"]


@dataclass(frozen=True, eq=False)
class ChatPrediction(Prediction):
    """A prediction, and the answer that it was made of.

    The map is the score inside the answer's boxes and 0 elsewhere; without boxes nothing is said
    of where.

    Attributes
    ----------
    answer : Answer or None
    """

    answer: Answer | None = None

    @property
    def note(self) -> str:
        """What the model said, in words."""
        return self.answer.description if self.answer else ""

    @property
    def is_anomalous(self) -> bool | None:
        """Whether to reject: by the threshold, and in its absence as the model has judged."""
        if self.threshold is None and self.answer is not None:
            return self.answer.anomalous
        return super().is_anomalous

    @property
    def region_threshold(self) -> float | None:
        """Where regions begin; without a threshold a rejected image shows all of its boxes."""
        if self.pixel_threshold is None:
            return 0.0 if self.is_anomalous else None
        return super().region_threshold

    @property
    def colour_range(self) -> tuple[float, float]:
        """Map values that are drawn as none and as full heat: a score is in [0, 1]."""
        return 0.0, 1.0

    def as_row(self) -> dict[str, Any]:
        """Plain values for a table or JSON, with the model's words and what it answered."""
        row = super().as_row() | {"note": self.note}
        if self.answer is not None:
            row["answer"] = {
                "anomalous": self.answer.anomalous,
                "confidence": self.answer.confidence,
                "boxes": [list(box) for box in self.answer.boxes],
            }
        return row
