"""What every method does alike that learns from defects as well, shown by a small one."""

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

import offnominal
from offnominal.detectors import registry
from offnominal.detectors.features import ViewScores
from offnominal.detectors.registry import Method
from offnominal.detectors.supervised.base import Supervised
from offnominal.errors import OptionError
from offnominal.labels.labelled import Labelled, Mark
from offnominal.suggestions import suggest
from offnominal.training.budget import Schedule
from offnominal.training.images import Batch


class Spotter(Supervised):
    """One convolution, which learns what is bright; and the class of the whole image."""

    method: ClassVar[str] = "spotter"
    schedule: ClassVar[Schedule] = Schedule(batch=8, steps=60, paper_epochs=10)
    default_side: ClassVar[int] = 32
    seen: ClassVar[list[Batch]] = []

    def build(self) -> None:
        self.spot = nn.Conv2d(3, 1, 3, padding=1)
        self.sort = nn.Linear(3, len(self.kinds_))

    def optimisers(self) -> list[Optimizer]:
        return [Adam(self.parameters(), lr=0.1)]

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        self.seen.append(batch)
        assert batch.targets is not None
        assert batch.kinds is not None
        known = (batch.targets != 255).float()
        where = (batch.targets == 1).float()
        each = F.binary_cross_entropy_with_logits(self.spot(batch.pixels)[:, 0], where, known)
        kinds = F.binary_cross_entropy_with_logits(self.sorted(batch.pixels), batch.kinds)
        return {"total": each + kinds, "where": each, "kinds": kinds}

    def sorted(self, pixels: Tensor) -> Tensor:
        found: Tensor = self.sort(pixels.amax((2, 3)))
        return found

    def compare(self, pixels: Tensor) -> ViewScores:
        return ViewScores(self.spot(pixels)[0, 0], kinds=self.sorted(pixels)[0].sigmoid())


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    line = Method("spotter", f"{__name__}:Spotter", "", "", "")
    monkeypatch.setitem(registry.METHODS, "spotter", line)


def part(seed: int, channel: int | None = None) -> np.ndarray:
    image = np.random.default_rng(seed).integers(90, 130, (40, 48, 3), dtype=np.uint8)
    if channel is not None:
        image[12:20, 24:36] = 90
        image[12:20, 24:36, channel] = 255
    return image


GOOD = [part(seed) for seed in range(20)]
BOX = (24.0, 12.0, 12.0, 8.0)


def defects() -> list[Labelled]:
    mask = np.zeros((40, 48), np.bool_)
    mask[12:20, 24:36] = True
    return [
        Labelled(part(100, 0), ("red",), (Mark("red", mask=mask),)),
        Labelled(part(101, 2), ("blue",), (Mark("blue", box=BOX),)),
        Labelled(part(102, 2), ("blue",)),
        Labelled(part(103, 2), ("blue",), (Mark("blue", mask=mask),)),
    ]


def spotter(**options: Any) -> Spotter:
    return Spotter(device="cpu", **options)


def test_it_learns_where_and_what_from_what_is_known(tmp_path: Path) -> None:
    Spotter.seen.clear()
    detector = spotter().fit(GOOD, defects=defects(), synthetic=False)
    [first] = Spotter.seen[:1]
    assert first.labels is not None
    assert first.labels.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert first.targets is not None
    values = {tuple(np.unique(one).tolist()) for one in first.targets[4:].numpy()}
    assert values == {(0, 1), (0, 255), (255,)}
    assert detector.kinds_ == ["blue", "red"]
    assert [one["marked"] for one in detector.defects_] == [True, True, False, True]
    good, red, blue = detector.predict([part(50), part(200, 0), part(201, 2)])
    assert good.is_anomalous is False
    assert (good.kind, red.kind, blue.kind) == (None, "red", "blue")
    assert red.is_anomalous
    y, x = np.unravel_index(red.anomaly_map.argmax(), red.anomaly_map.shape)
    assert 12 <= y < 20
    assert 24 <= x < 36
    assert red.to_dict()["kinds"].keys() == {"blue", "red"}
    [unknown] = suggest(detector, [part(100, 0), GOOD[0], part(300, 0), part(101, 2)], 4)
    assert unknown.number == 2
    detector.save(tmp_path / "spotter.offn")
    again = offnominal.load(tmp_path / "spotter.offn")
    [told] = again.predict(part(200, 0))
    assert told.kinds == red.kinds
    assert again.defects_ == detector.defects_


