"""Where the time of one image goes: read, prepare, backbone, search, mask, map.

    python benchmarks/latency.py [--backbone dinov2_vits14] [--shots 16] [--images FOLDER]

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
from typing import TypeVar

import numpy as np
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from offnominal import AnomalyDINO, find_images, read_image
from offnominal.backbones.catalogue import CATALOGUE
from offnominal.datasets.synthetic import draw_good
from offnominal.foreground import foreground_mask
from offnominal.scoring import aggregate, anomaly_map

T = TypeVar("T")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--backbone", default="dinov2_vits14")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--shots", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--images", type=Path, help="good images; drawn if left out")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory() as folder:
        weights = given.weights or random_weights(given.backbone, Path(folder))
        files = find_images([given.images]) if given.images else draw(Path(folder), given.shots + 1)
        report(given.backbone, weights, files, given.shots, given.repeats)


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
    path = folder / "random.safetensors"
    save_file(tensors, path)
    return path


def draw(folder: Path, count: int) -> list[Path]:
    files = []
    for index in range(count):
        # The size of a small camera's picture, enlarged from the drawing.
        picture = Image.fromarray(draw_good("board", 0, index)).resize((1280, 960))
        files.append(folder / f"{index:03}.jpg")
        picture.save(files[-1], quality=92)
    return files


def report(
    backbone: str, weights: Path | None, files: list[Path], shots: int, repeats: int
) -> None:
    detector = AnomalyDINO(
        backbone=backbone,
        weights=str(weights) if weights else None,
        rotations="none",
        mask="off",
        calibrate_on=1,
    )
    detector.fit(files[:shots])
    test = files[shots % len(files)]
    took: dict[str, list[float]] = defaultdict(list)

    def timed(stage: str, work: Callable[[], T]) -> T:
        start = time.perf_counter()
        result = work()
        took[stage].append(time.perf_counter() - start)
        return result

    with torch.inference_mode():
        for _ in range(repeats + 1):
            image = timed("read", lambda: read_image(test))
            pixels = timed("prepare", lambda: detector.views(image).pixels[0][None])  # noqa: B023
            maps = timed("backbone", lambda: detector.features(pixels))  # noqa: B023
            grid = (maps.shape[2], maps.shape[3])
            tokens = maps[0].flatten(1).T.contiguous()
            squared = timed(
                "search",
                lambda: detector.bank.search(detector._normalised(tokens))[0],  # noqa: B023
            )
            timed("mask, if on", lambda: foreground_mask(tokens, grid))  # noqa: B023
            scores = detector._to_distance(squared).reshape(grid)
            timed("score", lambda: aggregate(scores))  # noqa: B023
            timed("map", lambda: anomaly_map(scores, image.shape[:2]))  # noqa: B023
    medians = {stage: median(times[1:]) for stage, times in took.items()}  # the first one warms up
    total = sum(medians.values())
    bank = len(detector.bank)
    size = "x".join(map(str, np.asarray(image).shape[:2]))
    print(f"{backbone}, image {size}, grid {grid[0]}x{grid[1]}, bank {bank:,} rows")
    for stage, seconds in medians.items():
        print(f"  {stage:<12}{1000 * seconds:9.2f} ms{100 * seconds / total:7.1f} %")
    print(f"  {'all':<12}{1000 * total:9.2f} ms")


if __name__ == "__main__":
    main()
