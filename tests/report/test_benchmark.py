"""The report of a benchmark: its page in a real browser, its tables, and what can go wrong."""

import csv
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from tests.report.browser import chromium
from tests.report.runs import NAMES, write_big, write_plans, write_small
from tests.report.test_page import Seen
from typer.testing import CliRunner

from offnominal.benchmark.store import read_runs
from offnominal.cli import app
from offnominal.errors import DatasetError, OptionError
from offnominal.report import sections
from offnominal.report.benchmark import write_report

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = write_small(tmp_path_factory.mktemp("small"))
    write_report(runs)
    return runs


@pytest.fixture(scope="module")
def plans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = write_plans(tmp_path_factory.mktemp("plans"))
    write_report(runs)
    return runs


def read(runs: Path) -> str:
    return (runs / "report" / "report.html").read_text(encoding="utf-8")


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_one_file_without_outside_references(small: Path, plans: Path) -> None:
    for runs in (small, plans):
        text = read(runs)
        seen = Seen()
        seen.feed(text)
        targets = {attributes.get("id") for _, attributes in seen.tags}
        for tag, attributes in seen.tags:
            for name in ("src", "href", "xlink:href", "srcset", "action"):
                value = attributes.get(name)
                if value is None or value.startswith("data:"):
                    continue
                assert value.startswith("#"), (tag, name, value[:80])
                assert value[1:] in targets, value
        assert "@import" not in text
        assert not re.findall(r"url\((?!#)", text)
        pictures = [a for tag, a in seen.tags if tag in ("img", "svg")]
        assert all(a.get("alt") or a.get("aria-label") for a in pictures)


def test_the_same_runs_give_the_same_bytes(small: Path, tmp_path: Path) -> None:
    write_report(small, tmp_path)
    for name in ("report.html", "cells.csv", "results.csv", "results.tex"):
        assert (tmp_path / name).read_bytes() == (small / "report" / name).read_bytes(), name


def test_page_prints_the_means_that_the_cells_have(small: Path) -> None:
    cells, _ = read_runs(small)
    for shots in (2, 4):
        by_seed = [
            np.mean(
                [
                    cell.metrics["figures"]["aupro"]
                    for cell in cells
                    if (cell.settings["shots"], cell.settings["seed"]) == (shots, seed)
                ]
            )
            for seed in (0, 1)
        ]
        printed = f"{100 * np.mean(by_seed):.1f} ± {100 * np.std(by_seed, ddof=1):.1f}"
        assert printed in read(small)
        [row] = [
            row
            for row in rows(small / "report" / "results.csv")
            if (row["metric"], row["category"], row["shots"]) == ("aupro", "mean", str(shots))
        ]
        assert float(row["mean"]) == pytest.approx(np.mean(by_seed))
        assert float(row["std"]) == pytest.approx(np.std(by_seed, ddof=1))


def test_cells_as_csv(small: Path) -> None:
    cells, _ = read_runs(small)
    found = {row["cell"]: row for row in rows(small / "report" / "cells.csv")}
    assert len(found) == len(cells) == 8
    for cell in cells:
        row = found[cell.name]
        assert float(row["image_auroc"]) == cell.metrics["figures"]["image_auroc"]
        assert row["option_backbone"] == "builtin-aligned"
        assert row["version"] == "0.0.test"
        assert float(row["image_auroc_low"]) < float(row["image_auroc"])


def test_published_figures_stand_beside_with_the_difference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sections, "cell_figure", lambda cell: Figure())
    runs = write_big(tmp_path, NAMES, shots=(1,), seeds=2, good=4, each=1, side=48)
    text = write_report(runs, gallery=False).read_text(encoding="utf-8")
    found = rows(runs / "report" / "results.csv")
    [row] = [r for r in found if (r["metric"], r["category"]) == ("image_auroc", "mean")]
    assert float(row["published"]) == 96.5
    assert float(row["difference"]) == pytest.approx(100 * float(row["mean"]) - 96.5, abs=0.01)
    assert "96.5 ± 0.4" in text
    assert "WACV 2025" in text
    # The paper prints no such figure for one category, nor for other backbones.
    assert not any(r["published"] for r in found if r["category"] != "mean")


