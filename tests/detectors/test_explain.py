"""What the worst patches were compared with: found in place, shown so that it can be read."""

import shutil
import tracemalloc
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from offnominal import AnomalyDINO, MultiLayerNN, PaDiM, PatchCore, SoftPatch, captions, load
from offnominal.datasets.synthetic import draw_defective, draw_good
from offnominal.errors import ImageError, OptionError
from offnominal.explain import explanation as explaining
from offnominal.explain import picture
from offnominal.explain.explanation import explain
from offnominal.explain.match import Explanation
from offnominal.explain.picture import draw
from offnominal.images import read_image
from offnominal.prediction import Prediction
from offnominal.rotations import rotate_image
from offnominal.scoring import Scores
from offnominal.views import View

SMALL: dict[str, Any] = {"backbone": "builtin", "resolution": 128, "device": "cpu"}


@pytest.fixture(scope="module")
def fabrics(parts: Path) -> list[Path]:
    return sorted((parts / "fabric" / "train" / "good").iterdir())


@pytest.fixture(scope="module")
def detector(fabrics: list[Path]) -> AnomalyDINO:
    return AnomalyDINO(**SMALL, rotations="0,45", false_reject=0.3).fit(fabrics[:3])


def test_the_worst_patch_lies_in_the_defect(detector: AnomalyDINO, fabrics: list[Path]) -> None:
    damaged, mask, _ = draw_defective("fabric", 0, 3, "stain")
    explanation = explain(detector, damaged, worst=4)
    assert [match.number for match in explanation.matches] == [1, 2, 3, 4]
    distances = [match.distance for match in explanation.matches]
    assert distances == sorted(distances, reverse=True)
    first = explanation.matches[0]
    assert first.score == first.distance == explanation.prediction.patch_scores.max()
    left, top, width, height = first.box
    assert mask[top : top + height, left : left + width].any()
    boxes = np.array([match.box for match in explanation.matches])
    for one in range(4):
        apart = np.abs(boxes[:, :2] - boxes[one, :2]).max(1)
        assert (apart[np.arange(4) != one] >= 0.1 * 320).all(), "regions are distinct"
    assert {m.origin.file for m in explanation.matches} <= {str(file) for file in fabrics[:3]}
    assert set(explanation.references) == {m.origin.digest for m in explanation.matches}
    row = explanation.to_dict()
    assert row["matches"][0]["reference_box"] == list(first.origin.box)


