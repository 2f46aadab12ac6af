"""Training of what paints defects, and its file: the network, and the defects that it was shown."""

import hashlib
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, Field
from torch import Tensor
from torch.optim import AdamW

from offnominal.atomic import write_atomically
from offnominal.errors import ModelFileError, OptionError
from offnominal.sealed import Damaged, open_sealed, sealed, validated
from offnominal.synthesis.diffusion import Crop, Painter, crop_of
from offnominal.synthesis.seeds import Seed, digest_of, warped
from offnominal.training.checkpoint import Checkpoint, Files
from offnominal.training.claimed import claimed
from offnominal.training.loop import Progress, run
from offnominal.training.recipe import Course

__all__ = ["learn", "open_painter"]

_KEY = "offnominal_painter"
_FORMAT = 1
_BATCH = 8
_LR = 2e-3
_AN_EPOCH = 50  # steps


class _Crops:
    """The crops of a training: defects flipped, turned, resized and bent, anew for every step."""

    def __init__(self, seeds: Sequence[Seed], channels: int) -> None:
        self.seeds, self.channels = seeds, channels

    def __len__(self) -> int:
        return len(self.seeds)

    def plan(self, size: int, generator: torch.Generator) -> Sequence[Any]:
        shape = (_AN_EPOCH, size)
        which = torch.randint(len(self.seeds), shape, generator=generator)
        drawn = torch.randint(2**62, (_AN_EPOCH,), generator=generator)
        return list(zip(which.tolist(), drawn.tolist(), strict=True))

    def load(self, planned: tuple[list[int], int]) -> tuple[Tensor, Tensor]:
        numbers, drawn = planned
        rng = np.random.default_rng(drawn)
        crops = [self._changed(self.seeds[number], rng) for number in numbers]
        return torch.stack([c.pixels for c in crops]), torch.stack([c.hole for c in crops])

    def _changed(self, seed: Seed, rng: np.random.Generator) -> Crop:
        layers = [seed.image.astype(np.float32), seed.mask.astype(np.float32)]
        valid = np.ones_like(layers[1])
        (image, mask, valid), _ = warped([*layers, valid], seed.edges, rng)
        # Corners that a turn has left empty are filled with the mean of the rest.
        empty = valid < 0.99
        image[empty] = image[~empty].mean(0) if (~empty).any() else 0
        return crop_of(image[..., : self.channels], mask >= 0.5)


def learn(
    path: Path,
    seeds: Sequence[Seed],
    steps: int,
    seed: int = 0,
    tell: Callable[[str], None] | None = None,
    progress: Progress | None = None,
    width: int = 48,
) -> Painter:
    """Train a painter and write it; the same call goes on where it was broken off.

    Parameters
    ----------
    path : Path
        File to write, ending in ``.safetensors``.
    seeds : sequence of Seed
    steps : int
        Of 8 crops each.
    seed : int
    tell, progress : callable or None
        Called with lines for a person; with the stage and the steps that are done.
    width : int
        See :class:`Painter`.

    Raises
    ------
    OptionError
        If the file cannot be written, or a training on other defects is in the way.
    """
    if steps < 1:
        raise OptionError(f"--steps {steps}: give 1 or more")
    if path.suffix != ".safetensors":
        raise OptionError(f"--model {path}: name a file that ends in .safetensors")
    path.absolute().parent.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        painter = Painter(seeds, width)
    files = Files(path)
    course = Course(
        _BATCH,
        steps,
        seed,
        lambda: [AdamW(painter.parameters(), lr=_LR, betas=(0.9, 0.99), weight_decay=1e-4)],
        lambda done: min(1.0, 20 * done + 0.05) * 0.5 * (1 + math.cos(math.pi * done)),
        clip=1.0,
        remedy="give another --seed",
    )
    about = {"seeds": digest_of(seeds), "steps": steps, "seed": seed, "width": width}
    with claimed(files):
        checkpoint = Checkpoint(files, about, each_epoch=False)
        run(painter, _Crops(seeds, painter.channels), course, checkpoint, progress, tell)
        painter.steps = steps
        _write(path, painter)
        files.state.unlink(missing_ok=True)
    return open_painter(path)


class _Header(BaseModel):
    format: int
    steps: int = Field(ge=1)
    width: int = Field(ge=8, le=512, multiple_of=8)
    edges: list[tuple[bool, bool, bool, bool]]


def _write(path: Path, painter: Painter) -> None:
    edges = [list(seed.edges) for seed in painter.seeds]
    header = {"format": _FORMAT, "steps": painter.steps, "width": painter.width, "edges": edges}
    tensors = {name: each.detach().contiguous() for name, each in painter.state_dict().items()}
    for number, seed in enumerate(painter.seeds):
        tensors[f"seed.{number}.image"] = torch.from_numpy(seed.image)
        tensors[f"seed.{number}.mask"] = torch.from_numpy(seed.mask.astype(np.uint8))
    write_atomically(path, sealed(_KEY, header, tensors))


def open_painter(path: Path) -> Painter:
    """Open the file of a painter.

    Raises
    ------
    ModelFileError
        If it is none, or damaged.
    """
    try:
        content, tensors, _ = open_sealed(path, _KEY)
        header = validated(_Header, content)
        if header.format != _FORMAT:
            raise Damaged("written by another version of Offnominal")
        seeds = []
        for number, edges in enumerate(header.edges):
            image, mask = (tensors.pop(f"seed.{number}.{what}") for what in ("image", "mask"))
            if (
                mask.ndim != 2
                or image.dtype != torch.uint8
                or image.shape != (*mask.shape, 3)
                or not mask.any()
            ):
                raise Damaged("its defects are none")
            seeds.append(Seed(image.numpy(), mask.numpy() > 0, edges))
        painter = Painter(seeds, header.width)
        painter.load_state_dict(tensors)
        if not all(each.isfinite().all() for each in painter.parameters()):
            raise Damaged("its weights are not finite")
        painter.steps, painter.digest = header.steps, _digest(path)
        if not seeds:
            raise Damaged("it holds no defect")
    except (Damaged, KeyError, RuntimeError, TypeError, ValueError) as error:
        told = "damaged, or not what --kind diffusion wrote"
        raise ModelFileError(
            f"{path}: {told} ({str(error)[:200]}); name another file, or remove it to train anew"
        ) from error
    return painter.eval()


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
