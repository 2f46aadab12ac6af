"""Agreement with SubspaceAD's released code on real images, with weights made from seeds."""

import json
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.lib.npyio import NpzFile
from PIL import Image
from tests.looks import pixels_of
from timm.models import register_model
from timm.models.vision_transformer import VisionTransformer, _create_vision_transformer
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2.functional import resize

from offnominal import Prediction
from offnominal.detectors.distribution.subspacead import SubspaceAD
from offnominal.detectors.features import tokens_of
from offnominal.scoring import network_map


@register_model
def vit_seeded_reg4(pretrained: bool = False, **options: Any) -> VisionTransformer:
    """The reference's small network, by the steps that timm builds DINOv2 with registers by."""
    size = {"embed_dim": 96, "depth": 20, "num_heads": 6, "patch_size": 14}
    kind = {"init_values": 1.0, "reg_tokens": 4, "no_embed_class": True, "dynamic_img_size": True}
    return _create_vision_transformer(
        "vit_small_patch14_reg4_dinov2", pretrained=pretrained, **(size | kind | options)
    )


def draw(name: str, shape: list[int]) -> Tensor:
    z = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
    if name.endswith("lambda1"):
        values = 0.5 + 0.05 * z
    elif "norm" in name and name.endswith("weight"):
        values = 1 + 0.1 * z
    elif name.endswith("patch_embeddings.projection.weight"):
        values = 4 * (z - z.mean((1, 2, 3), keepdims=True)) / math.sqrt(math.prod(shape[1:]))
    elif name.endswith("bias"):
        values = 0.02 * z
    elif name.rpartition(".")[2] in (
        "cls_token", "mask_token", "register_tokens", "position_embeddings",
    ):  # fmt: skip
        values = 0.3 * z
    else:
        values = z / math.sqrt(math.prod(shape[1:]))
    return torch.from_numpy(values.astype(np.float32))


