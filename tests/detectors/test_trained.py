"""What every trained detector does alike, shown by a small one."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

import offnominal
from offnominal.detectors import registry
from offnominal.detectors.features import ViewScores
from offnominal.detectors.one_class.cutpaste import CutPaste
from offnominal.detectors.one_class.igd import IGD
from offnominal.detectors.reconstruction.draem import DRAEM
from offnominal.detectors.registry import METHODS, Method
from offnominal.detectors.trained import TrainedDetector
from offnominal.errors import ModelFileError, OptionError
from offnominal.training import loop
from offnominal.training.budget import Schedule
from offnominal.training.images import Batch, Images


class Painter(TrainedDetector):
    """Paints images through a narrow place; two optimisers, noise, statistics of its own."""

    method: ClassVar[str] = "painter"
    schedule: ClassVar[Schedule] = Schedule(batch=4, steps=6, paper_epochs=10)
    default_side: ClassVar[int] = 32
    fault: ClassVar[float] = 1.0
    slope: ClassVar[float] = 0.0

    def build(self) -> None:
        self.inner = nn.Sequential(nn.Conv2d(3, 4, 8, 8), nn.BatchNorm2d(4), nn.ReLU())
        self.outer = nn.ConvTranspose2d(4, 3, 8, 8)
        self.level_ = torch.zeros(())
        self.register_buffer("spread", torch.zeros(3))

    def optimisers(self) -> list[Optimizer]:
        return [
            Adam(self.inner.parameters(), lr=1e-2),
            SGD(self.outer.parameters(), lr=1e-2, momentum=0.9),
        ]

    def rate(self, done: float) -> float:
        return 1 - done

    def prepare(self, images: Images) -> None:
        self.spread = torch.stack([each.std((0, 2, 3)) for each in images.batches()]).mean(0)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        noisy = batch.pixels + 0.1 * torch.randn_like(batch.pixels) * float(batch.rng.random())
        apart = (self.outer(self.inner(noisy)) - batch.pixels).square().mean()
        steep = self.slope * (apart - apart.detach())
        return {"total": apart * self.fault + steep * self.slope, "apart": apart}

    def settle(self, images: Images) -> None:
        errors = [self.errors(pixels).mean() for pixels in images.batches()]
        self.level_ = torch.stack(errors).mean()

    def errors(self, pixels: Tensor) -> Tensor:
        apart: Tensor = self.outer(self.inner(pixels)) - pixels
        return apart.square().mean(1) / self.spread.mean()

    def compare(self, pixels: Tensor) -> ViewScores:
        return ViewScores(self.errors(pixels)[0] / self.level_)


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    line = Method("painter", f"{__name__}:Painter", "", "", "")
    monkeypatch.setitem(registry.METHODS, "painter", line)
    assert METHODS is registry.METHODS


@pytest.fixture(scope="module")
def good() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(90, 140, (40, 48, 3), dtype=np.uint8) for _ in range(24)]


def fitted(good: list[np.ndarray], **options: Any) -> Painter:
    return Painter(device="cpu", **options).fit(good, synthetic=False)


def test_some_are_held_back_and_promise_what_they_can(good: list[np.ndarray]) -> None:
    detector = fitted(good)
    assert len(detector.held_back_) == 8
    threshold = detector.threshold
    assert threshold is not None
    assert threshold.kind == "conformal"
    assert detector.calibration.kind == "held-out"
    assert [row["epoch"] for row in detector.losses] == [1, 1, 1, 1, 2, 2]  # 16 are trained on
    bad = good[0].copy()
    bad[10:20, 10:20] = 255
    [one, other] = detector.predict([good[0], bad])
    assert other.score > one.score
    assert other.is_anomalous
    assert not fitted(good, hold_back=0).decides
    assert len(fitted(good[:3]).held_back_) == 1


def test_files_hold_what_was_learned(good: list[np.ndarray], tmp_path: Path) -> None:
    sizes = {}
    for storage in ("fp32", "fp16"):
        detector = fitted(good, storage=storage, steps=2)
        path = tmp_path / f"{storage}.offn"
        detector.save(path)
        sizes[storage] = path.stat().st_size
        again = offnominal.load(path)
        assert again.predict(good[0])[0].score == detector.predict(good[0])[0].score
        assert again.threshold == detector.threshold
        other = again.rescored(aggregate="mean")
        assert other.predict(good[0])[0].score < again.predict(good[0])[0].score
    assert sizes["fp16"] < sizes["fp32"]


def trained_to(good: list[np.ndarray], path: Path, **options: Any) -> bytes:
    steps = {"steps": 6} | options
    detector = Painter(device="cpu", **steps)
    detector.fit(good, synthetic=False, state=path).save(path)
    return path.read_bytes()


def stopping(turn: int) -> Callable[[str, int], None]:
    def progress(stage: str, done: int) -> None:
        if stage == "training" and done == turn:
            raise KeyboardInterrupt

    return progress


@pytest.mark.parametrize("choose", [False, True])
def test_it_goes_on_to_the_same_bytes(good: list[np.ndarray], tmp_path: Path, choose: bool) -> None:
    whole = trained_to(good, tmp_path / "whole.offn", choose=choose)
    path = tmp_path / "part.offn"
    detector = Painter(device="cpu", steps=6, choose=choose)
    for turn in (2, 5):
        with pytest.raises(KeyboardInterrupt):
            detector.fit(good, progress=stopping(turn), synthetic=False, state=path)
    with pytest.raises(OptionError, match=r"whose hold_back is 0\.2, not 0\.3"):
        trained_to(good, path, hold_back=0.3, choose=choose)
    with pytest.raises(OptionError, match="on other files, of which"):
        trained_to(good[:-1], path, choose=choose)
    assert trained_to(good, path, choose=choose) == whole


KILLED = """
import os, pickle, signal, sys
import numpy as np
from offnominal.training import loop
from tests.detectors.test_trained import Painter

