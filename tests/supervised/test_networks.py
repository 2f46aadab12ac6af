"""Segmentation, boxes, saliency and classes: small ones that learn, and what they refuse."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from tests.cli.conftest import offnominal as offnominal_cli
from torch import Tensor

import offnominal
from offnominal.benchmark.store import read_runs
from offnominal.detectors.registry import detector_class
from offnominal.detectors.supervised.pyramid import box_targets
from offnominal.detectors.supervised.saliency import edge_aware
from offnominal.detectors.supervised.unets import defect_scores, dice
from offnominal.errors import BackboneError, ModelFileError, OptionError
from offnominal.exchange import coco, predictions_frame
from offnominal.labels.labelled import Labelled, Mark
from offnominal.prediction import Prediction
from offnominal.report.benchmark import write_report
from offnominal.training.images import Batch
from offnominal.training.imbalance import bce

TINY: dict[str, Any] = {"backbone": "test_resnet", "resolution": 32, "device": "cpu"}
KINDS = ("dent", "scratch")
SMALL: dict[str, dict[str, Any]] = {
    "segmentation": {"width": 0.25, "steps": 20, "lr": 1e-2},
    "saliency": {"width": 0.25, "steps": 15, "lr": 1e-2},
    "classes": {"steps": 15, "lr": 5e-3},
    "boxes": {
        **{"width": 32, "steps": 20, "lr": 5e-3},
        **{"resolution": 64, "backbone": "test_efficientnet"},
    },
}


def part(seed: int, kind: str | None = None) -> tuple[np.ndarray, np.ndarray]:
    """A part of one grey and its mask; a dent is dark and square, a scratch bright and long."""
    rng = np.random.default_rng(seed)
    image = rng.integers(90, 130, (64, 80, 3)).astype(np.uint8)
    mask = np.zeros((64, 80), np.bool_)
    if kind is not None:
        y, x = rng.integers(4, 44), rng.integers(4, 50)
        height, width = (14, 16) if kind == "dent" else (8, 26)
        mask[y : y + height, x : x + width] = True
        image[mask] = 30 if kind == "dent" else 230
    return image, mask


def labelled(seed: int, kind: str) -> Labelled:
    image, mask = part(seed, kind)
    return Labelled(image, (kind,), (Mark(kind, mask=mask),))


GOOD = [part(seed)[0] for seed in range(20)]
BAD = [labelled(100 + seed, KINDS[seed % 2]) for seed in range(10)]
TESTED = [(part(1000 + seed, kind), kind) for seed in range(4) for kind in (None, *KINDS)]


@cache
def fitted(method: str) -> Any:
    kind = detector_class(method)
    detector = kind(**{**TINY, **SMALL[method]}, pretrained=False)
    return detector.fit(GOOD, defects=BAD, synthetic=False)


@pytest.mark.parametrize("method", SMALL)
@pytest.mark.slow
def test_learns_and_comes_back_from_its_file_without_any_weights(
    method: str, tmp_path: Path
) -> None:
    detector = fitted(method)
    assert detector.threshold is not None
    assert detector.threshold.kind == "conformal"
    found = detector.predict([image for (image, _), _ in TESTED])
    good = [p.score for p, (_, kind) in zip(found, TESTED, strict=True) if kind is None]
    bad = [p.score for p, (_, kind) in zip(found, TESTED, strict=True) if kind is not None]
    assert np.mean([b > g for b in bad for g in good]) > 0.9
    detector.save(tmp_path / "it.offn")
    again = offnominal.load(tmp_path / "it.offn", device="cpu")
    other = again.predict([image for (image, _), _ in TESTED[:3]])
    assert [one.to_dict() for one in other] == [one.to_dict() for one in found[:3]]
    if method != "classes":
        marked = [p.anomaly_map[mask].mean() - p.anomaly_map[~mask].mean()
                  for p, ((_, mask), kind) in zip(found, TESTED, strict=True) if kind]  # fmt: skip
        assert min(marked) > 0
    if method == "saliency":
        assert found[1].kinds is None
    else:
        assert found[0].kinds is not None
        assert found[0].kinds.keys() == set(KINDS)
    if method == "boxes":
        check_boxes(found, tmp_path)


def check_boxes(found: list[Prediction], tmp_path: Path) -> None:
    best = 0.0
    for prediction, ((_, mask), kind) in zip(found, TESTED, strict=True):
        assert prediction.boxes is not None
        assert prediction.scores.boxes is not None
        if kind is None:
            continue
        drawn = np.zeros_like(mask)
        left, top, width, height = np.round(prediction.scores.boxes[0].box).astype(int)
        drawn[max(0, top) : top + height, max(0, left) : left + width] = True
        best = max(best, (drawn & mask).sum() / (drawn | mask).sum())
    assert best > 0.5
    told = coco(found)
    rejected = [one for one in found if one.boxes]
    assert len(told["annotations"]) == sum(len(one.boxes or ()) for one in rejected)
    assert {one["name"] for one in told["categories"]} <= {"anomaly", *KINDS}
    assert predictions_frame(rejected)["kind"].isin(KINDS).all()
    detections = rejected[0].to_supervision()
    assert len(detections) == len(rejected[0].boxes or ())
    assert rejected[0].to_dict()["boxes"][0]["kind"] in KINDS


@pytest.mark.parametrize("method", ["segmentation", "boxes"])
def test_pretrained_weights_are_taken_over(method: str, tmp_path: Path) -> None:
    """From a file in timm's naming of the whole network, which need not be there afterwards."""
    torch.manual_seed(0)
    net = timm.create_model("test_resnet", num_classes=0)
    path, wanted = tmp_path / "weights.safetensors", net.state_dict()
    save_file(wanted, path, metadata={"model": "test_resnet"})
    options = {**TINY, "backbone": "auto", "weights": str(path), "steps": 1, "lr": 1e-9}
    detector: Any = detector_class(method)(**options).fit(GOOD, defects=BAD, synthetic=False)
    own = detector.encoder().state_dict()
    learned = [name for name, each in own.items() if each.ndim == 4]
    assert len(learned) > 8
    for name in learned:
        torch.testing.assert_close(own[name], wanted[name], rtol=0, atol=1e-6)
    assert detector.header()["options"]["backbone"] == "test_resnet"
    path.unlink()
    detector.save(tmp_path / "it.offn")
    offnominal.load(tmp_path / "it.offn").predict(GOOD[0])


