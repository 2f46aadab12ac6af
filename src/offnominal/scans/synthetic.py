"""Made scans of made parts, good and damaged, with exact truth: for tests, trials and figures.

A part (:data:`~offnominal.scans.shapes.SHAPES`) lies or hangs before a stereo camera, each at a
slightly different place and angle and with a texture of its own. Damage is done to the part before
it is scanned, so its truth is the difference of two scenes without noise. The same seed gives the
same scan with the same versions of NumPy and SciPy.
"""

import csv
import io
import shutil
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from offnominal.errors import DatasetError, OptionError
from offnominal.extras import needs
from offnominal.scans.damage import damaged, soft, stained, truth
from offnominal.scans.scan import Scan
from offnominal.scans.shapes import SHAPES, Heights, Pose, Seen, Shape
from offnominal.scans.stereo import Floats, measured, rays

__all__ = ["DEFECTS", "Made", "draw_scan", "write_scans"]

DEFECTS = ("dent", "bump", "missing", "extra", "warp", "stain")
"""Kinds of damage: dents and bumps are smooth, missing and extra material has edges, a warp lifts
an end, and a stain is in colour only."""

_SEEN = 60  # points of a damage at least, at 224 pixels; else another place is tried
_LIGHT = np.array([-0.45, -0.55, -0.70])  # from the part to the lamp, in the camera's coordinates


@dataclass(frozen=True, eq=False)
class Made:
    """A scan and the truth of it.

    Attributes
    ----------
    scan : Scan
    mask : bool array of shape (H, W)
        What is damaged, whether it was measured or not.
    depth : float32 array of shape (H, W)
        Millimetres by which the surface is nearer to the camera along z than the undamaged one:
        negative where material is missing, 0 where nothing is damaged. Without noise.
    defect : str
        One of :data:`DEFECTS`, or ``good``.
    depth_mm : float
        How deep or high the damage was made, along the surface's normal; 0 of a good part and of a
        stain.
    """

    scan: Scan
    mask: NDArray[np.bool_]
    depth: NDArray[np.float32]
    defect: str
    depth_mm: float


def draw_scan(
    shape: str,
    seed: int,
    index: int,
    defect: str = "good",
    depth_mm: float = 1.0,
    noise_mm: float = 0.1,
    size: int = 224,
    split: str = "train",
) -> Made:
    """Scan one made part.

    Parameters
    ----------
    shape : {"plate", "bottle", "spring"}
        Of about 90 x 60, 100 x 34 and 80 x 26 mm; the spring hangs free, the others lie on a table.
    seed, index : int
        Not negative; each pair gives another part in another place.
    defect : str
        ``good``, or one of :data:`DEFECTS`.
    depth_mm : float
        Depth or height of the damage in millimetres, above 0 and up to 5.
    noise_mm : float
        Standard deviation of depth at 0.3 m, in millimetres; it grows with the distance squared.
    size : int
        Pixels of a side, 32 to 1024; a picture shows 128 mm at 0.32 m.
    split : str
        Scans of another split are other parts.

    Raises
    ------
    OptionError
        If one of them is unknown or outside its range.
    """
    if shape not in SHAPES:
        raise OptionError(f"shape is {shape!r}; choose among {', '.join(SHAPES)}")
    if defect not in ("good", *DEFECTS):
        raise OptionError(f"defect is {defect!r}; choose good, or among {', '.join(DEFECTS)}")
    _check(seed, index, (depth_mm,), noise_mm, size)
    kind = SHAPES[shape]
    words = [zlib.crc32(word.encode()) for word in (shape, split, defect)]
    rng = np.random.default_rng([seed, *words, index])
    solid, view = kind.solid(), rays(size)
    pose = _pose(kind, rng)
    if isinstance(solid, Heights):  # no two castings are the same
        solid = solid.lifted(0.02 * soft(rng, solid.heights.shape, 40))
    good = seen = solid.seen(view, pose)
    mask, depth = np.zeros(view.shape[:2], bool), np.zeros(view.shape[:2], np.float32)
    stain = np.zeros(view.shape[:2])
    deep = 0.0
    if defect == "stain":
        stain, mask = stained(good, size, rng)
    elif defect != "good":
        deep = float(depth_mm)
        least = _SEEN * (size / 224) ** 2
        for _ in range(20):
            seen = damaged(solid, good, kind, defect, deep, size, rng).seen(view, pose)
            mask, depth = truth(good, seen, deep, defect)
            if mask.sum() >= least:
                break
        else:
            raise AssertionError(f"{shape}: no visible {defect} in 20 tries")
    points, facing = _points(seen, view, pose)
    z = measured(seen.z, facing, noise_mm, rng)
    found = (view * z[..., None] / 1000).astype(np.float32)
    return Made(Scan(found, _colour(seen, points, pose, kind, stain, rng)), mask, depth, defect,
                deep)  # fmt: skip