def progress(stage, done):
    if stage == "training" and done == 4:
        os.kill(os.getpid(), signal.SIGKILL)

loop._SAVE_EVERY = 0.0
good = list(np.load(sys.argv[1]))
Painter(device="cpu", steps=6).fit(good, progress=progress, synthetic=False, state=sys.argv[2])
"""


@pytest.mark.slow
def test_a_power_cut_costs_little(good: list[np.ndarray], tmp_path: Path) -> None:
    whole = trained_to(good, tmp_path / "whole.offn")
    np.save(tmp_path / "good.npy", np.stack(good))
    path = tmp_path / "part.offn"
    words = [sys.executable, "-c", KILLED, str(tmp_path / "good.npy"), str(path)]
    done = subprocess.run(words, cwd=Path(__file__).parents[2], timeout=120, check=False)
    assert done.returncode == -9
    assert path.with_suffix(".state.safetensors").exists()
    assert trained_to(good, path) == whole


@pytest.mark.slow
def test_a_budget_is_kept_by_timing_steps(
    good: list[np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    detector = Painter(device="cpu", budget="1s").fit(good, synthetic=False, tell=told.append)
    assert detector.steps_ > 1
    assert any("steps of 4; the paper's schedule is 40" in line for line in told)
    with pytest.raises(OptionError, match=r"--budget 0\.001s: too short"):
        fitted(good, budget="0.001s")
    path = tmp_path / "part.offn"
    with pytest.raises(KeyboardInterrupt):
        Painter(device="cpu", budget="1s").fit(good, state=path, progress=stopping(2))
    again = Painter(device="cpu", budget="1s").fit(good, state=path, synthetic=False)
    assert len(again.losses) == again.steps_  # as many as were planned before it was broken off


def test_a_loss_that_runs_away_keeps_the_last_good_state(
    good: list[np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "part.offn"

    def break_down(stage: str, done: int) -> None:
        if done == 3 and stage == "training":
            monkeypatch.setattr(Painter, "fault", float("nan"))

    told = r"no longer finite in step 4: give a smaller --lr-scale.*part\.state.*--overwrite"
    with pytest.raises(OptionError, match=told):
        Painter(device="cpu", steps=6).fit(good, state=path, progress=break_down)
    monkeypatch.setattr(Painter, "fault", 1.0)
    assert trained_to(good, path) == trained_to(good, tmp_path / "whole.offn")


def test_a_last_step_that_breaks_the_networks_is_told(
    good: list[np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "part.offn"

    def blow_up(stage: str, done: int) -> None:
        if done == 5 and stage == "training":  # the loss stays finite, its gradient does not
            monkeypatch.setattr(Painter, "slope", 1e38)

    with pytest.raises(OptionError, match=r"no longer finite in step 6"):
        Painter(device="cpu", steps=6).fit(good, state=path, progress=blow_up)
    assert not path.exists()
    monkeypatch.setattr(Painter, "slope", 0.0)
    assert trained_to(good, path) == trained_to(good, tmp_path / "whole.offn")


def test_a_training_goes_on_with_the_same_files_only(
    good: list[np.ndarray], tmp_path: Path
) -> None:
    folder = tmp_path / "textures"
    folder.mkdir()
    for number in range(3):
        Image.fromarray(good[number]).save(folder / f"{number}.png")
    options: dict[str, Any] = {"width": 2, "resolution": 32, "steps": 4, "device": "cpu"}

    def stop(stage: str, done: int) -> None:
        if done == 2 and stage == "training":
            raise KeyboardInterrupt

    path = tmp_path / "part.offn"
    with pytest.raises(KeyboardInterrupt):
        DRAEM(textures=str(folder), **options).fit(good, state=path, progress=stop)
    folder = folder.rename(tmp_path / "moved")
    (folder / "2.png").rename(folder / "two.png")
    with pytest.raises(OptionError, match="training on other files, of which --textures differ"):
        DRAEM(textures=str(folder), **options).fit(good, state=path)
    (folder / "two.png").rename(folder / "2.png")
    assert DRAEM(textures=str(folder), **options).fit(good, state=path).steps_ == 4


@pytest.mark.parametrize("kind", [CutPaste, IGD, Painter])
@pytest.mark.slow
def test_all_that_was_learned_moves_to_another_device(
    kind: type[TrainedDetector], good: list[np.ndarray]
) -> None:
    detector = kind(steps=1, resolution=64, device="cpu").fit(good, synthetic=False)
    detector.move(torch.device("meta"))
    tensors = {name: each for name, each in vars(detector).items() if isinstance(each, Tensor)}
    assert tensors
    assert {each.device.type for each in tensors.values()} == {"meta"}


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"steps": 5, "budget": "1m"}, "give one of the two"),
        ({"steps": 0}, "--steps 0"),
        ({"budget": "soon"}, "--budget soon: give a time such as 90s"),
        ({"augment": "flips,dance"}, "--augment dance: choose none, or some of flips"),
        ({"hold_back": 0.7}, "--hold-back"),
        ({"choose": True, "hold_back": 0.0}, "--choose: needs images"),
        ({"storage": "int8"}, "storage 'int8'"),
        ({"seed": -5}, "--seed -5"),
        ({"precision": "fp16"}, "--precision fp16: painter would lose small gradients"),
        ({"steps": "many"}, "--steps many: give a whole number, or paper"),
        ({"crop": True}, "--crop: the paper of painter does not crop"),
        ({"budget": "99999999h"}, "give at most 1000h"),
    ],
)
def test_options_are_checked(options: dict[str, Any], told: str) -> None:
    with pytest.raises(OptionError, match=told):
        Painter(**options)


def test_too_few_images_and_blank_ones(good: list[np.ndarray]) -> None:
    for some, told in (([], "no image to learn from"), (good[:1], "one image to learn from")):
        with pytest.raises(OptionError, match=told):
            Painter().fit(some)
    with pytest.raises(OptionError, match=r"--batch 1: too few for batch norm at 8 px"):
        fitted(good, batch=1, resolution=8)
    with pytest.raises(OptionError, match="--choose: too few images"):
        fitted(good[:2], choose=True)
    blank = [np.full((20, 20, 3), 10 * n, np.uint8) for n in range(10)]
    detector = fitted(blank, augment="flips,turns,rotations,tilts,shifts,light,colour")
    assert np.isfinite(detector.predict(blank[0])[0].score)


def test_a_file_that_does_not_fit(good: list[np.ndarray], tmp_path: Path) -> None:
    from offnominal import modelfile

    detector = fitted(good, steps=1)
    for name, value, told in (("held_back_", [99], "held back"), ("steps_", 0, "no step")):
        header = detector.header()
        header["learned"] = {**header["learned"], name: value}
        arrays = detector.arrays()
        modelfile.write(tmp_path / "x.offn", header, arrays)
        with pytest.raises(ModelFileError, match=told):
            offnominal.load(tmp_path / "x.offn")


def test_the_paper_and_its_crop(good: list[np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    assert fitted(good, steps="paper").steps_ == 40
    monkeypatch.setattr(Painter, "paper_crop", 1.25)
    detector = fitted(good, crop=True, steps=1)
    assert "not inspected" in (detector.not_inspected((40, 48)) or "")
    found = detector.predict(good[0])[0]
    assert found.anomaly_map[0, 0] == 0 < found.anomaly_map[20, 24]


def test_randomness_is_the_steps_own() -> None:
    drawn = []
    for _ in range(2):
        torch.rand(3)
        with loop.seeded(1, 2, 3):
            drawn.append(torch.rand(2))
    assert torch.equal(*drawn)


TOGETHER = """
import sys
import numpy as np
from tests.detectors.test_trained import Painter

