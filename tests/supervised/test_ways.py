"""Four ways to learn from few defects, small: what each is about, and that it learns."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from tests.seeded import UNTRAINED

from offnominal import load
from offnominal.datasets.synthetic import draw_defective, draw_good
from offnominal.detectors.registry import detector_class
from offnominal.detectors.supervised.base import Supervised
from offnominal.detectors.supervised.cavga import guided_attention
from offnominal.detectors.supervised.dra import DRA
from offnominal.detectors.supervised.dynamics import TrainingDynamics
from offnominal.detectors.supervised.grids import grid_targets
from offnominal.detectors.supervised.mixed import MixedSupervision, distance_weights
from offnominal.labels.labelled import Labelled, Mark
from offnominal.metrics.image import image_metrics

SPOT = slice(20, 44), slice(8, 32)
SHORT: dict[str, dict[str, Any]] = {
    "dynamics": {"steps": 30, "batch": 6, "stages": 4},
    "cavga": {"steps": 30, "batch": 6, "latent": 8},
    "dra": {"steps": 60, "batch": 6, "lr_scale": 40, "scales": 1, "resolution": 128},
    "mixed-supervision": {"steps": 12, "batch": 2, "width": 4},
}


def part(seed: int, bad: bool = False) -> np.ndarray:
    image = np.random.default_rng(seed).integers(90, 150, (64, 64, 3), dtype=np.uint8)
    if bad:
        image[SPOT] //= 2
    return image


GOOD = [part(seed) for seed in range(24)]


def defects(marked: bool = True) -> list[Labelled | np.ndarray]:
    """Two with a mask, one with a box, and one with nothing."""
    if not marked:
        return [part(100 + seed, True) for seed in range(4)]
    mask = np.zeros((64, 64), np.bool_)
    mask[SPOT] = True
    marks = Mark(mask=mask), Mark(mask=mask), Mark(box=(8.0, 20.0, 24.0, 24.0))
    some = [Labelled(part(100 + n, True), marks=(one,)) for n, one in enumerate(marks)]
    return [*some, part(103, True)]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Options of a small residual network that knows nothing."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("small") / "small.safetensors"
    save_file(timm.create_model("test_resnet", num_classes=0).state_dict(), path, UNTRAINED)
    return {"backbone": "test_resnet", "weights": str(path)}


def made(name: str, small: dict[str, Any], **options: Any) -> Supervised:
    net = {} if name == "mixed-supervision" else dict(small)
    if name in ("dynamics", "cavga"):
        net |= {"layers": (1, 2)}
    given = {"resolution": 64, "device": "cpu"} | SHORT[name] | net | options
    detector = detector_class(name)(**given)
    assert isinstance(detector, Supervised)
    return detector


@pytest.mark.parametrize("name", SHORT)
@pytest.mark.slow
def test_each_learns_and_is_saved(name: str, small: dict[str, Any], tmp_path: Path) -> None:
    detector = made(name, small)
    detector.fit(GOOD, defects=defects(), synthetic=False)
    good, bad = detector.predict([part(50), part(200, True)])
    assert bad.score > good.score
    assert bad.is_anomalous
    inside = np.zeros((64, 64), np.bool_)
    inside[SPOT] = True
    assert bad.anomaly_map[inside].mean() > bad.anomaly_map[~inside].mean()
    detector.save(tmp_path / "a.offn")
    [again] = load(tmp_path / "a.offn", device="cpu").predict(part(200, True))
    assert again.score == bad.score
    np.testing.assert_array_equal(again.patch_scores, bad.patch_scores)
    if isinstance(detector, DRA):
        _heads_see_what_is_theirs(detector)
    if isinstance(detector, TrainingDynamics):
        assert float(detector.chooser.weights[2]) > 0  # the sampler prefers what is good


def _heads_see_what_is_theirs(detector: DRA) -> None:
    """Of a labelled defect all, of a good image only what is normal."""
    stored = np.stack([detector.sized(part(50)), detector.sized(part(200, True))])
    with torch.inference_mode():
        maps = detector.maps(detector.images(stored, [0, 1]).pixels([0, 1]))
        heads, total = detector.head_scores(maps), detector.scores(maps)
    good, bad = heads
    assert bool((bad[[0, 2]] > good[[0, 2]]).all())
    assert bool(bad[3] < good[3])
    torch.testing.assert_close(total, heads[:, :3].sum(1) - heads[:, 3])


@pytest.mark.slow
def test_a_training_that_was_broken_off_keeps_its_moments(
    small: dict[str, Any], tmp_path: Path
) -> None:
    """And ends as the one that was not: sampler, rewards and states of the autoencoder."""

    class HaltedError(RuntimeError):
        pass

    def stop(stage: str, count: int) -> None:
        if stage != "reading" and count >= 5:
            raise HaltedError

    options = {"steps": 8, "batch": 6, "stages": 4}
    whole = made("dynamics", small, **options)
    whole.fit(GOOD, defects=defects(), synthetic=False)
    path = tmp_path / "a.offn"
    with pytest.raises(HaltedError):
        made("dynamics", small, **options).fit(
            GOOD, defects=defects(), synthetic=False, state=path, progress=stop
        )
    again = made("dynamics", small, **options)
    again.fit(GOOD, defects=defects(), synthetic=False, state=path)
    assert isinstance(again, TrainingDynamics)
    assert int(again.kept) == 3
    assert [row["step"] for row in again.losses] == [row["step"] for row in whole.losses]
    [one], [other] = whole.predict(part(200, True)), again.predict(part(200, True))
    assert one.score == other.score


def test_without_a_sampler_chance_chooses(small: dict[str, Any]) -> None:
    detector = made("dynamics", small, steps=2, sampler="uniform")
    detector.fit(GOOD, defects=defects(), synthetic=False)
    assert isinstance(detector, TrainingDynamics)
    assert detector.chooser.weights.tolist() == [0, 0, 0]


@pytest.mark.parametrize("marked", [True, False])
def test_decisions_do_not_change_marks_where_there_are_masks(marked: bool) -> None:
    detector = made("mixed-supervision", {}, steps=1)
    detector.fit(GOOD, defects=defects(marked), synthetic=False)
    assert isinstance(detector, MixedSupervision)
    detector.train()
    pixels = torch.rand(2, 3, 64, 64)
    _, decided = detector.forward(pixels, apart=marked)
    first = next(detector.features.parameters())
    [slope] = torch.autograd.grad(decided.sum(), [first], allow_unused=True)
    assert (slope is None) == marked


def test_masks_count_most_in_their_middle() -> None:
    target = np.zeros((9, 9), np.uint8)
    target[2:7, 2:7], target[0, 0] = 1, 255
    weights = distance_weights(target, 3.0)
    assert weights[4, 4] == 3
    assert weights[2, 2] == pytest.approx(3 / 9)
    assert weights[0, 0] == weights[8, 8] == 1
    assert (distance_weights(target, 1.0) == 1).all()


def test_attention_is_led_where_something_is_known() -> None:
    attention = torch.zeros(1, 2, 1, 3)
    attention[0, :, 0] = torch.tensor([[1.0, 0.2, 0.5], [0.0, 0.9, 0.5]])
    right = torch.tensor([[[0, 1, 255]]])
    assert float(guided_attention(attention, right)) == pytest.approx(0 + 0.3)
    wrong = torch.tensor([[[1, 0, 255]]])
    assert float(guided_attention(attention, wrong)) == pytest.approx(2 + 1.7)
    assert float(guided_attention(attention, torch.full((1, 1, 3), 255))) == 0


def test_a_position_is_as_bad_as_its_worst_pixel() -> None:
    targets = torch.zeros(1, 4, 6, dtype=torch.uint8)
    targets[0, 0, 0], targets[0, :2, 1], targets[0, 3, 3] = 1, 255, 255
    assert grid_targets(targets, (2, 3)).tolist() == [[[1, 0, 0], [0, 255, 0]]]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "least"), [("dynamics", 0.65), ("cavga", 0.75)])
def test_they_find_defects_of_the_synthetic_looks(name: str, least: float) -> None:
    """Of a fabric, and others than those that were labelled, half of which had masks."""
    good = [draw_good("fabric", 0, number) for number in range(20)]
    drawn = [draw_defective("fabric", 0, number) for number in range(8)]
    some = [
        Labelled(image, (kind,), (Mark(kind, mask=mask),) if number % 2 else ())
        for number, (image, mask, kind) in enumerate(drawn)
    ]
    kind = detector_class(name)
    detector = kind(resolution=128, steps=120, batch=8, backbone="builtin", device="cpu")
    detector.fit(good, defects=some, synthetic=False)
    fine = [draw_good("fabric", 0, number, "test") for number in range(12)]
    bad = [draw_defective("fabric", 0, 100 + number)[0] for number in range(12)]
    scores = [one.score for one in detector.predict([*fine, *bad])]
    found = image_metrics(np.arange(24) >= 12, np.array(scores))
    assert found["image_auroc"] > least
