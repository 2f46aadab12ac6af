"""Weights that anyone can rebuild, as the reference outputs were made with."""

import math
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor


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
    """Write the seeded DINOv2 as a state dict file and return its path."""
    path = folder / f"dinov2_vits14_seeded_{norm_scale:g}.pth"
    if not path.exists():
        torch.save(dinov2_vits14(norm_scale), path)
    return path
