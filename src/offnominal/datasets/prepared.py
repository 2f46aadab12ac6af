"""A prepared copy of a set of scans, written file by file, which goes on where it was stopped.

Scans on a grid are written in the layout of MVTec 3D-AD, whatever theirs is, clouds in their own::

    OUT/CATEGORY/SPLIT/DEFECT/{xyz/000.tiff, rgb/000.png, gt/000.png}
    OUT/CATEGORY/{train,test}/181_bulge.ply, OUT/CATEGORY/gt/181_bulge.txt
    OUT/prepared.json           what was done
"""

import hashlib
import io
import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from offnominal.atomic import write_atomically
from offnominal.datasets.dataset import Dataset, open_dataset
from offnominal.datasets.masks import sample_mask
from offnominal.datasets.sample import Sample
from offnominal.errors import DatasetError, ImageError, OptionError
from offnominal.extras import needs
from offnominal.paths import find_images
from offnominal.scans.files import Unit, is_scan_file, mask_of, read_scan
from offnominal.scans.places import kind_of
from offnominal.scans.prepare import (
    largest_cluster,
    padded,
    plane_of_border,
    resized,
    without_plane,
)
from offnominal.scans.scan import Scan

__all__ = ["Settings", "prepare_dataset", "prepared_scan"]

_RECORD, _FORMAT = "prepared.json", 1
_POINT_FOLDERS = ("xyz", "depth")  # whose files have a folder beside that of the colours
_RANSAC = 0.8  # of the distance within which points go: the paper's 4 mm of 5 mm


@dataclass(frozen=True)
class Settings:
    """What is done to each scan.

    Attributes
    ----------
    plane : bool
        Remove the plane at the edges of the picture.
    plane_distance : float
        Metres from it within which points go.
    largest : bool
        Keep the largest object only, in the middle of a square whose side is a multiple of 100.
    size : int or None
        Longer side of the grid, by nearest points; None: as it is.
    unit : {"m", "mm"}
        Of the files; what is written is in metres.
    seed : int
        Of the search for the plane.
    """

    plane: bool = True
    plane_distance: float = 0.005
    largest: bool = True
    size: int | None = None
    unit: Unit = "m"
    seed: int = 0


class _Job(NamedTuple):
    sample: Sample
    target: Path  # of the points


def prepared_scan(scan: Scan, settings: Settings) -> tuple[Scan, Callable[[NDArray[Any]], Any]]:
    """One scan prepared, and what does to its mask what was done to its grid."""
    grid = scan.organised
    if settings.plane:
        found = plane_of_border(
            scan, distance=_RANSAC * settings.plane_distance, seed=settings.seed
        )
        scan = scan if found is None else without_plane(scan, found, settings.plane_distance)
    if settings.largest:
        scan = largest_cluster(scan)

    def fit(array: NDArray[Any]) -> NDArray[Any]:
        if not grid:
            return array
        whole: NDArray[Any] = padded(array) if settings.largest else array
        if settings.size is None:
            return whole
        scale = settings.size / max(whole.shape[:2])
        height, width = (max(2, round(side * scale)) for side in whole.shape[:2])
        return resized(whole, (height, width))

    colour = None if scan.colour is None else fit(scan.colour)
    return Scan(np.ascontiguousarray(fit(scan.points)), colour), fit


