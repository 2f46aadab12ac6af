"""Reading and checking images: whatever comes in, 8-bit RGB goes out.

Pillow decodes, because it notices files that stop early, which OpenCV fills with grey without a
word. For 8-bit RGB and grey the pixels are those of ``cv2.imread(..., cv2.IMREAD_COLOR)``. Of
colour with 16 bits a channel it keeps the upper 8 only, so it is asked twice, the second time as if
the two bytes of a value were the other way round.
"""

import hashlib
import io
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, NamedTuple, Union, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile

from offnominal import pixel_data
from offnominal.checks import parse_sixteen_bit
from offnominal.errors import ImageError, OptionError
from offnominal.filekinds import PICTURE, what_is
from offnominal.scans.files import scan_of
from offnominal.scans.scan import Modality, Scan
from offnominal.sixteen_bits import deep_colour, is_deep_colour, to_eight_bit
from offnominal.tensors import as_array, is_tensor
from offnominal.upright import orientation_of, turned

if TYPE_CHECKING:
    from torch import Tensor

ImageSource = Union[str, os.PathLike[str], NDArray[Any], Image.Image, Scan, "Tensor"]
Channels = Literal["rgb", "bgr"]

MAX_PIXELS = 200_000_000
"""Images that declare more pixels than this are refused before they are decoded."""
MIN_SIDE = 8
"""Fewest pixels on a side."""
MAX_ASPECT = 50
"""Largest ratio of the longer to the shorter side."""

_BITS_PER_SAMPLE = 258
_PHOTOMETRIC = 262
_SAMPLE_FORMAT = 339
_AGAIN = "copy, export or record it again"


class Picture(NamedTuple):
    """An image as it was read.

    Attributes
    ----------
    pixels : uint8 array of shape (H, W, 3), or float32 of shape (H, W, 6)
        RGB, upright; of a scan that is seen as one, its colour and its points.
    bits : {8, 16}
        Of a channel, as they were stored.
    brightest : int
        The largest of the 16-bit values; 255 for 8-bit ones, among which it is not looked for.
    points : float32 array of shape (H, W, 3), or None
        Of a scan, as :class:`~offnominal.scans.scan.Scan` has them.
    owners : int array of shape (N,), or None
        Of a cloud that was thinned out: which of the pixels (1, V, 6) each point belongs to.
    """

    pixels: NDArray[Any]
    bits: int
    brightest: int
    points: NDArray[np.float32] | None = None
    owners: NDArray[np.intp] | None = None


def read_image(
    source: ImageSource,
    sixteen_bit: str = "range",
    channels: Channels = "rgb",
    modality: Modality = "auto",
) -> NDArray[Any]:
    """Read one image as 8-bit RGB, upright, or say what is wrong with it.

    Parameters
    ----------
    source : path, numpy.ndarray, PIL.Image.Image or torch.Tensor
        A JPEG, PNG, BMP, WebP or TIFF file with one picture in it, recognised by its content and
        not by its name; an array, uint8 or uint16, (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) with
        channels in the order RGB(A); a Pillow image (which has at most 8 bits a channel in colour,
        whatever the file had); or a tensor, (C, H, W) with 1, 3 or 4 channels or (H, W), uint8, or
        floating-point on [0, 1]. Or a scan: a file of points or of depths, a
        :class:`~offnominal.scans.scan.Scan`, or what its ``as_array`` gives.
    sixteen_bit : str
        How 16-bit values become 8-bit ones. ``"range"``: value / 65535. ``"P1,P2"``: the image's
        own percentiles P1 and P2, over all colour channels together, become 0 and 255; what lies
        outside is clipped, and an image whose two percentiles coincide is treated as under
        ``"range"``. Rounded to the nearest integer. 8-bit images are not affected.
    channels : {"rgb", "bgr"}
        Order of the channels of an array or a tensor, which nobody can see; ``"bgr"`` for what
        OpenCV gives. Files and Pillow images say their own, and are not affected.
    modality : {"auto", "colour", "depth", "height", "normals", "scan"}
        What of a scan becomes the image: its colour picture (``auto``), one that is drawn of its
        depths, of heights above its plane or of its normals, or colour and points together.

    Returns
    -------
    numpy.ndarray
        uint8, (H, W, 3), RGB, contiguous, never sharing memory with `source`. The EXIF or TIFF
        orientation is applied. Alpha is dropped and ICC profiles are ignored, as
        ``cv2.IMREAD_COLOR`` does. With ``modality="scan"`` a scan is float32, (H, W, 6).

    Raises
    ------
    ImageError
        If the image is missing, unreadable, truncated, animated, of several pages, of an
        unsupported format or number type, under `MIN_SIDE` pixels on a side, longer than
        `MAX_ASPECT` times its width, or over `MAX_PIXELS`.
    OptionError
        If `sixteen_bit` is neither ``"range"`` nor two percentiles with 0 <= P1 < P2 <= 100, or
        `channels` is unknown.
    """
    check_channels(channels)
    return read_picture(as_rgb(source, channels), sixteen_bit, modality).pixels


