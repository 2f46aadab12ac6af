"""``offnominal backbones``: what there is, what is on this machine, and fetching ahead of time."""

import os
from pathlib import Path
from typing import Annotated

import typer

from offnominal.backbones import OPEN_CLIP
from offnominal.backbones.catalogue import CATALOGUE, CLIP_TAGS, closest
from offnominal.cli.terminal import console, say, table
from offnominal.errors import BackboneError

app = typer.Typer(
    help="List backbones, or fetch their weights ahead of time.", add_completion=False
)


@app.callback(invoke_without_command=True)
def backbones(context: typer.Context) -> None:
    """List the backbones that have a short name."""
    if context.invoked_subcommand is not None:
        return
    from offnominal.backbones.weights import weights_here

    numbers = ("million", "dim", "stride", "resolution")
    rows = []
    for each in CATALOGUE.values():
        size = f"{each.parameters:g}" if each.timm else "-"
        shape = map(str, (each.dim, each.stride, each.resolution))
        missing = "to install" if each.package else "to fetch" if each.timm else "none needed"
        where = "here" if each.timm and weights_here(each) else missing
        rows.append((each.name, size, *shape, each.licence, where, each.about))
    headings = ("name", *numbers, "licence", "weights", "what it is")
    console(140).print(table(headings, rows, numbers))
    if is_offline():
        say("HF_HUB_OFFLINE is set: nothing is fetched.")
    say("Any other timm network with patch tokens or feature maps serves too, by its timm name.")
    names = ", ".join(OPEN_CLIP + name for name in CLIP_TAGS)
    say(f"CLIP with its text tower, for methods that read: {names}.")


@app.command()
def pull(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="Short or timm names.")],
) -> None:
    """Fetch weights ahead of time, for a station without a network."""
    for name in names:
        if name in CATALOGUE and not CATALOGUE[name].timm:
            say(f"{name}: needs no weights")
            continue
        path = _fetched(name)
        say(f"{name}: {path} ({path.stat().st_size / 2**20:.0f} MiB)")


def _fetched(name: str) -> Path:
    """The file of a backbone's weights, from this machine or the hub."""
    if name.startswith(OPEN_CLIP):
        from offnominal.backbones.clip_files import weights_file

        return weights_file(name)
    from offnominal.backbones.timm import weights_file as file_of

    if name not in CATALOGUE and "_" not in name:
        raise BackboneError(f"unknown backbone {name!r}: {closest(name)}")
    return file_of(name)


def is_offline() -> bool:
    """Whether the hub's client was told to fetch nothing."""
    return os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0")
