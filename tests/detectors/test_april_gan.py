"""APRIL-GAN on a tiny CLIP: what agreement with the released code does not cover."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tests.seeded import CLIP_TINY, save_clip

from offnominal import load
from offnominal.detectors.language.april_gan import AprilGAN, minmax_scores
from offnominal.errors import ModelFileError, OptionError
from offnominal.language.learned import LearnedPrompts, Projections
from offnominal.language.learnedfile import LearnedFile, read_learned, write_learned


@pytest.fixture(scope="module")
def tower(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_clip(tmp_path_factory.mktemp("tiny"), CLIP_TINY, "tiny")


def layers(folder: Path, width: int = 64, backbone: dict[str, str] | None = None) -> Path:
    torch.manual_seed(0)
    learned = Projections(width, 32, 4)
    about = LearnedFile("april-gan", learned.settings(), backbone=backbone or {})
    write_learned(folder / "layers.safetensors", learned, about)
    return folder / "layers.safetensors"


def pictures(count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 255, (90, 70, 3), dtype=np.uint8) for _ in range(count)]


def test_saved_and_opened_it_predicts_the_same(tower: Path, tmp_path: Path) -> None:
    images = pictures(4)
    for good in ([], images[:3]):
        detector = AprilGAN(projections=layers(tmp_path), weights=str(tower)).fit(good)
        detector.save(tmp_path / "part.offn")
        (tmp_path / "layers.safetensors").unlink()  # the saved detector holds them
        before, [after] = (
            detector.predict(images[3])[0],
            load(tmp_path / "part.offn").predict(images[3]),
        )
        assert after.score == before.score
        np.testing.assert_array_equal(after.anomaly_map, before.anomaly_map)
        assert before.anomaly_map.shape == (90, 70)
        assert (before.threshold is None) == (not good)


def test_a_good_image_seen_before_scores_less_than_a_new_one(tower: Path, tmp_path: Path) -> None:
    images = pictures(4)
    detector = AprilGAN(projections=layers(tmp_path), weights=str(tower)).fit(images[:3])
    known, new = detector.predict([images[0], images[3]])
    assert known.anomaly_map.mean() < new.anomaly_map.mean()
    assert float(detector.peak_) > 0


def test_softmax_before_enlarging_gives_a_grid_of_patches(tower: Path, tmp_path: Path) -> None:
    path = layers(tmp_path)
    [image] = pictures(1)
    coarse, fine = (
        AprilGAN(projections=path, weights=str(tower), softmax=softmax).fit().predict(image)[0]
        for softmax in ("patch", "pixel")
    )
    assert coarse.patch_scores.shape == (4, 4)
    assert fine.patch_scores.shape == (64, 64)
    # The same shares at the corners, where enlarging leaves the patches as they are.
    assert fine.patch_scores[0, 0] == pytest.approx(coarse.patch_scores[0, 0], abs=1e-5)
    assert fine.patch_scores[-1, -1] == pytest.approx(coarse.patch_scores[-1, -1], abs=1e-5)


def test_tiles_are_merged_at_every_pixel(tower: Path, tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 255, (100, 150, 3), dtype=np.uint8)
    detector = AprilGAN(projections=layers(tmp_path), weights=str(tower), tile=64).fit()
    [prediction] = detector.predict(image)
    assert prediction.anomaly_map.shape == (100, 150)
    assert np.isfinite(prediction.anomaly_map).all()


def test_layers_that_do_not_fit_are_refused(tower: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="train april-gan"):
        AprilGAN(weights=str(tower)).fit()
    with pytest.raises(ModelFileError, match="--layers"):
        AprilGAN(projections=layers(tmp_path, width=48), weights=str(tower)).fit()
    other = layers(tmp_path, backbone={"name": "open_clip:other", "digest": "0" * 64})
    with pytest.raises(ModelFileError, match="other weights"):
        AprilGAN(projections=other, weights=str(tower)).fit()
    with pytest.raises(ModelFileError, match="not prompts"):
        read_learned(other, LearnedPrompts)
    with pytest.raises(OptionError, match="softmax"):
        AprilGAN(softmax="image")  # type: ignore[arg-type]  # what is refused


def test_minmax_scores_of_a_set() -> None:
    assert minmax_scores([0.2, 0.4, 0.6], [1.0, 3.0, 2.0]) == pytest.approx([0.1, 0.7, 0.55])
    assert minmax_scores([0.5], [1.0]) == [0.25]  # nothing to compare with
