"""RegAD's networks: stages with a spatial transformer behind each, and what registers features.

Huang, Guan, Jiang, Zhang, Spratling and Wang, "Registration based Few-Shot Anomaly Detection",
ECCV 2022 (arXiv 2207.07361), sections 3.1 and 3.2; sizes as in the released code.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offnominal.checks import check_range
from offnominal.errors import OptionError

__all__ = ["Plan", "Registered", "Registrar", "Seen", "SpatialTransformer", "copies", "joined"]

_HIDDEN, _NARROW, _LINEAR = 64, 16, 1024  # of a transformer's localisation network
_LEAST = 2  # positions a side that two poolings leave one of, four


@dataclass(frozen=True)
class Plan:
    """How the stages are built; a file holds it beside the tensors.

    Attributes
    ----------
    network : str
        timm's name.
    arguments : mapping
        With which timm builds it.
    levels : sequence of int
        After which of its levels a transformer stands.
    side : int
        Of the images, in pixels.
    mean, std : sequence of three floats
        How pixels on [0, 1] are shifted and scaled.
    """

    network: str
    arguments: Mapping[str, Any]
    levels: Sequence[int]
    side: int
    mean: Sequence[float]
    std: Sequence[float]

    def __post_init__(self) -> None:
        check_range("side", self.side, least=32, most=4096, whole=True)

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        found = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
        return found | {"arguments": dict(self.arguments)}


class Seen(NamedTuple):
    """What the stages make of images.

    Attributes
    ----------
    maps : list of Tensor of shape (B, C, gh, gw)
        Of each stage, behind its transformer.
    moves : list of Tensor of shape (B, 2, 3)
        What each transformer did: affine maps of coordinates on [-1, 1].
    """

    maps: list[Tensor]
    moves: list[Tensor]


class SpatialTransformer(nn.Module):
    """Turns and stretches a feature map by what it sees in it; untrained, it leaves it alone.

    Parameters
    ----------
    channels : int
    grid : (gh, gw)
        Positions of the map.
    """

    def __init__(self, channels: int, grid: tuple[int, int]) -> None:
        super().__init__()
        left = [max(1, side // 4) for side in grid]
        self.look = nn.Sequential(
            nn.Conv2d(channels, _HIDDEN, 3, padding=1, bias=False),
            nn.BatchNorm2d(_HIDDEN),
            nn.ReLU(),
            nn.MaxPool2d(2, ceil_mode=min(grid) < 4),
            nn.Conv2d(_HIDDEN, _NARROW, 3, padding=1, bias=False),
            nn.BatchNorm2d(_NARROW),
            nn.ReLU(),
            nn.MaxPool2d(2, ceil_mode=min(grid) < 4),
        )
        last = nn.Linear(_LINEAR, 3)
        self.say = nn.Sequential(nn.Linear(_NARROW * left[0] * left[1], _LINEAR), nn.ReLU(), last)
        nn.init.zeros_(last.weight)
        last.bias.data = torch.tensor([0.0, 1.0, 1.0])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """A map (B, C, gh, gw), and how it was moved (B, 2, 3)."""
        angle, across, down = self.say(self.look(x).flatten(1)).float().unbind(1)
        nothing = torch.zeros_like(angle)
        # As in the released code, the scales multiply the diagonal only.
        first = torch.stack([angle.cos() * across, -angle.sin(), nothing], dim=1)
        second = torch.stack([angle.sin(), angle.cos() * down, nothing], dim=1)
        move = torch.stack([first, second], dim=1)
        return moved(x, move), move


class Registered(nn.Module):
    """The first stages of a network, a spatial transformer behind each of the named levels.

    Parameters
    ----------
    plan : Plan
    model : nn.Module or None
        The network, one of timm's whose stages follow each other; None: one of no weights yet.

    Raises
    ------
    OptionError
        If it is no such network, or the images are too small for it.
    """

    def __init__(self, plan: Plan, model: nn.Module | None = None) -> None:
        super().__init__()
        self.plan, self._scale = plan, (list(plan.mean), list(plan.std))
        made: Any = model or timm.create_model(plan.network, num_classes=0, **plan.arguments)
        every = getattr(made, "feature_info", None)
        if every is None:
            raise OptionError(f"--backbone {plan.network}: has no stages; choose resnet18")
        info = [every[level] for level in plan.levels]
        self.stages = nn.ModuleDict()
        self._ends = [str(one["module"]) for one in info]
        for name, stage in _in_order(made, self._ends):
            self.stages[name.replace(".", "/")] = stage
        self.transformers = nn.ModuleList()
        self.widths = [int(one["num_chs"]) for one in info]
        for width, one in zip(self.widths, info, strict=True):
            side = plan.side // int(one["reduction"])
            if side < _LEAST:
                raise OptionError(
                    f"--resolution {plan.side}: too small for {plan.network}; give "
                    f"{_LEAST * int(one['reduction'])} or more"
                )
            self.transformers.append(SpatialTransformer(width, (side, side)))

    def forward(self, pixels: Tensor) -> Seen:
        """What the stages make of images (B, 3, side, side) on [0, 1]."""
        mean, std = (pixels.new_tensor(each)[:, None, None] for each in self._scale)
        x, maps, moves = (pixels - mean) / std, list[Tensor](), list[Tensor]()
        transformers = iter(self.transformers)
        for name, stage in self.stages.items():
            x = stage(x)
            if name.replace("/", ".") in self._ends:
                x, move = next(transformers)(x)
                maps.append(x)
                moves.append(move)
        return Seen(maps, moves)

    def upright(self, pixels: Tensor) -> Tensor:
        """Features (B, D, gh, gw) of images, each map moved back to where the image has it.

        Coarser levels are repeated at the finest one's positions.
        """
        seen = self(pixels)
        back = [_inverse(move) for move in seen.moves]
        maps = []
        for number, found in enumerate(seen.maps):
            for move in reversed(back[: number + 1]):
                found = moved(found, move)
            maps.append(found.float())
        return joined(maps)


class Registrar(nn.Module):
    """Encoder and predictor, which bring features of two images of a category together.

    Parameters
    ----------
    channels : int
        Of the features; 256 in the paper.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            *_layer(channels), *_layer(channels), nn.Conv2d(channels, channels, 1, bias=False)
        )
        self.predictor = nn.Sequential(*_layer(channels), nn.Conv2d(channels, channels, 1))

    def forward(self, query: Tensor, support: Tensor) -> Tensor:
        """Half the negative cosine of each prediction to the other's code (equation 2): a scalar.

        ``query`` and ``support``, the mean of a few images' features, are (B, C, gh, gw).
        """
        z, other = self.encoder(query), self.encoder(support)
        return (_apart(self.predictor(z), other) + _apart(self.predictor(other), z)) / 2


