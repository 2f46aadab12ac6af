"""The question: some good parts, the part to inspect, and the form of the answer."""

import base64
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from PIL import Image

from offnominal import pictures
from offnominal.errors import OptionError

__all__ = ["ResponseFormat", "correction", "encode_image", "parse_extra", "question"]

ResponseFormat = Literal["json_schema", "json_object", "none"]

_OURS = ("messages", "model", "response_format", "stream")
_LONGEST = 2000  # characters of a bad answer that are shown to the model again
_TASK = (
    "You inspect images of {what}. An anomaly is anything that a good one does not show: damage, "
    "dirt, a flaw in the material, something missing, misplaced or too much. Differences in "
    "position, orientation and light, and the usual variation of the material, are none."
)
_FORM = (
    "Is there an anomaly in it? Answer with one JSON object and nothing else. Its fields, all of "
    "them needed, in this order:\n{fields}\nA box is an object of four numbers: {edges}."
)


def encode_image(image: pictures.Image, max_side: int) -> bytes:
    """JPEG of a uint8 RGB image (H, W, 3), at quality 95 and with full colour resolution.

    A longer side of more than `max_side` pixels is made that long, keeping the shape (Lanczos).
    """
    picture = Image.fromarray(image)
    scale = max_side / max(picture.size)
    if scale < 1:
        width, height = (max(1, round(side * scale)) for side in picture.size)
        picture = picture.resize((width, height), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=95, subsampling=0)
    return stream.getvalue()


def question(
    references: Sequence[bytes], image: bytes, class_name: str | None, schema: Mapping[str, Any]
) -> dict[str, Any]:
    """The one message of a request: references in their order, then the image.

    References come first so that a server that keeps what it has read of a request's beginning
    reads them once. All is in one message, because many chat templates want roles to take turns.

    Parameters
    ----------
    references : sequence of bytes
        JPEG files of good parts.
    image : bytes
        JPEG file of the part to inspect.
    class_name : str or None
        What the part is called.
    schema : mapping
        Of the answer; its fields are told in words too, since a grammar only enforces them.
    """
    parts = [_text(_TASK.format(what=class_name or "parts"))]
    for number, reference in enumerate(references, start=1):
        parts += [_text(f"Good example {number} of {len(references)}:"), _picture(reference)]
    parts += [_text("The image to inspect:"), _picture(image)]
    fields = schema["properties"]
    listed = "\n".join(
        f"- {name} ({field['type']}): {field['description']}" for name, field in fields.items()
    )
    edges = ", ".join(fields["boxes"]["items"]["required"])
    parts.append(_text(_FORM.format(fields=listed, edges=edges)))
    return {"role": "user", "content": parts}


def correction(answer: str, problem: str) -> list[dict[str, Any]]:
    """What follows a malformed answer: the answer itself, and what is wrong with it.

    At temperature 0 the same question gets the same answer, so a plain second try is worth little.
    """
    text = (
        f"This answer cannot be used: {problem}. Answer again with the JSON object alone, with all "
        "of its fields and no others."
    )
    # What has no encoding cannot be sent.
    shown = answer[:_LONGEST].encode(errors="replace").decode() or "(nothing)"
    return [{"role": "assistant", "content": shown}, {"role": "user", "content": text}]


def parse_extra(extra: Mapping[str, Any] | str | None) -> dict[str, Any] | None:
    """Further fields of a request, from a mapping or from JSON text.

    Raises
    ------
    OptionError
        If it is no JSON object, or names a field that has an option of its own.
    """
    if extra is None:
        return None
    try:
        found = json.loads(extra if isinstance(extra, str) else json.dumps(dict(extra)))
    except (ValueError, TypeError) as error:
        raise OptionError(f"extra: is no JSON ({error}); give an object") from error
    if not isinstance(found, dict):
        raise OptionError("extra: give a JSON object, the fields of the request")
    if taken := [name for name in found if name in _OURS]:
        raise OptionError(f"extra: {', '.join(taken)} cannot be set here; leave it out")
    return found


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _picture(jpeg: bytes) -> dict[str, Any]:
    url = "data:image/jpeg;base64," + base64.b64encode(jpeg).decode("ascii")
    return {"type": "image_url", "image_url": {"url": url}}
