"""3D-ST's teacher: it learns descriptors of points by telling from each what lies around it.

Bergmann and Sattlegger, WACV 2023 (arXiv 2202.11660), section 3.1. Nothing is labelled, and nothing
is known of the parts to be inspected: the clouds are made of simple solids.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn
from torch.optim import Adam

from offnominal._version import __version__
from offnominal.atomic import write_atomically
from offnominal.checks import check_range
from offnominal.detectors.teacher_student.made_clouds import make_cloud
from offnominal.detectors.teacher_student.point_networks import (
    Decoder,
    PointNetwork,
    chamfer,
    graph_of,
    receptive_field,
    spacing,
)
from offnominal.errors import ModelFileError, OptionError
from offnominal.sealed import Damaged, open_sealed, sealed, validated
from offnominal.training.loop import Progress, run, seeded
from offnominal.training.recipe import Course

__all__ = ["PointPlan", "PointTeacherRecipe", "read_point_teacher", "teach", "teach_points"]

FORMAT = 1
_KEY = "offnominal_3d_st"
_DECODED = 16  # descriptors of a cloud that are decoded in a step


class PointPlan(NamedTuple):
    """How a network of points is built: length of a descriptor, blocks, and neighbours."""

    width: int = 64
    blocks: int = 2
    neighbours: int = 16


@dataclass(frozen=True)
class PointTeacherRecipe:
    """How a teacher is made.

    Attributes
    ----------
    width : int
        Length of a descriptor, a multiple of 4.
    blocks : int
        Residual blocks; 4 in the paper.
    neighbours : int
        Of each point; 32 in the paper.
    points : int
        Of a cloud; 64,000 in the paper.
    clouds : int
        500 in the paper.
    decoded : int
        Points that the decoder says lie around one; 1024 in the paper.
    steps : int
        One cloud each; 250 rounds in the paper, 125,000 steps.
    lr : float
        Learning rate; 0.001 in the paper.
    seed : int
        Of all that is drawn.
    """

    width: int = 64
    blocks: int = 2
    neighbours: int = 16
    points: int = 1500
    clouds: int = 24
    decoded: int = 128
    steps: int = 300
    lr: float = 2e-3
    seed: int = 42

    def __post_init__(self) -> None:
        for name in ("width", "blocks", "neighbours", "points", "clouds", "decoded", "steps"):
            check_range(name, getattr(self, name), least=1, most=10**7, whole=True)
        check_range("lr", self.lr, above=0, most=1)
        if self.width % 4:
            raise OptionError(f"--width {self.width}: give a multiple of 4")
        if self.points <= self.neighbours:
            raise OptionError(f"--points {self.points}: give more than there are neighbours")


class Lessons:
    """Made clouds, whose points are 1 apart on average, with the neighbours of each point."""

    def __init__(self, recipe: PointTeacherRecipe, device: torch.device) -> None:
        rng = np.random.default_rng(recipe.seed)
        clouds = [make_cloud(rng, recipe.points) for _ in range(recipe.clouds)]
        graphs = [torch.from_numpy(graph_of(each, recipe.neighbours)) for each in clouds]
        points = [torch.from_numpy(each) for each in clouds]
        pairs = list(zip(points, graphs, strict=True))
        scale = torch.stack([spacing(*pair) for pair in pairs]).mean()
        self.clouds = [((each / scale).to(device), graph.to(device)) for each, graph in pairs]

    def __len__(self) -> int:
        return len(self.clouds)

    def plan(self, size: int, generator: torch.Generator) -> list[int]:
        """Numbers of the clouds of each step of a round, one each."""
        return torch.randperm(len(self), generator=generator).tolist()

    def load(self, planned: int) -> tuple[Tensor, Tensor, list[int]]:
        """Points (N, 3), neighbours (N, k), and which points are decoded."""
        points, graph = self.clouds[planned]
        return points, graph, torch.randperm(len(points))[:_DECODED].tolist()


class Pupil(nn.Module):
    """The network that becomes the teacher, with its decoder."""

    def __init__(self, recipe: PointTeacherRecipe) -> None:
        super().__init__()
        self.model = PointNetwork(recipe.width, recipe.blocks)
        self.decoder = Decoder(recipe.width, recipe.decoded)
        self.steps = 2 * recipe.blocks

    def loss(self, batch: tuple[Tensor, Tensor, list[int]]) -> dict[str, Tensor]:
        """Chamfer distance of what is decoded from what lies around, its mean taken off."""
        points, graph, chosen = batch
        decoded = self.decoder(self.model(points, graph)[chosen])
        apart = []
        for found, start in zip(decoded, chosen, strict=True):
            around = points[receptive_field(graph, start, self.steps)]
            apart.append(chamfer(found, around - around.mean(0)))
        return {"total": torch.stack(apart).mean()}


def teach(
    recipe: PointTeacherRecipe,
    device: torch.device,
    progress: Progress | None = None,
    tell: Callable[[str], None] | None = None,
) -> PointNetwork:
    """Teach a network; on the CPU the same recipe gives the same."""
    with seeded(recipe.seed):
        pupil = Pupil(recipe).to(device)
    course = Course(
        1, recipe.steps, recipe.seed,
        lambda: [Adam(pupil.parameters(), lr=recipe.lr, weight_decay=1e-6)],
        lambda done: 1.0, remedy=f"give a smaller --lr, such as {recipe.lr / 3:.2g}",
    )  # fmt: skip
    with torch.enable_grad():
        run(pupil, Lessons(recipe, device), course, None, progress, tell)
    return pupil.model.eval().requires_grad_(False)


# -- files ------------------------------------------------------------------------------------


class _Header(BaseModel):
    model_config = ConfigDict(strict=True)

    format: int
    version: str
    recipe: dict[str, Any]


def teach_points(output: str | Path, recipe: PointTeacherRecipe, **told: Any) -> Path:
    """:func:`teach`, and write a file that ``3d-st`` takes as its ``teacher``.

    Raises
    ------
    OptionError
        If the loss is not finite, or the file cannot be written.
    """
    network = teach(recipe, torch.device("cpu"), **told)
    header = {"format": FORMAT, "version": __version__, "recipe": asdict(recipe)}
    tensors = {name: each.detach().contiguous() for name, each in network.state_dict().items()}
    write_atomically(path := Path(output), sealed(_KEY, header, tensors))
    return path


def read_point_teacher(file: str | Path) -> tuple[PointNetwork, PointPlan]:
    """A taught network, on the CPU, and how it is built.

    Raises
    ------
    ModelFileError
        If the file is missing, damaged, or something else.
    """
    make = "make one with `teach_points`, or leave --teacher out"
    if not Path(file).is_file():
        raise ModelFileError(f"{file}: no such file; {make}")
    try:
        content, tensors, _ = open_sealed(Path(file), _KEY)
        recipe = PointTeacherRecipe(**validated(_Header, content).recipe)
        network = PointNetwork(recipe.width, recipe.blocks)
        if not all(each.isfinite().all() for each in tensors.values()):
            raise Damaged("holds numbers that are not finite")
        network.load_state_dict(tensors)
    except (Damaged, OptionError, RuntimeError, TypeError, ValueError) as error:
        reason = str(error).splitlines()[0][:200]
        raise ModelFileError(f"{file}: no teacher of 3d-st ({reason}); {make}") from error
    plan = PointPlan(recipe.width, recipe.blocks, recipe.neighbours)
    return network.eval().requires_grad_(False), plan