def test_what_cannot_be_is_told() -> None:
    kind = detector_class("segmentation")
    boxed = [
        Labelled(one.image, one.kinds, (Mark(one.kinds[0], box=(4, 4, 20, 9)),)) for one in BAD
    ]
    bare = [Labelled(one.image, one.kinds) for one in BAD]
    for method, defects, told in (
        ("segmentation", boxed, "no defective image has an outline or mask"),
        ("saliency", bare, "take --method classes"),
        ("boxes", bare, "no defective image has a box, outline or mask"),
    ):
        with pytest.raises(OptionError, match=told):
            detector_class(method)(**TINY, pretrained=False, steps=1).fit(GOOD, defects=defects)
    fit: Any = {**TINY, "pretrained": False, "steps": 1}
    with pytest.raises(OptionError, match="--decoder unet --backbone test_vit"):
        kind(**{**fit, "backbone": "test_vit"}).fit(GOOD, defects=BAD)
    with pytest.raises(OptionError, match="gives no features of strides 8, 16, 32"):
        detector_class("boxes")(**{**fit, "backbone": "test_vit"}).fit(GOOD, defects=BAD)
    with pytest.raises(OptionError, match=r"decoder .unett.: did you mean unet"):
        kind(decoder="unett")
    with pytest.raises(OptionError, match="--resolution 100: give a multiple of 32"):
        kind(resolution=100)
    with pytest.raises(OptionError, match="--resolution 96: pan halves"):
        kind(decoder="pan", resolution=96)
    with pytest.raises(OptionError, match="give one of the two"):
        kind(weights="x.pth", pretrained=False)
    with pytest.raises(OptionError, match="multiple of 32"):
        detector_class("boxes")(width=48)
    with pytest.raises(BackboneError, match="not a network of timm's"):
        kind(**{**fit, "backbone": "builtin"}).fit(GOOD, defects=BAD)


def test_a_file_of_another_encoder_is_refused() -> None:
    kind: Any = detector_class("classes")
    detector = fitted("classes")
    header, arrays = detector.header(), detector.arrays()
    reading = {"arguments": {"checkpoint_path": "/etc/hostname"}}
    others = ({"timm": "no_such_net"}, {"mean": "grey"}, {"timm": "test_efficientnet"})
    for change in (*others, reading):
        wrong = {**header, "learned": {**header["learned"], "began_": detector.began_ | change}}
        with pytest.raises(ModelFileError):
            kind(**TINY, pretrained=False).restore(wrong, arrays)


@pytest.mark.slow
def test_an_evaluation_tells_classes_apart(tmp_path: Path) -> None:
    """A row for each class and a table of which was taken for which, in words and in the report."""
    for number, ((image, _), kind) in enumerate(TESTED):
        place = tmp_path / "data" / "part" / "test" / (kind or "good")
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place / f"{number}.png")
    fitted("classes").save(tmp_path / "part.offn")
    Image.fromarray(BAD[0].image).save(tmp_path / "data/part/test/dent/learned.png")
    done = offnominal_cli(
        "evaluate", tmp_path / "part.offn", tmp_path / "data", "-o", tmp_path / "runs"
    )
    assert done.returncode == 0, done.stderr
    learned = "1 test image is an exact copy of images that were learned from, left out"
    assert learned in done.stderr
    for words in ("by class of defect", "class told right", "was, and was taken for"):
        assert words in done.stdout
    [cell], _ = read_runs(tmp_path / "runs")
    assert [row["kind"] for row in cell.metrics["kinds"]] == list(KINDS)
    assert cell.metrics["confusion"]["truth"] == ["good", *KINDS]
    assert sum(map(sum, cell.metrics["confusion"]["counts"])) == len(TESTED)
    rejected = zip(cell.scores["kind"], cell.scores["is_anomalous"], strict=True)
    assert all((kind in KINDS) is decision for kind, decision in rejected)
    page = write_report(tmp_path / "runs", gallery=False).read_text()
    assert "which class was taken for which" in page
    assert "Class told right" in page


