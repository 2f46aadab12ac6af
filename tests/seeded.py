"""Weights that anyone can rebuild, as the reference outputs were made with.

Their files say that they are not pretrained: no figure made with them may pass for a method's.
"""

import json
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

UNTRAINED = {"pretrained": "no: drawn at random from seeds"}


def dinov2_vits14(norm_scale: float = 1.0) -> dict[str, Tensor]:
    """DINOv2 ViT-S/14 in the original naming, each tensor drawn from a seed of its name."""
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, 384),
        "pos_embed": (1, 1370, 384),
        "mask_token": (1, 384),
        "patch_embed.proj.weight": (384, 3, 14, 14),
        "patch_embed.proj.bias": (384,),
        "norm.weight": (384,),
        "norm.bias": (384,),
    }
    for block in range(12):
        start = f"blocks.{block}."
        shapes |= {
            f"{start}norm1.weight": (384,),
            f"{start}norm1.bias": (384,),
            f"{start}attn.qkv.weight": (1152, 384),
            f"{start}attn.qkv.bias": (1152,),
            f"{start}attn.proj.weight": (384, 384),
            f"{start}attn.proj.bias": (384,),
            f"{start}ls1.gamma": (384,),
            f"{start}norm2.weight": (384,),
            f"{start}norm2.bias": (384,),
            f"{start}mlp.fc1.weight": (1536, 384),
            f"{start}mlp.fc1.bias": (1536,),
            f"{start}mlp.fc2.weight": (384, 1536),
            f"{start}mlp.fc2.bias": (384,),
            f"{start}ls2.gamma": (384,),
        }
    return {name: _draw(name, shape, norm_scale) for name, shape in shapes.items()}


def _draw(name: str, shape: tuple[int, ...], norm_scale: float) -> Tensor:
    z = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
    if name.endswith(("norm.weight", "norm1.weight", "norm2.weight")):
        values = 1 + 0.1 * z
        if name == "norm.weight":
            values = values * norm_scale
    elif name.endswith("gamma"):
        values = 0.3 + 0.05 * z
    elif name.endswith("bias"):
        values = 0.02 * z
    elif name in ("pos_embed", "cls_token", "mask_token"):
        values = 0.1 * z
    else:
        values = z / math.sqrt(math.prod(shape[1:]))
    return torch.from_numpy(values.astype(np.float32))


def save_dinov2_vits14(folder: Path, norm_scale: float = 1.0) -> Path:
    """Write the seeded DINOv2, in the original naming, and return the file's path."""
    path = folder / f"dinov2_vits14_seeded_{norm_scale:g}.safetensors"
    if not path.exists():
        save_file(dinov2_vits14(norm_scale), path, metadata=UNTRAINED)
    return path


def _clip(width: int, blocks: int, patch: int, size: int, embed: int, text: int) -> dict[str, Any]:
    return {
        "embed_dim": embed,
        "vision_cfg": {
            "image_size": size,
            "layers": blocks,
            "width": width,
            "head_width": 64,
            "patch_size": patch,
        },
        "text_cfg": {
            "context_length": 77,
            "vocab_size": 49408,
            "width": text,
            "heads": max(1, text // 64),
            "layers": 12 if text > 64 else 3,
        },
    }


# The small CLIP models of the reference outputs: WinCLIP's, and that of the others.
CLIP_WIDE = _clip(128, 12, 16, 240, 64, 128)
CLIP_DEEP = _clip(128, 24, 14, 336, 64, 128)
# For tests that need no reference.
CLIP_TINY = _clip(64, 4, 16, 64, 32, 64)


def clip_weights(config: dict[str, Any]) -> dict[str, Tensor]:
    """A CLIP model in OpenAI's naming, each tensor drawn from a seed of its name."""
    import open_clip  # not needed by the other towers

    with torch.device("meta"):
        shapes = open_clip.CLIP(**config).state_dict()
    return {name: draw_clip(name, tuple(tensor.shape)) for name, tensor in shapes.items()}


def draw_clip(name: str, shape: tuple[int, ...]) -> Tensor:
    if name == "logit_scale":
        return torch.tensor(math.log(1 / 0.07))
    z = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
    if "ln_" in name and name.endswith("weight"):
        values = 1 + 0.2 * z
    elif name.endswith(("bias", "in_proj_bias")):
        values = 0.1 * z
    elif name.endswith(("positional_embedding", "class_embedding")):
        values = 0.3 * z
    elif name == "token_embedding.weight":
        values = z
    elif name in ("visual.proj", "text_projection"):
        values = z / math.sqrt(shape[0])
    elif name == "visual.conv1.weight":
        flat = z - z.mean(axis=(1, 2, 3), keepdims=True)
        values = 4 * flat / math.sqrt(math.prod(shape[1:]))
    else:
        values = z / math.sqrt(math.prod(shape[1:]))
    return torch.from_numpy(values.astype(np.float32))


def save_clip(
    folder: Path, config: dict[str, Any], name: str = "small", quick_gelu: bool = False
) -> Path:
    """Write a seeded CLIP model as a weights file that says what it is, and return its path."""
    path = folder / f"clip_{name}{'_quick' * quick_gelu}.safetensors"
    if not path.exists():
        described = json.dumps(config | {"quick_gelu": quick_gelu})
        metadata = UNTRAINED | {"model": f"open_clip:{name}", "open_clip": described}
        save_file(clip_weights(config), path, metadata=metadata)
    return path
