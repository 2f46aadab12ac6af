"""Leave-one-out distances: whatever happened to a bank, as if all had been measured anew."""

import random
from typing import Any, Literal

import numpy as np
import pytest
from numpy.typing import NDArray

from offnominal.memory import MemoryBank, leave_one_out
from offnominal.memory.leave_one_out import ALONE, UNMEASURED, grown, measure, shrunk

DIM = 8


def features(seed: int) -> NDArray[np.float32]:
    """Rows of a grid, so that many distances tie, some of them copies of another reference's."""
    draw = np.random.default_rng(seed)
    count = int(draw.integers(1, 30))
    return draw.integers(0, 2 + seed % 2, (count, DIM)).astype(np.float32)


def add(bank: MemoryBank, reference: int, seed: int) -> None:
    rows = features(seed)
    counts = np.random.default_rng(seed).random(len(rows)) < 0.8
    half = len(rows) // 2
    bank.add(rows[:half], reference, 0, counts=counts[:half])
    bank.add(rows[half:], reference, 1, counts=counts[half:])


def brute_force(bank: MemoryBank, measured: set[int]) -> tuple[NDArray[Any], NDArray[Any]]:
    """What the columns of active references should be."""
    distance = np.full(len(bank), np.inf, np.float32)
    reference = np.full(len(bank), UNMEASURED, np.int32)
    active = np.array([one not in bank.inactive for one in bank.reference.tolist()], bool)
    for row in np.flatnonzero(bank.counts).tolist():
        own = int(bank.reference[row])
        others = np.flatnonzero(active & (bank.reference != own))
        if own not in measured:
            continue
        reference[row] = ALONE
        if len(others):
            asked = bank.take(np.array([row]))
            squared, index = bank.search(asked, 1, skip=own)
            true = np.square((bank.take(others) - asked).astype(float)).sum(1)
            np.testing.assert_allclose(squared[0, 0], true.min(), rtol=1e-5, atol=1e-5)
            if bank.storage == "fp32":
                assert index[0, 0] == others[true.argmin()]
            distance[row], reference[row] = squared[0, 0], bank.reference[index[0, 0]]
    return distance, reference


def check(bank: MemoryBank, measured: set[int]) -> None:
    seen = np.array([one not in bank.inactive for one in bank.reference.tolist()], bool)
    distance, reference = brute_force(bank, measured)
    assert np.array_equal(bank.loo_distance[seen], distance[seen])
    assert np.array_equal(bank.loo_reference[seen], reference[seen])


@pytest.mark.slow
@pytest.mark.parametrize("together", [7, 2**14])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("storage", ["fp32", "fp16", "int8"])
def test_any_changes_are_as_if_measured_anew(
    storage: Literal["fp32", "fp16", "int8"],
    seed: int,
    together: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(leave_one_out, "_TOGETHER", together)
    monkeypatch.setattr(leave_one_out, "_AHEAD", (2, 5))
    draw = random.Random(seed)
    bank = MemoryBank(storage=storage)
    # One that is never measured is searched, and stays as it is.
    add(bank, 0, seed)
    starts = {}
    for step in range(25):
        there = set(np.unique(bank.reference).tolist()) - {0}
        active, away = sorted(there - bank.inactive), sorted(there & bank.inactive)
        action = draw.choice(["add", "add", "go", "go", "back", "truncate"])
        if action == "add":
            new = list(
                range(max(there, default=0) + 1, max(there, default=0) + draw.choice((2, 3)))
            )
            for reference in new:
                starts[reference] = len(bank)
                add(bank, reference, 100 * seed + draw.choice((step, 7)))
            grown(bank, new)
        elif action == "go" and active:
            gone = draw.sample(active, min(len(active), draw.choice((1, 2))))
            for reference in gone:
                bank.active(reference, False)
            shrunk(bank, gone)
        elif action == "back" and away:
            new = draw.sample(away, min(len(away), draw.choice((1, 2))))
            for reference in new:
                bank.active(reference, True)
            grown(bank, new)
        elif action == "truncate" and active and max(there) in active:
            bank.truncate(starts[max(there)])
            shrunk(bank, [max(there)])
        check(bank, set(starts))
    bank.compact()
    check(bank, set(starts))
    before = bank.loo_distance.copy(), bank.loo_reference.copy()
    measure(bank, [one for one in np.unique(bank.reference).tolist() if one])
    assert np.array_equal(bank.loo_distance, before[0])
    assert np.array_equal(bank.loo_reference, before[1])


def test_without_another_reference_there_is_no_distance() -> None:
    bank = MemoryBank()
    bank.add(np.eye(4), 0, counts=np.array([True, True, True, False]))
    measure(bank, [0])
    assert bank.loo_distance.tolist() == [np.inf] * 4
    assert bank.loo_reference.tolist() == [ALONE] * 3 + [UNMEASURED]
    bank.add(np.eye(4) + 1, 1, counts=True)
    grown(bank, [1])
    assert bank.loo_reference.tolist() == [1, 1, 1, UNMEASURED, 0, 0, 0, 0]
    bank.active(1, False)
    shrunk(bank, [1])
    assert bank.loo_reference[:4].tolist() == [ALONE] * 3 + [UNMEASURED]


def test_progress_counts_references() -> None:
    bank, told = MemoryBank(), []
    for reference in range(4):
        bank.add(np.random.default_rng(0).random((5, DIM)), reference, counts=True)
    measure(bank, range(4), lambda stage, done: told.append((stage, done)))
    assert told == [("threshold", done) for done in (1, 2, 3, 4)]
    told.clear()
    bank.add(np.random.default_rng(0).random((5, DIM)), 4, counts=True)
    grown(bank, [4], lambda stage, done: told.append((stage, done)))
    assert told == [("threshold", 4), ("threshold", 1)]
