"""Which files are scans, and what lies beside them: told by names, folders and first bytes.

::

    DEFECT/xyz/000.tiff   beside rgb/000.png, gt/000.png               MVTec 3D-AD
    000_depth.png         beside 000_info_depth.yaml                   Eyecandies
    depth/000.png         16 bits grey, with a camera.json nearby      any depth camera
    000.ply 000.pcd 000.xyz                                            clouds

No NumPy, since every search for images passes here.
"""

import json
import os
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, Literal

__all__ = ["CAMERA", "SCAN_SUFFIXES", "Kind", "camera_of", "colour_of", "is_scan_file", "kind_of"]
__all__ += ["mask_of", "narrowed"]

Kind = Literal["xyz-tiff", "eyecandies", "depth", "ply", "pcd", "text"]

SCAN_SUFFIXES = frozenset({".ply", ".pcd", ".xyz"})
"""Of clouds, in lower case. Depth pictures and TIFFs of points are told by more than that."""
CAMERA = "camera.json"

_ABOVE = 3  # folders above a depth picture in which its camera may be described
_CLOUDS: dict[str, Kind] = {".ply": "ply", ".pcd": "pcd", ".xyz": "text", ".txt": "text"}
_TIFF, _PICTURES = (".tif", ".tiff"), (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")
_DEPTH, _BOUNDS, _LIGHT = "_depth", "_info_depth.yaml", "_image_5.png"
_CHANNELS, _BITS, _FORMAT = 277, 258, 339  # tags of a TIFF's directory
_SHORT, _FLOAT = 3, 3  # a number of 16 bits; the format of floating-point channels
_TAGS = 4096  # entries of a TIFF's directory that are looked at


def is_scan_file(path: str | os.PathLike[str]) -> bool:
    """Whether a file is a scan's, by what it is and what it stands beside; it is not read whole.

    A TIFF of three floating-point channels; a depth picture (16 bits grey, or a TIFF of one
    channel) with a ``camera.json`` in its folder or up to three above; ``NNN_depth.png`` of
    Eyecandies; ``.ply``, ``.pcd``, ``.xyz``.
    """
    return Path(path).suffix.lower() != ".txt" and kind_of(path) is not None


def kind_of(path: str | os.PathLike[str]) -> Kind | None:
    """What holds a scan's points; None of what is none. A ``.txt`` is taken for a cloud."""
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix in _CLOUDS:
        return _CLOUDS[suffix]
    if suffix not in (".png", *_TIFF):
        return None
    if suffix == ".png" and path.stem.endswith(_DEPTH) and _beside(path, _BOUNDS).is_file():
        return "eyecandies"
    try:
        if not path.is_file():  # opening a pipe would wait for whoever writes into it
            return None
        with path.open("rb") as file:
            if suffix == ".png":
                head = file.read(26)
                deep = head[:4] == b"\x89PNG" and head[24:26] == b"\x10\0"
                return "depth" if deep and camera_of(path) else None
            channels, bits, form = _tiff(file)
    except (OSError, ValueError, struct.error):
        return None
    if channels == 3 and form == _FLOAT:
        return "xyz-tiff"
    return "depth" if channels == 1 and bits >= 16 and camera_of(path) else None


def camera_of(path: Path) -> Path | None:
    """The ``camera.json`` that a depth picture belongs to: the nearest, up to three folders up."""
    for folder in list(path.absolute().parents)[: _ABOVE + 1]:
        if (file := folder / CAMERA).is_file():
            return file
    return None


def colour_of(path: str | os.PathLike[str]) -> Path | None:
    """The colour picture of a scan's file, None where there is none.

    ``../rgb/NNN.png`` of a TIFF of points; ``NNN_image_5.png`` of Eyecandies, which is lit all
    around, as its authors convert it; of a depth picture the one of its name in the folder that
    ``camera.json`` names.
    """
    path = Path(path)
    kind = kind_of(path)
    if kind == "xyz-tiff":
        return _named(path.parent.parent / "rgb", path.stem)
    if kind == "eyecandies":
        file = _beside(path, _LIGHT)
        return file if file.is_file() else None
    if kind == "depth" and (folder := _colours(path.parent)):
        return _named(folder, path.stem)
    return None


def mask_of(path: str | os.PathLike[str]) -> Path | None:
    """The truth beside a scan's file: ``gt/NNN.png``, ``NNN_mask.png``, ``gt/NNN.txt``; or None."""
    path = Path(path)
    kind = kind_of(path)
    if kind == "eyecandies":
        file = _beside(path, "_mask.png")
        return file if file.is_file() else None
    if kind in ("xyz-tiff", "depth"):
        return _named(path.parent.parent / "gt", path.stem)
    for folder in ("gt", "GT"):
        file = path.parent.parent / folder / f"{path.stem}.txt"
        if kind and file.is_file():
            return file
    return None


def narrowed(
    here: Path, folders: Sequence[str], files: Sequence[str]
) -> tuple[list[str], list[str]]:
    """Of what a folder holds, what stands for scans: not their colours, truth and normals again.

    Parameters
    ----------
    here : Path
    folders, files : sequence of str
        Names in it.

    Returns
    -------
    folders, files : list of str
        All of them where no scan has anything beside it.
    """
    pictures = [name for name in files if name.lower().endswith(_PICTURES)]
    bounds = {name.removesuffix(_BOUNDS) for name in files if name.endswith(_BOUNDS)}
    if bounds:
        depths = {f"{stem}{_DEPTH}.png" for stem in bounds}
        return list(folders), [n for n in files if n not in pictures or n in depths]
    if pictures and camera_of(here / CAMERA):
        depths = {name for name in pictures if kind_of(here / name) == "depth"}
        if depths:
            colours = _colours(here)
            apart = colours.name if colours and colours.parent == here else ""
            kept = [name for name in files if name not in pictures or name in depths]
            return [name for name in folders if name != apart], kept
    points = [name for name in folders if _holds_points(here / name, name)]
    return (points, []) if points else (list(folders), list(files))


def _holds_points(folder: Path, name: str) -> bool:
    """Whether a folder holds the points of which others beside it have the colour and the truth."""
    if name != "xyz" and camera_of(folder / CAMERA) is None:
        return False
    try:
        first = min((p for p in folder.iterdir() if p.suffix.lower() in (".png", *_TIFF)),
                    default=None)  # fmt: skip
    except OSError:
        return False
    kind = kind_of(first) if first is not None else None
    return kind == "depth" or (name == "xyz" and kind == "xyz-tiff")


def _colours(folder: Path) -> Path | None:
    """The folder of the colour pictures of a folder of depth pictures, as the camera says."""
    file = camera_of(folder / CAMERA)
    try:
        said = json.loads(file.read_bytes()) if file else None
    except (OSError, ValueError, RecursionError):
        return None  # reading the scan says what is wrong
    named = said.get("colour") if isinstance(said, dict) else None
    if not isinstance(named, str) or not named or "\0" in named or Path(named).is_absolute():
        return None
    place = folder
    for step in Path(named).parts:
        place = place.parent if step == ".." else place / step
    return place


def _named(folder: Path, stem: str) -> Path | None:
    """A picture of a name, whatever its suffix."""
    for suffix in _PICTURES:
        for written in (suffix, suffix.upper()):
            if (file := folder / f"{stem}{written}").is_file():
                return file
    return None


def _beside(depth: Path, ending: str) -> Path:
    return depth.with_name(depth.stem.removesuffix(_DEPTH) + ending)


def _tiff(file: BinaryIO) -> tuple[int, int, int]:
    """Channels, bits and sample format of a TIFF's first picture (TIFF 6.0; BigTIFF)."""
    head = file.read(16)
    order = {b"II": "<", b"MM": ">"}.get(head[:2], "")
    version = struct.unpack(order + "H", head[2:4])[0] if order else 0
    if version not in (42, 43):
        raise ValueError("no TIFF")
    # BigTIFF has 8 bytes for places and numbers where TIFF has 4, and 2 for the number of entries.
    place, width, number = ("Q", 8, 8) if version == 43 else ("I", 4, 2)
    file.seek(struct.unpack(order + place, head[-8:] if width == 8 else head[4:8])[0])
    count = struct.unpack(order + {8: "Q", 2: "H"}[number], file.read(number))[0]
    found = {_CHANNELS: 1, _BITS: 1, _FORMAT: 1}
    for _ in range(min(count, _TAGS)):
        entry = file.read(4 + 2 * width)
        tag, kind, many = struct.unpack(order + "HH" + place, entry[: 4 + width])
        if tag in found and kind == _SHORT:
            value = entry[4 + width :]
            if 2 * many > width:  # elsewhere: all channels are alike, so that the first says it
                back = file.tell()
                file.seek(struct.unpack(order + place, value)[0])
                value = file.read(2)
                file.seek(back)
            found[tag] = struct.unpack(order + "H", value[:2])[0]
    return found[_CHANNELS], found[_BITS], found[_FORMAT]
