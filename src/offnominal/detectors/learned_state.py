"""What a module has learned, by one rule: attributes that end in ``_``, and what submodules keep.

Attributes are tensors or plain values; submodules (memory banks, learned layers) give their own
state. The backbone is in neither: a model file names it.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from offnominal.errors import ModelFileError
from offnominal.memory import MemoryBank
from offnominal.text import brief

__all__ = ["learned_tensors", "learned_values", "must", "must_fit", "restore_learned"]

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


def learned_values(module: nn.Module) -> dict[str, Any]:
    """Plain values by name."""
    return {k: v for k, v in vars(module).items() if _counts(k) and not torch.is_tensor(v)}


def learned_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Tensors by name."""
    own = {k: v for k, v in vars(module).items() if _counts(k) and torch.is_tensor(v)}
    inner = {
        name: tensor
        for name, tensor in module.state_dict().items()
        if _NETWORK not in name and not name.startswith("_")
    }
    return {name: tensor.detach() for name, tensor in (own | inner).items()}


def restore_learned(
    module: nn.Module, values: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> None:
    """Set what the two functions above gave, whatever the sizes of what stands there.

    Raises
    ------
    AttributeError, KeyError, RuntimeError, TypeError, ValueError, OptionError
        If something belongs to nothing that the module has, or the other way round, is of another
        type than what stands there, or is not finite.
    """
    own, inner = learned_values(module), learned_tensors(module)
    if missing := (own.keys() | inner.keys()) - values.keys() - tensors.keys():
        raise KeyError(f"without {', '.join(sorted(missing))}")
    for name, value in values.items():
        if name not in own:
            raise KeyError(name)
        if not _alike(own[name], value):
            raise TypeError(f"{name} is {str(value)[:40]!r}, not a {type(own[name]).__name__}")
        setattr(module, name, value)
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        owner, _, last = name.rpartition(".")
        if owner or (name in inner and not _counts(name)):
            parts.setdefault(owner, {})[last] = tensor
        elif name in inner and _counts(name):
            _check_tensor(name, tensor, inner[name])
            setattr(module, name, tensor)
        else:
            raise KeyError(name)
    for owner, columns in parts.items():
        part = module.get_submodule(owner)
        if isinstance(part, MemoryBank):
            part.adopt(columns)
        else:
            for name, tensor in columns.items():
                full = f"{owner}.{name}" if owner else name
                _check_tensor(full, tensor, inner[full])
            # That nothing is missing is known; a part may have parts of its own.
            part.load_state_dict(columns, strict=False, assign=True)


def _counts(name: str) -> bool:
    return name.endswith("_") and not name.startswith("_")


def _check_tensor(name: str, tensor: Tensor, fresh: Tensor) -> None:
    if tensor.dtype != fresh.dtype:
        raise TypeError(f"{name} is {tensor.dtype}, not {fresh.dtype}")
    if not torch.isfinite(tensor).all():
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