def prepare_dataset(
    source: Path,
    output: Path,
    settings: Settings,
    on_error: Callable[[ImageError], None],
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Write a prepared copy of a data set of scans, or of a folder of scans without labels.

    Scans that are there already are not made again.

    Parameters
    ----------
    source, output : Path
    settings : Settings
    on_error : callable
        Called with the error of each scan or mask that cannot be used; it is left out.
    progress : callable or None
        Called with how many are done, of how many.

    Returns
    -------
    int
        How many scans are there now.

    Raises
    ------
    OptionError
        If there is no scan, the output lies in the source, holds something else or was made with
        other settings, or a cloud is to lose its plane.
    """
    if (settings.size is not None and settings.size < 2) or settings.plane_distance <= 0:
        raise OptionError("--size is 2 or more, and --plane-distance positive")
    if output.resolve() == source.resolve() or source.resolve() in output.resolve().parents:
        raise OptionError(f"{output}: lies in {source}, and would be read again; name another")
    jobs = _jobs(source, output)
    if settings.plane and (clouds := [j for j in jobs if j.target.suffix == ".ply"]):
        raise OptionError(
            f"{clouds[0].sample.image}: a cloud without a grid has no border to find a plane on; "
            "use --no-plane"
        )
    _claim(output, settings, source, jobs)
    done = 0
    for number, job in enumerate(jobs, 1):
        if not job.target.exists():
            try:
                _write(job, settings)
            except ImageError as error:
                on_error(error)
            except DatasetError as error:
                name, _, reason = str(error).partition(": ")
                on_error(ImageError(name, reason))
        done += job.target.exists()
        if progress:
            progress(number, len(jobs))
    return done


def _jobs(source: Path, output: Path) -> list[_Job]:
    """The scans of a data set, or of a folder; masks of a folder lie beside them."""
    dataset: Dataset | None = None
    try:
        dataset = open_dataset(source)
        samples: Iterable[Sample] = dataset.samples
    except DatasetError:
        if not source.is_dir():
            raise
        samples = [_loose(path) for path in find_images(source)]
    found = [s for s in samples if is_scan_file(s.image)]
    if not found:
        raise OptionError(f"{source}: holds no scans; offnominal datasets check says what it holds")
    jobs, taken = [], dict[Path, Path]()
    for sample in found:
        target = output / _place(sample, source, dataset)
        if target in taken:
            raise OptionError(
                f"{sample.image} and {taken[target]}: both would become {target}; rename one"
            )
        taken[target] = sample.image
        jobs.append(_Job(sample, target))
    return jobs


def _loose(path: Path) -> Sample:
    mask = mask_of(path)
    return Sample(path, int(mask is not None), mask, "", "", "")


def _place(sample: Sample, source: Path, dataset: Dataset | None) -> Path:
    image = sample.image
    if dataset is not None and dataset.layout == "eyecandies":
        home = Path(*([sample.category] if sample.category != source.name else []),
                    sample.split, sample.defect)  # fmt: skip
        return home / "xyz" / f"{image.stem.removesuffix('_depth')}.tiff"
    if not image.is_relative_to(source):
        raise OptionError(f"{image}: lies outside of {source}; put all scans into one folder")
    relative = image.relative_to(source)
    if kind_of(image) in ("ply", "pcd", "text"):
        return relative.with_suffix(".ply")
    apart = relative.parent.name in _POINT_FOLDERS or (
        relative.parent == Path() and source.name in _POINT_FOLDERS
    )
    home = relative.parent.parent if apart else relative.parent
    return home / "xyz" / f"{image.stem}.tiff"


def _claim(output: Path, settings: Settings, source: Path, jobs: list[_Job]) -> None:
    """Note what is done here, or see that the same was begun."""
    names = [
        f"{job.target.relative_to(output).as_posix()} {job.sample.image.stat().st_size}"
        for job in jobs
    ]
    digest = hashlib.sha256("\n".join(sorted(names)).encode("utf-8", "surrogateescape"))
    record = {"format": _FORMAT, "settings": asdict(settings), "scans": digest.hexdigest()}
    file = output / _RECORD
    try:
        known = json.loads(file.read_bytes()) if file.is_file() else None
    except (OSError, ValueError, RecursionError) as error:
        raise OptionError(f"{file}: damaged ({str(error)[:100]}); name another folder") from error
    if known is not None and known != record:
        raise OptionError(
            f"{output}: was prepared with other options, or of other scans; give the same to go "
            "on, or name another folder"
        )
    if known is None and output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise OptionError(
            f"{output}: is there, and holds no {_RECORD} of an earlier run; name an empty folder"
        )
    _into(file, json.dumps(record, indent=1).encode())


def _write(job: _Job, settings: Settings) -> None:
    sample, target = job
    scan = read_scan(sample.image, settings.unit)
    height, width = scan.points.shape[:2]
    mask = sample_mask(sample, (height, width)) if sample.label else None
    made, fit = prepared_scan(scan, settings)
    if not made.measured.any():
        reason = "nothing is left of it; give a smaller --plane-distance, or --no-plane"
        raise ImageError(sample.image, reason)
    if target.suffix == ".ply":
        _write_cloud(target, scan, made, mask)
        return
    home = target.parent.parent
    # The points last: where they are, all of a scan is.
    if mask is not None:
        _into(home / "gt" / f"{target.stem}.png", _png(fit(mask).astype(np.uint8) * 255))
    if made.colour is not None:
        _into(home / "rgb" / f"{target.stem}.png", _png(made.colour))
    tifffile = needs("tifffile", "3d", "writing a scan")
    stored = io.BytesIO()
    points = np.where(made.measured[..., None], made.points, np.float32(0))
    tifffile.imwrite(stored, points, photometric="rgb", metadata=None)
    _into(target, stored.getvalue())


def _write_cloud(target: Path, scan: Scan, made: Scan, mask: NDArray[np.bool_] | None) -> None:
    if mask is not None:
        kept = np.isin(_rows(scan.points), _rows(made.points))
        truth = np.column_stack([scan.points[0][kept], mask[0][kept]])
        stored = io.BytesIO()
        np.savetxt(stored, truth, fmt=("%.9g", "%.9g", "%.9g", "%d"))
        _into(target.parent.parent / "gt" / f"{target.stem}.txt", stored.getvalue())
    fields = [(axis, "<f4") for axis in "xyz"]
    if made.colour is not None:
        fields += [(name, "u1") for name in ("red", "green", "blue")]
    rows = np.zeros(made.points.shape[1], fields)
    for number, axis in enumerate("xyz"):
        rows[axis] = made.points[0, :, number]
    if made.colour is not None:
        for number, name in enumerate(("red", "green", "blue")):
            rows[name] = made.colour[0, :, number]
    kinds = {"<f4": "float", "u1": "uchar"}
    head = ["ply", "format binary_little_endian 1.0", f"element vertex {len(rows)}"]
    head += [f"property {kinds[kind]} {name}" for name, kind in fields]
    _into(target, ("\n".join([*head, "end_header"]) + "\n").encode() + rows.tobytes())


def _rows(points: NDArray[np.float32]) -> NDArray[Any]:
    """Each point (1, N, 3) as one value that can be looked up."""
    return np.ascontiguousarray(points[0]).view(np.dtype((np.void, 12))).reshape(-1)


def _png(picture: NDArray[np.uint8]) -> bytes:
    stored = io.BytesIO()
    Image.fromarray(picture).save(stored, "png")
    return stored.getvalue()


def _into(path: Path, content: bytes) -> None:
    """Write a file, and the folders above it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OptionError(f"{path.parent}: cannot be made ({error.strerror})") from error
    write_atomically(path, content)
