"""What a file is, told from its first bytes and its name: for messages that name the mix-up."""

from pathlib import Path

from offnominal.paths import IMAGE_SUFFIXES
from offnominal.scans.places import SCAN_SUFFIXES

__all__ = ["MODEL", "PICTURE", "WEIGHTS", "is_model", "what_is"]

MODEL = "a model file of Offnominal"
WEIGHTS = "a file of a network's weights"
PICTURE = "a picture"

_PIECE = 4 * 2**20  # a header is never longer than what the reader takes for one
_KEY = b'"offnominal"'
_WEIGHTS = {".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".onnx"}
_VIDEOS = {".mp4", ".avi", ".mov", ".mkv", ".webm", ".wmv", ".mpg", ".mpeg", ".m4v"}
_BEGINNINGS = {
    b"%PDF": "a PDF",
    b"PK\x03\x04": "a ZIP archive",
    b"\x1f\x8b": "a gzip archive",
    b"7z\xbc\xaf": "a 7z archive",
    b"Rar!": "a RAR archive",
    b"\x1aE\xdf\xa3": "a video",
    b"\x89PNG": PICTURE,
    b"\xff\xd8\xff": PICTURE,
    b"BM": PICTURE,
    b"II*\0": PICTURE,
    b"MM\0*": PICTURE,
    b"GIF8": "a GIF",
    b"\x93NUMPY": "a numpy array",
    b"\x7fELF": "a program",
    b"MZ": "a program",
}


def is_model(path: Path) -> bool:
    """Whether a file is a model file, of whatever format, by its first bytes."""
    try:
        with path.open("rb") as file:
            # Behind the length of the header; no picture is read whole.
            if file.read(9)[8:] != b"{":
                return False
            head = file.read(_PIECE)
    except OSError:
        return False
    return b'"__metadata__"' in head and _KEY in head


def what_is(path: Path) -> str:
    """Such as ``a text file`` or ``a video``; empty for what cannot be told.

    A model file is :data:`MODEL`, weights are :data:`WEIGHTS`, what can be read is ``a picture``.
    """
    if path.is_dir():
        return "a folder"
    suffix = path.suffix.lower()
    try:
        if not path.is_file():
            return ""
        with path.open("rb") as file:
            head = file.read(512)
    except OSError:
        return ""
    if is_model(path):
        return MODEL
    if suffix in _WEIGHTS:
        return WEIGHTS
    if head[4:8] == b"ftyp":
        return "a HEIC picture" if head[8:12] in (b"heic", b"heix", b"mif1") else "a video"
    if head[:4] == b"RIFF":
        return PICTURE if head[8:12] == b"WEBP" else "a video"
    for beginning, told in _BEGINNINGS.items():
        if head.startswith(beginning):
            return told
    if suffix in _VIDEOS:
        return "a video"
    if suffix in IMAGE_SUFFIXES or suffix in SCAN_SUFFIXES or not head:
        return ""
    try:
        text = head.decode("utf-8-sig")
    except UnicodeDecodeError as error:  # a character may be cut in two at the end
        if error.start < len(head) - 4:
            return ""
        text = head[: error.start].decode("utf-8-sig", "replace")
    return "a text file" if "\0" not in text else ""
