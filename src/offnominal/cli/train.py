"""``offnominal train``: learn prompts from a labelled data set, for use on any other."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from offnominal.cli import options
from offnominal.cli.datasets import Categories, Layout, MaskThreshold, open_from_options
from offnominal.cli.terminal import UNREADABLE, Unreadable, progress_bar, say

app = typer.Typer(
    help="Train prompts on a labelled data set, to be used on others without training.",
    no_args_is_help=True,
    add_completion=False,
)

_GB = 10**9

Data = Annotated[Path, typer.Option("--data", help="Folder of a labelled data set, or a manifest.")]
Output = Annotated[
    Path, typer.Option("-o", "--output", help="File of prompts to write, as prompts.safetensors.")
]
Split = Annotated[
    Literal["test", "train", "all"],
    typer.Option("--split", help="Images to train on; the test split has the defects."),
]
Backbone = Annotated[
    str | None,
    typer.Option(
        "--backbone",
        help="A CLIP model by open_clip's names.",
        show_default="what the weights file says of itself, else open_clip:ViT-L-14-336",
    ),
]
Layers = Annotated[
    str | None,
    typer.Option(
        "--layers", help="Blocks whose patches make the maps, from 0.", show_default="the last"
    ),
]
Resolution = Annotated[
    int | None,
    typer.Option(
        "--resolution",
        help="Pixels that images are squashed to, in both directions.",
        show_default="518 for a 336-pixel model, else the model's own",
    ),
]
Epochs = Annotated[
    int | None,
    typer.Option("--epochs", help="Rounds through all images.", show_default="15; 50 for coop"),
]
Batch = Annotated[
    int | None, typer.Option("--batch", help="Images a step.", show_default="8; 32 for coop")
]
Rate = Annotated[
    float | None,
    typer.Option("--lr", help="Learning rate.", show_default="0.001; 0.002 for coop"),
]
Seed = Annotated[
    int | None,
    typer.Option("--seed", help="Of first values and order.", show_default="111; 1 for coop"),
]
LocalWeight = Annotated[
    float | None,
    typer.Option(
        "--local-weight",
        help="Weight of the maps' loss; 0: images alone, no masks needed.",
        show_default="4; 0 for coop",
    ),
]
Cache = Annotated[
    Path | None,
    typer.Option(
        "--cache",
        help="Where features are kept between epochs and runs.",
        show_default="in the user's folder of caches",
    ),
]
CacheLimit = Annotated[float, typer.Option("--cache-limit", help="What they may take, in GB.")]
NoCache = Annotated[bool, typer.Option("--no-cache", help="Compute features anew in every epoch.")]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Begin anew where files of another training are.")
]


@app.command()
def anomalyclip(
    data: Data,
    output: Output,
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
        (epochs, batch, lr, seed, local_weight),
        None if no_cache else (cache, cache_limit),
        strict,
        output=output,
        overwrite=overwrite,
        learner={"length": length, "depth": depth, "deep_length": deep_length},
    )


@app.command()
def coop(
    data: Data,
    output: Output,
    layout: Layout = "auto",
    categories: Categories = None,
    split: Split = "test",
    mask_threshold: MaskThreshold = None,
    class_names: Annotated[
        Path | None,
        typer.Option(
            help="JSON or CSV of what the parts of each category are called.",
            show_default="the categories' names",
        ),
    ] = None,
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
        (epochs, batch, lr, seed, local_weight),
        None if no_cache else (cache, cache_limit),
        strict,
        class_names,
        output=output,
        overwrite=overwrite,
        learner={"length": length, "position": position, "specific": specific},
        start_from=start_from,
    )


def _train(
    method: str,
    data: tuple[Path, str, str | None, int | None, Literal["test", "train", "all"]],
    given: tuple[Any, ...],
    recipe: tuple[Any, ...],
    caching: tuple[Path | None, float] | None,
    strict: bool,
    class_names: Path | None = None,
    **more: Any,
) -> None:
    from dataclasses import replace

    from offnominal.benchmark.features import FeatureCache, default_cache
    from offnominal.detectors.prompted import PromptedDetector
    from offnominal.language.names import read_class_names
    from offnominal.training.recipe import RECIPES
    from offnominal.training.samples import choose_samples
    from offnominal.training.session import train

    root, layout, categories, mask_threshold, split = data
    of_detector = ("backbone", "weights", "layers", "resolution", "device", "precision")
    options_given = dict(zip(of_detector, given[:-1], strict=True))
    detector = options.build_detector(method, options_given, given[-1])
    assert isinstance(detector, PromptedDetector)
    of_recipe = ("epochs", "batch", "lr", "seed", "local_weight")
    named = zip(of_recipe, recipe, strict=True)
    settings = replace(RECIPES[method], **{k: v for k, v in named if v is not None})
    dataset = open_from_options(
        root, layout, categories, None, None, None, None, 0.5, mask_threshold=mask_threshold
    )
    images = choose_samples(dataset.samples, split, settings.local_weight > 0, root).samples
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
    for path in (files.losses, files.page, files.prompts):
        if path.exists():
            say(f"wrote {path}")
    typer.echo(
        f"Use them with: offnominal fit --method {method} --set prompts={files.prompts} -o MODEL"
    )
    unreadable.report()
    if unreadable.errors:
        raise typer.Exit(UNREADABLE)