def read_picture(
    source: ImageSource | bytes, sixteen_bit: str = "range", modality: Modality = "auto"
) -> Picture:
    """The same, with the depth that the image came in, and the points of a scan.

    Bytes are the content of an image file.
    """
    percentiles = parse_sixteen_bit(sixteen_bit)
    name = describe(source)
    if (scan := scan_of(source, name)) is not None:
        return _of_scan(scan, modality, name)
    if modality not in ("auto", "colour"):
        raise ImageError(name, _no_scan(source, modality))
    if isinstance(source, np.ndarray):
        values = _checked_array(source, name)
    elif is_tensor(source):
        values = _checked_array(as_array(source, name), name)
    else:
        try:
            if isinstance(source, Image.Image):
                _check_picture(source, name)
                source.load()
                values = turned(_pillow_values(source, name), orientation_of(source))
            else:
                values = _read_file(source, name)
        except (ImageError, OptionError):
            raise
        except MemoryError as error:
            raise ImageError(name, "does not fit in memory; make it smaller") from error
        except Image.DecompressionBombError as error:
            raise ImageError(name, f"{error}; crop it, or make it smaller") from error
        # A damaged header makes decoders raise nearly anything: SyntaxError, struct.error,
        # EOFError, ValueError, OverflowError. For the user it is always the same thing.
        except Exception as error:
            detail = str(error).strip() or type(error).__name__
            if "unknown pixel mode" in detail:
                what = "of a type or number of channels that is not supported"
                raise ImageError(name, _number_type(what)) from error
            raise ImageError(name, f"is truncated or damaged ({detail}); {_AGAIN}") from error
    bits, brightest = 8, 255
    if values.dtype == np.uint16:
        values = values[..., :3] if values.ndim == 3 else values
        bits, brightest = 16, int(values.max())
        values = to_eight_bit(values, percentiles)
    # Always a copy: Pillow's buffers are read-only, and an array belongs to the caller.
    if values.ndim == 2:
        pixels = np.empty((*values.shape, 3), np.uint8)
        for channel in range(3):  # all three at once take eight times as long
            pixels[..., channel] = values
    else:
        pixels = np.array(values[..., :3], dtype=np.uint8, order="C")
    return Picture(pixels, bits, brightest)


def _of_scan(scan: Scan, modality: Modality, name: str) -> Picture:
    from offnominal.scans.draw import drawn

    if scan.organised:
        _check_size(scan.points.shape[0], scan.points.shape[1], name)
    if not scan.measured.any():
        raise ImageError(name, "has no point that was measured; record it again")
    if modality == "scan":
        return Picture(scan.as_array(), 8, 255, scan.points)
    kind = "colour" if modality == "auto" else modality
    if kind == "colour" and scan.colour is None:
        raise ImageError(
            name,
            "has no colour picture beside it; give --modality depth, height or normals, or a "
            "backbone of points, as fpfh",
        )
    if not scan.organised:
        raise ImageError(
            name,
            "is a cloud without a grid, which has no picture to look at; give a backbone of "
            "points, as --backbone fpfh",
        )
    return Picture(drawn(scan, kind), 8, 255, scan.points)


def _no_scan(source: object, modality: Modality) -> str:
    if isinstance(source, np.ndarray) and source.dtype.kind == "f":
        return (
            "is no scan; give float32 (H, W, 6), colour and then x, y and z, or "
            "offnominal.scans.scan.Scan(points, colour)"
        )
    if isinstance(source, str | os.PathLike) and not Path(source).exists():
        return "does not exist; check the path"
    return (
        f"is a picture and no scan, which --modality {modality} needs; give files of points or "
        "depths, or a model of pictures"
    )


