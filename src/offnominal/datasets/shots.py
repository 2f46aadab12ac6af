"""Few-shot draws: which of the good images a detector learns from."""

from collections.abc import Sequence
from typing import Literal, get_args

from offnominal.datasets.sample import Sample
from offnominal.errors import OptionError

__all__ = ["Sampling", "draw_numbers", "draw_shots"]

Sampling = Literal["first", "random"]


def draw_shots(
    samples: Sequence[Sample], shots: int | None, seed: int, sampling: Sampling = "first"
) -> list[Sample]:
    """Draw good images to learn from.

    Parameters
    ----------
    samples : sequence of Sample
        Those to draw from, in any order.
    shots : int or None
        How many, at least 1; None for all.
    seed : int
        Not negative.
    sampling : {"first", "random"}, default "first"
        ``first``: of the files sorted by name, seed s takes numbers s*k to (s+1)*k - 1, counted
        from 0, for k shots. The released code of AnomalyDINO (Damm et al., 2024) draws like this,
        and the draws of different seeds share no image. ``random``: the first k of a permutation
        of the files sorted by name, drawn by NumPy's `default_rng` from the seed. A seed's 1-shot
        draw is contained in its 4-shot draw, and so on.

    Returns
    -------
    list of Sample
        In the order of the draw; sorted by name for ``first`` and for all.

    Raises
    ------
    OptionError
        If there are not enough images, or an argument is outside its range.
    """
    if sampling not in get_args(Sampling):
        raise OptionError(f"sampling is {sampling!r}; choose first or random")
    if seed < 0:
        raise OptionError(f"seed is {seed}; it must not be negative")
    # By name alone, as the released code sorts a folder; the path decides between equal names.
    ordered = sorted(samples, key=lambda sample: (sample.image.name, sample.image))
    if shots is None:
        return ordered
    if shots < 1:
        raise OptionError(f"shots is {shots}; give at least 1")
    count = len(ordered)
    if shots > count:
        raise OptionError(f"shots is {shots}, but there are {count} good images to learn from")
    if sampling == "random":
        return [ordered[number] for number in draw_numbers(count, shots, seed)]
    if (seed + 1) * shots > count:
        raise OptionError(
            f"seed is {seed}: with {shots} shots each, {count} good images last for "
            f"{count // shots} seeds (0 to {count // shots - 1}); take fewer shots, or draw with "
            "sampling random"
        )
    return ordered[seed * shots : (seed + 1) * shots]


def draw_numbers(count: int, shots: int, seed: int) -> list[int]:
    """The first `shots` of a permutation of 0 to `count` - 1."""
    # Here, so that listing the options does not wait for NumPy.
    import numpy as np

    return [int(number) for number in np.random.default_rng(seed).permutation(count)[:shots]]