# -- the parts --------------------------------------------------------------------------------


def test_pixels_that_are_not_known_do_not_count() -> None:
    logits = torch.zeros(1, 8, 8)
    logits[0, 0] = 9.0
    targets = torch.zeros(1, 8, 8, dtype=torch.uint8)
    targets[0, 0] = 255
    assert bce(logits, targets).item() == pytest.approx(np.log(2))
    assert dice(logits, targets).item() == 0  # nothing is defective
    targets[0, 1] = 1
    less = dice(logits, targets)
    logits[0, 0] = -9.0
    assert dice(logits, targets).item() == pytest.approx(less.item())
    assert edge_aware(logits, targets).isfinite()
    pixels, image = defect_scores(torch.full((8, 8), 2.0))
    assert pixels[0, 0].item() == pytest.approx(-np.log(1 - 1 / (1 + np.exp(-2))))
    assert image.item() == pytest.approx(pixels[0, 0].item())


def test_classes_that_are_not_known_do_not_count() -> None:
    """Neither of a good image, nor of a defective one of which nobody said the class."""
    detector = fitted("classes")
    pixels = torch.zeros(3, 3, 32, 32)
    kinds = torch.tensor([[0.0, 0.0], [255.0, 255.0], [1.0, 0.0]])
    batch = Batch(pixels.byte(), pixels, torch.arange(3), np.random.default_rng(0),
                  torch.tensor([0, 1, 1]), None, kinds)  # fmt: skip
    with torch.no_grad():
        [both, alone] = [detector.net(some)[:, 1:] for some in (pixels, pixels[2:])]
        told = detector.loss(batch)["classes"].item()
    assert torch.allclose(both[2], alone[0])
    each = torch.nn.functional.softplus(alone[0] * torch.tensor([-1.0, 1.0]))
    assert told == pytest.approx(each.mean().item(), rel=1e-5)
    box = (Mark(box=(9, 9, 9, 9)),)
    unnamed = [Labelled(BAD[0].image, ("dent",)), Labelled(BAD[1].image, marks=box)]
    boxes = detector_class("boxes")(**{**TINY, **SMALL["boxes"]}, pretrained=False)
    with pytest.raises(OptionError, match="has a box, outline or mask of a known class"):
        boxes.fit(GOOD, defects=unnamed)


def test_edges_weigh_more() -> None:
    """One wrong pixel at a distance from the mask costs less than one beside it."""
    targets = torch.zeros(1, 64, 64, dtype=torch.uint8)
    targets[0, 20:40, 20:40] = 1
    right = (targets.float() * 2 - 1) * 8

    def wrong(y: int, x: int) -> Tensor:
        logits = right.clone()
        logits[0, y, x] = 8.0
        return edge_aware(logits, targets)

    assert edge_aware(right, targets) < wrong(2, 60) < wrong(30, 40)


def test_each_piece_of_a_mark_is_a_box() -> None:
    instances = torch.zeros(3, 32, 32, dtype=torch.uint8)
    instances[0, 4:8, 6:20] = 1
    instances[0, 20:30, 2:5] = 1
    instances[0, 12, 12] = 1  # a speck
    instances[0, 10:16, 24:30] = 2
    instances[2, 8:14, 2:30] = 1
    instances[2, 4:20, 12:16] = 2  # across the first
    pixels = torch.zeros(3, 3, 32, 32)
    batch = Batch(pixels.byte(), pixels, torch.arange(3), np.random.default_rng(0),
                  torch.tensor([1, 1, 1]), None, None, instances, ((1, 0), (), (0, 0)))  # fmt: skip
    known, [first, third] = box_targets(batch)
    assert known == [0, 2]  # of the second nobody knows where
    assert first["boxes"].tolist() == [[6, 4, 20, 8], [2, 20, 5, 30], [24, 10, 30, 16]]
    assert first["labels"].tolist() == [1, 1, 0]
    assert third["boxes"].tolist() == [[2, 8, 30, 14], [12, 4, 16, 20]]
    instances[:] = 0
    good = box_targets(batch._replace(labels=torch.tensor([0, 0, 0])))[1][0]
    assert good["boxes"].shape == (0, 4)
