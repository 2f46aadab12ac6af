"""Figures made with weights that are not pretrained: said once, compared with nothing."""

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from tests.report.runs import NAMES, write_big

from offnominal.benchmark.store import read_runs
from offnominal.report import sections
from offnominal.report.benchmark import write_report
from offnominal.report.results import best_setup, gather, label_setups

pytestmark = pytest.mark.slow

WHY = "drawn at random from seed 0"


def mark(runs: Path, chosen: Callable[[dict[str, Any]], bool]) -> None:
    """Let some cells say that their weights were not pretrained, and no others."""
    for path in runs.glob("cells/*/metrics.json"):
        reason = WHY if chosen(json.loads((path.parent / "settings.json").read_text())) else ""
        path.write_text(json.dumps(json.loads(path.read_text()) | {"untrained": reason}))


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(autouse=True)
def without_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Curves are most of the work, and say nothing of weights."""
    monkeypatch.setattr(sections, "cell_figure", lambda cell: Figure())


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All categories of a data set with published figures, one and four shots."""
    folder = tmp_path_factory.mktemp("untrained")
    return write_big(folder, NAMES, shots=(1, 4), seeds=1, good=4, each=1, side=48)


def test_some_are_told_and_the_others_compared(runs: Path) -> None:
    mark(runs, lambda settings: settings["shots"] == 4)
    text = write_report(runs, gallery=False).read_text(encoding="utf-8")
    assert f"The weights of 1 of 2 setups (4 images) were not pretrained ({WHY})" in text
    head = text.index("</h1>")
    assert head < text.index('class="banner"') < text.index('class="headline"')
    # Of two setups one can be compared: there is no best, and no line about more images.
    assert "<b>" not in " ".join(re.findall(r"<table>.*?</table>", text, re.S))
    assert 'class="line"' not in text
    assert "(1 image)" in text[text.index('class="headline"') :].split("</header>")[0]
    reasons = {"1": "", "4": WHY}
    for name in ("cells.csv", "results.csv"):
        found = rows(runs / "report" / name)
        assert {(row["shots"], row["untrained"]) for row in found} == set(reasons.items())
    # No published figure stands beside those.
    assert {row["shots"] for row in found if row["published"]} == {"1"}


def test_where_all_are_marked_nothing_is_claimed(runs: Path) -> None:
    mark(runs, lambda settings: True)
    text = write_report(runs, gallery=False).read_text(encoding="utf-8")
    assert "The weights of all setups were not pretrained" in text
    assert "No figure says anything about a method" in text
    assert "Best image AUROC" not in text
    assert "WACV 2025" not in text
    assert best_setup(gather(read_runs(runs)[0])) is None


def test_a_trained_setup_and_an_untrained_one_are_never_one(runs: Path) -> None:
    mark(runs, lambda settings: settings["category"] == "bottle")
    setups = [setup for setup in gather(read_runs(runs)[0]) if setup.shots == 1]
    setups.sort(key=lambda setup: setup.untrained)
    assert [(setup.untrained, len(setup.cells)) for setup in setups] == [("", 14), (WHY, 1)]
    assert label_setups(setups) == ["pretrained", "not pretrained"]


def test_unmarked_runs_say_nothing_of_it(runs: Path) -> None:
    mark(runs, lambda settings: False)
    text = write_report(runs, gallery=False).read_text(encoding="utf-8")
    assert "not pretrained" not in text
    assert 'class="banner"' not in text