def check_channels(channels: str) -> None:
    """Raise an :class:`OptionError` unless an order of channels is one of the two."""
    if channels not in get_args(Channels):
        raise OptionError(f"channels={channels!r}: give 'rgb', or 'bgr' for frames of OpenCV")


def as_rgb(source: Any, channels: Channels) -> Any:
    """An array (H, W, C) or a tensor (C, H, W) as RGB; anything else as it is.

    Alpha goes, which nothing looks at.
    """
    if channels == "bgr":
        if isinstance(source, np.ndarray) and source.ndim == 3 and source.shape[2] in (3, 4):
            return source[..., 2::-1]
        if is_tensor(source) and source.ndim == 3 and source.shape[0] in (3, 4):
            return source[:3].flip(0)
    return source


def describe(source: object) -> str:
    """Name an image for a message: its path, or what it is, such as ``array (480, 640) uint8``."""
    if isinstance(source, Scan):
        return f"scan of {source.points.shape[0]} x {source.points.shape[1]} points"
    if isinstance(source, np.ndarray):
        return f"array {source.shape} {source.dtype}"
    if is_tensor(source):
        tensor: Any = source
        return f"tensor {tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
    if isinstance(source, Image.Image):
        file = getattr(source, "filename", "")
        return str(file) if file else f"PIL image {source.width}x{source.height} {source.mode}"
    if isinstance(source, str | os.PathLike):
        return os.fspath(source)
    if isinstance(source, bytes):
        return f"picture of {len(source)} bytes"
    return f"object of type {type(source).__name__}"


def content_digest(image: NDArray[Any]) -> str:
    """SHA-256, in hex, of an array's shape, type and pixels: equal for the same picture only."""
    digest = hashlib.sha256(f"{image.shape} {image.dtype.str} ".encode())
    digest.update(np.ascontiguousarray(image).data)
    return digest.hexdigest()


def _read_file(path: object, name: str) -> NDArray[Any]:
    if isinstance(path, bytes):
        return _decode(io.BytesIO(path), name)
    if not isinstance(path, str | os.PathLike):
        told = "a path, a numpy array, a Pillow image or a tensor"
        if isinstance(path, list | tuple | dict):
            told += "; several in one flat list, or in batches as (tensor, labels)"
        raise ImageError(name, f"is not an image; give {told}")
    try:
        kind = Path(path).stat().st_mode
        if stat.S_ISDIR(kind):
            raise ImageError(name, "is a folder; name an image file in it")
        if not stat.S_ISREG(kind):
            raise ImageError(name, "is not a regular file; name an image file")
        stream = Path(path).open("rb")  # noqa: SIM115 (closed below; decoding fails differently)
    except FileNotFoundError as error:
        raise ImageError(name, "does not exist; check the path") from error
    except PermissionError as error:
        reason = "permission denied; give this user the right to read it and its folders"
        raise ImageError(name, reason) from error
    except (OSError, ValueError) as error:
        raise ImageError(name, f"cannot be opened ({error}); check the path") from error
    with stream:
        return _decode(stream, name)


def _decode(stream: BinaryIO, name: str) -> NDArray[Any]:
    head = stream.read(32)
    if not head:
        raise ImageError(name, f"is empty (0 bytes); {_AGAIN}")
    plugin = pixel_data.plugin(head)
    if plugin is None:
        raise ImageError(name, _no_picture(name))
    stream.seek(0)
    # The format's own class rather than Image.open, whose limit on pixels is a global setting of
    # Pillow and lies a little below ours; for TIFF and WebP it cannot be avoided.
    image = plugin(stream)
    _check_picture(image, name)
    if reason := pixel_data.lacking(image, stream):
        raise ImageError(name, f"is truncated or damaged ({reason}); {_AGAIN}")
    if isinstance(image, PngImageFile):
        # Reads the checksums, which decoding does not, so it has to come first.
        image.verify()
        stream.seek(0)
        image = plugin(stream)
    image.load()
    if reason := pixel_data.lost(image, stream):
        raise ImageError(name, f"is truncated or damaged ({reason}); {_AGAIN}")
    orientation = orientation_of(image)
    if is_deep_colour(image, head):
        stream.seek(0)
        return turned(deep_colour(image, plugin(stream), name), orientation)
    return turned(_pillow_values(image, name), orientation)


