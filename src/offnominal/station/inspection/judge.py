"""From a picture's bytes to what is said of it: the work of a worker process."""

import base64
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from offnominal.errors import ImageError, OffnominalError
from offnominal.images import Picture, read_picture
from offnominal.station.inspection.frozen import sample_of
from offnominal.station.inspection.models import Models
from offnominal.station.inspection.reasons import reason
from offnominal.station.inspection.sight import Usual, look
from offnominal.tensors import no_gradients

if TYPE_CHECKING:
    from offnominal.detectors.base import Detector

__all__ = ["Ready", "judge", "opening", "prepare"]

log = logging.getLogger(__name__)


@dataclass
class Ready:
    """A picture that was decoded, and who is to judge it; or why it cannot be judged."""

    detector: "Detector | None" = None
    picture: Picture | None = None
    trouble: str = ""
    facts: dict[str, Any] | None = None


def prepare(
    models: Models,
    model: dict[str, Any],
    content: bytes,
    known: dict[str, Any] | None,
    checks: dict[str, bool],
) -> Ready:
    """Open the model, decode the picture and look at it: what is done while another is judged.

    ``known`` is what the references look like, and ``checks`` which checks are off;
    see :class:`~.sight.Usual`.
    """
    try:
        detector = models.get(model)
    except OffnominalError as error:
        return Ready(trouble=reason("model", str(error)))
    try:
        read = read_picture(content, detector.sixteen_bit, detector.seen_as)
        picture = detector.taken(read, "picture")
    except ImageError as error:
        return Ready(trouble=reason("unreadable", error.reason))
    seen = look(picture.pixels)
    facts: dict[str, Any] = {"brightness": seen.brightness, "sharpness": seen.sharpness}
    if picture.pixels.dtype == np.uint8:
        facts["sample"] = base64.b64encode(sample_of(picture.pixels)).decode()
    usual = Usual.from_dict(known)
    fault = usual.fault(seen, [name for name, on in checks.items() if not on]) if usual else ""
    return Ready(detector, picture, fault, facts)


def opening(models: Models, model: dict[str, Any]) -> str:
    """Open a model, and judge a grey picture, since the first takes longer; what is wrong."""
    try:
        detector = models.get(model)
        size = detector.references[0].size if detector.references else (256, 256)
        with no_gradients():
            detector.score(np.full((*size, 3), 128, np.uint8))
    except OffnominalError as error:
        return str(error)
    except Exception as error:
        # Such a picture may be none that it takes: then the first real one is slower.
        log.info("%s was not warmed: %s", model["file"], error)
    return ""


def judge(ready: Ready) -> tuple[dict[str, Any], bytes | None]:
    """What is said of a picture: plain values, and its patch scores as float32, little-endian."""
    facts = dict(ready.facts or {})
    if ready.detector is None or ready.picture is None:
        return _not_inspected(ready.trouble, facts)
    height, width = ready.picture.pixels.shape[:2]
    facts |= {"height": height, "width": width}
    if ready.trouble:
        return _not_inspected(ready.trouble, facts)
    detector = ready.detector
    try:
        with no_gradients():
            scores = detector.score(ready.picture.pixels)
        detector.verify()
        found = detector.prediction("picture", ready.picture, scores)
    except ImageError as error:
        return _not_inspected(reason("failed", error.reason), facts)
    except OffnominalError as error:
        return _not_inspected(reason("model", str(error)), facts)
    plain = found.to_dict()
    facts |= {name: plain[name] for name in ("score", "threshold", "p_value", "regions")}
    facts |= {"pixel_threshold": found.pixel_threshold}
    patches = np.ascontiguousarray(found.patch_scores, dtype="<f4")
    facts |= {"grid": list(patches.shape), "window": scores.window and list(scores.window)}
    if found.is_anomalous is None:
        facts |= {"verdict": "not-inspected", "reason": reason("no-threshold")}
    else:
        facts |= {"verdict": "reject" if found.is_anomalous else "good", "reason": ""}
    return facts, patches.tobytes()


def _not_inspected(trouble: str, facts: dict[str, Any]) -> tuple[dict[str, Any], None]:
    return facts | {"verdict": "not-inspected", "reason": trouble}, None
