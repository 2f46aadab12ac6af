"""Pixel metrics: ours, binned and exact, against the reference procedure plus scikit-learn.

python benchmarks/metrics.py [--maps 100] [--size 448] [--clock cpu] [--large]

The reference is MVTec's per-region-overlap procedure as published (all maps together, one argsort,
running sums of the weights, trapezoids up to 0.3 and to 0.05) and scikit-learn's roc_auc_score,
average_precision_score and precision_recall_curve on all the pixels. Each way runs in a process of
its own on the same maps, in turns, ours after one run that does not count; the fastest turn counts.
Drawing the maps is left out of the time, and so are the maps that the reference is given out of its
peak memory; ours sees them one at a time. --large adds MVTec AD's largest test sets at full
resolution, for time and memory.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

Map = tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]
LARGE = [(167, 800), (160, 1024)]
FIGURES = ("pixel_auroc", "pixel_ap", "pixel_f1_max", "aupro", "aupro_0.05")


def draw(count: int, size: int) -> Iterator[Map]:
    """Smooth noise, three images in four with one to three defects, about 2 % of all pixels."""
    rng = np.random.default_rng(0)
    for number in range(count):
        coarse = rng.normal(size=(size // 14, size // 14)).astype(np.float32)
        scores = cv2.GaussianBlur(cv2.resize(coarse, (size, size)), (0, 0), 4)
        scores = scores / scores.std() * 0.05 + 0.3
        mask = np.zeros((size, size), np.uint8)
        for _ in range(rng.integers(1, 4) if number % 4 else 0):
            centre = [int(c) for c in rng.integers(size // 10, size - size // 10, 2)]
            axes = [int(a) for a in rng.integers(size // 90, size // 7, 2)]
            cv2.ellipse(mask, centre, axes, float(rng.uniform(0, 180)), 0, 360, 1, -1)
        lift = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), size / 60)
        scores += lift * np.float32(rng.uniform(0.05, 0.4))
        yield np.asarray(scores, np.float32), mask.astype(np.bool_)


def reference(maps: list[Map]) -> dict[str, float]:
    """The published procedure, written plainly, and scikit-learn."""
    from scipy.ndimage import label
    from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

    weights = np.zeros((len(maps), *maps[0][0].shape))
    regions = 0
    for weight, (_, mask) in zip(weights, maps, strict=True):
        labels, count = label(mask, np.ones((3, 3)))
        regions += count
        for region in range(1, count + 1):
            here = labels == region
            weight[here] = 1 / here.sum()
    scores = np.array([scores for scores, _ in maps]).ravel()
    truth = np.array([mask for _, mask in maps]).ravel()
    flat = weights.ravel()
    order = np.argsort(scores)[::-1]
    ranked = scores[order]
    false = np.cumsum(~truth[order]) / np.count_nonzero(~truth)
    overlap = np.minimum(np.cumsum(flat[order]) / regions, 1)
    last = np.append(np.diff(ranked) != 0, True)
    false, overlap = np.append(0, false[last]), np.append(0, overlap[last])
    found = {}
    for name, limit in (("aupro", 0.3), ("aupro_0.05", 0.05)):
        inside = false <= limit
        x = np.append(false[inside], limit)
        y = np.append(overlap[inside], np.interp(limit, false, overlap))
        found[name] = float(np.trapezoid(y, x) / limit)
    del order, ranked, false, overlap, weights, flat
    found["pixel_auroc"] = float(roc_auc_score(truth, scores))
    found["pixel_ap"] = float(average_precision_score(truth, scores))
    precision, recall, _ = precision_recall_curve(truth, scores)
    both = np.maximum(precision + recall, 1e-30)
    found["pixel_f1_max"] = float(np.max(2 * precision * recall / both))
    return found


def one(way: str, count: int, size: int, repeats: int, clock: Callable[[], float]) -> None:
    """Run one way and print what it took."""
    cv2.setNumThreads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    error, base, spent = 0.0, 0.0, []
    found: dict[str, float] = {}
    if way == "reference":
        maps = list(draw(count, size))
        base = sum(scores.nbytes + mask.nbytes for scores, mask in maps) / 2**20
        start = clock()
        found = reference(maps)
        spent.append(clock() - start)
    else:
        from offnominal.metrics import PixelMetrics

        for _ in range(repeats):
            metrics = PixelMetrics("exact" if way == "exact" else "binned")
            total = 0.0
            for scores, mask in draw(count, size):
                start = clock()
                metrics.update(scores, mask)
                total += clock() - start
            start = clock()
            found = metrics.compute()
            error = metrics.error
            spent.append(total + clock() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - base
    figures = [found[name] for name in FIGURES]
    # After one run that does not count, where there are several.
    seconds = min(spent[1:] or spent)
    print(json.dumps({"s": seconds, "mb": peak, "error": error, "figures": figures}))


@dataclass
class Result:
    """What a run of one way took and found."""

    s: float
    mb: float
    error: float
    figures: list[float]


def run(way: str, count: int, size: int, repeats: int, clock: str) -> Result:
    sizes = [str(count), str(size), str(repeats)]
    command = [sys.executable, __file__, "--clock", clock, "--one", way, *sizes]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return Result(**json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--maps", type=int, default=100)
    parser.add_argument("--size", type=int, default=448)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument(
        "--clock",
        choices=["wall", "cpu"],
        default="wall",
        help="on a busy machine, cpu leaves out the time given to others",
    )
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        clock = time.process_time if given.clock == "cpu" else time.perf_counter
        count, size, repeats = map(int, given.one[1:])
        one(given.one[0], count, size, repeats, clock)
        return
    ways = ("reference", "exact", "binned")
    turns = [
        {way: run(way, given.maps, given.size, 3, given.clock) for way in ways}
        for _ in range(given.turns)
    ]
    print(f"{given.maps} maps of {given.size}x{given.size}, {given.clock} time")
    print(f"{'way':>10} {'time':>8} {'ratio':>7} {'peak':>8}  largest difference  stated error")
    seconds = {way: min(turn[way].s for turn in turns) for way in ways}
    for way, result in turns[-1].items():
        pairs = zip(result.figures, turns[-1]["reference"].figures, strict=True)
        differ = max(abs(a - b) for a, b in pairs)
        ratio = seconds["reference"] / seconds[way]
        line = f"{way:>10} {seconds[way]:6.2f} s {ratio:6.1f}x {result.mb:5.0f} MB"
        print(f"{line}  {differ:18.1e}  {result.error:12.1e}", flush=True)
    for count, size in LARGE if given.large else []:
        for way in ("exact", "binned"):
            result = run(way, count, size, 1, given.clock)
            line = f"{count} maps of {size}x{size}, {way:>6}: {result.s:5.2f} s,"
            print(f"{line} {result.mb:5.0f} MB, error {result.error:.1e}", flush=True)


if __name__ == "__main__":
    main()
