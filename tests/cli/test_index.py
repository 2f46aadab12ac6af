"""Searching by an index as a user does it: real processes, real files."""

import json
from pathlib import Path

import pytest
from tests.cli.test_cli import offnominal

from offnominal.cli.options import build_detector
from offnominal.errors import OptionError


def test_a_fit_with_an_index_prints_what_it_measured(parts: Path, tmp_path: Path) -> None:
    model = tmp_path / "part.offn"
    good = parts / "part" / "train" / "good"
    done = offnominal(
        "fit", good, "-o", model, "--method", "patchcore", "--backbone", "builtin", "--resolution",
        128, "--set", "dim=48", "--set", "coreset=1.0", "--search", "ivf,recall=0.9",
        "--storage", "int8", "--device", "cpu",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "1,920 patches as int8" in done.stderr
    assert "index ivf of 1,920 patches: nprobe" in done.stderr
    assert "held-back patches (asked for: 0.9)" in done.stderr
    assert "6 references against the same with a blemish" in done.stderr
    assert "times as fast as exact search" in done.stderr
    assert "their scores changed by up to" in done.stderr

    told = offnominal("info", model)
    assert told.returncode == 0, told.stderr
    for words in ("patchcore, written by", "search=ivf,recall=0.9", "storage=int8", "index ivf of"):
        assert words in told.stdout
    assert "with the index" in told.stdout
    assert "times as fast" not in told.stdout, "a model file holds no timing"
    facts = json.loads(offnominal("info", model, "--json").stdout)
    [search] = facts["search"]
    assert search["exact"] is None
    assert search["indexes"][0]["rows"] == facts["patches"] == 1920
    assert search["indexes"][0]["recall"] >= search["indexes"][0]["target"] == 0.9
    assert 0 <= search["report"]["auroc_approximate"] <= 1

    alarm = parts / "part" / "test" / "good" / "000.png"
    added = offnominal("add", model, alarm)
    assert added.returncode == 0, added.stderr
    assert "index ivf of 2,240 patches" in added.stderr
    assert "exactly" not in added.stderr
    assert "measured at the fit, with 1,920 patches" in offnominal("info", model).stdout


def test_a_search_that_stays_exact_says_why(parts: Path, tmp_path: Path) -> None:
    common = ("-o", tmp_path / "part.offn", "--backbone", "builtin", "--device", "cpu")
    good = parts / "part" / "train" / "good"
    done = offnominal("fit", good, *common, "--resolution", 64, "--search", "recall=0.99")
    assert done.returncode == 0, done.stderr
    assert "search     exact: an index does not pay with fewer than" in done.stderr
    assert "search     exact: " in offnominal("info", tmp_path / "part.offn").stdout


def test_methods_without_a_bank_say_so() -> None:
    for option, value in (("search", "recall=0.99"), ("storage", "int8")):
        with pytest.raises(OptionError, match=f"--{option}: padim keeps no bank") as raised:
            build_detector("padim", {option: value})
        assert "anomalydino, multilayer-nn, patchcore, softpatch do" in str(raised.value)
