"""From which depth a dent is found, at which noise: by colour, by geometry, and by both.

    python benchmarks/scans.py [--backbone NAME] [--weights FILE] [--method btf]
        [--shapes plate] [--depths 0.25 0.5 1 2] [--noises 0.05 0.1 0.2] [-o scans-depth.webp]

Made parts (``offnominal datasets synthetic-scans``) before a stereo camera of the given noise, in
millimetres at 0.3 m. For each noise and each shape a detector is fitted to the good ones on the
colour network, on FPFH, and on both joined. Image AUROC and AUPRO are of the dents of one depth
against all good test parts; points that were not measured are left out of point AUROC, and are the
least anomalous in AUPRO. ``--table`` has all kinds of damage at the first noise. Means over shapes.
"""

import argparse
import csv
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.metrics import roc_auc_score

from offnominal.detectors.base import Detector
from offnominal.detectors.registry import detector_class
from offnominal.metrics.pixel import pixel_metrics
from offnominal.prediction import Prediction
from offnominal.scans.shapes import SHAPES
from offnominal.scans.synthetic import DEFECTS, write_scans

SENSES = ("colour", "geometry", "both")
FOUND = 0.9  # image AUROC from which a dent counts as found
Figures = tuple[float, float, float]  # image AUROC, point AUROC, AUPRO


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--backbone", default="builtin", help="of colour")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--points", default="fpfh", help="backbone of geometry")
    parser.add_argument("--method", default="btf")
    parser.add_argument("--shapes", nargs="+", default=["plate"], choices=list(SHAPES))
    parser.add_argument("--depths", nargs="+", type=float, default=[0.25, 0.5, 1, 2])
    parser.add_argument("--noises", nargs="+", type=float, default=[0.05, 0.1, 0.2])
    parser.add_argument("--train", type=int, default=10)
    parser.add_argument("--good", type=int, default=12, help="good test parts")
    parser.add_argument("--each", type=int, default=5, help="damaged parts of each kind and depth")
    parser.add_argument("--table", action="store_true", help="all kinds of damage, one noise")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("-o", "--output", type=Path, help="picture of the curves")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.table:
        run(given, given.noises[0], DEFECTS)
        return
    rows = {noise: run(given, noise, ("dent",)) for noise in given.noises}
    for noise, row in rows.items():
        for sense in SENSES:
            images = [row[sense, "dent", depth][0] for depth in given.depths]
            depth = crossing(given.depths, images)
            told = "none" if depth is None else f"{depth:.2f} mm"
            print(f"noise {noise:g} mm, {sense}: dents are found from {told} on")
    if given.output:
        draw(rows, given.depths, given.output)


def run(
    given: argparse.Namespace, noise: float, defects: Sequence[str]
) -> dict[tuple[str, str, float], Figures]:
    """Figures by sense, kind of damage and depth, means over shapes; printed as they come."""
    found: dict[tuple[str, str, float], list[Figures]] = {}
    many = given.each * len(given.depths)
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        write_scans(Path(folder), given.train, given.good, many, given.seed, noise, given.depths,
                    given.size, given.shapes, defects)  # fmt: skip
        print(f"noise {noise:g} mm: scans in {time.perf_counter() - began:.0f} s", flush=True)
        for shape in given.shapes:
            home = Path(folder) / shape
            with (home / "truth.csv").open(encoding="utf-8") as file:
                truth = [row for row in csv.DictReader(file) if row["scan"].startswith("test")]
            for sense in SENSES:
                began = time.perf_counter()
                detector = fitted(given, sense, home)
                told = list(detector.stream([home / row["scan"] for row in truth]))
                keys = [(row["defect"], float(row["depth_mm"])) for row in truth]
                for kind, depth in sorted(set(keys) - {("good", 0.0)}):
                    chosen = [n for n, key in enumerate(keys) if key in ((kind, depth), keys[0])]
                    figures = measured([told[n] for n in chosen])
                    found.setdefault((sense, kind, depth), []).append(figures)
                    words = "  ".join(f"{value:6.3f}" for value in figures)
                    print(f"{shape:7}{sense:9}{kind:8}{depth:5.2f} mm  {words}", flush=True)
                print(f"  {time.perf_counter() - began:.0f} s", flush=True)
    means = {key: np.mean(values, axis=0) for key, values in found.items()}
    return {key: (float(a), float(b), float(c)) for key, (a, b, c) in means.items()}


def fitted(given: argparse.Namespace, sense: str, home: Path) -> Detector:
    """A detector of what one sense has of the good parts."""
    names = {"colour": given.backbone, "geometry": given.points}
    names["both"] = f"{given.backbone}+{given.points}"
    weights = str(given.weights) if given.weights and sense != "geometry" else None
    options = {"backbone": names[sense], "weights": weights, "resolution": 224}
    if "crop" in detector_class(given.method).option_defaults():
        options["crop"] = 0  # the whole picture, as the points
    return detector_class(given.method)(**options).fit(home / "train" / "good", synthetic=False)


def measured(told: Sequence[Prediction]) -> Figures:
    """Image AUROC, point AUROC and AUPRO of good and damaged scans."""
    labels, maps, masks, scores, truths = [], [], [], [], []
    for one in told:
        path = Path(one.source)
        labels.append(path.parts[-3] != "good")
        mask = np.asarray(Image.open(path.parents[1] / "gt" / f"{path.stem}.png")) > 0
        assert one.point_scores is not None
        there = np.isfinite(one.point_scores)
        maps.append(np.where(there, one.anomaly_map, one.anomaly_map.min()))
        masks.append(mask & there)
        scores.append(one.point_scores[there])
        truths.append(mask[there])
    image = float(roc_auc_score(labels, [one.score for one in told]))
    point = float(roc_auc_score(np.concatenate(truths), np.concatenate(scores)))
    return image, point, pixel_metrics(maps, masks)["aupro"]


def crossing(depths: Sequence[float], values: Sequence[float]) -> float | None:
    """The least depth from which on all values are high enough, between two that were measured."""
    if values[-1] < FOUND:
        return None
    at = len(values) - 1
    while at and values[at - 1] >= FOUND:
        at -= 1
    if at == 0:
        return depths[0]
    share = (FOUND - values[at - 1]) / (values[at] - values[at - 1])
    return depths[at - 1] + share * (depths[at] - depths[at - 1])


def draw(
    rows: dict[float, dict[tuple[str, str, float], Figures]], depths: Sequence[float], path: Path
) -> None:
    """Image AUROC over the depth of a dent: a panel for each sense, a line for each noise."""
    from matplotlib.figure import Figure

    from offnominal.report.drawing import series, style

    with style():
        figure = Figure(figsize=(9.6, 3.2))
        panels = figure.subplots(1, len(SENSES), sharey=True)
        for axes, sense in zip(panels, SENSES, strict=True):
            for number, (noise, row) in enumerate(rows.items()):
                colour, marker, _ = series(number)
                values = [row[sense, "dent", depth][0] for depth in depths]
                axes.plot(depths, values, color=colour, marker=marker, label=f"{noise:g} mm")
            axes.axhline(FOUND, color="0.6", linewidth=0.8, linestyle="--")
            axes.set_xscale("log")
            axes.set_xticks(depths, [f"{depth:g}" for depth in depths])
            axes.minorticks_off()
            axes.set(title=sense, xlabel="depth of the dent, mm", ylim=(0.3, 1.02))
        panels[0].set_ylabel("image AUROC")
        panels[-1].legend(title="noise of depth", loc="lower right")
        figure.savefig(path, dpi=110, bbox_inches="tight", pil_kwargs={"quality": 85})


if __name__ == "__main__":
    main()
