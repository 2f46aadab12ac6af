"""``offnominal train``: what is learned once and used often: prompts, layers, a teacher, stages."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from offnominal.checks import meant
from offnominal.cli import options
from offnominal.cli.command import named
from offnominal.cli.datasets import open_from_options
from offnominal.cli.option import MethodOptions, Option, method_options, options_of
from offnominal.cli.stop import telling
from offnominal.cli.terminal import Unreadable, progress_bar, say, warn_untrained
from offnominal.detectors.methods import POINT_TEACHER, REGAD, TEACHER, TRAINABLE_NAMES
from offnominal.errors import OptionError

if TYPE_CHECKING:
    from offnominal.backbones.base import Backbone

_NAMES = (*TRAINABLE_NAMES, TEACHER, POINT_TEACHER, REGAD)


def train(
    method: Annotated[str, "METHOD"],
    output: Annotated[Path, "-o"],
    given: dict[str, Any],
    data: list[Path] | None = None,
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

    Or EfficientAD's teacher, efficientad-teacher, on images of anything; 3D-ST's, 3d-st-teacher, on
    clouds that it makes itself; or regad on good images of many categories. Each method has options
    of its own: `offnominal train METHOD --help` lists them. Ctrl-C or a signal stops it in good
    order; the same command goes on where it stopped, but for 3d-st-teacher, which begins anew.

    Parameters
    ----------
    method : str
        Such as anomalyclip; with --help after it, its options are shown.
    data : list of path or None
        Folder of a labelled data set, or a manifest; for efficientad-teacher, of images. Repeatable
        for regad, which needs none with --looks; 3d-st-teacher takes none.
    output : path
        File to write, as prompts.safetensors.
    split : {"test", "train", "all"}
        Images to train on; the test split has the defects.
    class_names : path or None
        JSON or CSV of what the parts of each category are called; else the categories' names.
    overwrite : bool
        Begin anew where files of another training are.
    """
    from offnominal.cli.mistakes import check_device, check_weights_given

    check_device(given.get("device"))
    check_weights_given(given.get("weights"))
    with telling(lambda: f"the same command goes on with {output}"):
        if method == REGAD:
            if split != "test" or class_names:
                raise OptionError(f"train {method}: takes good images; leave --split and names out")
            _register(data or [], output, given, folders, overwrite, strict)
            return
        if method == POINT_TEACHER:
            if data or split != "test" or class_names or set(folders.values()) - {None, "auto"}:
                raise OptionError(f"train {method}: makes its clouds itself; leave data sets out")
            _teach_points(output, given, overwrite)
            return
        if len(data or []) != 1:
            raise OptionError(f"train {method}: give --data once, as --data visa/")
        [source] = data or []
        if method == TEACHER:
            if split != "test" or class_names or set(folders.values()) - {None, "auto"}:
                raise OptionError(
                    f"train {method}: takes images of anything, without labels; leave the options "
                    "of data sets out"
                )
            _teach(source, output, given, overwrite, strict)
            return
        from offnominal.detectors.language.training.learners import TRAINABLE
        from offnominal.detectors.language.training.samples import choose_samples
        from offnominal.language.names import read_class_names
        from offnominal.train import train as train_on

        of_recipe, of_learner = _recipe(method), _settings(method)
        recipe = replace(TRAINABLE[method].recipe, **_taken(given, of_recipe))
        settings = _taken(given, of_learner)
        detector: Any = options.build_detector(method, given, sets)
        dataset = open_from_options(source, **folders)
        masks, advice = recipe.local_weight > 0, TRAINABLE[method].learner.else_masks
        images = choose_samples(dataset.samples, split, masks, source, advice).samples
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


def _check_paths(args: list[str]) -> None:
    """Refuse paths that cannot be, before what is to be trained is imported to know its options."""
    for data in map(Path, named(args, "--data")):
        if not data.exists():
            raise OptionError(f"--data {data}: no such file or folder; check the path")
    for output in map(Path, named(args, "-o") + named(args, "--output")):
        if not output.absolute().parent.is_dir():
            raise OptionError(f"-o {output}: the folder {output.parent} does not exist; create it")
        if output.is_dir():
            raise OptionError(f"-o {output}: is a folder; name a file in it, as {output / 'new'}")


def _teach(data: Path, output: Path, given: dict[str, Any], overwrite: bool, strict: bool) -> None:
    """Make a teacher for EfficientAD."""
    from offnominal.detectors.teacher_student.teacher import PAPERS_BACKBONE, TeacherRecipe, teach
    from offnominal.paths import find_images

    recipe = TeacherRecipe(**_taken(given, options_of(TeacherRecipe)))
    backbone = _network(given, PAPERS_BACKBONE, "taught by")
    images = find_images(data)
    work = partial(teach, backbone, images, output, recipe, overwrite=overwrite)
    _work(work, len(images), given, strict, f"efficientad --weights {output}")


