"""Pictures from outside: bounded in bytes, pixels and number, and told by what is in them.

The name that a browser gives is never part of a path; it is shown, and no more.
"""

import warnings
from collections.abc import Sequence
from io import BytesIO
from typing import NamedTuple

from fastapi import UploadFile
from PIL import Image

from offnominal.errors import ImageError, OptionError
from offnominal.station.settings import Settings

__all__ = ["Upload", "check_picture", "read_picture_upload", "read_picture_uploads", "shown_name"]

_KINDS = {"JPEG": ".jpg", "PNG": ".png", "BMP": ".bmp", "WEBP": ".webp", "TIFF": ".tif"}
_PIECE = 2**20


class Upload(NamedTuple):
    """A picture's bytes, and what they are.

    Attributes
    ----------
    name : str
        As it may be shown.
    content : bytes
    suffix : str
        Of its kind of file, such as ``.png``, whatever its name says.
    width, height : int
        As its header says; it was not decoded.
    """

    name: str
    content: bytes
    suffix: str
    width: int
    height: int


def check_picture(content: bytes, settings: Settings, name: str = "the picture") -> Upload:
    """What a picture's first bytes say of it, held against the settings; nothing is decoded.

    Raises
    ------
    ImageError
        If it is none of JPEG, PNG, BMP, WebP and TIFF, or too large.
    """
    name = shown_name(name)
    if len(content) > settings.upload_bytes:
        raise ImageError(name, f"more than the {settings.upload_bytes} bytes that are taken")
    try:
        # Only these readers are asked, and what a warning or an error says is answered alike.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(BytesIO(content), formats=list(_KINDS)) as picture:
                kind, (width, height) = picture.format or "", picture.size
    except Image.DecompressionBombError as error:
        raise ImageError(
            name, f"more than the {settings.upload_pixels} pixels that are taken"
        ) from error
    except Exception as error:  # the readers have many ways to say that bytes are wrong
        raise ImageError(
            name, "not a JPEG, PNG, BMP, WebP or TIFF picture, or damaged; export it as one"
        ) from error
    if width * height > settings.upload_pixels:
        raise ImageError(
            name,
            f"{width} x {height} pixels, more than the {settings.upload_pixels} that are taken",
        )
    return Upload(name, content, _KINDS[kind], width, height)


async def read_picture_upload(upload: UploadFile, settings: Settings) -> Upload:
    """One picture of a form, read piece by piece and no further than it may be long.

    Raises
    ------
    ImageError
        If it is too large, or none.
    """
    content = bytearray()
    while piece := await upload.read(_PIECE):
        content += piece
        if len(content) > settings.upload_bytes:
            break
    return check_picture(bytes(content), settings, upload.filename or "a file without a name")


async def read_picture_uploads(
    uploads: Sequence[UploadFile], settings: Settings
) -> tuple[list[Upload], list[ImageError]]:
    """All pictures of a form, and what is wrong with those that are none.

    Raises
    ------
    OptionError
        If there are more than the settings let through.
    """
    if len(uploads) > settings.upload_files:
        raise OptionError(f"more than the {settings.upload_files} files that are taken at once")
    good, wrong = [], []
    for upload in uploads:
        try:
            good.append(await read_picture_upload(upload, settings))
        except ImageError as error:
            wrong.append(error)
    return good, wrong


def shown_name(name: str) -> str:
    """The last part of a file's name, without what cannot be seen, to be shown and no more."""
    last = name.replace("\\", "/").rsplit("/", 1)[-1]
    return "".join(letter for letter in last if letter.isprintable())[:100] or "?"
