"""Images that a method gives no score: counted, and counted as wrong."""

import csv
from pathlib import Path
from typing import Any

import pytest
from sklearn.metrics import roc_auc_score
from tests.chat_server import FINE, GOOD, Behaviour, ChatServer, answers, says

from offnominal.benchmark.plan import Request, make_plan
from offnominal.benchmark.runner import Runner
from offnominal.benchmark.store import Store, read_runs
from offnominal.datasets import Dataset, open_dataset
from offnominal.report.benchmark import write_report


@pytest.fixture(scope="module")
def dataset(parts: Path) -> Dataset:
    return open_dataset(parts, categories=["fabric"])


def run(dataset: Dataset, root: Path, *script: Behaviour) -> list[str]:
    """One cell of a chat model, which is asked about the test images in their order."""
    with ChatServer(*script) as server:
        sets: dict[str, Any] = {"model": ["small"], "endpoint": [server.endpoint]}
        sets |= {"retries": [0]}
        # It takes no backbone, and is left alone with the one that others need.
        request = Request(("chat",), (0,), backbones=("builtin",), sets=sets)
        outcome = Runner(make_plan([dataset], request), Store(root)).run()
        assert server.problems == []
    return outcome.failed


@pytest.mark.slow
def test_failures_are_counted_and_counted_as_wrong(dataset: Dataset, tmp_path: Path) -> None:
    labels = [sample.label for sample in dataset.test("fabric")]
    lost = {labels.index(0), labels.index(1), len(labels) - 1}
    right = [answers(GOOD if label else FINE) for label in labels]
    script = [says("?") if i in lost else answer for i, answer in enumerate(right)]
    assert run(dataset, tmp_path, *script) == []
    [cell] = read_runs(tmp_path)[0]
    bad = sum(labels[i] for i in lost)
    assert cell.metrics["unscored"] == {"good": 3 - bad, "defective": bad}
    assert cell.unscored == 3
    assert cell.metrics["images"] == len(labels) - 3
    # All that was answered was right; what was not counts as wrong.
    assert cell.metrics["figures"]["image_auroc"] == 1
    wrong = cell.metrics["failures_as_wrong"]
    scores = [9 - 18 * label if i in lost else label for i, label in enumerate(labels)]
    assert wrong["image_auroc"] == pytest.approx(roc_auc_score(labels, scores))
    assert cell.metrics["figures"]["misses"] == 0
    assert wrong["misses"] == bad / sum(labels)
    assert wrong["false_rejects"] == (3 - bad) / labels.count(0)
    assert "pixel_auroc" not in wrong

    page = write_report(tmp_path, gallery=False).read_text(encoding="utf-8")
    assert f"3 of {len(labels)}" in page
    assert "Without a score" in page
    assert f"{100 * wrong['image_auroc']:.1f}</small>" in page
    with (tmp_path / "report" / "cells.csv").open(newline="", encoding="utf-8") as file:
        [row] = csv.DictReader(file)
    assert row["unscored"] == "3"
    assert float(row["image_auroc_failures_as_wrong"]) == pytest.approx(wrong["image_auroc"])
    with (tmp_path / "report" / "results.csv").open(newline="", encoding="utf-8") as file:
        [mean] = [
            row
            for row in csv.DictReader(file)
            if (row["metric"], row["category"]) == ("image_auroc", "mean")
        ]
    assert float(mean["failures_as_wrong"]) == pytest.approx(wrong["image_auroc"])
    assert "got a score" in (tmp_path / "report" / "results.tex").read_text(encoding="utf-8")


def test_where_all_are_answered_nothing_is_said(dataset: Dataset, tmp_path: Path) -> None:
    assert run(dataset, tmp_path, answers(GOOD)) == []
    [cell] = read_runs(tmp_path)[0]
    assert (cell.unscored, cell.metrics["failures_as_wrong"]) == (0, {})
    assert "Without a score" not in write_report(tmp_path, gallery=False).read_text("utf-8")


def test_a_cell_without_any_score_fails(dataset: Dataset, tmp_path: Path) -> None:
    [failed] = run(dataset, tmp_path, says("?"))
    assert "has a score" in failed
    assert not list((tmp_path / "cells").iterdir())
