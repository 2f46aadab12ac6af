"""The pictures in a folder of results: what is drawn of a prediction, and where it may go."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from offnominal.errors import OptionError
from offnominal.paths import is_own
from offnominal.pictures import save_picture

if TYPE_CHECKING:
    from offnominal.prediction import Prediction

__all__ = ["SUFFIXES", "check_target", "draw", "place"]


def _mask(prediction: "Prediction") -> NDArray[np.uint8]:
    limit = prediction.region_threshold
    assert limit is not None, "refused before the run"
    return ((prediction.anomaly_map > limit) * 255).astype(np.uint8)


_PICTURES: dict[str, tuple[str, Callable[["Prediction"], NDArray[Any]]]] = {
    "overlay": (".png", lambda prediction: prediction.picture()),
    "map": (".tiff", lambda prediction: prediction.anomaly_map),  # 32-bit float
    "mask": (".png", _mask),
    "thumbnail": (".jpg", lambda prediction: prediction.thumbnail()),  # what the page shows
}

# What lies in the folder of each kind: of a cloud its points and the page that turns them.
SUFFIXES: dict[str, tuple[str, ...]] = {kind: (suffix,) for kind, (suffix, _) in _PICTURES.items()}
SUFFIXES["cloud"] = (".ply", ".html")


def draw(
    prediction: "Prediction", kinds: frozenset[str], name: str, where: Callable[[str], Path]
) -> dict[str, str]:
    """Draw what is asked for of a prediction; returns the kinds and their files in the folder.

    ``where`` says of each file where to write it, or raises.
    """
    drawn: dict[str, str] = {}
    for kind in [kind for kind in _PICTURES if kind in kinds]:
        suffix, picture = _PICTURES[kind]
        drawn[kind] = f"{kind}s/{name}{suffix}"
        save_picture(where(drawn[kind]), picture(prediction))
    if "cloud" in kinds:
        drawn["cloud"] = f"clouds/{name}.ply"
        path = where(drawn["cloud"])
        where(drawn["cloud"].removesuffix(".ply") + ".html")
        _write_cloud(prediction, path)
    return drawn


def place(folder: Path, inside: str, name: str) -> Path:
    """A file's place in a folder of results, whose real path is ``inside``, with its own folder."""
    target = check_target(folder, inside, name)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror or error
        raise OptionError(f"{target.parent}: cannot be made ({reason})") from error
    return target


def check_target(folder: Path, inside: str, name: str) -> Path:
    """Where a picture goes, if that is inside the folder and nothing of the user's."""
    target = folder / name
    real = os.path.realpath(target.parent)
    if os.path.commonpath([real, inside]) != inside:
        raise OptionError(f"{target.parent}: leads out of {folder}; take the link away")
    if os.path.lexists(target) and not is_own(target):
        raise OptionError(f"{target}: not drawn by Offnominal; name another folder with -o")
    return target


def _write_cloud(prediction: "Prediction", path: Path) -> None:
    """The points of a scan with their scores, and the page that turns them beside it."""
    scores, points = prediction.point_scores, prediction.points
    if points is None or scores is None:
        raise OptionError(
            f"--save cloud: {prediction.source} is a picture and has no points; leave cloud out"
        )
    from offnominal.captions import Verdict
    from offnominal.report.clouds import write_cloud_page
    from offnominal.scans.cloud import write_ply
    from offnominal.scans.scan import Scan

    seen = prediction.scan
    colour = prediction.image if seen is None else Scan.of(seen).colour
    write_ply(path, points, scores, colour, prediction.colour_range)
    verdict = Verdict(prediction.is_anomalous, prediction.score, prediction.threshold)
    write_cloud_page(
        path.with_suffix(".html"), Scan(points, colour), scores, prediction.source,
        ": ".join(verdict.words()) + ".", prediction.colour_range, prediction.pixel_threshold,
    )  # fmt: skip
