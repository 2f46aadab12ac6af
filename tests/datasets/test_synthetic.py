"""Synthetic parts: repeatable, varied, and with masks that are exact."""

import time
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest

from offnominal.datasets import synthetic
from offnominal.datasets.synthetic import (
    DEFECTS,
    LOOKS,
    draw_defective,
    draw_good,
    object_mask,
    write_dataset,
)
from offnominal.errors import DatasetError, OptionError

ALL = [(look, defect) for look in LOOKS for defect in DEFECTS[look]]


@pytest.mark.parametrize("look", LOOKS)
def test_good_images_repeat_by_seed_and_differ_otherwise(look: str) -> None:
    first = draw_good(look, 5, 0)
    assert first.dtype == np.uint8
    assert first.ndim == 3
    assert 280 <= min(first.shape[:2]) <= max(first.shape[:2]) <= 420
    assert first.tobytes() == draw_good(look, 5, 0).tobytes()
    for other in (draw_good(look, 5, 1), draw_good(look, 6, 0), draw_good(look, 5, 0, "test")):
        assert other.tobytes() != first.tobytes()


def test_looks_have_several_shapes() -> None:
    shapes = {draw_good(look, 0, 0).shape for look in LOOKS}
    assert len(shapes) == len(LOOKS) >= 2


@pytest.mark.parametrize("look", LOOKS)
def test_good_images_vary_in_light_and_place(look: str) -> None:
    images = np.stack([draw_good(look, 1, index) for index in range(8)]).astype(np.float32)
    means = images.mean((1, 2, 3))
    assert 0.02 < np.ptp(means) / means.mean() < 0.4
    # More than noise: neighbouring images differ at scales that blurring does not remove.
    blurred = [cv2.GaussianBlur(image, (0, 0), 2) / image.mean() for image in images]
    assert np.mean([np.abs(a - b).mean() for a, b in pairwise(blurred)]) > 0.01
    # Nowhere burnt out or black over large areas.
    assert (images >= 254).mean() < 0.03
    assert (images <= 1).mean() < 0.03


@pytest.mark.parametrize(("look", "defect"), ALL)
def test_masks_are_what_really_changed(look: str, defect: str) -> None:
    areas = []
    for index in range(3):
        image, mask, kind = draw_defective(look, 7, index, defect)
        assert kind == defect
        assert mask.dtype == np.bool_
        assert mask.shape == image.shape[:2]
        areas.append(mask.mean())
        assert 24 <= mask.sum() < 0.2 * mask.size
    again, mask_again, _ = draw_defective(look, 7, 2, defect)
    assert again.tobytes() == image.tobytes()
    assert mask_again.tobytes() == mask.tobytes()
    assert len(set(areas)) == 3


@pytest.mark.parametrize(("look", "defect"), ALL)
def test_masks_hold_every_change_and_nothing_else(look: str, defect: str) -> None:
    image, mask, _ = draw_defective(look, 11, 0, defect)
    # The same part undamaged, by the generator's own seeds.
    module = synthetic._module(look)
    rng = synthetic._generator(look, 11, defect, 0)
    scene = module.draw(rng)
    clean = synthetic.camera(rng, module.SHAPE)(module.render(scene))
    changed = cv2.absdiff(image, clean).max(-1)
    assert (changed[~mask] == 0).all()
    assert (changed[mask] > 0).all()


@pytest.mark.slow
def test_a_defect_is_chosen_when_none_is_named() -> None:
    kinds = {draw_defective("part", 0, index)[2] for index in range(12)}
    assert len(kinds) >= 3
    assert kinds <= set(DEFECTS["part"])


def test_object_mask_follows_the_part() -> None:
    for index in range(4):
        image, mask = draw_good("part", 2, index), object_mask("part", 2, index)
        assert mask.shape == image.shape[:2]
        assert 0.2 < mask.mean() < 0.5
        grey = image.mean(-1)
        # Whatever is brighter than the bare table is metal; shadows are darker.
        metal = grey > np.median(grey[:20]) * 1.25
        agreement = (metal & mask).sum() / (metal | mask).sum()
        assert agreement > 0.95
    assert not np.array_equal(object_mask("part", 2, 0), object_mask("part", 2, 1))
    assert not np.array_equal(object_mask("part", 2, 0), object_mask("part", 2, 0, "test"))
    assert object_mask("fabric", 2, 0).all()


@pytest.mark.slow
def test_data_set_is_written_in_the_usual_layout(tmp_path: Path) -> None:
    samples = write_dataset(tmp_path / "set", ("fabric", "part"), 2, 2, 1, seed=4)
    expected = sum(4 + len(DEFECTS[look]) for look in ("fabric", "part"))
    assert len(samples) == expected
    assert {path.name for path in (tmp_path / "set").iterdir()} == {"fabric", "part"}
    for sample in samples:
        image = cv2.imread(str(sample.image))[..., ::-1]
        parts = sample.image.relative_to(tmp_path / "set").parts
        assert parts[:3] == (sample.category, sample.split, sample.defect)
        assert sample.label == (sample.defect != "good")
        assert (sample.mask is None) == (sample.label == 0)
        index = int(sample.image.stem)
        if sample.mask is None:
            assert np.array_equal(image, draw_good(sample.category, 4, index, sample.split))
            continue
        drawn, truth, _ = draw_defective(sample.category, 4, index, sample.defect)
        assert np.array_equal(image, drawn)
        stored = cv2.imread(str(sample.mask), cv2.IMREAD_UNCHANGED)
        assert sample.mask.parent == tmp_path / "set" / sample.category / "ground_truth" / parts[2]
        assert sample.mask.name == "000_mask.png"
        assert np.array_equal(stored, truth.astype(np.uint8) * 255)


def test_wrong_requests_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="fabric"):
        draw_good("velvet", 0, 0)
    with pytest.raises(OptionError, match="missing_hole"):
        draw_defective("part", 0, 0, "hole")
    with pytest.raises(OptionError, match="negative"):
        draw_good("part", -1, 0)
    with pytest.raises(OptionError, match="negative"):
        write_dataset(tmp_path, n_train=-1)
    (tmp_path / "part").mkdir()
    with pytest.raises(DatasetError, match="exists already"):
        write_dataset(tmp_path, ("part",), 1, 1, 1)
    (tmp_path / "file").write_text("")
    with pytest.raises(DatasetError, match="cannot be written"):
        write_dataset(tmp_path / "file", ("part",), 1, 1, 1)


def test_drawing_is_quick() -> None:
    for look in LOOKS:
        draw_good(look, 0, 0)
    start = time.process_time()
    for look in LOOKS:
        for index in range(4):
            draw_good(look, 0, index)
    # Under 0.1 s of processor time each; the limit leaves room for a slow machine.
    assert time.process_time() - start < 8 * 0.3
