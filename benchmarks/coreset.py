"""Time the coreset selection beside the plain greedy loop, and check that both select the same.

Run ``python benchmarks/coreset.py``; ``--help`` lists the sizes. The plain loop is one
matrix-vector product over all rows per selected row, then a minimum and an argmax; the rows' norms
are given to it. Both have the same rows, threads and first row, take turns, and the median of the
turns counts. A ratio above 1 says that ``select_coreset`` is faster.

The plain loop costs the same at every step, so ``--plain-steps`` can stop it early: its time is
then scaled to the full number, and the selections are compared that far.
"""

import argparse
import ctypes
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from offnominal.backbones import load_backbone
from offnominal.images import read_image
from offnominal.memory import MemoryBank
from offnominal.memory.coreset import random_projection, select_coreset
from offnominal.memory.search.exact import exact_distances
from offnominal.sizing import resize_image, to_pixels
from search import interleaved, patch_data


def plain_greedy(rows: Tensor, norms: Tensor, count: int, start: int) -> Tensor:
    """One matrix-vector product per step."""
    nearest = torch.full((len(rows),), torch.inf)
    picked = [start]
    while len(picked) < count:
        last = picked[-1]
        squares = torch.mv(rows, rows[last]).mul_(-2).add_(norms).add_(norms[last])
        torch.minimum(nearest, squares, out=nearest)
        nearest[last] = -1
        picked.append(int(nearest.argmax()))
    return torch.tensor(picked)


def documented_greedy(rows: Tensor, count: int, start: int) -> Tensor:
    """The definition: every distance added up in the documented order."""
    nearest = torch.full((len(rows),), torch.inf)
    picked = [start]
    while len(picked) < count:
        centre = rows[picked[-1]]
        parts = [exact_distances(part.clone(), centre) for part in torch.split(rows, 512)]
        nearest = torch.minimum(nearest, torch.cat(parts))
        nearest[picked] = -1
        picked.append(int(nearest.argmax()))
    return torch.tensor(picked)


def real_features(size: int, dim: int, images: Path, weights: Path) -> Tensor:
    """Patch features as PatchCore's: two levels, 3 × 3 neighbourhoods, pooled to ``dim``."""
    backbone = load_backbone(weights=weights)
    parts: list[Tensor] = []
    for file in sorted(images.iterdir()):
        if sum(map(len, parts)) >= size:
            break
        image = resize_image(read_image(file), 224, backbone.multiple, "square")
        with torch.no_grad():
            maps = backbone(to_pixels(image, backbone.mean, backbone.std)[None])
        windows = F.unfold(maps, 3, padding=1)[0].T
        parts.append(F.adaptive_avg_pool1d(windows, dim) if dim < windows.shape[1] else windows)
    rows = torch.cat(parts)[:size]
    if len(rows) < size:
        raise SystemExit(f"--images: {images} gives {len(rows)} rows, --rows asks for {size}")
    return rows.contiguous()


def peak_mib(run: Callable[[], object]) -> float:
    """How far the process's peak grows beyond what it holds before, in MiB; Linux only."""

    def status(field: str) -> float:
        words = Path("/proc/self/status").read_text().split()
        return int(words[words.index(f"{field}:") + 1]) / 1024

    # What was freed before must not hide what is taken now.
    getattr(ctypes.CDLL(None), "malloc_trim", lambda _: 0)(0)
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return float("nan")
    before = status("VmRSS")
    run()
    return status("VmHWM") - before


def covering_radius(rows: Tensor, chosen: Tensor) -> float:
    bank = MemoryBank(rows.shape[1])
    bank.add(chosen.numpy())
    return float(np.sqrt(bank.search(rows.numpy())[0].max()))


def agreement(ours: Tensor, theirs: Tensor) -> str:
    differ = (ours[: len(theirs)] != theirs).nonzero().flatten()
    return f"first differs at {int(differ[0])}" if len(differ) else f"same {len(theirs)}"


def compare(name: str, rows: Tensor, options: argparse.Namespace) -> None:
    count = max(1, int(options.share * len(rows)))
    steps = min(options.plain_steps or count, count)
    clock = time.process_time if options.clock == "cpu" else time.perf_counter
    for project in options.project:
        plain = rows.numpy() if not project else random_projection(rows.numpy(), project)
        own = torch.from_numpy(plain)
        peak = peak_mib(lambda: select_coreset(plain, count, start=0))  # noqa: B023
        norms = torch.cat([part.square().sum(1) for part in torch.split(own, 8192)])
        spent = interleaved(
            {
                "plain": lambda: plain_greedy(own, norms, steps, 0),  # noqa: B023
                "ours": lambda: select_coreset(plain, count, start=0),  # noqa: B023
            },
            options.repeats,
            clock,
        )
        whole = spent["plain"] * max(count - 1, 1) / max(steps - 1, 1)
        picked = torch.from_numpy(select_coreset(plain, count, start=0))
        agree = agreement(picked, plain_greedy(own, norms, steps, 0))
        print(
            f"{name:8} {len(rows):8} {own.shape[1]:5} {count:6} {whole:8.2f} {spent['ours']:8.2f} "
            f"{whole / spent['ours']:6.1f} {peak:9.0f}  {agree}",
            flush=True,
        )
        definition = documented_greedy(own, min(options.check, count), 0)
        if not torch.equal(picked[: len(definition)], definition):
            raise SystemExit(f"the documented algorithm: {agreement(picked, definition)}")
        if options.radius:
            print(f"{'':8} covering radius {covering_radius(rows, rows[picked]):.4g}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[160_000])
    parser.add_argument("--dim", type=int, default=1024)
    parser.add_argument("--share", type=float, default=0.01)
    parser.add_argument("--project", type=int, nargs="+", default=[0], help="0: not projected")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--plain-steps", type=int, help="steps of the plain loop; default all")
    parser.add_argument("--check", type=int, default=20, help="rows compared with the definition")
    parser.add_argument("--radius", action="store_true", help="print covering radii")
    parser.add_argument("--threads", type=int, default=min(2, torch.get_num_threads()))
    parser.add_argument(
        "--clock",
        choices=["wall", "cpu"],
        default="wall",
        help="on a busy machine, cpu with --threads 1 leaves out the time given to others",
    )
    parser.add_argument("--data", nargs="+", choices=["patches", "random", "real"], default=None)
    parser.add_argument("--images", type=Path, help="folder of images for the data set real")
    parser.add_argument("--weights", type=Path, help="backbone weights for the data set real")
    options = parser.parse_args()
    if "real" in (options.data or []) and not (options.images and options.weights):
        parser.error("--data real needs --images and --weights")

    torch.set_num_threads(options.threads)
    print(f"{options.threads} threads, {options.repeats} turns, {options.clock} clock")
    print(
        f"{'data':8} {'rows':>8} {'dim':>5} {'count':>6} {'plain s':>8} {'ours s':>8} "
        f"{'ratio':>6} {'peak MiB':>9}  selection beside the plain loop's"
    )
    for name in options.data or ["patches", "random"]:
        for size in options.rows:
            generator = torch.Generator().manual_seed(0)
            if name == "real":
                rows = real_features(size, options.dim, options.images, options.weights)
            elif name == "patches":
                rows = patch_data(size, 0, options.dim, generator)[0]
            else:
                rows = torch.randn(size, options.dim, generator=generator)
            compare(name, rows, options)


if __name__ == "__main__":
    main()
