"""``offnominal train``: learn prompts or layers from a labelled data set, for use on any other."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from offnominal.cli import options
from offnominal.cli.datasets import Categories, Layout, MaskThreshold, open_from_options
from offnominal.cli.terminal import UNREADABLE, Unreadable, progress_bar, say, warn_untrained
from offnominal.cli.train_options import (
    Backbone,
    Batch,
    Cache,
    CacheLimit,
    ClassNames,
    Data,
    Epochs,
    Layers,
    LayersFile,
    LocalWeight,
    NoCache,
    Overwrite,
    Prompts,
    Rate,
    Resolution,
    Seed,
    Split,
)  # fmt: skip

app = typer.Typer(
    help="Train prompts or layers on a labelled data set, to be used on others without training.",
    no_args_is_help=True,
    add_completion=False,
)

_GB = 10**9


@app.command()
def anomalyclip(
    data: Data,
    output: Prompts,
    layout: Layout = "auto",
    categories: Categories = None,
    split: Split = "test",
    mask_threshold: MaskThreshold = None,
    backbone: Backbone = None,
    weights: options.Weights = None,
    layers: Layers = None,
    resolution: Resolution = None,
    epochs: Epochs = None,
    batch: Batch = None,
    lr: Rate = None,
    seed: Seed = None,
    local_weight: LocalWeight = None,
    length: Annotated[int, typer.Option(help="Learned vectors in each prompt.")] = 12,
    depth: Annotated[int, typer.Option(help="Text blocks that take learned tokens.")] = 9,
    deep_length: Annotated[int, typer.Option(help="Learned tokens of each later block.")] = 4,
    cache: Cache = None,
    cache_limit: CacheLimit = 20.0,
    no_cache: NoCache = False,
    overwrite: Overwrite = False,
    sets: options.Sets = None,
    device: options.Device = "auto",
    precision: options.Precision = None,
    strict: options.Strict = False,
) -> None:
    """Train AnomalyCLIP's prompts: one pair, normal and damaged, for any object.

    Ctrl-C or a signal stops it in good order; the same command goes on where it stopped.
    """
    _train(
        "anomalyclip",
        (data, layout, categories, mask_threshold, split),
        (backbone, weights, layers, resolution, device, precision, sets),
        {"epochs": epochs, "batch": batch, "lr": lr, "seed": seed, "local_weight": local_weight},
        None if no_cache else (cache, cache_limit),
        strict,
        output=output,
        overwrite=overwrite,
        settings={"length": length, "depth": depth, "deep_length": deep_length},
    )


@app.command()
def coop(
    data: Data,
    output: Prompts,
    layout: Layout = "auto",
    categories: Categories = None,
    split: Split = "test",
    mask_threshold: MaskThreshold = None,
    class_names: ClassNames = None,
    backbone: Backbone = None,
    weights: options.Weights = None,
    layers: Layers = None,
    resolution: Resolution = None,
    epochs: Epochs = None,
    batch: Batch = None,
    lr: Rate = None,
    seed: Seed = None,
    local_weight: LocalWeight = None,
    length: Annotated[int, typer.Option(help="Learned vectors of the context.")] = 16,
    position: Annotated[
        Literal["end", "middle", "front"], typer.Option(help="Where the class name stands.")
    ] = "end",
    specific: Annotated[
        bool, typer.Option("--specific", help="A context each for normal and anomalous.")
    ] = False,
    start_from: Annotated[
        str | None,
        typer.Option(
            help="Words to begin with, as 'a photo of a' with --length 4.", show_default="chance"
        ),
    ] = None,
    cache: Cache = None,
    cache_limit: CacheLimit = 20.0,
    no_cache: NoCache = False,
    overwrite: Overwrite = False,
    sets: options.Sets = None,
    device: options.Device = "auto",
    precision: options.Precision = None,
    strict: options.Strict = False,
) -> None:
    """Train CoOp's context for the class names 'normal NAME' and 'anomalous NAME'.

    Ctrl-C or a signal stops it in good order; the same command goes on where it stopped.
    """
    _train(
        "coop",
        (data, layout, categories, mask_threshold, split),
        (backbone, weights, layers, resolution, device, precision, sets),
        {"epochs": epochs, "batch": batch, "lr": lr, "seed": seed, "local_weight": local_weight},
        None if no_cache else (cache, cache_limit),
        strict,
        class_names,
        output=output,
        overwrite=overwrite,
        settings={
            "length": length, "position": position, "specific": specific, "start_from": start_from,
        },
    )  # fmt: skip


@app.command()
def april_gan(
    data: Data,
    output: LayersFile,
    layout: Layout = "auto",
    categories: Categories = None,
    split: Split = "test",
    mask_threshold: MaskThreshold = None,
    class_names: ClassNames = None,
    backbone: Backbone = None,
    weights: options.Weights = None,
    layers: Layers = None,
    resolution: Resolution = None,
    epochs: Epochs = None,
    batch: Batch = None,
    lr: Rate = None,
    seed: Seed = None,
    mosaic: Annotated[
        float | None,
        typer.Option(
            help="Share of images that give way to 2 x 2 mosaics of others; the authors' for "
            "MVTec AD is 0.2, with --epochs 3.",
            show_default="0",
        ),
    ] = None,
    cache: Cache = None,
    cache_limit: CacheLimit = 20.0,
    no_cache: NoCache = False,
    overwrite: Overwrite = False,
    sets: options.Sets = None,
    device: options.Device = "auto",
    precision: options.Precision = None,
    strict: options.Strict = False,
) -> None:
    """Train APRIL-GAN's linear layers, which bring patch tokens to CLIP's texts.

    Ctrl-C or a signal stops it in good order; the same command goes on where it stopped.
    """
    _train(
        "april-gan",
        (data, layout, categories, mask_threshold, split),
        (backbone, weights, layers, resolution, device, precision, sets),
        {"epochs": epochs, "batch": batch, "lr": lr, "seed": seed, "mosaic": mosaic},
        None if no_cache else (cache, cache_limit),
        strict,
        class_names,
        output=output,
        overwrite=overwrite,
    )


def _train(
    method: str,
    data: tuple[Path, str, str | None, int | None, Literal["test", "train", "all"]],
    given: tuple[Any, ...],
    recipe: dict[str, Any],
    caching: tuple[Path | None, float] | None,
    strict: bool,
    class_names: Path | None = None,
    **more: Any,
) -> None:
    from dataclasses import replace

    from offnominal.benchmark.features import FeatureCache, default_cache
    from offnominal.detectors.language.learned import LearnedDetector
    from offnominal.detectors.language.training.learners import TRAINABLE
    from offnominal.detectors.language.training.samples import choose_samples
    from offnominal.language.names import read_class_names
    from offnominal.train import train

    root, layout, categories, mask_threshold, split = data
    of_detector = ("backbone", "weights", "layers", "resolution", "device", "precision")
    options_given = dict(zip(of_detector, given[:-1], strict=True))
    detector = options.build_detector(method, options_given, given[-1])
    assert isinstance(detector, LearnedDetector)
    own = {name: value for name, value in recipe.items() if value is not None}
    settings = replace(TRAINABLE[method].recipe, **own)
    dataset = open_from_options(
        root, layout, categories, None, None, None, None, 0.5, mask_threshold=mask_threshold
    )
    advice = TRAINABLE[method].learner.else_masks
    masks = settings.local_weight > 0
    images = choose_samples(dataset.samples, split, masks, root, advice).samples
    more["class_names"] = read_class_names(class_names) if class_names else None
    if caching:
        more["cache"] = FeatureCache(caching[0] or default_cache(), int(caching[1] * _GB))
    unreadable = Unreadable(strict)
    try:
        with progress_bar(len(images) * settings.epochs) as advance:
            outcome = train(
                detector, dataset, recipe=settings, split=split, on_error=unreadable,
                progress=advance, tell=say, **more,
            )  # fmt: skip
    except (KeyboardInterrupt, SystemExit):
        say(f"stopped; the same command goes on with {more['output']}")
        raise
    files = outcome.files
    for path in (files.losses, files.page, files.learned):
        if path.exists():
            say(f"wrote {path}")
    warn_untrained(detector)
    [option] = detector.file_options
    typer.echo(
        f"Use them with: offnominal fit --method {method} --set {option}={files.learned} -o MODEL"
    )
    unreadable.report()
    if unreadable.errors:
        raise typer.Exit(UNREADABLE)
