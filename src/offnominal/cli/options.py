"""Arguments and options that several commands take, declared once."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from offnominal.errors import OptionError

if TYPE_CHECKING:
    from offnominal.backbones.cache import FeatureCache
    from offnominal.detectors.base import Detector

Model = Annotated[Path, typer.Argument(help="Model file made by `offnominal fit`.")]
Output = Annotated[
    Path | None,
    typer.Option("-o", "--output", help="Write here.", show_default="over the model file"),
]
Weights = Annotated[
    str | None,
    typer.Option(
        "--weights",
        help="Local weights: safetensors or a .pth state dict, in timm's naming or the original.",
        show_default="where they lay at the fit",
    ),
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")]
Strict = Annotated[bool, typer.Option("--strict", help="Stop at the first unreadable image.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Sets = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        help="Another way to give an option of the method, as coreset=0.01; repeatable.",
        show_default=False,
    ),
]
Cache = Annotated[
    Path | None,
    typer.Option(
        "--cache",
        help="Where features are kept, for epochs, cells and runs to share.",
        show_default="in the user's folder of caches",
    ),
]
CacheLimit = Annotated[float, typer.Option("--cache-limit", help="What they may take, in GB.")]
NoCache = Annotated[bool, typer.Option("--no-cache", help="Compute features anew every time.")]


def open_cache(folder: Path | None, gigabytes: float) -> "FeatureCache":
    """The cache of features that the options name."""
    from offnominal.backbones.cache import FeatureCache, default_cache

    return FeatureCache(folder or default_cache(), int(gigabytes * 10**9))


def build_detector(method: str, given: dict[str, Any], sets: list[str] | None = None) -> "Detector":
    """Construct a method with the options that were given; the others keep their defaults.

    Raises
    ------
    OptionError
        If the method does not know an option that was given, or one is given twice.
    """
    from offnominal.benchmark.grid import parse_sets
    from offnominal.detectors import detector_class

    chosen = {name: value for name, value in given.items() if value is not None}
    for name, values in parse_sets(sets or [], [method]).items():
        if len(values) > 1 or name in chosen:
            raise OptionError(f"--set {name}: given more than once; give one value")
        chosen[name] = values[0]
    if "weights" in chosen:
        chosen["weights"] = _absolute(chosen["weights"])
    return detector_class(method)(**chosen)


def _absolute(files: str) -> str:
    """A file, or several with commas between: the model file remembers where they lie."""
    parts = [files] if Path(files).exists() else files.split(",")
    return ",".join(str(Path(part.strip()).absolute()) for part in parts)
