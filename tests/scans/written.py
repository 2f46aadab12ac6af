"""Small scans as files, in the layouts of the public sets."""

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

Points = NDArray[np.float32]


def plate(seed: int = 0, size: tuple[int, int] = (24, 30), dent: bool = False) -> Points:
    """A part of 12 mm on a plane, half a metre away: x to the right, y down, 1 mm a pixel."""
    rng = np.random.default_rng(seed)
    row, column = np.mgrid[: size[0], : size[1]].astype(float)
    middle = np.hypot(row - size[0] / 2, column - size[1] / 2)
    z = 0.5 - 0.02 * (middle < 6) + 0.004 * (dent & (middle < 2)) + rng.normal(0, 1e-5, size)
    points = np.stack([(column - size[1] / 2) / 1000, (row - size[0] / 2) / 1000, z], axis=2)
    return points.astype(np.float32)


def picture(path: Path, pixels: NDArray[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def colours(seed: int, size: tuple[int, int]) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)


def xyz(path: Path, points: Points, **how: Any) -> None:
    """A TIFF of points with its colours, as MVTec 3D-AD has them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(path, points, **{"photometric": "rgb", **how})
    size = points.shape[:2]
    seed = zlib.crc32(str(path).encode())
    picture(path.parent.parent / "rgb" / f"{path.stem}.png", colours(seed, size))


def mark(path: Path, size: tuple[int, int] = (24, 30)) -> NDArray[np.uint8]:
    marked = np.zeros(size, np.uint8)
    marked[10:14, 13:17] = 255
    picture(path, marked)
    return marked


def mvtec3d(root: Path, category: str = "plate") -> None:
    """Three good scans to learn from, one to test on, one with a dent."""
    home = root / category
    for number in range(3):
        xyz(home / f"train/good/xyz/{number:03d}.tiff", plate(number))
    xyz(home / "test/good/xyz/000.tiff", plate(7))
    picture(home / "test/good/gt/000.png", np.zeros((24, 30), np.uint8))
    xyz(home / "test/dent/xyz/000.tiff", plate(8, dent=True))
    mark(home / "test/dent/gt/000.png")


def camera(folder: Path, **more: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    said = {"scale": 0.001, "intrinsics": [100.0, 110.0, 15.0, 12.0], **more}
    (folder / "camera.json").write_text(json.dumps(said))
    return folder / "camera.json"


def depth(path: Path, seed: int = 0, size: tuple[int, int] = (24, 30)) -> NDArray[np.uint16]:
    counts = (500 + 10 * np.random.default_rng(seed).random(size)).astype(np.uint16)
    counts[3, 4] = 0
    picture(path, counts)
    return counts


def eyecandies(root: Path, category: str = "Confetto") -> None:
    """Two to learn from, one to validate, a good and a dented one to test on."""
    for place, stem, bad in (
        ("train", "000", None), ("train", "001", None), ("val", "000", 0),
        ("test_public", "00", 0), ("test_public", "01", 1),
    ):  # fmt: skip
        home = root / category / place / "data"
        levels = np.random.default_rng(3).integers(0, 65536, (16, 16)).astype(np.uint16)
        picture(home / f"{stem}_depth.png", levels)
        (home / f"{stem}_info_depth.yaml").write_text(
            "normalization:\n  max: 2.5\n  min: 0.5\nother: 1\n"
        )
        for number in range(6):
            picture(home / f"{stem}_image_{number}.png", colours(number, (16, 16)))
        picture(home / f"{stem}_normals.png", colours(9, (16, 16)))
        if bad is not None:
            marked = np.zeros((16, 16), np.uint8)
            marked[4:8, 4:8] = 255 * bad
            picture(home / f"{stem}_mask.png", marked)
            picture(home / f"{stem}_dents_mask.png", marked)
            (home / f"{stem}_metadata.yaml").write_text(f"anomalous: {bad}\nbumps: 0\n")


def pcd(path: Path, points: Points, how: str = "binary", colour: Any = None) -> None:
    """A cloud (N, 3), or on a grid (H, W, 3), by pypcd4's writer."""
    from pypcd4 import Encoding, PointCloud

    path.parent.mkdir(parents=True, exist_ok=True)
    flat = points.reshape(-1, 3)
    if colour is None:
        cloud = PointCloud.from_xyz_points(flat)
    else:
        packed = PointCloud.encode_rgb(colour.reshape(-1, 3))
        cloud = PointCloud.from_xyzrgb_points(np.column_stack([flat, packed.reshape(-1)]))
    if points.ndim == 3:
        cloud.metadata = cloud.metadata.derive(height=points.shape[0], width=points.shape[1])
    cloud.save(path, encoding=Encoding(how))


def ply(points: Points, form: str, extra: bool = True) -> bytes:
    """A PLY of vertices (N, 3) with colours and a normal between the coordinates."""
    order = {"ascii": "=", "binary_little_endian": "<", "binary_big_endian": ">"}[form]
    kinds = [("y", "f8", "double"), ("nx", "f4", "float32"), ("x", "f4", "float"),
             ("z", "f4", "float"), ("red", "u1", "uchar"), ("green", "u1", "uint8"),
             ("blue", "u1", "uchar")]  # fmt: skip
    rows = np.zeros(len(points), [(name, order + kind) for name, kind, _ in kinds])
    for number, axis in enumerate("xyz"):
        rows[axis] = points[:, number]
    rows["red"], rows["green"], rows["blue"] = 10, np.arange(len(points)) % 256, 30
    head = ["ply", f"format {form} 1.0", "comment made", f"element vertex {len(points)}"]
    head += [f"property {kind} {name}" for name, _, kind in kinds]
    if extra:
        head += ["element face 1", "property list uchar int vertex_indices"]
    head.append("end_header")
    if form == "ascii":
        lines = [" ".join(repr(float(value)) for value in row) for row in rows.tolist()]
        body = ("\n".join([*lines, "3 0 1 2"]) + "\n").encode()
    else:
        body = rows.tobytes() + (b"\3" + np.arange(3, dtype=order + "i4").tobytes()) * extra
    return ("\n".join(head) + "\n").encode() + body


def cloud(seed: int = 0, count: int = 300) -> Points:
    """Points of a sphere of 2 cm, half a metre away."""
    rng = np.random.default_rng(seed)
    around = rng.normal(size=(count, 3))
    around /= np.linalg.norm(around, axis=1)[:, None]
    return (0.01 * around + (0, 0, 0.5)).astype(np.float32)


def real3d(root: Path, category: str = "fish") -> None:
    """Four templates, a good cloud and one with a bulge."""
    home = root / category
    for number in range(4):
        pcd(home / f"train/{number}_template.pcd", cloud(number), "ascii")
    pcd(home / "test/10_good.pcd", cloud(10))
    bulge = cloud(11)
    label = (bulge[:, 0] > 0.005).astype(int)
    pcd(home / "test/11_bulge_cut.pcd", bulge, "binary_compressed")
    (home / "gt").mkdir()
    table = np.column_stack([bulge, label])
    np.savetxt(home / "gt/11_bulge_cut.txt", table, fmt=("%.9g", "%.9g", "%.9g", "%d"))