def test_the_same_patch_is_found_turned_as_it_was_compared(fabrics: list[Path]) -> None:
    """A reference, turned: each patch's nearest is that of the reference, from the same place."""
    detector = AnomalyDINO(**SMALL, rotations="0,45", normalize="l2", mask="off").fit(fabrics[:2])
    image = read_image(fabrics[0])
    explanation = explain(detector, rotate_image(image, 45), worst=1)
    [match] = explanation.matches
    assert (match.distance, match.origin.angle) == (pytest.approx(0, abs=1e-6), 45)
    # Both show the same patch in the middle, but for a second interpolation.
    middle = np.s_[match.patch.shape[0] * 3 // 7 : match.patch.shape[0] * 4 // 7]
    difference = np.abs(match.patch.astype(float) - match.nominal.astype(float))[middle, middle]
    assert difference.mean() < 12
    again = explain(detector, image, worst=1)
    assert again.matches[0].origin.angle == 0
    assert again.matches[0].origin.box == again.matches[0].box


@pytest.mark.parametrize(
    "made",
    [
        lambda: PatchCore(**SMALL, dim=48, coreset=0.2),
        lambda: PatchCore(**SMALL, dim=48, crop=96, neighbours=2),
        lambda: SoftPatch(**SMALL, dim=48),
        lambda: MultiLayerNN(**SMALL),
        lambda: AnomalyDINO(backbone="builtin", rotations="none", tile=160, device="cpu"),
    ],
)
@pytest.mark.slow
def test_every_method_with_a_bank_explains(made: Any, fabrics: list[Path]) -> None:
    detector = made().fit(fabrics[:3])
    damaged = draw_defective("fabric", 0, 3, "stain")[0]
    explanation = explain(detector, damaged, worst=3)
    for match in explanation.matches:
        assert match.score <= explanation.prediction.patch_scores.max() * (1 + 1e-6) or (
            detector.tile  # where tiles overlap, their scores are blended
        )
        assert match.patch.ndim == match.nominal.ndim == 3
    assert draw(explanation).dtype == np.uint8


def test_methods_without_a_bank_say_so(fabrics: list[Path]) -> None:
    with pytest.raises(OptionError, match="padim cannot show the nearest nominal patch"):
        explain(PaDiM(**SMALL).fit(fabrics[:3]), fabrics[3])
    with pytest.raises(OptionError, match="--worst 0"):
        explain(AnomalyDINO(**SMALL, rotations="none").fit(fabrics[:2]), fabrics[3], worst=0)


def test_references_that_moved_are_found_by_their_pixels(
    fabrics: list[Path], tmp_path: Path
) -> None:
    there, elsewhere = tmp_path / "there", tmp_path / "elsewhere" / "deep"
    there.mkdir()
    elsewhere.mkdir(parents=True)
    files = [Path(shutil.copy(file, there / file.name)) for file in fabrics[:2]]
    detector = AnomalyDINO(**SMALL, rotations="none").fit(files)
    detector.save(tmp_path / "part.offn")
    loaded = load(tmp_path / "part.offn", device="cpu")
    before = draw(explain(loaded, fabrics[3]))
    files[0].rename(elsewhere / "renamed.png")
    files[1].rename(elsewhere / files[1].name)
    with pytest.raises(ImageError, match=r"is no longer there; .* --references FOLDER"):
        explain(loaded, fabrics[3])
    (elsewhere / "broken.png").touch()
    found = explain(loaded, fabrics[3], references=[tmp_path / "elsewhere"])
    assert np.array_equal(draw(found), before)
    for file in files:
        shutil.copy(fabrics[4], file)
    with pytest.raises(ImageError, match="holds another picture now"):
        explain(loaded, fabrics[3], references=[there])


@pytest.mark.parametrize(("height", "width"), [(40, 48), (600, 40), (40, 600), (900, 1200)])
@pytest.mark.slow
def test_pictures_of_any_shape_hold_everything(height: int, width: int, tmp_path: Path) -> None:
    """Nothing reaches the paper's edge, however long a name is."""
    files = []
    for index in range(3):
        image = cv2.resize(draw_good("fabric", 1, index), (width, height))
        files.append(tmp_path / f"{'a_very_long_name_' * 8}{index}_äöü_日本.png")
        Image.fromarray(image).save(files[-1])
    resolution = 32 if max(height, width) < 900 else 128
    options = SMALL | {"resolution": resolution, "rotations": "0,30", "false_reject": 0.3}
    detector = AnomalyDINO(**options).fit(files)
    spoilt = cv2.resize(draw_good("fabric", 1, 0), (width, height))
    spoilt[height // 2 : height // 2 + 12, width // 2 : width // 2 + 12] = 255
    explanation = explain(detector, spoilt)
    sheet = draw(explanation)
    edges = [sheet[:20], sheet[-20:], sheet[:, :20], sheet[:, -20:]]
    assert all((edge == 255).all() for edge in edges)
    assert max(sheet.shape) < 1800
    assert np.array_equal(sheet, draw(explanation))


def test_of_a_large_picture_no_more_is_worked_on_than_is_shown() -> None:
    """Each copy of one with 100 million pixels takes a second, and more of memory."""
    image = np.zeros((5000, 6000, 3), np.uint8)  # takes no memory where nothing is written
    image[2400:2600, 3000:3200] = np.random.default_rng(0).integers(0, 255, (200, 200, 3))
    corners = np.array([[3010.0, 2420], [3150, 2390], [3180, 2530], [3040, 2560]])
    beside = image[2300:2700, 2900:3300]
    heat = np.zeros((5000, 6000), np.float32)
    heat[200:400, 200:600] = 2  # two patches of one region, and one of another
    heat[4000:4200, 5000:5200] = 1
    scores = np.ascontiguousarray(heat[::200, ::200])
    none = np.zeros((750, 1), np.float32)
    view = View(np.zeros((3, 50, 60), np.float32), np.array([[100.0, 0, 0], [0, 100, 0]]))
    nearest = explaining._Nearest(view, scores, scores, np.zeros((25, 30), int), none)
    prediction = Prediction("", 2.0, heat, Scores(scores), image, 1.0, 1.0)
    tracemalloc.start()
    cut = explaining._cut(image, corners)
    found = explaining._distinct([nearest], heat, 5)
    shown = picture._photo(Explanation(prediction, (), {}), image, (620, 760))
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    other = explaining._cut(beside, corners - [2900, 2300])
    assert np.abs(cut.astype(int) - other).max() <= 1
    assert found == [(0, 31), (0, 625)]
    assert shown.size == (620, 517)
    assert most < 100e6  # the picture itself, once


def test_long_words_are_shortened_to_fit() -> None:
    for words in ("x" * 300, "/a/folder/" + "long_" * 40 + "/name.png", "日本" * 80 + ".png"):
        font = captions.font(15)
        short = captions.shorten(words, 330, 15)
        assert font.getlength(short) <= 330
        assert "…" in short
    assert captions.shorten("/a/" + "long_" * 40 + "/name.png", 330, 15).endswith("/name.png")
    assert captions.shorten("short.png", 330, 15) == "short.png"


def test_an_image_that_passes_shows_its_own_heat(
    detector: AnomalyDINO, fabrics: list[Path]
) -> None:
    explanation = explain(detector, fabrics[0], worst=1)
    assert not explanation.prediction.is_anomalous
    _, own = picture._heat_range(explanation.prediction)
    assert own
    assert len(explanation.matches) == 1
    assert not torch.is_inference_mode_enabled()