if __name__ == "__main__":
    good = list(np.load(sys.argv[1]))
    detector = Painter(device="cpu", steps=6, devices=2).fit(good, synthetic=False)
    assert len(detector.losses) == 6
    print(detector.losses[-1]["total"], detector.threshold.value)
"""


@pytest.mark.slow
def test_two_processes_train_together(good: list[np.ndarray], tmp_path: Path) -> None:
    np.save(tmp_path / "good.npy", np.stack(good))
    script = tmp_path / "together.py"
    script.write_text(TOGETHER)
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": f"{root}{os.pathsep}{root / 'src'}"}
    words = [sys.executable, str(script), str(tmp_path / "good.npy")]
    done = subprocess.run(
        words, env=environment, capture_output=True, text=True, timeout=300, check=True
    )
    loss, threshold = map(float, done.stdout.split()[-2:])
    alone = fitted(good, steps=6)
    # Batch norm sees two images instead of four, and noise is drawn otherwise.
    assert loss == pytest.approx(alone.losses[-1]["total"], rel=0.3)
    assert alone.threshold is not None
    assert threshold == pytest.approx(alone.threshold.value, rel=0.3)
    with pytest.raises(OptionError, match="a batch of 4 is too few"):
        fitted(good, devices=5)


@pytest.mark.slow
def test_a_compiled_loss_comes_to_nearly_the_same(good: list[np.ndarray]) -> None:
    plain, compiled = fitted(good, steps=2), fitted(good, steps=2, compiled=True)
    # Compiled code draws other random numbers.
    assert compiled.losses[-1]["total"] == pytest.approx(plain.losses[-1]["total"], rel=0.05)
