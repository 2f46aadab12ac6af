"""Features in less than float32 are of one engine: what was learned by it is judged by it."""

from collections.abc import Mapping
from typing import Any

from offnominal.engines.base import EXTRAS, engine_named
from offnominal.errors import ModelFileError, OptionError
from offnominal.text import brief

__all__ = ["asked", "check_same", "learned_by", "read_engine", "told"]


def read_engine(header: Mapping[str, Any]) -> str:
    """The engine that a model file says it was learned by; empty where it says none.

    Raises
    ------
    ModelFileError
        If there is no such engine.
    """
    found = header.get("engine", "")
    if found and (not isinstance(found, str) or found not in EXTRAS):
        raise ModelFileError(f"fitted with the engine {brief(repr(found))}, which there is not")
    return str(found or "")


def learned_by(detector: Any) -> str:
    """The engine whose features a detector knows, where another's are not the same; or nothing."""
    return "" if detector.precision == "fp32" else getattr(detector, "learned_by", "")


def asked(detector: Any) -> str:
    """The engine that is named, or that has to be since references were learned by it."""
    known = learned_by(detector)
    return known if known and detector.engine == "auto" else engine_named(detector.engine)


def told(detector: Any) -> str:
    """What a detector learned by, in words."""
    by = f"{detector.precision} by {learned_by(detector)}"
    return f"it was learned in {by}, whose features no other engine gives"


def check_same(detector: Any, wanted: str) -> None:
    """Refuse to judge by other features than were learned."""
    known = learned_by(detector)
    if known and wanted != known:
        raise OptionError(f"--engine {wanted}: {told(detector)}; leave it out, or fit anew with it")
