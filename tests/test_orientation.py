"""Whether good parts come turned, told without labels."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from scipy.spatial.distance import cdist

from offnominal import AnomalyDINO, MultiLayerNN, load
from offnominal.datasets.synthetic import draw_good
from offnominal.errors import ModelFileError, OptionError
from offnominal.modelfile import read_header
from offnominal.orientation import mean_square_distance, orientation_test
from tests.detectors.test_saving import rewrite
from tests.seeded import save_dinov2_vits14

pytestmark = pytest.mark.slow

SMALL: dict[str, Any] = {"backbone": "builtin", "resolution": 64, "device": "cpu"}


def turned(image: np.ndarray, angle: float) -> np.ndarray:
    """An image turned on a table that goes on."""
    height, width = image.shape[:2]
    turn = cv2.getRotationMatrix2D((width / 2, height / 2), angle, 1.0)
    return cv2.warpAffine(image, turn, (width, height), borderMode=cv2.BORDER_REFLECT)


def parts(turn: float, count: int = 4) -> list[np.ndarray]:
    return [turned(draw_good("part", 0, i), turn * i) for i in range(count)]


def test_more_than_a_quarter_of_the_pairs_decides() -> None:
    apart = np.full((3, 3, 8), 10.0)
    apart[range(3), range(3)] = 0.0  # to itself: means nothing
    apart[0, 1, 3] = 8.4
    few = orientation_test(apart)
    assert (few.turned, few.nearer, few.pairs) == (False, 1, 6)
    apart[1, 0, 5] = apart[1, 0, 6] = 8.4
    more = orientation_test(apart)
    assert (more.turned, more.nearer) == (True, 2)
    apart[..., 1:] = 8.6
    assert orientation_test(apart).nearer == 0
    assert not orientation_test(np.zeros((3, 3, 8))).turned


def test_distance_is_that_to_the_nearest_row() -> None:
    rng = np.random.default_rng(0)
    queries, rows = (rng.standard_normal((n, 8), np.float32) for n in (700, 20_000))
    wanted = np.square(cdist(queries, rows).min(1))
    some = float(wanted[:500].mean())
    assert mean_square_distance(queries[:500], rows) == pytest.approx(some, rel=1e-4)
    assert mean_square_distance(queries, rows) == pytest.approx(float(wanted.mean()), rel=0.03)
    assert mean_square_distance(rows, rows) == 0
    assert mean_square_distance(queries, rows[:0]) == np.inf


@pytest.mark.parametrize(
    ("turn", "verdict", "storage"), [(0.0, "none", "int8"), (70.0, "agnostic", "fp32")]
)
def test_a_fit_is_that_with_the_rotations_it_found(
    turn: float, verdict: str, storage: str, mobilenet: Path, tmp_path: Path
) -> None:
    options = {"weights": str(mobilenet), "resolution": 96, "device": "cpu", "storage": storage}
    images = parts(turn, 3)
    found = AnomalyDINO(**options).fit(images)
    asked = AnomalyDINO(**options, rotations=verdict).fit(images)
    for detector in (found, asked):
        assert detector.rotations_ == verdict
        detector.add([draw_good("part", 1, 0)])
    for name, held in asked.bank.columns().items():
        assert np.array_equal(held, found.bank.columns()[name]), name
    assert found.threshold == asked.threshold
    found.save(tmp_path / "m.offn")
    loaded = load(tmp_path / "m.offn", device="cpu")
    assert isinstance(loaded, AnomalyDINO)
    assert loaded.orientation_test_ == found.orientation_test_
    learned = read_header(tmp_path / "m.offn")["learned"]
    for wrong in ({"rotations_": "0,90"}, {"orientation_test_": None}):
        other = rewrite(tmp_path / "m.offn", tmp_path / "wrong.offn", learned=learned | wrong)
        with pytest.raises(ModelFileError, match="do not fit"):
            load(other, device="cpu")


def test_the_first_eight_decide_and_the_rest_follow() -> None:
    images = [draw_good("fabric", 0, i) for i in range(10)]
    plain, found = (AnomalyDINO(**SMALL, rotations=how).fit(images) for how in ("none", "auto"))
    assert found.orientation_test_ is not None
    assert found.orientation_test_["pairs"] == 8 * 7
    for name, held in plain.bank.columns().items():
        assert np.array_equal(held, found.bank.columns()[name]), name


@pytest.mark.parametrize("image", [np.zeros((64, 64, 3)), np.full((64, 64, 3), 200)])
def test_blank_images_are_not_turned(image: np.ndarray) -> None:
    blank = [image.astype(np.uint8), (image + 1).astype(np.uint8)]
    detector = AnomalyDINO(**SMALL).fit(blank)
    assert (detector.rotations_, len(detector.bank)) == ("none", 2 * 64)


def test_masked_and_tiled_references_decide_as_well() -> None:
    images = parts(70.0)
    masked = AnomalyDINO(**SMALL, mask="on", mask_references=True).fit(images)
    assert masked.rotations_ == "agnostic"
    cloth = [draw_good("fabric", 0, i)[:96] for i in range(2)]
    tiled = AnomalyDINO(**SMALL | {"resolution": None}, tile=96)
    tiled.fit([cloth[0][:, :160], cloth[1]])
    assert tiled.rotations_ == "none"
    assert [int(tiled.bank.view[tiled.bank.rows_of(n)].max()) for n in (0, 1)] == [1, 4]


def test_one_reference_follows_the_paper_with_dinov2_only(tmp_path: Path) -> None:
    image = draw_good("fabric", 0, 0)
    small = AnomalyDINO(**SMALL)
    network = save_dinov2_vits14(tmp_path)
    paper = AnomalyDINO(weights=str(network), resolution=56, device="cpu")
    for detector, wanted in ((small, "none"), (paper, "agnostic")):
        detector.fit([image])
        assert detector.rotations_ == wanted
        rows = len(detector.bank)
        detector.add([draw_good("fabric", 0, 1)])
        assert len(detector.bank) == 2 * rows


def test_methods_without_the_test_refuse_auto() -> None:
    with pytest.raises(OptionError, match="rotations='auto'"):
        MultiLayerNN(rotations="auto")
