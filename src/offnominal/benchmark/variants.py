"""A method's options in every combination of the backbones and values that were asked for."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from offnominal.backbones import backbone_name
from offnominal.backbones.weights import read_metadata, untrained_reason
from offnominal.benchmark.grid import combinations, of_method
from offnominal.detectors import detector_class
from offnominal.errors import OptionError, WeightsError

__all__ = ["Variants", "check_methods", "chosen_for"]


@dataclass
class Variants:
    """Options of methods, and what was met on the way to them.

    Attributes
    ----------
    files : dict of str to str
        Files that options name, by their digest, which stands for them in the options.
    untrained : dict of str to str
        Those of the files that say of themselves that they are not pretrained, and why.
    impossible : list of str
        Combinations that cannot be had, and why, in words.
    """

    files: dict[str, str] = field(default_factory=dict)
    untrained: dict[str, str] = field(default_factory=dict)
    impossible: list[str] = field(default_factory=list)

    def of(
        self, method: str, backbones: Sequence[str], sets: Mapping[str, Sequence[Any]]
    ) -> list[dict[str, Any]]:
        """Full options of a method for every combination of backbones and values.

        Parameters
        ----------
        method : str
        backbones : sequence of str
            Names, files or ``NAME=FILE``; with ``METHOD:`` before it one is for that method alone,
            which then takes none of the general ones.
        sets : mapping of str to sequence
            Values of options, whose names may have ``METHOD:`` before them likewise. Options that
            the method does not have are left out.
        """
        kind = detector_class(method)
        known = kind.option_names()
        values = {name: found for name, found in _of_sets(method, sets).items() if name in known}
        asked: list[str | None] = list(chosen_for(method, backbones)) or list(
            values.get("backbone", [None])
        )
        values.pop("backbone", None)
        if kind.backbone_family is None:
            asked = [None]
        found = []
        for backbone in dict.fromkeys(asked):
            name, file = _split(backbone)
            named = backbone_name(name, file, kind.default_backbone)
            if not named.startswith(kind.backbone_family or ""):
                self.impossible.append(
                    f"{method} cannot use {backbone}: it takes backbones whose names begin with "
                    f"{kind.backbone_family}, as {kind.default_backbone}"
                )
                continue
            for chosen in combinations(values):
                options = kind(**chosen, backbone=name, weights=file).options()
                options["backbone"] = named
                for option in ("weights", *kind.file_options):
                    if options[option] is not None:
                        options[option] = self._known(Path(options[option]))
                # As JSON will have it: a tuple is a list, so that a cell read back equals itself.
                found.append(json.loads(json.dumps(options)))
        return found

    def _known(self, path: Path) -> str:
        """A file's digest, under which it is written down."""
        try:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()[:16]
        except OSError as error:
            raise WeightsError(f"{path}: cannot be read ({error.strerror})") from error
        self.files[digest] = str(path.absolute())
        if reason := untrained_reason(read_metadata(path)):
            self.untrained[str(path)] = reason
        return digest


def chosen_for(method: str, texts: Iterable[str]) -> list[str]:
    """Those of some texts that name the method before a colon; if there are none, the general ones.

    Parameters
    ----------
    method : str
    texts : iterable of str
        As ``dinov2_vits14`` or ``winclip:open_clip:ViT-B-16``.
    """
    told = [of_method(text) for text in texts]
    return [rest for name, rest in told if name == method] or [
        rest for name, rest in told if name is None
    ]


def check_methods(methods: Sequence[str], texts: Iterable[str], option: str) -> None:
    """Raise an :class:`OptionError` where a text names a method that is not run."""
    for text in texts:
        name, _ = of_method(text)
        if name is not None and name not in methods:
            raise OptionError(
                f"{option} {text}: {name} is not among the methods to run, which are "
                f"{', '.join(methods)}"
            )


def _of_sets(method: str, sets: Mapping[str, Sequence[Any]]) -> dict[str, Sequence[Any]]:
    """Values of options for a method: the general ones, and its own in their place."""
    told = [(*of_method(name), values) for name, values in sets.items()]
    general = {rest: values for name, rest, values in told if name is None}
    return general | {rest: values for name, rest, values in told if name == method}


def _split(backbone: str | None) -> tuple[str | None, str | None]:
    if backbone is None:
        return None, None
    name, equals, file = backbone.partition("=")
    if equals:
        return name, file
    if backbone.endswith((".safetensors", ".pth", ".pt", ".bin")):
        return None, backbone
    return backbone, None