def _no_picture(name: str) -> str:
    """What a file is, where that is no picture, and what to do."""
    what = what_is(Path(name))
    if what in ("", PICTURE, "a GIF", "a HEIC picture"):
        but = f", but {what}" if what.endswith(("GIF", "HEIC picture")) else ""
        return f"is not a JPEG, PNG, BMP, WebP or TIFF image{but}; convert it to PNG"
    remedies = {"a ZIP archive": "unpack it", "a video": "save the frames to inspect as PNG",
                "a PDF": "save its pages as PNG"}  # fmt: skip
    return f"is {what}, not a picture of a part; {remedies.get(what, 'leave it out')}"


def _check_picture(image: Image.Image, name: str) -> None:
    _check_size(image.height, image.width, name)
    frames = getattr(image, "n_frames", 1)
    # A second picture in a JPEG is a preview or a gain map of the first.
    if frames > 1 and image.format != "MPO":
        what = "pages" if isinstance(image, TiffImageFile) else "frames of an animation"
        reason = f"holds {frames} {what}; save the one to inspect as a file of its own"
        raise ImageError(name, reason)
    if isinstance(image, TiffImageFile):
        bits = image.tag_v2.get(_BITS_PER_SAMPLE, (1,))
        if max(bits) > 16 or set(image.tag_v2.get(_SAMPLE_FORMAT, (1,))) - {1, 4}:
            raise ImageError(name, _number_type("signed, floating-point or over 16 bits"))


def _check_size(height: int, width: int, name: str) -> None:
    size = f"{width} x {height} pixels (width x height)"
    if min(height, width) < MIN_SIDE:
        reason = f"is too small, {size}; each side needs at least {MIN_SIDE}"
        raise ImageError(name, reason)
    if max(height, width) > MAX_ASPECT * min(height, width):
        reason = f"is too long, {size}; cut it into pieces no longer than {MAX_ASPECT} times"
        raise ImageError(name, f"{reason} their width")
    if height * width > MAX_PIXELS:
        reason = f"is too large, {size}; the limit is {MAX_PIXELS / 1e6:g} million pixels: crop it"
        raise ImageError(name, f"{reason}, or make it smaller")


def _number_type(what: str) -> str:
    return f"its values are {what}; scale them to 0..255 (uint8) or 0..65535 (uint16)"


def _checked_array(array: NDArray[Any], name: str) -> NDArray[Any]:
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        reason = "has the wrong shape; give (H, W), or (H, W, C) with 1, 3 or 4 channels last"
        raise ImageError(name, reason)
    if array.dtype.kind != "u" or array.dtype.itemsize > 2:
        raise ImageError(name, _number_type(str(array.dtype)))
    _check_size(array.shape[0], array.shape[1], name)
    values = array.astype(array.dtype.newbyteorder("="), copy=False)
    return values[..., 0] if values.ndim == 3 and values.shape[2] == 1 else values


def _pillow_values(image: Image.Image, name: str) -> NDArray[Any]:
    """Decoded pixels, not yet turned: uint8 (H, W, 3) or (H, W), or uint16 (H, W)."""
    if image.mode in ("L", "RGB"):
        return np.asarray(image)
    if image.mode == "F":
        raise ImageError(name, _number_type("floating-point"))
    if image.mode == "I" or image.mode.startswith("I;16"):
        # Mode I has 32 bits, but it is also how Pillow hands over some 16-bit files.
        wide = np.asarray(image)
        if wide.min() < 0 or wide.max() > 65535:
            raise ImageError(name, _number_type("32-bit integers beyond 0..65535"))
        values: NDArray[Any] = wide.astype(np.uint16)
        if isinstance(image, TiffImageFile):
            if tuple(image.tag_v2.get(_BITS_PER_SAMPLE, ())) == (12,):
                values = (values << 4) | (values >> 8)
            if image.tag_v2.get(_PHOTOMETRIC) == 0:  # white is zero; Pillow minds it at 8 bits only
                values = 65535 - values
        return values
    if image.mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
        return np.asarray(converted)
    # Modes that reach RGB only, or without a warning only, by way of another.
    by_way_of = {"La": "LA", "RGBa": "RGBA", "P": "RGBA"}.get(image.mode)
    return np.asarray((image.convert(by_way_of) if by_way_of else image).convert("RGB"))
