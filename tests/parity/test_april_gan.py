"""Agreement with APRIL-GAN's released code on a small seeded CLIP."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tests.seeded import CLIP_DEEP, draw_clip, save_clip
from torch import Tensor

from offnominal.detectors.language.april_gan import AprilGAN, minmax_scores
from offnominal.images import read_image


@pytest.fixture(scope="module")
def golden(shared: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    folder = shared / "golden" / "vision_language"
    case = json.loads((folder / "vand.json").read_text())
    with np.load(folder / "vand.npz") as stored:
        return case, {name: stored[name] for name in stored.files}


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("april")
    layers = {
        f"fc.{level}.{kind}": draw_clip(f"fc.{level}.{kind}", shape)
        for level in range(4)
        for kind, shape in (("weight", (64, 128)), ("bias", (64,)))
    }
    # As the released code saves them.
    torch.save({"trainable_linearlayer": layers}, folder / "layers.pth")
    weights = save_clip(folder, CLIP_DEEP, "deep", quick_gelu=True)
    return {
        "weights": str(weights),
        "projections": folder / "layers.pth",
        "class_name": "magnetic tile",
    }


def every_seventh(values: Tensor) -> np.ndarray:
    return values[::7, ::7].cpu().numpy()


def largest(ours: Tensor | np.ndarray, theirs: np.ndarray) -> float:
    return float(np.abs(np.asarray(ours) - theirs).max())


@pytest.mark.slow
def test_zero_and_few_shot(golden: Any, options: dict[str, Any], tiles: Path) -> None:
    case, arrays = golden
    detector = AprilGAN(**options).fit([tiles / name for name in case["config"]["refs"]])
    assert largest(detector.text_features_, arrays["text_features"]) < 1e-5
    assert detector.learned is not None
    text, peaks = [], []
    for name in case["config"]["tests"]:
        expected = case["results"][name]
        [view] = detector.views(read_image(tiles / name))
        with torch.inference_mode():
            seen = detector.embed(
                torch.from_numpy(view.pixels)
            )  # once: the tower is what takes the time
            assert largest(seen.whole, arrays[f"image_feature/{name}"]) < 1e-5
            levels = zip(
                (6, 12, 18, 24),
                seen.levels,
                detector.learned.layers,
                detector.banks,
                strict=True,
            )
            for level, tokens, layer, bank in levels:
                theirs = arrays[f"adapted_rows_0::13_layer{level}/{name}"]
                assert largest(layer(tokens)[::13], theirs) < 1e-4, (name, level)
                squared, _ = bank.search(F.normalize(tokens, dim=-1).numpy())
                grid = squared.reshape(seen.grid) / 2
                assert largest(grid, arrays[f"few_shot_grid_layer{level}/{name}"]) < 2e-5
            text_map = detector._ask_texts(seen)
            rows = [F.normalize(tokens, dim=-1) for tokens in seen.levels]
            distances = detector._distances(rows, None).reshape(seen.grid)
            few = detector._enlarged(distances, seen.grid)
            text.append(float(detector.abnormality(seen.whole[None])[0]))
        assert largest(every_seventh(text_map), arrays[f"zero_shot_map/{name}"]) < 2e-4
        assert largest(every_seventh(few), arrays[f"few_shot_map/{name}"]) < 2e-4
        assert text[-1] == pytest.approx(expected["zero_shot_score"], abs=2e-4)
        peaks.append(float((text_map + few).max()))
        assert peaks[-1] == pytest.approx(expected["zero_plus_few_map"]["max"], abs=2e-4)
    scores = [case["results"][name]["few_shot_score"] for name in case["config"]["tests"]]
    assert minmax_scores(text, peaks) == pytest.approx(scores, abs=1e-3)
