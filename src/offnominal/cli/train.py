"""``offnominal train``: what is learned once and used often: prompts, layers, a teacher."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from offnominal.cli import options
from offnominal.cli.command import MethodOptions, Option, method_options, options_of
from offnominal.cli.datasets import open_from_options
from offnominal.cli.stop import telling
from offnominal.cli.terminal import Unreadable, progress_bar, say, warn_untrained
from offnominal.errors import OptionError

TEACHER = "efficientad-teacher"


def train(
    method: Annotated[str, "METHOD"],
    data: Path,
    output: Annotated[Path, "-o"],
    given: dict[str, Any],
    split: Literal["test", "train", "all"] = "test",
    class_names: Path | None = None,
    cache: options.Cache = None,
    cache_limit: options.CacheLimit = 20.0,
    no_cache: options.NoCache = False,
    overwrite: bool = False,
    sets: options.Sets = None,
    strict: options.Strict = False,
    **folders: Any,
) -> None:
    """Train a method's prompts or layers on a labelled data set, to be used on others.

    Or EfficientAD's teacher, efficientad-teacher, on images of anything. Each method has options of
    its own: `offnominal train METHOD --help` lists them. Ctrl-C or a signal stops it in good order;
    the same command goes on where it stopped.

    Parameters
    ----------
    method : str
        Such as anomalyclip; with --help after it, its options are shown.
    data : path
        Folder of a labelled data set, or a manifest; for a teacher, of images.
    output : path
        File to write, as prompts.safetensors.
    split : {"test", "train", "all"}
        Images to train on; the test split has the defects.
    class_names : path or None
        JSON or CSV of what the parts of each category are called; else the categories' names.
    overwrite : bool
        Begin anew where files of another training are.
    """
    with telling(lambda: f"the same command goes on with {output}"):
        if method == TEACHER:
            if split != "test" or class_names or set(folders.values()) - {None, "auto"}:
                raise OptionError(
                    f"train {method}: takes images of anything, without labels; leave the options "
                    "of data sets out"
                )
            _teach(data, output, given, overwrite, strict)
            return
        from offnominal.detectors.language.training.learners import TRAINABLE
        from offnominal.detectors.language.training.samples import choose_samples
        from offnominal.language.names import read_class_names
        from offnominal.train import train as train_on

        of_recipe, of_learner = _recipe(method), _settings(method)
        recipe = replace(TRAINABLE[method].recipe, **_taken(given, of_recipe))
        settings = _taken(given, of_learner)
        detector: Any = options.build_detector(method, given, sets)
        dataset = open_from_options(data, **folders)
        masks, advice = recipe.local_weight > 0, TRAINABLE[method].learner.else_masks
        images = choose_samples(dataset.samples, split, masks, data, advice).samples
        unreadable = Unreadable(strict)
        with progress_bar(len(images) * recipe.epochs) as advance:
            outcome = train_on(
                detector,
                dataset,
                output,
                recipe,
                split=split,
                settings=settings,
                class_names=read_class_names(class_names) if class_names else None,
                cache=None if no_cache else options.open_cache(cache, cache_limit),
                overwrite=overwrite,
                on_error=unreadable,
                progress=advance,
                tell=say,
            )
        for path in (outcome.files.losses, outcome.files.page, outcome.files.learned):
            if path.exists():
                say(f"wrote {path}")
        warn_untrained(detector)
        [option] = detector.file_options
        use = (
            f"offnominal fit --method {method} --{option.replace('_', '-')} {outcome.files.learned}"
        )
        typer.echo(f"Use them with: {use} -o MODEL")
        unreadable.finish()


def _teach(data: Path, output: Path, given: dict[str, Any], overwrite: bool, strict: bool) -> None:
    """Make a teacher for EfficientAD."""
    from offnominal.backbones import load_backbone
    from offnominal.backbones.auto import choose_backbone
    from offnominal.detectors.teacher_student.teacher import PAPERS_BACKBONE, TeacherRecipe, teach
    from offnominal.paths import find_images

    recipe = TeacherRecipe(**_taken(given, options_of(TeacherRecipe)))
    name, weights = given.get("backbone"), given.get("weights")
    if name in (None, "auto") and weights is None:
        name, note = choose_backbone(PAPERS_BACKBONE)
        say(f"taught by {name}" + (f"; {note}" if note else ""))
    backbone = load_backbone(name, weights, given.get("layers"))
    images = find_images(data)
    with Unreadable(strict) as unreadable, progress_bar(len(images)) as advance:
        teach(
            backbone,
            images,
            output,
            recipe,
            device=given.get("device") or "auto",
            overwrite=overwrite,
            on_error=unreadable,
            progress=advance,
            tell=say,
        )
        say(f"wrote {output}")
        typer.echo(f"Use it with: offnominal fit --method efficientad --weights {output} -o MODEL")


def _teacher_options() -> list[Option]:
    from offnominal.detectors.backboned import BackboneDetector
    from offnominal.detectors.teacher_student.teacher import TeacherRecipe

    network = ("backbone", "weights", "layers", "device")
    found = options_of(BackboneDetector, "Who teaches")
    return [*options_of(TeacherRecipe, "Training"), *(o for o in found if o.name in network)]


def train_options(args: list[str]) -> MethodOptions:
    """The options of the method that a command line names: its own, the recipe's, the prompts'."""
    words = [word for word in args if not word.startswith("-")]
    if args and not words:
        return "train", []
    if TEACHER in words:
        return TEACHER, _teacher_options()
    from offnominal.detectors.language.training.learners import TRAINABLE
    from offnominal.detectors.registry import detector_class

    method = next((word for word in words if word in TRAINABLE), None)
    if method is None:
        names = ", ".join(sorted([*TRAINABLE, TEACHER]))
        raise OptionError(f"train {' '.join(words[:1])}: choose one of {names}")
    own = method_options(method, without=detector_class(method).file_options)
    return method, [*_recipe(method), *_settings(method), *own]


def _recipe(method: str) -> list[Option]:
    """The fields of a recipe, with the method's own values as their defaults."""
    from offnominal.detectors.language.training.learners import TRAINABLE

    recipe = TRAINABLE[method].recipe
    found = options_of(type(recipe), "Training")
    return [replace(option, default=getattr(recipe, option.name)) for option in found]


def _settings(method: str) -> list[Option]:
    """What the prompts that a method learns can be, where it learns prompts."""
    from offnominal.detectors.registry import detector_class
    from offnominal.language.learned import LearnedPrompts

    panel, prompts = "What is learned", getattr(detector_class(method), "kind", object)
    if not issubclass(prompts, LearnedPrompts):
        return []
    found = options_of(prompts, panel, without=("width", "generator"))
    if "start_from" in vars(prompts):
        told = "Words to begin with, as 'a photo of a' with --length 4. None: chance."
        found.append(Option("start_from", str | None, None, told, panel))
    return found


def _taken(given: dict[str, Any], some: list[Option]) -> dict[str, Any]:
    """The values of some options, which are taken out of what was given."""
    values = {option.name: given.pop(option.name, None) for option in some}
    return {name: value for name, value in values.items() if value is not None}
