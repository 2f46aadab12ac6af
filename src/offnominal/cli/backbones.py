"""``offnominal backbones``: what there is, what is on this machine, and fetching ahead of time."""

import os
from typing import Annotated

import typer

from offnominal.backbones import OPEN_CLIP
from offnominal.backbones.catalogue import CATALOGUE, CLIP_TAGS, Entry, closest
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
    numbers = ("million", "dim", "stride", "resolution")
    rows = [
        (
            entry.name,
            f"{entry.parameters:g}" if entry.timm else "-",
            *map(str, (entry.dim, entry.stride, entry.resolution)),
            entry.licence,
            _where(entry),
            entry.about,
        )
        for entry in CATALOGUE.values()
    ]
    headings = ("name", *numbers, "licence", "weights", "what it is")
    console(140).print(table(headings, rows, numbers))
    if _offline():
        say("HF_HUB_OFFLINE is set: nothing is fetched.")
    say("Any other timm network with patch tokens or feature maps serves too, by its timm name.")
    names = ", ".join(OPEN_CLIP + name for name in CLIP_TAGS)
    say(f"CLIP with its text tower, for methods that read: {names}.")


@app.command()
def pull(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="Short or timm names.")],
) -> None:
    """Fetch weights ahead of time, for a station without a network."""
    from offnominal.backbones.timm import hub_file
    from offnominal.backbones.weights import cached_file, download

    for name in names:
        if name.startswith(OPEN_CLIP):
            from offnominal.backbones.clip_files import weights_file

            path = weights_file(name)
            say(f"{name}: {path} ({path.stat().st_size / 2**20:.0f} MiB)")
            continue
        entry = CATALOGUE.get(name)
        if entry is not None and not entry.timm:
            say(f"{name}: needs no weights")
            continue
        if entry is None and "_" not in name:
            raise BackboneError(f"unknown backbone {name!r}: {closest(name)}")
        repository, filename = hub_file(entry.timm if entry else name)
        there = cached_file(repository, filename)
        path = there or download(repository, filename, name)
        state = "is on this machine" if there else "fetched"
        say(f"{name}: {state}: {path} ({path.stat().st_size / 2**20:.0f} MiB)")


def _where(entry: Entry) -> str:
    """Whether the weights are on this machine, without importing timm."""
    if not entry.timm:
        return "none needed"
    from offnominal.backbones.weights import cached_file

    return "here" if cached_file(*entry.hub) else "to fetch"


def _offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0")
