"""What a detector has learned, by one rule: attributes that end in ``_``, and what its parts keep.

Attributes are arrays, tensors or plain values; parts are memory banks, which give their columns,
and learned networks, which give their state. The backbone is in neither: a model file names it.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offnominal.errors import ModelFileError
from offnominal.memory import MemoryBank
from offnominal.tensors import is_module, is_tensor, to_numpy
from offnominal.text import brief

__all__ = ["learned_arrays", "learned_values", "must", "must_fit", "parts", "restore_learned"]

_NETWORK = "network."


def must(fits: object, otherwise: str) -> None:
    """Raise a ValueError that says what is wrong, unless it fits."""
    if not fits:
        raise ValueError(otherwise)


@contextmanager
def must_fit() -> Iterator[None]:
    """Whatever goes wrong inside means that a file is not what its method writes.

    Raises
    ------
    ModelFileError
    """
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError,
            RuntimeError) as error:  # fmt: skip
        reason = brief(f"{type(error).__name__}: {error}".splitlines()[0])
        raise ModelFileError(f"its contents do not fit its method ({reason})") from error


def parts(detector: Any) -> dict[str, Any]:
    """Memory banks and learned networks by their names, which are those of attributes.

    Of a sequence of banks each has its place behind the name, as ``banks.0``.
    """
    held = dict(vars(detector)) | dict(vars(detector).get("_modules", {}))
    found: dict[str, Any] = {}
    for name, value in held.items():
        if name.startswith("_") or name == "network":
            continue
        several = isinstance(value, list | tuple) or (
            is_module(value) and hasattr(value, "__iter__")
        )
        banks = list(value) if several else []
        if banks and all(isinstance(bank, MemoryBank) for bank in banks):
            found |= {f"{name}.{place}": bank for place, bank in enumerate(banks)}
        elif isinstance(value, MemoryBank) or is_module(value):
            found[name] = value
    return found


def learned_values(detector: Any) -> dict[str, Any]:
    """Plain values by name."""
    return {k: v for k, v in vars(detector).items() if _counts(k) and not _is_array(v)}


def learned_arrays(detector: Any) -> dict[str, NDArray[Any]]:
    """Arrays by name; those of tensors on a CPU share their memory."""
    found = {k: v for k, v in vars(detector).items() if _counts(k) and _is_array(v)}
    if is_module(detector):
        found |= {name: own for name, own in detector.state_dict().items() if _is_own(name)}
    for name, part in parts(detector).items():
        state = part.columns() if isinstance(part, MemoryBank) else part.state_dict()
        found |= {f"{name}.{key}": value for key, value in state.items()}
    return {name: to_numpy(value) for name, value in found.items() if _NETWORK not in name}


def restore_learned(
    detector: Any, values: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]
) -> None:
    """Set what the two functions above gave, whatever the sizes of what stands there.

    Raises
    ------
    AttributeError, KeyError, RuntimeError, TypeError, ValueError, OptionError
        If something belongs to nothing that the detector has, or the other way round, is of another
        type than what stands there, or is not finite.
    """
    own, inner, held = learned_values(detector), learned_arrays(detector), parts(detector)
    if missing := (own.keys() | inner.keys()) - values.keys() - arrays.keys():
        raise KeyError(f"without {', '.join(sorted(missing))}")
    for name, value in values.items():
        if name not in own:
            raise KeyError(name)
        if not _alike(own[name], value):
            raise TypeError(f"{name} is {str(value)[:40]!r}, not a {type(own[name]).__name__}")
        setattr(detector, name, value)
    states: dict[str, dict[str, NDArray[Any]]] = {}
    for name, array in arrays.items():
        owner = next((part for part in held if name.startswith(f"{part}.")), "")
        if owner:
            states.setdefault(owner, {})[name.removeprefix(f"{owner}.")] = array
        elif name in inner and _counts(name):
            _check_array(name, array, inner[name])
            setattr(detector, name, _like(getattr(detector, name), array))
        elif name in inner:
            states.setdefault("", {})[name] = array
        else:
            raise KeyError(name)
    for owner, state in states.items():
        part = held[owner] if owner else detector
        if isinstance(part, MemoryBank):
            part.adopt(state)
            continue
        for name, array in state.items():
            full = f"{owner}.{name}" if owner else name
            _check_array(full, array, inner[full])
        fresh = part.state_dict()
        # That nothing is missing is known; what is a frozen network's own is not there.
        tensors = {name: _like(fresh[name], array) for name, array in state.items()}
        part.load_state_dict(tensors, strict=False, assign=True)


def _counts(name: str) -> bool:
    return name.endswith("_") and not name.startswith("_")


def _is_own(name: str) -> bool:
    """Whether a module's state has it itself, and none of its parts."""
    return "." not in name and not name.startswith("_")


def _is_array(value: object) -> bool:
    return isinstance(value, np.ndarray) or is_tensor(value)


def _like(fresh: Any, array: NDArray[Any]) -> Any:
    """An array as what it takes the place of: a tensor on its device, or itself."""
    if not is_tensor(fresh):
        return array
    from torch import from_numpy

    return from_numpy(array).to(fresh.device)


def _check_array(name: str, array: NDArray[Any], fresh: NDArray[Any]) -> None:
    if array.dtype != fresh.dtype:
        raise TypeError(f"{name} is {array.dtype}, not {fresh.dtype}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} holds values that are not finite")


def _alike(fresh: Any, value: Any) -> bool:
    """Whether a value from a file may take the place of what a new detector has there."""
    if fresh is None:
        return value is None or isinstance(value, dict)
    if isinstance(fresh, float):
        return type(value) in (int, float) and math.isfinite(value)
    if isinstance(fresh, list):  # of whole numbers, or of lists of them
        return isinstance(value, list) and all(
            (type(one) is int and 0 <= one < 2**40) or (type(one) is list and _alike([], one))
            for one in value
        )
    return type(value) is type(fresh)
