"""Arguments and options that several commands take, declared once."""

import hashlib
import math
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from offnominal.cli.terminal import waiting
from offnominal.errors import OptionError
from offnominal.filekinds import is_model
from offnominal.paths import IMAGE_SUFFIXES
from offnominal.text import digits, printable

if TYPE_CHECKING:
    from offnominal.backbones.cache import FeatureCache
    from offnominal.checks import FalseReject
    from offnominal.detectors.base import Detector


def _option(flags: str, text: str, default: bool | str = True, metavar: str | None = None) -> Any:
    return typer.Option(*flags.split(), help=text, show_default=default, metavar=metavar)


_WEIGHTS = "Local weights: safetensors or a .pth state dict, in timm's naming or the original."
_SETS = "Another way to give an option of the method, as coreset=0.01; repeatable."
_ENDPOINT = "Where a chat model's pictures go; a model file alone does not decide that."
_KEY = "Environment variable that holds the endpoint's key; empty for no key."
_WHEN = (
    "Time to note in the history: now, none (the same steps then give the same file), or as "
    "2026-03-01T09:30."
)
_CACHE = "Where features are kept, for epochs, cells and runs to share."

Model = Annotated[Path, typer.Argument(help="Model file made by `offnominal fit`.")]
Output = Annotated[Path | None, _option("-o --output", "Write here.", "over the model file")]
Weights = Annotated[str | None, _option("--weights", _WEIGHTS, "where they lay at the fit", "FILE")]
Device = Annotated[str, _option("--device", "auto, cpu, cuda or cuda:N.")]
Engine = Annotated[str, _option("--engine", "auto, torch, onnxruntime or openvino.")]
Endpoint = Annotated[str | None, _option("--endpoint", _ENDPOINT, False, "URL")]
KeyVariable = Annotated[str | None, _option("--key-variable", _KEY, False, "NAME")]
Strict = Annotated[bool, _option("--strict", "Stop at the first unreadable image.")]
Json = Annotated[bool, _option("--json", "Print JSON.")]
Sets = Annotated[list[str] | None, _option("--set", _SETS, False, "NAME=VALUE")]
When = Annotated[str | None, _option("--when", _WHEN, "SOURCE_DATE_EPOCH, or now")]
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


def check_no_url(output: Path) -> None:
    """Raise an :class:`OptionError` for a URL, of which a path has lost a slash already."""
    kind = output.parts[0] if output.parts else ""
    if len(kind) > 2 and kind.endswith(":") and not output.exists():
        raise OptionError(f"-o {output}: is a URL; give a path, on a disk that all machines share")


def check_model(output: Path) -> None:
    """:func:`check_folder`, and that a file that is there is a model, not something else."""
    check_no_url(output)
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
    from offnominal.checks import check_rate

    try:
        rate: FalseReject = "auto" if words == "auto" else float(words)
    except ValueError as error:
        raise OptionError(
            f"--false-reject {words}: give auto, or a rate between 0 and 1, as 0.01"
        ) from error
    check_rate(rate)
    return rate


def check_threshold(value: float) -> None:
    """Raise an :class:`OptionError` if a threshold is no finite number."""
    if not math.isfinite(value):
        raise OptionError(f"--threshold {value}: give a number")


def as_printed(value: float, detector: "Detector") -> float:
    """A threshold from the command line: the detector's own, to the bit, where it prints the same.

    What is printed is rounded in the eighth digit or so; given back it decides as it did.
    """
    own = None if len(detector.each_category()) > 1 else detector.threshold
    return own.value if own is not None and digits(own.value) == digits(value) else value


def threshold_in_words(detector: "Detector") -> str:
    """The threshold, or that of each category where the model tells them apart itself."""
    several = detector.each_category()
    if len(several) == 1:
        return str(several[0].threshold or "none")
    return "; ".join(f"{printable(one.category)}: {one.threshold or 'none'}" for one in several)


def read_when(words: str | None) -> datetime | None:
    """The time that ``--when`` names, and now where it is not given.

    ``SOURCE_DATE_EPOCH``, by convention the time that a reproducible build is made at, stands for
    now where it is set.
    """
    if words == "none":
        return None
    if words is None and (epoch := os.environ.get("SOURCE_DATE_EPOCH")):
        try:
            return datetime.fromtimestamp(int(epoch), UTC)
        except (ValueError, OverflowError, OSError) as error:
            told = "give whole seconds since 1970, or unset it"
            raise OptionError(f"SOURCE_DATE_EPOCH={epoch}: {told}") from error
    try:
        return datetime.now(UTC) if words in (None, "now") else datetime.fromisoformat(words)
    except ValueError as error:
        told = "give now, none, or a time as 2026-03-01T09:30"
        raise OptionError(f"--when {words}: {told}") from error


@contextmanager
def changing(model: Path) -> Iterator[None]:
    """Keep a model file to one command from when it is read until it is written.

    Raises
    ------
    OptionError
        If another command is changing it.
    """
    from filelock import FileLock, Timeout

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


