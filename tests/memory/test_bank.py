"""The memory bank: exactness against brute force, independence of how work is cut, loading."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from offnominal.errors import OptionError
from offnominal.memory import MemoryBank
from offnominal.memory.search.arrays import ArraySearch
from offnominal.memory.search.arrays import Plan as ArrayPlan
from offnominal.memory.search.bound import _padded, bound
from offnominal.memory.search.find import Plan, nearest
from offnominal.memory.search.stored import StoredTensors
from offnominal.memory.storage import as_stored, turn

DIM = 48
FORMATS = [torch.float32, torch.bfloat16, torch.float16]
PLANS = [
    Plan(queries=100, rows=256, blocks=100, group=16, compared=4096, listed=100),
    Plan(queries=7, rows=91, blocks=2, group=7, compared=333, listed=5),
    Plan(queries=13, rows=400, blocks=1, group=1, compared=150, listed=13),
    Plan(queries=20, rows=200, blocks=3, group=200, compared=999, listed=3),
]


Floats = NDArray[np.float32]


def normal(*shape: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def unit(*shape: int, seed: int = 0) -> Floats:
    rows = normal(*shape, seed=seed)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def outlier() -> Floats:
    rows = 100 * normal(400, DIM)
    rows[7] *= 1e4
    return rows


CASES: dict[str, tuple[Floats, Floats]] = {
    "unit": (unit(400, DIM), unit(13, DIM, seed=1)),
    "queries equal rows": (unit(400, DIM), unit(400, DIM)[300:313]),
    "all rows the same": (unit(1, DIM).repeat(400, 0), unit(13, DIM, seed=1)),
    "rows repeat": (
        np.tile(unit(50, DIM), (8, 1)),
        unit(50, DIM)[:13] + np.float32(1e-4) * normal(13, DIM),
    ),
    "near copies": (unit(1, DIM) + 1e-3 * normal(400, DIM), unit(1, DIM) + 1e-3 * normal(13, DIM)),
    "large and far from the origin": (100 * normal(400, DIM) + 500, 100 * normal(13, DIM) + 500),
    "one huge row": (outlier(), 100 * normal(13, DIM, seed=1)),
    "tiny": (1e-15 * unit(400, DIM), 1e-15 * unit(13, DIM, seed=1)),
    "zero": (np.zeros((400, DIM), np.float32), np.zeros((13, DIM), np.float32)),
}


def brute_force(
    rows: Floats, queries: Floats, k: int, spans: list[tuple[int, int]]
) -> tuple[Floats, NDArray[np.int64]]:
    """Every distance, by the documented tree: the top half of what is left onto the bottom half."""
    index = np.concatenate([np.arange(*span) for span in spans])
    squares = (rows[index] - queries[:, None]) ** 2
    while (width := squares.shape[-1]) > 1:
        low, middle, high = np.split(squares, [width // 2, width - width // 2], axis=-1)
        squares = np.concatenate([low + high, middle], axis=-1)
    order = squares[..., 0].argsort(1, kind="stable")[:, :k]
    return np.take_along_axis(squares[..., 0], order, 1), index[order]


def same(found: tuple[Any, Any], expected: tuple[Any, Any]) -> bool:
    return all(np.array_equal(one, other) for one, other in zip(found, expected, strict=True))


@pytest.mark.parametrize("k", [1, 40])
@pytest.mark.parametrize("case", CASES)
def test_same_bits_as_brute_force_however_cut(case: str, k: int) -> None:
    rows, queries = CASES[case]
    for spans in ([(0, 400)], [(3, 4), (10, 150), (151, 340)]):
        expected = brute_force(rows, queries, k, spans)
        for plan in PLANS:
            for dtype in FORMATS:
                stored, asked = StoredTensors(torch.from_numpy(rows)), torch.from_numpy(queries)
                found = nearest(stored, asked, k, spans, dtype, plan)
                assert same(found, expected), (plan, dtype)


def search_of(bank: MemoryBank) -> Any:
    """What the bank keeps for its next search."""
    return bank._search.among(bank._stored, bank.device, bank.precision)


def without_torch(
    bank: MemoryBank, queries: Floats, k: int = 1, plan: ArrayPlan | None = None, **which: Any
) -> tuple[Any, Any]:
    """The search of a process that has not imported PyTorch."""
    asked = as_stored(queries, bank.storage)
    asked = turn(asked) if bank.storage == "int8" else asked
    return ArraySearch(bank._stored).find(asked, k, bank._spans(**which), bank.memory, plan)


@pytest.mark.parametrize("k", [1, 5])
@pytest.mark.parametrize("case", CASES)
def test_numpy_and_torch_find_the_same_bits(case: str, k: int) -> None:
    rows, queries = CASES[case]
    plans = [None, ArrayPlan(5, 67, 57), ArrayPlan(100, 91, 1000)]
    for storage in ("fp32", "fp16", "int8"):
        if storage == "fp16" and abs(rows).max() > 65504:
            continue
        bank = MemoryBank(storage=storage)
        for number in range(8):
            bank.add(rows[50 * number : 50 * (number + 1)], number)
        for which in ({}, {"skip": 2}, {"among": [1, 6]}):
            expected = bank.search(queries, k, **which)
            for plan in plans:
                assert same(without_torch(bank, queries, k, plan, **which), expected)


def test_numpy_within_little_memory_and_again() -> None:
    rows, queries = unit(5000, 96), unit(300, 96, seed=1)
    bank = MemoryBank(96, memory=2**20)
    bank.add(rows)
    expected = bank.search(queries, 3)
    assert same(without_torch(bank, queries, 3), expected)
    ample = ArraySearch(bank._stored)
    for _ in range(2):  # the second finds the blocks that the first one kept
        assert same(ample.find(queries, 3, [(0, 5000)], 2**29), expected)
        assert ample._blocks


def test_rows_that_are_mapped_are_not_copied(tmp_path: Path) -> None:
    rows = unit(300, DIM)
    np.save(tmp_path / "rows.npy", rows)
    bank, mapped = MemoryBank(), MemoryBank()
    bank.add(rows)
    file = np.load(tmp_path / "rows.npy", mmap_mode="r")
    mapped.adopt(bank.columns() | {"rows": file})
    for find in (MemoryBank.search, without_torch):
        assert same(find(mapped, rows[:20], 2), bank.search(rows[:20], 2))  # type: ignore[operator]
    held = search_of(mapped)._rows.values
    assert held.data_ptr() == file.ctypes.data == mapped.rows.ctypes.data
    mapped.standardize_(np.zeros(DIM, np.float32), np.ones(DIM, np.float32))
    assert mapped.rows.ctypes.data != file.ctypes.data


@pytest.mark.parametrize("dim", [1, 2, 3, 48, 385])
def test_agrees_with_float64(dim: int) -> None:
    rows, queries = normal(300, dim), normal(20, dim, seed=1)
    bank = MemoryBank(dim)
    bank.add(rows)
    found, index = bank.search(queries, 4)
    true = ((queries[:, None].astype(float) - rows) ** 2).sum(-1)
    np.testing.assert_allclose(found, np.sort(true)[:, :4], rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(found, np.take_along_axis(true, index, 1), rtol=1e-6, atol=1e-12)
    assert (found.dtype, index.dtype) == (np.float32, np.int64)


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("queries", [1, 2, 33])
@pytest.mark.parametrize("case", [c for c in CASES if c != "zero"])
def test_first_stage_keeps_its_promise(case: str, queries: int, dtype: torch.dtype) -> None:
    """No group's true nearness exceeds what its maximum and the stated error allow."""
    rows, group, blocks = torch.from_numpy(CASES[case][0]), 8, [(0, 256), (256, 400)]
    away = torch.from_numpy(normal(queries, DIM, seed=2))
    near = torch.from_numpy(CASES[case][1][:1]) + away * rows.std()
    found = bound(StoredTensors(rows), near, blocks, rows.mean(0), dtype, group)
    true = -((near[:, None].double() - rows.double()) ** 2).sum(-1) / 2
    for number, (start, stop) in enumerate(blocks):
        best = true[:, start:stop].unflatten(1, (-1, group)).amax(2)
        maxima = found.maxima[:, number, : best.shape[1]].double()
        allowed = found.slack[:, number, None] + best.abs() * found.roundoff
        assert (maxima - best >= -allowed).all()
        # Nor is it far above: by what a format of 8 bits may round off each of the vectors.
        ends = near.sub(rows.mean(0)).norm(dim=1).double(), rows.sub(rows.mean(0)).norm(dim=1)
        reach = ends[1][start:stop].double().view(-1, group).amax(1)
        room = (ends[0][:, None] + reach).square() * 2.0**-7
        assert (maxima - best <= allowed + room).all()
        # With a distance as far as the group's own best, the group must not be ruled out.
        for g in range(0, best.shape[1], 7):
            distances = (-2 * best[:, g]).float()
            limit = found.threshold(distances, torch.arange(queries))[:, number]
            assert (found.maxima[:, number, g] >= limit).all()