def _teach_points(output: Path, given: dict[str, Any], overwrite: bool) -> None:
    """Make a teacher for 3D-ST; one that is broken off begins anew, as it takes a minute."""
    from offnominal.detectors.teacher_student.point_teacher import PointTeacherRecipe, teach_points

    if output.exists() and not overwrite:
        raise OptionError(f"-o {output}: exists already; name another file, or give --overwrite")
    recipe = PointTeacherRecipe(**_taken(given, options_of(PointTeacherRecipe)))
    with progress_bar(recipe.steps) as advance:
        teach_points(output, recipe, progress=advance, tell=say)
    say(f"wrote {output}")
    typer.echo(f"Use it with: offnominal fit --method 3d-st --teacher {output} -o MODEL")


def _register(
    data: list[Path],
    output: Path,
    given: dict[str, Any],
    folders: dict[str, Any],
    overwrite: bool,
    strict: bool,
) -> None:
    """Train RegAD's stages on the good images that data sets have to train on."""
    from offnominal.detectors.meta.pairs import PER_LOOK
    from offnominal.detectors.meta.registration import (
        PAPERS_BACKBONE,
        RegistrationRecipe,
        train_registration,
    )

    recipe = RegistrationRecipe(**_taken(given, options_of(RegistrationRecipe)))
    categories: dict[str, list[Path]] = {}
    for source in data:
        dataset = open_from_options(source, **folders)
        for category in dataset.categories:
            several = len(data) > 1
            name = f"{dataset.name}/{category}" if several else category
            if files := [sample.image for sample in dataset.train(category)]:
                categories.setdefault(name, []).extend(files)
    backbone = _network(given, PAPERS_BACKBONE, "begins with")
    count = sum(map(len, categories.values())) + recipe.looks * PER_LOOK
    work = partial(train_registration, backbone, categories, output, recipe, overwrite=overwrite)
    _work(work, count, given, strict, f"regad --learned {output}")


def _work(
    work: Callable[..., Path],
    count: int,
    given: dict[str, Any],
    strict: bool,
    use: str,
) -> None:
    """Do a training on so many images, and say how ``fit`` takes what it wrote."""
    with Unreadable(strict) as unreadable, progress_bar(count) as advance:
        told: dict[str, Any] = {"on_error": unreadable, "progress": advance, "tell": say}
        output = work(device=given.get("device") or "auto", **told)
        say(f"wrote {output}")
        typer.echo(f"Use it with: offnominal fit --method {use} -o MODEL")


def _network(given: dict[str, Any], papers: str, told: str) -> "Backbone":
    """The backbone that options name, or the paper's, or the best on this machine."""
    from offnominal.backbones import load_backbone
    from offnominal.backbones.auto import choose_backbone

    name, weights = given.get("backbone"), given.get("weights")
    if name in (None, "auto") and weights is None:
        name, note = choose_backbone(papers)
        say(f"{told} {name}" + (f"; {note}" if note else ""))
    return load_backbone(name, weights, given.get("layers"))


def _other_options(method: str) -> list[Option]:
    """The options of what is no prompt and no layer."""
    from offnominal.detectors.backboned import BackboneDetector

    if method == POINT_TEACHER:
        from offnominal.detectors.teacher_student.point_teacher import PointTeacherRecipe

        return options_of(PointTeacherRecipe, "Training")
    network, panel = {"backbone", "weights", "device"}, "What it begins with"
    if method == REGAD:
        from offnominal.detectors.meta.registration import RegistrationRecipe

        training = options_of(RegistrationRecipe, "Training")
    else:
        from offnominal.detectors.teacher_student.teacher import TeacherRecipe

        training = options_of(TeacherRecipe, "Training")
        network, panel = {*network, "layers"}, "Who teaches"
    found = options_of(BackboneDetector, panel)
    return [*training, *(option for option in found if option.name in network)]


def train_options(args: list[str]) -> MethodOptions:
    """The options of the method that a command line names: its own, the recipe's, the prompts'."""
    words = [word for word in args if not word.startswith("-")]
    if args and not words:
        return "train", []
    method = next((word for word in words if word in _NAMES), None)
    if method in (TEACHER, POINT_TEACHER, REGAD):
        _check_paths(args)
        return method, _other_options(method)
    if method is None:
        told = meant(words[0], _NAMES) if words else ""
        raise OptionError(f"train {' '.join(words[:1])}: {told}choose one of {', '.join(_NAMES)}")
    _check_paths(args)
    from offnominal.detectors.registry import detector_class

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
