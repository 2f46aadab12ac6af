"""Names stay text: in every page, opened in a real browser, in every table, and on the terminal."""

import csv
import html
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from tests.report.browser import chromium
from tests.report.runs import write_small
from typer.testing import CliRunner

from offnominal.cli import app
from offnominal.errors import DatasetError, OptionError
from offnominal.report import Card, Scores, sections, write_page
from offnominal.report.benchmark import FILES, write_report
from offnominal.report.training import write_training_page
from offnominal.text import printable

pytestmark = pytest.mark.slow

NAMES = [
    "<img src=x onerror=pwned()>",
    '"><script>pwned()</script>',
    "</title></style><svg onload=pwned()>",
    "javascript:pwned()",
    "' onmouseover='pwned()",
    "&quot;&lt;b&gt;",
    "{{ 7*7 }}{% raw %}",
    "a\u202egnp.exe",
    "x\u2028y\ffoo\nbar",
    "\x1b[31mred\x00",
    os.fsdecode(b"not\xffutf-8"),
    "$x$ ^_^ #1 [2cm] *",
    "=1+1",
]
EVIL = " | ".join(NAMES)

# Counts what must not be there, and whether the names are to be read as they are.
LOOK = """
<script>
var said = [window.calls, document.title, document.querySelectorAll(
  "img:not([src^='data:']), svg:not([aria-label]), [onerror], [onload], [onmouseover]"
).length, document.scripts.length, Array.from(document.links).filter(function (link) {
  return link.getAttribute("href")[0] !== "#";
}).length];
var text = document.body.textContent;
said.push(NAMES.filter(function (name) { return !text.includes(name); }));
document.body.dataset.said = JSON.stringify(said);
</script>
"""


def seen(page: Path, folder: Path, expected: list[str]) -> list[Any]:
    """What a browser finds in a page: calls of scripts in names, the title, ..., names not read."""
    text = page.read_text(encoding="utf-8")
    first = "<script>window.calls = 0; function pwned() { window.calls += 1; }</script>"
    look = LOOK.replace("NAMES", json.dumps(expected).replace("<", "\\u003c"))
    driven = folder / "driven.html"
    driven.write_text(
        text.replace('<meta charset="utf-8">', f'<meta charset="utf-8">{first}', 1).replace(
            "</body>", f"{look}</body>"
        ),
        encoding="utf-8",
    )
    profile = f"--user-data-dir={folder / 'profile'}"
    dom = chromium(profile, "--virtual-time-budget=3000", "--dump-dom", driven.as_uri()).stdout
    found = re.search(r'data-said="([^"]*)"', dom)
    assert found is not None, "the page's script did not run to its end"
    answers: list[Any] = json.loads(html.unescape(found[1]))
    return answers


def test_names_in_a_page_of_results(tmp_path: Path) -> None:
    image = np.zeros((40, 60, 3), np.uint8)
    cards = [
        Card(name, name, "hit", 1.0, 0.5, 0.1, image, None, image, image, name) for name in NAMES
    ]
    page = write_page(
        tmp_path / "index.html",
        EVIL,
        [{"category": name, name: 0.5} for name in NAMES[:1]],
        cards,
        scores=[Scores(name, [1.0, 2.0], [3.0], 2.0) for name in NAMES],
        decisions={name: [f"{name}: {name}"] for name in NAMES},
        pictures=[(name, image) for name in NAMES],
    )
    # Three scripts: the page's own, and the two of this test.
    expected = [0, printable(EVIL), 0, 3, 0, []]
    assert seen(page, tmp_path, [printable(name) for name in NAMES]) == expected


