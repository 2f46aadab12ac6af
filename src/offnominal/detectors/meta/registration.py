"""RegAD's training: on several categories, of which two images at a time are brought together.

Huang et al., ECCV 2022 (arXiv 2207.07361), section 3.2; rates and batches as in the released code.
"""

import copy
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from offnominal.backbones.base import Backbone, Origin
from offnominal.backbones.timm import TimmBackbone
from offnominal.backbones.weights import build_arguments, read_metadata
from offnominal.checks import check_augment, check_choice, check_range
from offnominal.detectors.meta.learnedfile import write_registered
from offnominal.detectors.meta.networks import Plan, Registered, Registrar
from offnominal.detectors.meta.pairs import Pair, Pairs, made_category
from offnominal.detectors.options import OnError, choose_device
from offnominal.errors import ImageError, OptionError
from offnominal.images import read_image
from offnominal.sizing import squared
from offnominal.training.checkpoint import Checkpoint, Files, History
from offnominal.training.claimed import output_file
from offnominal.training.images import ImageStore
from offnominal.training.loop import Progress, run, seeded
from offnominal.training.recipe import Course

__all__ = ["PAPERS_BACKBONE", "RegistrationRecipe", "train_registration"]

PAPERS_BACKBONE = "resnet18"
_LAYERS = (-4, -3, -2)  # strides 4, 8 and 16 of a network with five levels
_MOMENTUM = 0.9


@dataclass(frozen=True)
class RegistrationRecipe:
    """How RegAD is trained on other categories.

    Attributes
    ----------
    shots : int
        Good images that each is brought together with, 2, 4 or 8 in the paper.
    steps : int
        Of the training; 0 writes the network as it is. 50 rounds in the paper.
    batch : int
        Images a step, 32 in the paper, all of one category; beside each come its shots.
    lr : float
        Learning rate, 1e-4 in the paper; it falls to 0 as a cosine.
    resolution : int
        Side of the square that images are resized to, in pixels.
    augment : str
        What happens to each image by itself: ``none``, as in the paper, or some of ``flips``,
        ``turns``, ``rotations``, ``tilts``, ``shifts``, ``light`` and ``colour``.
    looks : int
        Categories that are made up beside those of the data sets, of 24 images each.
    pixels : {"normalised", "plain"}
        Whether pixels are shifted and scaled as the network was trained, or lie on [0, 1] as in the
        released code.
    statistics : {"trained", "kept"}
        Of the network's batch norms: ``trained`` moves them with the batches, as in the released
        code; ``kept`` leaves them as they were, which networks take whose batch norms were folded
        into their convolutions.
    seed : int
        Of all that is drawn.
    """

    shots: int = 2
    steps: int = 500
    batch: int = 8
    lr: float = 1e-4
    resolution: int = 224
    augment: str = "none"
    looks: int = 0
    pixels: Literal["normalised", "plain"] = "normalised"
    statistics: Literal["trained", "kept"] = "trained"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least, most in (("shots", 1, 32), ("steps", 0, 10**8), ("batch", 1, 4096),
                                  ("looks", 0, 1000), ("resolution", 32, 4096)):  # fmt: skip
            check_range(name, getattr(self, name), least=least, most=most, whole=True)
        check_range("lr", self.lr, above=0, most=10)
        check_range("seed", self.seed, least=0, below=2**32, whole=True)
        check_augment(self.augment)
        check_choice("pixels", self.pixels, ("normalised", "plain"))
        check_choice("statistics", self.statistics, ("trained", "kept"))


class _Learner(nn.Module):
    """Stages, encoder and predictor, and their loss."""

    def __init__(self, registered: Registered, kept: bool) -> None:
        super().__init__()
        self.registered, self._kept = registered, kept
        self.registrar = Registrar(registered.widths[-1])

    def train(self, mode: bool = True) -> "_Learner":
        """Switch what learns; the stages' batch norms stay as they are where they are kept."""
        super().train(mode)
        if self._kept:
            for norm in _norms(self.registered.stages):
                norm.eval()
        return self

    def loss(self, batch: Pair) -> dict[str, Tensor]:
        """Of queries against the mean of their supports' features."""
        count, shots = batch.supports.shape[:2]
        query = self.registered(batch.queries).maps[-1]
        support = self.registered(batch.supports.flatten(0, 1)).maps[-1]
        return {"total": self.registrar(query, support.unflatten(0, (count, shots)).mean(1))}


