"""How detectors fall off when defective images are mixed into training.

    python benchmarks/noise.py DATA --weights FILE [--images 60] [--shares 0 0.1 0.2 0.4]
        [--methods patchcore softpatch loe refine:patchcore ...] [--budget 60s] [-o noise.png]

DATA is one category in MVTec layout. The training set keeps its size; a share of it is defective,
drawn evenly from all kinds. Every test set holds the same good images and the same defective ones,
none of which is ever trained on ("new"); a second figure is for the defective images that were
trained on ("learned"), which a bank that holds them must call normal. Image AUROC in per cent.
``refine:METHOD`` leaves out of training what the others call anomalous; a trained method has
``--budget`` for each fit. Options of one method go behind it, as patchcore,coreset=0.1.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from sklearn.metrics import roc_auc_score

from offnominal.datasets.shots import draw_numbers
from offnominal.detectors.base import Detector
from offnominal.detectors.refine import refine
from offnominal.detectors.registry import detector_class
from offnominal.paths import find_images

METHODS = ["patchcore", "softpatch,noise=0.15", "refine:patchcore", "trustmae", "igd", "loe"]
Rows = dict[str, dict[float, tuple[float, float]]]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--backbone", help="default: what the weights say")
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--images", type=int, default=60, help="training images")
    parser.add_argument("--test", type=int, default=60, help="good test images, and defective ones")
    parser.add_argument("--shares", type=float, nargs="+", default=[0, 0.1, 0.2, 0.4])
    parser.add_argument("--resolution", type=int, default=128)
    parser.add_argument("--budget", default="60s", help="of each fit of a trained method")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("-o", "--output", type=Path, help="picture of the curves")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    rows = compare(given)
    if given.output:
        draw_curves(rows, given.output)


def compare(given: argparse.Namespace) -> Rows:
    good = draw([given.data / "train" / "good"], given.images, given.seed)
    kinds = sorted(p for p in (given.data / "test").iterdir() if p.name != "good")
    most = round(max(given.shares) * given.images)
    bad = draw(kinds, most + given.test, given.seed)
    trained, fresh = bad[:most], bad[most:]
    clean = draw([given.data / "test" / "good"], given.test, given.seed)
    print(f"{len(clean)} good and {len(fresh)} new defective test images; new, learned")
    rows: Rows = {}
    for words in given.methods:
        line = words.ljust(28)
        for share in given.shares:
            count = round(share * given.images)
            references = [*good[: given.images - count], *trained[:count]]
            detector = fitted(words, references, given)
            scores = [
                [p.score for p in detector.stream(s)] for s in (clean, fresh, trained[:count])
            ]
            found = auroc(scores[0], scores[1]), auroc(scores[0], scores[2])
            rows.setdefault(words, {})[share] = found
            line += f"{share:5.0%} {found[0]:6.1f} {found[1]:6.1f}  "
        print(line, flush=True)
    return rows


def fitted(words: str, references: list[Path], given: argparse.Namespace) -> Detector:
    """A detector of a method on some images, refined before if the words say so."""
    name, *told = words.removeprefix("refine:").split(",")
    kind = detector_class(name)
    chosen: dict[str, Any] = {
        "backbone": given.backbone,
        "weights": str(given.weights) if given.weights else None,
        # Whole images as squares: tiles have many shapes, and positions are compared.
        "resolution": given.resolution,
        "resize": "square",
        "crop": 0 if name in ("patchcore", "softpatch") else None,
        "calibrate_on": 1,
        "budget": given.budget,
        "hold_back": 0.0,
    }
    known = kind.option_defaults()
    options = {k: v for k, v in chosen.items() if k in known and v is not None}
    for pair in told:
        key, _, value = pair.partition("=")
        options[key] = type(known[key])(value) if known[key] is not None else value
    if words.startswith("refine:"):
        kept = refine(lambda: kind(**options), references, seed=given.seed)
        references = [references[number] for number in kept.kept]
    return kind(**options).fit(references, synthetic=False)


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


def draw_curves(rows: Rows, path: Path) -> None:
    """Image AUROC over the share of defective images in training."""
    from matplotlib.figure import Figure

    from offnominal.report.drawing import series, style

    with style():
        figure = Figure(figsize=(7, 3.4))
        axes = figure.subplots()
        for number, (words, found) in enumerate(rows.items()):
            colour, marker, _ = series(number)
            shares = sorted(found)
            values = [found[share][0] for share in shares]
            at = [100 * share for share in shares]
            axes.plot(at, values, color=colour, marker=marker, label=words.partition(",")[0])
        axes.set(xlabel="defective images in training, %", ylabel="image AUROC, %")
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
        figure.savefig(path, dpi=150, bbox_inches="tight")


if __name__ == "__main__":
    main()
