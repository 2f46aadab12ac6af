"""A very large bank in 8 bits beside faiss.IndexFlatL2 in float32: memory, time, patch scores.

    python benchmarks/bank.py [--pictures 512] [--views 8] [--storage int8]
    python benchmarks/bank.py --images GOOD TEST --backbone mobilenetv2_100 --weights FILE

A bank of ``pictures * views`` pictures with 32 x 32 patches of 384 values; with the defaults 4.2
million rows, 6.4 GB in float32. Without --images the patches are made up (see ``search.py``). With
--images they are features of the pictures in folder GOOD, turned by ``views`` angles: three levels
of the backbone, each of unit length, joined, cut to 384 values and normalised; the queries are then
those of some pictures in TEST.

One picture's patches are searched at a time; both libraries get the same threads and take turns,
and the median of the turns counts. A ratio above 1 says that the bank is faster. ``differ`` is the
largest difference of a patch score, half a squared distance: what 8 bits change.
"""

import argparse
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import faiss
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from offnominal.backbones import load_backbone
from offnominal.backbones.base import Backbone
from offnominal.memory import MemoryBank
from search import patch_data

DIM, GRID = 384, 32
PATCHES = GRID**2
Queries = list[tuple[str, Tensor]]


def made_up(options: argparse.Namespace) -> tuple[Iterator[Tensor], Queries]:
    """Patches of pictures that were never taken; the last of them are the queries."""
    generator = torch.Generator().manual_seed(0)
    queries = options.queries * PATCHES
    rows, asked = patch_data(options.pictures * options.views * PATCHES, queries, DIM, generator)
    named = [(f"made up {n}", part) for n, part in enumerate(torch.split(asked, PATCHES))]
    return iter(torch.split(rows, 64 * PATCHES)), named


def photographed(options: argparse.Namespace) -> tuple[Iterator[Tensor], Queries]:
    """Patches of real pictures."""
    network = load_backbone(options.backbone, options.weights, layers=options.layers).eval()
    good, test = (sorted(p for p in folder.rglob("*") if p.is_file()) for folder in options.images)
    reserved = test[:: max(1, len(test) // options.queries)][: options.queries]
    learned = [path for path in good if path not in reserved][: options.pictures]
    if len(learned) < options.pictures:
        raise SystemExit(f"{options.images[0]}: {len(learned)} pictures; give --pictures")
    queries = [(path.name, features(network, path, 1)) for path in reserved]
    return (features(network, path, options.views) for path in learned), queries


@torch.inference_mode()
def features(network: Backbone, path: Path, views: int) -> Tensor:
    """Features (views * patches, 384) of a picture and of the same turned."""
    size = 16 * GRID
    read = cv2.imread(str(path))
    if read is None:
        raise SystemExit(f"{path}: not a picture")
    picture = cv2.resize(cv2.cvtColor(read, cv2.COLOR_BGR2RGB), (size, size))
    turned = []
    for view in range(views):
        turn = cv2.getRotationMatrix2D((size / 2, size / 2), 360 * view / views, 1)
        turned.append(cv2.warpAffine(picture, turn, (size, size), borderMode=cv2.BORDER_REFLECT))
    pixels = torch.from_numpy(np.stack(turned)).permute(0, 3, 1, 2).float() / 255
    pixels -= torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    pixels /= torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    levels = [
        F.normalize(F.interpolate(F.avg_pool2d(level, 3, 1, 1), (GRID, GRID), mode="bilinear"))
        for level in network.levels(pixels).maps
    ]
    joined = torch.cat(levels, 1)[:, :DIM].permute(0, 2, 3, 1).flatten(0, 2)
    return F.normalize(joined, dim=1).clone()


def megabytes(bank: MemoryBank) -> dict[str, float]:
    """What a bank holds in memory, in MB (10^6 bytes)."""
    return {name: held.nbytes / 1e6 for name, held in bank.columns().items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--pictures", type=int, default=512)
    parser.add_argument("--views", type=int, default=8)
    parser.add_argument("--queries", type=int, default=6, help="pictures to search for")
    parser.add_argument("--storage", choices=["fp32", "fp16", "int8"], default="int8")
    parser.add_argument("--precision", choices=["auto", "fp32", "bf16", "fp16"], default="auto")
    parser.add_argument("--images", type=Path, nargs=2, metavar=("GOOD", "TEST"))
    parser.add_argument("--backbone", default="mobilenetv2_100")
    parser.add_argument("--weights", help="a local file; without it they are fetched")
    parser.add_argument("--layers", type=int, nargs="+", default=[2, 3, 4])
    parser.add_argument("--threads", type=int, default=min(2, torch.get_num_threads()))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--memory", type=int, default=512, help="MiB of a search")
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    faiss.omp_set_num_threads(options.threads)
    bank = MemoryBank(DIM, options.memory * 2**20, options.precision, options.storage)
    bank.reserve(options.pictures * options.views * PATCHES)
    plain = faiss.IndexFlatL2(DIM)
    parts, queries = (photographed if options.images else made_up)(options)
    for number, part in enumerate(parts):
        bank.add(part.numpy(), number)
        plain.add(part.numpy())
    start = time.perf_counter()
    bank.search(queries[0][1].numpy())
    first = time.perf_counter() - start
    sizes = megabytes(bank)
    print(
        f"{len(bank):,} rows of {DIM} values, {options.threads} threads; faiss {faiss.__version__}"
    )
    print(f"bank as {options.storage}: {sum(sizes.values()):,.0f} MB:", end=" ")
    print(", ".join(f"{name} {size:,.0f}" for name, size in sizes.items() if size >= 1))
    print(f"faiss: {len(bank) * DIM * 4e-6:,.0f} MB; first search: {first:.1f} s")
    print(f"{'queries':32} {'faiss s':>8} {'ours s':>8} {'ratio':>6} {'differ':>8}")
    ratios = []
    for name, asked in queries:
        taken: dict[str, list[float]] = {"faiss": [], "ours": []}
        for _ in range(options.repeats):
            start = time.perf_counter()
            theirs = plain.search(asked.numpy(), 1)[0]
            middle = time.perf_counter()
            ours = bank.search(asked.numpy())[0]
            taken["faiss"].append(middle - start)
            taken["ours"].append(time.perf_counter() - middle)
        spent = {who: statistics.median(times) for who, times in taken.items()}
        ratios.append(spent["faiss"] / spent["ours"])
        differ = float(abs(ours - theirs).max()) / 2
        print(
            f"{name[-32:]:32} {spent['faiss']:8.2f} {spent['ours']:8.2f} {ratios[-1]:6.1f} "
            f"{differ:8.1e}",
            flush=True,
        )
    print(f"median ratio {statistics.median(ratios):.1f}, lowest {min(ratios):.1f}")


if __name__ == "__main__":
    main()
