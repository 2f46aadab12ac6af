"""Searching by sketches: they never rule out a row that matters, and follow the bank's changes."""

import copy
import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from offnominal.memory import MemoryBank
from offnominal.memory.exact import exact_distances
from offnominal.memory.nearly import nearly
from offnominal.memory.sketch import Sketch, fast_integer_products
from offnominal.memory.storage import Stored, encode

DIM = 128

fast = pytest.mark.skipif(
    not fast_integer_products(),
    reason="this CPU has no instructions for products of 8-bit integers",
)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def patches(rows: int, seed: int = 0) -> Tensor:
    """Like patch features: a few directions hold most of the variance, and some rows are odd."""
    latent = normal(rows, 12, seed=seed) * torch.arange(1, 13).rsqrt()
    found = latent @ normal(12, DIM, seed=7) / 3 + 0.1 * normal(rows, DIM, seed=seed + 1) + 1
    found[::97] *= 4
    return found


QUERIES = patches(40, seed=5)
CASES = {
    "patches": (patches(2000), QUERIES),
    "no structure": (normal(2000, DIM), normal(40, DIM, seed=1)),
    "one direction": (normal(2000, 1) * normal(1, DIM, seed=2), normal(40, DIM, seed=1)),
    "queries equal rows": (patches(2000), patches(2000)[1000:1040]),
    "queries far away": (patches(2000), 1e6 * QUERIES),
    "all rows the same": (normal(1, DIM).repeat(2000, 1), normal(40, DIM, seed=1)),
    "rows repeat": (patches(50).repeat(40, 1), patches(50)[:40]),
    "one huge row": (torch.cat([patches(1999), 1e6 * QUERIES[:1]]), QUERIES),
    "large and far from the origin": (100 * patches(2000) + 5000, 100 * QUERIES + 5000),
    "large": (1e12 * patches(2000), 1e12 * QUERIES),
    "tiny": (1e-15 * patches(2000), 1e-15 * QUERIES),
    "zero": (torch.zeros(2000, DIM), torch.zeros(40, DIM)),
}


@pytest.mark.parametrize("storage", ["fp32", "int8"])
@pytest.mark.parametrize("case", CASES)
def test_a_row_is_never_ruled_out_at_its_own_distance(case: str, storage: str) -> None:
    rows, queries = CASES[case]
    stored = Stored(*encode(rows, storage))
    sketch = Sketch(stored)
    codes = sketch.of(queries)
    product = codes.codes.long() @ sketch.codes.long().T
    everything = stored[torch.arange(len(rows))]
    for number, query in enumerate(queries):
        true = exact_distances(everything.clone(), query)
        mine = type(codes)(*(getattr(codes, name)[[number]] for name in codes.__match_args__))
        for row in range(0, len(rows), 53):
            assert product[number, row] >= sketch.thresholds(mine, true[row : row + 1])


def test_most_rows_are_ruled_out() -> None:
    rows, queries = CASES["patches"]
    sketch = Sketch(rows)
    codes = sketch.of(queries)
    nearest = torch.cdist(queries, rows).square().amin(1)
    near = codes.codes.long() @ sketch.codes.long().T >= sketch.thresholds(codes, nearest)[:, None]
    assert near.any(1).all()
    assert near.float().mean() < 0.1


