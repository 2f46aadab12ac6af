"""Approximate search: what is asked for, what is built, and that the recall is what it says."""

import subprocess
import sys

import pytest
import torch
from tests.memory.indexed import DIM, OWNERS, PATCHES, bank_of, pictures

from offnominal.errors import ModelFileError, OptionError
from offnominal.memory import MemoryBank
from offnominal.memory.index import FaissIndex
from offnominal.memory.index_build import build_index, update_index
from offnominal.memory.index_choice import AUTO_ROWS, SearchChoice, parse_search
from offnominal.memory.index_tune import draw_references, exact_only, hold_back

KINDS = ["ivf", "hnsw", "ivfpq", "disk"]


@pytest.fixture(scope="module")
def bank() -> MemoryBank:
    return bank_of(pictures(OWNERS))


@pytest.fixture(scope="module")
def built(bank: MemoryBank) -> dict[str, FaissIndex]:
    return {kind: made(bank, f"{kind},recall=0.97") for kind in KINDS}


def made(bank: MemoryBank, text: str, neighbours: int = 1) -> FaissIndex:
    index = build_index(bank, parse_search(text), neighbours=neighbours)
    assert index is not None
    return index


@pytest.mark.parametrize(
    ("text", "kind", "recall"),
    [
        ("exact", "exact", 1.0),
        ("recall=0.95", "auto", 0.95),
        ("auto", "auto", 0.99),
        ("hnsw", "hnsw", 0.99),
        ("hnsw,recall=1", "hnsw", 1.0),
        (" recall = 0.9 , disk ", "disk", 0.9),
    ],
)
def test_what_can_be_asked_for(text: str, kind: str, recall: float) -> None:
    choice = parse_search(text)
    assert (choice.kind, choice.recall) == (kind, recall)
    assert parse_search(str(choice)) == choice


@pytest.mark.parametrize(
    "text",
    [
        *("", "fast", "recall", "recall=", "recall=0", "recall=1.01", "recall=99%", "recall=nan"),
        *("ivf,hnsw", "recall=0.9,recall=0.8", "ivf=0.9", "exact,recall=0.99", "ivf,"),
    ],
)
def test_what_cannot_be_asked_for_names_the_option_and_a_way_out(text: str) -> None:
    with pytest.raises(OptionError, match="--search") as error:
        parse_search(text)
    assert "exact" in str(error.value)


def test_auto_is_exact_until_an_index_pays() -> None:
    cpu, choice = torch.device("cpu"), parse_search("recall=0.9")
    assert choice.settled(AUTO_ROWS - 1, cpu).kind == "exact"
    assert choice.settled(AUTO_ROWS, cpu) == SearchChoice("ivf", 0.9)
    assert choice.settled(AUTO_ROWS, torch.device("cuda")).kind == "exact"
    assert parse_search("hnsw").settled(1, cpu).kind == "hnsw"
    assert build_index(bank_of(pictures(3)), choice) is None
    assert build_index(bank_of(pictures(3)), parse_search("exact")) is None


