"""Grids: every combination of some values of a method's options."""

import hashlib
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from offnominal.backbones import AUTO, backbone_name
from offnominal.backbones.auto import choose_backbone
from offnominal.detectors.registry import METHODS, detector_class, light_class
from offnominal.detectors.signatures import option_defaults
from offnominal.errors import OptionError, WeightsError

__all__ = ["chosen_for", "combinations", "of_method", "parse_sets", "variants"]

_WEIGHTS = (".safetensors", ".pth", ".pt", ".bin")


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
    defaults = {method: option_defaults(light_class(method)) for method in methods}
    sets: dict[str, list[Any]] = {}
    for text in texts:
        told, _, values = text.partition("=")
        if not values:
            raise OptionError(f"--set {text}: write NAME=VALUE, or NAME=VALUE,VALUE for several")
        method, name = of_method(told, methods, f"--set {text}")
        known: dict[str, Any] = {}
        for each in [method] if method else methods:
            known |= defaults[each]
        # A cell runs wherever it is run, and weights are told with their backbone.
        known = {key: known[key] for key in known if key not in ("device", "engine", "weights")}
        name = name.strip().replace("-", "_")
        fitting = [name] if name in known else [key for key in known if key.startswith(name)]
        if len(fitting) != 1:
            raise OptionError(
                f"--set {text}: {method or ', '.join(methods)} has no option {name!r}; there are "
                f"{', '.join(sorted(known))}"
            )
        [name] = fitting
        key = f"{method}:{name}" if method else name
        found = [_value(value.strip(), name, known[name]) for value in values.split(",")]
        sets[key] = sets.get(key, []) + found
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
    return [dict(zip(values, row, strict=True)) for row in itertools.product(*values.values())]


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
    kind: Any = detector_class(method)
    known = kind.option_defaults()
    values: dict[str, Sequence[Any]] = {}
    # The method's own come last, in the place of the general ones.
    for owner in (None, method):
        told = [(of_method(key), given) for key, given in sets.items()]
        values |= {n: given for (whose, n), given in told if whose == owner and n in known}
    in_sets = values.pop("backbone", (None,))
    if "backbone" not in known:
        networks: list[dict[str, Any]] = [{}]
    else:
        asked = dict.fromkeys(chosen_for(method, backbones) or in_sets)
        networks = [_network(kind, text) for text in asked]
    found = []
    for network in networks:
        name = network.get("backbone", "")
        if not _takes(kind, name):
            impossible.append(
                f"{method} cannot use {name}: it takes backbones whose names begin with "
                f"{kind.backbone_family}, as {kind.default_backbone}"
            )
            continue
        for chosen in combinations(values):
            options = kind(**chosen, **network).options()
            for option in ("weights", *kind.file_options):
                if options.get(option) is not None:
                    path = Path(options[option])
                    options[option] = _digest(path)
                    files[options[option]] = str(path.absolute())
            # As JSON will have it: a tuple is a list, so that a cell read back equals itself.
            found.append(json.loads(json.dumps(options)))
    return found


def _takes(kind: Any, backbone: str) -> bool:
    """Whether a method can use a backbone: it says how the names of those begin."""
    return not backbone or backbone.startswith(getattr(kind, "backbone_family", None) or "")


def _network(kind: Any, text: str | None) -> dict[str, Any]:
    """The options ``backbone`` and ``weights`` from a name, a file, or ``NAME=FILE``."""
    name, _, file = (text or "").partition("=")
    if name.endswith(_WEIGHTS) and not file:
        name, file = "", name
    if name == AUTO and not file:  # a cell is of the network that was taken
        name = choose_backbone(kind.default_backbone, kind.backbone_family).name
    named = backbone_name(name or None, file or None, kind.default_backbone)
    return {"backbone": named, "weights": file or None}


def _value(text: str, name: str, default: Any) -> Any:
    """A value of the kind that an option takes, which its default shows."""
    if text == "default":
        return default
    if text in ("true", "false"):
        return text == "true"
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


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror})") from error
