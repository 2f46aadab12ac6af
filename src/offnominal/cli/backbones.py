"""``offnominal backbones``: what there is, what is on this machine, and fetching ahead of time."""

from pathlib import Path
from typing import Annotated

import typer

from offnominal.backbones import OPEN_CLIP
from offnominal.backbones.catalogue import CATALOGUE, CLIP_TAGS
from offnominal.cli.command import Group, add_command
from offnominal.cli.terminal import console, say, table

app = typer.Typer(cls=Group, help="List backbones, or fetch their weights ahead of time.")


@app.callback(invoke_without_command=True)
def backbones(context: typer.Context) -> None:
    """List the backbones that have a short name."""
    if context.invoked_subcommand is not None:
        return
    from offnominal.backbones.hub import is_offline, weights_here

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


def pull(names: Annotated[list[str], "NAME..."]) -> None:
    """Fetch weights ahead of time, for a station without a network.

    Parameters
    ----------
    names : list of str
        Short or timm names.
    """
    from offnominal.backbones.names import check_name

    for name in names:
        check_name(name)
    for name in names:
        if name in CATALOGUE and not CATALOGUE[name].timm:
            say(f"{name}: needs no weights")
            continue
        path = _fetched(name)
        say(f"{name}: {path} ({path.stat().st_size / 2**20:.0f} MiB)")


add_command(app, pull)


def _fetched(name: str) -> Path:
    """The file of a backbone's weights, from this machine or the hub."""
    from offnominal.backbones.hub import PULLING, have

    if (found := have(name, PULLING)) is not None:
        return found
    if name.startswith(OPEN_CLIP):
        from offnominal.backbones.clip_files import weights_file

        return weights_file(name, PULLING)
    from offnominal.backbones.timm import weights_file as file_of

    return file_of(name, PULLING)