def write_scans(
    root: Path,
    n_train: int = 16,
    n_good: int = 8,
    n_per_defect: int = 6,
    seed: int = 0,
    noise_mm: float = 0.1,
    depths: Sequence[float] = (0.5, 1.0, 2.0),
    size: int = 224,
    shapes: Sequence[str] = tuple(SHAPES),
    defects: Sequence[str] = DEFECTS,
) -> list[Path]:
    """Write a data set in the layout of MVTec 3D-AD.

    ``SHAPE/{train,test}/DEFECT/`` has ``rgb/000.png``, ``xyz/000.tiff`` (float32, metres, zeros
    where nothing was measured) and ``gt/000.png`` (0 or 255). ``SHAPE/truth.csv`` has the depth of
    each damage in millimetres.

    Parameters
    ----------
    root : Path
        Folder to write to; it is made if absent. A shape's folder must not exist yet.
    n_train, n_good, n_per_defect : int
        Scans of each shape: good ones to fit, good ones to test, damaged ones of each kind.
    seed, noise_mm, size
        As :func:`draw_scan` takes them.
    depths : sequence of float
        Millimetres, which the damaged ones of a kind have in turn.
    shapes, defects : sequence of str
        Which, of all that there are.

    Returns
    -------
    list of Path
        The files of points, in the order of writing.

    Raises
    ------
    OptionError
        If an option is out of its range, or tifffile is not installed.
    DatasetError
        If a shape's folder exists, or cannot be written.
    """
    if min(n_train, n_good, n_per_defect) < 0 or not depths:
        raise OptionError("n_train, n_good, n_per_defect: give 0 or more; depths: give one or more")
    _check(seed, 0, depths, noise_mm, size)
    for defect in set(defects) - set(DEFECTS):
        raise OptionError(f"defects has {defect!r}; choose among {', '.join(DEFECTS)}")
    for shape in shapes:
        if shape not in SHAPES:
            raise OptionError(f"shapes has {shape!r}; choose among {', '.join(SHAPES)}")
        if (Path(root) / shape).exists():
            raise DatasetError(f"{Path(root) / shape}: exists already; name another folder")
    written = []
    for shape in shapes:
        # A shape appears under its name only when it is complete.
        home, draft = Path(root) / shape, Path(root) / f".{shape}.partial"
        shutil.rmtree(draft, ignore_errors=True)
        plan = [("train", "good", n) for n in range(n_train)]
        plan += [("test", "good", n) for n in range(n_good)]
        plan += [("test", *each) for each in product(defects, range(n_per_defect))]
        rows: list[tuple[str, str, float]] = []
        for split, defect, number in plan:
            depth = depths[number % len(depths)]
            made = draw_scan(shape, seed, number, defect, depth, noise_mm, size, split)
            folder = Path(split, defect)
            _save(draft / folder, f"{number:03d}", made, truth=split == "test")
            name = folder / "xyz" / f"{number:03d}.tiff"
            rows.append((name.as_posix(), defect, made.depth_mm))
            written.append(home / name)
        text = io.StringIO(newline="")
        csv.writer(text, lineterminator="\n").writerows([("scan", "defect", "depth_mm"), *rows])
        try:
            draft.mkdir(parents=True, exist_ok=True)
            (draft / "truth.csv").write_text(text.getvalue(), encoding="utf-8", newline="")
            draft.rename(home)
        except OSError as error:
            told = f"{home}: cannot be written ({error}); name another folder"
            raise DatasetError(told) from error
    return written


def _check(seed: int, index: int, depths: Sequence[float], noise_mm: float, size: int) -> None:
    if seed < 0 or index < 0:
        raise OptionError(f"seed is {seed} and index {index}: neither may be negative")
    for depth in depths:
        if not 0 < depth <= 5:
            raise OptionError(f"depth is {depth:g} mm: give more than 0, and 5 at most")
    if not 0 <= noise_mm <= 5:
        raise OptionError(f"noise is {noise_mm:g} mm: give 0 to 5")
    if not 32 <= size <= 1024:
        raise OptionError(f"size is {size}: give 32 to 1024 pixels")


