"""EfficientAD's teacher: a patch description network that is taught what a deep backbone says.

Batzner, Heckler and König, WACV 2024 (arXiv 2303.14535), section 3.1 and appendix A; what the paper
leaves open as in nelson1425's reproduction. The paper's lesson is WideResNet-101-2 on ImageNet;
here any backbone may teach, on any images.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from offnominal.atomic import write_atomically
from offnominal.backbones.base import Backbone
from offnominal.backbones.locally_aware import locally_aware
from offnominal.backbones.pdn import DIM, PatchDescriber, PatchDescription
from offnominal.checks import check_choice, check_range
from offnominal.detectors.options import OnError, choose_device
from offnominal.errors import ImageError, OptionError
from offnominal.images import read_image
from offnominal.prefetch import prefetch
from offnominal.training.checkpoint import Checkpoint, Files, History
from offnominal.training.claimed import output_file
from offnominal.training.images import FrozenCache
from offnominal.training.loop import Progress, run, seeded
from offnominal.training.recipe import Course

__all__ = ["PAPERS_BACKBONE", "PAPER_STEPS", "Lessons", "TeacherRecipe", "teach"]

PAPERS_BACKBONE = "wide_resnet101_2"
PAPER_STEPS = 60_000
_GREY = 0.1
_MEASURED = 1000  # images that a channel's mean and deviation are taken from, 10,000 in the paper


@dataclass(frozen=True)
class TeacherRecipe:
    """How a teacher is made.

    Attributes
    ----------
    size : {"small", "medium"}
        Four convolutions, or six.
    width : float
        Factor on the paper's channels between them.
    dim : int
        Channels that come out, 384 in the paper; at most as many as the backbone's levels have.
    steps : int
        60,000 in the paper.
    batch : int
        Images a step.
    lr : float
        Learning rate, 1e-4 in the paper.
    resolution : int
        Side of the images, in pixels; the backbone sees them at twice that.
    seed : int
        Of all that is drawn.
    """

    size: Literal["small", "medium"] = "small"
    width: float = 1.0
    dim: int = DIM
    steps: int = 2000
    batch: int = 16
    lr: float = 1e-4
    resolution: int = 256
    seed: int = 42

    def __post_init__(self) -> None:
        check_choice("size", self.size, ("small", "medium"))
        check_range("width", self.width, above=0, most=4)
        for name, least in (("dim", 1), ("steps", 1), ("batch", 1), ("resolution", 64)):
            check_range(name, getattr(self, name), least=least, most=10**8, whole=True)
        check_range("lr", self.lr, above=0, most=1)
        if self.resolution % 4:
            raise OptionError(f"--resolution {self.resolution}: give a multiple of 4")


class Lessons:
    """Images, and what the backbone says of them: the batches of the training.

    Some images are turned grey, for the backbone and the pupil alike. What the backbone says is
    computed once of each image in colour and once in grey, and kept on the disk while it has room.

    Parameters
    ----------
    backbone : Backbone
    files : sequence of Path
    recipe : TeacherRecipe
    device : torch.device
    on_error : callable or None
        Called once with the error of each unreadable image, which is left out; None: it is raised.
    """

    def __init__(
        self,
        backbone: Backbone,
        files: Sequence[Path],
        recipe: TeacherRecipe,
        device: torch.device,
        on_error: OnError | None = None,
    ) -> None:
        self.backbone, self.files, self.side = backbone.to(device), files, recipe.resolution
        self.device, self.on_error = device, on_error
        multiple = backbone.multiple
        self.large = max(1, round(2 * self.side / multiple)) * multiple
        self.wanted = recipe.dim
        self.mean = self.std = torch.zeros(())
        self._cache: FrozenCache | None = FrozenCache(2 * len(files))  # in colour, then in grey
        self._unreadable: set[int] = set()

    def __len__(self) -> int:
        return len(self.files)

    def plan(self, size: int, generator: torch.Generator) -> list[Tensor]:
        """Numbers of the images of each step of a round; what is left over waits for another."""
        size = min(size, len(self))
        order = torch.randperm(len(self), generator=generator)
        return list(torch.split(order[: len(self) // size * size], size))

    def load(self, planned: Tensor) -> tuple[Tensor, Tensor] | None:
        """Images (B, 3, side, side) and targets (B, dim, side / 4, side / 4), both normalised."""
        grey = torch.rand(len(planned)) < _GREY
        found = list(self._lessons((planned + grey * len(self)).tolist()))
        if not found:
            return None
        images, targets = (torch.cat(each) for each in zip(*found, strict=True))
        return normalised(images.to(self.device)), (targets.to(self.device) - self.mean) / self.std

    def measure(self, progress: Progress | None = None) -> int:
        """Take each channel's mean and deviation over the images; how many channels there are."""
        every = range(0, len(self), -(-len(self) // _MEASURED))
        moments: list[Tensor] = []
        for done, (_, target) in enumerate(self._lessons(every), start=1):
            values = target[0].double().flatten(1)
            moments.append(torch.stack([values.mean(1), values.square().mean(1)]))
            if progress:
                progress("statistics", done)
        if not moments:
            raise OptionError("--data: none of its images can be read; there is nothing to learn")
        mean, square = torch.stack(moments).mean(0)
        std = (square - mean.square()).clamp(min=1e-12).sqrt()
        self.mean, self.std = (each.float()[:, None, None].to(self.device) for each in (mean, std))
        return len(mean)

    def _lessons(self, numbers: Iterable[int]) -> Iterator[tuple[Tensor, Tensor]]:
        """An image (1, 3, side, side), uint8, and its target as it is, for each that can be read.

        Images go through the backbone one by one, so that what it says does not depend on what was
        kept before.
        """
        cache = self._cache
        for number, read, error in prefetch(numbers, self._read):
            if read is None:
                self._leave_out(number % len(self), error)
                continue
            small, large = read
            key = torch.tensor([number])
            if large is not None:
                target = self._target(large)
                if self._cache and not self._cache.put(key, [target]):
                    self._cache = None
            else:
                assert cache is not None
                [target] = cache.get(key)
            yield small, target

    def _read(self, number: int) -> tuple[Tensor, Tensor | None]:
        """An image at both sizes; the large one where it is not known what is said of it."""
        picture = Image.fromarray(read_image(self.files[number % len(self)]))
        if number >= len(self):
            picture = picture.convert("L").convert("RGB")
        cache = self._cache  # which another thread may give up
        known = cache is not None and not len(cache.missing(torch.tensor([number])))
        return _sized(picture, self.side), None if known else _sized(picture, self.large)

    def _target(self, large: Tensor) -> Tensor:
        """What the backbone says of an image, brought to the pupil's grid and channels."""
        net = self.backbone
        with torch.no_grad():
            pixels = normalised(large.to(self.device), net.mean, net.std)
            maps = [each.float() for each in net.levels(pixels).maps]
            dim = min(self.wanted, sum(each.shape[1] for each in maps))
            found = locally_aware(maps, dim=dim)
            grid = (self.side // 4, self.side // 4)
            return (
                F.interpolate(found, grid, mode="bilinear") if found.shape[-2:] != grid else found
            )

    def _leave_out(self, number: int, error: ImageError | None) -> None:
        assert error is not None
        if self.on_error is None:
            raise error
        if number not in self._unreadable:
            self._unreadable.add(number)
            self.on_error(error)


class Pupil(nn.Module):
    """The network that is taught."""

    def __init__(self, recipe: TeacherRecipe, dim: int) -> None:
        super().__init__()
        self.model = PatchDescription(f"pdn_{recipe.size}", dim, recipe.width)

    def loss(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        """Mean squared error to the normalised targets (equation 2)."""
        pixels, target = batch
        return {"total": F.mse_loss(self.model(pixels, padded=True), target)}


def teach(
    backbone: Backbone,
    images: Sequence[Path],
    output: str | Path,
    recipe: TeacherRecipe | None = None,
    *,
    device: str = "auto",
    overwrite: bool = False,
    on_error: OnError | None = None,
    progress: Progress | None = None,
    tell: Callable[[str], None] | None = None,
) -> Path:
    """Teach a patch description network what a backbone says of images.

    Its targets are the backbone's levels as PatchCore joins them, at twice the pupil's resolution,
    averaged to ``dim`` channels, each of which is brought to mean 0 and deviation 1. Where a
    training was broken off, the same call goes on after the last step that was kept.

    Parameters
    ----------
    backbone : Backbone
        In the paper WideResNet-101-2.
    images : sequence of Path
        Of anything; in the paper ImageNet's. The more kinds of things they show, the better.
    output : path
        File to write, ending in ``.safetensors``; give it to EfficientAD as ``weights``. Beside it
        lies the state (``.state.safetensors``), by which a finished lesson goes on with more steps.
    recipe : TeacherRecipe or None
    device : str
        ``auto``, ``cpu``, ``cuda``, ``cuda:1``.
    overwrite : bool
        Begin anew where files of another training are.
    on_error : callable or None
        Called once with the error of each unreadable image, which is left out; None: it is raised.
    progress, tell : callable or None
        Called with the stage and how far it is, and with lines for a person.

    Returns
    -------
    Path
        Of the file.

    Raises
    ------
    OptionError
        If the file's name does not do, files of another training are in the way, no image can be
        read, or the loss is not finite.
    """
    recipe = recipe or TeacherRecipe()
    if not images:
        raise OptionError("--data: no images to teach with")
    where = choose_device(device)
    lessons = Lessons(backbone.eval(), images, recipe, where, on_error)
    with output_file(output, overwrite) as path:
        dim = lessons.measure(progress)
        with seeded(recipe.seed):
            pupil = Pupil(recipe, dim).to(where)
        facts = {
            "model": f"pdn_{recipe.size}",
            "taught_by": f"{backbone.name}, digest {backbone.digest[:12]}",
            "images": str(len(images)),
            **{name: str(value) for name, value in asdict(recipe).items()},
        }
        if backbone.untrained:
            facts["pretrained"] = f"no: taught by a network that is not ({backbone.untrained})"

        def write(epochs: int, history: History) -> None:
            tensors = {k: t.detach().cpu() for k, t in pupil.model.state_dict().items()}
            write_atomically(path, in_order(save(tensors, facts)))

        # More steps than before may be asked for.
        identity = {k: v for k, v in asdict(recipe).items() if k != "steps"}
        identity |= {"backbone": backbone.digest, "layers": list(backbone.layers)}
        sources = {str(each): hashlib.sha256(each.read_bytes()).hexdigest() for each in images}
        kept = Checkpoint(Files(path), identity, write, overwrite, sources, each_epoch=False)

        def optimisers() -> list[Optimizer]:
            return [Adam(pupil.parameters(), lr=recipe.lr, weight_decay=1e-5)]

        remedy = f"give --overwrite, and a smaller --lr, such as {recipe.lr / 3:.2g}"
        batch = min(recipe.batch, len(images))
        course = Course(batch, recipe.steps, recipe.seed, optimisers, flat, remedy=remedy)
        if tell:
            tell(f"{len(images):,} images, {recipe.steps:,} steps; the paper's are {PAPER_STEPS:,}")
        history = run(pupil, lessons, course, kept, progress, tell).history
        write(0, history)
    return path


def in_order(content: bytes) -> bytes:
    """A safetensors file with its header sorted: the library writes metadata in any order."""
    size = int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8 : 8 + size]), sort_keys=True).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + content[8 + size :]


def flat(done: float) -> float:
    """The learning rate stays as it is."""
    return 1.0


def normalised(
    images: Tensor,
    mean: tuple[float, float, float] = PatchDescriber.mean,
    std: tuple[float, float, float] = PatchDescriber.std,
) -> Tensor:
    """Images (B, 3, h, w), uint8, as a network takes them."""
    shift, scale = (torch.tensor(each, device=images.device)[:, None, None] for each in (mean, std))
    return (images.float() / 255 - shift) / scale


def _sized(picture: Image.Image, side: int) -> Tensor:
    squashed = np.asarray(picture.resize((side, side), Image.Resampling.BILINEAR))
    return torch.from_numpy(squashed.transpose(2, 0, 1).copy())[None]