def _layer(channels: int) -> list[nn.Module]:
    return [nn.Conv2d(channels, channels, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()]


def _apart(said: Tensor, code: Tensor) -> Tensor:
    """Minus the cosine at each position; no gradient goes through the code."""
    return -F.cosine_similarity(said, code.detach(), dim=1).mean()


def moved(x: Tensor, move: Tensor) -> Tensor:
    """A map resampled by affine maps (B, 2, 3) of its coordinates, mirrored at the rim."""
    grid = F.affine_grid(move.float(), list(x.shape), align_corners=False)
    return F.grid_sample(x.float(), grid, padding_mode="reflection", align_corners=False)


def _inverse(move: Tensor) -> Tensor:
    """The affine map that undoes one, (B, 2, 3)."""
    inner = torch.linalg.inv(move[:, :, :2].float())
    return torch.cat([inner, -inner @ move[:, :, 2:].float()], dim=2)


def joined(maps: Sequence[Tensor]) -> Tensor:
    """Levels at the positions of the first, the finest: (B, D, gh, gw)."""
    grid = maps[0].shape[-2:]
    return torch.cat([maps[0], *(F.interpolate(each, grid) for each in maps[1:])], dim=1)


def copies(pixels: Tensor) -> Tensor:
    """An image (3, side, side) on [0, 1] and 21 changed copies of it: (22, 3, side, side).

    Eight rotations up to 45 degrees, eight shifts along the diagonals, both mirrored at the rim, a
    flip, a grey one and three quarter turns, as in the released code (section 3.3).
    """
    angles = [sign * step * torch.pi / 16 for step in (1, 2, 3, 4) for sign in (1, -1)]
    moves = []
    for angle in angles:
        cos, sin = torch.tensor(angle).cos().item(), torch.tensor(angle).sin().item()
        moves.append([[cos, -sin, 0.0], [sin, cos, 0.0]])
    for far in (0.1, 0.2):
        moves += [[[1.0, 0.0, a], [0.0, 1.0, b]] for a in (far, -far) for b in (far, -far)]
    many = pixels.expand(len(moves), -1, -1, -1)
    grey = pixels.new_tensor([0.299, 0.587, 0.114])[:, None, None] * pixels
    return torch.cat(
        [
            pixels[None],
            moved(many, torch.tensor(moves, device=pixels.device)),
            pixels.flip(2)[None],
            grey.sum(0).expand_as(pixels)[None],
            *(pixels.rot90(turn, (1, 2))[None] for turn in (1, 2, 3)),
        ]
    )


def _in_order(model: nn.Module, ends: Sequence[str]) -> list[tuple[str, nn.Module]]:
    """The modules that images go through one after the other, up to the last of ``ends``."""
    found = []
    for name, child in model.named_children():
        inside = [end for end in ends if end.startswith(f"{name}.")]
        parts = child.named_children() if inside else [("", child)]
        for part, stage in parts:
            found.append((f"{name}.{part}".rstrip("."), stage))
            if found[-1][0] == ends[-1]:
                return found
    raise OptionError(f"--backbone: {type(model).__name__} has no stage {ends[-1]}")
