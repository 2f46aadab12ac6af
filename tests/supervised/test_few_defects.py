"""DevNet and SuperSimpleNet, small: what they learn from defects with and without masks."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tests.parity.trained import batch_of
from tests.seeded import UNTRAINED

from offnominal import load
from offnominal.detectors.supervised.devnet import DevNet
from offnominal.detectors.supervised.grids import gradient_map, top_mean
from offnominal.detectors.supervised.separation import Truth, separation, twice
from offnominal.detectors.supervised.supersimplenet import SuperSimpleNet
from offnominal.errors import BackboneError, OptionError
from offnominal.labels.labelled import Labelled, Mark
from offnominal.training.imbalance import deviation

SPOT = slice(20, 44), slice(8, 32)


def part(seed: int, bad: bool = False) -> np.ndarray:
    image = np.random.default_rng(seed).integers(90, 150, (64, 64, 3), dtype=np.uint8)
    if bad:
        image[SPOT] //= 2
    return image


GOOD = [part(seed) for seed in range(24)]


def defects() -> list[Labelled | np.ndarray]:
    """With a mask, with a box, and with nothing."""
    mask = np.zeros((64, 64), np.bool_)
    mask[SPOT] = True
    marks = Mark(mask=mask), Mark(box=(8.0, 20.0, 24.0, 24.0))
    return [*(Labelled(part(100 + n, True), marks=(one,)) for n, one in enumerate(marks)),
            part(102, True)]  # fmt: skip


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Options of a small residual network that knows nothing."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("small") / "small.safetensors"
    save_file(timm.create_model("test_resnet", num_classes=0).state_dict(), path, UNTRAINED)
    return {"backbone": "test_resnet", "weights": str(path), "resolution": 64, "device": "cpu"}


@pytest.mark.slow
def test_devnet_learns_from_image_labels(small: dict[str, Any], tmp_path: Path) -> None:
    detector = DevNet(steps=25, batch=6, lr_scale=100, **small)
    detector.fit(GOOD, defects=defects(), synthetic=False)
    assert detector.losses[-1]["total"] < 0.9 * detector.losses[0]["total"]
    good, bad = detector.predict([part(50), part(200, True)])
    assert bad.score > 1 > good.score
    assert bad.is_anomalous
    detector.save(tmp_path / "a.offn")
    [again] = load(tmp_path / "a.offn", device="cpu").predict(part(200, True))
    assert again.score == bad.score
    np.testing.assert_array_equal(again.patch_scores, bad.patch_scores)
    detector.localise = "gradient"
    [told] = detector.predict(part(200, True))
    assert told.score == pytest.approx(bad.score)
    assert 0 <= told.patch_scores.min() < told.patch_scores.max() <= 1
    assert "--localise scores" in (detector.exportable() or "")


def test_deviation() -> None:
    drawn = torch.tensor([1.0, 3, 5])
    scores, labels = torch.tensor([7.0, -1, 7, 20]), torch.tensor([0.0, 0, 1, 1])
    assert deviation(scores, labels, prior=drawn) == (2 + 2 + 3 + 0) / 4
    assert deviation(scores, labels, margin=2, prior=drawn) == (2 + 2 + 0 + 0) / 4
    maps = torch.tensor([[[1.0, 9, 2], [3, 4, 0]]])
    assert top_mean(maps, 0.1).tolist() == [9]
    assert top_mean(maps, 0.5).item() == pytest.approx((9 + 4 + 3) / 3)
    assert gradient_map(lambda pixels: 0 * pixels, torch.zeros(1, 3, 4, 4)).max() == 0


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.slow
def test_supersimplenet_learns(known: bool, tmp_path: Path) -> None:
    options = {"backbone": "builtin", "resolution": 32, "device": "cpu"}
    detector = SuperSimpleNet(steps=40, batch=4, lr_scale=3, **options)
    detector.fit(GOOD, defects=defects() if known else [], synthetic=False)
    assert detector.losses[-1]["total"] < 0.8 * detector.losses[0]["total"]
    good, bad = detector.predict([part(50), part(200, True)])
    assert 0 <= good.score <= 1
    if known:
        assert bad.score > good.score
        inside = np.zeros((64, 64), np.bool_)
        inside[SPOT] = True
        assert bad.anomaly_map[inside].mean() > bad.anomaly_map[~inside].mean() + 0.4
    assert 0.03 < detector.noise_ < 0.3, "a share of what these features deviate by"
    assert detector.schedule.clip == (1 if known else None)
    detector.save(tmp_path / "a.offn")
    [again] = load(tmp_path / "a.offn", device="cpu").predict(part(200, True))
    assert again.score == bad.score
    np.testing.assert_array_equal(again.patch_scores, bad.patch_scores)


def test_what_is_not_known_teaches_the_map_nothing() -> None:
    torch.manual_seed(0)
    targets = torch.zeros(3, 8, 8, dtype=torch.uint8)
    targets[1, :4, :4], targets[1, 4:] = 1, 255
    targets[2] = 255
    batch = batch_of(torch.zeros(3, 3, 8, 8))
    batch = batch._replace(labels=torch.tensor([0, 1, 1]), targets=targets)
    truth = twice(batch, (4, 4), torch.device("cpu"))
    assert truth.labels.tolist() == [0, 1, 1] * 2
    assert truth.defective.sum((1, 2)).tolist() == [0, 4, 0] * 2
    assert truth.known.sum((1, 2)).tolist() == [16, 8, 0] * 2
    found = torch.randn(6, 4, 4, requires_grad=True)
    parts = separation(found, torch.zeros(6), truth)
    [slope] = torch.autograd.grad(parts["total"], found)
    assert not slope[~truth.known].any()
    scratch = torch.zeros_like(targets)
    scratch[1, 0, :6] = 1  # which covers no quarter by half
    found = twice(batch._replace(targets=scratch), (2, 2), torch.device("cpu")).defective
    assert found[1].tolist() == [[True, True], [False, False]]
    both = torch.zeros(3, 16, 16, dtype=torch.uint8)
    both[1, 8:, 8:], both[1, 0, :8] = 1, 1  # a scratch beside what is larger
    found = twice(batch._replace(targets=both), (4, 4), torch.device("cpu")).defective[1]
    assert found.nonzero().tolist() == [[0, 0], [0, 1], [2, 2], [2, 3], [3, 2], [3, 3]]
    thin = torch.zeros_like(targets)
    thin[1, 3] = 255  # a box that no place has its middle in
    known = twice(batch._replace(targets=thin), (2, 2), torch.device("cpu")).known[1]
    assert known.tolist() == [[False, False], [True, True]]
    bare = twice(batch_of(torch.zeros(3, 3, 8, 8)), (4, 4), torch.device("cpu"))
    assert bare.known.all()
    assert not bare.labels.any()


def test_the_loss_by_hand() -> None:
    found, defective = torch.tensor([[[1.0, -2.0]]]), torch.tensor([[[True, False]]])
    truth = Truth(defective, torch.ones_like(defective), torch.tensor([1.0]))
    parts = separation(found, torch.tensor([0.0]), truth)
    assert (parts["good"], parts["bad"]) == (0, 0)
    p = torch.sigmoid(torch.tensor([1.0, 2.0]))
    focal = (-p.log() * (1 - p) ** 4).mean()
    torch.testing.assert_close(parts["map"], focal)
    torch.testing.assert_close(parts["score"], -F.logsigmoid(torch.tensor(0.0)) / 16)


@pytest.mark.parametrize("criterion", ["focal", "deviation"])
def test_losses_can_be_exchanged(criterion: str, small: dict[str, Any], tmp_path: Path) -> None:
    devnet = DevNet(steps=2, batch=4, criterion=criterion, **small)
    both = [part(1), part(2, True)]
    maps = [torch.tensor([[[-4.0, 1.0]]])]
    assert devnet.scores(maps).item() == (1 if criterion == "focal" else 4)
    devnet.fit(GOOD[:8], defects=defects(), synthetic=False).save(tmp_path / "a.offn")
    again = load(tmp_path / "a.offn", device="cpu")
    assert [p.score for p in again.predict(both)] == [p.score for p in devnet.predict(both)]
    found, truth = torch.zeros(1, 1, 2), torch.tensor([[[True, False]]])
    known = Truth(truth, torch.tensor([[[True, False]]]), torch.tensor([1.0]))
    parts = separation(found, torch.zeros(1), known, criterion)
    assert parts["bad"] == 0.5
    usual = separation(found, torch.zeros(1), known)
    assert parts["map"].item() == pytest.approx(parts["score"].item(), rel=0.1)
    assert parts["map"] > 2 * usual["map"] > 0


def test_what_makes_no_sense_is_told(small: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=r"--margin 3 --criterion focal: has none"):
        DevNet(margin=3, criterion="focal")
    with pytest.raises(OptionError, match=r"criterion 'hinge'"):
        SuperSimpleNet(criterion="hinge")
    with pytest.raises(BackboneError, match=r"builtin: not .* choose one of its, as resnet18"):
        DevNet(backbone="builtin", start="scratch", device="cpu").make_networks()
    with pytest.raises(OptionError, match="devnet: learns from defective images as well"):
        DevNet(steps=1, **small).fit(GOOD)
    with pytest.raises(OptionError, match="give one of the two"):
        DevNet(start="scratch", weights="a.pth")
    with pytest.raises(OptionError, match="convolutional network"):
        DevNet(backbone="vit_tiny_patch16_224", start="scratch", device="cpu").make_networks()
