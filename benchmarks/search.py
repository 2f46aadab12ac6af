"""Time the memory bank's exact search beside faiss.IndexFlatL2, and check that they agree.

Run ``python benchmarks/search.py``; ``--help`` lists the sizes. Both are given the same threads
and the same data, take turns, and the median of the turns counts. A ratio above 1 says that the
memory bank is faster.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import faiss
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from offnominal.memory import MemoryBank
from offnominal.memory.search.arrays import ArraySearch
from offnominal.memory.storage import StoredRows


def random_data(rows: int, queries: int, dim: int, generator: torch.Generator) -> list[Tensor]:
    """Directions drawn uniformly: no structure at all, every distance near √2."""
    both = torch.randn(rows + queries, dim, generator=generator)
    both = F.normalize(both, dim=1)
    return [both[:rows].contiguous(), both[rows:].contiguous()]


def patch_data(rows: int, queries: int, dim: int, generator: torch.Generator) -> list[Tensor]:
    """Like patches of aligned pictures: smooth over a 32 × 32 grid, alike between pictures.

    Every picture is the same smooth mixture of a few materials, with a drift of its own and fine
    noise; one picture in eight is a near copy of the one before. A common offset and decaying
    variances give the narrow cone in which the features of real networks lie.
    """
    grid, materials, latent = 32, 12, 24

    def field(channels: int, count: int, cells: int) -> Tensor:
        coarse = torch.randn(count, channels, cells, cells, generator=generator)
        size = (grid, grid)
        smooth = F.interpolate(coarse, size=size, mode="bicubic", align_corners=True)
        return smooth.permute(0, 2, 3, 1).reshape(count, grid * grid, channels)

    spread = torch.arange(1, latent + 1).rsqrt()
    palette = torch.randn(materials, latent, generator=generator) * spread
    lift = torch.randn(latent, dim, generator=generator) / latent**0.5
    offset = torch.randn(dim, generator=generator) * 0.8
    mixture = (4 * field(materials, 1, 6)).softmax(-1) @ palette
    pictures: list[Tensor] = []
    for number in range(-(-(rows + queries) // grid**2)):
        if number % 8 == 7:
            fine = 0.002 * torch.randn(grid**2, dim, generator=generator)
            pictures.append(F.normalize(pictures[-1] + fine / dim**0.5, dim=1))
            continue
        drift = 0.25 * field(latent, 1, 8)[0] * spread
        fine = 0.15 * torch.randn(grid**2, dim, generator=generator)
        pictures.append(F.normalize((mixture[0] + drift) @ lift + offset + fine, dim=1))
    both = torch.cat(pictures)
    # The queries are the first pictures, so that none is the copy of another's copy.
    return [both[queries : queries + rows].contiguous(), both[:queries].contiguous()]


def interleaved(
    runs: dict[str, Callable[[], object]], repeats: int, clock: Callable[[], float]
) -> dict[str, float]:
    """Median seconds of each run; the runs take turns, after one turn that does not count."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(repeats + 1):
        for name, run in runs.items():
            start = clock()
            run()
            if turn:
                times[name].append(clock() - start)
    return {name: statistics.median(spent) for name, spent in times.items()}


def disagreement(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Largest difference of squared distances."""
    return float(abs(ours - theirs).max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[8192, 65536, 524288])
    parser.add_argument("--queries", type=int, default=1024)
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--neighbours", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--clock",
        choices=["wall", "cpu"],
        default="wall",
        help="on a busy machine, cpu with --threads 1 leaves out the time given to others",
    )
    parser.add_argument("--threads", type=int, default=min(2, torch.get_num_threads()))
    parser.add_argument("--precision", choices=["auto", "fp32", "bf16", "fp16"], default="auto")
    parser.add_argument("--memory", type=int, default=512, help="MiB of workspace")
    parser.add_argument("--data", nargs="+", choices=["patches", "random"], default=None)
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    faiss.omp_set_num_threads(options.threads)
    makers = {"patches": patch_data, "random": random_data}
    print(f"{options.queries} queries, {options.dim} dimensions, k = {options.neighbours},")
    print(f"{options.threads} threads, {options.repeats} turns; faiss {faiss.__version__}")
    print(
        f"{'data':8} {'rows':>8} {'faiss ms':>9} {'ours ms':>9} {'ratio':>6} {'differ':>8} "
        f"{'numpy ms':>9}"
    )
    for name in options.data or makers:
        for size in options.rows:
            generator = torch.Generator().manual_seed(0)
            made = makers[name](size, options.queries, options.dim, generator)
            rows, queries = (each.numpy() for each in made)
            bank = MemoryBank(options.dim, options.memory * 2**20, options.precision)
            bank.add(rows)
            index = faiss.IndexFlatL2(options.dim)
            index.add(rows)
            # What a process without PyTorch searches by.
            alone, memory = ArraySearch(StoredRows(rows)), options.memory * 2**20
            k = options.neighbours
            differ = disagreement(bank.search(queries, k)[0], index.search(queries, k)[0])
            spent = interleaved(
                {
                    "faiss": lambda: index.search(queries, k),  # noqa: B023
                    "ours": lambda: bank.search(queries, k),  # noqa: B023
                    "numpy": lambda: alone.find(queries, k, [(0, size)], memory),  # noqa: B023
                },
                options.repeats,
                time.process_time if options.clock == "cpu" else time.perf_counter,
            )
            ratio = spent["faiss"] / spent["ours"]
            print(
                f"{name:8} {size:8} {1e3 * spent['faiss']:9.1f} {1e3 * spent['ours']:9.1f} "
                f"{ratio:6.2f} {differ:8.1e} {1e3 * spent['numpy']:9.1f}",
                flush=True,
            )
            if differ > 1e-5:
                raise SystemExit(f"the distances differ by {differ:.1e}, more than 1e-5")


if __name__ == "__main__":
    main()