def test_names_in_a_page_of_a_training(tmp_path: Path) -> None:
    steps, means = [(1, 1, 0.5, 0.5, 0.5, 0.5, 0.5)], [{"total": 0.5, "image": 0.5}]
    page = tmp_path / "t.html"
    write_training_page(page, EVIL, steps, means, {EVIL: EVIL}, ["image"], EVIL, EVIL)
    text = page.read_text(encoding="utf-8")
    assert "pwned()>" not in text
    assert text.count(html.escape(printable(NAMES[0]))) >= 4


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Results in which every name is an attack."""
    monkeypatch.setattr(sections, "cell_figure", lambda cell: Figure())
    found = write_small(tmp_path)
    for path in (*found.glob("cells/*/*.json"), *found.glob("plans/*.json")):
        known = json.loads(path.read_text(encoding="utf-8"))
        if path.name == "settings.json":
            known |= {"category": EVIL if known["category"] == "part" else "other"}
            known |= {"dataset": EVIL, "data": known["data"] | {"root": f"/nowhere/{EVIL}"}}
            known["options"] |= {"backbone": f"{EVIL}{known['shots']}", EVIL: EVIL}
        elif path.name == "run.json":
            known |= {"cpu": EVIL, "notes": [EVIL], "unreadable": [EVIL], "packages": {EVIL: EVIL}}
        elif path.name == "metrics.json":
            known |= {"untrained": EVIL if "seed1" in path.parent.name else ""}
        else:
            known |= {"title": EVIL, "axes": ["backbone", EVIL]}
        path.write_text(json.dumps(known), encoding="utf-8")
    return found


def test_names_in_a_report(runs: Path, tmp_path: Path) -> None:
    page = write_report(runs, title=EVIL)
    expected = [0, printable(EVIL), 0, 3, 0, []]
    assert seen(page, tmp_path, [printable(EVIL)]) == expected
    for name in ("cells.csv", "results.csv"):
        with (page.parent / name).open(newline="", encoding="utf-8") as file:
            cells = [cell for row in csv.reader(file) for cell in row]
        assert printable(EVIL) in cells
        assert all(cell.isprintable() for cell in cells)
        numbers = [cell for cell in cells if cell.startswith(("=", "+", "-", "@"))]
        assert all(float(number) < 0 for number in numbers)
    tex = (page.parent / "results.tex").read_text(encoding="utf-8")
    assert r"\{\{ 7*7" not in tex
    assert r"\{\{ 7{*}7 \}\}\{\% raw \%\}" in tex
    assert all(line.isprintable() for line in tex.splitlines())


# -- nothing of the user's is written over ----------------------------------------------------


def test_a_report_replaces_reports_only_and_whole_ones(runs: Path, tmp_path: Path) -> None:
    for name in FILES:
        folder = tmp_path / f"of-{name}"
        folder.mkdir()
        (folder / name).write_text("mine")
        with pytest.raises(OptionError, match=rf"{name} in it is not from an earlier report"):
            write_report(runs, folder, gallery=False)
        assert [(f.name, f.read_text()) for f in folder.iterdir()] == [(name, "mine")]
    page = write_report(runs, tmp_path / "own", gallery=False)
    before = {file.name: file.read_bytes() for file in page.parent.iterdir()}
    assert set(before) == set(FILES)
    (page.parent / "results.tex").unlink()
    (page.parent / "results.tex").mkdir()  # the last that is written cannot be
    with pytest.raises(OptionError, match="cannot be written"):
        write_report(runs, page.parent, title="other", gallery=False)
    (page.parent / "results.tex").rmdir()
    before.pop("results.tex")
    assert {file.name: file.read_bytes() for file in page.parent.iterdir()} == before


def test_a_score_that_is_no_number_makes_no_report(tmp_path: Path) -> None:
    from pyarrow import parquet, table

    runs = write_small(tmp_path)
    for path in runs.glob("cells/*/scores.parquet"):
        columns = parquet.read_table(path).to_pydict()
        parquet.write_table(table(columns | {"score": [float("nan"), *columns["score"][1:]]}), path)
    with pytest.raises(DatasetError, match=r"scores\.parquet: damaged"):
        write_report(runs)


def test_the_command_prints_names_escaped(runs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "o\x1b[31m\n"
    done = CliRunner().invoke(app, ["report", str(runs), "-o", str(folder), "--no-gallery"])
    assert done.exit_code == 0, done.output
    assert "\x1b" not in done.output
    assert done.output.splitlines()[-1] == f"Open {printable(folder / 'report.html')}"
