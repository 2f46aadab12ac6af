"""Every pixel of an image is looked at, or it is said which ones are not."""

import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import offnominal
from offnominal import AnomalyDINO, PatchCore
from offnominal.detectors.base import Detector
from offnominal.detectors.memory_bank.multilayer import MultiLayerNN
from offnominal.errors import OptionError
from offnominal.explain.explanation import explain
from offnominal.scoring import Scores, anomaly_map, on_grid_of

SIZE = (139, 135)  # at 128 pixels 131 x 128 remain, which are 17 patches of 8 and a strip of 3


def plate(seed: int) -> np.ndarray:
    grain = np.random.default_rng(seed).normal(120, 4, (*SIZE, 1)).repeat(3, 2)
    grain[40:48, 30:100] = 60
    return grain.clip(0, 255).astype(np.uint8)


def scratched(seed: int) -> np.ndarray:
    image = plate(seed)
    image[-2:] = 255
    return image


def fitted(**options: object) -> AnomalyDINO:
    same = {"backbone": "builtin", "resolution": 128, "rotations": "none", "mask": "off"}
    return AnomalyDINO(**same | options).fit([plate(n) for n in range(5)])


def test_a_scratch_along_the_last_rows_is_found_where_it_is(tmp_path: Path) -> None:
    detector = fitted()
    assert detector.not_inspected(SIZE) is None
    detector.save(tmp_path / "part.offn")
    for model in (detector, offnominal.load(tmp_path / "part.offn")):
        good, bad = model.predict([plate(9), scratched(9)])
        assert bad.score > 2 * good.score
        row, _ = np.unravel_index(bad.anomaly_map.argmax(), SIZE)
        assert row >= SIZE[0] - 3
        assert good.anomaly_map.shape == SIZE
    Image.fromarray(plate(0)).save(tmp_path / "0.png")
    alone = AnomalyDINO(**detector.options()).fit([tmp_path / "0.png"])
    [worst] = explain(alone, scratched(9), worst=1).matches
    left, top, width, height = worst.box
    assert top + height == SIZE[0]
    assert 0 <= left < left + width <= SIZE[1]


def test_a_crop_does_not_see_it_and_says_so() -> None:
    detector = fitted(resize="crop")
    good, bad = detector.predict([plate(9), scratched(9)])
    assert bad.score == good.score
    told = detector.not_inspected(SIZE)
    assert told is not None
    assert told.startswith("the last 4 rows of a picture of 135 x 139 are not inspected; leave out")
    assert "--resize crop" in told


@pytest.mark.parametrize("views", ["plain", "vflip", "plain,vflip,hflip"])
@pytest.mark.parametrize("rotations", ["none", "0,90,180", "30"])
def test_turned_and_flipped_references_do_not_set_whole_ones_apart(
    views: str, rotations: str
) -> None:
    detector = MultiLayerNN(
        backbone="builtin", resolution=128, resize="short", rotations=rotations, query_views=views
    ).fit([plate(n) for n in range(4)])
    good, bad = detector.predict([plate(9), scratched(9)])
    assert bad.score > 1.5 * good.score
    row, _ = np.unravel_index(bad.anomaly_map.argmax(), SIZE)
    assert row >= SIZE[0] - 5
    scores = detector.calibration.images
    assert scores.max() < 1.5 * scores.min(), "each without itself, none stands out by its edge"
    assert good.score < 1.5 * scores.max()


def test_patchcore_sees_all_or_says_what_its_crop_leaves_out(mobilenet: Path) -> None:
    same = {"weights": mobilenet, "resolution": 128, "coreset": 1, "reweight": False}
    images = [plate(n) for n in range(3)]
    whole = PatchCore(**same).fit(images)
    assert whole.not_inspected(SIZE) is None
    good, bad = whole.predict([plate(9), scratched(9)])
    assert bad.score > 1.2 * good.score
    cropped = PatchCore(**same, crop=64)
    cropped.use_network(whole.load_network())
    cropped.fit(images)
    told = cropped.not_inspected(SIZE)
    assert told is not None
    assert told.startswith("the first 37 rows, the last 36 rows, the first 34 columns and the last")
    assert "--crop" in told
    with pytest.raises(OptionError, match=r"--crop 160: an image is sized to 128 x 131"):
        PatchCore(**same, crop=160).fit(images)


