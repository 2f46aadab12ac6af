"""Reading scans: whatever the format, points in metres and colours come out, or an error.

What is missing is NaN from here on: in the files it is zero in all three coordinates, or NaN, or
infinite.
"""

import os
import re
import stat
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from offnominal.errors import ImageError, MissingExtraError, OptionError
from offnominal.scans.camera import points_of, read_camera
from offnominal.scans.colour import read_colour
from offnominal.scans.limits import check_claim
from offnominal.scans.pcd import read_pcd
from offnominal.scans.places import Kind, camera_of, colour_of, is_scan_file, kind_of, mask_of
from offnominal.scans.ply import read_ply
from offnominal.scans.scan import Scan, is_scan
from offnominal.scans.text import Cloud, read_text
from offnominal.scans.tiff import read_depth_tiff, read_points_tiff

__all__ = ["FEWEST", "Unit", "colour_of", "is_scan_file", "mask_of", "read_scan"]

Unit = Literal["m", "mm"]

FEWEST = 4
"""Points that a scan needs: three lie in a plane whatever they are of."""

_EYECANDIES_FOCAL = 711.11  # pixels; one camera took all pictures (eyecan-ai.github.io/eyecandies)
_CLOUDS = {"ply": read_ply, "pcd": read_pcd, "text": read_text}
_AGAIN = "copy, export or record it again"


def read_scan(path: str | os.PathLike[str], unit: Unit = "m") -> Scan:
    """Read a scan: its points, and the colours beside them if there are any.

    Parameters
    ----------
    path : str or path
        The file of its points: a TIFF of x, y, z as MVTec 3D-AD has them; a depth picture with a
        ``camera.json`` in its folder or up to three above; ``NNN_depth.png`` of Eyecandies; PLY;
        PCD; text (``.xyz``, ``.txt``).
    unit : {"m", "mm"}
        Of the coordinates in the file. Of depth pictures the camera's scale says it, and this is
        not looked at.

    Returns
    -------
    Scan
        In metres. Of a cloud without a grid what is missing is left out.

    Raises
    ------
    ImageError
        If the file is no scan, or is missing, empty, damaged or truncated, declares more than it
        holds, has fewer than `FEWEST` points or points that all lie in one place, or if what lies
        beside it cannot be used.
    MissingExtraError
        If the package that reads its format is not installed.
    OptionError
        If the unit is neither.
    """
    if unit not in get_args(Unit):
        raise OptionError(f"unit={unit!r}: give 'm' or 'mm'")
    path = Path(path)
    _check_file(path)
    try:
        kind = kind_of(path)
        if kind is None:
            raise ImageError(path, _no_scan(path))
        cloud = _read(path, kind)
        points = cloud.points
        if unit == "mm" and kind not in ("depth", "eyecandies"):
            points = points / np.float32(1000)
        scan = _usable(Scan(np.ascontiguousarray(points, np.float32), cloud.colour), path)
        if (beside := colour_of(path)) is not None:
            scan = Scan(scan.points, read_colour(beside, scan.points.shape[:2]))
    except (ImageError, MissingExtraError):
        raise
    except MemoryError as error:
        raise ImageError(path, "does not fit in memory; thin it out") from error
    # A damaged header makes decoders raise nearly anything, as in `read_image`.
    except Exception as error:
        detail = re.sub(r"\s+", " ", str(error)).strip()[:200] or type(error).__name__
        raise ImageError(path, f"is truncated or damaged ({detail}); {_AGAIN}") from error
    return scan


def _check_file(path: Path) -> None:
    try:
        found = path.stat()
    except FileNotFoundError as error:
        raise ImageError(path, "does not exist; check the path") from error
    except (OSError, ValueError) as error:
        raise ImageError(path, f"cannot be opened ({error}); check the path") from error
    if not stat.S_ISREG(found.st_mode):
        raise ImageError(path, "is not a file; name the file of a scan's points")
    if not found.st_size:
        raise ImageError(path, f"is empty (0 bytes); {_AGAIN}")


def _no_scan(path: Path) -> str:
    if path.suffix.lower() in (".png", ".tif", ".tiff"):
        return (
            "is no scan: neither a TIFF of three floating-point channels nor a depth picture of 16 "
            "bits with a camera.json in its folder or up to three above; see docs/scans.md"
        )
    return "is no scan; give .ply, .pcd or .xyz, a TIFF of points, or a depth picture"


