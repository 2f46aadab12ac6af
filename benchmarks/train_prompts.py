"""Train AnomalyCLIP's prompts on half of a data set's test images, and measure on the other half.

Run ``python benchmarks/train_prompts.py DATASET``; ``--help`` lists the rest. Without ``--weights``
the CLIP model is one that anyone can rebuild: random weights from seeds, the first layer's filters
oriented waves. Printed are the losses, AUROC before and after, what the cache of features saves of
an epoch's time, and what encoding 17 places of a prompt rather than 77 saves of a step's.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from offnominal.backbones.cache import FeatureCache
from offnominal.cli.terminal import warn_untrained
from offnominal.datasets import open_dataset
from offnominal.datasets.dataset import Dataset
from offnominal.datasets.masks import sample_mask
from offnominal.datasets.sample import Sample
from offnominal.detectors.language.anomalyclip import AnomalyCLIP
from offnominal.detectors.language.training.learners import LanguageRecipe
from offnominal.detectors.language.training.samples import choose_samples
from offnominal.language.learned import AnomalyCLIPPrompts
from offnominal.metrics.image import image_metrics
from offnominal.train import train
from offnominal.training.checkpoint import mean_losses

_EVERY = 5  # pixels in both directions that the pixel AUROC is measured on

_MODEL: dict[str, Any] = {
    "embed_dim": 96,
    "vision_cfg": {
        "image_size": 224,
        "layers": 6,
        "width": 192,
        "head_width": 64,
        "patch_size": 14,
    },
    "text_cfg": {
        "context_length": 77,
        "vocab_size": 49408,
        "width": 128,
        "heads": 2,
        "layers": 12,
    },
}


def halves(dataset: Dataset, most: int) -> tuple[list[Sample], list[Sample]]:
    """Test images by turns, each kind of defect by itself, at most so many of a kind in a half."""
    kinds: dict[tuple[str, str], list[Sample]] = {}
    for sample in sorted(dataset.samples, key=lambda s: s.image):
        if sample.split == "test":
            kinds.setdefault((sample.category, sample.defect), []).append(sample)
    first = [s for mine in kinds.values() for s in mine[0::2][:most]]
    return first, [s for mine in kinds.values() for s in mine[1::2][:most]]


def measure(prompts: Path, samples: Sequence[Sample], options: dict[str, Any]) -> dict[str, float]:
    """AUROC of images, by the text score and by the map's maximum, and of pixels."""
    detector = AnomalyCLIP(prompts=prompts, **options).fit([])
    own, peaks, heat, marked = [], [], [], []
    for sample, found in zip(samples, detector.stream([s.image for s in samples]), strict=True):
        own.append(found.score)
        peaks.append(float(found.patch_scores.max()))
        truth = sample_mask(sample, (found.image.shape[0], found.image.shape[1]))
        if truth is not None:
            heat.append(found.anomaly_map[::_EVERY, ::_EVERY].ravel())
            marked.append(truth[::_EVERY, ::_EVERY].ravel())
    labels = [sample.label for sample in samples]
    return {
        "images, by the text score": image_metrics(labels, own)["image_auroc"],
        "images, by the map": image_metrics(labels, peaks)["image_auroc"],
        "pixels": image_metrics(np.concatenate(marked), np.concatenate(heat))["image_auroc"],
    }


def median_time(work: Callable[[], object], turns: int = 7) -> float:
    times = []
    for _ in range(turns):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def text_times(detector: AnomalyCLIP) -> tuple[float, float]:
    """Seconds for both prompts forwards and backwards: all 77 places, and those up to the end."""
    text = detector.clip.load_text()
    prompts = AnomalyCLIPPrompts(text.width)

    def short() -> None:
        torch.autograd.backward(prompts(text, ["object"]).sum())

    def long() -> None:
        ids = text.tokenize(prompts.texts()).to(text.positional_embedding.device)
        rows = text.embed_ids(ids)
        learned = torch.stack([prompts.normal, prompts.abnormal])
        rows = torch.cat([rows[:, :1], learned, rows[:, 1 + prompts.length :]], dim=1)
        torch.autograd.backward(
            text.encode_embedded(rows, text.ends(ids), list(prompts.deep)).sum()
        )

    prompts.to(text.positional_embedding.device)
    return median_time(long), median_time(short)


def run(args: argparse.Namespace, folder: Path) -> None:
    weights = args.weights
    if weights is None:
        sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
        from tests.training.material import save_gabor_clip

        weights = save_gabor_clip(folder, _MODEL)
    options: dict[str, Any] = {"weights": str(weights), "value_blocks": args.value_blocks}
    dataset = open_dataset(args.data)
    mine, others = halves(dataset, args.most)
    dataset = replace(dataset, samples=tuple(mine))
    chosen = choose_samples(mine, "test", True, dataset.root)
    detector = AnomalyCLIP(**options)
    warn_untrained(detector)
    recipe = LanguageRecipe(epochs=args.epochs, seed=args.seed)
    ends: list[float] = []

    def progress(stage: str, done: int) -> None:
        if done % len(chosen.samples) == 0:
            ends.append(time.perf_counter())

    before, after = folder / "before.safetensors", folder / "after.safetensors"
    cache = FeatureCache(folder / "cache", 20 * 10**9)
    train(detector, dataset, before, replace(recipe, epochs=0))
    start = time.perf_counter()
    outcome = train(detector, dataset, after, recipe, cache=cache, progress=progress, tell=print)
    spans = np.diff([start, *ends])
    for number, mean in enumerate(mean_losses(outcome.history), 1):
        parts = ", ".join(f"{name} {value:.4f}" for name, value in mean.items())
        print(f"epoch {number}: {parts}; {spans[number - 1]:.1f} s")
    cached = float(np.median(spans[1:]))
    print(
        f"an epoch takes {spans[0]:.1f} s through the image tower and {cached:.1f} s from the "
        f"cache: ratio {spans[0] / cached:.1f}"
    )
    long, short = text_times(detector)
    print(
        f"both prompts forwards and backwards: 77 places {1000 * long:.1f} ms, up to the end "
        f"{1000 * short:.1f} ms: ratio {long / short:.1f}"
    )
    old, new = measure(before, others, options), measure(after, others, options)
    for name, value in old.items():
        print(f"AUROC of {name}: untrained {100 * value:.1f}, trained {100 * new[name]:.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="folder of a labelled data set")
    parser.add_argument("--weights", type=Path, help="a CLIP model; default: one made from seeds")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--seed", type=int, default=111)
    parser.add_argument("--most", type=int, default=10**6, help="images of a kind in each half")
    parser.add_argument("--value-blocks", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run(args, Path(folder))


if __name__ == "__main__":
    main()
