"""Pictures from outside: bombs, other kinds of files, and names that are paths."""

import asyncio
import io
import struct
import zipfile
import zlib

import pytest
from fastapi import UploadFile
from PIL import Image

from offnominal.errors import ImageError, OptionError
from offnominal.station.access.uploads import (
    check_picture,
    read_picture_upload,
    read_picture_uploads,
    shown_name,
)
from offnominal.station.settings import Settings

SETTINGS = Settings(upload_bytes=100_000, upload_pixels=10_000, upload_files=3)


def picture(kind: str = "PNG", size: tuple[int, int] = (20, 30)) -> bytes:
    kept = io.BytesIO()
    Image.new("RGB", size).save(kept, kind)
    return kept.getvalue()


def png_of(width: int, height: int) -> bytes:
    """A few bytes that say they are a picture of any size."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        )

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(b"\0" * 1000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("kind", "suffix"),
    [("JPEG", ".jpg"), ("PNG", ".png"), ("BMP", ".bmp"), ("WEBP", ".webp"), ("TIFF", ".tif")],
)
def test_pictures_are_told_by_what_is_in_them(kind: str, suffix: str) -> None:
    found = check_picture(picture(kind), SETTINGS, "part.exe")
    assert found[2:] == (suffix, 20, 30)
    assert found.name == "part.exe"


def archive() -> bytes:
    kept = io.BytesIO()
    with zipfile.ZipFile(kept, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("x.png", b"\0" * 10_000_000)
    return kept.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"x", b"\x89PNG", b"<svg xmlns='http://www.w3.org/2000/svg'><script/></svg>"),
        *(b"<!doctype html><script>alert(1)</script>", b"%PDF-1.7", b"%!PS-Adobe-3.0 EPSF-3.0\n"),
        *(picture("GIF"), picture("ICO", (16, 16)), archive(), b"\x7fELF" + b"\0" * 100),
        *(b"MZ" + b"\0" * 100, b"GIF89a/*", picture("PPM"), b"\xff\xd8\xff<script>"),
    ],
)
def test_what_is_no_picture_is_refused(content: bytes) -> None:
    with pytest.raises(ImageError, match=r"x\.png"):
        check_picture(content, SETTINGS, "x.png")


@pytest.mark.parametrize(
    "content",
    [
        *(picture(size=(101, 100)), png_of(100_000, 100_000), png_of(2**31 - 1, 2**31 - 1)),
        *(
            png_of(20_000, 20_000),
            b"BM" + b"\0" * 16 + struct.pack("<iiiHHI", 40, 90_000, 90_000, 1, 24, 0) + b"\0" * 40,
        ),
    ],
)
def test_bombs_are_refused_before_they_are_decoded(content: bytes) -> None:
    with pytest.raises(ImageError):
        check_picture(content, SETTINGS)


def test_the_number_of_bytes_is_bounded_while_reading() -> None:
    class Endless(io.RawIOBase):
        given = 0

        def read(self, size: int = -1) -> bytes:
            self.given += size
            return b"x" * size

    endless = Endless()
    with pytest.raises(ImageError, match="100000 bytes"):
        asyncio.run(read_picture_upload(UploadFile(endless), SETTINGS))  # type: ignore[arg-type]
    assert endless.given < 3_000_000


def test_the_number_of_files_is_bounded() -> None:
    def uploads(count: int) -> list[UploadFile]:
        files = [UploadFile(io.BytesIO(picture()), filename=f"{n}.png") for n in range(count)]
        return [*files[:-1], UploadFile(io.BytesIO(b"x"), filename="../../etc/x.png")]

    good, wrong = asyncio.run(read_picture_uploads(uploads(3), SETTINGS))
    assert [one.name for one in good] == ["0.png", "1.png"]
    assert [one.source for one in wrong] == ["x.png"]
    with pytest.raises(OptionError, match="3 files"):
        asyncio.run(read_picture_uploads(uploads(4), SETTINGS))


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        *(("../../etc/passwd", "passwd"), ("C:\\windows\\x.png", "x.png"), ("", "?")),
        *(("a\0b\r\nc\u202egnp.exe", "abcgnp.exe"), ("..", ".."), ("x" * 500, "x" * 100)),
    ],
)
def test_names_are_shown_and_no_more(name: str, shown: str) -> None:
    assert shown_name(name) == shown