def _read(path: Path, kind: Kind) -> Cloud:
    if kind == "xyz-tiff":
        return Cloud(read_points_tiff(path))
    if kind == "eyecandies":
        return Cloud(_eyecandies(path))
    if kind == "depth":
        file = camera_of(path)
        assert file is not None  # else it were no depth picture
        camera = read_camera(file)
        if path.suffix.lower() == ".png":
            counts = _depth_png(path).astype(np.float32)
        else:
            counts = read_depth_tiff(path)
        return Cloud(points_of(counts * np.float32(camera.scale), camera.intrinsics))
    return _CLOUDS[kind](path)


def _depth_png(path: Path) -> NDArray[np.uint16]:
    with Image.open(path) as picture:
        pixels = picture.width * picture.height
        check_claim(path, "pixels", pixels, 2 * pixels, path.stat().st_size, packed=True)
        return np.asarray(picture).astype(np.uint16)


def _eyecandies(path: Path) -> NDArray[np.float32]:
    """Points of a picture whose levels run from the least depth to the largest, in metres."""
    bounds = path.with_name(path.stem.removesuffix("_depth") + "_info_depth.yaml")
    text = bounds.read_text(encoding="utf-8", errors="replace")[:4096]
    found = dict(re.findall(r"\b(min|max)\s*:\s*([-+.\deE]+)", text))
    try:
        least, most = float(found["min"]), float(found["max"])
    except (KeyError, ValueError) as error:
        reason = "says no min and max of the depth; copy it again"
        raise ImageError(bounds, reason) from error
    if not 0 <= least < most < 1e6:
        raise ImageError(bounds, f"says a depth from {least} to {most} m; copy it again")
    levels = _depth_png(path)
    depth = (levels / 65535 * (most - least) + least).astype(np.float32)
    height, width = depth.shape
    return points_of(depth, (_EYECANDIES_FOCAL, _EYECANDIES_FOCAL, width / 2, height / 2))


def _there(points: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Where something was measured: all coordinates finite, and not all zero."""
    there: NDArray[np.bool_] = np.isfinite(points).all(2) & (points != 0).any(2)
    return there


def _usable(scan: Scan, name: str | os.PathLike[str]) -> Scan:
    """With NaN for what is missing, and of a cloud without a grid only what is there."""
    there = _there(scan.points)
    points = np.where(there[..., None], scan.points, np.float32(np.nan))
    scan = Scan(np.ascontiguousarray(points, np.float32), scan.colour)
    _check_points(name, scan)
    if not scan.organised and scan.missing:
        kept = scan.measured[0]
        colours = None if scan.colour is None else scan.colour[:, kept]
        scan = Scan(scan.points[:, kept], colours)
    return scan


def _check_points(path: str | os.PathLike[str], scan: Scan) -> None:
    there = scan.points[scan.measured]
    if not len(there):
        raise ImageError(path, "holds no points: all are missing; export it again, or leave it out")
    if len(there) < FEWEST:
        told = "1 point" if len(there) == 1 else f"{len(there)} points"
        raise ImageError(path, f"holds {told}; a scan needs at least {FEWEST}: leave it out")
    if not (np.ptp(there, axis=0) > 0).any():
        raise ImageError(path, "holds points that all lie in one place; export it again")


def scan_of(source: object, name: str) -> Scan | None:
    """A scan that is given as such, as an array or by its file; None: it is something else.

    What is missing is NaN, however it was given. Errors are those of :func:`read_scan`.
    """
    if isinstance(source, Scan):
        return _usable(source, name)
    if isinstance(source, np.ndarray):
        return _usable(_of_array(source, name), name) if is_scan(source) else None
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        return read_scan(path) if is_scan_file(path) else None
    return None


def _of_array(array: NDArray[np.float32], name: str) -> Scan:
    colour = array[..., :3]
    without = np.isnan(colour)
    if not without.all() and (without.any() or colour.min() < 0 or colour.max() > 255):
        raise ImageError(
            name,
            "the first three channels of a scan are its colour, from 0 to 255, or NaN in all of "
            "its pixels; the last three are x, y and z",
        )
    return Scan.of(array)
