"""CLIP with both towers: what it computes, and what it says of files that do not fit."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from open_clip.model import resize_pos_embed
from safetensors.torch import save_file
from tests.seeded import CLIP_TINY, clip_weights, save_clip
from torch import Tensor

from offnominal import AnomalyDINO, load
from offnominal.backbones import load_backbone
from offnominal.backbones.clip import ClipBackbone, require_clip
from offnominal.backbones.clip_blocks import window_indices
from offnominal.backbones.clip_files import describe, hub_files
from offnominal.backbones.clip_text import tokenize
from offnominal.backbones.positions import Positions, resize_positions
from offnominal.errors import BackboneError, OptionError, WeightsError

CLOSE = {"rtol": 0, "atol": 1e-5}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("clip")


@pytest.fixture(scope="module")
def net(folder: Path) -> ClipBackbone:
    found = load_backbone(None, save_clip(folder, CLIP_TINY, "tiny"))
    assert isinstance(found, ClipBackbone)
    return found


@pytest.fixture(scope="module", params=[False, True], ids=["gelu", "quickgelu"])
def pair(request: pytest.FixtureRequest, folder: Path) -> tuple[ClipBackbone, Any]:
    """Ours, and open_clip's own module with the same weights."""
    path = save_clip(folder, CLIP_TINY, "tiny", quick_gelu=request.param)
    theirs = open_clip.CLIP(**CLIP_TINY, quick_gelu=request.param).eval()
    theirs.load_state_dict(clip_weights(CLIP_TINY))
    return ClipBackbone("open_clip:tiny", path), theirs


def pixels(count: int = 2, height: int = 64, width: int = 64) -> Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(1))


@torch.inference_mode()
def test_open_clip_computes_the_same(pair: tuple[ClipBackbone, Any]) -> None:
    ours, theirs = pair
    images = pixels()
    wanted = theirs.visual.forward_intermediates(
        images, indices=[1, 3], output_fmt="NLC", output_extra_tokens=True
    )
    found = ours.tokens(images, [1, -1])
    for block, rows, classes in zip(
        found.blocks,
        wanted["image_intermediates"],
        wanted["image_intermediates_prefix"],
        strict=True,
    ):
        torch.testing.assert_close(block, torch.cat([classes, rows], 1), **CLOSE)
    torch.testing.assert_close(ours.embed(images), wanted["image_features"], **CLOSE)
    texts = ["a photo of a metal_nut.", "flawless", "Schraube ohne Fehler"]
    embedded = ours.load_text().encode(texts)
    torch.testing.assert_close(embedded, theirs.encode_text(open_clip.tokenize(texts)), **CLOSE)


@torch.inference_mode()
def test_activation_is_the_weights_own_unless_told(folder: Path) -> None:
    quick = ClipBackbone("open_clip:tiny", save_clip(folder, CLIP_TINY, "tiny", quick_gelu=True))
    plain = ClipBackbone("open_clip:tiny", save_clip(folder, CLIP_TINY, "tiny"))
    assert (quick.activation, plain.activation) == ("quickgelu", "gelu")
    images, texts = pixels(1), ["a screw"]
    turned = quick.adapted(activation="gelu")
    torch.testing.assert_close(turned.embed(images), plain.embed(images))
    torch.testing.assert_close(turned.load_text().encode(texts), plain.load_text().encode(texts))
    assert (quick.embed(images) - plain.embed(images)).abs().max() > 1e-3
    assert turned.adapted().activation == "quickgelu"


