"""Detectors that are made of others: which can be members, and what a file has of them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offnominal.detectors.base import Detector
from offnominal.detectors.methods import METHODS
from offnominal.detectors.registry import load, rebuilt
from offnominal.errors import OptionError
from offnominal.images import content_digest
from offnominal.scoring import Scores, Size, on_grid_of

__all__ = ["arrays_of", "honest_scores", "on_one_scale", "open_members", "own_arrays"]
__all__ += ["restored_members", "states_of"]

_START = "members."


def open_members(files: str, sixteen_bit: str, device: str, engine: str) -> list[Detector]:
    """The fitted detectors in two model files or more, with commas between.

    Raises
    ------
    OptionError
        If they are fewer, or one cannot judge images beside others.
    """
    names = [name.strip() for name in files.split(",") if name.strip()]
    if len(names) < 2:
        raise OptionError(
            f"--members {files}: give two fitted models or more, with commas between, as "
            "rgb.offn,depth.offn"
        )
    found = [load(Path(name), device=device, engine=engine) for name in names]
    for name, member in zip(names, found, strict=True):
        _check_member(name, member, sixteen_bit)
    return found


def _check_member(name: str, member: Detector, sixteen_bit: str) -> None:
    """Refuse a fitted detector that cannot be one of several which judge the same image.

    Raises
    ------
    OptionError
        That names it by ``name``.
    """
    if METHODS[member.method].batched or member.confirmed_options or hasattr(member, "detectors"):
        raise OptionError(
            f"{name}: {member.method} cannot be a member; give a fitted detector that scores "
            "images by itself"
        )
    if getattr(member, "deployed", None) is not None:
        raise OptionError(f"{name}: was exported; give the fitted model that it was exported from")
    if len(member.categories) > 1:
        raise OptionError(f"{name}: knows {len(member.categories)} categories; give one of one")
    if member.sixteen_bit != sixteen_bit:
        raise OptionError(
            f"{name}: reads 16-bit pictures by {member.sixteen_bit}; give --sixteen-bit "
            f"{member.sixteen_bit}"
        )


def arrays_of(members: Sequence[Detector]) -> dict[str, NDArray[Any]]:
    """What members learned, by the names that a file of all has."""
    return {
        f"{_START}{place}.{name}": array
        for place, member in enumerate(members)
        for name, array in member.arrays().items()
    }


def own_arrays(arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """What is no member's."""
    return {name: array for name, array in arrays.items() if not name.startswith(_START)}


def states_of(
    header: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]
) -> list[tuple[Mapping[str, Any], dict[str, NDArray[Any]]]]:
    """Header and arrays of each member, as its own ``restore`` takes them."""
    found = []
    for place, one in enumerate(header["members"]):
        start = f"{_START}{place}."
        theirs = {n.removeprefix(start): a for n, a in arrays.items() if n.startswith(start)}
        found.append((one, theirs))
    return found


def restored_members(
    members: Sequence[Detector],
    header: Mapping[str, Any],
    arrays: Mapping[str, NDArray[Any]],
    sixteen_bit: str,
    device: str,
    engine: str,
) -> list[Detector]:
    """Members with what a file has of them; made anew where there are none yet."""
    states = states_of(header, arrays)
    found = list(members) or [rebuilt(*state, device, engine) for state in states]
    for member, state in zip(found, states, strict=True):
        if members:
            member.restore(*state)
        _check_member(f"the member {member.method}", member, sixteen_bit)
    return found


def honest_scores(member: Detector, image: NDArray[Any]) -> tuple[Scores | None, bool]:
    """What a fitted detector says of a good image, and whether as it would of a new one.

    Of an image that it was fitted on: what it said without it, or as it held it back; None where
    it has no such score.
    """
    seen = member.image_of(image)
    own = {one.digest: number for number, one in enumerate(member.references) if one.active}
    number = own.get(content_digest(seen))
    if number is None:
        return member.score(seen), True
    for known in (member.good.held_out, member.good.references):
        if number in known.numbers:
            exact = known.kind == "held-out" or member.leave_one_out == "exact"
            return known.scores[known.numbers.index(number)], exact
    return None, True


def on_one_scale(
    said: Sequence[Scores],
    drawn: NDArray[np.bool_],
    low: NDArray[np.float64],
    high: NDArray[np.float64],
    size: Size,
) -> tuple[Scores, NDArray[np.float64]]:
    """Maps of an image (H, W) on the finest grid, each with ``low`` as 0 and ``high`` as 1.

    ``drawn`` says whose: the map of a member that finds no places is flat, and would hide others'.
    Without any all are taken.
    """
    some = np.flatnonzero(drawn if drawn.any() else ~drawn).tolist()
    maps = [said[place] for place in some]
    finest = max(maps, key=lambda one: one.patches.size)
    grids = np.stack([on_grid_of(one, finest, size) for one in maps])
    span = np.maximum(high - low, np.finfo(np.float32).tiny)
    return finest, (grids - low[some, None, None]) / span[some, None, None]
