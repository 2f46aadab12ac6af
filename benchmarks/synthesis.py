"""What synthetic defects are worth: a small segmenter learns from them, and meets real ones.

    python benchmarks/synthesis.py DATA [--kinds perlin seeds] [--steps 250] [--draem]

DATA is one category in MVTec layout, with masks. Ten real defective images, drawn evenly from all
kinds, are taken out of the test set: seeds and diffusion grow from them, and so does the row
"real", a segmenter that sees these ten and no other defect. The rows "real + KIND" see both. A tiny
U-Net on grey images of 128 pixels sees as many good images as defective ones; flips are its only
augmentation. Image AUROC (of the largest mean over 9 x 9 pixels) and pixel AP on the real defects
that are left, in per cent, as mean and deviation over seeds. With --draem, DRAEM with narrow nets
is trained on the same synthetic defects in place of its own.
"""

import argparse
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from offnominal.datasets import open_dataset
from offnominal.datasets.masks import sample_mask
from offnominal.datasets.sample import Sample
from offnominal.detectors.reconstruction.draem import draem_losses
from offnominal.detectors.reconstruction.networks import EncoderDecoder, UNet
from offnominal.images import read_image
from offnominal.synthesis.kinds import KINDS, drawer
from offnominal.synthesis.painter_file import learn, open_painter
from offnominal.synthesis.seeds import Seed, cut_seeds

SIDE = 128
NEAR = 9  # pixels over which a map is averaged


class Set(NamedTuple):
    """Images, their masks, and the good images that they were made of: (N, 1, 128, 128) each."""

    images: Tensor
    masks: Tensor
    good: Tensor


class Segmenter(nn.Module):
    """Three levels of two convolutions each, on 2 x 2 pixels; logits at the size of the image."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        widths = [width, 2 * width, 4 * width]
        self.down = nn.ModuleList(map(block, [4, *widths[:-1]], widths))
        self.up = nn.ModuleList(
            block(deep + fine, fine)
            for deep, fine in zip(widths[:0:-1], widths[-2::-1], strict=True)
        )
        self.head = nn.Conv2d(width, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        kept: list[Tensor] = []
        x = F.pixel_unshuffle(x, 2)
        for level in self.down:
            x = level(F.max_pool2d(x, 2) if kept else x)
            kept.append(x)
        for level, fine in zip(self.up, kept[-2::-1], strict=True):
            x = level(torch.cat([F.interpolate(x, scale_factor=2.0), fine], 1))
        return F.pixel_shuffle(self.head(x), 2)


def block(into: int, out: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (into, out):
        layers += [nn.Conv2d(channels, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU()]
    return nn.Sequential(*layers)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--count", type=int, default=150, help="synthetic images of each kind")
    parser.add_argument("--few", type=int, default=10, help="real defective images to learn from")
    parser.add_argument("--steps", type=int, default=250, help="of 12 images each")
    parser.add_argument("--paint", type=int, default=600, help="training steps of diffusion")
    parser.add_argument("--painter", type=Path, default=Path("painter.safetensors"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--draem", action="store_true")
    parser.add_argument("--alone", action="store_true", help="no rows with the real ones beside")
    given = parser.parse_args()
    torch.set_num_threads(1)
    dataset = open_dataset(given.data)
    [category] = dataset.categories
    good = [read_image(sample.image) for sample in dataset.train(category)]
    test = dataset.test(category)
    few = drawn([sample for sample in test if sample.label], given.few)
    kept = [sample for sample in test if sample not in few]
    found = prepared([pair(sample) for sample in kept])
    labels = np.array([sample.label for sample in kept])
    print(f"{len(good)} good images, {len(few)} real defects to learn from, {len(kept)} to test on")
    real = [pair(sample) for sample in few]
    seeds = [seed for image, mask in real for seed in cut_seeds(image, mask)]
    clean = prepared([(image, np.zeros(image.shape[:2], bool)) for image in good])

    # DRAEM paints over what was good before, which nobody knows of a real defect.
    sets = {} if given.draem else {"real": prepared(real)}
    for kind in given.kinds:
        began = time.perf_counter()
        made = synthesised(kind, good, seeds, given)
        seconds = (time.perf_counter() - began) / given.count
        print(f"{kind}: {seconds:.2f} s an image, of which {made.masks.mean():.2%} is defective")
        sets[kind] = made
        if not given.draem and not given.alone:
            sets[f"real + {kind}"] = joined(made, sets["real"])
    train = trained_draem if given.draem else trained
    print(f"{'':20}{'image AUROC':>16}{'pixel AP':>16}{'seconds':>10}")
    for name, made in sets.items():
        began = time.perf_counter()
        figures = [
            measured(train(clean, made, given.steps, seed), found, labels) for seed in given.seeds
        ]
        seconds = (time.perf_counter() - began) / len(figures)
        told = [f"{np.mean(v):.1f} +- {np.std(v):.1f}" for v in 100 * np.array(figures).T]
        print(f"{name:20}{told[0]:>16}{told[1]:>16}{seconds:>10.0f}", flush=True)


def drawn(samples: Sequence[Sample], number: int) -> list[Sample]:
    """So many of them with masks that are not empty, evenly of all kinds."""
    rng = np.random.default_rng(0)
    kinds = sorted({sample.defect for sample in samples})
    order = {
        kind: list(rng.permutation([i for i, s in enumerate(samples) if s.defect == kind]))
        for kind in kinds
    }
    chosen: list[Sample] = []
    while len(chosen) < number:
        sample = samples[order[kinds[len(chosen) % len(kinds)]].pop()]
        chosen += [sample] if pair(sample)[1].any() else []
    return chosen


def pair(sample: Sample) -> tuple[np.ndarray, np.ndarray]:
    image = read_image(sample.image)
    mask = sample_mask(sample, image.shape[:2])
    assert mask is not None
    return image, mask


def synthesised(
    kind: Any, good: Sequence[np.ndarray], seeds: Sequence[Seed], given: argparse.Namespace
) -> Set:
    def other(rng: np.random.Generator) -> tuple[np.ndarray, None]:
        return good[int(rng.integers(len(good)))], None

    if kind == "diffusion":
        draw: Any = (
            open_painter(given.painter)
            if given.painter.exists()
            else learn(given.painter, seeds, given.paint, 0, print)
        )
    else:
        draw = drawer(kind, None, other, seeds)
    made, sources = [], []
    for number in range(given.count):
        rng = np.random.default_rng([0, number])
        source, image, mask = good[0], good[0], np.zeros((1, 1), bool)
        while not mask.any():
            source = good[int(rng.integers(len(good)))]
            image, mask = draw(source, rng, None)
        made.append((image, mask))
        sources.append((source, mask))
    return prepared(made)._replace(good=prepared(sources).images)


def prepared(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> Set:
    """Grey images around 0, and masks: a pixel counts where a quarter of it is defective."""
    size, images, masks = (SIDE, SIDE), [], []
    for image, mask in pairs:
        images.append(cv2.resize(image.mean(-1), size, interpolation=cv2.INTER_AREA) / 64 - 2)
        area = cv2.resize(mask.astype(np.float32), size, interpolation=cv2.INTER_AREA)
        masks.append(area >= 0.25)
    made, truth = (
        torch.from_numpy(np.array(each, np.float32)[:, None]) for each in (images, masks)
    )
    return Set(made, truth, made)


def joined(made: Set, real: Set) -> Set:
    """Half of what is drawn is real: the real ones are repeated."""
    times = max(1, len(made.images) // len(real.images))
    repeated = [each.repeat(times, 1, 1, 1) for each in real]
    return Set(*(torch.cat(both) for both in zip(made, repeated, strict=True)))


def batches(clean: Set, made: Set, steps: int, seed: int) -> Iterator[Set]:
    """Of 6 good and 6 defective images each, flipped."""
    rng = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        here, there = (
            torch.randint(len(each.images), (6,), generator=rng) for each in (clean, made)
        )
        sides = [d for d in (2, 3) if torch.rand((), generator=rng) < 0.5]
        both = zip(clean, made, strict=True)
        yield Set(*(torch.cat([one[here], other[there]]).flip(sides) for one, other in both))


def trained(clean: Set, made: Set, steps: int, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    net = Segmenter()
    optimiser = torch.optim.Adam(net.parameters(), lr=2e-3)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for images, masks, _ in batches(clean, made, steps, seed):
        logits = net(images)
        chance = torch.sigmoid(logits)
        overlap = 2 * (chance * masks).sum() / (chance.sum() + masks.sum() + 1)
        loss = F.binary_cross_entropy_with_logits(logits, masks) + 1 - overlap
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.step()
        falling.step()
    return net.eval()


class Draem(nn.Module):
    """DRAEM with narrow networks: one that paints defects over, one that finds them."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.painter, self.finder = EncoderDecoder(width), UNet(6, 2, width // 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.both(x)[1].softmax(1)[:, 1:].logit(1e-6)

    def both(self, x: Tensor) -> tuple[Tensor, Tensor]:
        pixels = scaled(x)
        painted = self.painter(pixels)
        return painted, self.finder(torch.cat([painted, pixels], 1))


