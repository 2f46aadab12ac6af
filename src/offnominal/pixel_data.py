"""Whether a file holds the pixels that it promises; decoders make up what is missing.

What Pillow and its libraries notice themselves (a BMP, WebP, LZW or deflate strip that stops early)
is not looked for again.
"""

import math
import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile

from offnominal import jpeg

__all__ = ["lacking", "lost"]

_FAX, _JPEG = (2, 3, 4), 7  # TIFF 6.0, section 11; technical note 2
_COMPRESSION, _JPEG_TABLES = 259, 347
_PLACES = ((273, 279), (324, 325))  # offsets and lengths: of strips, of tiles
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by PNG's colour types
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))  # fmt: skip
_PIECE = 2**20


def lacking(image: Image.Image, stream: BinaryIO) -> str | None:
    """What an opened file cannot do without and does not hold, before anything is decoded."""
    if isinstance(image, JpegImageFile):
        return jpeg.lacking(_whole(stream))
    if isinstance(image, TiffImageFile):
        if image.tag_v2.get(_COMPRESSION) in _FAX:
            return "compressed as faxes are, where missing data cannot be told; save it as PNG"
        covered: dict[object, int] = {}
        for _, (left, upper, right, lower), _, args in image.tile:
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
            yield tables + piece[2:] if tables else piece


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
