"""How much of the time of ``stream`` is not the network's, and where it goes.

    python benchmarks/latency.py [--method anomalydino patchcore] [--mask off on] [--threads 2]
    python benchmarks/latency.py --images GOOD_DIR              # pictures of your own
    python benchmarks/latency.py --threads 1 --clock cpu        # on a machine that others use

A detector is fitted on --shots pictures and streams others. Passes of the whole stream alternate
with passes of the network alone over the same pixels, prepared beforehand, with nothing else going
on. What the first takes longer than the second is everything else, work on other threads that slows
the network down included. Below that is what each step took inside the stream, from calls that the
stream itself made; steps marked "ahead" ran on other threads meanwhile. With --clock cpu all of it
is processor time, of all threads together.

Weights are random where none are given: they cost the same time as trained ones. The shares come
from one run on one machine; absolute times depend on what else it does.
"""

import argparse
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from scipy.stats import spearmanr
from torch import Tensor

from offnominal import find_images
from offnominal.backbones.catalogue import CATALOGUE
from offnominal.datasets.synthetic import draw_good
from offnominal.detectors import base
from offnominal.detectors.base import Detector
from offnominal.detectors.registry import detector_class

SETTINGS: dict[str, dict[str, Any]] = {
    "anomalydino": {"backbone": "dinov2_vits14", "resolution": 448, "rotations": "none"},
    "patchcore": {"backbone": "wide_resnet50_2", "resolution": 224, "coreset": 0.1},
}
# The method of a detector through which it runs its network.
NETWORK = {"anomalydino": "features", "patchcore": "levels"}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--method", nargs="+", choices=sorted(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--mask", nargs="+", choices=("off", "on"), default=["off", "on"])
    parser.add_argument("--backbone", help="instead of each method's own")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="fp32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--shots", type=int, default=16)
    parser.add_argument("--stream", type=int, default=8, help="pictures in each pass")
    parser.add_argument("--passes", type=int, default=5)
    parser.add_argument("--size", default="1280x960", help="of the drawn pictures")
    parser.add_argument("--images", type=Path, help="good pictures; drawn if left out")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    given = parser.parse_args()
    if given.clock == "cpu" and given.threads != 1:
        parser.error("--clock cpu takes --threads 1: threads that wait use processor time as well")
    torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory() as folder:
        count = given.shots + given.stream
        files = find_images([given.images]) if given.images else []
        if given.images and len(files) < count:
            parser.error(f"--images {given.images}: {len(files)} pictures; {count} are wanted")
        files = files[:count] or draw(Path(folder), count, given.size)
        for method in given.method:
            settings = dict(SETTINGS[method])
            settings["backbone"] = given.backbone or settings["backbone"]
            weights = given.weights or random_weights(settings["backbone"], Path(folder))
            settings |= {"weights": weights and str(weights), "calibrate_on": 1}
            settings |= {"precision": given.precision, "device": given.device}
            for mask in given.mask if method == "anomalydino" else [None]:
                settings |= {"mask": mask} if mask else {}
                detector = detector_class(method)(**settings).fit(files[: given.shots])
                title = f"{method}, {settings['backbone']}" + (f", mask {mask}" if mask else "")
                test = files[given.shots :]
                report(title, detector, NETWORK[method], test, given.passes, given.clock)
                if given.precision != "fp32":
                    plain = detector_class(method)(**settings | {"precision": "fp32"})
                    agreement(detector, plain.fit(files[: given.shots]), test)


def random_weights(backbone: str, folder: Path) -> Path | None:
    name = CATALOGUE[backbone].timm if backbone in CATALOGUE else backbone
    if not name:
        return None
    # Spread wide enough that patches differ, as trained features do; timm's own start makes them
    # all but equal, which no search can tell apart cheaply.
    generator = torch.Generator().manual_seed(0)
    tensors = timm.create_model(name, num_classes=0).state_dict()
    for tensor in tensors.values():
        if tensor.ndim > 1:
            tensor.normal_(generator=generator).div_(max(1, tensor[0].numel()) ** 0.5)
    path = folder / f"{backbone}.safetensors"
    save_file(tensors, path)
    return path


