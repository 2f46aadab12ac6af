"""The catalogue's figures are what timm builds."""

import pytest
import timm
import torch

from offnominal.backbones.catalogue import CATALOGUE, closest, family_of
from offnominal.backbones.timm import _create, hub_file

NETWORKS = [entry for entry in CATALOGUE.values() if entry.timm]


@pytest.mark.parametrize("entry", NETWORKS, ids=lambda entry: entry.name)
def test_entry_is_what_timm_says(entry) -> None:
    config = timm.get_pretrained_cfg(entry.timm, allow_unregistered=False)
    assert config is not None
    assert hub_file(entry.timm) == entry.hub
    with torch.device("meta"):
        model = _create(entry.timm, {})
    size = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    assert entry.parameters == pytest.approx(size, abs=0.06)
    if "clip" not in entry.name:  # OpenAI's weights are MIT; timm notes another for some
        assert config.license.split("-")[0].lower() in entry.licence.lower()


def test_families() -> None:
    found = {name: entry.family for name, entry in CATALOGUE.items()}
    assert {name for name, family in found.items() if family == "cnn"} == {
        *("convnext_tiny", "convnext_base", "efficientnet_b0", "efficientnet_b4"),
        *("efficientnet_lite0", "efficientnet_lite2", "mobilenetv2_100", "mobilenetv3_large"),
    }
    for name, family in found.items():
        begins = {"builtin-aligned": "builtin", "clip_resnet50": "resnet"}.get(name, name)
        assert family == "cnn" or begins.startswith(family)
    assert family_of("vit_small_patch14_reg4_dinov2") == "dinov2"
    assert family_of("convnext_tiny.dinov3_lvd1689m") == "dinov3"
    assert family_of("wide_resnet101_2.tv2_in1k") == "wide_resnet"


def test_unknown_names_get_a_hint() -> None:
    assert "dinov2_vits14" in closest("dinov2_vits")
    assert "offnominal backbones" in closest("zzz")
