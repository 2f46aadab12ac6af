"""Banks of any size: RAD's retrieval and search among patches in a file, and how both grow.

    python benchmarks/rad.py GOOD_DIR --backbone mobilenetv2_100=FILE --sizes 100000 300000 1000000

Features of real pictures are taken once. A bank of N patches is then drawn from them: each of its
references is one of the pictures, shifted by whole patches, with noise on every patch and on its
class token, of ``--jitter`` times the spread of the features. The bank is written in pieces. Each
size runs in a process of its own, so that its memory can be told. For queries drawn in the same way
from other pictures it measures

- build: seconds, and the largest anonymous memory (what is mapped from the file is not counted:
  the system takes it back when it needs it),
- retrieval and search of one picture, in milliseconds: with the file's pages dropped from the
  system's cache before (cold), and again (warm),
- recall: of some patches, how many found their true nearest neighbour among all N, by an exhaustive
  pass over the file; and by how much the others' distance is too long, which is what a score can
  change.

With ``--ivf 0.99`` the same rows go into a bank in memory that is searched by an inverted file of
FAISS, and its search of all rows is timed beside the exact one.

From the sizes the law value = a N^b is fitted by least squares of logarithms, shown, and carried on
to ``--towards``.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offnominal import RAD, find_images
from offnominal.images import read_image
from offnominal.memory import MemoryBank
from offnominal.memory.filed import FiledBank
from offnominal.memory.retrieval import nearest_among
from offnominal.memory.search.cutting import batches
from offnominal.memory.search.ivf import IVFBank

Floats = NDArray[np.float32]
MEASURED = {
    "build_s": "build, s",
    "file_gb": "file, GB",
    "memory_mb": "memory at most, MB",
    "retrieval_ms": "retrieval, ms",
    "cold_ms": "search cold, ms",
    "warm_ms": "search warm, ms",
    "recall": "recall of the true nearest",
    "longer": "distance too long, share",
    "cells": "cells",
    "probes": "cells looked into",
    "exact_ms": "exact search of all rows, ms",
    "ivf_ms": "by inverted file, ms",
}
GROWING = (
    "build_s",
    "file_gb",
    "memory_mb",
    "retrieval_ms",
    "cold_ms",
    "warm_ms",
    "exact_ms",
    "ivf_ms",
)
DRAWN_FROM = 0.75  # share of the pictures that references are drawn from; queries from the others


def main() -> None:
    """Measure each size in a process of its own, and print the table and the laws."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("good", nargs="?", help="folder of good pictures")
    parser.add_argument("--backbone", default="builtin", help="as `fit` takes it; NAME=FILE")
    parser.add_argument("--resolution", type=int, default=None)
    parser.add_argument("--sizes", type=int, nargs="+", default=[100_000, 300_000, 1_000_000])
    parser.add_argument("--towards", type=float, default=1e8, help="patches to extrapolate to")
    parser.add_argument("--retrieve", type=int, default=150)
    parser.add_argument("--queries", type=int, default=10)
    parser.add_argument("--checked", type=int, default=500, help="patches whose recall is told")
    parser.add_argument("--jitter", type=float, default=0.3)
    parser.add_argument("--ivf", type=float, help="recall of an inverted file to measure instead")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--folder", type=Path, default=None, help="where banks lie for the time")
    parser.add_argument("--keep", action="store_true", help="leave the largest bank there")
    parser.add_argument("--json", type=Path, default=None, help="write what was measured as JSON")
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one is not None:
        one = measure if given.ivf is None else measure_ivf
        print(json.dumps(one(given, given.sizes[0])))
        return
    if not given.good:
        parser.error("give a folder of good pictures")
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        features = Path(folder) / "features.npz"
        np.savez(features, **real_features(given))
        rows = []
        for size in given.sizes:
            command = [sys.executable, __file__, *sys.argv[1:], "--one", str(features)]
            command += ["--sizes", str(size)]  # of two the last one counts
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            rows.append(json.loads(done.stdout.splitlines()[-1]))
            print(rows[-1], file=sys.stderr, flush=True)
    report(rows, given.towards, given.retrieve)
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1))