def train_registration(
    backbone: Backbone,
    categories: Mapping[str, Sequence[Path]],
    output: str | Path,
    recipe: RegistrationRecipe | None = None,
    *,
    device: str = "auto",
    overwrite: bool = False,
    on_error: OnError | None = None,
    progress: Progress | None = None,
    tell: Callable[[str], None] | None = None,
) -> Path:
    """Train RegAD's stages on good images of several categories, to be used on another.

    Where a training was broken off, the same call goes on after the last step that was kept.

    Parameters
    ----------
    backbone : Backbone
        One of timm's networks whose stages follow each other; ResNet-18 in the paper.
    categories : mapping of str to sequence of Path
        Good images by category, of each more than ``shots``; beside them ``looks`` are made up.
    output : path
        File to write, ending in ``.safetensors``; give it to RegAD as ``learned``.
    recipe : RegistrationRecipe or None
    device : str
        ``auto``, ``cpu``, ``cuda``, ``cuda:1``.
    overwrite : bool
        Begin anew where files of another training are.
    on_error : callable or None
        Called with the error of each unreadable image, which is left out; None: it is raised.
    progress, tell : callable or None
        Called with the stage and how far it is, and with lines for a person.

    Returns
    -------
    Path
        Of the file.

    Raises
    ------
    OptionError
        If the file's name does not do, files of another training are in the way, there is no
        category, one has too few images, the network has no such stages, or the loss is not finite.
    """
    recipe = recipe or RegistrationRecipe()
    where, say = choose_device(device), tell or (lambda line: None)
    with output_file(output, overwrite) as path, ImageStore() as store:
        with seeded(recipe.seed):
            learner = _Learner(_registered(backbone, recipe), recipe.statistics == "kept").to(where)
        groups, digests = _stored(store, categories, recipe, on_error, progress)
        names = list(groups)
        facts = {
            "categories": names,
            "images": store.count,
            "network": f"{backbone.name}, digest {backbone.digest[:12]}",
            **asdict(recipe),
        }
        if backbone.untrained:
            facts["pretrained"] = f"no ({backbone.untrained})"
        augment = check_augment(recipe.augment)
        pairs = Pairs(store.array(), list(groups.values()), recipe.shots, augment, where)
        parts = (learner.registered, learner.registrar.encoder, learner.registrar.predictor)

        def optimisers() -> list[Optimizer]:
            return [SGD(each.parameters(), recipe.lr, _MOMENTUM) for each in parts]

        remedy = f"give --overwrite, and a smaller --lr, such as {recipe.lr / 3:.2g}"
        course = Course(recipe.batch, recipe.steps, recipe.seed, optimisers, _rate, remedy=remedy)
        identity = {**asdict(recipe), "backbone": backbone.digest, "categories": names}
        kept = Checkpoint(Files(path), identity, _nothing, overwrite, digests, each_epoch=False)
        of = "one category" if len(names) == 1 else f"{len(names)} categories"
        say(f"{store.count:,} good images of {of}, {recipe.steps:,} steps")
        if recipe.steps:
            run(learner.train(), pairs, course, kept, progress, tell)
        write_registered(path, learner.registered, facts)
    return path


def _registered(backbone: Backbone, recipe: RegistrationRecipe) -> Registered:
    """The stages of a backbone, in a copy that learns."""
    if not isinstance(backbone, TimmBackbone) or backbone.is_transformer:
        raise OptionError(
            f"--backbone {backbone.name}: has no stages; give a convolutional network of timm's, "
            "such as resnet18"
        )
    chosen = backbone.at_levels(_LAYERS)
    origin: Origin | None = getattr(backbone, "origin", None)
    file = origin.weights if origin else None
    arguments = build_arguments(read_metadata(Path(file))) if file else {}
    plain = recipe.pixels == "plain"
    scale = ((0.0,) * 3, (1.0,) * 3) if plain else (backbone.mean, backbone.std)
    if _folded(_norms(backbone.model)) and recipe.steps and recipe.statistics == "trained":
        raise OptionError(
            f"--statistics trained: the batch norms of {backbone.name} were folded into its "
            "convolutions, and training would begin with another network; give --statistics kept"
        )
    plan = Plan(backbone.architecture, arguments, chosen.layers, recipe.resolution, *scale)
    made = Registered(plan, copy.deepcopy(backbone.model).requires_grad_(True))
    noise = torch.rand(1, 3, recipe.resolution, recipe.resolution)
    shift, spread = (torch.tensor(each)[:, None, None] for each in scale)
    with torch.no_grad():  # as it begins, its transformers move nothing
        ours = made.eval()(noise).maps
        theirs = chosen.to("cpu").levels((noise - shift) / spread).maps
    near = [torch.allclose(a, b, 1e-2, 1e-2) for a, b in zip(ours, theirs, strict=True)]
    if not all(near):
        raise OptionError(
            f"--backbone {backbone.name}: its stages do not simply follow each other; give "
            "another, such as resnet18"
        )
    return made


def _norms(network: nn.Module) -> list[nn.BatchNorm2d]:
    return [one for one in network.modules() if isinstance(one, nn.BatchNorm2d)]


def _folded(norms: Sequence[nn.BatchNorm2d]) -> bool:
    """Whether they only add something: their statistics and factors are those of a fresh one."""
    states = [norm.state_dict() for norm in norms]
    return bool(states) and all(
        bool(each["bias"].any()) and not each["running_mean"].any() for each in states
    )


def _stored(
    store: ImageStore,
    categories: Mapping[str, Sequence[Path]],
    recipe: RegistrationRecipe,
    on_error: OnError | None,
    progress: Progress | None,
) -> tuple[dict[str, list[int]], dict[str, str]]:
    """Put all images into the store: their numbers by category, and the digests of their files."""
    groups: dict[str, list[int]] = {}
    digests: dict[str, str] = {}

    def keep(category: str, image: NDArray[np.uint8]) -> None:
        cut = squared(image, recipe.resolution, recipe.resolution, "lanczos")
        groups.setdefault(category, []).append(store.count)
        store.add(cut.transpose(2, 0, 1))
        if progress:
            progress("reading", store.count)

    for category, files in categories.items():
        for file in files:
            try:
                image = read_image(file)
            except ImageError as error:
                if on_error is None:
                    raise
                on_error(error)
                continue
            digests[str(file)] = hashlib.sha256(file.read_bytes()).hexdigest()
            keep(category, image)
    for number in range(recipe.looks):
        for image in made_category(number, recipe.seed):
            keep(f"look {number + 1}", image)
    if not groups:
        raise OptionError("--data: no good image to learn from; give data sets, or --looks 8")
    for category, numbers in groups.items():
        if len(numbers) <= recipe.shots:
            raise OptionError(
                f"--shots {recipe.shots}: {category} has {len(numbers)} good images, and takes "
                f"{recipe.shots + 1}; give fewer shots, or leave it out"
            )
    return groups, digests


def _rate(done: float) -> float:
    return (1 + math.cos(math.pi * done)) / 2


def _nothing(epochs: int, history: History) -> None:
    """The file is written once it is whole."""
