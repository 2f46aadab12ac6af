"""Cells by workers: the same scores as one process gives, and what kills is among the failed."""

from pathlib import Path

import pytest
from tests.cli.conftest import offnominal, passed


@pytest.mark.slow
def test_cells_are_those_of_one_process(parts: Path, tmp_path: Path) -> None:
    command = ["benchmark", "--data", parts, "--categories", "fabric", "--method", "anomalydino",
               "--backbone", "builtin", "--shots", 1, 2, "--seeds", 1, "--set", "rotations=none",
               "aggregate=top1,max", "--no-cache", "-o"]  # fmt: skip
    passed(offnominal(*command, tmp_path / "alone"))
    told = passed(offnominal(*command, tmp_path / "several", "--workers", 2))
    assert "4 cells run" in told
    again = passed(offnominal(*command, tmp_path / "several", "--workers", 2))
    assert "4 were there" in again
    for name in ("metrics.json", "patch_scores.npz", "settings.json"):  # scores have times
        alone, several = (
            {file.parent.name: file.read_bytes() for file in (tmp_path / run).rglob(name)}
            for run in ("alone", "several")
        )
        assert alone
        assert alone == several
