"""AnomalyCLIP as a detector: what it keeps, what it refuses, what its options do."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from tests.seeded import CLIP_TINY, clip_weights, save_clip

from offnominal import load
from offnominal.detectors.language.anomalyclip import AnomalyCLIP
from offnominal.detectors.language.coop import CoOp
from offnominal.errors import BackboneError, ModelFileError, NotFittedError, OptionError
from offnominal.language.learned import AnomalyCLIPPrompts, CoOpPrompts
from offnominal.language.learnedfile import LearnedFile, write_learned


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_clip(tmp_path_factory.mktemp("clip"), CLIP_TINY, "tiny", quick_gelu=True))


@pytest.fixture(scope="module")
def images(tiles: Path) -> list[Path]:
    folders = ("good", "break", "crack")
    return [sorted((tiles / "test" / folder).iterdir())[0] for folder in folders]


def write(path: Path, reading: dict[str, Any] | None = None, **learner: int) -> Path:
    sizes = {"width": 64, "length": 4, "depth": 3, "deep_length": 2} | learner
    prompts = AnomalyCLIPPrompts(**sizes, generator=torch.Generator().manual_seed(1))
    for parameter in prompts.parameters():
        parameter.data *= 20
    write_learned(path, prompts, LearnedFile("anomalyclip", prompts.settings(), reading or {}))
    return path


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    return write(tmp_path / "prompts.safetensors")


def test_a_saved_detector_needs_the_image_tower_only(
    weights: str, prompts: Path, images: list[Path], tmp_path: Path
) -> None:
    model, tower = tmp_path / "tile.offn", tmp_path / "tower.safetensors"
    detector = AnomalyCLIP(prompts=prompts, weights=weights, resolution=96).fit([])
    wanted = detector.predict(images)
    detector.save(model)
    prompts.unlink()
    with safe_open(weights, framework="pt") as file:
        metadata = file.metadata()
    image_tower = {k: v for k, v in clip_weights(CLIP_TINY).items() if k.startswith("visual.")}
    save_file(image_tower, tower, metadata=metadata)
    loaded = load(model, weights=str(tower))
    assert isinstance(loaded, AnomalyCLIP)
    assert loaded.fitted
    for ours, theirs in zip(loaded.predict(images), wanted, strict=True):
        assert ours.score == theirs.score
        np.testing.assert_array_equal(ours.anomaly_map, theirs.anomaly_map)
        assert ours.anomaly_map.shape == ours.image.shape[:2]
        assert 0 < ours.score < 1
    assert model.stat().st_size < 4000


def test_what_the_prompts_were_trained_with_is_the_default(
    weights: str, images: list[Path], tmp_path: Path
) -> None:
    """Layers, resolution and value blocks come from the file unless they are given."""
    reading = {"layers": [1, 3], "resolution": 80, "value_blocks": 2}
    path = write(tmp_path / "prompts.safetensors", reading)
    detector = AnomalyCLIP(prompts=path, weights=weights).fit([])
    assert detector.reading() | reading == detector.reading()
    [found] = detector.predict(images[0])
    assert found.patch_scores.shape == (5, 5)
    detector.save(tmp_path / "tile.offn")
    [again] = load(tmp_path / "tile.offn").predict(images[0])
    np.testing.assert_array_equal(again.patch_scores, found.patch_scores)
    # The map is a sum over levels.
    alone = [
        AnomalyCLIP(prompts=path, weights=weights, layers=[layer]).fit([]).predict(images[0])[0]
        for layer in (1, 3)
    ]
    total = alone[0].patch_scores + alone[1].patch_scores
    np.testing.assert_allclose(total, found.patch_scores, rtol=1e-5)
    assert not np.allclose(alone[0].patch_scores, alone[1].patch_scores)
    assert alone[0].score == found.score
    other = AnomalyCLIP(prompts=path, weights=weights, resolution=64, value_blocks=1).fit([])
    assert other.predict(images[0])[0].patch_scores.shape == (4, 4)
    assert other.reading()["value_blocks"] == 1


def test_options_of_the_score(weights: str, prompts: Path, images: list[Path]) -> None:
    options: dict[str, Any] = {"prompts": prompts, "weights": weights, "resolution": 96}
    own = AnomalyCLIP(**options).fit([])
    [text] = own.predict(images[1])
    [peak] = AnomalyCLIP(aggregate="max", **options).fit([]).predict(images[1])
    assert peak.score == pytest.approx(float(text.patch_scores.max()))
    assert text.score != peak.score
    [named] = AnomalyCLIP(class_name="metal nut", **options).fit([]).predict(images[1])
    assert named.score == text.score, "the prompts know no object"
    pixels = torch.from_numpy(own.views(np.asarray(Image.open(images[1]).convert("RGB")))[0].pixels)
    with torch.inference_mode():
        scores, grids = own(torch.stack([pixels, pixels]))
    assert scores.tolist() == pytest.approx([text.score] * 2, rel=1e-5)
    np.testing.assert_allclose(grids[1], text.patch_scores, rtol=1e-4)


def test_thresholds_come_from_calibration(
    weights: str, prompts: Path, tiles: Path, tmp_path: Path
) -> None:
    detector = AnomalyCLIP(prompts=prompts, weights=weights, false_reject=0.25).fit([])
    assert detector.threshold is None
    good = sorted((tiles / "train/good").iterdir())[:8]
    detector.calibrate(good)
    assert detector.threshold is not None
    detector.save(tmp_path / "tile.offn")
    loaded = load(tmp_path / "tile.offn")
    assert loaded.threshold == detector.threshold
    assert loaded.predict(good[0])[0].is_anomalous in (True, False)


def test_what_is_refused(
    weights: str, prompts: Path, images: list[Path], mobilenet: Path, tmp_path: Path
) -> None:
    with pytest.raises(OptionError, match="offnominal train anomalyclip"):
        AnomalyCLIP(weights=weights).fit([])
    with pytest.raises(OptionError, match="learns from no image"):
        AnomalyCLIP(prompts=prompts, weights=weights).fit(images)
    with pytest.raises(NotFittedError):
        AnomalyCLIP(prompts=prompts, weights=weights).predict(images)
    with pytest.raises(BackboneError, match="compares images with texts"):
        AnomalyCLIP(prompts=prompts, weights=str(mobilenet)).fit([])
    with pytest.raises(ModelFileError, match=r"absent\.safetensors: does not exist"):
        AnomalyCLIP(prompts=tmp_path / "absent.safetensors", weights=weights).fit([])
    with pytest.raises(OptionError, match="value-blocks 0"):
        AnomalyCLIP(value_blocks=0)


def test_prompts_of_another_model_are_refused(weights: str, prompts: Path, tmp_path: Path) -> None:
    wide = write(tmp_path / "wide.safetensors", width=96)
    with pytest.raises(ModelFileError, match=r"96 wide, and the text tower of .* takes 64"):
        AnomalyCLIP(prompts=wide, weights=weights).fit([])
    learned = AnomalyCLIPPrompts(64, 4, 3, 2)
    net = AnomalyCLIP(weights=weights).clip
    for backbone, told in (
        ({"name": "open_clip:x", "digest": "0" * 64}, r"open_clip:x of other weights"),
        ({"name": "x", "digest": net.digest, "text": "1" * 64}, "digest 111111111111, not"),
    ):
        about = LearnedFile("anomalyclip", learned.settings(), {}, backbone)
        write_learned(tmp_path / "other.safetensors", learned, about)
        with pytest.raises(ModelFileError, match=told):
            AnomalyCLIP(prompts=tmp_path / "other.safetensors", weights=weights).fit([])
    context = CoOpPrompts(64)
    write_learned(tmp_path / "coop.safetensors", context, LearnedFile("coop", context.settings()))
    with pytest.raises(ModelFileError, match="--method coop"):
        AnomalyCLIP(prompts=tmp_path / "coop.safetensors", weights=weights).fit([])
    with pytest.raises(ModelFileError, match="--method anomalyclip"):
        CoOp(prompts=prompts, weights=weights).fit([])


@pytest.mark.parametrize(
    ("reading", "told"),
    [
        ({"temperature": 0.1}, "temperature 0.1, not 0.07"),
        ({"positions": "bicubic"}, "positions bicubic, not bilinear"),
        ({"activation": "gelu"}, "activation gelu, not quickgelu"),
    ],
)
def test_prompts_are_read_as_they_were_trained(
    weights: str, tmp_path: Path, reading: dict[str, Any], told: str
) -> None:
    path = write(tmp_path / "prompts.safetensors", reading)
    with pytest.raises(OptionError, match=told):
        AnomalyCLIP(prompts=path, weights=weights).fit([])
    AnomalyCLIP(prompts=path, weights=weights, **reading).fit([])


def test_coop_says_what_clip_says(weights: str, images: list[Path], tmp_path: Path) -> None:
    """With words as context it is CLIP with those words: scores and maps written out."""
    context = CoOpPrompts(64, 4)
    detector = CoOp(weights=weights, resolution=96, class_name="magnetic tile")
    net, text = detector.clip, detector.clip.load_text()
    context.start_from(text, "a photo of a")
    path = tmp_path / "coop.safetensors"
    write_learned(path, context, LearnedFile("coop", context.settings()))
    detector.prompts = str(path)
    [found] = detector.fit([]).predict(images[2])
    states = text.encode([f"a photo of a {s} magnetic tile." for s in ("normal", "anomalous")])
    states = states / states.norm(dim=1, keepdim=True)
    pixels = torch.from_numpy(detector.views(found.image)[0].pixels)[None]
    with torch.inference_mode():
        tokens = net.project(net.tokens(pixels).last)[0]
    cosines = (tokens / tokens.norm(dim=1, keepdim=True)) @ states.T
    abnormal = (cosines / 0.07).softmax(1)[:, 1]
    assert found.score == pytest.approx(float(abnormal[0]), abs=1e-5)
    np.testing.assert_allclose(found.patch_scores.ravel(), abnormal[1:], atol=1e-5)
