"""Arguments and options that several commands take, declared once."""

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from filelock import FileLock, Timeout

from offnominal.cli.terminal import waiting
from offnominal.errors import OptionError
from offnominal.paths import IMAGE_SUFFIXES
from offnominal.text import printable

if TYPE_CHECKING:
    from offnominal.backbones.cache import FeatureCache
    from offnominal.calibration import FalseReject
    from offnominal.detectors.base import Detector


def _option(flags: str, text: str, default: bool | str = True, metavar: str | None = None) -> Any:
    return typer.Option(*flags.split(), help=text, show_default=default, metavar=metavar)


_WEIGHTS = "Local weights: safetensors or a .pth state dict, in timm's naming or the original."
_SETS = "Another way to give an option of the method, as coreset=0.01; repeatable."
_ENDPOINT = "Where a chat model's pictures go; a model file alone does not decide that."
_KEY = "Environment variable that holds the endpoint's key; empty for no key."
_WHEN = "Time to note in the history: now, or as 2026-03-01T09:30."
_CACHE = "Where features are kept, for epochs, cells and runs to share."

Model = Annotated[Path, typer.Argument(help="Model file made by `offnominal fit`.")]
Output = Annotated[Path | None, _option("-o --output", "Write here.", "over the model file")]
Weights = Annotated[str | None, _option("--weights", _WEIGHTS, "where they lay at the fit", "FILE")]
Device = Annotated[str, _option("--device", "auto, cpu, cuda or cuda:N.")]
Endpoint = Annotated[str | None, _option("--endpoint", _ENDPOINT, False, "URL")]
KeyVariable = Annotated[str | None, _option("--key-variable", _KEY, False, "NAME")]
Strict = Annotated[bool, _option("--strict", "Stop at the first unreadable image.")]
Json = Annotated[bool, _option("--json", "Print JSON.")]
Sets = Annotated[list[str] | None, _option("--set", _SETS, False, "NAME=VALUE")]
When = Annotated[str | None, _option("--when", _WHEN, "none: the same steps give the same file")]
Cache = Annotated[Path | None, _option("--cache", _CACHE, "in the user's folder of caches")]
CacheLimit = Annotated[float, _option("--cache-limit", "What they may take, in GB.")]
NoCache = Annotated[bool, _option("--no-cache", "Compute features anew every time.")]


def check_folder(output: Path) -> None:
    """Raise an :class:`OptionError` if a file for an output cannot be made where it is to be."""
    if not output.absolute().parent.is_dir():
        raise OptionError(f"-o {output}: the folder {output.parent} does not exist; create it")
    if output.is_dir():
        raise OptionError(f"-o {output}: is a folder; name a file in it, as {output / 'part.offn'}")
    real = Path(os.path.realpath(output))
    if (real.exists() and not real.is_file()) or real.parts[1:2] in (("dev",), ("proc",)):
        raise OptionError(f"-o {output}: is no regular file; name another")
    if output.absolute().parts[1:2] in (("dev",), ("proc",)):
        raise OptionError(f"-o {output}: is a device; name a file")
    try:
        with tempfile.TemporaryFile(dir=output.absolute().parent):
            pass
    except OSError as error:
        reason = error.strerror or error
        raise OptionError(f"-o {output}: cannot be written there ({reason})") from error


def check_model(output: Path) -> None:
    """:func:`check_folder`, and that a file that is there is a model, not something else."""
    from offnominal.modelfile import is_model

    check_folder(output)
    if output.suffix.lower() in IMAGE_SUFFIXES:
        raise OptionError(f"-o {output}: is a picture's name; end a model's with .offn")
    if printable(output) != str(output):
        raise OptionError(f"-o {printable(output)}: cannot be a model's name; use plain characters")
    if output.exists() and output.stat().st_size and not is_model(output):
        raise OptionError(
            f"-o {output}: is there, and no model of Offnominal; name another file, or remove it"
        )


def read_rate(words: str) -> "FalseReject":
    """``auto``, or a rate of good parts that may be rejected."""
    from offnominal.calibration import check_rate

    try:
        rate: FalseReject = "auto" if words == "auto" else float(words)
    except ValueError as error:
        raise OptionError(
            f"--false-reject {words}: give auto, or a rate between 0 and 1, as 0.01"
        ) from error
    check_rate(rate)
    return rate


@contextmanager
def changing(model: Path) -> Iterator[None]:
    """Keep a model file to one command from when it is read until it is written.

    Raises
    ------
    OptionError
        If another command is changing it.
    """
    real = Path(os.path.realpath(model))
    digest = hashlib.sha256(os.fsencode(real.name)).hexdigest()[:16]
    lock = FileLock(real.with_name(f".offnominal-{digest}.lock"))
    told = f"{model}: another command is changing it; run this one again when that has ended"
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise OptionError(told) from error
    except OSError as error:
        reason = error.strerror or error
        raise OptionError(f"{model}: cannot be written there ({reason})") from error
    try:
        if not Path(lock.lock_file).exists():  # taken away by who held it as this one opened it
            raise OptionError(told)
        yield
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


def check_picture(output: Path) -> None:
    """Raise an :class:`OptionError` if a file is there that Offnominal did not draw."""
    from offnominal.paths import is_own

    if output.exists() and not is_own(output):
        raise OptionError(
            f"{output}: is there, and not drawn by Offnominal, which writes a picture under this "
            "name; name another output, or move it"
        )


def open_cache(folder: Path | None, gigabytes: float) -> "FeatureCache":
    """The cache of features that the options name."""
    from offnominal.backbones.cache import FeatureCache, default_cache

    return FeatureCache(folder or default_cache(), int(gigabytes * 10**9))


def open_model(
    model: Path | str,
    weights: str | None,
    device: str,
    endpoint: str | None = None,
    key_variable: str | None = None,
) -> "Detector":
    """:func:`offnominal.load`, which takes its time where torch is still to be imported."""
    with waiting(f"opening {printable(model)}"):
        from offnominal.detectors.registry import load

        return load(model, weights, device, endpoint, key_variable)


def build_detector(method: str, given: dict[str, Any], sets: list[str] | None = None) -> "Detector":
    """Construct a method with the options that were given; the others keep their defaults."""
    from offnominal.benchmark.grid import parse_sets
    from offnominal.detectors.registry import detector_class

    chosen = {name: value for name, value in given.items() if value is not None}
    for name, values in parse_sets(sets or [], [method]).items():
        if len(values) > 1 or name in chosen:
            raise OptionError(f"--set {name}: given more than once; give one value")
        chosen[name] = values[0]
    if "weights" in chosen:
        chosen["weights"] = _absolute(chosen["weights"])
    with waiting(f"preparing {printable(method)}"):
        return detector_class(method)(**chosen)


def _absolute(files: str) -> str:
    """A file, or several with commas between: the model file remembers where they lie."""
    parts = [files] if Path(files).exists() else files.split(",")
    return ",".join(str(Path(part.strip()).absolute()) for part in parts)
