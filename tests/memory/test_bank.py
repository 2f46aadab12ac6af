"""The memory bank: exactness against brute force, independence of how work is cut, loading."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from offnominal.errors import OptionError
from offnominal.memory import MemoryBank
from offnominal.memory.search.bound import _padded, bound
from offnominal.memory.search.find import Plan, nearest
from offnominal.memory.storage import StoredRows

DIM = 48
FORMATS = [torch.float32, torch.bfloat16, torch.float16]
PLANS = [
    Plan(queries=100, rows=256, blocks=100, group=16, compared=4096, listed=100),
    Plan(queries=7, rows=91, blocks=2, group=7, compared=333, listed=5),
    Plan(queries=13, rows=400, blocks=1, group=1, compared=150, listed=13),
    Plan(queries=20, rows=200, blocks=3, group=200, compared=999, listed=3),
]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def unit(*shape: int, seed: int = 0) -> Tensor:
    return F.normalize(normal(*shape, seed=seed), dim=1)


def outlier() -> Tensor:
    rows = 100 * normal(400, DIM)
    rows[7] *= 1e4
    return rows


CASES: dict[str, tuple[Tensor, Tensor]] = {
    "unit": (unit(400, DIM), unit(13, DIM, seed=1)),
    "queries equal rows": (unit(400, DIM), unit(400, DIM)[300:313]),
    "all rows the same": (unit(1, DIM).repeat(400, 1), unit(13, DIM, seed=1)),
    "rows repeat": (unit(50, DIM).repeat(8, 1), unit(50, DIM)[:13] + 1e-4 * normal(13, DIM)),
    "near copies": (unit(1, DIM) + 1e-3 * normal(400, DIM), unit(1, DIM) + 1e-3 * normal(13, DIM)),
    "large and far from the origin": (100 * normal(400, DIM) + 500, 100 * normal(13, DIM) + 500),
    "one huge row": (outlier(), 100 * normal(13, DIM, seed=1)),
    "tiny": (1e-15 * unit(400, DIM), 1e-15 * unit(13, DIM, seed=1)),
    "zero": (torch.zeros(400, DIM), torch.zeros(13, DIM)),
}


def brute_force(
    rows: Tensor, queries: Tensor, k: int, spans: list[tuple[int, int]]
) -> tuple[Tensor, Tensor]:
    """Every distance, by the documented tree: the top half of what is left onto the bottom half."""
    index = torch.cat([torch.arange(*span) for span in spans])
    squares = (rows[index] - queries[:, None]) ** 2
    while (width := squares.shape[-1]) > 1:
        half = width // 2
        low, middle, high = squares.split([half, width - 2 * half, half], dim=-1)
        squares = torch.cat([low + high, middle], dim=-1)
    distances, order = squares[..., 0].sort(dim=1, stable=True)
    return distances[:, :k], index[order[:, :k]]


@pytest.mark.parametrize("k", [1, 40])
@pytest.mark.parametrize("case", CASES)
def test_same_bits_as_brute_force_however_cut(case: str, k: int) -> None:
    rows, queries = CASES[case]
    for spans in ([(0, 400)], [(3, 4), (10, 150), (151, 340)]):
        expected = brute_force(rows, queries, k, spans)
        for plan in PLANS:
            for dtype in FORMATS:
                found = nearest(StoredRows(rows), queries, k, spans, dtype, plan)
                assert torch.equal(found[0], expected[0]), (plan, dtype)
                assert torch.equal(found[1], expected[1]), (plan, dtype)


@pytest.mark.parametrize("dim", [1, 2, 3, 48, 385])
def test_agrees_with_float64(dim: int) -> None:
    rows, queries = normal(300, dim), normal(20, dim, seed=1)
    bank = MemoryBank(dim)
    bank.add(rows)
    found, index = bank.search(queries, 4)
    true = ((queries[:, None].double() - rows.double()) ** 2).sum(-1)
    torch.testing.assert_close(
        found.double(), true.topk(4, largest=False).values, rtol=1e-6, atol=1e-12
    )
    torch.testing.assert_close(found.double(), true.gather(1, index), rtol=1e-6, atol=1e-12)
    assert found.dtype == torch.float32
    assert index.dtype == torch.int64


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("queries", [1, 2, 33])
@pytest.mark.parametrize("case", [c for c in CASES if c != "zero"])
def test_first_stage_keeps_its_promise(case: str, queries: int, dtype: torch.dtype) -> None:
    """No group's true nearness exceeds what its maximum and the stated error allow."""
    rows, group, blocks = CASES[case][0], 8, [(0, 256), (256, 400)]
    near = CASES[case][1][:1] + normal(queries, DIM, seed=2) * rows.std()
    found = bound(StoredRows(rows), near, blocks, rows.mean(0), dtype, group)
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
    assert all(torch.equal(d, results[0][0]) for d, _ in results)
    assert all(torch.equal(i, results[0][1]) for _, i in results)


