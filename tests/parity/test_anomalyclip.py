"""Agreement with AnomalyCLIP's released code on real images, with weights made from seeds."""

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.lib.npyio import NpzFile
from PIL import Image
from tests.seeded import CLIP_DEEP, save_clip

from offnominal.datasets.sample import Sample
from offnominal.detectors.language.anomalyclip import AnomalyCLIP
from offnominal.detectors.language.training.losses import Batch, glocal_loss
from offnominal.detectors.language.training.samples import mask_of, truth_at
from offnominal.images import read_image
from offnominal.language.learned import AnomalyCLIPPrompts, LearnedPrompts
from offnominal.language.learnedfile import read_learned

LAYERS = {"24": (23,), "6_12_18_24": (5, 11, 17, 23)}


class Case:
    """The stored run of the reference."""

    def __init__(self, shared: Path) -> None:
        folder = shared / "golden" / "vision_language"
        content = json.loads((folder / "anomalyclip.json").read_text())
        self.config: dict[str, Any] = content["config"]
        self.results: dict[str, Any] = content["results"]
        self.training: dict[str, Any] = content["training"]
        self.arrays: NpzFile = np.load(folder / "anomalyclip.npz")


def drawn(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    z = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
    return torch.from_numpy((0.3 * z).astype(np.float32))


def released_prompts() -> dict[str, torch.Tensor]:
    """The prompt learner's state as the released code saves it, with what it keeps beside."""
    tensors = {name: drawn(name, (1, 1, 12, 128)) for name in ("ctx_pos", "ctx_neg")}
    for number in range(8):
        name = f"compound_prompts_text.{number}"
        tensors[name] = drawn(name, (4, 128))
        tensors[f"compound_prompt_projections.{number}.weight"] = torch.zeros(3, 3)
    return tensors


@pytest.fixture(scope="module")
def case(shared: Path) -> Case:
    return Case(shared)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_clip(tmp_path_factory.mktemp("seeded"), CLIP_DEEP, "deep", quick_gelu=True)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("released") / "epoch_15.pth"
    torch.save({"prompt_learner": released_prompts()}, path)
    return path


def fitted(weights: Path, checkpoint: Path, layers: str) -> AnomalyCLIP:
    detector = AnomalyCLIP(prompts=checkpoint, weights=str(weights), layers=LAYERS[layers])
    detector.fit([])
    return detector


@pytest.fixture(scope="module")
def raw(
    case: Case, weights: Path, checkpoint: Path, tiles: Path
) -> dict[str, tuple[torch.Tensor, list[torch.Tensor]]]:
    """Projected, not normalised: the image's vector (E,) and each level's tokens (1370, E)."""
    net = fitted(weights, checkpoint, "24").clip
    detector = fitted(weights, checkpoint, "24")
    found = {}
    for name in case.config["tests"]:
        pixels = torch.from_numpy(detector.views(read_image(tiles / name))[0].pixels)[None]
        with torch.no_grad():
            tokens = net.tokens(pixels, LAYERS["6_12_18_24"], values_from=5)
            whole = net.project(tokens.last[:, 0], norm=False)[0]
            found[name] = whole, [net.project(each)[0] for each in tokens.values]
    return found


def squashed(path: Path) -> np.ndarray:
    """An image at the size that the reference draws its maps at."""
    with Image.open(path) as picture:
        return np.asarray(picture.resize((518, 518), Image.Resampling.BICUBIC).convert("RGB"))


def test_text_features(case: Case, weights: Path, checkpoint: Path) -> None:
    detector = fitted(weights, checkpoint, "24")
    text = detector.clip.load_text()
    prompts = AnomalyCLIPPrompts(128)
    ids = text.tokenize(prompts.texts())
    np.testing.assert_array_equal(ids.numpy(), case.arrays["tokenized_prompts"])
    learned, _ = read_learned(checkpoint, LearnedPrompts)
    found = learned(text, ["object"])[0]
    wanted = torch.from_numpy(case.arrays["text_features_raw"])
    assert found.shape == wanted.shape
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=0)
    unit = wanted / wanted.norm(dim=1, keepdim=True)
    torch.testing.assert_close(detector.text_features_, unit, atol=1e-5, rtol=0)


