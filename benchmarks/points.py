"""Time and memory of a scan's normals and FPFH, step by step, beside Open3D's.

    OMP_NUM_THREADS=1 python benchmarks/points.py [--open3d PYTHON]

A bowl with ripples and noise as a pinhole camera sees it, 2 % of its pixels missing. PYTHON is the
interpreter of an environment of its own that has Open3D; it works on the same points, by turns, and
what it finds is compared. Processor time, the least of --runs; memory is what the process grew by.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

NAMES = ("neighbours", "normals", "FPFH")

# The interpreter with Open3D has nothing of ours.
OTHER = """
import json, sys, time
import numpy as np
import open3d as o3d
given = np.load(sys.argv[1])
rows = given[np.isfinite(given).all(2)].astype(float)

def high():
    return int(next(x for x in open("/proc/self/status") if x.startswith("VmHWM")).split()[1])

cloud = o3d.geometry.PointCloud(o3d.utility.Vector3dVector(rows))
kd = o3d.geometry.KDTreeSearchParamHybrid
before, times = high(), []
for _ in range(int(sys.argv[3])):
    start = time.process_time()
    cloud.estimate_normals(kd(radius=0.1, max_nn=30))
    cloud.orient_normals_towards_camera_location(np.zeros(3))
    middle = time.process_time()
    made = o3d.pipelines.registration.compute_fpfh_feature(cloud, kd(radius=0.25, max_nn=100))
    times.append([0.0, middle - start, time.process_time() - middle])
np.save(sys.argv[2], np.asarray(made.data).T.astype(np.float32))
print(json.dumps({"times": times, "memory": (high() - before) / 1024, "is": o3d.__version__}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--open3d", type=Path, metavar="PYTHON")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--one", nargs=2, type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        one(given.one[0], given.one[1], given.runs)
        return
    print(f"{'':32}" + "".join(f"{each:>12}" for each in (*NAMES, "total", "memory")))
    with tempfile.TemporaryDirectory() as folder:
        for name, size, full in (("part", 256, False), ("whole", 400, True)):
            points = scan(size, full)
            file = Path(folder) / f"{name}.npy"
            np.save(file, points)
            measured = np.isfinite(points).all(2)
            title = f"{size} x {size}, {measured.sum():,} points"
            ours, theirs = file.with_suffix(".ours.npy"), file.with_suffix(".theirs.npy")
            command = [sys.executable, __file__, "--runs", str(given.runs), "--one", file, ours]
            show(title, run(command))
            if given.open3d:
                command = [given.open3d, "-c", OTHER, file, theirs, str(given.runs)]
                found = run(command)
                show(f"  Open3D {found['is']}", found)
                apart = np.abs(np.load(ours) - np.load(theirs)).max(1)
                print(f"  within 0.01: {np.mean(apart < 0.01):.2%} of rows; most {apart.max():.2g}")


def one(file: Path, out: Path, runs: int) -> None:
    """Time our own, in a process that does nothing else."""
    from offnominal.scans.fpfh import fpfh
    from offnominal.scans.neighbours import nearest
    from offnominal.scans.normals import normals

    points = np.load(file)
    before, times = high(), []
    for _ in range(runs):
        marks = [time.process_time()]
        found = nearest(points, 99, 29)
        marks.append(time.process_time())
        directions = normals(points, found=found)
        marks.append(time.process_time())
        features = fpfh(points, directions, found=found)
        times.append(np.diff([*marks, time.process_time()]).tolist())
    np.save(out, features[np.isfinite(points).all(2)])
    print(json.dumps({"times": times, "memory": (high() - before) / 1024}))


def high() -> int:
    """The most memory that this process ever had, in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1])


def run(command: list[Any]) -> dict[str, Any]:
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def show(title: str, found: dict[str, Any]) -> None:
    best = min(found["times"], key=sum)
    seconds = [f"{each:10.2f} s" if each else f"{'':12}" for each in (*best, sum(best))]
    print(f"{title:32}" + "".join(seconds) + f"{found['memory']:9.0f} MB")


def scan(size: int, full: bool, seed: int = 0) -> np.ndarray:
    """A bowl half a metre away; ``full``: with the table it stands on."""
    rng = np.random.default_rng(seed)
    x, y = (np.mgrid[:size, :size][::-1] - (size - 1) / 2) / (1.2 * size)
    rim = 0.5 / 1.2
    out = np.hypot(x, y) / rim
    ripples = 0.004 * np.sin(22 * x) * np.cos(17 * y)
    z = 0.5 - 0.06 * np.sqrt(np.maximum(1 - out**2, 0)) + ripples
    z += rng.normal(0, 1e-4, z.shape)
    points = np.stack([x * z, y * z, z], 2).astype(np.float32)
    points[rng.random(z.shape) < 0.02] = np.nan
    if not full:
        points[out > 1] = np.nan
    return points


if __name__ == "__main__":
    main()
