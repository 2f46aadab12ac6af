"""U-Net and box detector learn defects with exact masks: seeded, small, with figures to reach."""

import contextlib
import io
from functools import cache
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from offnominal.datasets.synthetic import draw_defective, draw_good
from offnominal.detectors.registry import detector_class
from offnominal.labelling import components
from offnominal.labels.labelled import Labelled, Mark
from offnominal.metrics import image_metrics, pixel_metrics
from offnominal.prediction import Prediction

Sample = tuple[np.ndarray, np.ndarray, str | None]

SIDE = 128  # of the windows that are cut out, in pixels
KINDS = ("hole", "stain")
TINY: dict[str, Any] = {
    **{"backbone": "test_resnet", "pretrained": False, "device": "cpu"},
    **{"resolution": 64, "lr": 5e-3, "augment": "flips"},
}


def windows(seed: int, good: int, each: int) -> list[Sample]:
    """Windows of fabric: four of each good picture; one around each defect, and its mirror."""
    rng = np.random.default_rng(seed)
    none = np.zeros((SIDE, SIDE), np.bool_)
    found: list[Sample] = []
    for index in range(good):
        image = draw_good("fabric", seed, index)
        for y, x in ((16, 16), (16, 170), (170, 16), (170, 170)):
            found.append((image[y : y + SIDE, x : x + SIDE], none, None))
    for index in range(each * len(KINDS)):
        kind = KINDS[index % len(KINDS)]
        image, mask, _ = draw_defective("fabric", seed, index, kind)
        middle = [np.flatnonzero(mask.any(axis)).mean() for axis in (1, 0)]
        y, x = (int(np.clip(m - rng.uniform(0.3, 0.7) * SIDE, 0, 320 - SIDE)) for m in middle)
        window = image[y : y + SIDE, x : x + SIDE], mask[y : y + SIDE, x : x + SIDE]
        found.append((*window, kind))
        found.append((window[0][:, ::-1], window[1][:, ::-1], kind))
    return found


@cache
def learned() -> tuple[list[np.ndarray], list[Labelled]]:
    samples = windows(0, 8, 8)
    bad = [Labelled(i, (kind,), (Mark(kind, mask=m),)) for i, m, kind in samples if kind]
    return [image for image, _, kind in samples if kind is None], bad


@cache
def held_out() -> list[Sample]:
    return windows(1, 4, 5)


def judged(method: str, **options: Any) -> list[Prediction]:
    good, bad = learned()
    detector = detector_class(method)(**{**TINY, **options})
    detector.fit(good, defects=bad, synthetic=False)
    found: list[Prediction] = detector.predict([image for image, _, _ in held_out()])
    return found


def auroc(found: list[Prediction]) -> float:
    labels = [int(kind is not None) for _, _, kind in held_out()]
    return image_metrics(labels, [one.score for one in found])["image_auroc"]


@pytest.mark.slow
def test_a_u_net_marks_defects() -> None:
    found = judged("segmentation", width=0.25, steps=60)
    masks = [mask for _, mask, _ in held_out()]
    marked = [one.anomaly_map > np.log(2) for one in found]  # likelier defective than not
    both = sum(int((a & b).sum()) for a, b in zip(marked, masks, strict=True))
    either = sum(int((a | b).sum()) for a, b in zip(marked, masks, strict=True))
    figures = pixel_metrics([one.anomaly_map for one in found], masks)
    assert auroc(found) > 0.97  # 1.00 of a run
    assert both / either > 0.6  # 0.75
    assert figures["pixel_auroc"] > 0.97  # 0.994


@pytest.mark.slow
def test_a_detector_finds_boxes() -> None:
    found = judged("boxes", width=32, steps=110, resolution=96)
    assert auroc(found) > 0.95  # 1.00 of a run
    assert precision(found) > 0.35  # 0.49


def precision(found: list[Prediction]) -> float:
    """Average precision at an overlap of a half, the mean over classes, by COCO's own program."""
    truth: list[dict[str, Any]] = []
    told: list[dict[str, Any]] = []
    for number, (one, (_, mask, kind)) in enumerate(zip(found, held_out(), strict=True), 1):
        if kind is not None:
            for area, box in zip(*components(mask)[1:], strict=True):
                if area >= 16:
                    place = {"image_id": number, "category_id": KINDS.index(kind) + 1}
                    shape = {"bbox": box.tolist(), "area": int(area), "iscrowd": 0}
                    truth.append({"id": len(truth) + 1, **place, **shape})
        for box in one.scores.boxes or ():
            place = {"image_id": number, "category_id": KINDS.index(box.kind) + 1}
            told.append({**place, "bbox": list(box.box), "score": box.score})
    coco = COCO()
    coco.dataset = {
        "images": [{"id": number} for number in range(1, len(found) + 1)],
        "annotations": truth,
        "categories": [{"id": n, "name": name} for n, name in enumerate(KINDS, 1)],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
        judge = COCOeval(coco, coco.loadRes(told), "bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return float(judge.stats[1])
