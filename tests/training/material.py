"""A small CLIP whose features carry something, and two halves of a real data set."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from tests.seeded import UNTRAINED, clip_weights

from offnominal.training.checkpoint import Files

KINDS = ("good", "blowhole", "break")

# Four blocks; the text tower has three, so prompts are at most three blocks deep.
GABOR: dict[str, Any] = {
    "embed_dim": 64,
    "vision_cfg": {
        "image_size": 224,
        "layers": 4,
        "width": 128,
        "head_width": 64,
        "patch_size": 16,
    },
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 3},
}


def gabor_filters(count: int, side: int, gain: float = 1.0) -> torch.Tensor:
    """Oriented, windowed waves of chance phase and length, without a constant part."""
    rng = np.random.default_rng(1)
    y, x = np.mgrid[:side, :side] - (side - 1) / 2
    filters = []
    for _ in range(count):
        angle, phase = rng.uniform(0, math.pi), rng.uniform(0, 2 * math.pi)
        length = math.exp(rng.uniform(math.log(3), math.log(2 * side)))
        width = rng.uniform(0.2, 0.5) * side
        left, top = rng.uniform(-0.25, 0.25, 2) * side
        window = np.exp(-((x - left) ** 2 + (y - top) ** 2) / (2 * width**2))
        along = x * math.cos(angle) + y * math.sin(angle)
        wave = window * np.cos(2 * math.pi * along / length + phase)
        wave -= wave.mean()
        filters.append(wave / np.linalg.norm(wave))
    # A third each of red, green and blue.
    grey = np.repeat(np.stack(filters)[:, None], 3, axis=1) / 3
    return torch.from_numpy((gain * grey).astype(np.float32))


def gabor_clip_weights(config: dict[str, Any] = GABOR) -> dict[str, torch.Tensor]:
    """Random weights whose first layer sees edges and textures, as trained ones do.

    Positions are all alike and tokens mix little, so that features speak of what a patch shows.
    """
    weights = clip_weights(config)
    side = config["vision_cfg"]["patch_size"]
    weights["visual.conv1.weight"] = gabor_filters(config["vision_cfg"]["width"], side)
    positions = weights["visual.positional_embedding"]
    weights["visual.positional_embedding"] = positions[:1].repeat(len(positions), 1)
    for name in weights:
        if name.startswith("visual.transformer") and "attn.out_proj" in name:
            weights[name] = 0.3 * weights[name]
    return weights


def save_gabor_clip(folder: Path, config: dict[str, Any] = GABOR) -> Path:
    """Write it as a weights file that says what it is, and return its path."""
    path = folder / "clip_gabor.safetensors"
    if not path.exists():
        described = json.dumps(config)
        metadata = UNTRAINED | {"model": "open_clip:gabor", "open_clip": described}
        save_file(gabor_clip_weights(config), path, metadata=metadata)
    return path


def write_half(tiles: Path, root: Path, half: int, each: int) -> Path:
    """Every other image of some kinds, `each` of them, as a data set of its own in MVTec layout."""
    for kind in KINDS:
        images = sorted((tiles / "test" / kind).iterdir())[half : half + 2 * each : 2]
        for image in images:
            _copy(image, root / "tile" / "test" / kind)
            if kind != "good":
                mask = tiles / "ground_truth" / kind / f"{image.stem}_mask.png"
                _copy(mask, root / "tile" / "ground_truth" / kind)
    for image in sorted((tiles / "train" / "good").iterdir())[half:4:2]:
        _copy(image, root / "tile" / "train" / "good")
    return root


def contents(files: Files) -> list[bytes]:
    """All that a training leaves but its page, which names the file."""
    return [path.read_bytes() for path in (files.learned, files.losses, files.state)]


def _copy(file: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(file, folder)
