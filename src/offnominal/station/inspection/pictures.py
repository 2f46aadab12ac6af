"""What a picture's first bytes say, before anything of it is decoded."""

import io
import warnings

from PIL import Image

from offnominal import pixel_data
from offnominal.errors import ImageError

__all__ = ["KINDS", "size_of", "suffix_of"]

KINDS = {
    b"\x89PNG\r\n\x1a\n": ".png",
    b"\xff\xd8\xff": ".jpg",
    b"BM": ".bmp",
    b"II*\0": ".tif",
    b"MM\0*": ".tif",
    b"RIFF": ".webp",
}
"""How files begin that can be pictures, and how their names end."""


def suffix_of(content: bytes) -> str:
    """How the name of a picture's file ends; ``.bin`` of what is none."""
    for beginning, suffix in KINDS.items():
        if content.startswith(beginning):
            if suffix == ".webp" and content[8:12] != b"WEBP":
                break
            return suffix
    return ".bin"


def size_of(content: bytes) -> tuple[int, int] | None:
    """Height and width as the header has them, without decoding; None where it has none.

    Raises
    ------
    ImageError
        Of a TIFF or WebP picture that is larger than its reader tells the size of.
    """
    reader = pixel_data.plugin(content[:32])
    if reader is None:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            # Not by Image.open, which says of a large picture only that it is one.
            with reader(io.BytesIO(content)) as image:
                return image.height, image.width
    except Image.DecompressionBombError as error:
        raise ImageError("the picture", "has too many pixels") from error
    except Exception:  # the readers have many ways to say that bytes are wrong
        return None
