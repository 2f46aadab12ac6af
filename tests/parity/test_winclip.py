"""Agreement with the reproduction of WinCLIP behind AnomalyCLIP's figures, with seeded weights."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.lib.npyio import NpzFile
from tests.seeded import CLIP_WIDE, save_clip

from offnominal import Prediction
from offnominal.detectors.language.winclip import WinCLIP
from offnominal.language.prompts import WINCLIP_RELEASED
from offnominal.scoring import anomaly_map

# Of the reference's README.
EMBEDDINGS = {"rtol": 0, "atol": 1e-4}
SCORES = {"rtol": 0, "atol": 1e-5}

Found = dict[str, Prediction]


@pytest.fixture(scope="module")
def golden(shared: Path) -> tuple[dict[str, Any], NpzFile]:
    folder = shared / "golden" / "vision_language"
    content: dict[str, Any] = json.loads((folder / "winclip.json").read_text())
    return content, np.load(folder / "winclip.npz")


@pytest.fixture(scope="module")
def zero_shot(tmp_path_factory: pytest.TempPathFactory) -> WinCLIP:
    """As the reproduction was run: its prompts, and the sum of both maps."""
    weights = save_clip(tmp_path_factory.mktemp("clip"), CLIP_WIDE, "wide")
    detector = WinCLIP(
        class_name="magnetic tile",
        prompts="reproduction",
        fuse="sum",
        weights=str(weights),
        device="cpu",
    )
    return detector.fit()


@pytest.fixture(scope="module")
def few_shot(golden: tuple[dict[str, Any], NpzFile], tiles: Path, zero_shot: WinCLIP) -> WinCLIP:
    detector = WinCLIP(**zero_shot.options(), device="cpu")
    detector.use_network(zero_shot.load_network())
    return detector.fit(tiles / name for name in golden[0]["config"]["refs"])


def scores_of(detector: WinCLIP, names: list[str], tiles: Path) -> Found:
    return dict(zip(names, detector.stream(tiles / name for name in names), strict=True))


@pytest.fixture(scope="module")
def without(golden: tuple[dict[str, Any], NpzFile], tiles: Path, zero_shot: WinCLIP) -> Found:
    return scores_of(zero_shot, golden[0]["config"]["tests"], tiles)


@pytest.fixture(scope="module")
def with_references(
    golden: tuple[dict[str, Any], NpzFile], tiles: Path, few_shot: WinCLIP
) -> Found:
    return scores_of(few_shot, golden[0]["config"]["tests"], tiles)


@pytest.mark.slow
def test_text_features(golden: tuple[dict[str, Any], NpzFile], zero_shot: WinCLIP) -> None:
    text = zero_shot.clip.load_text()
    both = zip(("normal", "abnormal"), WINCLIP_RELEASED.prompts("magnetic tile"), strict=True)
    for number, (state, prompts) in enumerate(both):
        assert len(prompts) == golden[0]["config"][f"{state}_prompts"]
        wanted = golden[1][f"text_{state}_mean"]
        np.testing.assert_allclose(text.encode(prompts).mean(0), wanted, **EMBEDDINGS)
        unit = wanted / np.linalg.norm(wanted)
        np.testing.assert_allclose(zero_shot.text_features_[number], unit, **SCORES)


def test_embeddings(
    golden: tuple[dict[str, Any], NpzFile], tiles: Path, zero_shot: WinCLIP
) -> None:
    from offnominal.images import read_image

    content, arrays = golden
    name = content["config"]["tests"][2]
    pixels = torch.from_numpy(zero_shot.views(read_image(tiles / name))[0].pixels)[None]
    clip = zero_shot.clip
    with torch.inference_mode():
        tokens = clip.tokens(pixels).last[0]
        large, middle = clip.embed_windows(pixels, (3, 2))
        whole = clip.project(tokens[0])
    np.testing.assert_allclose(whole, arrays[f"class_embedding/{name}"], **EMBEDDINGS)
    for wanted, found in (
        ("window3_embedding_rows_0::13", large[0, ::13]),
        ("window2_embedding_rows_0::14", middle[0, ::14]),
        ("patch_token_rows_0::15", tokens[1::15]),
    ):
        np.testing.assert_allclose(found, arrays[f"{wanted}/{name}"], **EMBEDDINGS)


@pytest.mark.slow
def test_zero_shot(golden: tuple[dict[str, Any], NpzFile], without: Found) -> None:
    content, arrays = golden
    for name, one in without.items():
        wanted = content["results"][name]
        assert one.score == pytest.approx(wanted["zero_shot_score"], abs=1e-5)
        np.testing.assert_allclose(one.patch_scores, arrays[f"zero_shot_grid/{name}"], **SCORES)
        heat = anomaly_map(one.patch_scores, (240, 240), 0.0)
        np.testing.assert_allclose(heat[::4, ::4], arrays[f"zero_shot_map/{name}"], **SCORES)
        assert float(heat.mean()) == pytest.approx(wanted["zero_shot_map"]["mean"], abs=1e-5)
        assert float(heat.max()) == pytest.approx(wanted["zero_shot_map"]["max"], abs=1e-5)


@pytest.mark.slow
def test_few_shot(
    golden: tuple[dict[str, Any], NpzFile], without: Found, with_references: Found
) -> None:
    content, arrays = golden
    for name, one in with_references.items():
        wanted = content["results"][name]
        assert one.score == pytest.approx(wanted["few_shot_score"], abs=1e-5)
        distances = one.patch_scores - without[name].patch_scores
        np.testing.assert_allclose(distances, arrays[f"few_shot_grid/{name}"], **SCORES)
        heat = anomaly_map(one.patch_scores, (240, 240), 0.0)
        np.testing.assert_allclose(heat[::4, ::4], arrays[f"few_shot_plus_map/{name}"], **SCORES)


@pytest.mark.slow
def test_papers_map_is_the_mean(
    golden: tuple[dict[str, Any], NpzFile],
    tiles: Path,
    few_shot: WinCLIP,
    with_references: Found,
) -> None:
    paper = WinCLIP(**(few_shot.options() | {"fuse": "mean"}), device="cpu")
    paper.use_network(few_shot.load_network())
    paper.fit(tiles / name for name in golden[0]["config"]["refs"])
    [name, *_] = with_references
    [one] = paper.predict(tiles / name)
    np.testing.assert_allclose(one.patch_scores, with_references[name].patch_scores / 2, rtol=1e-6)
    assert one.score == with_references[name].score
