"""A bank searched by an inverted file of FAISS."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from offnominal import AnomalyDINO, PatchCore, load
from offnominal.errors import MissingExtraError, OptionError
from offnominal.extras import is_there
from offnominal.memory import MemoryBank
from offnominal.memory.search import ivf
from offnominal.memory.search.ivf import IVFBank, parse_search

faiss_there = pytest.mark.skipif(not is_there("faiss"), reason="the extra [scale] is not installed")


def filled(bank: Any, each: int = 600, references: int = 5) -> Any:
    rng = np.random.default_rng(1)
    centres = rng.standard_normal((40, 12))
    for number in range(references):
        own = centres[rng.integers(40, size=each)] + 0.3 * rng.standard_normal((each, 12))
        bank.add(own.astype(np.float32), number, counts=True)
    return bank


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ivf, "_LEAST", 1000)


def test_the_option_is_read() -> None:
    assert parse_search("exact") is None
    assert parse_search("ivf") == 0.99
    assert parse_search("ivf,recall=0.9") == 0.9
    for wrong in ("ivf,recall=2", "ivf,recall=0.1", "hnsw", "ivf,recall=", ""):
        with pytest.raises(OptionError, match="give exact, or ivf"):
            parse_search(wrong)
    with pytest.raises(OptionError, match="--search hnsw"):
        AnomalyDINO(backbone="builtin", search="hnsw")


def test_without_the_extra_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, soon: None
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "faiss", None)
    with pytest.raises(MissingExtraError, match=r"needs FAISS: pip install 'offnominal\[scale\]'"):
        filled(IVFBank(0.9)).build()


@faiss_there
@pytest.mark.parametrize("storage", ["fp32", "fp16", "int8"])
def test_it_finds_the_true_nearest_as_often_as_asked(storage: Any, soon: None) -> None:
    bank, plain = filled(IVFBank(0.9, storage=storage)), filled(MemoryBank(storage=storage))
    told = bank.build()
    assert 1 <= told["probes"] < told["cells"]
    assert told["recall"] > 0.8, "of queries that nothing was settled by"
    asked = plain.take(slice(0, 600)) + np.float32(0.01)
    for skip in (None, 0):
        (near, rows), (exact, true) = bank.search(asked, 3, skip), plain.search(asked, 3, skip)
        assert (near >= exact * (1 - 1e-5)).all(), "a distance is that of a row"
        assert (rows[:, 0] == true[:, 0]).mean() > 0.85
        assert (np.diff(near) >= 0).all()
        if skip == 0:
            assert (plain.reference[rows] != 0).all()
    bank.active(3, False)
    assert (plain.reference[bank.search(asked, 3)[1]] != 3).all()
    np.testing.assert_array_equal(
        bank.search(asked[:5], 1, among=[2])[0], plain.search(asked[:5], 1, among=[2])[0]
    )
    everything = IVFBank(1.0, storage=storage)
    assert filled(everything).build()["recall"] > 0.99


@faiss_there
def test_it_is_the_same_from_a_file_and_after_changes(soon: None) -> None:
    bank = filled(IVFBank(0.9))
    bank.build()
    again = IVFBank(0.9)
    again.adopt(bank.columns())
    asked = bank.take(slice(0, 200)) + np.float32(0.01)
    for one, other in zip(bank.search(asked), again.search(asked), strict=True):
        np.testing.assert_array_equal(one, other)
    again.add(asked, 5)
    assert (again.search(asked)[0] < 1e-9).mean() > 0.95
    again.truncate(3000)
    np.testing.assert_array_equal(again.search(asked)[0], bank.search(asked)[0])
    again.keep(again.reference != 1)
    assert (again.reference[again.search(asked, 4)[1]] != 1).all()
    wrong = bank.columns()
    wrong["cell"] = wrong["cell"] + 10_000
    with pytest.raises(OptionError, match="do not fit"):
        IVFBank(0.9).adopt(wrong)


@faiss_there
def test_few_rows_are_searched_exactly() -> None:
    bank = filled(IVFBank(0.9), 20)
    assert bank.build()["cells"] == 0
    asked = bank.take(slice(0, 5))
    np.testing.assert_array_equal(
        bank.search(asked, 2)[1], filled(MemoryBank(), 20).search(asked, 2)[1]
    )


@faiss_there
@pytest.mark.parametrize("method", [AnomalyDINO, PatchCore])
@pytest.mark.slow
def test_methods_with_a_bank_take_it(method: Any, parts: Path, tmp_path: Path, soon: None) -> None:
    files = sorted((parts / "fabric" / "train" / "good").iterdir())
    more = {"coreset": 1.0} if method is PatchCore else {"rotations": "none"}
    options: dict[str, Any] = {"backbone": "builtin", "resolution": 160, "device": "cpu", **more}
    exact = method(**options).fit(files, synthetic=False)
    near = method(**options, search="ivf,recall=0.95").fit(files, synthetic=False)
    assert (exact.leave_one_out, near.leave_one_out) == ("exact", "approximate")
    assert near.search_["cells"] > 0
    assert near.threshold.value >= exact.threshold.value * (1 - 1e-5)
    near.save(tmp_path / "near.offn")
    again = load(tmp_path / "near.offn", device="cpu")
    [one], [other], [true] = (each.predict(files[0]) for each in (near, again, exact))
    assert one.score == other.score
    test = sorted((parts / "fabric" / "test").rglob("*.png"))[0]
    [one], [true] = near.predict(test), exact.predict(test)
    assert one.score == pytest.approx(true.score, rel=0.05)
