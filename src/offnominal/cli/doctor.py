"""``offnominal doctor``: what is installed, which device, which weights, what is missing."""

import platform
import re
from pathlib import Path

import typer

from offnominal._version import __version__
from offnominal.cli.backbones import is_offline

_NO_WEIGHTS = (
    "no DINOv2 weights on this machine, which usually find more: `offnominal backbones pull "
    "dinov2_vits14` while connected, or --weights FILE; without them {} is taken"
)


def doctor() -> None:
    """Say what is installed, which devices and weights there are, and what is missing."""
    from huggingface_hub.constants import HF_HUB_CACHE

    from offnominal.backbones.auto import packaged_backbone
    from offnominal.backbones.catalogue import CATALOGUE, DEFAULT
    from offnominal.backbones.weights import weights_here

    packages = _packages()
    here = [e.name for e in CATALOGUE.values() if e.timm and weights_here(e)]
    advice = [f"install {name}: pip install {name}" for name in packages if not packages[name]]
    if not any(name.startswith("dinov2") for name in here):
        advice.append(_NO_WEIGHTS.format(packaged_backbone(DEFAULT).name))
    weights = {
        "cache": f"{Path(HF_HUB_CACHE)}{' (HF_HUB_OFFLINE is set)' if is_offline() else ''}",
        "here": ", ".join(here) or "none",
        "without weights": "builtin, builtin-aligned",
    }
    python, system = platform.python_version(), platform.platform()
    typer.echo(f"offnominal {__version__}, Python {python}, {system}")
    for title, facts in (("packages", packages), ("devices", _devices()), ("weights", weights)):
        typer.echo(f"\n{title}")
        for name, words in facts.items():
            typer.echo(f"  {name:<33}{words or 'MISSING'}")
    typer.echo("\nadvice")
    for line in advice or ["nothing is missing"]:
        typer.echo(f"  {line}")


def _packages() -> dict[str, str]:
    """Versions of the packages that this one needs; none for one that is missing."""
    from importlib.metadata import PackageNotFoundError, requires, version

    needed = [each for each in requires("offnominal") or [] if "extra ==" not in each]
    found = {}
    for name in (re.split(r"[^\w.-]", each)[0] for each in needed):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = ""
    return found


def _devices() -> dict[str, str]:
    import torch

    fast = "bf16" if torch.ops.mkldnn._is_mkldnn_bf16_supported() else "no bf16"
    found = {"cpu": f"{torch.get_num_threads()} threads, {fast} in hardware"}
    for index in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(index)
        found[f"cuda:{index}"] = f"{card.name}, {card.total_memory / 2**30:.0f} GiB"
    if not torch.cuda.is_available():
        found["cuda"] = "none (everything runs on the CPU)"
    return found