@torch.inference_mode()
def test_contract_of_every_backbone(net: ClipBackbone) -> None:
    images = pixels(2, 64, 96)
    assert (net.dim, net.stride, net.resolution, net.resize) == (64, 16, 64, "square")
    assert net.mean == (0.48145466, 0.4578275, 0.40821073)
    assert net(images).shape == (2, 64, 4, 6)
    tokens = net.visual.ln_post(net.tokens(images).last)
    torch.testing.assert_close(net(images).flatten(2).transpose(1, 2), tokens[:, 1:])
    middle = net.at_levels([0, -2])
    assert (middle.layers, middle.dim) == ((0, 2), 128)
    assert middle(images).shape == (2, 128, 4, 6)
    maps, summary = middle.levels(images, norm=False)
    torch.testing.assert_close(summary, net.tokens(images, [2]).blocks[0][:, 0])
    torch.testing.assert_close(maps[0].flatten(2).mT, net.tokens(images, [0]).blocks[0][:, 1:])
    with pytest.raises(BackboneError, match="crop to 48 x 64"):
        net(pixels(1, 50, 64))
    with pytest.raises(OptionError, match="0 to 3"):
        net.tokens(images, [4])


@pytest.mark.parametrize("rule", ["bicubic-antialias", "bicubic", "bilinear"])
def test_positions(net: ClipBackbone, rule: Positions) -> None:
    table = net.visual.positional_embedding
    before = table.clone()
    resized = resize_positions(table, 6, 6, rule)
    grid = table[1:].reshape(1, 4, 4, -1).permute(0, 3, 1, 2)
    mode, _, antialias = rule.partition("-")
    wanted = F.interpolate(grid, (6, 6), mode=mode, antialias=bool(antialias))
    torch.testing.assert_close(resized[1:], wanted[0].flatten(1).T)
    torch.testing.assert_close(resized[0], table[0])
    adapted = net.adapted(positions=rule)
    with torch.inference_mode():
        first = adapted.embed(pixels(1, 96, 96))
        adapted.embed(pixels(1, 128, 128))
        torch.testing.assert_close(adapted.embed(pixels(1, 96, 96)), first, rtol=0, atol=0)
    assert torch.equal(table, before), "never written back"


def test_default_positions_are_open_clips(net: ClipBackbone) -> None:
    large = CLIP_TINY | {"vision_cfg": CLIP_TINY["vision_cfg"] | {"image_size": 112}}
    theirs = open_clip.CLIP(**large).eval()
    weights = clip_weights(CLIP_TINY)
    resize_pos_embed(weights, theirs)
    theirs.load_state_dict(weights)
    images = pixels(1, 112, 112)
    with torch.inference_mode():
        torch.testing.assert_close(net.embed(images), theirs.encode_image(images), **CLOSE)


@torch.inference_mode()
def test_value_path(net: ClipBackbone) -> None:
    """Written out: inputs of the ordinary path, softmax over products of values."""
    images = pixels(1)
    found = net.tokens(images, [0, 1, 2, 3], values_from=2)
    wanted = found.blocks[1]
    for index in (2, 3):
        block = net.visual.transformer.resblocks[index]
        normed = block.ln_1(found.blocks[index - 1])[0].double().numpy()
        weight = block.attn.in_proj_weight[128:].double().numpy()
        value = normed @ weight.T + block.attn.in_proj_bias[128:].double().numpy()
        alike = np.exp(value @ value.T / 8)  # one head of 64
        mixed = torch.from_numpy(alike / alike.sum(1, keepdims=True) @ value).float()
        wanted = wanted + block.attn.out_proj(mixed)
        torch.testing.assert_close(found.values[index], wanted, **CLOSE)
    for index in (0, 1):
        torch.testing.assert_close(found.values[index], found.blocks[index])
    torch.testing.assert_close(found.last, net.tokens(images).last)
    assert net.tokens(images, [1]).values == []


@torch.inference_mode()
def test_windows_see_only_themselves(net: ClipBackbone) -> None:
    images = pixels(2)
    whole, small = net.embed_windows(images, (4, 2))
    # The one window of the grid's size is the image.
    torch.testing.assert_close(whole[:, 0], net.embed(images), **CLOSE)
    assert small.shape == (2, 9, 32)
    # Neither what lies outside a window nor another image of the batch reaches it.
    changed = images.clone()
    changed[0, :, 32:] = 0
    changed[1] = 0
    after = net.embed_windows(changed, (2,))[0]
    same = [window for window in range(9) if window < 3]
    torch.testing.assert_close(after[0, same], small[0, same], **CLOSE)
    assert (after[0, 3:] - small[0, 3:]).abs().amax(1).min() > 1e-3


