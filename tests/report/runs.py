"""Folders of results to report on: a small one that is measured, a large one that is made up."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from sklearn.metrics import precision_recall_curve, roc_curve

from offnominal.benchmark.cell import Cell
from offnominal.benchmark.files import write_json, write_patch_scores, write_scores
from offnominal.benchmark.store import Plan, Store
from offnominal.datasets.sample import Sample

OPTIONS: dict[str, Any] = {
    "backbone": "builtin-aligned",
    "weights": None,
    "resolution": None,
    "rotations": "none",
    "mask": "auto",
    "aggregate": "top1",
    "smoothing": 4.0,
    "false_reject": 0.25,
    "tile": None,
    "sixteen_bit": "range",
}
RUN: dict[str, Any] = {
    "version": "0.0.test",
    "python": "3.12.1",
    "packages": {"torch": "2.9.0", "numpy": "2.1.0"},
    "device": "cpu",
    "cpu": "Some processor",
    "threads": 2,
    "finished": "2026-01-02T03:04:05+00:00",
    "backbone": {"name": "builtin-aligned", "digest": "0", "dim": 158, "stride": 8},
    "pixel_threshold": None,
    "notes": [],
    "unreadable": [],
}


def curve(x: npt.ArrayLike, y: npt.ArrayLike, points: int = 200) -> dict[str, list[float]]:
    xs, ys = np.asarray(x, float), np.asarray(y, float)
    kept = np.unique(np.linspace(0, len(xs) - 1, points).astype(int))
    return {"x": xs[kept].round(5).tolist(), "y": ys[kept].round(5).tolist()}


def curves(labels: npt.ArrayLike, scores: npt.ArrayLike) -> dict[str, Any]:
    fall_out, recall, _ = roc_curve(labels, scores)
    precision, hit, _ = precision_recall_curve(labels, scores)
    return {"roc": curve(fall_out, recall), "pr": curve(hit[::-1], precision[::-1])}


def write_cell(
    store: Store,
    cell: Cell,
    root: Path,
    samples: Sequence[Sample],
    scores: Sequence[float],
    grids: Sequence[npt.NDArray[np.float32]],
    shapes: Sequence[tuple[int, int]],
    *,
    threshold: float | None,
    figures: dict[str, float],
    all_curves: dict[str, Any],
    run: dict[str, Any],
    map_max: Sequence[float],
) -> None:
    """Write a cell as the benchmark does."""
    labels = [sample.label for sample in samples]
    decisions = [None if threshold is None else score > threshold for score in scores]
    count = len(samples)
    rows = {
        "image": [sample.image.relative_to(root).as_posix() for sample in samples],
        "mask": [s.mask.relative_to(root).as_posix() if s.mask else None for s in samples],
        "mask_threshold": [128] * count,
        "label": labels,
        "defect": [sample.defect for sample in samples],
        "category": [sample.category for sample in samples],
        "score": [float(score) for score in scores],
        "threshold": [threshold] * count,
        "is_anomalous": decisions,
        "p_value": [0.04] * count,
        "height": [shape[0] for shape in shapes],
        "width": [shape[1] for shape in shapes],
        "map_max": [float(peak) for peak in map_max],
        "seconds": [0.01] * count,
    }
    data = {
        "root": str(root),
        "layout": "mvtec",
        "train": 8,
        "test_good": labels.count(0),
        "test_defective": labels.count(1),
    }
    if threshold is not None:
        kind = {"value": threshold, "kind": "conformal", "false_reject": 0.25, "text": "…"}
        run = run | {"threshold": kind}
        figures = figures | {
            "false_rejects": float(
                np.mean([d for d, y in zip(decisions, labels, strict=True) if y == 0])
            ),
            "misses": float(
                np.mean([not d for d, y in zip(decisions, labels, strict=True) if y == 1])
            ),
        }
    with store.draft(cell) as folder:
        write_json(
            folder / "settings.json",
            {"format": 1, **cell.settings(), "data": data, "references": []},
        )
        write_json(folder / "run.json", RUN | {"images": count} | run)
        auroc = figures["image_auroc"]
        interval = {"image_auroc": [auroc - 0.02, min(1.0, auroc + 0.02)]}
        write_json(
            folder / "metrics.json",
            {"figures": figures, "intervals": interval, "curves": all_curves, "regions": []},
        )
        write_scores(folder, rows)
        write_patch_scores(folder, grids)


def write_small(root: Path) -> Path:
    """Eight cells, two categories x two shots x two seeds, under ``root/runs``; one is missing."""
    rng = np.random.default_rng(2)
    store, cells = Store(root / "runs"), []
    for number, name in enumerate(("part", "board")):
        drawn = _draw(root / "parts", name, rng, 5, 2, 96)
        for shots in (2, 4):
            for seed in (0, 1):
                cell = Cell(
                    "parts", name, "1a", "anomalydino", shots, seed, "first", OPTIONS, seed == 0
                )
                cells.append(cell.name)
                _made_up(store, cell, root / "parts", drawn, rng, 0.7 + 0.4 * shots, 0.8, number)
    missing = Cell("parts", "board", "1a", "anomalydino", 8, 0, "first", OPTIONS)
    title = "How many good images are worth collecting?"
    store.add_plan(Plan("shots", title, ("shots",), (*cells, missing.name)))
    return store.root


Drawn = tuple[list[Sample], list[tuple[float, float] | None], int]
"""Test images of a category, where the defect of each lies, and their side in pixels."""

NAMES = [
    *("bottle", "cable", "capsule", "carpet", "grid", "hazelnut", "leather", "metal_nut", "pill"),
    *("screw", "tile", "toothbrush", "transistor", "wood", "zipper"),
]
KINDS = ("scratch", "hole", "stain", "bent_edge", "missing_piece")


def write_big(
    root: Path,
    names: Sequence[str] = NAMES,
    shots: Sequence[int] = (1, 2, 4, 8, 16),
    seeds: int = 3,
    good: int = 33,
    each: int = 16,
    side: int = 256,
) -> Path:
    """A benchmark of the size of MVTec AD, made up: images of noise, scores from a seeded model."""
    data = root / "mvtec"
    rng = np.random.default_rng(0)
    samples = {name: _draw(data, name, rng, good, each, side) for name in names}
    store, cells = Store(root / "runs"), []
    options = OPTIONS | {"backbone": "dinov2_vits14", "resolution": 448, "rotations": "agnostic"}
    for number, name in enumerate(names):
        for k in shots:
            for seed in range(seeds):
                cell = Cell("mvtec", name, "1a", "anomalydino", k, seed, "first", options, False)
                cells.append(cell.name)
                power = 0.7 + 0.1 * math.log2(2 * k) + 0.04 * number
                patches = 32 if k == max(shots) and seed == 0 else 4
                _made_up(store, cell, data, samples[name], rng, power, 0.95, number, patches)
    title = "How many good images are worth collecting?"
    store.add_plan(Plan("shots", title, ("shots",), tuple(cells)))
    return store.root


def write_plans(root: Path) -> Path:
    """Made-up cells of several plans, methods and data sets, timed and not."""
    rng = np.random.default_rng(1)
    store = Store(root / "runs")

    def cells(
        dataset: str, method: str, shots: int | None, cached: bool = True, **changes: Any
    ) -> list[str]:
        names = ("01", "02", "03") if dataset == "btad" else ("tube",)
        written = []
        for number, name in enumerate(names):
            data = root / dataset
            place = (dataset, name)
            if place not in drawn:
                drawn[place] = _draw(data, name, rng, 12, 4, 96)
            for seed in range(1 if shots in (0, None) else 2):
                options = OPTIONS | {"backbone": "dinov2_vits14", "resolution": 448} | changes
                cell = Cell(dataset, name, "1a", method, shots, seed, "first", options, cached)
                written.append(cell.name)
                if store.has(cell):
                    continue
                power = 0.9 + 0.1 * number + 0.1 * math.log2(2 + (shots or 20))
                power += 0.25 * (options["rotations"] == "agnostic")
                _made_up(store, cell, data, drawn[place], rng, power, 0.9, number)
        return written

    drawn: dict[tuple[str, str], Drawn] = {}
    found = [
        *(name for k in (0,) for name in cells("btad", "anomalydino-batched", k)),
        *(name for k in (1, 4, None) for name in cells("btad", "anomalydino", k)),
        *(name for k in (1, 4) for name in cells("line_5", "anomalydino", k)),
    ]
    store.add_plan(Plan("grid", "What was asked for?", ("shots", "method"), tuple(found)))
    found = [
        name
        for rotations in ("none", "agnostic")
        for mask in ("off", "auto", "on")
        for name in cells("btad", "anomalydino", 1, rotations=rotations, mask=mask)
    ]
    title = "What do the foreground mask and rotated references bring?"
    store.add_plan(Plan("preprocessing", title, ("rotations", "mask"), tuple(found)))
    found = [
        name
        for backbone in ("dinov2_vits14", "dinov2_vitb14")
        for resolution in (224, 448)
        for name in cells("btad", "anomalydino", 1, False, backbone=backbone, resolution=resolution)
    ]
    title = "What does accuracy cost in time?"
    store.add_plan(Plan("inference-time", title, ("backbone", "resolution"), tuple(found)))
    return store.root


def _made_up(
    store: Store,
    cell: Cell,
    data: Path,
    drawn: Drawn,
    rng: np.random.Generator,
    power: float,
    quantile: float,
    number: int,
    patches: int = 12,
) -> None:
    """Write a cell whose defective images score the higher the more `power` there is."""
    from offnominal.metrics import image_metrics

    test, blobs, side = drawn
    labels = [sample.label for sample in test]
    scores = 0.1 * np.exp(0.3 * (np.array(labels) * power + rng.normal(0, 0.5, len(test))))
    grids = [_grid(blob, score, rng, patches) for blob, score in zip(blobs, scores, strict=True)]
    threshold = float(np.quantile(scores[np.array(labels) == 0], quantile))
    figures = image_metrics(labels, scores)
    bend = min(0.985, 0.9 + 0.004 * number + 0.01 * math.log2(cell.shots or 32))
    x = np.linspace(0, 1, 150) ** 3
    figures |= {"pixel_auroc": bend + 0.01, "pixel_ap": 0.5, "pixel_f1_max": 0.55, "aupro": bend}
    figures["image_miss_at_1%"] = float(np.mean(scores[np.array(labels) == 1] < threshold * 1.1))
    pixel = {
        "roc": curve(x, x ** (1 - bend)),
        "pr": curve(x, 1 - x**2),
        "pro": curve(x, x ** (1.3 - bend)),
    }
    size = ((cell.options["resolution"] or 448) / 448) ** 2 * (
        1 + 2 * ("vitb" in cell.options["backbone"])
    )
    cold, warm = {"computed": len(test), "from_cache": 0}, {"computed": 0, "from_cache": 9}
    run = {
        "timings": {"per_image": 0.06 * size + 0.001 * (cell.shots or 0)},
        "features": warm if cell.cached else cold,
        "pixel_threshold": {"value": 0.12, "kind": "conformal"},
    }
    write_cell(
        store,
        cell,
        data,
        test,
        scores.tolist(),
        grids,
        [(side, side)] * len(test),
        threshold=threshold,
        figures=figures,
        all_curves={"image": curves(labels, scores), "pixel": pixel},
        run=run,
        map_max=[float(grid.max()) for grid in grids],
    )


def _draw(
    data: Path, name: str, rng: np.random.Generator, good: int, each: int, side: int
) -> Drawn:
    """Images of coarse noise in a category's colour, defective ones with a dark blob."""
    kinds = ["good"] * good + [kind for kind in KINDS for _ in range(each)]
    tint = rng.uniform(90, 190, 3)
    samples: list[Sample] = []
    blobs: list[tuple[float, float] | None] = []
    for number, kind in enumerate(kinds):
        coarse = rng.normal(0, 14, (24, 24, 3)).astype(np.float32)
        image = cv2.resize(coarse, (side, side), interpolation=cv2.INTER_CUBIC) + tint
        image += rng.normal(0, 4, (side, side, 1))
        path = data / name / "test" / kind / f"{number:03d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        mask_path, blob = None, None
        if kind != "good":
            blob = tuple(rng.uniform(0.2, 0.8, 2))
            mask = np.zeros((side, side), np.uint8)
            centre = int(blob[1] * side), int(blob[0] * side)
            cv2.ellipse(mask, centre, (side // 14, side // 22), number * 7, 0, 360, 255, -1)
            image[mask > 0] *= 0.55
            mask_path = data / name / "ground_truth" / kind / f"{number:03d}_mask.png"
            mask_path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(mask_path), mask)
        cv2.imwrite(str(path), image.clip(0, 255).astype(np.uint8))
        samples.append(Sample(path, int(kind != "good"), mask_path, kind, name, "test"))
        blobs.append(blob)
    return samples, blobs, side


def _grid(
    blob: tuple[float, float] | None, score: float, rng: np.random.Generator, side: int
) -> npt.NDArray[np.float32]:
    grid = rng.uniform(0.02, 0.07, (side, side))
    if blob is not None:
        y, x = (np.indices((side, side)) + 0.5) / side
        grid += score * np.exp(-((y - blob[0]) ** 2 + (x - blob[1]) ** 2) / 0.004)
    return np.asarray(grid, np.float32)