def timm_names(drawn: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors as timm names them: one matrix for queries, keys and values."""
    start = "embeddings."
    positions = drawn[f"{start}position_embeddings"]
    found = {
        # timm adds no position to the class token, so its own is folded in.
        "cls_token": drawn[f"{start}cls_token"] + positions[:, :1],
        "reg_token": drawn[f"{start}register_tokens"],
        "pos_embed": positions[:, 1:],
        "norm.weight": drawn["layernorm.weight"],
        "norm.bias": drawn["layernorm.bias"],
    }
    for kind in ("weight", "bias"):
        found[f"patch_embed.proj.{kind}"] = drawn[f"{start}patch_embeddings.projection.{kind}"]
    for block in range(20):
        old, new = f"encoder.layer.{block}.", f"blocks.{block}."
        for number in (1, 2):
            found[f"{new}ls{number}.gamma"] = drawn[f"{old}layer_scale{number}.lambda1"]
        for kind in ("weight", "bias"):
            parts = [drawn[f"{old}attention.{part}_proj.{kind}"] for part in "qkv"]
            found[f"{new}attn.qkv.{kind}"] = torch.cat(parts)
            found[f"{new}attn.proj.{kind}"] = drawn[f"{old}attention.o_proj.{kind}"]
            for part in ("norm1", "norm2", "mlp.fc1", "mlp.fc2"):
                found[f"{new}{part}.{kind}"] = drawn[f"{old}{part}.{kind}"]
    return found


class Golden:
    """The stored run of the reference."""

    def __init__(self, shared: Path) -> None:
        folder = shared / "golden" / "subspacead"
        self.content = json.loads((folder / "subspacead.json").read_text())
        self.config = self.content["config"]
        self.arrays: NpzFile = np.load(folder / "subspacead.npz")

    def save_weights(self, folder: Path) -> Path:
        shapes: dict[str, list[int]] = self.content["state_dict_shapes"]
        path = folder / "vit_seeded_reg4.pth"
        torch.save(timm_names({name: draw(name, shape) for name, shape in shapes.items()}), path)
        return path

    def image(self, tiles: Path, name: str) -> np.ndarray:
        """As the reference's processor resizes it: bicubic with antialias, on uint8."""
        with Image.open(tiles / name) as opened:
            pixels = torch.from_numpy(np.array(opened.convert("RGB"))).permute(2, 0, 1)
        side = self.config["image_res"]
        sized = resize(pixels, [side, side], InterpolationMode.BICUBIC, antialias=True)
        return np.ascontiguousarray(sized.permute(1, 2, 0).numpy())


@pytest.fixture(scope="module")
def golden(shared: Path) -> Golden:
    return Golden(shared)


@pytest.fixture(scope="module")
def detector(golden: Golden, tiles: Path, tmp_path_factory: pytest.TempPathFactory) -> SubspaceAD:
    """With every default of its own; the blocks -12 to -18 are among them."""
    found = SubspaceAD(
        backbone="vit_seeded_reg4",
        weights=str(golden.save_weights(tmp_path_factory.mktemp("golden"))),
        resolution=golden.config["image_res"],
        rotations="none",
        device="cpu",
    )
    return found.fit([golden.image(tiles, name) for name in golden.config["refs"]])


@pytest.fixture(scope="module")
def predictions(golden: Golden, tiles: Path, detector: SubspaceAD) -> dict[str, Prediction]:
    names = golden.config["tests"]
    found = detector.stream(golden.image(tiles, name) for name in names)
    return dict(zip(names, found, strict=True))


def close(found: Any, wanted: Any, relative: float = 1e-3, absolute: float = 1e-4) -> None:
    np.testing.assert_allclose(found, wanted, rtol=relative, atol=absolute)


@pytest.mark.slow
def test_pixels_and_features(golden: Golden, tiles: Path, detector: SubspaceAD) -> None:
    for name in golden.config["tests"]:
        pixels = pixels_of(detector, golden.image(tiles, name))
        if name == golden.config["tests"][0]:
            stored = golden.arrays["pixel_values_first_test_stride8"]
            close(pixels[:, ::8, ::8].numpy(), stored, 0, 1e-6)
        features = detector.embed(pixels)
        tokens = tokens_of(features)
        assert tuple(features.shape[1:]) == tuple(golden.config["grid"])
        close(tokens[::23].numpy(), golden.arrays[f"patch_features_rows_0::23/{name}"], 0, 1e-4)
        rebuilt = detector.subspace.reconstruct(tokens)[::23].numpy()
        close(rebuilt, golden.arrays[f"reconstruction_rows_0::23/{name}"], 1e-3, 1e-3)


def test_subspace(golden: Golden, detector: SubspaceAD) -> None:
    assert detector.load_network().layers == (2, 3, 4, 5, 6, 7, 8)
    assert detector.kept_ == golden.content["k"]
    close(detector.eigenvalues_.numpy(), golden.arrays["eigenvalues"], 1e-4, 0)
    close(detector.mean_.numpy(), golden.arrays["mean"], 0, 1e-5)
    ratio = (detector.eigenvalues_.cumsum(0) / detector.eigenvalues_.sum()).tolist()
    k = detector.kept_
    close(ratio[k - 2 : k], golden.content["cumulative_ratio_at_k_minus_1_and_k"], 1e-5, 0)
    ours = detector.basis_[:, :k].numpy()
    theirs = golden.arrays["components"]
    close(np.abs((ours * theirs).sum(0)), 1.0, 0, 1e-3)


def test_residuals_maps_and_scores(
    golden: Golden, detector: SubspaceAD, predictions: dict[str, Prediction]
) -> None:
    side, step = golden.config["image_res"], golden.config["map_stride"]
    for name, found in predictions.items():
        wanted = golden.content["results"][name]
        close(found.patch_scores, golden.arrays[f"residuals/{name}"])
        close(found.score, wanted["score"])
        heat = network_map(found.patch_scores, found.scores.stride)
        assert heat.shape == (side, side)
        close(heat[::step, ::step], golden.arrays[f"map_stride4/{name}"])
        close(
            [heat.max(), heat.min(), heat.mean()],
            [wanted[f"map_{x}"] for x in ("max", "min", "mean")],
        )
        # The map that every method gives has a true Gaussian of the same width instead.
        assert found.anomaly_map.shape == heat.shape
        assert np.abs(found.anomaly_map - heat).max() < 0.01 * heat.max()


def test_other_aggregations(golden: Golden, predictions: dict[str, Prediction]) -> None:
    """``map-top5`` takes five percent; the reference's ``mtop5`` the five largest pixels."""
    found = next(iter(predictions.values()))
    grid = torch.from_numpy(found.patch_scores)
    wanted = golden.content["results"][golden.config["tests"][0]]
    close(grid.max(), wanted["residual_max"])
    close(grid.mean(), wanted["residual_mean"])
