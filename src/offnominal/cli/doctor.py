"""``offnominal doctor``: what is installed, which device, which weights, what is missing."""

import platform
import re
from collections import Counter, defaultdict
from contextlib import suppress
from pathlib import Path

import typer

from offnominal._version import __version__
from offnominal.cli.terminal import count

_NO_WEIGHTS = (
    "no DINOv2 weights on this machine, which usually find more: `offnominal backbones pull "
    "dinov2_vits14` while connected, or --weights FILE; without them {} is taken"
)
_LIGHT = "none without torch: exported models only"
# What each extra is for; one that is not here is for those who work on the library.
_EXTRAS = {
    "fit": "fits, trains, and opens models that were not exported",
    "openvino": "another engine, often the fastest on a CPU",
    "benchmark": "tables and figures of `evaluate -o`, `benchmark` and `report`",
    "chat": "asks chat models",
    "gpus": "trains on several graphics cards",
    "supervised": "segmentation, and what else learns from labelled defects with its decoders",
    "3d": "TIFF and PCD files of scans",
    "serve": "the station, a web page beside the line",
    "opcua": "the station's results over OPC UA",
    "postgresql": "the station's records in PostgreSQL",
}


def doctor() -> None:
    """Say what is installed, which devices and weights there are, and what is missing."""
    from offnominal.engines.machine import described

    needed = _needed()
    packages = _versions(needed.pop("", []))
    advice = [f"install {name}: pip install {name}" for name in packages if not packages[name]]
    extras = {}
    told: set[str] = set()  # an extra that is made of others lists what it adds to them
    for extra, about in _EXTRAS.items():
        found = _versions([name for name in needed.get(extra, []) if name not in told])
        told |= found.keys()
        if not found:
            continue
        lacking = [name for name in found if not found[name]]
        install = f"pip install 'offnominal[{extra}]'"
        if len(lacking) == len(found):
            extras[extra] = f"not installed; {about}: {install}"
            continue
        extras[extra] = ", ".join(f"{name} {which}" for name, which in found.items() if which)
        if lacking:
            extras[extra] += f"; without {', '.join(lacking)}"
            advice.append(f"the extra {extra} lacks {', '.join(lacking)}: {install}")
    engines = described() | _chosen()
    facts = {"packages": packages, "extras": extras, "devices": _devices(), "engines": engines}
    if facts["devices"].get("cuda") != _LIGHT:
        facts["weights"] = _weights(advice)
    python, system = platform.python_version(), platform.platform()
    typer.echo(f"offnominal {__version__}, Python {python}, {system}")
    for title, each in facts.items():
        typer.echo(f"\n{title}")
        for name, words in each.items():
            typer.echo(f"  {name:<33}{words or 'MISSING'}")
    typer.echo("\nadvice")
    for line in advice or ["nothing is missing"]:
        typer.echo(f"  {line}")


def _needed() -> dict[str, list[str]]:
    """Packages that this one needs: those that it always does under an empty name, then extras'."""
    from importlib.metadata import requires

    found = defaultdict(list)
    for each in requires("offnominal") or []:
        name = re.split(r"[^\w.-]", each)[0]
        extra = re.search(r"extra == ['\"]([\w-]+)['\"]", each)
        if name != "offnominal":  # an extra that is made of others
            found[extra[1] if extra else ""].append(name)
    return found


def _versions(names: list[str]) -> dict[str, str]:
    """Versions of packages; empty for one that is missing."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = ""
    return found


def _chosen() -> dict[str, str]:
    """Which engines ``auto`` found fastest on this machine as it is, and how often."""
    import json

    from offnominal.engines.cache import EngineCache
    from offnominal.engines.machine import this_machine

    found: Counter[str] = Counter()
    here = this_machine()
    for one in (EngineCache().folder / "choices").glob("*.json"):
        with suppress(OSError, ValueError, TypeError, KeyError):
            told = json.loads(one.read_bytes())
            found[str(told["engine"])] += told["machine"] == here
    known = [f"{name} for {count(times, 'network')}" for name, times in found.items() if times]
    return {"fastest here": ", ".join(sorted(known)) or "not tried yet"}


def _weights(advice: list[str]) -> dict[str, str]:
    """Networks whose weights are here; what would be better goes to the advice."""
    from huggingface_hub.constants import HF_HUB_CACHE

    from offnominal.backbones.auto import packaged_backbone
    from offnominal.backbones.catalogue import CATALOGUE, DEFAULT
    from offnominal.backbones.hub import is_offline, weights_here

    here = [e.name for e in CATALOGUE.values() if e.timm and weights_here(e)]
    if not any(name.startswith("dinov2") for name in here):
        advice.append(_NO_WEIGHTS.format(packaged_backbone(DEFAULT).name))
    return {
        "cache": f"{Path(HF_HUB_CACHE)}{' (HF_HUB_OFFLINE is set)' if is_offline() else ''}",
        "here": ", ".join(here) or "none",
        "without weights": "builtin, builtin-aligned",
    }


def _devices() -> dict[str, str]:
    """The processor, and the cards that torch would use."""
    from offnominal.engines.base import threads
    from offnominal.engines.machine import cpu_name, instructions

    told = ", ".join(instructions()) or "none of the instructions that engines ask for"
    found = {"cpu": f"{cpu_name()}, {threads()} threads, {told}"}
    try:
        import torch
    except ModuleNotFoundError:
        return found | {"cuda": _LIGHT}
    for index in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(index)
        found[f"cuda:{index}"] = f"{card.name}, {card.total_memory / 2**30:.0f} GiB"
    if not torch.cuda.is_available():
        found["cuda"] = "none (everything runs on the CPU)"
    return found
