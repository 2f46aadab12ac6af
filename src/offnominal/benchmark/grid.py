"""Grids: every combination of some values of a method's options."""

import hashlib
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from offnominal.backbones import backbone_name
from offnominal.detectors.base import Detector
from offnominal.detectors.registry import METHODS, detector_class
from offnominal.errors import OptionError, WeightsError

__all__ = ["chosen_for", "combinations", "of_method", "parse_sets", "variants"]

_WORDS = {"true": True, "false": False}


def parse_sets(texts: Iterable[str], methods: Sequence[str]) -> dict[str, list[Any]]:
    """Values of detector options from ``NAME=VALUE,VALUE`` texts.

    Parameters
    ----------
    texts : iterable of str
        A name may be shortened while it stays unique. Commas separate values; a plus joins the
        parts of one value, as in ``layers=2+3,3`` or ``rotations=0+90+180+270,none``. ``default``
        is the constructor's own. ``METHOD:NAME=VALUE`` is for that method alone, in the place of
        what is given for all.
    methods : sequence of str
        The methods that the options are for.

    Returns
    -------
    dict of str to list
        By the option's name, with the method and a colon before it where one was named.

    Raises
    ------
    OptionError
        If a text has no ``=``, or a name that no method knows, or a method is unknown.
    """
    defaults = {method: detector_class(method).option_defaults() for method in methods}
    sets: dict[str, list[Any]] = {}
    for text in texts:
        told, _, values = text.partition("=")
        if not values:
            raise OptionError(f"--set {text}: write NAME=VALUE, or NAME=VALUE,VALUE for several")
        method, name = of_method(told, methods, f"--set {text}")
        known: dict[str, Any] = {}
        for each in methods if method is None else [method]:
            known |= defaults[each]
        # A cell runs wherever it is run, and weights are told with their backbone.
        known = {key: known[key] for key in known if key not in ("device", "weights")}
        name = name.strip().replace("-", "_")
        fitting = [name] if name in known else [key for key in known if key.startswith(name)]
        if len(fitting) != 1:
            raise OptionError(
                f"--set {text}: {method or ', '.join(methods)} has no option {name!r}; there are "
                f"{', '.join(sorted(known))}"
            )
        [name] = fitting
        key = name if method is None else f"{method}:{name}"
        sets.setdefault(key, []).extend(
            _value(value.strip(), name, known[name]) for value in values.split(",")
        )
    return sets


def of_method(
    text: str, methods: Sequence[str] | None = None, option: str = ""
) -> tuple[str | None, str]:
    """The method that a text names before a colon, and the rest; no method where it is for all.

    A colon belongs to the text itself where no method stands before it, as in
    ``open_clip:ViT-B-16`` and ``C:\\weights``. A method that is not among `methods` is an
    :class:`OptionError` about `option`.
    """
    name, colon, rest = text.partition(":")
    if not colon or name not in METHODS:
        return None, text
    if methods is not None and name not in methods:
        listed = ", ".join(methods)
        raise OptionError(f"{option}: {name} is not among the methods to run, {listed}")
    return name, rest


def chosen_for(method: str, texts: Iterable[str]) -> list[str]:
    """Those of some texts that name the method before a colon; if there are none, the general ones.

    As ``dinov2_vits14`` or ``winclip:open_clip:ViT-B-16``.
    """
    told = [of_method(text) for text in texts]
    own = [rest for name, rest in told if name == method]
    return own or [rest for name, rest in told if name is None]


def combinations(values: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Every combination, the last setting varying fastest; one empty one for no settings."""
    rows = itertools.product(*values.values())
    return [dict(zip(values, row, strict=True)) for row in rows]


def variants(
    method: str,
    backbones: Sequence[str],
    sets: Mapping[str, Sequence[Any]],
    files: dict[str, str],
    impossible: list[str],
) -> list[dict[str, Any]]:
    """Full options of a method for every combination of backbones and values.

    ``files`` gets the files that options name, by their digest, which stands for them in the
    options; ``impossible`` gets what cannot be had, in words. Options that the method does not have
    are left out.
    """
    kind = detector_class(method)
    told = [(*of_method(key), given) for key, given in sets.items()]
    # The method's own come last, in the place of the general ones.
    told.sort(key=lambda each: each[0] is not None)
    known = kind.option_defaults()
    values = {
        name: given for owner, name, given in told if owner in (None, method) and name in known
    }
    in_sets = values.pop("backbone", (None,))
    asked: Sequence[str | None] = chosen_for(method, backbones) or in_sets
    if kind.backbone_family is None:
        asked = (None,)
    found = []
    for backbone in dict.fromkeys(asked):
        name, weights = _name_and_file(backbone)
        named = backbone_name(name, weights, kind.default_backbone)
        if not named.startswith(kind.backbone_family or ""):
            impossible.append(
                f"{method} cannot use {backbone}: it takes backbones whose names begin with "
                f"{kind.backbone_family}, as {kind.default_backbone}"
            )
            continue
        for chosen in combinations(values):
            options = kind(**chosen, backbone=name, weights=weights).options()
            options["backbone"] = named
            for option in ("weights", *kind.file_options):
                if options[option] is not None:
                    path = Path(options[option])
                    options[option] = _digest(path)
                    files[options[option]] = str(path.absolute())
            # As JSON will have it: a tuple is a list, so that a cell read back equals itself.
            found.append(json.loads(json.dumps(options)))
    return found


def _value(text: str, name: str, default: Any) -> Any:
    if text == "default":
        return default
    if text in _WORDS:
        return _WORDS[text]
    if name == "layers":
        return tuple(_number(part, name) for part in text.split("+"))
    if isinstance(default, int | float):
        number = _number(text, name)
        return float(number) if isinstance(default, float) else number
    if default is None and text.replace(".", "", 1).isdigit():
        return _number(text, name)
    return text.replace("+", ",")


def _number(text: str, name: str) -> int | float:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    raise OptionError(f"--set {name}={text}: give a number")


def _name_and_file(backbone: str | None) -> tuple[str | None, str | None]:
    if backbone is None:
        return None, None
    name, equals, file = backbone.partition("=")
    if equals:
        return name, file
    is_file = backbone.endswith((".safetensors", ".pth", ".pt", ".bin"))
    return (None, backbone) if is_file else (backbone, None)


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror})") from error