def check_given(
    model: Path | str,
    others: Sequence[str] = (),
    command: str = "predict",
    weights: str | None = None,
    device: str | None = None,
    engine: str | None = None,
) -> None:
    """Tell mix-ups of a command that takes a model, and then perhaps images, before any work."""
    from offnominal.cli.mistakes import (
        check_device,
        check_engine,
        check_images_given,
        check_model_given,
        check_weights_given,
    )

    check_model_given(Path(model), others, command)
    if command != "forget":  # which takes names and digests
        # A file of opinions stands for the images that it names.
        named = command in ("add", "calibrate")
        listed = [one for one in others if one == "-" or (named and one.lower().endswith(".json"))]
        check_images_given([] if listed else others)
    check_weights_given(weights)
    check_device(device)
    check_engine(engine)


def open_model(
    model: Path | str,
    weights: str | None,
    device: str,
    endpoint: str | None = None,
    key_variable: str | None = None,
    engine: str = "auto",
) -> "Detector":
    """:func:`offnominal.load`, which takes its time where torch is still to be imported."""
    from offnominal.backbones.hub import have
    from offnominal.extras import check_there
    from offnominal.modelfile import read_header

    header = read_header(Path(model))
    if "export" not in header:
        check_there("torch", f"{model}: a model that was not exported")
    if not weights and "export" not in header:
        for name in _networks_to_fetch(header):
            have(name)
    with waiting(f"opening {printable(model)}"):
        from offnominal.detectors.registry import load

        return load(model, weights, device, endpoint, key_variable, engine)


def _networks_to_fetch(header: dict[str, Any]) -> list[str]:
    """The networks that a model file names without a file of their weights."""
    members = header.get("members")
    found = []
    parts = members if isinstance(members, list) else [header]
    for one in (part for part in parts if isinstance(part, dict)):
        # Whether the file is as it should be, those tell who open it.
        told, given = (one.get(part) for part in ("backbone", "options"))
        name = told.get("name") if isinstance(told, dict) else None
        of_file = isinstance(given, dict) and given.get("weights")
        found += [name] if isinstance(name, str) and not of_file else []
    return found


def derives(method: str, base: str) -> bool:
    """Whether a method's class has a base of some name, told without torch."""
    from offnominal.detectors.registry import light_class

    return any(each.__name__ == base for each in light_class(method).__mro__)


def chosen_options(
    method: str, given: dict[str, Any], sets: list[str] | None = None
) -> dict[str, Any]:
    """The options of a method that were given, in either way.

    They are checked as far as that takes no torch: names, ranges, files, and whether the weights
    are on this machine or can be fetched.
    """
    from offnominal.benchmark.grid import parse_sets
    from offnominal.cli.checks import check_values
    from offnominal.cli.mistakes import check_device, check_weights_given
    from offnominal.detectors.registry import light_class

    chosen = {name: value for name, value in given.items() if value is not None}
    kind = light_class(method)
    for name, values in parse_sets(sets or [], [method]).items():
        if name in getattr(kind, "listed_options", ()):
            values = [",".join(map(str, values))]
        if len(values) > 1 or name in chosen:
            raise OptionError(f"--set {name}: given more than once; give one value")
        chosen[name] = values[0]
    check_device(chosen.get("device"))
    check_weights_given(chosen.get("weights"))
    check_values(kind, chosen)
    if not chosen.get("weights"):
        _check_backbone(kind, chosen.get("backbone"))
    else:
        chosen["weights"] = _absolute(chosen["weights"])
    return chosen


def _check_backbone(kind: type, named: str | None) -> None:
    """Raise at once where the weights of a network cannot be had; seconds before torch is there."""
    from offnominal.backbones import AUTO
    from offnominal.backbones.hub import have
    from offnominal.backbones.names import check_name

    own = getattr(kind, "default_backbone", "")
    if named in (None, AUTO):
        # Where the method takes any network, the best on this machine takes the place of its own.
        if not own or not (getattr(kind, "backbone_family", "") or "," in own):
            return
        named = own
    for name in str(named).split(","):
        check_name(name.strip())
    bases = {base.__name__ for base in kind.__mro__}
    if bases & {"BackboneDetector", "Ensemble"}:  # of others some train a network from nothing
        for name in str(named).split(","):
            have(name.strip())


def build_detector(method: str, given: dict[str, Any], sets: list[str] | None = None) -> "Detector":
    """Construct a method with the options that were given; the others keep their defaults."""
    chosen = chosen_options(method, given, sets)
    with waiting(f"preparing {printable(method)}"):
        from offnominal.detectors.registry import detector_class

        return detector_class(method)(**chosen)


def _absolute(files: str) -> str:
    """A file, or several with commas between: the model file remembers where they lie."""
    parts = [files] if Path(files).exists() else files.split(",")
    return ",".join(str(Path(part.strip()).absolute()) for part in parts)