def test_members_of_an_ensemble_are_joined_where_their_patches_lie() -> None:
    row = np.arange(17, dtype=np.float32).repeat(16).reshape(17, 16)
    fine = Scores(row, window=(0, 0, 144, 135))
    coarse = Scores(row[:5, :4] * 4 + 1.5, window=(0, 0, 170, 135))
    laid = on_grid_of(coarse, fine, SIZE)
    assert laid.shape == fine.patches.shape
    # Where the coarse one has neighbours on both sides both are the same straight line in pixels.
    ours, theirs = (anomaly_map(one.patches, SIZE, 0, one.window) for one in (fine, coarse))
    middle = anomaly_map(laid, SIZE, 0, fine.window)
    assert np.abs(middle - theirs)[24:120].max() < 0.05
    assert np.abs(ours - theirs)[24:120].max() < 0.5


def test_one_image_or_many_in_any_order_give_the_same_bits() -> None:
    detector = fitted()
    images = [plate(n) for n in range(10, 16)] + [scratched(3)]
    alone = [detector.predict(one)[0] for one in images]
    together, back = detector.predict(images), detector.predict(images[::-1])[::-1]
    for one, two, three in zip(alone, together, back, strict=True):
        assert one.score == two.score == three.score
        np.testing.assert_array_equal(one.anomaly_map, two.anomaly_map)
        np.testing.assert_array_equal(one.anomaly_map, three.anomaly_map)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        *((AnomalyDINO, {"mask_threshold": value}) for value in (math.nan, math.inf, -1, "10")),
        *((AnomalyDINO, {"resolution": value}) for value in (0, math.nan, 63.5, "64", 2**40)),
        *((AnomalyDINO, {"tile": value}) for value in (0, -8, math.nan, 100.5)),
        *((AnomalyDINO, {"layers": value}) for value in (1, [0.5], "2,3")),
        *((MultiLayerNN, {"query_views": value}) for value in ("plain,plain", "", "up", 3)),
        *((PatchCore, {"patch": value}) for value in (2, 1.5, math.nan, "3")),
        *((AnomalyDINO, {"neighbours": value}) for value in (0, 1.5, True, "3", math.nan)),
        *((PatchCore, {"crop": value}) for value in (-1, math.nan, "224")),
        *((AnomalyDINO, {"aggregate": value}) for value in (3, math.nan, "top0", "top101")),
        *((AnomalyDINO, {"sixteen_bit": value}) for value in (b"1,2", 3, "nan,nan")),
    ],
    ids=str,
)
def test_a_value_that_cannot_be_is_refused_by_its_option_s_name(
    kind: type[Detector], options: dict[str, object]
) -> None:
    [name] = options
    with pytest.raises(OptionError, match=f"{name}|{name.replace('_', '-')}"):
        kind(**{"backbone": "builtin"} | options)


def test_an_image_without_an_object_is_not_good_for_that() -> None:
    """A mask that leaves nothing to look at would let a black picture pass."""
    ring = [plate(n) // 4 for n in range(5)]
    for image in ring:
        image[40:100, 40:100] = 220
    detector = fitted(mask="on", false_reject=0.3).fit(ring)
    blank = [np.full((*SIZE, 3), grey, np.uint8) for grey in (0, 128, 255)]
    for found in detector.predict(blank):
        assert found.is_anomalous
    [good] = detector.predict(ring[:1])
    assert (good.patch_scores == 0).any(), "the background does not count otherwise"


@pytest.mark.parametrize("options", [{}, {"mask": "on"}, {"resolution": 8}, {"tile": 32}], ids=str)
@pytest.mark.slow
def test_blank_and_tiny_and_very_different_images(options: dict[str, object]) -> None:
    noise = np.random.default_rng(0).integers
    shapes = [(8, 8, 3), (64, 80, 3), (320, 8, 3), (120, 200, 3)]
    images = [noise(0, 256, shape, dtype=np.uint8) for shape in shapes]
    images += [np.full((64, 80, 3), grey, np.uint8) for grey in (0, 200)]
    same = {"backbone": "builtin", "resolution": 64, "rotations": "none", "false_reject": 0.3}
    detector = AnomalyDINO(**same | options).fit(images)
    for found in detector.predict([*images, np.full((9, 9, 3), 40, np.uint8)]):
        assert np.isfinite(found.score)
        assert np.isfinite(found.anomaly_map).all()
        assert found.anomaly_map.shape == found.image.shape[:2]
