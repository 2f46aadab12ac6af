"""Leave-one-out distances: whatever happened to a bank, as if all had been measured anew."""

import random
from typing import Literal

import pytest
import torch
from torch import Tensor

from offnominal.memory import MemoryBank, leave_one_out
from offnominal.memory.leave_one_out import ALONE, UNMEASURED, grown, measure, shrunk

DIM = 8


def features(seed: int) -> Tensor:
    """Rows of a grid, so that many distances tie, some of them copies of another reference's."""
    draw = torch.Generator().manual_seed(seed)
    count = int(torch.randint(1, 30, (1,), generator=draw))
    return torch.randint(0, 2 + seed % 2, (count, DIM), generator=draw).float()


def add(bank: MemoryBank, reference: int, seed: int) -> None:
    rows = features(seed)
    counts = torch.rand(len(rows), generator=torch.Generator().manual_seed(seed)) < 0.8
    half = len(rows) // 2
    bank.add(rows[:half], reference, 0, counts=counts[:half])
    bank.add(rows[half:], reference, 1, counts=counts[half:])


def brute_force(bank: MemoryBank, measured: set[int]) -> tuple[Tensor, Tensor]:
    """What the columns of active references should be."""
    distance = torch.full((len(bank),), torch.inf)
    reference = torch.full((len(bank),), UNMEASURED, dtype=torch.int32)
    active = torch.tensor([one not in bank.inactive for one in bank.reference.tolist()])
    for row in bank.counts.nonzero()[:, 0].tolist():
        own = int(bank.reference[row])
        others = (active & (bank.reference != own)).nonzero()[:, 0]
        if own not in measured:
            continue
        reference[row] = ALONE
        if len(others):
            squared, index = bank.search(bank.take(torch.tensor([row])), 1, skip=own)
            true = (bank.take(others) - bank.take(torch.tensor([row]))).double().square().sum(1)
            torch.testing.assert_close(squared[0, 0].double(), true.min(), rtol=1e-5, atol=1e-5)
            if bank.storage == "fp32":
                assert int(index) == int(others[true.argmin()])
            distance[row], reference[row] = squared[0, 0], bank.reference[index[0, 0]]
    return distance, reference


def check(bank: MemoryBank, measured: set[int]) -> None:
    seen = torch.tensor([one not in bank.inactive for one in bank.reference.tolist()])
    distance, reference = brute_force(bank, measured)
    assert torch.equal(bank.loo_distance[seen], distance[seen])
    assert torch.equal(bank.loo_reference[seen], reference[seen])


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
        there = set(bank.reference.unique().tolist()) - {0}
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
    before = bank.loo_distance.clone(), bank.loo_reference.clone()
    measure(bank, [one for one in bank.reference.unique().tolist() if one])
    assert torch.equal(bank.loo_distance, before[0])
    assert torch.equal(bank.loo_reference, before[1])


def test_without_another_reference_there_is_no_distance() -> None:
    bank = MemoryBank()
    bank.add(torch.eye(4), 0, counts=torch.tensor([True, True, True, False]))
    measure(bank, [0])
    assert bank.loo_distance.tolist() == [torch.inf] * 4
    assert bank.loo_reference.tolist() == [ALONE] * 3 + [UNMEASURED]
    bank.add(torch.eye(4) + 1, 1, counts=True)
    grown(bank, [1])
    assert bank.loo_reference.tolist() == [1, 1, 1, UNMEASURED, 0, 0, 0, 0]
    bank.active(1, False)
    shrunk(bank, [1])
    assert bank.loo_reference[:4].tolist() == [ALONE] * 3 + [UNMEASURED]


def test_progress_counts_references() -> None:
    bank, told = MemoryBank(), []
    for reference in range(4):
        bank.add(torch.randn(5, DIM), reference, counts=True)
    measure(bank, range(4), lambda stage, done: told.append((stage, done)))
    assert told == [("threshold", done) for done in (1, 2, 3, 4)]
    told.clear()
    bank.add(torch.randn(5, DIM), 4, counts=True)
    grown(bank, [4], lambda stage, done: told.append((stage, done)))
    assert told == [("threshold", 4), ("threshold", 1)]


def test_under_inference_mode() -> None:
    bank = MemoryBank()
    with torch.inference_mode():
        bank.add(torch.eye(4), 0, counts=True)
        bank.add(torch.eye(4) + 1, 1, counts=True)
        measure(bank, [0, 1])
    bank.active(1, False)
    shrunk(bank, [1])
    assert bank.loo_reference[:4].tolist() == [ALONE] * 4