def test_reduced_float32_products_widen_the_bound() -> None:
    """PyTorch may be told to compute float32 products in bfloat16; not every CPU obeys."""
    rows, queries = CASES["unit"]
    nothing = torch.zeros(DIM)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        wide = bound(StoredRows(rows), queries, [(0, 400)], nothing, torch.float32, 1)
    finally:
        torch.set_float32_matmul_precision(before)
    plain = bound(StoredRows(rows), queries, [(0, 400)], nothing, torch.float32, 1)
    true = -((queries[:, None].double() - rows.double()) ** 2).sum(-1) / 2
    rounded = queries.bfloat16().double() @ rows.bfloat16().double().T - 1
    for found, enough in ((wide, True), (plain, False)):
        added = found.maxima[:, 0].double() - true + found.slack
        assert bool(((rounded - true).abs() <= added).all()) == enough


def test_equal_distances_give_the_lowest_row() -> None:
    bank = MemoryBank(2)
    bank.add(torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, -1.0], [-1.0, 0.0]]).repeat(100, 1))
    distances, index = bank.search(torch.zeros(1, 2), 6)
    assert index.tolist() == [[0, 1, 2, 3, 4, 5]]
    assert distances.tolist() == [[1.0] * 6]


@pytest.mark.slow
def test_workspace_is_bounded() -> None:
    """The whole matrix of similarities would take 800 MiB; 48 MiB are allowed."""
    program = """
import resource, torch
from offnominal.memory import MemoryBank
torch.set_num_threads(1)
bank = MemoryBank(16, memory=48 * 2**20)
bank.add(torch.randn(102400, 16))
queries = torch.randn(2048, 16)
bank.search(queries[:4])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
bank.search(queries)
copies = torch.zeros(102400, 16)
bank = MemoryBank(16, memory=48 * 2**20)
bank.add(copies)
bank.search(queries)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    if sys.platform != "linux":
        pytest.skip("ru_maxrss is in KiB on Linux only")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    # The second bank and what it was made from take 13 MiB; the allocator keeps some back.
    assert int(done.stdout) < 48 + 13 + 32


def test_add_appends_converts_and_keeps_references() -> None:
    bank = MemoryBank(3)
    assert bank.rows.shape == (0, 3)
    parts = [normal(n, 3, seed=n) for n in (1, 0, 4, 30, 2)]
    for number, part in enumerate(parts):
        bank.add(part.double(), reference=number)
    bank.add(torch.ones(1, 3, dtype=torch.bfloat16))
    assert torch.equal(bank.rows, torch.cat([*parts, torch.ones(1, 3)]))
    assert bank.reference.tolist() == [0] + [2] * 4 + [3] * 30 + [4] * 2 + [-1]
    assert bank.rows.dtype == torch.float32
    assert bank.reference.dtype == torch.int32
    assert bank.rows.is_contiguous()


def test_adding_does_not_copy_what_is_there_every_time() -> None:
    bank, places = MemoryBank(8), set()
    for number in range(1000):
        bank.add(torch.zeros(8, 8), reference=number)
        places.add(bank.rows.data_ptr())
    assert len(places) < 40


def test_adding_never_writes_into_rows_handed_out() -> None:
    bank = MemoryBank(4)
    bank.add(normal(10, 4))
    rows, kept = bank.rows, bank.rows.clone()
    for name, column in list(bank.named_buffers()):
        setattr(bank, name, column[:5])
    bank.add(torch.zeros(20, 4))
    assert torch.equal(rows, kept)
    assert len(bank.rows) == len(bank.reference) == 25


def test_skip_leaves_out_an_image() -> None:
    bank = MemoryBank(DIM)
    rows = unit(600, DIM)
    for reference in range(6):
        bank.add(rows[100 * reference : 100 * (reference + 1)], reference)
    for skip, spans in [(0, [(100, 600)]), (3, [(0, 300), (400, 600)]), (5, [(0, 500)])]:
        expected = brute_force(rows, rows[::50], 2, spans)
        found = bank.search(rows[::50], 2, skip=skip)
        assert torch.equal(found[0], expected[0])
        assert torch.equal(found[1], expected[1])
    assert torch.equal(bank.search(rows[:5], skip=99)[1][:, 0], torch.arange(5))


def test_rows_added_in_inference_mode_can_be_used_outside() -> None:
    bank = MemoryBank(DIM)
    with torch.inference_mode():
        bank.add(unit(30, DIM))
    bank.add(unit(30, DIM, seed=1))
    bank.rows[0] = 0
    assert not bank.rows.is_inference()


def test_half_precision_modules_keep_exact_rows() -> None:
    bank = MemoryBank(DIM)
    bank.add(unit(30, DIM))
    kept = bank.rows.clone()
    bank.half()
    assert torch.equal(bank.rows, kept)


def test_autograd_is_left_out() -> None:
    bank = MemoryBank(DIM)
    bank.add(unit(30, DIM).requires_grad_())
    distances, _ = bank.search(unit(3, DIM).requires_grad_())
    assert not bank.rows.requires_grad
    assert not distances.requires_grad


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


def test_errors_name_the_option() -> None:
    with pytest.raises(OptionError, match="dim"):
        MemoryBank(-1)
    with pytest.raises(OptionError, match="memory"):
        MemoryBank(4, memory=10)
    with pytest.raises(OptionError, match="precision"):
        MemoryBank(4, precision="int4")  # type: ignore[arg-type]
    bank = MemoryBank(4)
    with pytest.raises(OptionError, match="among 0"):
        bank.search(torch.zeros(1, 4))
    bank.add(torch.zeros(5, 4), reference=1)
    bank.add(torch.zeros(5, 4), reference=2)
    for k in (0, 11):
        with pytest.raises(OptionError, match="among 10"):
            bank.search(torch.zeros(1, 4), k)
    with pytest.raises(OptionError, match="among 5 without those of reference 2"):
        bank.search(torch.zeros(1, 4), 6, skip=2)
    for queries in (torch.zeros(1, 5), torch.zeros(4), torch.zeros(1, 4, dtype=torch.int64)):
        with pytest.raises(OptionError, match="queries"):
            bank.search(queries)
    for quantile in (0.0, 1.1):
        with pytest.raises(OptionError, match="quantile"):
            bank.distances_below_quantile(torch.zeros(1, 4), quantile)
    assert bank.search(torch.zeros(0, 4), 2)[0].shape == (0, 2)


@pytest.mark.parametrize("quantile", [0.001, 0.003, 0.01, 0.25, 1.0])
def test_mean_below_quantile(quantile: float) -> None:
    bank = MemoryBank(DIM)
    rows, queries = unit(1000, DIM), unit(15, DIM, seed=1)
    bank.add(rows[:200], reference=0)
    bank.add(rows[200:], reference=1)
    found = bank.distances_below_quantile(queries, quantile, skip=0)
    cosine = (1 - queries.double() @ rows[200:].double().T).sort(dim=1).values
    kth = int(quantile * 800)
    expected = cosine[:, : kth - 1].mean(1) if kth > 1 else cosine[:, 0]
    torch.testing.assert_close(found, expected.float(), rtol=1e-5, atol=1e-6)


def test_mean_below_quantile_without_smaller_distances() -> None:
    bank = MemoryBank(2)
    bank.add(torch.tensor([[0.0, 1.0]]).repeat(100, 1))
    found = bank.distances_below_quantile(torch.tensor([[1.0, 0.0]]), 0.5, skip=None)
    assert found.tolist() == [1.0]


def test_adding_nothing_to_an_empty_bank_is_nothing() -> None:
    with torch.inference_mode():
        bank = MemoryBank(4).to("cpu")
        bank.add(torch.empty(0, 4), reference=0)
        assert len(bank) == 0
        bank.add(torch.ones(2, 4), reference=1)
    assert len(bank) == 2


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("storage", ["fp32", "int8"])
def test_what_is_kept_between_searches_is_of_the_rows_as_they_are(
    precision: Literal["fp32", "bf16", "fp16"], storage: Literal["fp32", "int8"]
) -> None:
    queries = normal(40, 32, seed=9)

    def check(bank: MemoryBank) -> None:
        fresh = MemoryBank(32, precision="fp32", storage=storage)
        for reference in bank.reference.unique().tolist():
            fresh.add(bank.take(bank.rows_of(reference)), reference)
        wanted = fresh.search(queries, 3)
        # The first search keeps its blocks, and the second finds them.
        for _ in range(2):
            assert all(map(torch.equal, bank.search(queries, 3), wanted))

    bank = MemoryBank(32, precision=precision, storage=storage)
    bank.add(normal(3000, 32, seed=0), reference=0)
    check(bank)
    assert bool(bank._cache._blocks) == (precision != "fp16")
    bank.add(normal(500, 32, seed=1), reference=1)
    check(bank)
    assert bank.search(queries, 3, skip=1)[1].max() < 3000
    bank.active(0, False)
    bank.compact()
    check(bank)
    bank.rows.neg_()
    check(bank)
    bank.rows = bank.rows.flip(0)
    check(bank)


def test_blocks_that_do_not_fit_are_not_kept() -> None:
    bank = MemoryBank(256, memory=2**20, precision="bf16")
    bank.add(normal(400, 256, seed=0))
    bank.search(bank.rows[:20])
    assert bank._cache._blocks
    assert 0 <= bank._cache._room < 2**18
    bank.add(normal(400, 256, seed=1))
    for _ in range(2):
        bank.search(bank.rows[:20])
        assert bank._cache._values() is not bank.rows  # type: ignore[misc]


def test_searches_side_by_side() -> None:
    rows, queries = unit(6000, DIM), unit(64, DIM, seed=9)
    bank = MemoryBank(DIM)
    bank.add(rows)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: bank.search(queries), range(8)))
    fresh = MemoryBank(DIM, precision="fp32")
    fresh.add(rows)
    for each in found:
        assert all(map(torch.equal, each, fresh.search(queries)))


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
        assert all(map(torch.equal, bank.search(queries, 3), expected))


@pytest.mark.parametrize("storage", ["fp32", "fp16", "int8"])
def test_queries_are_rounded_as_rows_are(storage: Literal["fp32", "fp16", "int8"]) -> None:
    bank = MemoryBank(storage=storage)
    rows = unit(300, DIM)
    bank.add(rows)
    own = bank.search(rows[:40])
    taken = bank.search(bank.take(torch.arange(40)))
    assert all(map(torch.equal, own, taken))
    assert own[1][:, 0].tolist() == list(range(40))
    assert own[0].max() < 1e-10


def test_the_first_rows_settle_the_length() -> None:
    bank = MemoryBank()
    assert bank.dim == 0
    with pytest.raises(OptionError, match="among 0"):
        bank.search(torch.zeros(1, 7))
    with pytest.raises(OptionError, match="features: a"):
        bank.add(torch.zeros(3, 0))
    bank.add(torch.zeros(3, 7))
    assert (bank.dim, len(bank)) == (7, 3)
    with pytest.raises(OptionError, match=r"shape \(n, 7\)"):
        bank.add(torch.zeros(3, 8))


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
    assert not torch.isin(bank.reference[without[1]], torch.tensor([2, 5])).any()
    assert bank.search(queries, among=[0, 2])[1].max() < 100
    other = MemoryBank(storage=storage)
    for number in (0, 1, 3, 4):
        other.add(rows[100 * number : 100 * (number + 1)], number)
    assert torch.equal(other.search(queries, 3)[0], without[0])
    bank.active(2, True)
    bank.active(5, True)
    assert all(map(torch.equal, bank.search(queries, 3), before))
    for number in range(6):
        bank.active(number, False)
    with pytest.raises(OptionError, match="among 0"):
        bank.search(queries)
