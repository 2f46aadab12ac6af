"""A training from a data set to the files it leaves: prompts or layers, losses, curves."""

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from offnominal.backbones.cache import FeatureCache
from offnominal.datasets.dataset import Dataset
from offnominal.detectors.base import OnError
from offnominal.detectors.learned import LearnedDetector
from offnominal.detectors.untrained import untrained
from offnominal.errors import OptionError
from offnominal.report.training import write_training_page
from offnominal.report.words import count
from offnominal.training.files import mean_losses
from offnominal.training.learners import TRAINABLE
from offnominal.training.loop import Outcome, Progress, run_training
from offnominal.training.recipe import Recipe
from offnominal.training.samples import Split, choose_samples
from offnominal.training.tower import Tower

__all__ = ["train"]


def train(
    detector: LearnedDetector,
    dataset: Dataset,
    output: str | Path,
    recipe: Recipe | None = None,
    *,
    split: Split = "test",
    settings: Mapping[str, Any] | None = None,
    class_names: Mapping[str, str] | None = None,
    cache: FeatureCache | None = None,
    overwrite: bool = False,
    on_error: OnError | None = None,
    progress: Progress | None = None,
    tell: Callable[[str], None] | None = None,
) -> Outcome:
    """Train a detector's prompts or layers on a data set that has good and defective images.

    Parameters
    ----------
    detector : LearnedDetector
        ``AnomalyCLIP``, ``CoOp`` or ``AprilGAN``, with ``resize`` "square" or left alone. It is not
        changed; give the file to another one as ``prompts`` or ``projections``.
    dataset : Dataset
    output : path
        File to write, ending in ``.safetensors``. Beside it come the losses (``.losses.jsonl``),
        the curves (``.html``, where matplotlib is installed) and where the training stands
        (``.state.safetensors``), from which the same call goes on.
    recipe : Recipe or None
        None: the paper's.
    split : {"test", "train", "all"}
        Images to train on. The papers train on the test split of one data set and test on others.
    settings : mapping or None
        For AnomalyCLIP length, depth and deep_length of the prompts; for CoOp length, position and
        specific, and the words to start_from; for AprilGAN none.
    class_names : mapping or None
        What the parts of a category are called, for CoOp and AprilGAN; None: by the category's
        name.
    cache : FeatureCache or None
        Where features of the image tower are kept between epochs and runs.
    overwrite : bool
        Begin anew where files of another training are.
    on_error : callable or None
        Called once with the error of each unreadable image, which is left out; None: it is raised.
    progress : callable or None
        Called with the stage and how many images have been used in all epochs.
    tell : callable or None
        Called with lines for a person.

    Returns
    -------
    Outcome

    Raises
    ------
    DatasetError
        If there are no defective images, no good ones, or no masks where the loss needs them.
    OptionError
        If the files of another training are in the way.
    """
    output = Path(output)
    if output.suffix != ".safetensors" or not output.absolute().parent.is_dir():
        raise OptionError(
            f"-o {output}: name a file that ends in .safetensors, in a folder that exists"
        )
    if detector.resize == "short" or detector.tile:
        raise OptionError("a training takes whole images: leave --resize and --tile out")
    method = TRAINABLE[detector.method]
    recipe = recipe or method.recipe
    masks = recipe.local_weight > 0
    advice = method.learner.else_masks
    chosen = choose_samples(dataset.samples, split, masks, dataset.root, advice)
    say = tell or (lambda line: None)
    for note in (*dataset.notes, *chosen.notes):
        say(f"{dataset.name}: {note}")
    good, defective = chosen.counts
    data = {
        "data": dataset.name,
        "categories": list(dataset.categories),
        "split": split,
        "good": good,
        "defective": defective,
        "class_names": dict(class_names or {}),
    }
    tower = Tower(detector, chosen.samples, masks, cache, class_names, on_error, say)
    say(
        f"{method.title}: {good:,} good and {count(defective, 'defective image')} of "
        f"{dataset.name}, {count(recipe.epochs, 'epoch')} in batches of {recipe.batch}, with "
        f"{detector.clip.name}"
    )
    outcome = run_training(
        detector,
        tower,
        recipe,
        output,
        settings=settings,
        data=data,
        overwrite=overwrite,
        progress=progress,
        tell=say,
    )
    if tower.from_cache:
        say(f"features of {tower.computed:,} views computed, of {tower.from_cache:,} found")
    if find_spec("matplotlib") is None:
        say("no curves: they need matplotlib, pip install 'offnominal[benchmark]'")
    else:
        write_page(outcome, detector)
    return outcome


def write_page(outcome: Outcome, detector: LearnedDetector) -> Path:
    """The page of a training's curves."""
    about, training = outcome.about, outcome.about.training
    # The weights and the parts of the recipe by the names that options have.
    settings = {
        **training["data"],
        "backbone": f"{about.backbone['name']}, digest {about.backbone['digest'][:12]}",
        **about.reading,
        **{f"{detector.holds}, {name}": value for name, value in about.learner.items()},
        **training["recipe"],
        "start_from": training.get("start_from"),
    }
    shown = {name: value for name, value in settings.items() if value not in ({}, None)}
    title = TRAINABLE[about.method].title
    return write_training_page(
        outcome.files.page,
        f"Training of {title}’s {detector.holds} on {training['data']['data']}",
        outcome.history,
        mean_losses(outcome.history),
        shown,
        outcome.learner.parts,
        outcome.learner.formula,
        untrained(detector),
    )
