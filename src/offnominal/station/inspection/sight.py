"""Whether the station sees what it saw when it was shown good parts.

A verdict on a picture that is dark, blurred, frozen or of something else is worth nothing. Four
plain measures of each picture are held against those of the product's references; whatever is far
outside them makes the part "not inspected".
"""

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from offnominal.station.inspection.reasons import reason

__all__ = ["CHECKS", "Check", "Look", "Usual", "look"]

Check = Literal["dark", "bright", "blurred", "moved", "size", "frozen"]
CHECKS: tuple[Check, ...] = get_args(Check)

_SIDE = 256  # grey pictures are measured at this size at most
_GRID = 16  # cells a side of the coarse picture
_SATURATED = 250  # grey values from here on tell nothing apart
_DARKER = 0.5  # times the darkest reference
_BRIGHTER = 0.25  # share of saturated pixels beyond the brightest reference's
_BLURRED = 0.25  # times the least sharp reference
_ALIKE = 0.7  # correlation of references with their mean, from which on they lie all alike
_MOVED = 0.3  # correlation below the least of them


@dataclass(frozen=True, eq=False)
class Look:
    """What of a picture is held against the references.

    Attributes
    ----------
    brightness : float
        Mean grey value on [0, 1].
    saturated : float
        Share of pixels that are as good as white.
    sharpness : float
        Variance of the Laplacian of grey values on [0, 1], times 1000, at 256 pixels at most.
    size : tuple of int
        Height and width.
    coarse : float32 array of shape (16, 16)
        Mean grey values of cells.
    """

    brightness: float
    saturated: float
    sharpness: float
    size: tuple[int, int]
    coarse: NDArray[np.float32]


def look(pixels: NDArray[Any]) -> Look:
    """Measure a picture, uint8 (H, W, 3); of a scan, float32 (H, W, 6), its colour."""
    colour = pixels[..., :3]
    if colour.dtype != np.uint8:
        colour = np.nan_to_num(colour).clip(0, 255).astype(np.uint8)
    height, width = colour.shape[:2]
    image = Image.fromarray(np.ascontiguousarray(colour)).convert("L")
    scale = min(1.0, _SIDE / max(height, width))
    small = (max(1, round(scale * width)), max(1, round(scale * height)))
    grey = np.asarray(image.resize(small, Image.Resampling.BOX), np.float32) / np.float32(255)
    coarse = image.resize((_GRID, _GRID), Image.Resampling.BOX)
    return Look(
        brightness=float(grey.mean()),
        saturated=float((grey >= _SATURATED / 255).mean()),
        sharpness=1000 * float(_laplacian(grey).var()),
        size=(height, width),
        coarse=np.asarray(coarse, dtype=np.float32) / np.float32(255),
    )


def _laplacian(grey: NDArray[np.float32]) -> NDArray[np.float32]:
    if min(grey.shape) < 3:
        return np.zeros((1, 1), np.float32)
    around = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:]
    return around - 4 * grey[1:-1, 1:-1]


def _correlation(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    a, b = one - one.mean(), other - other.mean()
    scale = float(np.sqrt((a * a).sum() * (b * b).sum()))
    return float((a * b).sum()) / scale if scale > 1e-6 else 0.0


@dataclass(frozen=True)
class Usual:
    """What pictures of a product's good parts look like; plain values, kept with each version.

    Attributes
    ----------
    darkest, least_sharp : float
        The lowest brightness and sharpness among the references.
    saturated : float
        The largest share of saturated pixels.
    size : tuple of int or None
        Height and width, where all references have the same.
    coarse : list of float or None
        Their mean coarse picture, row by row, where all of them lie alike.
    alike : float
        The lowest correlation of a reference with the mean of the others.
    """

    darkest: float
    least_sharp: float
    saturated: float
    size: tuple[int, int] | None
    coarse: list[float] | None
    alike: float

    @classmethod
    def of(cls, looks: Collection[Look]) -> "Usual | None":
        """What several references have in common; None of none."""
        if not looks:
            return None
        coarse = np.stack([one.coarse for one in looks])
        total, sizes = coarse.sum(axis=0), {one.size for one in looks}
        alike = 0.0
        if len(looks) > 1:
            alike = min(_correlation(one, (total - one) / (len(looks) - 1)) for one in coarse)
        mean = [round(float(value), 4) for value in coarse.mean(axis=0).ravel()]
        return cls(
            darkest=min(one.brightness for one in looks),
            least_sharp=min(one.sharpness for one in looks),
            saturated=max(one.saturated for one in looks),
            size=next(iter(sizes)) if len(sizes) == 1 else None,
            coarse=mean if alike >= _ALIKE else None,
            alike=alike,
        )

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any] | None) -> "Usual | None":
        """The same again; None of what is none."""
        if not plain:
            return None
        size = plain["size"]
        return cls(**(dict(plain) | {"size": tuple(size) if size else None}))

    def fault(self, seen: Look, off: Collection[str] = ()) -> str:
        """Why a picture is not to be judged, as :func:`~.reasons.reason` gives it; empty: it is.

        Parameters
        ----------
        seen : Look
        off : collection of str
            Checks that are switched off.
        """
        if "size" not in off and self.size is not None and seen.size != self.size:
            found, usual = (f"{one[1]} x {one[0]}" for one in (seen.size, self.size))
            return reason("size", f"{found} pixels, not {usual}")
        if "dark" not in off and seen.brightness < _DARKER * self.darkest:
            told = f"mean grey value {seen.brightness:.3f}, references {self.darkest:.3f} and more"
            return reason("dark", told)
        if "bright" not in off and seen.saturated > self.saturated + _BRIGHTER:
            told = f"{seen.saturated:.0%} of it is white, of the references {self.saturated:.0%}"
            return reason("bright", told)
        if "blurred" not in off and seen.sharpness < _BLURRED * self.least_sharp:
            told = f"sharpness {seen.sharpness:.3g}, references {self.least_sharp:.3g} and more"
            return reason("blurred", told)
        if "moved" not in off and self.coarse is not None:
            mean = np.array(self.coarse, np.float32).reshape(_GRID, _GRID)
            if (found_alike := _correlation(seen.coarse, mean)) < self.alike - _MOVED:
                told = f"correlation {found_alike:.2f}, references {self.alike:.2f} and more"
                return reason("moved", told)
        return ""
