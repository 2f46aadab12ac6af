"""Files that hold less than they promise are refused, whatever decoders make of them."""

import io
import struct
import time
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from offnominal.errors import ImageError
from offnominal.images import read_image
from offnominal.pixel_data import decoded_bytes
from tests.test_images import png, tiff

END = b"\xff\xd9"
JPEGS = {
    "baseline": {},
    "optimised": {"optimize": True},
    "every channel whole": {"subsampling": 0},
    "progressive": {"progressive": True},
    "restarts": {"restart_marker_blocks": 5},
    "progressive restarts": {"progressive": True, "restart_marker_rows": 1},
}


def smooth(height: int = 96, width: int = 128) -> np.ndarray:
    noise = np.random.default_rng(0).normal(size=(height, width, 3)).astype(np.float32)
    return cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 3), None, 0, 255, cv2.NORM_MINMAX).astype(
        np.uint8
    )


def encoded(pixels: np.ndarray, kind: str, mode: str = "RGB", **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, kind, **options)
    return file.getvalue()


def refused(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    with pytest.raises(ImageError) as found:
        read_image(path)
    assert found.value.reason.startswith("is truncated or damaged (")
    return found.value.reason


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("name", JPEGS)
def test_a_jpeg_that_was_cut_and_closed_again(tmp_path: Path, name: str, mode: str) -> None:
    data = encoded(smooth(), "JPEG", mode, **JPEGS[name])
    head = data.index(b"\xff\xda") + 20
    for stop in (*np.linspace(head, len(data) - 40, 7).astype(int), len(data) - 12, len(data) - 6):
        refused(tmp_path / "cut.jpg", data[:stop].rstrip(b"\xff") + END)
    (tmp_path / "whole.jpg").write_bytes(data + b"and what a camera adds")
    assert read_image(tmp_path / "whole.jpg").shape == (96, 128, 3)


def test_a_jpeg_without_its_last_scan_or_some_restarts(tmp_path: Path) -> None:
    data = encoded(smooth(), "JPEG", progressive=True)
    told = refused(tmp_path / "a.jpg", data[: data.rindex(b"\xff\xda")] + END)
    assert "some of its scans are missing" in told
    data = encoded(smooth(), "JPEG", restart_marker_blocks=5)
    first, second = data.index(b"\xff\xd1"), data.index(b"\xff\xd3")
    assert "restart markers" in refused(tmp_path / "a.jpg", data[:first] + data[second:])


@pytest.mark.parametrize("grey", [0, 128, 255])
@pytest.mark.parametrize("name", JPEGS)
def test_blank_jpegs_are_whole(tmp_path: Path, name: str, grey: int) -> None:
    pixels = np.full((1100, 1000, 3), grey, np.uint8)
    path = tmp_path / "blank.jpg"
    data = encoded(pixels, "JPEG", **JPEGS[name])
    path.write_bytes(data)
    np.testing.assert_array_equal(read_image(path), pixels)
    refused(path, data[: len(data) // 2].rstrip(b"\xff") + END)


@pytest.mark.parametrize("progressive", [False, True])
def test_a_small_jpeg_that_claims_to_be_huge_is_not_decoded(
    tmp_path: Path, progressive: bool
) -> None:
    data = bytearray(encoded(smooth(40, 48), "JPEG", progressive=progressive))
    struct.pack_into(">HH", data, data.index(b"\xff\xc2" if progressive else b"\xff\xc0") + 5,
                     14000, 14000)  # fmt: skip
    start = time.perf_counter()
    told = refused(tmp_path / "a.jpg", bytes(data))
    assert "14000 x 14000 pixels, which need" in told
    assert time.perf_counter() - start < 0.3


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def rows_as_png(rows: bytes, size: tuple[int, int], interlaced: bool = False) -> bytes:
    """An 8-bit RGB PNG of rows that each begin with their filter's byte."""
    header = struct.pack(">IIBBBBB", size[1], size[0], 8, 2, 0, 0, interlaced)
    parts = (b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


@pytest.mark.parametrize("interlaced", [False, True])
def test_a_png_with_too_few_rows(tmp_path: Path, interlaced: bool) -> None:
    pixels = smooth(29, 43)
    pixels[-5:] = 0  # black, as rows that are not there come out
    passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2)]
    parts = [pixels[y::down, x::across] for x, y, across, down in (*passes, (0, 1, 1, 2))]
    parts = parts if interlaced else [pixels]
    rows = b"".join(b"\0" + row.tobytes() for part in parts for row in part)
    path = tmp_path / "a.png"
    path.write_bytes(rows_as_png(rows, (29, 43), interlaced))
    np.testing.assert_array_equal(read_image(path), pixels)
    for missing in (1 + 3 * 43, 5 * (1 + 3 * 43)):
        told = refused(path, rows_as_png(rows[:-missing], (29, 43), interlaced))
        assert "before the last row" in told


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "I;16"])
def test_a_png_that_is_black_below_is_whole(tmp_path: Path, mode: str) -> None:
    pixels = smooth(29, 43)
    pixels[20:] = 0
    image = Image.fromarray(pixels[..., 0].astype(np.uint16)) if mode == "I;16" else None
    image = image or Image.fromarray(pixels).convert(mode)
    image.save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png").shape == (29, 43, 3)


def patched(data: bytes, tag: int, value: int | None = None, count: int | None = None) -> bytes:
    """A little-endian TIFF with another number in an entry."""
    changed, [start] = bytearray(data), struct.unpack_from("<I", data, 4)
    for place in range(start + 2, start + 2 + 12 * data[start], 12):
        if struct.unpack_from("<H", data, place) == (tag,):
            if count is not None:
                struct.pack_into("<I", changed, place + 4, count)
            if value is not None:
                struct.pack_into("<I", changed, place + 8, value)
    return bytes(changed)


def test_a_tiff_that_lacks_data(tmp_path: Path) -> None:
    data = encoded(smooth(), "TIFF", compression="jpeg")
    path = tmp_path / "a.tif"
    path.write_bytes(data)
    assert read_image(path).shape == (96, 128, 3)
    [length] = Image.open(path).tag_v2[279]
    assert "strip or tile" in refused(path, patched(data, 279, length // 2))
    fax = encoded(smooth(), "TIFF", "1", compression="group4")
    assert "save it as PNG" in refused(path, fax)
    raw = tiff(smooth())
    assert "strips or tiles are missing" in refused(path, patched(raw, 278, 48))


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {}),
        ("PNG", {}),
        ("BMP", {}),
        ("TIFF", {}),
        ("WEBP", {}),
        ("WEBP", {"lossless": True}),
        ("WEBP", {"exif": b"Exif\0\0"}),
    ],
)
def test_the_memory_of_an_image_is_told_from_its_header(
    tmp_path: Path, kind: str, options: dict[str, object]
) -> None:
    path = tmp_path / "a"
    path.write_bytes(encoded(smooth(), kind, **options))
    assert decoded_bytes(path) == 10 * 96 * 128
    path.write_bytes(path.read_bytes()[:20])
    assert decoded_bytes(path) == 0


def test_where_nothing_can_be_told_the_memory_is_0(tmp_path: Path) -> None:
    (tmp_path / "deep.png").write_bytes(png(np.zeros((20, 30), np.uint16)))
    assert decoded_bytes(str(tmp_path / "deep.png")) == 10 * 20 * 30
    assert decoded_bytes(np.zeros((20, 30, 3), np.uint8)) == 3 * 20 * 30
    assert decoded_bytes(tmp_path) == decoded_bytes(tmp_path / "no") == decoded_bytes(None) == 0
