"""Detectors that search by an index: never nearer than exact, and right through every step."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from offnominal import AnomalyDINO, Detector, MultiLayerNN, PatchCore, SoftPatch
from offnominal.benchmark.grid import parse_sets
from offnominal.detectors import indexing
from offnominal.detectors.anomalydino_batched import BatchedAnomalyDINO
from offnominal.detectors.banked import Banked
from offnominal.detectors.ensemble import Ensemble
from offnominal.errors import ImageError, ModelFileError, OptionError
from offnominal.memory.index_choice import AUTO_ROWS

SMALL: dict[str, Any] = {"backbone": "builtin", "resolution": 128, "device": "cpu"}
FEW: dict[str, Any] = SMALL | {"normalize": "l2", "rotations": "none", "mask": "off"}
CORE: dict[str, Any] = SMALL | {"dim": 48, "coreset": 1}

METHODS: dict[str, Callable[..., Banked]] = {
    "anomalydino": lambda **more: AnomalyDINO(**FEW, **more),
    "masked": lambda **more: AnomalyDINO(**FEW | {"mask": "on"}, neighbours=2, **more),
    "int8": lambda **more: AnomalyDINO(**FEW, storage="int8", **more),
    "standardized": lambda **more: AnomalyDINO(**SMALL, rotations="none", **more),
    "patchcore": lambda **more: PatchCore(**CORE, **more),
    "coreset": lambda **more: PatchCore(**CORE | {"coreset": 0.7}, **more),
    "softpatch": lambda **more: SoftPatch(**CORE | {"coreset": 0.8}, **more),
    "layers": lambda **more: MultiLayerNN(
        **SMALL | {"resolution": 64}, normalize="l2", summary_weight=0.5, **more
    ),
}
# Each with the kinds that go another way through the code.
KINDS = [
    ("anomalydino", "ivf"),
    ("anomalydino", "hnsw"),
    ("anomalydino", "ivfpq"),
    ("anomalydino", "disk"),
    *((name, "ivf") for name in METHODS if name != "anomalydino"),
]


@pytest.fixture(scope="module")
def files(parts: Path) -> list[Path]:
    return sorted((parts / "part" / "train" / "good").iterdir())


@pytest.fixture(scope="module")
def fresh(parts: Path) -> list[Path]:
    return sorted((parts / "part" / "test").rglob("*.png"))[:3]


def never_nearer(indexed: Detector, exact: Detector, images: list[Path], equal: float) -> None:
    """Patch scores are those of exact search, or larger where the index missed the nearest row."""
    shares = []
    for a, b in zip(indexed.predict(images), exact.predict(images), strict=True):
        assert (a.patch_scores >= b.patch_scores).all()
        shares.append((a.patch_scores == b.patch_scores).mean())
    assert np.mean(shares) > equal


def same_predictions(one: Detector, two: Detector, images: list[Path]) -> None:
    for a, b in zip(one.predict(images), two.predict(images), strict=True):
        assert a.score == b.score
        assert a.threshold == b.threshold
        assert np.array_equal(a.patch_scores, b.patch_scores)


def rows_are_known(detector: Banked) -> None:
    """Every row of a bank is in its index, under its own number."""
    found = indexing.indexes(detector)
    assert len(found) == len(detector._patch_banks)
    for bank, index in zip(detector._patch_banks, found, strict=True):
        assert len(index) == len(bank)
        if index.rows is not None:
            assert sorted(index.rows[index.rows >= 0].tolist()) == list(range(len(bank)))
        # A row is its own nearest, and of equal ones the first.
        rows = torch.arange(0, len(bank), 7)
        distance, row = bank.search(bank.take(rows))
        assert (distance[:, 0] == 0).float().mean() > 0.95
        assert (row[:, 0] == rows).float().mean() > 0.9


@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_an_index_is_built_reported_and_saved(
    name: str, kind: str, files: list[Path], fresh: list[Path], tmp_path: Path
) -> None:
    exact = METHODS[name]().fit(files)
    detector = METHODS[name](search=f"{kind},recall=0.9").fit(files)
    rows_are_known(detector)
    report = detector.index_report
    assert report is not None
    assert (report.kind, report.target, report.images) == (kind, 0.9, len(files))
    assert report.recall >= 0.9
    assert report.rows == sum(map(len, detector._patch_banks))
    assert report.speed is not None
    assert abs(report.auroc_change) < 0.3
    assert detector.search_note_ is None
    # SoftPatch weights a distance by the row that it leads to.
    if name != "softpatch":
        never_nearer(detector, exact, fresh, 0.7)
        # References too, each without its own rows.
        assert (detector.good_patches_ >= exact.good_patches_).all()
    assert not detector.promises

    path = tmp_path / "part.offn"
    detector.save(path)
    assert (tmp_path / "part.offn.index").exists() == (kind == "disk")
    again = Detector.load(path, device="cpu")
    assert isinstance(again, Banked)
    same_predictions(again, detector, fresh)
    assert again.index_report == replace(report, speed=None)
    rows_are_known(again)
    again.save(tmp_path / "again.offn")
    assert (tmp_path / "again.offn").read_bytes() == path.read_bytes()
    same_predictions(Detector.load(tmp_path / "again.offn", device="cpu"), detector, fresh)
    smaller = again.rescored(aggregate="max")
    rows_are_known(smaller)


def test_the_same_images_give_the_same_file(files: list[Path], tmp_path: Path) -> None:
    for name in ("a", "b"):
        METHODS["patchcore"](search="ivf,recall=0.9").fit(files).save(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize(
    ("name", "kind"),
    [(name, "ivf") for name in ("anomalydino", "standardized", "patchcore", "coreset", "layers")]
    + [("anomalydino", "hnsw"), ("anomalydino", "disk")],
)
def test_an_index_keeps_up_with_every_step(
    name: str, kind: str, files: list[Path], fresh: list[Path], tmp_path: Path
) -> None:
    detector = METHODS[name](search=f"{kind},recall=0.9").fit(files[:5])
    exact = METHODS[name]().fit(files[:5])
    if kind == "disk":  # from a file, its lists take in no more rows
        detector.save(tmp_path / "part.offn")
        opened = Detector.load(tmp_path / "part.offn", device="cpu")
        assert isinstance(opened, Banked)
        detector = opened
    other = METHODS[name]().fit([files[0], files[5]])
    steps: list[Callable[[Banked], object]] = [
        lambda d: d.forget(files[1]),
        lambda d: d.undo(),
        lambda d: d.add(fresh[:1]),
        lambda d: d.merge(other),
        lambda d: d.undo(),
        lambda d: d.undo(),
        lambda d: d.add(files[5:6]),
        lambda d: d.forget(files[0]),
        lambda d: d.compact(),
    ]
    same = name not in ("standardized", "coreset")  # which rows they keep hangs on the search
    for step in steps:
        step(detector)
        step(exact)
        known = [len(index) for index in indexing.indexes(detector)]
        assert len(known) == len(detector._patch_banks)
        if kind == "disk":
            assert known[0] <= len(detector.bank)
        else:
            rows_are_known(detector)
        if same:
            never_nearer(detector, exact, fresh, 0.7)
            scores, least = detector.good_patches_, exact.good_patches_
            assert (scores >= least).all()
            assert (scores == least).float().mean() > 0.6
        assert detector.search_note_ is None
    assert all(index.faiss.ntotal == len(index) for index in indexing.indexes(detector))
    detector.save(tmp_path / "grown.offn")
    same_predictions(Detector.load(tmp_path / "grown.offn", device="cpu"), detector, fresh)


def test_an_index_follows_without_being_built_anew(files: list[Path], fresh: list[Path]) -> None:
    detector = METHODS["anomalydino"](search="ivf,recall=0.9").fit(files)
    before = [p.patch_scores for p in detector.predict(fresh)]
    [index] = indexing.indexes(detector)
    entries = index.faiss.ntotal
    detector.forget(files[2])
    assert indexing.indexes(detector) == [index]
    assert index.faiss.ntotal == entries
    detector.undo()
    assert indexing.indexes(detector) == [index]
    assert index.faiss.ntotal == entries + int((detector.bank.owner == 2).sum())
    for prediction, scores in zip(detector.predict(fresh), before, strict=True):
        assert np.array_equal(prediction.patch_scores, scores)
    detector.forget(files[2])
    detector.compact()
    assert indexing.indexes(detector) != [index], "forgotten patches leave the index too"
    [index] = indexing.indexes(detector)
    assert index.faiss.ntotal == len(detector.bank)


def test_an_addition_that_breaks_off_leaves_the_index(
    files: list[Path], fresh: list[Path], tmp_path: Path
) -> None:
    bad = tmp_path / "empty.png"
    bad.touch()
    for name in ("patchcore", "layers"):
        detector = METHODS[name](search="ivf,recall=0.9").fit(files[:5])
        found, before = indexing.indexes(detector), detector.predict(fresh)
        with pytest.raises(ImageError):
            detector.add([files[5], bad])
        assert indexing.indexes(detector) == found
        for a, b in zip(detector.predict(fresh), before, strict=True):
            assert np.array_equal(a.patch_scores, b.patch_scores)


def test_a_small_bank_is_searched_exactly_and_says_so(
    files: list[Path], fresh: list[Path], tmp_path: Path
) -> None:
    exact = METHODS["anomalydino"]().fit(files)
    detector = METHODS["anomalydino"](search="recall=0.99").fit(files)
    assert f"fewer than {AUTO_ROWS:,} patches" in str(detector.search_note_)
    assert (indexing.indexes(detector), detector.index_report) == ([], None)
    assert detector.promises, "it is exact search after all"
    same_predictions(detector, exact, fresh)
    detector.save(tmp_path / "part.offn")
    again = Detector.load(tmp_path / "part.offn", device="cpu")
    assert isinstance(again, Banked)
    assert again.search_note_ == detector.search_note_
    again.add(fresh[:1])
    exact.add(fresh[:1])
    same_predictions(again, exact, fresh)


def test_what_cannot_be_indexed_is_refused_at_the_fit(files: list[Path]) -> None:
    for images, words in [(files[:2], "rows are too few"), (files[:1], "rows are too few")]:
        detector = METHODS["anomalydino"](search="ivf")
        with pytest.raises(OptionError, match=words):
            detector.fit(images)
        assert not detector.is_fitted
    with pytest.raises(OptionError, match="two images or more"):
        AnomalyDINO(**FEW | {"resolution": 256}, search="hnsw").fit(files[:1])
    with pytest.raises(OptionError, match="no index finds"):
        BatchedAnomalyDINO(**SMALL, search="ivf")


def test_a_bank_that_shrinks_too_far_goes_on_exactly(files: list[Path], fresh: list[Path]) -> None:
    detector = METHODS["anomalydino"](search="ivf,recall=0.9").fit(files)
    exact = METHODS["anomalydino"]().fit(files)
    detector.forget(files[1:5])
    exact.forget(files[1:5])
    assert "rows are too few for an index" in str(detector.search_note_)
    assert indexing.indexes(detector) == []
    assert detector.index_report is None
    never_nearer(detector, exact, fresh, 0.999)
    detector.undo()
    assert detector.search_note_ is None
    rows_are_known(detector)


def test_an_ensemble_keeps_the_indexes_of_its_members(
    files: list[Path], fresh: list[Path], tmp_path: Path
) -> None:
    settings = {"coreset": 1, "dim": 48, "search": "ivf,recall=0.9"}
    detector = Ensemble(settings=settings, **SMALL | {"backbone": "builtin,builtin-aligned"})
    detector.fit(files)
    detector.save(tmp_path / "both.offn")
    again = Detector.load(tmp_path / "both.offn", device="cpu")
    members = [part for part in again.modules() if isinstance(part, Banked)]
    assert len(members) == 2
    for member in members:
        rows_are_known(member)
    same_predictions(again, detector, fresh)


def test_lists_on_disk_are_missed(files: list[Path], tmp_path: Path) -> None:
    METHODS["patchcore"](search="disk,recall=0.9").fit(files).save(tmp_path / "part.offn")
    (tmp_path / "part.offn.index").unlink()
    with pytest.raises(ModelFileError, match="copy both together"):
        Detector.load(tmp_path / "part.offn", device="cpu")


def test_without_faiss(files: list[Path], tmp_path: Path) -> None:
    """In a process that cannot import it."""
    METHODS["patchcore"](search="ivf,recall=0.9").fit(files).save(tmp_path / "ivf.offn")
    METHODS["patchcore"](search="recall=0.9").fit(files).save(tmp_path / "auto.offn")
    code = f"""
import sys
sys.modules["faiss"] = None
from offnominal import Detector, PatchCore
from offnominal.errors import OptionError
options = {CORE!r}
for action in (
    lambda: PatchCore(**options, search="recall=0.99").fit([{str(files[0])!r}]),
    lambda: Detector.load({str(tmp_path / "ivf.offn")!r}, device="cpu"),
):
    try:
        action()
    except OptionError as error:
        print(error)
assert len(Detector.load({str(tmp_path / "auto.offn")!r}).predict({str(files[0])!r})) == 1
assert PatchCore(**options).fit({[str(file) for file in files[:2]]!r}).is_fitted
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    fitted, opened = done.stdout.splitlines()
    assert "pip install 'offnominal[scale]'" in fitted
    assert "pip install 'offnominal[scale]'" in opened
    assert "ivf.offn" in opened


def test_a_grid_of_searches() -> None:
    found = parse_sets(["search=exact,recall=0.95,hnsw+recall=0.9"], ["anomalydino"])
    assert found == {"search": ["exact", "recall=0.95", "hnsw,recall=0.9"]}