def test_a_class_that_nobody_named_is_not_known(tmp_path: Path) -> None:
    Spotter.seen.clear()
    some = [
        *defects()[:2],
        Labelled(part(104, 2)),
        Labelled(part(105, 2), ("defect", "red"), (Mark(box=BOX), Mark("red", box=BOX))),
    ]
    detector = spotter(steps=1).fit(GOOD, defects=some, synthetic=False)
    assert detector.kinds_ == ["blue", "red"]
    [batch] = Spotter.seen
    assert batch.kinds is not None
    assert batch.kinds[:4].eq(0).all()
    assert sorted(batch.kinds[4:].tolist()) == [[0, 1], [1, 0], [255, 1], [255, 255]]
    assert set(batch.instance_kinds) == {(), (0,), (1,), (-1, 1)}
    detector.save(tmp_path / "spotter.offn")
    assert offnominal.load(tmp_path / "spotter.offn").defects_ == detector.defects_
    assert spotter(steps=1).fit(GOOD, defects=[part(1, 1)], synthetic=False).kinds_ == ["defect"]


def test_what_was_broken_off_goes_on_to_the_same_bytes_with_the_same_labels_only(
    tmp_path: Path,
) -> None:
    def stop(stage: str, done: int) -> None:
        if stage == "training" and done == 3:
            raise KeyboardInterrupt

    options = {"steps": 6, "augment": "flips,light"}
    whole, part_of = tmp_path / "whole.offn", tmp_path / "part.offn"
    spotter(**options).fit(GOOD, defects=defects(), synthetic=False).save(whole)
    with pytest.raises(KeyboardInterrupt):
        spotter(**options).fit(GOOD, defects=defects(), state=part_of, progress=stop)
    with pytest.raises(OptionError, match="on other files"):
        spotter(**options).fit(GOOD, defects=[*defects()[1:], part(102, 1)], state=part_of)
    detector = spotter(**options)
    detector.fit(GOOD, defects=defects(), state=part_of, synthetic=False).save(part_of)
    assert part_of.read_bytes() == whole.read_bytes()


def test_labels_move_with_what_they_label() -> None:
    Spotter.seen.clear()
    spotter(augment="flips", steps=8).fit(GOOD, defects=defects()[:1], synthetic=False)
    places = set()
    for batch in Spotter.seen:
        assert batch.targets is not None
        for image, target in zip(batch.images[4:], batch.targets[4:], strict=True):
            bright = image[0] > 200
            assert torch.equal(bright, (target == 1) & bright)
            assert bright.sum() > 0.6 * (target == 1).sum()
            places.add(tuple(torch.nonzero(target == 1)[0].tolist()))
    assert len(places) > 2


def test_shares_of_a_step() -> None:
    Spotter.seen.clear()
    spotter(defect_share=0.25, steps=2).fit(GOOD, defects=defects(), synthetic=False)
    assert [int(one.labels.sum()) for one in Spotter.seen if one.labels is not None] == [2, 2]


def test_what_cannot_be_is_told() -> None:
    with pytest.raises(OptionError, match="spotter: learns from defective images as well"):
        spotter().fit(GOOD)
    with pytest.raises(OptionError, match="either good or defective"):
        spotter().fit(GOOD, defects=[GOOD[0]])
    with pytest.raises(OptionError, match="with other labels; leave one out"):
        spotter().fit(GOOD, defects=[*defects(), part(100, 0)])
    twice = spotter(steps=1).fit(GOOD, defects=[*defects(), *defects()], synthetic=False)
    assert len(twice.defects_) == 4
    with pytest.raises(OptionError, match="has a mark of red, and its classes are blue"):
        spotter().fit(GOOD, defects=Labelled(part(1, 1), ("blue",), (Mark("red", box=BOX),)))
    with pytest.raises(OptionError, match="batch 1: a step takes both"):
        spotter(batch=1).fit(GOOD, defects=defects())
    with pytest.raises(OptionError, match=r"--defect-share 1"):
        spotter(defect_share=1)