def real_features(given: argparse.Namespace) -> dict[str, Any]:
    """Joined unit vectors (n, patches, dim) and class tokens (n, dim') of pictures of one grid."""
    name, _, file = given.backbone.partition("=")
    options: dict[str, Any] = {"backbone": name, "weights": file or None, "device": given.device}
    detector = RAD(**options, resolution=given.resolution, resize="square")
    patches, tokens = [], []
    for path in find_images(given.good)[:200]:
        [view] = detector.views(read_image(path))
        found = detector.embedded(view.pixels)
        widths, grid = [len(each) for each in found[0]], found[0][0].shape[1:]
        patches.append(detector.rows(found))
        tokens.append(found[1][0])
    return {
        "patches": np.stack(patches),
        "tokens": np.stack(tokens),
        "widths": widths,
        "grid": grid,
    }


class Drawn:
    """Pictures' features with shifts and noise."""

    def __init__(self, features: Path, jitter: float) -> None:
        with np.load(features) as told:
            self.patches, self.tokens = told["patches"], told["tokens"]
            self.widths, self.grid = told["widths"].tolist(), told["grid"].tolist()
        self.cut = max(1, int(DRAWN_FROM * len(self.patches)))
        self.spread = jitter * self.patches.std((0, 1))
        self.token_spread = jitter * self.tokens.std(0)

    def __call__(self, seed: int, first: int, stop: int) -> tuple[Floats, Floats]:
        """Rows (patches, dim) and token (1, dim') from one of the pictures first to stop."""
        rng = np.random.default_rng(seed)
        number = int(rng.integers(first, stop))
        rows = self.patches[number].reshape(*self.grid, -1)
        rows = np.roll(rows, rng.integers(self.grid), (0, 1)).reshape(len(self.patches[0]), -1)
        rows = rows + self.spread * rng.standard_normal(rows.shape, np.float32)
        start = 0
        for width in self.widths:  # each level is of unit length
            own = rows[:, start : start + width]
            own /= np.sqrt(np.einsum("nd,nd->n", own, own))[:, None]
            start += width
        token = self.tokens[number] + self.token_spread * rng.standard_normal(
            len(self.token_spread), np.float32
        )
        return rows, (token / np.linalg.norm(token))[None]


