"""A training from a data set to the files it leaves: prompts or layers, losses, curves.

Zhou et al., ICLR 2024 (arXiv 2310.18961), section 3.3, and the released code; CoOp's prompts and
APRIL-GAN's layers go the same way, with learners of their own.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from offnominal.backbones.cache import FeatureCache
from offnominal.datasets.contents import read_contents
from offnominal.datasets.dataset import Dataset
from offnominal.detectors.language.learned import LearnedDetector
from offnominal.detectors.language.training.learners import TRAINABLE, LanguageRecipe
from offnominal.detectors.language.training.samples import Split, choose_samples
from offnominal.detectors.language.training.tower import Tower
from offnominal.detectors.options import OnError
from offnominal.errors import OptionError
from offnominal.language.learnedfile import LearnedFile, write_learned
from offnominal.report.training import write_training_page
from offnominal.report.words import count
from offnominal.training.checkpoint import Checkpoint, Files, History, mean_losses
from offnominal.training.claimed import claimed
from offnominal.training.loop import Progress, run

__all__ = ["Outcome", "train"]


@dataclass(frozen=True)
class Outcome:
    """What a training came to.

    Attributes
    ----------
    files : Files
    about : LearnedFile
        What the file says of itself.
    history : list of dict
        One row a step: ``epoch`` and ``step``, both from 1, and the parts of the loss.
    began_at : (epoch, step)
        Where this run took over, counted from 0; (0, 0) for a new one.
    """

    files: Files
    about: LearnedFile
    history: History
    began_at: tuple[int, int]


def train(
    detector: LearnedDetector,
    dataset: Dataset,
    output: str | Path,
    recipe: LanguageRecipe | None = None,
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

    Where a training was broken off, the same call goes on after the last step that was finished.

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
    recipe : LanguageRecipe or None
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

    Raises
    ------
    DatasetError
        If there are no defective images, no good ones, or no masks where the loss needs them.
    OptionError
        If the files of another training are in the way, or the loss is not finite.
    """
    files = Files(Path(output))
    if files.learned.suffix != ".safetensors" or not files.learned.absolute().parent.is_dir():
        raise OptionError(
            f"-o {output}: name a file that ends in .safetensors, in a folder that exists"
        )
    if detector.resize in ("short", "crop") or detector.tile:
        raise OptionError("a training takes whole images: leave --resize and --tile out")
    with claimed(files):
        return _train(
            detector, dataset, files, recipe, split, dict(settings or {}), dict(class_names or {}),
            cache, overwrite, on_error, progress, tell or (lambda line: None),
        )  # fmt: skip


def _train(
    detector: LearnedDetector,
    dataset: Dataset,
    files: Files,
    recipe: LanguageRecipe | None,
    split: Split,
    given: dict[str, Any],
    class_names: dict[str, str],
    cache: FeatureCache | None,
    overwrite: bool,
    on_error: OnError | None,
    progress: Progress | None,
    say: Callable[[str], None],
) -> Outcome:
    method = TRAINABLE[detector.method]
    recipe = recipe or method.recipe
    masks = recipe.local_weight > 0
    samples, notes = choose_samples(
        dataset.samples, split, masks, dataset.root, method.learner.else_masks
    )
    for note in (*dataset.notes, *notes):
        say(f"{dataset.name}: {note}")
    defective = sum(sample.label for sample in samples)
    data = {
        "data": dataset.name,
        "categories": list(dataset.categories),
        "split": split,
        "good": len(samples) - defective,
        "defective": defective,
        "class_names": class_names,
    }
    net = detector.clip
    say(
        f"{method.title}: {data['good']:,} good and {count(defective, 'defective image')} of "
        f"{dataset.name}, {count(recipe.epochs, 'epoch')} in batches of {recipe.batch}, with "
        f"{net.name}"
    )
    tower = Tower(detector, samples, masks, cache, class_names, on_error, say, recipe.mosaic)
    generator = torch.Generator().manual_seed(recipe.seed)
    learner = method.learner(detector, recipe, tower.part_names(), given, generator)
    about = LearnedFile(
        detector.method,
        learner.learned.settings(),
        detector.reading(),
        {"name": net.name, "digest": net.digest, "text": learner.digest},
        {key: given[key] for key in ("start_from",) if key in given} | {"data": data},
    )
    say(f"reading {len(samples):,} images, to know what it is trained on")
    read = samples if masks else [replace(sample, mask=None) for sample in samples]
    contents = read_contents(read, dataset.root)
    identity = {
        "method": about.method,
        "backbone": net.digest,
        **about.learner,
        **{key: value for key, value in about.training.items() if key != "data"},
        **about.reading,
        **recipe.identity(),
        "class_names": data["class_names"],
        "images": contents.digest,
    }

    def described(epochs: int, history: History) -> LearnedFile:
        losses = [{k: round(v, 6) for k, v in each.items()} for each in mean_losses(history)]
        ran = {"recipe": asdict(recipe) | {"epochs": epochs}, "losses": losses}
        return replace(about, training=about.training | ran)

    def write(epochs: int, history: History) -> None:
        write_learned(files.learned, learner.learned, described(epochs, history))

    checkpoint = Checkpoint(files, identity, write, overwrite, contents.files)
    history, began_at = run(learner, tower, recipe, checkpoint, progress, say, generator)
    if tower.from_cache:
        say(f"features of {tower.computed:,} views computed, of {tower.from_cache:,} found")
    outcome = Outcome(files, described(recipe.epochs, history), history, began_at)
    if find_spec("matplotlib") is None:
        say("no curves: they need matplotlib: pip install matplotlib")
        return outcome
    holds = detector.kind.holds
    shown = {
        **data,
        "backbone": f"{net.name}, digest {net.digest[:12]}",
        **about.reading,
        **{f"{holds}, {name}": value for name, value in about.learner.items()},
        **asdict(recipe),
        "start_from": given.get("start_from"),
    }
    write_training_page(
        files.page,
        f"Training of {method.title}’s {holds} on {dataset.name}",
        [list(row.values()) for row in history],
        mean_losses(history),
        {name: value for name, value in shown.items() if value not in ({}, None)},
        learner.parts,
        learner.formula,
        net.untrained,
    )
    return outcome
