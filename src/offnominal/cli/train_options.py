"""Options that the forms of ``offnominal train`` share, declared once.

Their defaults are None where those of a method's recipe hold.
"""

from pathlib import Path
from typing import Annotated, Literal

import typer

Data = Annotated[Path, typer.Option("--data", help="Folder of a labelled data set, or a manifest.")]
Prompts = Annotated[
    Path, typer.Option("-o", "--output", help="File of prompts to write, as prompts.safetensors.")
]
LayersFile = Annotated[
    Path, typer.Option("-o", "--output", help="File of layers to write, as layers.safetensors.")
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
ClassNames = Annotated[
    Path | None,
    typer.Option(
        "--class-names",
        help="JSON or CSV of what the parts of each category are called.",
        show_default="the categories' names",
    ),
]
Layers = Annotated[
    str | None,
    typer.Option(
        "--layers",
        help="Blocks whose patches make the maps, from 0.",
        show_default="the last; for april-gan four, at each quarter",
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