def test_windows_are_counted_by_rows() -> None:
    found = window_indices((2, 3), 2)
    assert found.tolist() == [[0, 1, 3, 4], [1, 2, 4, 5]]


def test_learned_prompts(net: ClipBackbone) -> None:
    text = net.load_text()
    ids = text.tokenize(["x x x x object.", "x x x x damaged object."])
    embedded = text.embed_ids(ids)
    plain = text.encode_embedded(embedded, text.ends(ids))
    torch.testing.assert_close(plain, text.encode(["x x x x object.", "x x x x damaged object."]))
    # Behind the end nothing matters.
    short = text.encode_embedded(embedded[:, :10], text.ends(ids))
    torch.testing.assert_close(short, plain, **CLOSE)

    seen: list[Tensor] = []
    hook = text.transformer.resblocks[1].ln_1.register_forward_pre_hook(
        lambda _, inputs: seen.append(inputs[0])
    )
    text.encode_embedded(embedded, text.ends(ids))
    hook.remove()
    # What stood there at the second block's input, written over itself, changes nothing.
    kept = text.encode_embedded(embedded, text.ends(ids), [seen[0][:, 1:5]])
    torch.testing.assert_close(kept, plain, **CLOSE)

    words = embedded.clone().requires_grad_()
    deep = torch.zeros(3, 64, requires_grad=True)
    found = text.encode_embedded(words, text.ends(ids), [deep])
    assert (found - plain).abs().max() > 1e-3
    found.sum().backward()
    assert deep.grad is not None
    assert deep.grad.abs().max() > 0
    assert words.grad is not None
    assert words.grad[:, 20:].abs().max() == 0
    assert not any(parameter.requires_grad for parameter in text.parameters())


def test_tokens_are_those_of_the_papers() -> None:
    ids = tokenize(["X X X object.", "metal_nut"])
    assert ids[0, :7].tolist() == [49406, 343, 343, 343, 14115, 269, 49407]
    assert ids.shape == (2, 77)
    assert int(ids[1].argmax()) == 4, "metal, underscore, nut"
    with pytest.raises(OptionError, match="shorter class name"):
        tokenize(["nut " * 80])


def test_text_tower_is_apart(net: ClipBackbone, tmp_path: Path) -> None:
    path = tmp_path / "image_only.safetensors"
    weights = {k: v for k, v in clip_weights(CLIP_TINY).items() if k.startswith("visual.")}
    save_file(weights, path, metadata={"model": "open_clip:t", "open_clip": json.dumps(CLIP_TINY)})
    alone = load_backbone(None, path)
    assert isinstance(alone, ClipBackbone)
    assert alone.digest == net.digest
    assert not any(name.startswith("transformer.") for name in alone.state_dict())
    with pytest.raises(WeightsError, match="image tower only"):
        alone.load_text()


def test_half_precision_files_and_wrappers(tmp_path: Path) -> None:
    path = tmp_path / "s32.bin"
    with torch.device("meta"):
        shapes = open_clip.CLIP(**open_clip.get_model_config("ViT-S-32")).visual.state_dict()
    halves = {
        f"module.visual.{k}": torch.ones(v.shape, dtype=torch.float16) for k, v in shapes.items()
    }
    torch.save({"state_dict": halves}, path)
    loaded = load_backbone("open_clip:ViT-S-32", path)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    with pytest.raises(WeightsError, match=r"does not fit open_clip:ViT-B-32.* expected \(768,\)"):
        load_backbone("open_clip:ViT-B-32", path)


