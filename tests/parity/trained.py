"""What the agreement tests of trained methods share: seeded weights, images, and comparisons."""

import json
import math
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import v2

from offnominal.training.images import Batch

Rule = Literal["cnn", "linear"]

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Golden:
    """A reference output: scalars by ``case["..."]``, arrays by ``case.array("...")``."""

    def __init__(self, shared: Path, name: str) -> None:
        folder = shared / "golden" / "trained"
        self.told: dict[str, Any] = json.loads((folder / f"{name}.json").read_text())
        self._arrays = np.load(folder / f"{name}.npz")

    def __getitem__(self, key: str) -> Any:
        return self.told[key]

    def array(self, key: str) -> np.ndarray:
        """An array of the case, float32."""
        found: np.ndarray = self._arrays[key]
        return found


def draw(name: str, shape: Sequence[int], rule: Rule) -> Tensor:
    """One tensor, from a seed of its name."""
    if name.endswith("num_batches_tracked"):
        return torch.tensor(0)
    z = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(tuple(shape))
    fan_in = math.prod(shape[1:])
    if rule == "cnn" and name.endswith("running_var"):
        values = 1 + 0.1 * np.abs(z)
    elif name.endswith("bias") or (rule == "cnn" and name.endswith("running_mean")):
        values = 0.02 * z
    elif len(shape) == 1:
        values = (0.5 if rule == "cnn" and ".bn3" in name else 1.0) + 0.1 * z
    elif rule == "cnn":
        values = z * math.sqrt(2 / fan_in)
    else:
        values = z / math.sqrt(fan_in)
    return torch.from_numpy(values.astype(np.float32))


def seed(
    module: nn.Module, rule: Rule, prefix: str = "", renamed: Callable[[str], str] = lambda n: n
) -> None:
    """Give every tensor of a module its seeded values.

    The name that seeds one is ``prefix`` and what ``renamed`` makes of its name in the module.
    """
    state = {
        name: draw(prefix + renamed(name), tensor.shape, rule)
        for name, tensor in module.state_dict().items()
    }
    module.load_state_dict(state)


def load(
    tiles: Path, names: Sequence[str], side: int, normalised: bool = True, crop: int | None = None
) -> Tensor:
    """Images (B, 3, side, side) as the released codes load them: bilinear, antialiased."""
    steps: list[nn.Module] = [v2.Resize((side, side)), v2.ToImage()]
    steps += [v2.CenterCrop(crop)] if crop else []
    steps += [v2.ToDtype(torch.float32, scale=True)]
    steps += [v2.Normalize(_MEAN, _STD)] if normalised else []
    return torch.stack([v2.Compose(steps)(Image.open(tiles / n).convert("RGB")) for n in names])


def batch_of(pixels: Tensor) -> Batch:
    """A step's batch of prepared pixels."""
    numbers = torch.arange(len(pixels))
    return Batch(pixels.to(torch.uint8), pixels, numbers, np.random.default_rng(0))


def assert_close(ours: ArrayLike | Tensor, theirs: ArrayLike, allow: float = 1e-4) -> None:
    """Whether the largest difference is small beside the largest entry of the reference."""
    mine = ours.detach().cpu().numpy() if isinstance(ours, Tensor) else np.asarray(ours)
    expected = np.asarray(theirs)
    assert mine.shape == expected.shape
    worst = float(np.abs(mine.astype(np.float64) - expected).max())
    assert worst <= allow * float(np.abs(expected).max()), worst


def total_norm(tensors: Sequence[Tensor | None]) -> float:
    """Root of the sum of squares over all that there are."""
    return math.sqrt(sum(float(t.double().square().sum()) for t in tensors if t is not None))
