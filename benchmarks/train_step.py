"""A training step here beside the released code's own, on the same machine, in one run.

    python benchmarks/train_step.py RELEASED [--methods stfpm efficientad fastflow draem]
        [--side 256] [--pairs 5] [--threads 2] [--width 128]

RELEASED is a folder with the repositories STFPM (gdwang08), EfficientAD (nelson1425), FastFlow
(gathierry) and DRAEM (VitjanZ), each in a folder of its name; FastFlow's needs FrEIA 0.2. Their
networks and losses are imported as they are, and a step is what their training loops do with a
batch: forward pass, loss, backward pass, optimiser. Images, sizes and batches are the same on both
sides, and random; making a batch (DRAEM's Perlin noise) is left out on both. Steps are taken in
turn, in float32; a figure is the median over the pairs, and above 1 we are faster. "cached" leaves
out what is computed once for each image here: the frozen network.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam

from offnominal.detectors.reconstruction.draem import draem_losses
from offnominal.detectors.registry import detector_class
from offnominal.training.images import Batch, FrozenCache
from offnominal.training.loop import descend

Step = Callable[[], object]
BATCHES = {"stfpm": 32, "efficientad": 1, "fastflow": 32, "draem": 8}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("released", type=Path)
    parser.add_argument("--methods", nargs="+", default=list(BATCHES), choices=list(BATCHES))
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--batch", type=int, help="default: the paper's")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--width", type=int, default=128, help="DRAEM's; the other network's half")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    print(f"{given.side} px, {given.threads} threads, torch {torch.__version__}")
    for method in given.methods:
        batch = given.batch or BATCHES[method]
        theirs = RELEASED[method](given, batch)
        ours, cached = our_steps(method, given, batch)
        steps = [theirs, ours, *([cached] if cached else [])]
        for step in steps:
            step()
        times: list[list[float]] = [[] for _ in steps]
        for _ in range(given.pairs):
            for own, step in zip(times, steps, strict=True):
                start = time.perf_counter()
                step()
                own.append(time.perf_counter() - start)
        ratios = [
            statistics.median(a / b for a, b in zip(times[0], own, strict=True))
            for own in times[1:]
        ]
        line = f"{method:<12} batch {batch:<3} released {statistics.median(times[0]):6.2f} s, "
        line += f"here {statistics.median(times[1]):6.2f} s: {ratios[0]:.2f} times as fast"
        print(line + (f", {ratios[1]:.2f} cached" if cached else ""), flush=True)


# -- ours -----------------------------------------------------------------------------------------


def our_steps(method: str, given: argparse.Namespace, size: int) -> tuple[Step, Step | None]:
    """A step without and with the cache of what is frozen."""
    kind = detector_class(method)
    options: dict[str, Any] = {"resolution": given.side, "device": "cpu"}
    options |= {"width": given.width} if method == "draem" else {}
    detector: Any = kind(**options)
    if hasattr(detector, "use_network"):
        detector.use_network(seeded_network(method))
    detector.make_networks()
    detector.train()
    optimisers = detector.optimisers()
    images = torch.randint(0, 256, (size, 3, given.side, given.side), dtype=torch.uint8)
    pixels = torch.randn(size, 3, given.side, given.side)
    batch = Batch(images, pixels, torch.arange(size), np.random.default_rng(0))

    class Loss:
        """The detector, as the loop sees it."""

        parameters = detector.parameters

        def loss(self, batch: Batch) -> dict[str, Tensor]:
            if method == "draem":  # whose defects are there already, as on the other side
                painted = detector.painter(pixels)
                told = detector.finder(torch.cat([painted, pixels], 1))
                return draem_losses(painted, told, target, truth)
            found: dict[str, Tensor] = detector.loss(batch)
            return found

    learner: Any = Loss()
    target = torch.rand_like(pixels)
    truth = (torch.rand(size, given.side, given.side) > 0.9).float()

    def plain() -> None:
        detector._cache = None
        descend(learner, optimisers, batch)

    if not hasattr(detector, "frozen_of"):
        return plain, None
    cache = FrozenCache(size)

    def cached() -> None:
        detector._cache = cache
        descend(learner, optimisers, batch)

    return plain, cached


def seeded_network(method: str) -> Any:
    """A backbone with the weights that torch draws."""
    import tempfile

    import timm
    from safetensors.torch import save_file

    from offnominal.backbones import load_backbone

    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "seeded.safetensors")
        if method == "efficientad":
            from offnominal.backbones.pdn import PatchDescription

            save_file(PatchDescription("pdn_small", 384).state_dict(), path)
            return load_backbone("pdn_small", path)
        save_file(timm.create_model("resnet18", num_classes=0).state_dict(), path)
        network: Any = load_backbone("resnet18", path)
        return network.at_levels((1, 2, 3))


# -- the released codes' ---------------------------------------------------------------------------


@contextmanager
def imports_from(folder: Path) -> Iterator[None]:
    """Import modules of a repository, whose names are no package's."""
    before, cuda = set(sys.modules), Tensor.cuda
    sys.path.insert(0, str(folder))
    Tensor.cuda = lambda self, *_: self  # type: ignore[method-assign]  # some ask for it at import
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        Tensor.cuda = cuda  # type: ignore[method-assign]
        for name in set(sys.modules) - before:
            origin = getattr(sys.modules[name], "__file__", None) or ""
            if origin.startswith(str(folder)):
                del sys.modules[name]