@pytest.mark.parametrize(
    ("name", "activation"),
    [
        ("open_clip:ViT-L-14-336", "quickgelu"),
        ("open_clip:ViT-L-14-336.openai", "quickgelu"),
        ("open_clip:ViT-B-16-quickgelu", "quickgelu"),
        ("open_clip:ViT-B-16.laion400m_e31", "gelu"),
        ("open_clip:ViT-B-16-plus-240", "gelu"),
        ("open_clip:ViT-B-16.metaclip_400m", "quickgelu"),
    ],
)
def test_activation_of_published_weights(name: str, activation: str) -> None:
    assert describe(name, {}, None).activation == activation


def test_archives_with_code_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "ViT-L-14.pt"
    torch.jit.script(torch.nn.Linear(1, 1)).save(str(path))
    with pytest.raises(WeightsError, match="carries code"):
        load_backbone("open_clip:ViT-B-32", path)


@pytest.mark.parametrize(
    ("name", "error", "said"),
    [
        ("open_clip:ViT-L-15", BackboneError, "did you mean open_clip:ViT-L-1"),
        ("open_clip:ViT-B-32.mine", BackboneError, "it has openai"),
        ("open_clip:ViT-H-14", BackboneError, "which weights"),
        ("open_clip:RN50", BackboneError, "pair of transformers"),
        ("open_clip:ViT-B-16-SigLIP.webli", BackboneError, "pair of transformers"),
        ("open_clip:ViT-B-16-plus-240.laion400m_e32", BackboneError, "fetches laion400m_e31"),
    ],
)
def test_names(name: str, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        load_backbone(name)


def test_files_that_are_no_clip(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"vision_model.embeddings": torch.zeros(1)}, path)
    with pytest.raises(WeightsError, match=r"starts with visual\."):
        load_backbone("open_clip:ViT-B-32", path)
    save_file({"visual.proj": torch.zeros(1)}, path, metadata={"open_clip": "{}"})
    with pytest.raises(WeightsError, match="vision_cfg"):
        load_backbone("open_clip:own", path)
    with pytest.raises(WeightsError, match="does not exist"):
        load_backbone("open_clip:ViT-B-32", tmp_path / "none.safetensors")


def test_hub() -> None:
    assert hub_files("open_clip:ViT-L-14-336")[0] == (
        "timm/vit_large_patch14_clip_336.openai",
        "open_clip_model.safetensors",
    )
    assert hub_files("open_clip:ViT-L-14-336-quickgelu") == hub_files("open_clip:ViT-L-14-336")
    assert "laion400m_e31" in hub_files("open_clip:ViT-B-16-plus-240")[0][0]


def test_serves_any_detector(folder: Path, parts: Path, tmp_path: Path) -> None:
    good = sorted((parts / "fabric" / "train" / "good").iterdir())[:3]
    detector = AnomalyDINO(
        weights=str(save_clip(folder, CLIP_TINY, "tiny")), rotations="none", mask="off"
    )
    detector.fit(good).save(tmp_path / "m.offn")
    again = load(tmp_path / "m.offn")
    [first], [second] = detector.predict(good[0]), again.predict(good[0])
    assert first.score == second.score
    assert again.load_network().name == "open_clip:tiny"


def test_methods_that_read_need_it(mobilenet: Path, net: ClipBackbone) -> None:
    assert require_clip(net, "clip") is net
    with pytest.raises(BackboneError, match="open_clip:ViT-L-14-336"):
        require_clip(load_backbone(None, mobilenet), "clip")
    with pytest.raises(OptionError, match="bilinear"):
        net.adapted(positions="nearest")  # type: ignore[arg-type]  # what a user may write


def test_half_precision_keeps_the_cosines(net: ClipBackbone) -> None:
    images = pixels(1)
    with torch.inference_mode():
        full = net.embed(images)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = net.embed(images)
    assert half.dtype == torch.float32
    assert F.cosine_similarity(full, half).item() > 0.999
