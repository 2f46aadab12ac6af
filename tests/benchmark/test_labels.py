"""Cells that learn from labelled defects: what is drawn, what is tested, what the report says."""

import math
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from PIL import Image

from offnominal.benchmark.cell import Cell
from offnominal.benchmark.draw import Drawn, draw_defects, kind_left_out, parts
from offnominal.benchmark.plan import Request, Work, make_plan
from offnominal.benchmark.runner import Runner
from offnominal.benchmark.store import FinishedCell, Plan, Store, read_runs
from offnominal.datasets import Dataset, Sample, open_dataset
from offnominal.detectors.base import Detector
from offnominal.detectors.registry import METHODS, Method
from offnominal.errors import OptionError
from offnominal.images import read_image
from offnominal.labels.labelled import Labelled
from offnominal.report.benchmark import write_report
from offnominal.report.labels import foremost_counts
from offnominal.report.results import gather
from offnominal.report.sections import plan_section, shown_cells, which
from offnominal.scoring import Scores

COUNTS = (0, 4)


class Grudge(Detector):
    """How far a place's brightness is from good ones', and how near to that of a known defect."""

    method = "grudge"
    given: ClassVar[list[list[Labelled]]] = []

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.good_, self.bad_ = np.empty(0), np.empty(0)

    def fit(self, *images: Any, defects: Any = (), **more: Any) -> "Grudge":
        self.given.append(list(defects))
        self.bad_ = np.array([read_image(one.image).min() for one in defects], float)
        super().fit(*images, **more)
        return self

    def learn(self, number: int, image: np.ndarray) -> np.ndarray:
        self.good_ = np.append(self.good_, image.mean())
        return image

    def score(self, image: np.ndarray, without: int | None = None) -> Scores:
        grey = image.mean(2)[::16, ::16]
        far = np.abs(grey - self.good_.mean()) / 255
        near = np.abs(self.bad_ - grey.min()).min(initial=255) / 255
        return Scores((far + 0.1 * (1 - near)).astype(np.float32), stride=16)

    def score_reference(self, number: int, kept: np.ndarray) -> Scores:
        return self.score(kept)


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    line = Method("grudge", f"{__name__}:Grudge", "", "", "")
    monkeypatch.setitem(METHODS, "grudge", line)
    Grudge.given.clear()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Grey squares, with a darker place where there is a defect; one of them twice."""
    root, rng = tmp_path_factory.mktemp("labels") / "squares", np.random.default_rng(0)
    kinds = {"train/good": 3, "test/good": 4, "test/hole": 4, "test/scratch": 4, "test/stain": 4}
    for depth, (folder, count) in enumerate(kinds.items()):
        for number in range(count):
            image = rng.integers(150, 170, (64, 64), np.uint8)
            mask = np.zeros((64, 64), np.uint8)
            if not folder.endswith("good"):
                mask[8:24, 8 * number : 8 * number + 16] = 255
                image[mask > 0] -= np.uint8(20 * depth)
            for picture, name in ((image, folder), (mask, f"ground_truth/{Path(folder).name}")):
                suffix = "_mask" if picture is mask else ""
                (root / name).mkdir(parents=True, exist_ok=True)
                Image.fromarray(picture).save(root / name / f"{number}{suffix}.png")
    shutil.rmtree(root / "ground_truth" / "good")
    shutil.copy(root / "test" / "hole" / "0.png", root / "test" / "hole" / "copy.png")
    return open_dataset(root)


def plan(dataset: Dataset, **changes: Any) -> Work:
    asked = {"methods": ("grudge",), "shots": (None,), "seeds": 2, "labelled": COUNTS}
    return make_plan([dataset], Request(**(asked | changes)))


def cell(**changes: Any) -> Cell:
    return replace(Cell("d", "c", "1", "m", None, 0, "random", {}), **changes)


def sample(name: str, kind: str) -> Sample:
    return Sample(Path(kind) / name, int(kind != "good"), None, kind, "c", "test")


def test_cells_without_labels_are_called_as_ever() -> None:
    assert cell().name == "d-c-m-full-seed0-ac6632e820"
    told = asdict(cell(set_aside=4))
    assert told["tested"] == "all"
    names = [
        cell(set_aside=4, **changes).name
        for changes in (
            {},
            {"defects": 1},
            {"defects": 1, "marked": True},
            {"defects": 1, "left_out": "hole", "tested": "known"},
            {"defects": 1, "left_out": "hole", "tested": "left out"},
        )
    ]
    assert len({*names, cell().name}) == 6
    assert names[2].startswith("d-c-m-full-seed0-1defectsmarked-")
    # One fit serves both tests.
    known, left_out = (
        cell(set_aside=4, defects=1, left_out="hole", tested=t) for t in ("known", "left out")
    )
    assert known.group == left_out.group != cell(set_aside=4).group


def test_draws_keep_parts_whole_and_a_kind_apart() -> None:
    names = [f"{n}.png" for n in range(12)]
    bad = [sample(name, kind) for kind in ("hole", "scratch", "stain") for name in names]
    test = [sample("a.png", "good"), *bad]
    # Three pictures of each part.
    part_of = {s.image: 10 * number + int(s.image.stem) // 3 for number in range(3)
               for s in bad if s.defect == ("hole", "scratch", "stain")[number]}  # fmt: skip

    def draw(**changes: Any) -> Drawn:
        return draw_defects(test, part_of, cell(left_out="stain", **changes), Path())

    drawn = {count: draw(set_aside=8, defects=count) for count in (0, 3, 8)}
    most = drawn[8].learned
    assert drawn[3].learned == most[:3]
    # Eight parts with a hole or a scratch: four are drawn, each once before any comes twice.
    assert len({part_of[s.image] for s in most[:4]}) == len({part_of[s.image] for s in most}) == 4
    for each in drawn.values():
        assert (each.tested, each.digest) == (drawn[0].tested, drawn[0].digest)
    tested = drawn[0].tested
    assert not {part_of[s.image] for s in most} & {part_of[s.image] for s in tested["all"][1:]}
    assert {s.defect for s in tested["known"]} == {"good", "hole", "scratch"}
    assert [s.defect for s in tested["left out"]] == ["good", *["stain"] * 12]
    other = draw(set_aside=8, defects=8, seed=1)
    assert {s.image for s in other.learned} != {s.image for s in most}
    assert other.digest != drawn[0].digest
    with pytest.raises(OptionError, match=r"8 different parts .* others have 12 images"):
        draw(set_aside=13)
    assert [kind_left_out(test, seed) for seed in range(4)] == ["hole", "scratch", "stain", "hole"]
    assert kind_left_out(test[:13], 0) is None


def test_exact_copies_are_of_one_part(dataset: Dataset) -> None:
    bad = [one for one in dataset.test("squares") if one.label]
    part_of = parts(bad)
    assert len(part_of) == len(bad)
    assert len(set(part_of.values())) == len(bad) - 1


def test_a_plan_has_what_a_method_can_use(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Two draws, two tests each; none without defects is marked.
    assert len(plan(dataset).cells) == 2 * 2 * (1 + 2)
    assert len(plan(dataset, leave_out=False).cells) == 2 * (1 + 2)
    for use, cells in (("ignored", 2), ("needed", 2)):
        monkeypatch.setattr(Grudge, "use_of_marks", use, raising=False)
        found = plan(dataset, seeds=1).cells
        assert len(found) == 2 * cells
        assert {one.marked for one in found if one.defects} == {use == "needed"}
    with pytest.raises(OptionError, match="give no larger number"):
        plan(dataset, labelled=(50,))
    with pytest.raises(OptionError, match="--labelled 0: give numbers"):
        plan(dataset, labelled=(0,))
    line = Method("grudge", f"{__name__}:Grudge", "", "", "", defects="required")
    monkeypatch.setitem(METHODS, "grudge", line)
    work = plan(dataset)
    assert {one.defects for one in work.cells} == {4}
    assert work.impossible == ["grudge needs labelled defects: 0 are left out for it"]


@pytest.fixture(scope="module")
def runs(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(METHODS, "grudge", Method("grudge", f"{__name__}:Grudge", "", "", ""))
        work, store = plan(dataset), Store(tmp_path_factory.mktemp("runs"))
        outcome = Runner(work, store).run()
        assert (outcome.finished, outcome.failed) == (len(work.cells), [])
        # One fit for both tests; a second run finds everything.
        assert len(Grudge.given) == len(work.cells) // 2
        assert Runner(work, store).run().before == len(work.cells)
    names = tuple(each.name for each in work.cells)
    store.add_plan(Plan("labels", "What is it worth?", ("defects", "marked", "tested"), names))
    return store.root


def of(runs: Path, **wanted: Any) -> list[FinishedCell]:
    cells = read_runs(runs)[0]
    return [c for c in cells if all(c.settings[name] == value for name, value in wanted.items())]


def test_a_cell_is_tested_on_what_it_never_saw(runs: Path) -> None:
    for seed, kind in ((0, "hole"), (1, "scratch")):
        tests = {}
        for each in of(runs, seed=seed):
            settings, images = each.settings, each.scores["image"]
            assert settings["left_out"] == kind
            assert len(settings["learned_defects"]) == settings["defects"]
            assert not set(settings["learned_defects"]) & set(images)
            assert not any(f"/{kind}/" in name for name in settings["learned_defects"])
            tests.setdefault(settings["tested"], images)
            assert images == tests[settings["tested"]]
            kinds = {name.split("/")[-2] for name in images} - {"good"}
            assert (kinds == {kind}) == (settings["tested"] == "left out")
            bad = settings["data"]["test_defective"]
            assert bad == sum(each.scores["label"])
            assert not math.isnan(each.metrics["figures"]["aupro"])
        assert set(tests["known"]) & set(tests["left out"])  # the good ones


def test_what_is_told_of_defects(dataset: Dataset, tmp_path: Path) -> None:
    work = plan(dataset, seeds=1, labelled=(2,))
    Runner(work, Store(tmp_path)).run()
    for marked, told in zip((False, True), Grudge.given, strict=True):
        for one in told:
            assert isinstance(one.image, Path)
            assert one.kinds == (one.image.parent.name,)
            assert [mark.exact for mark in one.marks] == [True] * marked


@pytest.mark.slow
def test_the_report_says_what_each_defect_is_worth(runs: Path) -> None:
    cells, [asked] = read_runs(runs)
    setups = gather(cells)
    assert len(setups) == 2 * (1 + 2)
    assert len(foremost_counts(setups)) == 1
    [part] = plan_section(asked, setups, [])["parts"]
    table = part["table"]
    assert (table.caption, table.columns) == ("Image AUROC", ["no defects", "4 defects"])
    assert [row for row, _ in table.rows] == [
        ["grudge", masks, tested]
        for tested in ("known kinds", "the kind left out")
        for masks in ("no", "yes")
    ]
    # Without any there is nothing to mark: one figure stands in both rows.
    assert table.rows[0][1][0].text == table.rows[1][1][0].text != "–"
    first, second, *_ = part["lines"]
    assert first.startswith("Best Image AUROC on defects of known kinds: ")
    assert "% with 4 (grudge" in first
    assert "the kind left out" in second
    for words in ("the kind left out, without masks", "best without any", "labelled defects"):
        assert words in part["figure"], words
    [shown] = shown_cells(setups).values()
    assert which(shown) == "grudge with all images and 4 defects, seed 0"


@pytest.mark.slow
def test_the_whole_report(runs: Path, tmp_path: Path) -> None:
    page = write_report(runs, tmp_path, gallery=False).read_text(encoding="utf-8")
    assert "Other figures" in page
    assert "4 defects" in page
    cells = (tmp_path / "cells.csv").read_text(encoding="utf-8").partition("\n")[0].split(",")
    assert {"defects", "marked", "left_out", "tested"} <= set(cells)
