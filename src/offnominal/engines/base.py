"""What an engine is, how many threads it has, and how what it gives is put together again."""

import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from offnominal.errors import OptionError

__all__ = [
    "EXTRAS",
    "Array",
    "Engine",
    "EngineName",
    "Structure",
    "engine_named",
    "flat",
    "leaves_of",
    "restored",
    "structure_of",
    "threads",
]

Array = NDArray[np.float32]
EngineName = Literal["auto", "torch", "onnxruntime", "openvino"]

# How the arrays of one view belong together: None is an array, a list has its kind first.
Structure = list[Any] | None

EXTRAS = {"torch": "fit", "onnxruntime": "", "openvino": "openvino"}
"""The extra of this package that brings each engine; none for what always comes with it."""


class Engine(Protocol):
    """A method's network, ready to run.

    Attributes
    ----------
    name : str
        ``torch``, ``onnxruntime`` or ``openvino``.
    precision : str
        Of the sums: ``fp32``, ``bf16``, ``fp16`` or ``int8``.
    structure : list or None
        How what it gives belongs together; see :func:`restored`.
    """

    name: str
    precision: str
    structure: Structure

    def __call__(self, pixels: Array) -> list[Array]:
        """Features of one view.

        Parameters
        ----------
        pixels : float32 array of shape (1, 3, h, w)
            Normalised, with sides that the network takes.

        Returns
        -------
        list of float32 arrays
            What the method's ``embed`` gives of the view, level after level.
        """


def engine_named(name: str) -> str:
    """An engine's name, if it is one; ``auto`` is what ``$OFFNOMINAL_ENGINE`` says.

    Raises
    ------
    OptionError
        If there is no such engine.
    """
    known = get_args(EngineName)
    if name not in known:
        raise OptionError(f"--engine {name}: choose one of {', '.join(known)}")
    told = os.environ.get("OFFNOMINAL_ENGINE", "").strip() if name == "auto" else ""
    if told and told not in known:
        raise OptionError(f"OFFNOMINAL_ENGINE={told}: choose one of {', '.join(known)}")
    return told or name


def threads() -> int:
    """How many threads an engine computes with: as many as torch would.

    ``OMP_NUM_THREADS`` where it is set, otherwise the cores that this process may use.
    """
    if (torch := sys.modules.get("torch")) is not None and hasattr(torch, "get_num_threads"):
        return int(torch.get_num_threads())
    told = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return int(told) if told.isdigit() and int(told) else _cores()


def _cores() -> int:
    """Cores that this process may use: two threads of one core count once."""
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    found = set()
    for number in os.sched_getaffinity(0):
        siblings = Path(f"/sys/devices/system/cpu/cpu{number}/topology/thread_siblings_list")
        try:
            found.add(siblings.read_text())
        except OSError:
            found.add(str(number))
    return max(1, len(found))


# -- several arrays as one list ---------------------------------------------------------------


def flat(found: Any) -> list[Any]:
    """Tensors or arrays in tuples and lists, in their order."""
    if isinstance(found, tuple | list):
        return [leaf for each in found for leaf in flat(each)]
    return [found]


def structure_of(found: Any) -> Structure:
    """What :func:`flat` forgets, as plain values."""
    if isinstance(found, tuple | list):
        kind = "list" if isinstance(found, list) else "tuple"
        return [kind, *(structure_of(each) for each in found)]
    return None


def leaves_of(structure: Structure) -> int:
    """How many arrays a structure holds."""
    return 1 if structure is None else sum(leaves_of(each) for each in structure[1:])


def restored(structure: Structure, leaves: Sequence[Any]) -> Any:
    """Arrays as the method's ``embed`` gives them: one, or tuples and lists of them."""
    rest = iter(leaves)
    return _restored(structure, rest)


def _restored(structure: Structure, rest: Iterator[Any]) -> Any:
    if structure is None:
        return next(rest)
    kind, *inner = structure
    found = [_restored(each, rest) for each in inner]
    return found if kind == "list" else tuple(found)
