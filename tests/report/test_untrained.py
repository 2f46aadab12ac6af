"""Figures made with weights that are not pretrained: marked everywhere, compared with nothing."""

import csv
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.report.runs import NAMES, write_big, write_small

from offnominal.benchmark.store import read_runs
from offnominal.report.benchmark import write_report
from offnominal.report.results import best_setup, gather

WHY = "drawn at random from seed 0"
NOTE = f"† Weights not pretrained ({WHY}): says nothing about the method."


def mark(runs: Path, chosen: Callable[[dict[str, Any]], bool] = lambda settings: True) -> None:
    """Let some cells say that their weights were not pretrained."""
    for path in runs.glob("cells/*/metrics.json"):
        if chosen(json.loads((path.parent / "settings.json").read_text())):
            path.write_text(json.dumps(json.loads(path.read_text()) | {"untrained": WHY}))


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def plain(html: str) -> str:
    return html.replace("\u00a0", " ")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small(tmp_path_factory.mktemp("small"))


def test_some_are_marked_and_the_others_compared(small: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    shutil.copytree(small, runs)
    mark(runs, lambda settings: settings["shots"] == 4)
    text = plain(write_report(runs).read_text(encoding="utf-8"))
    assert f"The weights of 1 of 2 setups were not pretrained ({WHY})" in text
    head = text.index("</h1>")
    assert head < text.index('class="banner"') < text.index('class="headline"')
    # Both tables' rows and columns, the figure's legend, and what each dagger means beside it.
    assert '<th scope="row">4 †</th>' in text
    assert '<th scope="row">2</th>' in text
    assert re.search(r'<th scope="col" class="number">4 images †</th>', text)
    figures = re.findall(r"<svg.*?</svg>", text, re.S)
    noted = [figure for figure in figures if NOTE in figure]
    # The plan's, that of speed, and the curves of two categories, which stand there unmarked too.
    assert len(noted) == 4
    assert sum("image score" in figure for figure in noted) == 2
    assert sum("image score" in figure for figure in figures) == 4
    assert text.count(f'dagger">{NOTE}') >= 2
    # Of two setups one can be compared: there is no best, and no line about more images.
    assert "<b>" not in re.sub(r"<b>(Not pretrained|Not finished|Note)[.:]</b>", "", tables(text))
    assert 'class="line"' not in text
    assert "(2 images)" in text.split("</header>")[0]
    assert "(4 images †)" not in text.split("</header>")[0]
    assert {(row["shots"], row["untrained"]) for row in rows(runs / "report" / "cells.csv")} == {
        ("2", ""),
        ("4", WHY),
    }
    latex = (runs / "report" / "results.tex").read_text(encoding="utf-8")
    assert r"4~$\dagger$ &" in latex
    assert f"$\\dagger$~Weights not pretrained ({WHY}): says nothing" in latex


def tables(text: str) -> str:
    return " ".join(re.findall(r"<table>.*?</table>", text, re.S))


def test_where_all_are_marked_nothing_is_claimed(small: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    shutil.copytree(small, runs)
    mark(runs)
    text = write_report(runs, gallery=False).read_text(encoding="utf-8")
    assert "The weights of all setups were not pretrained" in text
    assert "No figure says anything about a method" in text
    assert "Best image AUROC" not in text
    assert best_setup(gather(read_runs(runs)[0])) is None


def test_no_published_figure_stands_beside(tmp_path: Path) -> None:
    runs = write_big(tmp_path, NAMES, shots=(1,), seeds=1, good=4, each=1, side=48)
    write_report(runs, gallery=False)
    found = rows(runs / "report" / "results.csv")
    assert any(row["published"] for row in found)
    mark(runs)
    text = write_report(runs, gallery=False).read_text(encoding="utf-8")
    found = rows(runs / "report" / "results.csv")
    assert not any(row["published"] or row["difference"] for row in found)
    assert {row["untrained"] for row in found} == {WHY}
    assert "WACV 2025" not in text


def test_a_trained_setup_and_an_untrained_one_are_never_one(small: Path) -> None:
    cells, _ = read_runs(small)
    other = [cell for cell in cells if cell.settings["seed"] == 1]
    for cell in other:
        cell.metrics["untrained"] = WHY
    setups = gather(cells)
    assert sorted((setup.shots or 0, setup.untrained, setup.seeds) for setup in setups) == [
        (2, "", [0]),
        (2, WHY, [1]),
        (4, "", [0]),
        (4, WHY, [1]),
    ]


def test_unmarked_runs_say_nothing_of_it(small: Path, tmp_path: Path) -> None:
    text = write_report(small, tmp_path, gallery=False).read_text(encoding="utf-8")
    assert "†" not in text
    assert 'class="banner"' not in text