@pytest.mark.parametrize("layers", LAYERS)
@pytest.mark.slow
def test_scores_and_maps(
    case: Case, weights: Path, checkpoint: Path, tiles: Path, layers: str
) -> None:
    detector = fitted(weights, checkpoint, layers)
    limit = 5e-5 if layers == "24" else 1e-4
    for name in case.config["tests"][:: 1 if layers == "6_12_18_24" else 4]:
        [found] = detector.predict(squashed(tiles / name))
        wanted = case.results[name]
        assert found.score == pytest.approx(wanted["score"], abs=1e-5)
        stored = case.arrays[f"map_{layers}/{name}"]
        assert found.anomaly_map[::7, ::7].shape == stored.shape
        np.testing.assert_allclose(found.anomaly_map[::7, ::7], stored, atol=limit)
        numbers = wanted[f"map_{layers}"]
        assert found.anomaly_map.max() == pytest.approx(numbers["max"], abs=limit)
        assert found.anomaly_map.min() == pytest.approx(numbers["min"], abs=limit)
        assert found.anomaly_map.mean() == pytest.approx(numbers["mean"], abs=limit)


@pytest.mark.slow
def test_image_and_patch_features(
    case: Case, raw: dict[str, tuple[torch.Tensor, list[torch.Tensor]]]
) -> None:
    for name, (whole, levels) in raw.items():
        np.testing.assert_allclose(whole, case.arrays[f"image_features/{name}"], atol=1e-4)
        for layer, level in zip((6, 12, 18, 24), levels, strict=True):
            wanted = case.arrays[f"patch_features_{layer}/{name}"]
            np.testing.assert_allclose(level[::13], wanted, atol=1e-4)


@pytest.mark.slow
def test_what_the_detector_sees(
    case: Case,
    weights: Path,
    checkpoint: Path,
    tiles: Path,
    raw: dict[str, tuple[torch.Tensor, list[torch.Tensor]]],
) -> None:
    """Unit vectors of the same, without the class token; it is this that prompts train on."""
    detector = fitted(weights, checkpoint, "6_12_18_24")
    name = case.config["tests"][2]
    whole, levels = raw[name]
    with torch.no_grad():
        seen = detector.embed(torch.from_numpy(detector.views(read_image(tiles / name))[0].pixels))
    assert seen.grid == (37, 37)
    torch.testing.assert_close(seen.whole, whole / whole.norm())
    for level, mine in zip(levels, seen.levels, strict=True):
        torch.testing.assert_close(mine, level[1:] / level[1:].norm(dim=1, keepdim=True))


@pytest.mark.parametrize("layers", LAYERS)
def test_losses_and_gradients(
    case: Case,
    weights: Path,
    checkpoint: Path,
    tiles: Path,
    raw: dict[str, tuple[torch.Tensor, list[torch.Tensor]]],
    layers: str,
) -> None:
    """One batch of all images: each part of the loss, and its gradient for every prompt."""
    wanted = case.training[layers]
    truth = []
    for name, mask, pixels_there in zip(
        case.training["images"], case.config["masks"], case.training["mask_pixels"], strict=True
    ):
        path = tiles / mask if mask else None
        sample = Sample(tiles / name, int(mask is not None), path, "", "", "test", mask_threshold=1)
        here = truth_at(mask_of(sample, read_image(tiles / name).shape[:2]), 518)
        assert here.sum() == pixels_there
        truth.append(torch.from_numpy(here).float())
    found = [raw[name] for name in case.training["images"]]
    whole = torch.stack([each for each, _ in found])
    numbers = [LAYERS["6_12_18_24"].index(layer) for layer in LAYERS[layers]]
    levels = [torch.stack([each[number][1:] for _, each in found]) for number in numbers]
    prompts: LearnedPrompts = read_learned(checkpoint, LearnedPrompts)[0].requires_grad_(True)
    text = fitted(weights, checkpoint, layers).clip.load_text()
    names = ["object"] * len(truth)
    batch = Batch(
        F.normalize(whole, dim=-1),
        [F.normalize(each, dim=-1) for each in levels],
        (37, 37),
        torch.tensor(case.training["labels"]),
        torch.stack(truth),
        names,
    )
    texts = F.normalize(prompts(text, names), dim=-1)
    parts = glocal_loss(batch, texts, temperature=0.07, local_weight=4)
    assert parts["image"].item() == pytest.approx(wanted["image_loss"], rel=1e-4)
    for part in ("focal", "dice_abnormal", "dice_normal"):
        assert parts[part].item() == pytest.approx(sum(wanted[part]), rel=1e-4)
    assert parts["total"].item() == pytest.approx(wanted["total"], rel=1e-4)
    torch.autograd.backward(parts["total"])
    for name, parameter in prompts.named_parameters():
        released = {"normal": "ctx_pos", "abnormal": "ctx_neg"}.get(
            name, name.replace("deep", "compound_prompts_text")
        )
        stored = case.arrays[f"grad_{layers}/{released}"].reshape(parameter.shape)
        assert parameter.grad is not None
        share = 5e-3 if name.startswith("deep") else 1e-4
        apart = np.abs(parameter.grad.numpy() - stored).max() / np.abs(stored).max()
        assert apart < share, (name, apart)
