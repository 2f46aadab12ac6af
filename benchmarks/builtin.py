"""Image AUROC of the built-in backbones beside a learned one, by number of good images.

Run ``python benchmarks/builtin.py DATA --weights FILE``, where DATA holds ``train/good``,
``test/good`` and ``test/<defect>``. Every backbone sees the same reference images. The score of an
image is the mean of the largest 1 % of its patches' distances to the nearest good patch.

One thread by default; ``--shots 1 4 16 --seeds 5 3 2`` leaves out the slowest part. Needs about
4 GB of memory.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score
from torch import Tensor

from offnominal.backbones import load_backbone
from offnominal.backbones.base import Backbone, Normalize, Resize
from offnominal.images import read_image
from offnominal.memory import MemoryBank
from offnominal.paths import find_images
from offnominal.scoring import aggregate
from offnominal.sizing import resize_image, to_pixels


@torch.inference_mode()
def extract(net: Backbone, paths: Sequence[Path], resize: Resize) -> tuple[list[Tensor], float]:
    """Patch features (N, D) of every image, and the backbone's median milliseconds."""
    features, took = [], []
    for path in paths:
        image = resize_image(read_image(path), net.resolution, net.multiple, resize)
        pixels = torch.from_numpy(to_pixels(image, net.mean, net.std))[None]
        start = time.perf_counter()
        grid = net(pixels)
        took.append(time.perf_counter() - start)
        features.append(grid[0].flatten(1).T.contiguous())
    return features, 1000 * float(np.median(took))


def normalised(bank: Tensor, queries: Tensor, how: Normalize) -> tuple[Tensor, Tensor]:
    """Both as a detector with this ``normalize`` compares them."""
    if how == "l2":
        return F.normalize(bank, dim=1), F.normalize(queries, dim=1)
    if how == "none":
        return bank, queries
    centre, deviation = bank.mean(0), bank.std(0, correction=0)
    scale = torch.where(deviation > 1e-6, deviation, torch.ones_like(deviation))
    return (bank - centre) / scale, (queries - centre) / scale


def auroc(bank: Tensor, test: list[Tensor], labels: list[int], how: Normalize) -> float:
    """Image AUROC in percent."""
    bank, queries = normalised(bank, torch.cat(test), how)
    memory = MemoryBank(bank.shape[1])
    memory.add(bank.numpy(), 0)
    distances = torch.from_numpy(memory.search(queries.numpy())[0][:, 0]).sqrt()
    images = torch.split(distances, [len(image) for image in test])
    scores = [aggregate(image.numpy()[None]) for image in images]
    return 100 * float(roc_auc_score(labels, scores))


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", type=Path, help="folder with train/good and test")
    parser.add_argument("--weights", type=Path, help="weights of a learned network to set beside")
    parser.add_argument("--shots", type=int, nargs="+", default=[1, 4, 16, 200])
    parser.add_argument("--seeds", type=int, nargs="+", default=[5, 3, 2, 1], help="for each shots")
    parser.add_argument("--resize", choices=["square", "short"], help="default: each one's own")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    if len(options.seeds) != len(options.shots):
        parser.error("--seeds needs one number for each of --shots")
    torch.set_num_threads(options.threads)

    train = find_images([options.data / "train" / "good"])
    test = find_images([options.data / "test"])
    labels = [int(path.parent.name != "good") for path in test]
    most = max(options.shots)
    if len(train) < most:
        parser.error(f"--shots {most}: {options.data / 'train' / 'good'} has {len(train)} images")
    print(
        f"{len(train)} good to draw from; test {labels.count(0)} good, {labels.count(1)} defective"
    )
    # One order per seed; fewer shots are its beginning.
    orders = [
        np.random.default_rng(seed).permutation(len(train)) for seed in range(max(options.seeds))
    ]
    used = sorted(
        {
            int(index)
            for shots, seeds in zip(options.shots, options.seeds, strict=True)
            for order in orders[:seeds]
            for index in order[:shots]
        }
    )
    nets = [load_backbone("builtin"), load_backbone("builtin-aligned")]
    if options.weights:
        nets.append(load_backbone(None, options.weights))
    print(f"\n| backbone | ms | {' | '.join(f'{shots} shots' for shots in options.shots)} |")
    print(f"|---|---|{'---|' * len(options.shots)}")
    for net in nets:
        resize = options.resize or net.resize
        features, _ = extract(net, [train[index] for index in used], resize)
        good = dict(zip(used, features, strict=True))
        tested, milliseconds = extract(net, test, resize)
        cells = []
        for shots, seeds in zip(options.shots, options.seeds, strict=True):
            values = [
                auroc(
                    torch.cat([good[i] for i in order[:shots].tolist()]),
                    tested,
                    labels,
                    net.normalize,
                )
                for order in orders[:seeds]
            ]
            spread = f" ± {np.std(values):.1f}" if seeds > 1 else ""
            cells.append(f"{np.mean(values):.1f}{spread}")
        print(f"| {net.name} ({resize}) | {milliseconds:.0f} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
