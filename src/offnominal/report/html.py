"""What the pages share: templates, embedded pictures, names in words."""

import base64
import io
from functools import lru_cache

import cv2
import numpy as np
import numpy.typing as npt
from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from PIL import Image

__all__ = ["Picture", "embed", "outlined", "plain", "template"]

Picture = npt.NDArray[np.uint8]

_TRUTH = (255, 214, 10)  # colour of the truth's outline, told from both metal and lacquer


@lru_cache(maxsize=4)
def template(name: str) -> Template:
    """A template of this folder; what it prints is escaped unless marked safe."""
    environment = Environment(
        loader=PackageLoader("offnominal", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)


def embed(picture: Picture, largest: int = 480, quality: int = 78) -> str:
    """A picture as a data URI: WebP, its longest side at most `largest` pixels."""
    image = Image.fromarray(picture)
    image.thumbnail((largest, largest), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=quality, method=3)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def outlined(image: Picture, truth: npt.NDArray[np.bool_]) -> Picture:
    """The image with the outline of the truth a little outside its edge."""
    width = max(1, round(max(truth.shape) / 200))
    mask = cv2.dilate(truth.astype(np.uint8), np.ones((5, 5), np.uint8))
    contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    picture = image.copy()
    # A dark line under the bright one keeps it legible on any ground.
    cv2.drawContours(picture, contours, -1, (20, 20, 20), width + 2, cv2.LINE_AA)
    cv2.drawContours(picture, contours, -1, _TRUTH, width, cv2.LINE_AA)
    return picture


def plain(name: str) -> str:
    """A name from a file or an option, in words."""
    words = name.replace("_", " ").strip()
    return words[:1].upper() + words[1:]