@pytest.mark.slow
def test_threads_and_memory_do_not_change_the_result() -> None:
    rows, queries = unit(5000, 96), unit(300, 96, seed=1)
    results, threads = [], torch.get_num_threads()
    try:
        for number in (1, 2):
            torch.set_num_threads(number)
            for memory in (2**20, 2**22, 2**29):
                for precision in ("fp32", "bf16", "auto"):
                    bank = MemoryBank(96, memory, precision)  # type: ignore[arg-type]
                    bank.add(rows)
                    results.append(bank.search(queries, 3))
    finally:
        torch.set_num_threads(threads)
    assert all(same(found, results[0]) for found in results)


def test_reduced_float32_products_widen_the_bound() -> None:
    """PyTorch may be told to compute float32 products in bfloat16; not every CPU obeys."""
    rows, queries = (torch.from_numpy(each) for each in CASES["unit"])
    nothing = torch.zeros(DIM)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        wide = bound(StoredTensors(rows), queries, [(0, 400)], nothing, torch.float32, 1)
    finally:
        torch.set_float32_matmul_precision(before)
    plain = bound(StoredTensors(rows), queries, [(0, 400)], nothing, torch.float32, 1)
    true = -((queries[:, None].double() - rows.double()) ** 2).sum(-1) / 2
    rounded = queries.bfloat16().double() @ rows.bfloat16().double().T - 1
    for found, enough in ((wide, True), (plain, False)):
        added = found.maxima[:, 0].double() - true + found.slack
        assert bool(((rounded - true).abs() <= added).all()) == enough


