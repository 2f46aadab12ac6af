"""What the feature cache saves: one grid without it, with an empty one, and with a full one.

    python benchmarks/features.py [--backbone dinov2_vits14] [--resolution 448]

Shots x seeds x statistics on synthetic fabric, through the benchmark runner. Also: the time of one
plain pass over the same images, which no grid can undercut. Weights are random where none are
given: they cost the same time as trained ones.
"""

import argparse
import tempfile
import time
from pathlib import Path

import torch

from latency import random_weights
from offnominal.backbones.cache import FeatureCache
from offnominal.benchmark.plan import Request, make_plan
from offnominal.benchmark.runner import Outcome, Runner
from offnominal.benchmark.store import Store
from offnominal.datasets import open_dataset
from offnominal.datasets.synthetic import write_dataset
from offnominal.detectors.memory_bank.anomalydino import AnomalyDINO
from offnominal.images import read_image

STATISTICS = ("top1", "max", "mean")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--backbone", default="dinov2_vits14")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--resolution", type=int, default=448)
    parser.add_argument("--shots", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory() as folder:
        compare(given, Path(folder))


def compare(given: argparse.Namespace, folder: Path) -> None:
    write_dataset(folder / "parts", ["fabric"], n_train=12, n_good=10, n_per_defect=4)
    dataset = open_dataset(folder / "parts")
    weights = given.weights or random_weights(given.backbone, folder)
    backbone = given.backbone if weights is None else f"{given.backbone}={weights}"
    request = Request(
        shots=given.shots,
        seeds=given.seeds,
        backbones=[backbone],
        sets={
            "rotations": ["none"],
            "resolution": [given.resolution],
            "aggregate": list(STATISTICS),
        },
    )
    work = make_plan([dataset], request)
    groups = len({cell.group for cell in work.cells})
    images = [sample.image for sample in dataset.samples]
    setting = f"{given.backbone} at {given.resolution}, {torch.get_num_threads()} threads"
    print(f"{setting}, {len(images)} images")
    print(f"{len(work.cells)} cells = {groups} fits x {len(STATISTICS)} statistics\n")

    alone = time_one_pass(images, given, weights)
    print(f"one pass of the network over every image   {alone:8.1f} s")

    def run(name: str, cache: FeatureCache | None) -> tuple[float, Outcome]:
        start = time.perf_counter()
        outcome = Runner(work, Store(folder / name), cache).run()
        return time.perf_counter() - start, outcome

    empty = folder / "cache"
    times = {
        "without a cache": run("without", None),
        "with an empty cache": run("cold", FeatureCache(empty, 10**11)),
        "with a full cache": run("warm", FeatureCache(empty, 10**11)),
    }
    plain = times["without a cache"][0]
    for words, (seconds, outcome) in times.items():
        print(
            f"{words:<43}{seconds:8.1f} s   {plain / seconds:5.2f} times as fast   "
            f"{seconds / alone:5.2f} passes   {outcome.computed:5d} computed "
            f"{outcome.from_cache:5d} found"
        )
    print(
        f"\nWithout sharing a fit between statistics the first line would be about "
        f"{len(STATISTICS)} times as long."
    )


def time_one_pass(images: list[Path], given: argparse.Namespace, weights: Path | None) -> float:
    detector = AnomalyDINO(
        backbone=given.backbone,
        weights=None if weights is None else str(weights),
        resolution=given.resolution,
    )
    with torch.inference_mode():
        for number, image in enumerate([images[0], *images]):
            if number == 1:  # the first one was to warm up
                start = time.perf_counter()
            for view in detector.views(read_image(image)):
                detector.embed(torch.from_numpy(view.pixels))
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