def stfpm(given: argparse.Namespace, size: int) -> Step:
    with imports_from(given.released / "STFPM"):
        main_module = import_module("main")
    teacher, student = (main_module.ResNet18_MS3(pretrained=False) for _ in range(2))
    teacher.eval()
    optimiser = SGD(student.parameters(), 0.4, momentum=0.9, weight_decay=1e-4)
    pixels = torch.randn(size, 3, given.side, given.side)

    def step() -> None:
        student.train()
        with torch.no_grad():
            known = teacher(pixels)
        found = student(pixels)
        loss: Any = 0
        for one, other in zip(known, found, strict=True):
            unit, mine = (nn.functional.normalize(each, dim=1) for each in (one, other))
            loss = loss + torch.sum((unit - mine) ** 2, 1).mean()
        update(optimiser, loss)

    return step


def efficientad(given: argparse.Namespace, size: int) -> Step:
    with imports_from(given.released / "EfficientAD"):
        common = import_module("common")
    teacher, student = common.get_pdn_small(384).eval(), common.get_pdn_small(768).train()
    painter = common.get_autoencoder(384).train()
    optimiser = Adam([*student.parameters(), *painter.parameters()], lr=1e-4, weight_decay=1e-5)
    first, second = (torch.randn(size, 3, given.side, given.side) for _ in range(2))

    def step() -> None:
        with torch.no_grad():
            known = teacher(first)
        apart = (known - student(first)[:, :384]) ** 2
        hard = apart[apart >= torch.quantile(apart, q=0.999)].mean()
        painted = painter(second)
        with torch.no_grad():
            known = teacher(second)
        mine = student(second)[:, 384:]
        loss = hard + ((known - painted) ** 2).mean() + ((painted - mine) ** 2).mean()
        update(optimiser, loss)

    return step


def fastflow(given: argparse.Namespace, size: int) -> Step:
    import timm

    create = timm.create_model
    with imports_from(given.released / "FastFlow"):
        module: Any = import_module("fastflow")
    timm.create_model = lambda *a, **k: create(*a, **{**k, "pretrained": False})
    try:
        flow = module.FastFlow("resnet18", 8, given.side, conv3x3_only=True)
    finally:
        timm.create_model = create
    optimiser = Adam(flow.parameters(), lr=1e-3, weight_decay=1e-5)
    pixels = torch.randn(size, 3, given.side, given.side)

    def step() -> None:
        flow.train()
        update(optimiser, flow(pixels)["loss"])

    return step


def draem(given: argparse.Namespace, size: int) -> Step:
    with imports_from(given.released / "DRAEM"):
        nets, losses = import_module("model_unet"), import_module("loss")
        structural, focal = losses.SSIM(), losses.FocalLoss()
    painter = nets.ReconstructiveSubNetwork(3, 3, base_width=given.width)
    teller = nets.DiscriminativeSubNetwork(6, 2, base_channels=given.width // 2)
    optimiser = Adam([*painter.parameters(), *teller.parameters()], lr=1e-4)
    target, made = (torch.rand(size, 3, given.side, given.side) for _ in range(2))
    mask = (torch.rand(size, 1, given.side, given.side) > 0.9).float()

    def step() -> None:
        painted = painter(made)
        told = torch.softmax(teller(torch.cat((painted, made), 1)), 1)
        loss = nn.functional.mse_loss(painted, target) + structural(painted, target)
        update(optimiser, loss + focal(told, mask))

    return step


def update(optimiser: torch.optim.Optimizer, loss: Tensor) -> None:
    """The end of every step."""
    optimiser.zero_grad()
    torch.autograd.backward(loss)
    optimiser.step()


RELEASED = {"stfpm": stfpm, "efficientad": efficientad, "fastflow": fastflow, "draem": draem}


if __name__ == "__main__":
    main()
