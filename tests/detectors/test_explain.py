"""What the worst patches were compared with: found in place, shown so that it can be read."""

import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from offnominal import AnomalyDINO, MultiLayerNN, PaDiM, PatchCore, SoftPatch, load
from offnominal.datasets.synthetic import draw_defective, draw_good
from offnominal.detectors import explained
from offnominal.errors import ImageError, OptionError
from offnominal.images import read_image
from offnominal.views import rotate_image

SMALL: dict[str, Any] = {"backbone": "builtin", "resolution": 128, "device": "cpu"}


@pytest.fixture(scope="module")
def boards(parts: Path) -> list[Path]:
    return sorted((parts / "board" / "train" / "good").iterdir())


@pytest.fixture(scope="module")
def detector(boards: list[Path]) -> AnomalyDINO:
    return AnomalyDINO(**SMALL, rotations="0,45", false_reject=0.3).fit(boards[:3])


def test_the_worst_patch_lies_in_the_defect(detector: AnomalyDINO, boards: list[Path]) -> None:
    damaged, mask, _ = draw_defective("board", 0, 3, "contamination")
    explanation = detector.explain(damaged, worst=4)
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
        assert (apart[np.arange(4) != one] >= 0.1 * 288).all(), "regions are distinct"
    assert {m.origin.file for m in explanation.matches} <= {str(file) for file in boards[:3]}
    assert set(explanation.references) == {m.origin.digest for m in explanation.matches}
    row = explanation.as_row()
    assert row["matches"][0]["reference_box"] == list(first.origin.box)


def test_the_same_patch_is_found_turned_as_it_was_compared(boards: list[Path]) -> None:
    """A reference, turned: each patch's nearest is that of the reference, from the same place."""
    detector = AnomalyDINO(**SMALL, rotations="0,45", normalize="l2", mask="off").fit(boards[:2])
    image = read_image(boards[0])
    explanation = detector.explain(rotate_image(image, 45), worst=1)
    [match] = explanation.matches
    assert (match.distance, match.origin.angle) == (pytest.approx(0, abs=1e-6), 45)
    # Both show the same patch in the middle, but for a second interpolation.
    middle = np.s_[match.patch.shape[0] * 3 // 7 : match.patch.shape[0] * 4 // 7]
    difference = np.abs(match.patch.astype(float) - match.nominal.astype(float))[middle, middle]
    assert difference.mean() < 12
    again = detector.explain(image, worst=1)
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
def test_every_method_with_a_bank_explains(made: Any, boards: list[Path]) -> None:
    detector = made().fit(boards[:3])
    damaged = draw_defective("board", 0, 3, "contamination")[0]
    explanation = detector.explain(damaged, worst=3)
    for match in explanation.matches:
        assert match.score <= explanation.prediction.patch_scores.max() * (1 + 1e-6) or (
            detector.tile  # where tiles overlap, their scores are blended
        )
        assert match.patch.ndim == match.nominal.ndim == 3
    assert explanation.picture().dtype == np.uint8


def test_methods_without_a_bank_say_so(boards: list[Path]) -> None:
    with pytest.raises(OptionError, match="padim cannot show the nearest nominal patch"):
        PaDiM(**SMALL).fit(boards[:3]).explain(boards[3])
    with pytest.raises(OptionError, match="--worst 0"):
        AnomalyDINO(**SMALL, rotations="none").fit(boards[:2]).explain(boards[3], worst=0)


def test_references_that_moved_are_found_by_their_pixels(
    boards: list[Path], tmp_path: Path
) -> None:
    there, elsewhere = tmp_path / "there", tmp_path / "elsewhere" / "deep"
    there.mkdir()
    elsewhere.mkdir(parents=True)
    files = [Path(shutil.copy(file, there / file.name)) for file in boards[:2]]
    detector = AnomalyDINO(**SMALL, rotations="none").fit(files)
    detector.save(tmp_path / "part.offn")
    loaded = load(tmp_path / "part.offn", device="cpu")
    before = loaded.explain(boards[3]).picture()
    files[0].rename(elsewhere / "renamed.png")
    files[1].rename(elsewhere / files[1].name)
    with pytest.raises(ImageError, match=r"is no longer there; .* --references FOLDER"):
        loaded.explain(boards[3])
    (elsewhere / "broken.png").touch()
    found = loaded.explain(boards[3], references=[tmp_path / "elsewhere"])
    assert np.array_equal(found.picture(), before)
    for file in files:
        shutil.copy(boards[4], file)
    with pytest.raises(ImageError, match="holds another picture now"):
        loaded.explain(boards[3], references=[there])


@pytest.mark.parametrize(("height", "width"), [(40, 48), (600, 40), (40, 600), (900, 1200)])
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
    explanation = detector.explain(spoilt)
    picture = explanation.picture()
    edges = [picture[:20], picture[-20:], picture[:, :20], picture[:, -20:]]
    assert all((edge == 255).all() for edge in edges)
    assert max(picture.shape) < 1800
    assert np.array_equal(picture, explanation.picture())


def test_long_words_are_shortened_to_fit() -> None:
    for words in ("x" * 300, "/a/folder/" + "long_" * 40 + "/name.png", "日本" * 80 + ".png"):
        font, _ = explained._font_for(words, 15)
        short = explained._shorten(words, 330, 15)
        assert font.getlength(short) <= 330
        assert "…" in short
    assert explained._shorten("/a/" + "long_" * 40 + "/name.png", 330, 15).endswith("/name.png")
    assert explained._shorten("short.png", 330, 15) == "short.png"


def test_numbers_do_not_hide_one_another() -> None:
    boxes = [(100.0 + 9 * n, 100.0, 108.0 + 9 * n, 108.0) for n in range(5)]
    taken: list[tuple[float, float]] = []
    for box in boxes:
        taken.append(explained._free_place(box, boxes, taken, (300, 300)))
    for one, (x, y) in enumerate(taken):
        assert 13 < x < 287
        assert 13 < y < 287
        for a, b in taken[:one]:
            assert max(abs(x - a), abs(y - b)) > 26


def test_an_image_that_passes_shows_its_own_heat(detector: AnomalyDINO, boards: list[Path]) -> None:
    explanation = detector.explain(boards[0], worst=1)
    assert not explanation.prediction.is_anomalous
    _, own = explained._heat_range(explanation.prediction)
    assert own
    assert len(explanation.matches) == 1
    assert not torch.is_inference_mode_enabled()
