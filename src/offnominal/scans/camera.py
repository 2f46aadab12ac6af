"""A depth camera, as a ``camera.json`` describes it, and the points that a depth picture shows."""

import math
from pathlib import Path
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from offnominal.errors import ImageError

__all__ = ["Camera", "points_of", "read_camera"]

_LARGEST = 2**16  # bytes of a camera.json
_Positive = Annotated[float, Field(gt=0, lt=1e9, allow_inf_nan=False)]
_Finite = Annotated[float, Field(ge=-1e6, le=1e6, allow_inf_nan=False)]


class Camera(BaseModel):
    """A pinhole camera without distortion.

    Attributes
    ----------
    scale : float
        Metres that one count of the depth picture stands for: 0.001 where it holds millimetres,
        1 where it holds metres.
    intrinsics : (fx, fy, cx, cy)
        Focal lengths and principal point in pixels; the centre of the first pixel is (0, 0).
    colour : str or None
        Folder of the colour pictures, seen from that of the depth pictures: ``../rgb``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    scale: _Positive
    intrinsics: Annotated[tuple[_Positive, _Positive, _Finite, _Finite], Field(strict=False)]
    colour: str | None = None

    @field_validator("colour")
    @classmethod
    def _is_beside(cls, colour: str | None) -> str | None:
        """Refuse a folder that is not seen from here."""
        if colour is not None and (not colour or "\0" in colour or Path(colour).is_absolute()):
            raise ValueError('give a folder as seen from the depth pictures, such as "../rgb"')
        return colour


def read_camera(file: Path) -> Camera:
    """Read a ``camera.json``.

    Raises
    ------
    ImageError
        If it cannot be read, or says something else than a camera's scale, intrinsics and colours.
    """
    try:
        if file.stat().st_size > _LARGEST:
            raise ImageError(file, "is too long for the description of a camera; write it anew")
        return Camera.model_validate_json(file.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))[:40] or "the file"
        raise ImageError(
            file,
            f'{where}: {first["msg"][:200]}; a camera is {{"scale": metres for each count, '
            '"intrinsics": [fx, fy, cx, cy], "colour": "../rgb"}',
        ) from error
    except OSError as error:
        reason = f"cannot be read ({error.strerror}); the depth pictures need it"
        raise ImageError(file, reason) from error


def points_of(
    depth: NDArray[np.float32], intrinsics: tuple[float, float, float, float]
) -> NDArray[np.float32]:
    """The points of a depth picture: x to the right, y down, z away from the camera.

    Parameters
    ----------
    depth : float32 array of shape (H, W)
        Metres along the camera's axis; NaN, and what is not positive, is missing.
    intrinsics : (fx, fy, cx, cy)
        In pixels.

    Returns
    -------
    float32 array of shape (H, W, 3)
        NaN in all three coordinates where there is no depth.
    """
    fx, fy, cx, cy = intrinsics
    with np.errstate(invalid="ignore"):
        z = np.where((depth > 0) & np.isfinite(depth), depth, np.float32(math.nan))
    columns = (np.arange(depth.shape[1]) - cx) / fx
    rows = (np.arange(depth.shape[0]) - cy) / fy
    return np.stack([z * columns, z * rows[:, None], z], axis=2).astype(np.float32)