@pytest.mark.parametrize("kind", KINDS)
def test_recall_holds_on_other_pictures(
    kind: str, bank: MemoryBank, built: dict[str, FaissIndex]
) -> None:
    index = built[kind]
    assert index.recall >= 0.97
    assert index.queries == PATCHES  # of an eighth of the references, or at least one
    queries = torch.cat(pictures(4, seed=7))
    true = bank.search(queries)[0][:, 0]
    bank.index = index
    found, rows = bank.search(queries)
    bank.index = None
    assert (found[:, 0] >= true).all()
    assert (found[:, 0] == true).double().mean() > 0.94  # 1,600 queries of other pictures
    again = ((bank.take(rows[:, 0]).double() - queries) ** 2).sum(1)
    torch.testing.assert_close(found[:, 0].double(), again, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_skipped_rows_are_not_named(
    kind: str, bank: MemoryBank, built: dict[str, FaissIndex]
) -> None:
    queries = bank.take(slice(400, 450))
    with_own = built[kind].candidates(queries, 1, None)
    assert ((with_own >= 400) & (with_own < 800)).any()
    named = built[kind].candidates(queries, 1, [(400, 800), (1000, 4000)])
    assert named.dtype == torch.int64
    allowed = (named < 400) | ((named >= 800) & (named < 1000))
    assert allowed.all()
    assert (named >= 0).any()
    assert (built[kind].candidates(queries, 1, [(0, 4000)]) == -1).all()


@pytest.mark.parametrize("kind", ["ivf", "hnsw"])
def test_several_neighbours_count_in_the_recall(kind: str, bank: MemoryBank) -> None:
    index = made(bank, f"{kind},recall=0.97", neighbours=5)
    queries = torch.cat(pictures(4, seed=7))
    true = bank.search(queries, 5)[0]
    bank.index = index
    near = bank.search(queries, 5)[0]
    bank.index = None
    assert (near <= true[:, -1:]).double().mean() > 0.95


def test_more_recall_costs_more(bank: MemoryBank) -> None:
    for kind in ("ivf", "hnsw"):
        low, high = (made(bank, f"{kind},recall={recall}") for recall in (0.6, 0.999))
        assert low.cost(low.effort, low.named) < high.cost(high.effort, high.named)
        assert 0.6 <= low.recall < high.recall


def test_a_recall_out_of_reach_is_refused_and_says_what_was_reached() -> None:
    noise = torch.randn(3000, 96, generator=torch.Generator().manual_seed(0))
    bank = bank_of(list(noise.split(300)))
    with pytest.raises(OptionError, match=r"out of reach.* 0\.[0-9]{4} of the nearest") as error:
        build_index(bank, parse_search("ivf,recall=0.999"))
    assert "--search ivf,recall=0.999" in str(error.value)
    assert bank.index is None


def test_too_little_to_build_or_to_measure_with() -> None:
    with pytest.raises(OptionError, match="400 rows are too few"):
        build_index(bank_of(pictures(1)), parse_search("ivf"))
    one = MemoryBank(DIM)
    one.add(torch.cat(pictures(4)), 0)
    with pytest.raises(OptionError, match="two images"):
        build_index(one, parse_search("ivf"))


@pytest.mark.parametrize("kind", KINDS)
def test_same_seed_same_index(kind: str, bank: MemoryBank, built: dict[str, FaissIndex]) -> None:
    other = made(bank, f"{kind},recall=0.97")
    queries = pictures(1, seed=5)[0]
    assert other.setting == built[kind].setting
    assert torch.equal(other.candidates(queries, 3, None), built[kind].candidates(queries, 3, None))


@pytest.mark.parametrize("storage", ["fp16", "int8"])
def test_rows_stored_in_fewer_bits(storage: str) -> None:
    bank = bank_of(pictures(OWNERS), storage=storage)
    index = made(bank, "ivf,recall=0.97")
    assert index.recall >= 0.97
    queries = pictures(1, seed=5)[0]
    true = bank.search(queries)[0]
    bank.index = index
    assert (bank.search(queries)[0] == true).double().mean() > 0.94


def test_rows_that_repeat_each_other_count_as_found() -> None:
    """A plain background has the same patch a thousand times; any of them is the nearest."""
    plain = [torch.cat([rows[:200], rows[:1].expand(200, -1)]) for rows in pictures(OWNERS)]
    plain = [torch.cat([rows[:200], plain[0][200:]]) for rows in plain]
    assert made(bank_of(plain), "ivf,recall=0.97").recall >= 0.97


def drawn(bank: MemoryBank, seed: int = 0) -> torch.Tensor:
    return draw_references(bank, torch.Generator().manual_seed(seed))


def test_an_eighth_of_the_references_at_most_is_held_back() -> None:
    few_rows = MemoryBank(DIM)
    for owner, rows in enumerate(torch.cat(pictures(4)).split(20)):
        few_rows.add(rows, owner)
    away = drawn(few_rows)
    assert len(few_rows.owner[away].unique()) == 10
    many = MemoryBank(2)
    for owner in range(300):
        many.add(torch.rand(500, 2), owner)
    assert len(many.owner[drawn(many)].unique()) == 16  # 128 queries of each are enough
    assert torch.equal(drawn(many), drawn(many))
    assert not torch.equal(drawn(many), drawn(many, 1))
    assert len(bank_of(pictures(3)).owner[drawn(bank_of(pictures(3)))].unique()) == 1


def test_queries_are_upright_and_their_truth_is_of_the_others() -> None:
    bank = MemoryBank(DIM)
    for owner, rows in enumerate(pictures(3)):
        bank.add(rows + 1, owner, view=1)
        bank.add(rows, owner)
    away = bank.owner == 1
    held = hold_back(bank, away, ~away, 2, torch.Generator().manual_seed(0))
    distances = torch.cdist(held.queries, bank.rows)
    rows = distances.argmin(1)
    assert (bank.view[rows] == 0).all()
    assert (bank.owner[rows] == 1).all()
    assert len(rows.unique()) == PATCHES
    second = distances[:, ~away].kthvalue(2).values ** 2
    torch.testing.assert_close(held.reach, second, rtol=1e-4, atol=1e-5)


def test_a_graph_is_not_flattered() -> None:
    """Patches that are in the graph would be found by their own links; new ones are not."""
    noise = torch.randn(6000, 24, generator=torch.Generator().manual_seed(0))
    bank = bank_of(list(noise.split(500)))
    index = made(bank, "hnsw,recall=0.9")
    queries = torch.randn(2000, 24, generator=torch.Generator().manual_seed(1))
    true = bank.search(queries)[0]
    bank.index = index
    found = (bank.search(queries)[0] == true).double().mean()
    assert abs(float(found) - index.recall) < 0.04


@pytest.mark.parametrize("kind", KINDS)
def test_a_bank_that_grows(kind: str) -> None:
    bank = bank_of(pictures(OWNERS))
    bank.index = index = made(bank, f"{kind},recall=0.9")
    more = pictures(9, seed=3)
    bank.add(more[0], OWNERS)
    # Rows that the index does not know are searched exactly.
    distances, rows = bank.search(more[0])
    assert (distances == 0).all()
    assert torch.equal(rows[:, 0], torch.arange(PATCHES) + OWNERS * PATCHES)
    update_index(bank, parse_search(f"{kind},recall=0.9"))
    assert bank.index is index
    assert len(index) == (OWNERS + 1) * PATCHES
    assert index.recall >= 0.9
    for owner, rows in enumerate(more[1:], start=OWNERS + 1):
        bank.add(rows, owner)
    update_index(bank, parse_search(f"{kind},recall=0.9"))
    assert bank.index is not index
    assert isinstance(bank.index, FaissIndex)
    assert bank.index.built == len(bank) == (OWNERS + 9) * PATCHES


def test_pictures_that_are_harder_to_find_raise_the_settings() -> None:
    bank = bank_of(pictures(OWNERS))
    update_index(bank, parse_search("ivf,recall=0.9"))
    index = bank.index
    assert isinstance(index, FaissIndex)
    before = index.effort
    noise = torch.randn(PATCHES, DIM, generator=torch.Generator().manual_seed(0))
    bank.add(torch.nn.functional.normalize(pictures(1, seed=4)[0] + 0.15 * noise, dim=1), 99)
    update_index(bank, parse_search("ivf,recall=0.9"))
    assert bank.index is index
    assert index.effort > before
    assert index.recall >= 0.9


def test_updating_without_need_does_nothing(bank: MemoryBank, built: dict[str, FaissIndex]) -> None:
    update_index(bank, parse_search("exact"))
    update_index(bank, parse_search("recall=0.9"))
    assert bank.index is None
    bank.index = built["ivf"]
    update_index(bank, parse_search("ivf,recall=0.97"))
    assert bank.index is built["ivf"]
    bank.index = None


def test_an_index_that_no_longer_reaches_its_target_is_built_anew() -> None:
    bank = bank_of(pictures(OWNERS))
    update_index(bank, parse_search("ivf,recall=0.9"))
    index = bank.index
    assert isinstance(index, FaissIndex)
    # It names rows of other places now, as if what was added had turned everything over.
    index.faiss = made(bank_of([rows.flip(0) for rows in pictures(OWNERS)]), "ivf").faiss
    bank.add(pictures(1, seed=3)[0], OWNERS)
    update_index(bank, parse_search("ivf,recall=0.9"))
    assert isinstance(bank.index, FaissIndex)
    assert bank.index is not index
    assert bank.index.recall >= 0.9


@pytest.mark.parametrize("kind", KINDS)
def test_a_bank_that_forgets(kind: str) -> None:
    bank = bank_of(pictures(OWNERS))
    index = made(bank, f"{kind},recall=0.97")
    queries = pictures(1, seed=5)[0]
    for gone in ([2, 5], [0]):
        kept = ~torch.isin(bank.owner, torch.tensor(gone, dtype=torch.int32))
        index.forget(kept)
        bank.forget(gone)
        bank.index = index
        assert len(index) == len(bank)
        named = index.candidates(queries, 1, [(0, 100)])
        assert ((named == -1) | ((named >= 100) & (named < len(bank)))).all()
        found, rows = bank.search(queries, skip=3)
        assert not (bank.owner[rows] == 3).any()
        with exact_only(bank):
            true = bank.search(queries, skip=3)[0]
        assert (found == true).double().mean() > 0.94
    assert not index.outgrown(len(bank))
    bank.add(pictures(1, seed=8)[0], 20)
    update_index(bank, parse_search(f"{kind},recall=0.97"))
    assert len(index) == len(bank)
    assert (bank.search(bank.rows[-PATCHES:])[0] == 0).double().mean() > 0.96
    index.forget(torch.arange(len(bank)) < 3 * PATCHES)
    assert index.outgrown(3 * PATCHES)


def test_exact_search_comes_back_after_an_error(
    bank: MemoryBank, built: dict[str, FaissIndex]
) -> None:
    bank.index = built["ivf"]

    def fail() -> None:
        with exact_only(bank):
            assert bank.index is None
            raise OptionError("on purpose")

    with pytest.raises(OptionError, match="on purpose"):
        fail()
    assert bank.index is built["ivf"]
    bank.index = None


def test_works_where_nothing_is_recorded() -> None:
    with torch.inference_mode():
        bank = bank_of(pictures(OWNERS))
        bank.index = made(bank, "ivf,recall=0.9")
        bank.search(pictures(1, seed=5)[0])


def test_a_row_that_does_not_exist_is_an_error(bank: MemoryBank) -> None:
    import faiss

    index = made(bank, "ivf,recall=0.9")
    lists = faiss.downcast_InvertedLists(index.faiss.invlists)
    for number in range(index.faiss.nlist):
        size = lists.list_size(number)
        if size:
            ids = faiss.rev_swig_ptr(lists.get_ids(number), size)
            ids[:] = 10**6
    with pytest.raises(ModelFileError, match="damaged"):
        index.candidates(bank.take(slice(0, 5)), 1, None)


def test_without_faiss_the_extra_is_named() -> None:
    code = (
        "import sys; sys.modules['faiss'] = None\n"
        "import torch\n"
        "from offnominal.memory import MemoryBank\n"
        "from offnominal.memory.index_build import build_index\n"
        "from offnominal.memory.index_choice import parse_search\n"
        "bank = MemoryBank(4); bank.add(torch.rand(2000, 4), 0); bank.add(torch.rand(9, 4), 1)\n"
        "assert build_index(bank, parse_search('recall=0.9')) is None\n"
        "build_index(bank, parse_search('ivf'))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "OptionError: --search" in done.stderr
    assert "offnominal[scale]" in done.stderr