def test_equal_distances_give_the_lowest_row() -> None:
    bank = MemoryBank(2)
    bank.add(np.tile([[0.0, 1.0], [1.0, 0.0], [0.0, -1.0], [-1.0, 0.0]], (100, 1)))
    distances, index = bank.search(np.zeros((1, 2)), 6)
    assert index.tolist() == [[0, 1, 2, 3, 4, 5]]
    assert distances.tolist() == [[1.0] * 6]


@pytest.mark.slow
@pytest.mark.parametrize("library", ["", "torch"])
def test_workspace_is_bounded(library: str) -> None:
    """The whole matrix of similarities would take 800 MiB; 48 MiB are allowed."""
    program = """
import resource, sys
import numpy as np
from offnominal.memory import MemoryBank
if sys.argv[1:]:
    import torch
    torch.set_num_threads(1)
bank = MemoryBank(16, memory=48 * 2**20)
draw = np.random.default_rng(0)
bank.add(draw.standard_normal((102400, 16), np.float32))
queries = draw.standard_normal((2048, 16), np.float32)
bank.search(queries[:4])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
bank.search(queries)
copies = np.zeros((102400, 16), np.float32)
bank = MemoryBank(16, memory=48 * 2**20)
bank.add(copies)
bank.search(queries)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    if sys.platform != "linux":
        pytest.skip("ru_maxrss is in KiB on Linux only")
    command = [sys.executable, "-c", program, *library.split()]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    # The second bank and what it was made from take 13 MiB; the allocator keeps some back.
    assert int(done.stdout) < 48 + 13 + 32


def test_add_appends_converts_and_keeps_references() -> None:
    bank = MemoryBank(3)
    assert bank.rows.shape == (0, 3)
    parts = [normal(n, 3, seed=n) for n in (1, 0, 4, 30, 2)]
    for number, part in enumerate(parts):
        bank.add(part.astype(float), reference=number)
    bank.add(np.ones((1, 3), np.float16))
    assert np.array_equal(bank.rows, np.concatenate([*parts, np.ones((1, 3))]))
    assert bank.reference.tolist() == [0] + [2] * 4 + [3] * 30 + [4] * 2 + [-1]
    assert bank.rows.dtype == np.float32
    assert bank.reference.dtype == np.int32
    assert bank.rows.flags.c_contiguous


def test_adding_does_not_copy_what_is_there_every_time() -> None:
    bank, places = MemoryBank(8), set()
    for number in range(1000):
        bank.add(np.zeros((8, 8)), reference=number)
        places.add(bank.rows.ctypes.data)
    assert len(places) < 40


def test_adding_never_writes_into_rows_handed_out() -> None:
    bank = MemoryBank(4)
    bank.add(normal(10, 4))
    rows, kept = bank.rows, bank.rows.copy()
    for name, column in bank.columns().items():
        setattr(bank, name, column[:5])
    bank.add(np.zeros((20, 4)))
    assert np.array_equal(rows, kept)
    assert len(bank.rows) == len(bank.reference) == 25


def test_skip_leaves_out_an_image() -> None:
    bank = MemoryBank(DIM)
    rows = unit(600, DIM)
    for reference in range(6):
        bank.add(rows[100 * reference : 100 * (reference + 1)], reference)
    for skip, spans in [(0, [(100, 600)]), (3, [(0, 300), (400, 600)]), (5, [(0, 500)])]:
        expected = brute_force(rows, rows[::50], 2, spans)
        assert same(bank.search(rows[::50], 2, skip=skip), expected)
    assert bank.search(rows[:5], skip=99)[1][:, 0].tolist() == list(range(5))


def test_rows_are_not_written_into() -> None:
    """A search may have kept something of them."""
    bank = MemoryBank(DIM)
    bank.add(unit(30, DIM))
    with pytest.raises(ValueError, match="read-only"):
        bank.rows[0] = 0


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e30])
def test_refuses_values_that_are_not_finite(bad: float) -> None:
    features = unit(30, DIM)
    features[4, 5] = bad
    bank = MemoryBank(DIM)
    with pytest.raises(OptionError, match="features: values must be finite"):
        bank.add(features)
    bank.add(unit(30, DIM))
    with pytest.raises(OptionError, match="queries: values must be finite"):
        bank.search(features)
    bank.rows = features
    with pytest.raises(OptionError, match="memory bank: rows must be finite"):
        bank.search(unit(3, DIM))
    with pytest.raises(OptionError, match="memory bank: rows must be finite"):
        without_torch(bank, unit(3, DIM))


def test_errors_name_the_option() -> None:
    with pytest.raises(OptionError, match="dim"):
        MemoryBank(-1)
    with pytest.raises(OptionError, match="memory"):
        MemoryBank(4, memory=10)
    with pytest.raises(OptionError, match="precision"):
        MemoryBank(4, precision="int4")  # type: ignore[arg-type]
    bank = MemoryBank(4)
    with pytest.raises(OptionError, match="among 0"):
        bank.search(np.zeros((1, 4)))
    bank.add(np.zeros((5, 4)), reference=1)
    bank.add(np.zeros((5, 4)), reference=2)
    for k in (0, 11):
        with pytest.raises(OptionError, match="among 10"):
            bank.search(np.zeros((1, 4)), k)
    with pytest.raises(OptionError, match="among 5 without those of reference 2"):
        bank.search(np.zeros((1, 4)), 6, skip=2)
    wrong: list[Any] = [np.zeros((1, 5)), np.zeros(4), np.zeros((1, 4), np.int64)]
    for queries in (*wrong, torch.zeros(1, 4)):
        with pytest.raises(OptionError, match="queries"):
            bank.search(queries)
    for quantile in (0.0, 1.1):
        with pytest.raises(OptionError, match="quantile"):
            bank.distances_below_quantile(np.zeros((1, 4)), quantile)
    assert bank.search(np.zeros((0, 4)), 2)[0].shape == (0, 2)


@pytest.mark.parametrize("quantile", [0.001, 0.003, 0.01, 0.25, 1.0])
def test_mean_below_quantile(quantile: float) -> None:
    bank = MemoryBank(DIM)
    rows, queries = unit(1000, DIM), unit(15, DIM, seed=1)
    bank.add(rows[:200], reference=0)
    bank.add(rows[200:], reference=1)
    found = bank.distances_below_quantile(queries, quantile, skip=0)
    cosine = np.sort(1 - queries.astype(float) @ rows[200:].astype(float).T)
    kth = int(quantile * 800)
    expected = cosine[:, : kth - 1].mean(1) if kth > 1 else cosine[:, 0]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_mean_below_quantile_without_smaller_distances() -> None:
    bank = MemoryBank(2)
    bank.add(np.tile([[0.0, 1.0]], (100, 1)))
    found = bank.distances_below_quantile(np.array([[1.0, 0.0]]), 0.5, skip=None)
    assert found.tolist() == [1.0]


def test_adding_nothing_to_an_empty_bank_is_nothing() -> None:
    bank = MemoryBank(4).to("cpu")
    bank.add(np.empty((0, 4)), reference=0)
    assert len(bank) == 0
    bank.add(np.ones((2, 4)), reference=1)
    assert len(bank) == 2


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("storage", ["fp32", "int8"])
def test_what_is_kept_between_searches_is_of_the_rows_as_they_are(
    precision: Literal["fp32", "bf16", "fp16"], storage: Literal["fp32", "int8"]
) -> None:
    queries = normal(40, 32, seed=9)

    def check(bank: MemoryBank) -> None:
        fresh = MemoryBank(32, precision="fp32", storage=storage)
        for reference in np.unique(bank.reference).tolist():
            fresh.add(bank.take(bank.rows_of(reference)), reference)
        wanted = fresh.search(queries, 3)
        # The first search keeps its blocks, and the second finds them.
        for _ in range(2):
            assert same(bank.search(queries, 3), wanted)

    bank = MemoryBank(32, precision=precision, storage=storage)
    bank.add(normal(3000, 32, seed=0), reference=0)
    check(bank)
    assert bool(search_of(bank)._cache._blocks) == (precision != "fp16")
    bank.add(normal(500, 32, seed=1), reference=1)
    check(bank)
    assert bank.search(queries, 3, skip=1)[1].max() < 3000
    bank.active(0, False)
    bank.compact()
    check(bank)
    if storage == "fp32":
        bank.standardize_(np.ones(32, np.float32), np.full(32, 2, np.float32))
        check(bank)
    bank.rows = bank.rows[::-1].copy()
    check(bank)


def test_blocks_that_do_not_fit_are_not_kept() -> None:
    bank = MemoryBank(256, memory=2**20, precision="bf16")
    bank.add(normal(400, 256, seed=0))
    bank.search(bank.rows[:20])
    kept = search_of(bank)._cache
    assert kept._blocks
    assert 0 <= kept._room < 2**18
    bank.add(normal(400, 256, seed=1))
    for _ in range(2):
        bank.search(bank.rows[:20])
        assert not search_of(bank)._cache._blocks


def test_searches_side_by_side() -> None:
    rows, queries = unit(6000, DIM), unit(64, DIM, seed=9)
    bank = MemoryBank(DIM)
    bank.add(rows)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: bank.search(queries), range(8)))
    fresh = MemoryBank(DIM, precision="fp32")
    fresh.add(rows)
    for each in found:
        assert same(each, fresh.search(queries))


def test_products_have_few_shapes_and_little_to_spare() -> None:
    sizes = range(1, 2**12)
    padded = {size: _padded(size) for size in sizes}
    assert all(size <= padded[size] <= size * 1.125 for size in sizes)
    assert len({padded[size] for size in range(2**11, 2**12)}) <= 9


def test_autocast_does_not_reach_the_bounds() -> None:
    rows, queries = unit(3000, DIM), unit(60, DIM, seed=1)
    bank = MemoryBank(DIM, precision="fp32")
    bank.add(rows)
    expected = bank.search(queries, 3)
    with torch.autocast("cpu", torch.bfloat16):
        assert same(bank.search(queries, 3), expected)


@pytest.mark.parametrize("storage", ["fp32", "fp16", "int8"])
def test_queries_are_rounded_as_rows_are(storage: Literal["fp32", "fp16", "int8"]) -> None:
    bank = MemoryBank(storage=storage)
    rows = unit(300, DIM)
    bank.add(rows)
    own = bank.search(rows[:40])
    assert same(own, bank.search(bank.take(np.arange(40))))
    assert own[1][:, 0].tolist() == list(range(40))
    assert own[0].max() < 1e-10


def test_the_first_rows_settle_the_length() -> None:
    bank = MemoryBank()
    assert bank.dim == 0
    with pytest.raises(OptionError, match="among 0"):
        bank.search(np.zeros((1, 7)))
    with pytest.raises(OptionError, match="features: float64 of shape"):
        bank.add(np.zeros((3, 0)))
    bank.add(np.zeros((3, 7)))
    assert (bank.dim, len(bank)) == (7, 3)
    with pytest.raises(OptionError, match=r"shape \(n, 7\)"):
        bank.add(np.zeros((3, 8)))


@pytest.mark.parametrize("storage", ["fp32", "int8"])
def test_inactive_references_are_passed_over(storage: Literal["fp32", "int8"]) -> None:
    rows, queries = unit(600, DIM), unit(30, DIM, seed=4)
    bank = MemoryBank(storage=storage)
    for number in range(6):
        bank.add(rows[100 * number : 100 * (number + 1)], number)
    before = bank.search(queries, 3)
    bank.active(2, False)
    bank.active(5, False)
    assert bank.inactive == {2, 5}
    assert (bank.left(), bank.left(0), bank.left(2)) == (400, 300, 400)
    without = bank.search(queries, 3)
    assert not np.isin(bank.reference[without[1]], [2, 5]).any()
    assert bank.search(queries, among=[0, 2])[1].max() < 100
    other = MemoryBank(storage=storage)
    for number in (0, 1, 3, 4):
        other.add(rows[100 * number : 100 * (number + 1)], number)
    assert np.array_equal(other.search(queries, 3)[0], without[0])
    bank.active(2, True)
    bank.active(5, True)
    assert same(bank.search(queries, 3), before)
    for number in range(6):
        bank.active(number, False)
    with pytest.raises(OptionError, match="among 0"):
        bank.search(queries)
