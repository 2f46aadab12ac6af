"""Whether there is a network of a name, told without importing timm or open_clip."""

import re
from importlib.util import find_spec
from pathlib import Path

from offnominal.backbones import AUTO, JOIN, MAE, PDN
from offnominal.backbones.catalogue import (
    ALEXNET,
    CATALOGUE,
    MAE_FILES,
    OPEN_CLIP,
    PDN_NAMES,
    closest,
)
from offnominal.checks import meant
from offnominal.errors import BackboneError

__all__ = ["check_name"]

_DEFINED = re.compile(r"^def (\w+)\(pretrained", re.MULTILINE)


def check_name(name: str) -> None:
    """Raise a :class:`BackboneError` for a name that is surely no network's; not all are told.

    The name of one of timm's must stand somewhere in timm's source, as a function or in quotes.
    """
    if JOIN in name:
        for part in name.split(JOIN):
            check_name(part.strip())
        return
    if name in (AUTO, ALEXNET) or name in CATALOGUE:
        return
    for begins, known in ((MAE, MAE_FILES), (PDN, PDN_NAMES)):
        if name.startswith(begins):
            if name not in known:
                told = f"{meant(name, known)}choose one of {', '.join(known)}"
                raise BackboneError(f"--backbone {name}: unknown backbone; {told}")
            return
    if name.startswith(OPEN_CLIP):
        plain = name.removeprefix(OPEN_CLIP).partition(".")[0]
        there = [file.stem for file in _folder("open_clip", "model_configs").glob("*.json")]
        if there and plain not in there and plain.removesuffix("-quickgelu") not in there:
            near = meant(plain, there).replace("mean ", f"mean {OPEN_CLIP}")
            raise BackboneError(f"--backbone {name}: open_clip has no such model; {near}".rstrip())
        return
    architecture = name.partition(".")[0]
    files = [file.read_text("utf-8") for file in _folder("timm", "models").glob("*.py")]
    word = re.compile(rf"(def |['\"]){re.escape(architecture)}[('\".]")
    if files and not any(architecture in text and word.search(text) for text in files):
        near = closest(name)
        if "did you mean" not in near:
            names = [found for text in files for found in _DEFINED.findall(text)]
            near = meant(architecture, names) + near
        raise BackboneError(f"--backbone {name}: unknown backbone; {near}")


def _folder(package: str, inside: str) -> Path:
    spec = find_spec(package)
    return Path(spec.origin).parent / inside if spec and spec.origin else Path("/nowhere")
