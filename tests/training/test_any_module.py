"""The loop with a module that is no detector: statistics of its own, and a part that is frozen."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from offnominal.errors import ModelFileError, OptionError
from offnominal.training.checkpoint import Checkpoint, Files, History, State
from offnominal.training.claimed import claimed
from offnominal.training.loop import run
from offnominal.training.recipe import Recipe

RECIPE = Recipe(epochs=3, batch=4, lr=0.01)


class Student(nn.Module):
    """Learns what a frozen layer says, and keeps running means."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.teacher, self.student, self.norm = nn.Linear(5, 2), nn.Linear(5, 2), nn.BatchNorm1d(5)
        for parameter in self.parameters():
            nn.init.normal_(parameter, generator=generator)
        self.teacher.requires_grad_(False)

    def loss(self, batch: Tensor) -> dict[str, Tensor]:
        apart = (self.student(self.norm(batch)) - self.teacher(batch)).square().mean()
        small = self.student.weight.square().mean()
        return {"total": apart + 0.01 * small, "apart": apart, "small": small}


class Rows:
    """Ten rows of numbers, one of them unreadable."""

    def __init__(self, before: Callable[[], None] = lambda: None) -> None:
        self.rows = torch.randn(10, 5, generator=torch.Generator().manual_seed(4))
        self.before = before

    def __len__(self) -> int:
        return len(self.rows)

    def plan(self, size: int, generator: torch.Generator) -> Sequence[Tensor]:
        return torch.randperm(10, generator=generator).split(size)

    def load(self, planned: Tensor) -> Tensor | None:
        self.before()
        return None if 7 in planned[-1:] else self.rows[planned]


def train(folder: Path, rows: Rows, written: Callable[[], None] = lambda: None) -> list[bytes]:
    student, files = Student(), Files(folder / "student.safetensors")

    def write(epochs: int, history: History) -> None:
        written()
        save_file(student.state_dict(), files.learned)

    run(student, rows, RECIPE, Checkpoint(files, {"name": "student"}, write))
    return [path.read_bytes() for path in (files.learned, files.losses, files.state)]


def stop_at(turn: int) -> Callable[[], None]:
    turns = 0

    def stop() -> None:
        nonlocal turns
        turns += 1
        if turns == turn:
            raise KeyboardInterrupt

    return stop


@pytest.mark.parametrize("turn", [1, 2, 4, 9])
def test_broken_off_in_any_step(tmp_path: Path, turn: int) -> None:
    (tmp_path / "whole").mkdir()
    whole = train(tmp_path / "whole", Rows())
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, Rows(stop_at(turn)))
    assert train(tmp_path, Rows()) == whole


@pytest.mark.parametrize("turn", [1, 3])
def test_broken_off_while_the_result_is_written(tmp_path: Path, turn: int) -> None:
    (tmp_path / "whole").mkdir()
    whole = train(tmp_path / "whole", Rows())
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, Rows(), stop_at(turn))
    assert train(tmp_path, Rows()) == whole


def test_what_is_frozen_is_not_kept(tmp_path: Path) -> None:
    train(tmp_path, Rows())
    with safe_open(tmp_path / "student.state.safetensors", framework="pt") as file:
        names = set(file.keys())
    assert {"learned.student.weight", "learned.norm.running_mean", "optimiser.0.exp_avg"} <= names
    assert not any("teacher" in name for name in names)


def test_other_files_are_refused_by_their_names(tmp_path: Path) -> None:
    files = Files(tmp_path / "student.safetensors")

    def resume(**sources: str) -> None:
        checkpoint = Checkpoint(files, {"name": "student"}, lambda *_: None, sources=sources)
        run(Student(), Rows(), RECIPE, checkpoint)

    resume(a="1", b="2")
    with pytest.raises(OptionError, match=r"other files, of which b, c differ"):
        resume(a="1", b="3", c="4")
    resume(a="1", b="2")


def test_one_training_into_a_file_at_a_time(tmp_path: Path) -> None:
    files = Files(tmp_path / "student.safetensors")
    with (
        claimed(files),
        pytest.raises(OptionError, match="another process is training into it"),
        claimed(files),
    ):
        pass
    with claimed(files):  # the claim went with the block
        pass
    assert not list(tmp_path.iterdir())


def test_a_state_that_would_never_end_is_refused(tmp_path: Path) -> None:
    files, student = Files(tmp_path / "student.safetensors"), Student()
    checkpoint = Checkpoint(files, {"name": "student"}, lambda *_: None)
    optimisers = RECIPE.make_optimisers(student.student)
    random = torch.Generator().get_state()
    for step, told in ((99, "step 99 of 3"), (0, "does not fit")):
        state = State.of(1, step, student, optimisers, random, [])
        if not step:
            state.tensors["optimiser.7.exp_avg"] = torch.zeros(3)
        checkpoint.write_state(state)
        with pytest.raises(ModelFileError, match=rf"state\.safetensors: damaged.*{told}"):
            run(Student(), Rows(), RECIPE, checkpoint)
