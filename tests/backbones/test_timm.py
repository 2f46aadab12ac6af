"""Loading: local files in both namings, positions, layers, and the errors."""

import copy
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from tests.seeded import dinov2_vits14, save_dinov2_vits14
from torch import Tensor

from offnominal.backbones import load_backbone
from offnominal.backbones.positions import resize_positions
from offnominal.backbones.timm import TimmBackbone
from offnominal.errors import BackboneError, OptionError, WeightsError


@pytest.fixture(scope="module")
def seeded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_dinov2_vits14(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def dinov2(seeded: Path) -> TimmBackbone:
    backbone = load_backbone("dinov2_vits14", seeded)
    assert isinstance(backbone, TimmBackbone)
    return backbone


def test_frozen_and_described(dinov2: TimmBackbone) -> None:
    assert not dinov2.training
    assert not any(parameter.requires_grad for parameter in dinov2.parameters())
    assert (dinov2.dim, dinov2.stride, dinov2.multiple, dinov2.layers) == (384, 14, 14, (11,))
    assert dinov2.resolution == 448
    assert dinov2.mask_threshold == 10


def test_same_features_and_digest_from_either_naming(dinov2: TimmBackbone, tmp_path: Path) -> None:
    path = tmp_path / "timm.safetensors"
    save_file({k: v.contiguous() for k, v in dinov2.model.state_dict().items()}, path)
    again = load_backbone("dinov2_vits14", path)
    assert again.digest == dinov2.digest
    pixels = torch.randn(1, 3, 70, 98, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(again(pixels), dinov2(pixels))


@pytest.mark.parametrize("wrap", ["state_dict", "model", "teacher"])
def test_wrapped_checkpoints_load(dinov2: TimmBackbone, tmp_path: Path, wrap: str) -> None:
    tensors = {f"module.{name}": value for name, value in dinov2_vits14().items()}
    torch.save({wrap: tensors, "epoch": 3}, tmp_path / "checkpoint.pth")
    assert load_backbone("dinov2_vits14", tmp_path / "checkpoint.pth").digest == dinov2.digest


def original_positions(table: Tensor, height: int, width: int) -> Tensor:
    """The rule of the original code, one output value at a time from its definition.

    Bicubic convolution with a = -0.75 and clamped borders; a scale factor s puts output i at the
    input coordinate (i + 0.5) / s - 0.5.
    """

    def weights(count: int) -> Tensor:
        scale = (count + 0.1) / 37
        matrix = torch.zeros(count, 37, dtype=torch.float64)
        for i in range(count):
            centre = (i + 0.5) / scale - 0.5
            for tap in range(int(centre // 1) - 1, int(centre // 1) + 3):
                x, a = abs(centre - tap), -0.75
                near = ((a + 2) * x - (a + 3)) * x * x + 1
                far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
                matrix[i, min(max(tap, 0), 36)] += near if x <= 1 else far
        return matrix

    grid = table[1:].double().reshape(37, 37, -1)
    out = torch.einsum("hy,wx,yxd->hwd", weights(height), weights(width), grid)
    return torch.cat([table[:1].double(), out.reshape(height * width, -1)])


@pytest.mark.parametrize("grid", [(32, 32), (32, 43), (76, 32), (16, 16), (48, 48)])
def test_positions_follow_the_original_rule(grid: tuple[int, int]) -> None:
    table = torch.randn(1370, 8, generator=torch.Generator().manual_seed(0))
    found = resize_positions(table, *grid, "dino")
    assert torch.allclose(found.double(), original_positions(table, *grid), atol=1e-4)


def test_positions_of_the_native_grid_are_untouched() -> None:
    table = torch.randn(1370, 8)
    assert resize_positions(table, 37, 37, "dino") is table


@pytest.mark.slow
def test_tokens_differ_from_timms_own_rule(dinov2: TimmBackbone) -> None:
    """The override is in effect; without it the tokens are those of another network."""
    plain = timm.create_model(
        "vit_small_patch14_dinov2.lvd142m", num_classes=0, dynamic_img_size=True
    ).eval()
    plain.load_state_dict(dinov2.model.state_dict())
    pixels = torch.randn(1, 3, 112, 112, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        theirs = plain.forward_intermediates(
            pixels, indices=[11], norm=True, intermediates_only=True
        )[0]
        assert (dinov2(pixels) - theirs).abs().max() > 1e-2
        dinov2_native = torch.randn(1, 3, 518, 518)
        theirs = plain.forward_intermediates(
            dinov2_native, indices=[11], norm=True, intermediates_only=True
        )[0]
        assert torch.allclose(dinov2(dinov2_native), theirs, atol=1e-5)


def test_layers_are_concatenated(seeded: Path) -> None:
    backbone = load_backbone("dinov2_vits14", seeded, layers=[-1, 5])
    assert (backbone.layers, backbone.dim) == ((5, 11), 768)
    with torch.inference_mode():
        assert backbone(torch.zeros(2, 3, 28, 42)).shape == (2, 768, 2, 3)
    with pytest.raises(OptionError, match="12 levels"):
        load_backbone("dinov2_vits14", seeded, layers=[12])


def test_bf16_and_fp16_stay_close(dinov2: TimmBackbone) -> None:
    pixels = torch.randn(1, 3, 112, 112, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        full = torch.nn.functional.normalize(dinov2(pixels), dim=1)
        for dtype, allowed in [(torch.bfloat16, 2e-2), (torch.float16, 3e-3)]:
            with torch.autocast("cpu", dtype=dtype):
                half = torch.nn.functional.normalize(dinov2(pixels).float(), dim=1)
            assert (half - full).abs().max() < allowed


def test_wrong_size_names_the_size_to_crop_to(dinov2: TimmBackbone) -> None:
    with pytest.raises(BackboneError, match="crop to 98 x 14 or pad to 112 x 28"):
        dinov2(torch.zeros(1, 3, 100, 20))


def test_weights_of_another_network_are_refused(seeded: Path, mobilenet: Path) -> None:
    with pytest.raises(WeightsError, match=r"pos_embed is \(1, 1370, 384\)"):
        load_backbone("dino_vits16", seeded)
    with pytest.raises(WeightsError, match="Missing"):
        load_backbone("resnet18", seeded)
    with pytest.raises(BackboneError, match="says that it is mobilenetv2_100"):
        load_backbone("dinov2_vits14", mobilenet)


def test_missing_and_unknown_keys_are_listed(tmp_path: Path) -> None:
    tensors = dinov2_vits14()
    del tensors["blocks.3.attn.qkv.weight"]
    tensors["blocks.12.attn.qkv.weight"] = torch.zeros(3)
    torch.save(tensors, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"Missing: blocks.3.attn.qkv.weight.*blocks.12.attn"):
        load_backbone("dinov2_vits14", tmp_path / "w.pth")


def test_files_that_are_no_weights(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return print, ("ran",)

    (tmp_path / "text.pth").write_text("no weights")
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\x00\x00")
    torch.save({"a": Evil()}, tmp_path / "evil.pth")
    torch.save({"epoch": 3}, tmp_path / "empty.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    for name in ("text.pth", "cut.safetensors", "evil.pth", "empty.pth", "list.pth", "none.pth"):
        with pytest.raises(WeightsError, match=name):
            load_backbone("dinov2_vits14", tmp_path / name)
    with pytest.raises(WeightsError, match="is a folder"):
        load_backbone("dinov2_vits14", tmp_path)


def test_a_weights_file_that_describes_itself_just_works(mobilenet: Path) -> None:
    backbone = load_backbone(weights=mobilenet)
    assert backbone.name == "mobilenetv2_100"
    assert backbone.mean == backbone.std == (0.5, 0.5, 0.5)
    assert (backbone.dim, backbone.stride, backbone.multiple) == (128, 8, 16)
    with torch.inference_mode():
        assert backbone(torch.zeros(1, 3, 64, 96)).shape == (1, 128, 8, 12)


def test_layout_in_memory_changes_rounding_only(mobilenet: Path) -> None:
    """Convolutions see a pixel's channels together; timm's own layout gives the same features."""
    backbone = load_backbone(weights=mobilenet)
    assert isinstance(backbone, TimmBackbone)
    plain = copy.deepcopy(backbone.model).to(memory_format=torch.contiguous_format)
    pixels = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.inference_mode():
        wanted = plain.forward_intermediates(
            pixels, indices=list(backbone.layers), output_fmt="NCHW", intermediates_only=True
        )
        found = backbone.levels(pixels).maps
    for one, other in zip(found, wanted, strict=True):
        assert one.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_no_copy_of_the_weights_stays_mapped(mobilenet: Path) -> None:
    mapped = Path("/proc/self/maps")
    if not mapped.exists():
        pytest.skip("the system does not list what is mapped")
    backbone = load_backbone(weights=mobilenet)
    with torch.inference_mode():
        backbone(torch.zeros(1, 3, 64, 64))
    assert str(mobilenet.resolve()) not in mapped.read_text()
    assert not any(parameter.is_inference() for parameter in backbone.parameters())


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("resnet10t", None),
        ("densenet121", None),
        ("convnext_atto", (1, 2)),
        ("mobilenetv3_small_050", (0, 1)),
        ("vit_tiny_patch16_224", (3, 5)),
    ],
)
@pytest.mark.slow
def test_trimmed_networks_give_the_same_features(
    name: str, layers: tuple[int, ...] | None, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    path = tmp_path / "weights.safetensors"
    model = timm.create_model(name, num_classes=0)
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, path)
    backbone = load_backbone(name, path, layers)
    pixels = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        features, (maps, summary) = backbone(pixels), backbone.levels(pixels)
        before, digest = sum(p.numel() for p in backbone.parameters()), backbone.digest
        backbone.trim()
        assert torch.equal(backbone(pixels), features)
        again = backbone.levels(pixels)
    assert sum(p.numel() for p in backbone.parameters()) < before
    assert all(map(torch.equal, again.maps, maps))
    assert torch.equal(again.summary, summary)
    assert backbone.digest == digest
    assert backbone.at_levels(backbone.layers[:1]).layers == backbone.layers[:1]
    with pytest.raises(BackboneError, match=f"trimmed to its first {backbone.layers[-1] + 1} lev"):
        backbone.at_levels([-1])


def test_nothing_is_trimmed_where_the_last_level_is_used(dinov2: TimmBackbone) -> None:
    before = len(dinov2.model.blocks)
    dinov2.trim()
    assert len(dinov2.model.blocks) == before
    dinov2.at_levels([0, -1])


def test_unknown_backbones() -> None:
    with pytest.raises(BackboneError, match="did you mean dinov2_vits14"):
        load_backbone("dinov2_vits15")
    with pytest.raises(OptionError, match="neither --weights nor --layers"):
        load_backbone("builtin", layers=[1])
