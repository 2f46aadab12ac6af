"""How PatchCore and SoftPatch fall off when defective images are mixed into training.

    python benchmarks/noise.py DATA --weights FILE [--images 60] [--shares 0 0.1 0.2 0.4]

DATA is one category in MVTec layout. The training set keeps its size; a share of it is defective,
drawn evenly from all kinds. Every test set holds the same good images and the same defective ones,
none of which is ever trained on ("new"); a second figure is for the defective images that were
trained on ("learned"), which a bank that holds them must call normal. Image AUROC in per cent.
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from sklearn.metrics import roc_auc_score

from offnominal.backbones import load_backbone
from offnominal.backbones.cache import FeatureCache, cached
from offnominal.benchmark.machine import NetworkMeter
from offnominal.datasets.shots import draw_numbers
from offnominal.detectors.memory_bank.patchcore import PatchCore
from offnominal.detectors.memory_bank.softpatch import SoftPatch
from offnominal.paths import find_images

_GIB = 2**30


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--backbone", help="default: what the weights say, else wide_resnet50_2")
    parser.add_argument("--images", type=int, default=60, help="training images")
    parser.add_argument("--test", type=int, default=60, help="good test images, and defective ones")
    parser.add_argument("--shares", type=float, nargs="+", default=[0, 0.1, 0.2, 0.4])
    parser.add_argument("--resolution", type=int, default=128)
    parser.add_argument("--coreset", type=float, default=0.1)
    parser.add_argument("--noise", type=float, default=0.15, help="patches that SoftPatch drops")
    parser.add_argument("--discriminators", nargs="+", default=["lof", "nearest", "gaussian"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory() as folder:
        compare(given, Path(folder))


def compare(given: argparse.Namespace, folder: Path) -> None:
    common = {
        "backbone": given.backbone,
        "weights": str(given.weights) if given.weights else None,
        # Whole images as squares: tiles have many shapes, and positions are compared.
        "resolution": given.resolution,
        "resize": "square",
        "crop": 0,
        "coreset": given.coreset,
        "calibrate_on": 1,
    }
    methods: dict[str, PatchCore] = {"PatchCore": PatchCore(**common)}
    for name in given.discriminators:
        options = {"discriminator": name, "noise": given.noise}
        methods[f"SoftPatch {name}"] = SoftPatch(**common, **options)
    name = given.backbone or methods["PatchCore"].load_network().name
    network = load_backbone(name, given.weights)
    cache = FeatureCache(folder, 4 * _GIB)

    good = draw([given.data / "train" / "good"], given.images, given.seed)
    kinds = sorted(p for p in (given.data / "test").iterdir() if p.name != "good")
    most = round(max(given.shares) * given.images)
    bad = draw(kinds, most + given.test, given.seed)
    trained, fresh = bad[:most], bad[most:]
    clean = draw([given.data / "test" / "good"], given.test, given.seed)
    print(f"{network.name}, {len(clean)} good and {len(fresh)} new defective test images")
    print("defective".ljust(12) + "".join(name.rjust(22) for name in methods))
    print("in training".ljust(12) + "     new    learned    " * len(methods))
    for share in given.shares:
        count = round(share * given.images)
        references = [*good[: given.images - count], *trained[:count]]
        line = f"{share:9.0%}   "
        for method in methods.values():
            # Anew for each fit, as a detector that is loaded would find it.
            method.use_network(cached(network, cache, ["fp32"], NetworkMeter()))
            method.fit(references)
            scores = [[p.score for p in method.stream(s)] for s in (clean, fresh, trained[:count])]
            figures = [f"{auroc(scores[0], found):8.1f}" for found in scores[1:]]
            line += f"{figures[0]}{figures[1]:>11}   "
        print(line, flush=True)


def draw(folders: Sequence[Path], count: int, seed: int) -> list[Path]:
    """Images of some folders, as many of each as there are, in a seeded order."""
    files = [file for folder in folders for file in find_images([str(folder)])]
    return [files[number] for number in draw_numbers(len(files), min(count, len(files)), seed)]


def auroc(good: Sequence[float], bad: Sequence[float]) -> float:
    """Image AUROC in per cent; nan without defective images."""
    if not bad:
        return float("nan")
    labels = [0] * len(good) + [1] * len(bad)
    return 100 * float(roc_auc_score(labels, [*good, *bad]))


if __name__ == "__main__":
    main()
