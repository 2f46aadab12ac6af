"""What an explanation is made of."""

from dataclasses import dataclass, field
from typing import Any

from offnominal.detectors.memory_bank.origin import Origin
from offnominal.pictures import Image
from offnominal.prediction import Prediction
from offnominal.views import Box

__all__ = ["Explanation", "KnownMatch", "Match"]


@dataclass(frozen=True, eq=False)
class KnownMatch:
    """The patch of a known defect that is nearest to a patch of an image.

    Attributes
    ----------
    file, digest : str
        The defective image, and the digest of its pixels.
    kind : str
        Class of the defect.
    distance : float
        1 less the cosine of the features, on [0, 2]; not in the unit of the nominal distance.
    box : (left, top, width, height)
        The patch in the defective image's own pixels.
    patch : uint8 array of shape (h, w, 3), or None
        The patch as the middle seventh of what surrounds it; None: the image is not there.
    """

    file: str
    digest: str
    kind: str
    distance: float
    box: Box
    patch: Image | None = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, without the picture."""
        return {
            "file": self.file,
            "digest": self.digest,
            "kind": self.kind,
            "distance": self.distance,
            "box": list(self.box),
            "there": self.patch is not None,
        }


@dataclass(frozen=True, eq=False)
class Match:
    """A patch of an image and the nearest nominal one.

    Attributes
    ----------
    number : int
        1 for the most anomalous.
    score : float
        The patch score.
    distance : float
        To the nearest nominal patch. It differs from the score where that is made of more, such as
        several neighbours.
    box : (left, top, width, height)
        The patch in the image's own pixels.
    origin : Origin
        Where the nominal patch comes from.
    patch : uint8 array of shape (h, w, 3)
        The patch with what surrounds it; the patch is the middle seventh of both sides.
    nominal : uint8 array of shape (h', w', 3)
        The same of the nominal patch, turned as it was when they were compared.
    known : KnownMatch or None
        The nearest known defect, where the model knows some.
    """

    number: int
    score: float
    distance: float
    box: Box
    origin: Origin
    patch: Image = field(repr=False)
    nominal: Image = field(repr=False)
    known: KnownMatch | None = None


@dataclass(frozen=True, eq=False)
class Explanation:
    """Why an image scores as it does: its worst patches and what they were compared with.

    Attributes
    ----------
    prediction : Prediction
    matches : tuple of Match
        From distinct regions, the most anomalous first.
    references : dict of str to uint8 array of shape (H, W, 3)
        The references that the nominal patches come from, by their digests.
    """

    prediction: Prediction
    matches: tuple[Match, ...]
    references: dict[str, Image] = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a table or JSON, without the pictures."""
        return {
            "image": self.prediction.source,
            "score": self.prediction.score,
            "threshold": self.prediction.threshold,
            "is_anomalous": self.prediction.is_anomalous,
            "matches": [
                {
                    "number": match.number,
                    "score": match.score,
                    "distance": match.distance,
                    "box": list(match.box),
                    "reference": match.origin.file,
                    "digest": match.origin.digest,
                    "angle": match.origin.angle,
                    "flip": match.origin.flip,
                    "reference_box": list(match.origin.box),
                    "known_defect": match.known and match.known.to_dict(),
                }
                for match in self.matches
            ],
        }