def scaled(x: Tensor) -> Tensor:
    """On [0, 1], three channels."""
    return ((x + 2) * 64 / 255).repeat(1, 3, 1, 1)


def trained_draem(clean: Set, made: Set, steps: int, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    net = Draem()
    optimiser = torch.optim.Adam(net.parameters(), lr=5e-4)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for batch in batches(clean, made, steps, seed):
        painted, logits = net.both(batch.images)
        parts = draem_losses(painted, logits, scaled(batch.good), batch.masks[:, 0])
        optimiser.zero_grad()
        torch.autograd.backward(parts["total"])
        optimiser.step()
        falling.step()
    return net.eval()


@torch.inference_mode()
def measured(net: nn.Module, found: Set, labels: np.ndarray) -> tuple[float, float]:
    """Image AUROC and pixel AP."""
    logits = torch.cat([net(some) for some in torch.split(found.images, 32)])
    scores = F.avg_pool2d(logits.sigmoid(), NEAR, 1, NEAR // 2).amax((1, 2, 3)).numpy()
    # Nine million pixels, counted in steps of 0.005 on the logits.
    levels = ((logits.clamp(-10, 10) + 10) * 200).round().long()
    bad, every = (torch.bincount(v.flatten(), minlength=4001).flip(0).cumsum(0).double()
                  for v in (levels[found.masks > 0], levels))  # fmt: skip
    recall = torch.cat([torch.zeros(1, dtype=torch.float64), bad / bad[-1]])
    pixels = (recall.diff() * bad / every.clamp(min=1)).sum()
    return float(roc_auc_score(labels, scores)), float(pixels)


if __name__ == "__main__":
    main()