class Memory(threading.Thread):
    """The largest anonymous memory of this process, looked at every 20 ms."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.most = 0.0

    def run(self) -> None:
        """Look until the process ends."""
        while True:
            text = Path("/proc/self/status").read_text()
            [line] = [line for line in text.splitlines() if line.startswith("RssAnon")]
            self.most = max(self.most, int(line.split()[1]) / 1000)
            time.sleep(0.02)


def measure(given: argparse.Namespace, size: int) -> dict[str, float]:
    """Build one bank, search it, and compare with an exhaustive pass."""
    import torch  # so that the search is the one that a detector uses

    torch.set_grad_enabled(False)
    memory = Memory()
    memory.start()
    drawn = Drawn(given.one, given.jitter)
    each = len(drawn.patches[0])
    references = max(1, math.ceil(size / each))
    path = given.one.with_name(f"{size}.rows")
    began = time.perf_counter()
    bank, summaries = FiledBank(path).to(given.device), MemoryBank()
    bank.reserve(references * each)
    summaries.reserve(references)
    for number in range(references):
        rows, token = drawn(number, 0, drawn.cut)
        bank.add(rows, number)
        summaries.add(token, number)
    bank.finish()
    built = time.perf_counter() - began
    times = {"retrieval_ms": [], "cold_ms": [], "warm_ms": []}  # type: dict[str, list[float]]
    asked, found = [], []
    others = (drawn.cut, len(drawn.patches)) if drawn.cut < len(drawn.patches) else (0, drawn.cut)
    for query in range(given.queries + 1):
        rows, token = drawn(10**9 + query, *others)
        rows = rows.astype(np.float16).astype(np.float32)
        began = time.perf_counter()
        count = min(given.retrieve, references)
        near = summaries.reference[summaries.search(token, count)[1][0]].tolist()
        retrieved = time.perf_counter()
        drop_pages(path)
        cold = time.perf_counter()
        squared = nearest_among(bank, near, rows, drawn.widths)
        warm = time.perf_counter()
        nearest_among(bank, near, rows, drawn.widths)
        end = time.perf_counter()
        if query:  # the first one warms up libraries
            times["retrieval_ms"].append(1000 * (retrieved - began))
            times["cold_ms"].append(1000 * (warm - cold))
            times["warm_ms"].append(1000 * (end - warm))
            asked.append(rows)
            found.append(squared)
    some = np.random.default_rng(0).choice(
        given.queries * each, min(given.checked, given.queries * each), replace=False
    )
    queries, reached = np.concatenate(asked)[some], np.concatenate(found, axis=1)[:, some]
    true = exhaustive(bank, queries, drawn.widths)
    longer = np.sqrt(reached / np.maximum(true, 1e-12)) - 1
    right = reached <= true * (1 + 1e-3)  # what float32 products can tell apart
    result = {
        "patches": float(len(bank)),
        "references": float(references),
        "dim": float(bank.dim),
        "build_s": built,
        "file_gb": path.stat().st_size / 1e9,
        **{name: float(np.median(values)) for name, values in times.items()},
        "recall": float(right.mean()),
        "longer": float(np.where(right, 0, longer).mean()),
        "memory_mb": memory.most,
    }
    if not (given.keep and size == max(given.sizes)):
        path.unlink()
    return result


def measure_ivf(given: argparse.Namespace, size: int) -> dict[str, float]:
    """The same rows in memory, searched as a whole, exactly and by an inverted file."""
    memory = Memory()
    memory.start()
    drawn = Drawn(given.one, given.jitter)
    each = len(drawn.patches[0])
    references = max(1, math.ceil(size / each))
    bank = IVFBank(given.ivf, storage="fp16")
    bank.reserve(references * each)
    for number in range(references):
        bank.add(drawn(number, 0, drawn.cut)[0], number)
    began = time.perf_counter()
    told = bank.build()
    built = time.perf_counter() - began
    times: dict[str, list[float]] = {"exact_ms": [], "ivf_ms": []}
    for query in range(given.queries + 1):
        rows, _ = drawn(10**9 + query, drawn.cut, len(drawn.patches))
        began = time.perf_counter()
        MemoryBank.search(bank, rows)
        exact = time.perf_counter()
        bank.search(rows)
        end = time.perf_counter()
        if query:
            times["exact_ms"].append(1000 * (exact - began))
            times["ivf_ms"].append(1000 * (end - exact))
    return {
        "patches": float(len(bank)),
        "dim": float(bank.dim),
        "build_s": built,
        **{name: float(np.median(values)) for name, values in times.items()},
        **{name: float(told[name]) for name in ("cells", "probes", "recall")},
        "longer": float(told["change"]),
        "memory_mb": memory.most,
    }


def drop_pages(path: Path) -> None:
    """Have the system forget what it holds of a file."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def exhaustive(bank: FiledBank, queries: Floats, widths: list[int]) -> Floats:
    """Squared distances (levels, n) to the nearest of all rows, level by level."""
    best = np.full((len(widths), len(queries)), np.inf, np.float32)
    for some in batches(len(bank), 2**15):
        rows = bank.take(some)
        for level, part in enumerate(parts(widths)):
            own, other = queries[:, part], rows[:, part]
            products = own @ other.T
            squared = np.einsum("nd,nd->n", other, other)[None] - 2 * products
            squared += np.einsum("nd,nd->n", own, own)[:, None]
            np.minimum(best[level], squared.min(1).clip(0), out=best[level])
    return best


def parts(widths: list[int]) -> Iterator[slice]:
    """Columns of each level."""
    start = 0
    for width in widths:
        yield slice(start, start + width)
        start += width


def report(rows: list[dict[str, float]], towards: float, retrieve: int) -> None:
    """The table, and the law of each quantity that grows, by sizes above what is retrieved."""
    sizes = np.array([row["patches"] for row in rows])
    print(f"rows of {rows[0]['dim']:.0f} values in float16, medians over the queries")
    head = ["patches", *(f"{size:,.0f}" for size in sizes)]
    print(" | ".join([*head, "law", f"at {towards:.0e}"]))
    for name, words in MEASURED.items():
        if name not in rows[0]:
            continue
        values = np.array([row[name] for row in rows])
        line = [words, *(f"{value:.4g}" for value in values)]
        # Below that many references all are searched, and the time is another law's.
        counts = np.array([row.get("references", math.inf) > retrieve for row in rows])
        if name in GROWING and counts.sum() > 1 and (values > 0).all():
            power, log = np.polyfit(np.log(sizes[counts]), np.log(values[counts]), 1)
            law = f"{math.exp(log):.3g} N^{power:.2f}"
            line += [law, f"{math.exp(log) * towards**power:.4g}"]
        print(" | ".join(line))


if __name__ == "__main__":
    main()
