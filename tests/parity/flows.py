"""What the agreement tests of the flows share: their seeded tensors, and gradients and steps."""

import math
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from safetensors.torch import save_file
from tests.parity.trained import assert_close, draw, seed, total_norm
from tests.seeded import UNTRAINED
from torch import Tensor, nn

Draw = Callable[[str, tuple[int, ...]], Tensor]


def drawn(name: str, shape: tuple[int, ...]) -> Tensor:
    """One tensor by the rule for flows; ``w_perm`` is an order of the channels, or a rotation."""
    random = np.random.default_rng(zlib.crc32(name.encode()))
    if name.endswith("w_perm") and len(shape) == 1:
        return torch.from_numpy(random.permutation(shape[0]))
    z = random.standard_normal(shape)
    if name.endswith("w_perm"):
        q, r = np.linalg.qr(z)
        z = q * np.sign(np.diag(r))
    elif name.endswith("global_scale"):
        z = 2 * math.log(math.exp(5) - 1) + 0.3 * z
    elif name.endswith("global_offset"):
        z = 0.1 * z
    elif name.startswith("norms"):
        z = 0.1 * z + name.endswith("weight")
    else:
        return draw(name, shape, "cnn")
    return torch.from_numpy(z.astype(np.float32))


def seed_flow(module: nn.Module, renamed: Callable[[str], str], drawn: Draw = drawn) -> None:
    """Give every tensor the values of its name in the released code."""
    state = module.state_dict()
    module.load_state_dict({n: drawn(renamed(n), tuple(t.shape)) for n, t in state.items()})


def save_seeded(name: str, folder: Path) -> Path:
    """A network of timm's with seeded weights, as a file."""
    model = timm.create_model(name, num_classes=0)
    seed(model, "cnn")
    path = folder / f"{name}.safetensors"
    save_file(model.state_dict(), path, metadata=UNTRAINED)
    return path


def parameters(module: nn.Module, renamed: Callable[[str], str]) -> dict[str, Tensor]:
    """Those that are trained, by their names in the released code."""
    return {renamed(name): one for name, one in module.named_parameters()}


def check_gradients(ours: Mapping[str, Tensor], told: Mapping[str, Any]) -> None:
    """Compare all gradients' norm, and a few of them."""
    assert_close(total_norm([one.grad for one in ours.values()]), told["grad_total_norm"])
    for name, theirs in told["grad"].items():
        mine = ours[name].grad
        assert mine is not None
        assert_close(total_norm([mine]), theirs["norm"])
        some = mine.flatten()[:8] - torch.tensor(theirs["first8"])
        assert float(some.abs().max()) <= 1e-4 * theirs["norm"]


def copied(tensors: Mapping[str, Tensor]) -> list[Tensor]:
    """Their values as they are now."""
    return [one.detach().clone() for one in tensors.values()]


def moved(tensors: Mapping[str, Tensor], before: list[Tensor]) -> float:
    """Norm of how far all of them came."""
    now = copied(tensors)
    return total_norm([one - start for one, start in zip(now, before, strict=True)])
