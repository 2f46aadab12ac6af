"""Run folders, training states, files of what was learned and cached features, damaged."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tests.fuzz.mutate import (
    COUNT,
    Mutate,
    attack,
    json_mutations,
    mutations,
    safetensors_mutations,
    zip_mutations,
)
from torch import Tensor, nn

from offnominal.backbones.cache import FeatureCache
from offnominal.benchmark.cell import Cell
from offnominal.benchmark.files import read_patch_scores, read_scores, seal
from offnominal.benchmark.store import Store, read_runs
from offnominal.language.learned import AnomalyCLIPPrompts, LearnedPrompts
from offnominal.language.learnedfile import LearnedFile, read_learned, write_learned
from offnominal.report.conditions import conditions
from offnominal.report.curves import cell_words
from offnominal.report.gallery import choose
from offnominal.report.results import gather
from offnominal.report.sections import best_cells, shown_cells, size_rows
from offnominal.report.sentences import headline, warning
from offnominal.report.speed import speed
from offnominal.report.tables import by_category, latex, overview, present, write_cells
from offnominal.training.checkpoint import Checkpoint, Files, read_losses
from offnominal.training.loop import run
from offnominal.training.recipe import Recipe

pytestmark = pytest.mark.slow

JSON = (mutations, json_mutations)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cell, as the benchmark writes it, but without digests, which would find everything."""
    from offnominal.benchmark.plan import Request, make_plan
    from offnominal.benchmark.runner import Runner
    from offnominal.benchmark.store import Plan
    from offnominal.datasets import open_dataset
    from offnominal.datasets.synthetic import write_dataset

    folder = tmp_path_factory.mktemp("fuzz")
    write_dataset(folder / "parts", looks=("fabric",), n_train=3, n_good=3, n_per_defect=1)
    request = Request(shots=(2,), seeds=1, backbones=("builtin",), sets={"rotations": ["none"]})
    work, store = make_plan([open_dataset(folder / "parts")], request), Store(folder / "runs")
    assert Runner(work, store).run().failed == []
    store.add_plan(Plan("grid", "Results", ("shots",), (work.cells[0].name,)))
    [(place, contents)] = work.contents.items()
    store.note(*place, contents)
    (store.cells / work.cells[0].name / "sha256sums").unlink()
    return folder / "runs"


def report(runs: Path) -> None:
    """All of a report but its drawings, which take a second."""
    cells, plans = read_runs(runs)
    setups = gather(cells)
    for metric in present(setups):
        by_category(metric, setups, [setup.label for setup in setups], [])
    latex([overview(plan.title, setups, plan.axes, []) for plan in plans], [])
    headline(setups), warning(setups), conditions(cells, setups), speed(setups)
    for cell in best_cells(shown_cells(setups)):
        cell_words(cell), size_rows(cell), choose(cell), read_patch_scores(cell.folder)
    write_cells(runs / "cells.csv", cells)


@pytest.mark.parametrize(
    ("name", "ways"),
    [
        ("settings.json", JSON),
        ("run.json", JSON),
        ("metrics.json", JSON),
        ("scores.parquet", (mutations,)),
        ("patch_scores.npz", (mutations, zip_mutations)),
        ("grid.json", JSON),
    ],
)
def test_run_folders(runs: Path, name: str, ways: tuple[Mutate, ...]) -> None:
    [path] = runs.rglob(name)
    attack(path, lambda: report(runs), *ways, count=COUNT // 6)


def test_digests_and_contents(runs: Path) -> None:
    [cell] = (path for path in (runs / "cells").iterdir())
    known = Cell("parts", "fabric", "", "anomalydino", 2, 0, "random", {})
    seal(cell)
    store = Store(runs)

    def read() -> None:
        assert not store.has(known)
        read_runs(runs), read_scores(cell)

    attack(cell / "sha256sums", read)
    (cell / "sha256sums").unlink()
    [contents] = (runs / "contents").iterdir()
    attack(contents, lambda: store.earlier_files(contents), *JSON)


class Line(nn.Module):
    """Learns a straight line."""

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(2, 1)
        nn.init.zeros_(self.line.weight), nn.init.zeros_(self.line.bias)

    def loss(self, batch: Tensor) -> dict[str, Tensor]:
        return {"total": (self.line(batch) - batch.sum(1, keepdim=True)).square().mean()}


class Points:
    def __len__(self) -> int:
        return 6

    def plan(self, size: int, generator: torch.Generator) -> list[Tensor]:
        return list(torch.randperm(6, generator=generator).split(size))

    def load(self, planned: Tensor) -> Tensor:
        return torch.stack([planned.float(), 1 - planned.float()], 1)


def test_states_of_trainings(tmp_path: Path) -> None:
    files = Files(tmp_path / "line.safetensors")

    def train(epochs: int = 2) -> None:
        checkpoint = Checkpoint(files, {"name": "line"}, lambda epochs, history: None)
        run(Line(), Points(), Recipe(epochs=epochs, batch=2, lr=0.01), checkpoint)
        read_losses(files.losses)

    train(1)
    whole = files.state.read_bytes()
    train()
    expected = files.state.read_bytes()
    files.state.write_bytes(whole)

    def resume() -> None:
        train()
        assert files.state.read_bytes() == expected, "it went on from something else"

    attack(files.state, resume, mutations, safetensors_mutations, count=COUNT // 2)
    attack(files.losses, lambda: read_losses(files.losses), *JSON)


def test_files_of_what_was_learned(tmp_path: Path) -> None:
    path = tmp_path / "prompts.safetensors"
    prompts = AnomalyCLIPPrompts(16, 3, 2, 2)
    about = LearnedFile("anomalyclip", prompts.settings(), {"layers": [1, 2]}, {"name": "clip"})
    write_learned(path, prompts, about)
    read_learned(path, LearnedPrompts)  # the first one imports for seconds
    attack(path, lambda: read_learned(path, LearnedPrompts), mutations, safetensors_mutations)
    released = {"ctx_pos": torch.zeros(1, 1, 3, 16), "ctx_neg": torch.ones(1, 1, 3, 16)}
    torch.save({"prompt_learner": released}, path)
    attack(path, lambda: read_learned(path, LearnedPrompts), mutations, zip_mutations)


def test_cached_features(tmp_path: Path) -> None:
    cache, key, other = FeatureCache(tmp_path, 10**9), "ab" * 20, "cd" * 20
    entry = [np.arange(24, dtype=np.float32).reshape(2, 3, 4), np.array([0.5, 7.0])]
    cache.put(key, entry)
    [path] = tmp_path.rglob("*.npz")

    def read() -> None:
        found = cache.get(key)
        if found is not None:
            for ours, theirs in zip(found, entry, strict=True):
                np.testing.assert_array_equal(ours, theirs)

    attack(path, read, mutations, zip_mutations)
    # What is sound, but of something else, is not taken either.
    (tmp_path / "cd").mkdir()
    (tmp_path / "cd" / f"{other}.npz").write_bytes(path.read_bytes())
    assert cache.get(other) is None
    assert cache.get(key) is not None