def draw(folder: Path, count: int, size: str) -> list[Path]:
    width, height = map(int, size.split("x"))
    files = []
    for index in range(count):
        picture = Image.fromarray(draw_good("fabric", 0, index)).resize((width, height))
        files.append(folder / f"{index:03}.jpg")
        picture.save(files[-1], quality=92)
    return files


class Steps:
    """Seconds spent in each step of a stream, from inside the calls that the stream makes."""

    def __init__(self, detector: Detector, network: str, clock: str) -> None:
        self.clock = time.perf_counter if clock == "wall" else time.thread_time
        self.took: dict[str, list[float]] = defaultdict(list)
        self.pixels: list[Tensor] = []  # what the network was given
        places: list[tuple[str, Any, str]] = [
            ("read, ahead", base, "read_image"),
            ("prepare", detector, "views"),
            ("network", detector, network),
            ("search", getattr(detector, "bank", None), "search"),
            ("mask", detector, "foreground"),
            ("map", detector, "map"),
        ]
        self.places = [place for place in places if hasattr(*place[1:])]

    def timed(self, step: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **options: Any) -> Any:
            start = self.clock()
            result = work(*given, **options)
            self.took[step].append(self.clock() - start)
            if step == "network":
                self.pixels.append(given[0])
            return result

        return call

    def __enter__(self) -> "Steps":
        self.took.clear()
        self.pixels.clear()
        self.own = [vars(owner).get(name) for _, owner, name in self.places]
        for step, owner, name in self.places:
            setattr(owner, name, self.timed(step, getattr(owner, name)))
        return self

    def __exit__(self, *exception: object) -> None:
        for (_, owner, name), own in zip(self.places, self.own, strict=True):
            if own is None:
                delattr(owner, name)
            else:
                setattr(owner, name, own)


def report(
    title: str, detector: Detector, network: str, files: list[Path], passes: int, clock: str
) -> None:
    now = time.perf_counter if clock == "wall" else time.process_time
    took: dict[str, list[float]] = defaultdict(list)
    steps: dict[str, list[float]] = defaultdict(list)
    forward = getattr(detector, network)
    for number in range(passes + 1):
        with Steps(detector, network, clock) as timed:
            start = now()
            *_, last = detector.stream(files)
            took["stream"].append(now() - start)
        for step, seconds in timed.took.items():
            steps[step].append(sum(seconds))
        start = now()
        with torch.inference_mode():
            for pixels in timed.pixels:
                forward(pixels)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
        took["alone"].append(now() - start)
        if not number:  # to warm up
            took.clear()
            steps.clear()

    bank: Any = vars(detector)["bank"]
    per = 1000 / len(files)
    whole, alone = median(took["stream"]), median(took["alone"])
    share = median(1 - a / s for a, s in zip(took["alone"], took["stream"], strict=True))
    height, width = last.image.shape[:2]
    grid = "x".join(map(str, last.patch_scores.shape))
    print(f"{title}: {width}x{height} px, grid {grid}, bank {len(bank):,} rows")
    print(f"  {'stream':<14}{per * whole:9.2f} ms an image")
    print(f"  {'network alone':<14}{per * alone:9.2f} ms")
    print(f"  {'all else':<14}{100 * share:9.1f} %")
    for step, seconds in sorted(steps.items(), key=lambda item: -median(item[1])):
        print(f"    {step:<12}{per * median(seconds):9.2f} ms")


def agreement(detector: Detector, plain: Detector, files: list[Path]) -> None:
    """How far the scores are from those in float32, and whether they keep their order."""
    found, wanted = ([p.score for p in each.stream(files)] for each in (detector, plain))
    off = max(abs(f - w) / abs(w) for f, w in zip(found, wanted, strict=True))
    order = spearmanr(found, wanted).statistic
    print(f"  scores differ from fp32 by at most {100 * off:.2f} %; order: Spearman {order:.4f}")


if __name__ == "__main__":
    main()
