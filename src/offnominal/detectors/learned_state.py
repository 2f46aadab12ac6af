"""What a module has learned, by one rule: attributes that end in ``_``, and what submodules keep.

Attributes are tensors or plain values; submodules (memory banks, learned layers) give their own
state. The backbone is in neither: a model file names it.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from offnominal.memory import MemoryBank

__all__ = ["learned_tensors", "learned_values", "restore_learned"]

_NETWORK = "network."


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
    AttributeError, KeyError, RuntimeError, OptionError
        If something belongs to nothing that the module has, or the other way round.
    """
    known = learned_values(module).keys() | learned_tensors(module).keys()
    if missing := known - values.keys() - tensors.keys():
        raise KeyError(f"without {', '.join(sorted(missing))}")
    for name, value in values.items():
        if name not in known:
            raise KeyError(name)
        setattr(module, name, value)
    inner: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        owner, _, own = name.rpartition(".")
        if owner:
            inner.setdefault(owner, {})[own] = tensor
        elif _counts(name) and hasattr(module, name):
            setattr(module, name, tensor)
        else:
            raise KeyError(name)
    for owner, columns in inner.items():
        part = module.get_submodule(owner)
        if isinstance(part, MemoryBank):
            part.adopt(columns)
        else:
            part.load_state_dict(columns, assign=True)


def _counts(name: str) -> bool:
    return name.endswith("_") and not name.startswith("_")
