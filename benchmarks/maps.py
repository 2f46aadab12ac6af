"""The anomaly map against OpenCV's resize and scipy's Gaussian: same values, how much faster.

python benchmarks/maps.py [--threads 1]
"""

import argparse
import time
from statistics import median

import cv2
import numpy as np
import torch
from scipy.ndimage import gaussian_filter

from offnominal.scoring import anomaly_map

CASES = [((32, 32), (448, 448)), ((32, 43), (900, 1200)), ((48, 48), (1024, 1024)),
         ((64, 90), (1500, 2100))]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=15)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    cv2.setNumThreads(given.threads)
    print(f"{'grid':>8} {'image':>11} {'ours':>9} {'scipy':>9} {'ratio':>7}  largest difference")
    for grid, size in CASES:
        scores = np.random.default_rng(0).random(grid, dtype=np.float32)
        ours, theirs = [], []
        for _ in range(given.repeats):
            start = time.perf_counter()
            found = anomaly_map(scores, size)
            middle = time.perf_counter()
            wanted = gaussian_filter(cv2.resize(scores, size[::-1]), sigma=4)
            theirs.append(time.perf_counter() - middle)
            ours.append(middle - start)
        a, b = median(ours), median(theirs)
        error = float(np.abs(found - wanted).max())
        shapes = f"{grid[0]:>4}x{grid[1]:<3} {size[0]:>5}x{size[1]:<5}"
        print(f"{shapes} {1000 * a:6.2f} ms {1000 * b:6.2f} ms {b / a:6.1f}x  {error:.1e}")


if __name__ == "__main__":
    main()