@fast
@pytest.mark.parametrize("storage", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("case", CASES)
def test_bounds_of_quick_distances(case: str, storage: str) -> None:
    rows, queries = CASES[case]
    stored = Stored(*encode(rows, storage)) if case not in ("large", "one huge row") else rows
    index = torch.arange(0, len(rows), 7)
    picked = stored[index]
    norms = torch.zeros(len(rows)).index_put((index,), torch.linalg.vector_norm(picked, dim=1))
    for query in queries[:5]:
        low, high = nearly(stored, norms, query, index)
        true = (picked.double() - query.double()).square().sum(1)
        assert (low <= true).all()
        assert (true <= high).all()
        scale = float(picked.norm(dim=1).amax() + query.norm())
        assert float((high - low).amax()) <= 1e-2 * scale**2 + 1e-30


def compared(
    rows: Tensor, queries: Tensor, k: int, storage: str = "fp32", skip: int | None = None
) -> tuple[MemoryBank, tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """A bank, what it finds by sketches, and what it finds without."""
    found = []
    for precision in ("fp32", "int8"):
        bank = MemoryBank(rows.shape[1], 2**26, precision, storage)  # type: ignore[arg-type]
        for owner, own in enumerate(torch.split(rows, 333)):
            bank.add(own, owner)
        found.append(bank.search(queries, k, skip))
    return bank, found[1], found[0]


def assert_same(found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> None:
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])


@fast
@pytest.mark.parametrize("k", [1, 3, 16])
@pytest.mark.parametrize("case", CASES)
def test_same_bits_as_without_sketches(case: str, k: int) -> None:
    bank, found, expected = compared(*CASES[case], k)
    assert bank._keeper._sketch is not None
    assert_same(found, expected)


@fast
@pytest.mark.parametrize("storage", ["fp16", "int8"])
@pytest.mark.parametrize("skip", [None, 0, 3, 6])
def test_same_bits_in_every_storage_and_without_an_owner(storage: str, skip: int | None) -> None:
    rows, queries = CASES["queries equal rows"]
    for size in (2000, 1999, 1985):
        assert_same(*compared(rows[:size], queries, 2, storage, skip)[1:])


@fast
@pytest.mark.parametrize("size", [1, 5, 16, 40])
def test_small_owners_are_left_out_and_no_row_is_found_twice(size: int) -> None:
    rows, queries = patches(800), patches(40, seed=5)
    results = []
    for precision in ("fp32", "int8"):
        bank = MemoryBank(DIM, precision=precision)  # type: ignore[arg-type]
        for owner, own in enumerate(torch.split(rows, size)):
            bank.add(own, owner)
        results.append([bank.search(queries, 4, skip) for skip in (0, 3, 8, len(bank) // size - 1)])
    for found, expected in zip(*results, strict=True):
        assert_same(found, expected)
        assert all(len(set(row.tolist())) == 4 for row in found[1])


@fast
def test_searches_side_by_side() -> None:
    rows, queries = patches(6000), patches(64, seed=9)
    bank = MemoryBank(DIM, precision="int8")
    bank.add(rows[:4000])
    bank.search(queries)
    bank.add(rows[4000:])
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: bank.search(queries), range(8)))
    fresh = MemoryBank(DIM, precision="fp32")
    fresh.add(rows)
    for each in found:
        assert_same(each, fresh.search(queries))


@fast
@pytest.mark.parametrize("memory", [2**20, 2**22])
def test_same_bits_in_little_memory(memory: int) -> None:
    rows, queries = patches(6000), patches(300, seed=9)
    results = []
    for precision in ("fp32", "int8"):
        bank = MemoryBank(DIM, memory, precision)  # type: ignore[arg-type]
        bank.add(rows)
        results.append(bank.search(queries, 2))
    assert_same(*results)


@fast
def test_sketches_follow_what_happens_to_the_rows() -> None:
    rows, queries = CASES["patches"]
    bank = compared(rows, queries, 1)[0]
    first = bank._keeper._sketch

    def check() -> None:
        fresh = MemoryBank(DIM, precision="fp32")
        fresh.add(bank.rows)
        assert_same(bank.search(queries, 2), fresh.search(queries, 2))

    bank.add(QUERIES + 0.01, 99)
    check()
    bank.forget([0, 4, 99])
    check()
    # Growing and shrinking keep the directions.
    assert bank._keeper._sketch is first
    bank.standardize_(torch.full((DIM,), 0.5), torch.full((DIM,), 2.0))
    check()
    assert bank._keeper._sketch is not first
    with torch.no_grad():
        bank.rows[17] = QUERIES[3]
    check()
    twin = copy.deepcopy(bank)
    assert twin._keeper._sketch is None
    assert_same(twin.search(queries, 2), bank.search(queries, 2))
    other = MemoryBank(DIM)
    other.add(patches(1234, seed=11))
    bank.load_state_dict(other.state_dict())
    check()


@fast
def test_sketches_are_made_when_they_pay() -> None:
    rows, queries = patches(70_000), patches(300, seed=3)
    bank = MemoryBank(DIM)
    bank.add(rows)
    searches = 0
    while bank._keeper._sketch is None:
        found = bank.search(queries)
        searches += 1
    assert 1 < searches < 10
    assert not bank._keeper._pause
    assert_same(bank.search(queries), found)


@fast
def test_sketches_rest_where_they_rule_out_little() -> None:
    bank = MemoryBank(DIM, precision="int8")
    bank.add(normal(1, DIM).repeat(10_000, 1))
    pauses = []
    for _ in range(3):
        assert not bank.search(QUERIES)[1].any()
        pauses.append(bank._keeper._pause)
    assert pauses == [2, 4, 8]


@fast
def test_many_queries_of_few_neighbours_only() -> None:
    rows, queries = CASES["patches"]
    bank = MemoryBank(DIM, precision="int8")
    bank.add(rows)
    bank.search(queries[:3])
    bank.search(queries, 17)
    assert bank._keeper._sketch is None
    assert math.isclose(float(bank.search(rows[:40])[0].amax()), 0.0)
    assert bank._keeper._sketch is not None
