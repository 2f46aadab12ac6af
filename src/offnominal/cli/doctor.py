"""``offnominal doctor``: what is installed, which device, which weights, what is missing."""

import os
import platform
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from re import match

import typer

from offnominal._version import __version__


def doctor() -> None:
    """Say what is installed, which devices and weights there are, and what is missing."""
    typer.echo(
        f"offnominal {__version__}, Python {platform.python_version()}, {platform.platform()}"
    )
    missing = _packages()
    _devices()
    here = _weights()
    typer.echo("\nadvice")
    advice = [f"install {name}: pip install {name}" for name in missing]
    if not any(name.startswith("dinov2") for name in here):
        advice.append(
            "no DINOv2 weights on this machine: `offnominal backbones pull dinov2_vits14` while "
            "connected, or --weights FILE; `--backbone builtin` works without any, and is weaker"
        )
    for line in advice or ["nothing is missing"]:
        typer.echo(f"  {line}")


def _packages() -> list[str]:
    typer.echo("\npackages")
    missing = []
    for requirement in requires("offnominal") or []:
        if "extra ==" in requirement:
            continue
        found = match(r"[A-Za-z0-9_.-]+", requirement)
        name = found[0] if found else requirement
        try:
            typer.echo(f"  {name:<24}{version(name)}")
        except PackageNotFoundError:
            typer.echo(f"  {name:<24}MISSING")
            missing.append(name)
    return missing


def _devices() -> None:
    import torch

    typer.echo("\ndevices")
    typer.echo(f"  {'cpu':<24}{torch.get_num_threads()} threads, {_bf16()}")
    for index in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(index)
        typer.echo(f"  {f'cuda:{index}':<24}{card.name}, {card.total_memory / 2**30:.0f} GiB")
    if not torch.cuda.is_available():
        typer.echo(f"  {'cuda':<24}none (everything runs on the CPU)")


def _bf16() -> str:
    import torch

    fast = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return "bf16 in hardware" if fast else "no bf16 in hardware"


def _weights() -> list[str]:
    from huggingface_hub.constants import HF_HUB_CACHE

    from offnominal.backbones.catalogue import CATALOGUE
    from offnominal.backbones.weights import cached_file

    here = [e.name for e in CATALOGUE.values() if e.timm and cached_file(*e.hub)]
    offline = os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0")
    typer.echo("\nweights")
    typer.echo(
        f"  {'cache':<24}{Path(HF_HUB_CACHE)}{' (HF_HUB_OFFLINE is set)' if offline else ''}"
    )
    typer.echo(f"  {'here':<24}{', '.join(here) or 'none'}")
    typer.echo(f"  {'without weights':<24}builtin, builtin-aligned")
    return here