def test_latex_is_escaped_and_whole(plans: Path) -> None:
    text = (plans / "report" / "results.tex").read_text(encoding="utf-8")
    assert r"dinov2\_vits14" in text
    assert r"line\_5" in text
    assert r"Missed at 1 \%" in text
    for line in text.splitlines():
        body = "" if line.startswith("%") else line
        assert not re.search(r"(?<!\\)[_#$%](?!\\pm\$|-\$|\$)", body.replace("$\\pm$", "")), line
    assert text.count(r"\begin{table}") == text.count(r"\end{table}") > 10
    for table in re.findall(r"\\begin\{tabular\}\{([lr]+)\}(.*?)\\bottomrule", text, re.S):
        layout, body = table
        lines = [line for line in body.splitlines() if line.endswith(r"\\")]
        assert all(line.count(" & ") == len(layout) - 1 for line in lines)


def test_what_is_missing_mixed_or_untimed_is_said(small: Path, plans: Path, tmp_path: Path) -> None:
    assert "1 of 9 cells are missing" in read(small)
    assert "parts-board-anomalydino-8shot-seed0" in read(small)
    assert "no honest speed" in read(plans)
    assert "different conditions" not in read(small)
    copy = tmp_path / "runs"
    shutil.copytree(small, copy)
    run = next((copy / "cells").iterdir()) / "run.json"
    run.write_text(run.read_text().replace("0.0.test", "0.0.other"))
    text = write_report(copy, gallery=False).read_text(encoding="utf-8")
    assert "different conditions (offnominal: " in text


def test_sentences_of_each_kind_of_plan(plans: Path) -> None:
    text = read(plans)
    assert re.search(r"anomalydino: (1|4) images? reach", text)
    assert re.search(r"Best image AUROC: [\d.]+ ± [\d.]+ % \(rotations agnostic, mask \w+\)", text)
    assert "Images per second" in text


def test_a_single_category_has_no_tables_of_its_own(small: Path, tmp_path: Path) -> None:
    assert "By category" in read(small)
    shutil.copytree(small, tmp_path / "runs")
    cells, _ = read_runs(tmp_path / "runs")
    first = cells[0].settings["category"]
    for cell in cells:
        if cell.settings["category"] != first:
            shutil.rmtree(cell.folder)
    text = write_report(tmp_path / "runs", gallery=False).read_text(encoding="utf-8")
    assert "By category" not in text
    assert text.count("<table>") < read(small).count("<table>")


def test_moved_and_lost_images(small: Path, tmp_path: Path) -> None:
    copy = tmp_path / "runs"
    shutil.copytree(small, copy, ignore=shutil.ignore_patterns("report"))
    for path in copy.glob("cells/*/settings.json"):
        path.write_text(path.read_text().replace(str(small.parent / "parts"), "/gone"))
    text = write_report(copy).read_text(encoding="utf-8")
    assert re.search(r"\d+ images\s+could not be shown", text)
    assert "<img" not in text
    assert (copy / "report" / "results.csv").exists()
    moved = write_report(copy, data=small.parent / "parts").read_text(encoding="utf-8")
    assert moved.count("<img") == read(small).count("<img") > 20
    with pytest.raises(OptionError, match="--data"):
        write_report(copy, data=tmp_path / "absent")


