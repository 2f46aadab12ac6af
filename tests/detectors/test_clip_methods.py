"""CLIP, CLIP-AC and WinCLIP: the contract, thresholds, files, and what their numbers are."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from tests.seeded import CLIP_TINY, save_clip

from offnominal import load
from offnominal.detectors.language.base import LanguageDetector
from offnominal.detectors.language.clip import CLIPAC, CLIPDetector
from offnominal.detectors.language.winclip import WinCLIP, harmonic_over_windows
from offnominal.errors import BackboneError, NotFittedError, OptionError
from offnominal.images import read_image

METHODS = (CLIPDetector, CLIPAC, WinCLIP)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_clip(tmp_path_factory.mktemp("clip"), CLIP_TINY, "tiny"))


@pytest.fixture(scope="module")
def good(parts: Path) -> list[Path]:
    folder = parts / "fabric"
    return sorted((folder / "train" / "good").iterdir()) + sorted(
        (folder / "test" / "good").iterdir()
    )


@pytest.fixture(scope="module", params=METHODS, ids=lambda kind: kind.method)
def fitted(request: pytest.FixtureRequest, weights: str) -> LanguageDetector:
    found: LanguageDetector = request.param(weights=weights, class_name="fabric").fit()
    return found


def test_fit_without_images(fitted: LanguageDetector, good: list[Path], weights: str) -> None:
    assert fitted.fitted
    assert fitted.references == []
    assert fitted.threshold is None
    [one] = fitted.predict(good[0])
    assert 0 < one.score < 1
    assert one.is_anomalous is None
    assert one.anomaly_map.shape == read_image(good[0]).shape[:2]
    with pytest.raises(NotFittedError):
        type(fitted)(weights=weights).predict(good[0])


def test_calibrate_gives_a_threshold(fitted: LanguageDetector, good: list[Path]) -> None:
    detector = type(fitted)(**fitted.options())
    detector.use_network(fitted.load_network())
    detector.fit()
    assert detector.calibrate(good, false_reject=0.2) == 0
    assert detector.threshold is not None
    assert detector.threshold.kind == "conformal"
    scores = [prediction.score for prediction in detector.predict(good)]
    assert sorted(scores) == sorted(detector.calibration.images.tolist())


def test_saved_without_the_text_tower(
    fitted: LanguageDetector, good: list[Path], tmp_path: Path
) -> None:
    path = tmp_path / "model.offn"
    fitted.save(path)
    assert path.stat().st_size < 100_000
    image_only = tmp_path / "image_tower.safetensors"
    with safe_open(fitted.weights, framework="pt") as file:
        metadata = file.metadata()
        towers = {k: file.get_tensor(k) for k in file.keys() if k.startswith("visual.")}  # noqa: SIM118
    save_file(towers, image_only, metadata=metadata)
    again = load(path, weights=str(image_only))
    assert type(again) is type(fitted)
    assert isinstance(again, LanguageDetector)
    assert again.class_name == "fabric"
    [first], [second] = fitted.predict(good[0]), again.predict(good[0])
    assert first.score == second.score
    assert np.array_equal(first.anomaly_map, second.anomaly_map)


def test_forward_is_what_predict_says(fitted: LanguageDetector, good: list[Path]) -> None:
    views = [torch.from_numpy(fitted.views(read_image(path))[0].pixels) for path in good[:2]]
    with torch.inference_mode():
        scores, patch_scores = fitted(torch.stack(views))
    predictions = fitted.predict(good[:2])
    assert scores.tolist() == pytest.approx([one.score for one in predictions], abs=1e-6)
    for patches, one in zip(patch_scores, predictions, strict=True):
        np.testing.assert_allclose(patches, one.patch_scores, atol=1e-6)


def test_class_name_matters(weights: str, good: list[Path]) -> None:
    named = CLIPDetector(weights=weights, class_name="fabric").fit()
    nameless = CLIPDetector(weights=weights).fit()
    agnostic = CLIPDetector(weights=weights, class_name="object").fit()
    assert torch.equal(nameless.text_features_, agnostic.text_features_)
    [one], [other] = named.predict(good[0]), nameless.predict(good[0])
    assert one.score != other.score


def test_clip_written_out(weights: str, good: list[Path]) -> None:
    detector = CLIPDetector(weights=weights, class_name="fabric", temperature=0.1).fit()
    text = detector.clip.load_text()
    sentences = ["a photo of a normal fabric", "a photo of an anomalous fabric"]
    states = F.normalize(text.encode(sentences), dim=1)
    pixels = torch.from_numpy(detector.views(read_image(good[0]))[0].pixels)[None]
    with torch.inference_mode():
        last = detector.clip.tokens(pixels).last[0]
        tokens = F.normalize(detector.clip.visual.ln_post(last) @ detector.clip.visual.proj, dim=1)
    wanted = (10 * tokens @ states.T).softmax(1)[:, 1]
    [one] = detector.predict(good[0])
    assert one.score == pytest.approx(float(wanted[0]), abs=1e-6)
    np.testing.assert_allclose(one.patch_scores.ravel(), wanted[1:], atol=1e-6)


def test_statistic_of_the_patches_instead(weights: str, good: list[Path]) -> None:
    detector = CLIPDetector(weights=weights, aggregate="max").fit()
    [one] = detector.predict(good[0])
    assert one.score == pytest.approx(float(one.patch_scores.max()))
    detector.calibrate(good[1:])
    text = detector.rescored(aggregate="mean")
    [other] = text.predict(good[0])
    assert other.score == pytest.approx(float(one.patch_scores.mean()), abs=1e-6)


def test_harmonic_mean_by_hand() -> None:
    values = torch.tensor([0.5, 0.25, 1.0, 0.5])  # 2 x 2 windows of 2 x 2 on a 3 x 3 grid
    found = harmonic_over_windows(values, (3, 3), 2)
    assert found[0, 0] == 0.5
    assert found[0, 1].item() == pytest.approx(2 / (1 / 0.5 + 1 / 0.25))
    assert found[1, 1].item() == pytest.approx(4 / (2 + 4 + 1 + 2))
    assert found[2, 2] == 0.5
    zero = harmonic_over_windows(torch.tensor([0.0, 1.0, 1.0, 1.0]), (3, 3), 2)
    assert zero[1, 1] == 0
    assert zero[2, 2] == 1


@pytest.mark.slow
def test_references_are_scored_without_themselves(weights: str, good: list[Path]) -> None:
    detector = WinCLIP(weights=weights).fit(good[:4])
    assert detector.calibration.kind == "leave-one-out"
    for number in range(4):
        others = [path for index, path in enumerate(good[:4]) if index != number]
        without = WinCLIP(weights=weights)
        without.use_network(detector.load_network())
        [alone] = without.fit(others).predict(good[number])
        assert detector.calibration.images[number] == pytest.approx(alone.score, abs=1e-6)
        peak = detector.calibration.peaks[number]
        assert peak == pytest.approx(float(alone.anomaly_map.max()), abs=1e-6)
    [seen] = detector.predict(good[0])
    assert seen.score < detector.calibration.images[0], "against all of them it meets its twin"


def test_references_are_saved(weights: str, good: list[Path], tmp_path: Path) -> None:
    detector = WinCLIP(weights=weights, windows=(2,), false_reject=0.2).fit(good[:5])
    assert detector.threshold is not None
    detector.save(tmp_path / "m.offn")
    again = load(tmp_path / "m.offn")
    assert again.threshold == detector.threshold
    for first, second in zip(detector.predict(good[5:]), again.predict(good[5:]), strict=True):
        assert (first.score, first.is_anomalous) == (second.score, second.is_anomalous)
        assert np.array_equal(first.anomaly_map, second.anomaly_map)


def test_one_reference_gives_a_guess(weights: str, good: list[Path]) -> None:
    detector = WinCLIP(weights=weights).fit(good[:1])
    assert detector.threshold is not None
    assert detector.threshold.kind == "guess"
    [copy] = detector.predict(good[0])
    zero = WinCLIP(weights=weights).fit()
    [texts] = zero.predict(good[0])
    # Nothing is farther than rounding from itself, so half of what texts say is left.
    np.testing.assert_allclose(copy.patch_scores, texts.patch_scores / 2, atol=1e-4)
    assert copy.score == pytest.approx(texts.score / 2, abs=1e-4)


@pytest.mark.slow
def test_tiles(weights: str, good: list[Path]) -> None:
    detector = WinCLIP(weights=weights, tile=64).fit(good[:2])
    [one] = detector.predict(good[2])
    assert one.anomaly_map.shape == read_image(good[2]).shape[:2]
    assert len(detector.calibration) == 2


def test_refusals(weights: str, good: list[Path], mobilenet: Path) -> None:
    with pytest.raises(OptionError, match="learns from no image"):
        CLIPDetector(weights=weights).fit(good[:1])
    with pytest.raises(OptionError, match="blank"):
        WinCLIP(class_name=" ")
    with pytest.raises(OptionError, match="temperature"):
        CLIPDetector(temperature=0)
    with pytest.raises(OptionError, match="aggregate"):
        CLIPDetector(aggregate="best")
    for windows in ((), (0,), "3;2"):
        with pytest.raises(OptionError, match="windows"):
            WinCLIP(windows=windows)
    assert WinCLIP(windows="3,2").windows == (3, 2)
    with pytest.raises(OptionError, match="only 4 x 4"):
        WinCLIP(weights=weights, windows=(5,)).fit(good[:1])
    with pytest.raises(BackboneError, match="open_clip:"):
        CLIPDetector(weights=str(mobilenet)).fit()


def test_networks_of_the_papers() -> None:
    assert WinCLIP.default_backbone == "open_clip:ViT-B-16-plus-240"
    assert CLIPDetector.default_backbone == "open_clip:ViT-L-14-336"
    assert CLIPDetector.option_defaults()["smoothing"] == 4.0
    assert WinCLIP.option_defaults()["smoothing"] == 0.0
