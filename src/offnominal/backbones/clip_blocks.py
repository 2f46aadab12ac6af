"""A CLIP transformer step by step: attention, blocks and windows of patches.

open_clip holds the weights. Its blocks are run from here, because methods change what happens
inside them: value-value attention, the other activation, tokens written over between two blocks.
"""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "Activation",
    "attend",
    "attend_to_values",
    "run_block",
    "window_indices",
]

Activation = Literal["quickgelu", "gelu"]


def attend(attention: Any, x: Tensor, causal: bool = False) -> Tensor:
    """Multi-head self-attention of sequences (B, L, width), the batch first."""
    query, key, value = _heads(attention, x)
    mixed = F.scaled_dot_product_attention(query, key, value, is_causal=causal)
    return _joined(attention, mixed)


def attend_to_values(attention: Any, x: Tensor) -> Tensor:
    """Self-attention (B, L, width) in which the values are queries and keys too.

    Tokens attend to those of like content (Zhou et al., 2024, section 3.3, after Li et al., 2023).
    """
    value = _heads(attention, x)[2]
    return _joined(attention, F.scaled_dot_product_attention(value, value, value))


def _heads(attention: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    batch, length, width = x.shape
    projected = F.linear(x, attention.in_proj_weight, attention.in_proj_bias)
    split = projected.reshape(batch, length, 3, attention.num_heads, width // attention.num_heads)
    query, key, value = split.permute(2, 0, 3, 1, 4).unbind(0)
    return query, key, value


def _joined(attention: Any, mixed: Tensor) -> Tensor:
    joined: Tensor = attention.out_proj(mixed.transpose(1, 2).flatten(2))
    return joined


def run_block(block: Any, x: Tensor, activation: Activation, causal: bool = False) -> Tensor:
    """One residual block on sequences (B, L, width)."""
    x = x + block.ls_1(attend(block.attn, block.ln_1(x), causal))
    hidden = block.mlp.c_fc(block.ln_2(x))
    # QuickGELU is what OpenAI trained with.
    hidden = hidden * torch.sigmoid(1.702 * hidden) if activation == "quickgelu" else F.gelu(hidden)
    after: Tensor = x + block.ls_2(block.mlp.c_proj(hidden))
    return after


def window_indices(grid: tuple[int, int], side: int) -> Tensor:
    """Which patches each window of ``side`` x ``side`` patches of a grid (gh, gw) holds.

    Numbers of patches, int64, ((gh - side + 1) * (gw - side + 1), side * side): counted row by row,
    as the windows are, in steps of one patch.
    """
    numbers = torch.arange(grid[0] * grid[1]).reshape(grid)
    windows = numbers.unfold(0, side, 1).unfold(1, side, 1)
    return windows.reshape(-1, side * side)