def test_damaged_results_are_named(small: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no finished cell"):
        write_report(tmp_path)
    for name in ("scores.parquet", "metrics.json", "run.json"):
        copy = tmp_path / name / "runs"
        shutil.copytree(small, copy, ignore=shutil.ignore_patterns("report"))
        for path in copy.glob(f"cells/*/{name}"):
            path.write_bytes(path.read_bytes()[:20])
        with pytest.raises(DatasetError, match=rf"{name}: damaged"):
            write_report(copy)


def test_names_cannot_break_the_page(tmp_path: Path) -> None:
    runs = write_big(tmp_path, ["<b>&$x$", "a_b"], shots=(1, 2), seeds=1, good=6, each=1, side=48)
    text = write_report(runs, title="</title><script>x").read_text(encoding="utf-8")
    assert "<b>&$x$" not in text
    assert "&lt;b&gt;&amp;$x$" in text
    assert "</title><script>x" not in text


def test_the_command(small: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(
        app, ["report", str(small), "-o", str(tmp_path / "out"), "--title", "Mine", "--no-gallery"]
    )
    assert result.exit_code == 0, result.output
    page = tmp_path / "out" / "report.html"
    assert result.output.splitlines()[-1] == f"Open {page}"
    text = page.read_text(encoding="utf-8")
    assert "<title>Mine</title>" in text
    assert "<img" not in text


# Run after the page's own script: use the filter, the sorting, the enlarged view and the tabs as a
# person does, and leave what is then seen where the test can read it.
DRIVE = """
<script>
var form = document.querySelector(".filter"), said = [], out = form.querySelector("output");
function set(name, value) {
  form.elements[name].value = value;
  form.dispatchEvent(new Event("input", { bubbles: true }));
}
function seen() {
  return Array.from(document.querySelectorAll(".card:not([hidden])"));
}
said.push(out.textContent);
set("outcome", "miss");
said.push(seen().length, seen().every(function (c) { return c.dataset.outcome === "miss"; }));
set("category", form.elements.category.options[1].value);
said.push(seen().length, new Set(seen().map(function (c) { return c.dataset.category; })).size);
set("low", "1e9");
said.push(seen().length, document.querySelector(".empty").hidden);
["low", "outcome", "category"].forEach(function (name) { set(name, ""); });
set("sort", "-score");
var scores = seen().map(function (c) { return parseFloat(c.dataset.score); });
said.push(scores.every(function (s, i) { return !i || s <= scores[i - 1]; }));
seen()[0].querySelector(".open").click();
var dialog = document.querySelector("dialog"), first = dialog.querySelector(".file").textContent;
said.push(dialog.open, dialog.querySelectorAll("img").length >= 3);
dialog.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight", bubbles: true }));
said.push(first !== dialog.querySelector(".file").textContent);
dialog.close();
var tabs = document.querySelector(".tabs"), second = tabs.querySelectorAll(".pick button")[1];
second.click();
said.push(Array.from(tabs.querySelectorAll(".tab")).map(function (t) {
  return t.offsetHeight > 0 ? 1 : 0;
}).join(""));
document.body.dataset.said = JSON.stringify(said);
</script>
"""


def drive(page: Path, folder: Path) -> list[object]:
    driven = folder / "driven.html"
    driven.write_text(page.read_text(encoding="utf-8").replace("</body>", DRIVE + "</body>"))
    profile = f"--user-data-dir={folder / 'profile'}"
    dom = chromium(profile, "--virtual-time-budget=5000", "--dump-dom", driven.as_uri()).stdout
    found = re.search(r'data-said="([^"]*)"', dom)
    assert found is not None, "the page's script did not run to its end"
    import html
    import json

    answers: list[object] = json.loads(html.unescape(found[1]))
    return answers


@pytest.mark.slow
def test_large_run_is_small_and_usable(tmp_path: Path) -> None:
    runs = write_big(tmp_path, shots=(1, 8), seeds=1, side=96)
    cells, _ = read_runs(runs)
    assert len(cells) == 15 * 2
    page = write_report(runs)
    text = page.read_text(encoding="utf-8")
    assert page.stat().st_size < 30e6
    assert "1,695 test images" in text
    cards = text.count('<li class="card')
    assert 150 < cards < 600
    said = drive(page, tmp_path)
    misses = text.count('data-outcome="miss"')
    assert said == [
        *(f"{cards} of {cards} on this page", misses, True, 4, 1, 0, False, True),
        *(True, True, True, "010000"),
    ]
    assert 0 < misses < cards


def test_browser_draws_it_in_light_dark_and_print(plans: Path, tmp_path: Path) -> None:
    page = (plans / "report" / "report.html").as_uri()
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    means = {}
    for scheme, number in (("dark", 0), ("light", 1)):
        shot = tmp_path / f"{scheme}.png"
        chromium(
            *(profile, "--window-size=1280,1600", f"--screenshot={shot}"),
            *(f"--blink-settings=preferredColorScheme={number}", page),
        )
        with Image.open(shot) as picture:
            pixels = np.asarray(picture.convert("RGB"))
        assert pixels.shape == (1600, 1280, 3)
        assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 200
        means[scheme] = float(pixels.mean())
    assert means["dark"] < 60
    assert means["light"] > 200
    narrow = tmp_path / "narrow.png"
    chromium(profile, "--window-size=500,900", f"--screenshot={narrow}", page)
    printed = tmp_path / "page.pdf"
    chromium(profile, "--virtual-time-budget=4000", f"--print-to-pdf={printed}", page)
    pages = len(re.findall(rb"/Type\s*/Page\b", printed.read_bytes()))
    assert 5 <= pages <= 25