def _pose(kind: Shape, rng: np.random.Generator) -> Pose:
    """The part before the camera, up to 4 mm and a few degrees from where it should be."""
    over = Rotation.from_euler("x", 180, degrees=True)  # w towards the camera
    tilt = Rotation.from_euler("xyz", [*rng.uniform(-2.5, 2.5, 2), rng.uniform(-6, 6)], True)
    shift = [*rng.uniform(-4, 4, 2), kind.distance + rng.uniform(-3, 3)]
    return Pose((tilt * over).as_matrix(), np.array(shift))


def _points(seen: Seen, view: Floats, pose: Pose) -> tuple[Floats, Floats]:
    """Normals (H, W, 3) in the camera's coordinates, and their cosine with the way to it."""
    normal = seen.normal @ pose.turn.T
    facing = -(normal * view).sum(-1) / np.linalg.norm(view, axis=-1)
    return normal, np.nan_to_num(facing)


def _colour(
    seen: Seen, normal: Floats, pose: Pose, kind: Shape, stain: Floats, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """The picture: texture that belongs to the part, in soft light from above on the left."""
    shape = seen.z.shape
    lamp = _LIGHT / np.linalg.norm(_LIGHT)
    towards = np.nan_to_num(normal @ lamp)
    half = lamp - np.array([0, 0, 1])
    shine = np.clip(np.nan_to_num(normal @ (half / np.linalg.norm(half))), 0, 1) ** 40
    light = 0.52 + 0.48 * np.clip(towards, 0, 1) + kind.gloss * 0.3 * shine
    # Texture by the place on the part: streaks along it, and clouds.
    grain = soft(rng, (256, 320), 3) * 0.5 + soft(rng, (256, 320), 40)
    streaks = gaussian_filter(rng.standard_normal((256, 320)), (0.6, 14))
    texture = 0.02 * grain + kind.streaks * streaks / streaks.std()
    column = np.clip(np.nan_to_num(seen.at[..., 0]) * 2 + 160, 0, 319).astype(np.intp)
    row = np.clip(np.nan_to_num(seen.at[..., 1]) * 2 + 128, 0, 255).astype(np.intp)
    part = np.asarray(kind.colour) * (1 + texture[row, column])[..., None]
    if kind.name == "bottle":
        part = _printed(part, seen)
    spilt = np.array([0.23, 0.16, 0.10]) * (1 + 0.06 * soft(rng, shape, 5))[..., None]
    part = part + stain[..., None] * (spilt - part)
    near = gaussian_filter(seen.part.astype(float), 0.022 * shape[1])
    speckle = 0.03 * rng.standard_normal(shape) + 0.03 * soft(rng, shape, 6)
    table = np.array([0.20, 0.21, 0.23]) * (1 + speckle - 0.55 * near)[..., None]
    scene = np.where(seen.part[..., None], part * light[..., None], table)
    scene = np.where(np.isfinite(seen.z)[..., None], scene, [0.05, 0.05, 0.06])
    scene = gaussian_filter(scene, (0.45, 0.45, 0)) * rng.uniform(0.94, 1.06)
    scene += 0.008 * rng.standard_normal(scene.shape)
    return np.asarray(np.clip(255 * scene + 0.5, 0, 255), np.uint8)


def _printed(part: Floats, seen: Seen) -> Floats:
    """A bottle's label with two lines and a row of bars, and its white cap."""
    u, v = np.nan_to_num(seen.at[..., 0]), np.nan_to_num(seen.at[..., 1])
    label = (np.abs(u + 18) < 14) & (np.abs(v) < 14.5)
    part = np.where(label[..., None], [0.80, 0.79, 0.74], part)
    bars = label & (np.abs(v - 3) < 5) & (np.abs(u + 18) < 10) & (np.sin(2.4 * u) > 0.2)
    lines = label & (np.abs(np.abs(u + 18) - 12.3) < 0.7)
    part = np.where((bars | lines)[..., None], [0.22, 0.24, 0.34], part)
    return np.where((u > 31.5)[..., None], [0.78, 0.78, 0.77], part)


def _save(folder: Path, name: str, made: Made, truth: bool) -> None:
    tifffile = needs("tifffile", "3d", "writing scans")
    assert made.scan.colour is not None
    pictures = {"rgb": made.scan.colour}
    if truth:
        pictures["gt"] = made.mask.astype(np.uint8) * 255
    try:
        for kind in ("xyz", *pictures):
            (folder / kind).mkdir(parents=True, exist_ok=True)
        for kind, picture in pictures.items():
            PillowImage.fromarray(picture).save(folder / kind / f"{name}.png", compress_level=1)
        points = np.nan_to_num(made.scan.points, nan=0)
        tifffile.imwrite(folder / "xyz" / f"{name}.tiff", points, photometric="rgb")
    except OSError as error:
        raise DatasetError(f"{folder}: cannot be written ({error}); name another folder") from error
