"""What an image file promises, and whether it holds it; decoders make up what is missing.

What Pillow and its libraries notice themselves (a BMP, WebP, LZW or deflate strip that stops early)
is not looked for again.
"""

import math
import os
import stat
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from offnominal import jpeg
from offnominal.tensors import is_tensor

__all__ = ["decoded_bytes", "lacking", "lost", "plugin"]

_FAX, _JPEG = (2, 3, 4), 7  # TIFF 6.0, section 11; technical note 2
_COMPRESSION, _JPEG_TABLES = 259, 347
_PLACES = ((273, 279), (324, 325))  # offsets and lengths: of strips, of tiles
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by PNG's colour types
# Of the seven passes: first column and row, and steps (PNG, section 8.2).
_ADAM7 = (
    *((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4)),
    *((0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)),
)
_PIECE = 2**20
_PER_PIXEL = 10  # bytes while decoding: Pillow's four, and two arrays of three


def plugin(head: bytes) -> type[ImageFile.ImageFile] | None:
    """The class of Pillow's that opens files which begin with these 32 bytes, if one may."""
    if head.startswith(b"\xff\xd8\xff"):
        return JpegImageFile
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return PngImageFile
    if head.startswith(b"BM"):
        return BmpImageFile
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return WebPImageFile
    if head.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return TiffImageFile
    return None


def decoded_bytes(source: object) -> int:
    """About the memory that reading an image takes, by its header; 0 where that says nothing."""
    try:
        if isinstance(source, np.ndarray):
            return 3 * int(source.shape[0]) * int(source.shape[1])
        if isinstance(source, Image.Image):
            return _PER_PIXEL * source.width * source.height
        if is_tensor(source):
            tensor: Any = source
            return 4 * int(tensor.numel())
        if not isinstance(source, str | os.PathLike) or not stat.S_ISREG(
            Path(source).stat().st_mode
        ):
            return 0
        with Path(source).open("rb") as stream:
            head = stream.read(32)
            opener = plugin(head)
            if opener is None:
                return 0
            if opener is WebPImageFile:  # would read all of the file
                width, height = _webp_size(head)
            else:
                stream.seek(0)
                width, height = opener(stream).size
    except Exception:
        return 0  # whoever reads it finds out why
    return _PER_PIXEL * width * height


def _webp_size(head: bytes) -> tuple[int, int]:
    """Width and height from the first 32 bytes (RFC 9649; RFC 6386, section 9.1)."""
    if len(head) < 30:
        raise ValueError("no header")
    if head[12:16] == b"VP8X":
        return int.from_bytes(head[24:27], "little") + 1, int.from_bytes(head[27:30], "little") + 1
    if head[12:16] == b"VP8L":
        bits = int.from_bytes(head[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    width, height = struct.unpack_from("<HH", head, 26)
    return width & 0x3FFF, height & 0x3FFF


def lacking(image: Image.Image, stream: BinaryIO) -> str | None:
    """What an opened file cannot do without and does not hold, before anything is decoded."""
    if isinstance(image, JpegImageFile):
        return jpeg.lacking(_whole(stream))
    if isinstance(image, TiffImageFile):
        if image.tag_v2.get(_COMPRESSION) in _FAX:
            return "compressed as faxes are, where missing data cannot be told; save it as PNG"
        covered: dict[object, int] = {}
        for _, extents, _, args in image.tile:
            left, upper, right, lower = extents or (0, 0, 0, 0)
            plane = args[0] if isinstance(args, tuple) else args
            covered[plane] = covered.get(plane, 0) + (right - left) * (lower - upper)
        if not covered or min(covered.values()) < image.width * image.height:
            return "some of its strips or tiles are missing"
        for piece in _jpeg_pieces(image, stream):
            if reason := jpeg.lacking(piece):
                return reason
    return None


def lost(image: Image.Image, stream: BinaryIO) -> str | None:
    """What a decoded file, one that is not lacking in anything, turned out not to hold."""
    if isinstance(image, JpegImageFile) and jpeg.data_end_early(_whole(stream), image):
        return "its data stop before the last pixel"
    if isinstance(image, PngImageFile) and _rows_missing(image, stream):
        return "its data stop before the last row"
    if isinstance(image, TiffImageFile):
        for piece in _jpeg_pieces(image, stream):
            if jpeg.data_end_early(piece):
                return "the data of a strip or tile stop before its last pixel"
    return None


def _whole(stream: BinaryIO) -> bytes:
    stream.seek(0)
    return stream.read()


def _jpeg_pieces(image: TiffImageFile, stream: BinaryIO) -> Iterator[bytes]:
    """The JPEG files that the strips or tiles of a TIFF are, with the tables that they share."""
    if image.tag_v2.get(_COMPRESSION) != _JPEG:
        return
    tables = bytes(image.tag_v2.get(_JPEG_TABLES, b""))[:-2]
    for offsets, lengths in _PLACES:
        pairs = zip(image.tag_v2.get(offsets, ()), image.tag_v2.get(lengths, ()), strict=False)
        for offset, length in pairs:
            stream.seek(offset)
            piece = stream.read(length)
            yield (tables + piece[2:] if tables else piece) + b"\xff\xd9"  # it may go without


def _rows_missing(image: PngImageFile, stream: BinaryIO) -> bool:
    """Whether the data, complete as they look to zlib, are of fewer rows than there should be."""
    stream.seek(16)
    width, height, bits, colour, interlaced = struct.unpack(">IIBBxxB", stream.read(13))
    # What is not there stays zero, so only then is it worth the time to count.
    last = image.crop((0, image.height - 1, image.width, image.height))
    if not interlaced and np.asarray(last).any():
        return False
    total = 0
    for left, upper, across, down in _ADAM7 if interlaced else ((0, 0, 1, 1),):
        columns = max(0, math.ceil((width - left) / across))
        rows = max(0, math.ceil((height - upper) / down)) if columns else 0
        total += rows * (1 + math.ceil(columns * bits * _CHANNELS[colour] / 8))
    inflate = zlib.decompressobj()
    stream.seek(8)
    while total > 0 and len(head := stream.read(8)) == 8:
        length, name = struct.unpack(">I4s", head)
        if name != b"IDAT":
            stream.seek(length + 4, 1)
            continue
        left_over = stream.read(length)
        stream.seek(4, 1)
        while left_over and not inflate.eof:
            total -= len(inflate.decompress(left_over, _PIECE))
            left_over = inflate.unconsumed_tail
    return total - len(inflate.flush()) > 0
