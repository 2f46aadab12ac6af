"""``offnominal train`` as a user runs it: real processes, real images, real signals."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from tests.cli.conftest import ENVIRONMENT, MAIN, offnominal
from tests.training.material import save_gabor_clip, write_half


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_gabor_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def data(tiles: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_half(tiles, tmp_path_factory.mktemp("data") / "tiles", half=0, each=5)


def command(data: Path, output: Path, weights: Path, *more: object) -> list[object]:
    return [
        "train", "anomalyclip", "--data", data, "-o", output, "--weights", weights, "--depth", 3,
        "--resolution", 112, "--batch", 5, "--cache", output.parent / "cache", "--device", "cpu",
        *more,
    ]  # fmt: skip


@pytest.mark.slow
def test_train_fit_predict(data: Path, weights: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.safetensors"
    more = ("--epochs", 3, "--layers", "1,3", "--set", "value_blocks=2")
    done = offnominal(*command(data, prompts, weights, *more))
    assert done.returncode == 0, done.stderr
    assert "5 good and 10 defective images of tiles, 3 epochs in batches of 5" in done.stderr
    assert "epoch 3 of 3: loss " in done.stderr
    assert "features of 15 views computed, of 30 found" in done.stderr
    assert f"--prompts {prompts}" in done.stdout
    with safe_open(prompts, framework="pt") as file:
        header: dict[str, Any] = json.loads(file.metadata()["offnominal_learned"])
        assert sorted(file.keys()) == ["abnormal", "deep.0", "deep.1", "normal"]
    assert header["method"] == "anomalyclip"
    assert header["reading"]["layers"] == [1, 3]
    assert header["reading"]["resolution"] == 112
    assert header["reading"]["value_blocks"] == 2
    assert header["training"]["recipe"]["epochs"] == 3
    losses = [mean["total"] for mean in header["training"]["losses"]]
    assert losses[2] < losses[0]
    steps = (tmp_path / "prompts.losses.jsonl").read_text().splitlines()
    assert len(steps) == 9
    assert "<svg" in (tmp_path / "prompts.html").read_text()

    # The same command finds nothing left to do.
    before = prompts.read_bytes()
    done = offnominal(*command(data, prompts, weights, *more))
    assert done.returncode == 0, done.stderr
    assert "goes on after epoch 3, step 0" in done.stderr
    assert prompts.read_bytes() == before

    model = tmp_path / "tile.offn"
    done = offnominal(
        "fit", "--method", "anomalyclip", "--weights", weights, "--set", f"prompts={prompts}",
        "-o", model,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    prompts.unlink()
    out = tmp_path / "out"
    done = offnominal("predict", model, data / "tile/test/break", "-o", out, "--save", "json")
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert len(rows) == 5
    assert all(0 < row["score"] < 1 for row in rows)


def test_coop(data: Path, weights: Path, tmp_path: Path) -> None:
    prompts, names = tmp_path / "coop.safetensors", tmp_path / "names.csv"
    names.write_text("tile,magnetic tile\n")
    done = offnominal(
        "train", "coop", "--data", data, "-o", prompts, "--weights", weights, "--epochs", 2,
        "--batch", 8, "--length", 4, "--start-from", "a photo of a", "--position", "middle",
        "--specific", "--class-names", names, "--no-cache", "--resolution", 112,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    with safe_open(prompts, framework="pt") as file:
        header = json.loads(file.metadata()["offnominal_learned"])
        assert file.get_tensor("context").shape == (2, 4, 64)
    assert header["learner"]["position"] == "middle"
    assert header["training"]["start_from"] == "a photo of a"
    assert header["training"]["data"]["class_names"] == {"tile": "magnetic tile"}
    model = tmp_path / "tile.offn"
    done = offnominal(
        "fit", "--method", "coop", "--class-name", "magnetic tile", "--weights", weights,
        "--set", f"prompts={prompts}", "-o", model,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_april_gan(data: Path, weights: Path, tmp_path: Path) -> None:
    layers, model = tmp_path / "layers.safetensors", tmp_path / "tile.offn"
    done = offnominal(
        "train", "april-gan", "--data", data, "-o", layers, "--weights", weights, "--epochs", 2,
        "--layers", "1,3", "--mosaic", 0.3, "--resolution", 112, "--cache", tmp_path / "cache",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "APRIL-GAN: 5 good and 10 defective images of tiles, 2 epochs" in done.stderr
    assert f"--method april-gan --projections {layers} " in done.stdout
    with safe_open(layers, framework="pt") as file:
        header = json.loads(file.metadata()["offnominal_learned"])
        assert file.get_tensor("layers.1.weight").shape == (64, 128)
    assert header["reading"]["layers"] == [1, 3]
    assert header["training"]["recipe"]["mosaic"] == 0.3
    done = offnominal(
        "fit", "--method", "april-gan", "--weights", weights, "--projections", layers,
        "-o", model,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    layers.unlink()
    done = offnominal("predict", model, data / "tile/test/break", "-o", tmp_path / "out")
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def whole(data: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of a training that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    done = offnominal(*command(data, folder / "p.safetensors", weights, "--epochs", 12))
    assert done.returncode == 0, done.stderr
    return folder


# A shell starts what it puts in the background with SIGINT ignored.
HEARING = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "


def stopped(by: signal.Signals, arguments: list[object]) -> tuple[int, str]:
    """A process of its own, ended in the middle: its exit code, and what it said last."""
    *python, program = MAIN
    process = subprocess.Popen(
        [*python, HEARING + program, *map(str, arguments)],
        stderr=subprocess.PIPE, text=True, env=os.environ | ENVIRONMENT,
    )  # fmt: skip
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("epoch 3 "):
            break
    time.sleep(0.02)
    process.send_signal(by)
    return process.wait(timeout=60), process.stderr.read()


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.slow
def test_a_stop_loses_nothing(
    data: Path,
    weights: Path,
    whole: Path,
    tmp_path: Path,
    by: signal.Signals,
) -> None:
    """Stopped in the middle and begun again: the same bytes as without the stop."""
    arguments = command(data, tmp_path / "p.safetensors", weights, "--epochs", 12)
    code, told = stopped(by, arguments)
    assert code not in (0, 1, 2, 70), told
    assert "stopped; the same command goes on" in told
    with safe_open(tmp_path / "p.state.safetensors", framework="pt") as file:
        header = json.loads(file.metadata()["offnominal_training"])
    assert 3 <= header["epoch"] < 12
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]

    done = offnominal(*arguments)
    assert done.returncode == 0, done.stderr
    assert f"goes on after epoch {header['epoch']}, step {header['step']}" in done.stderr
    for name in ("p.safetensors", "p.losses.jsonl", "p.state.safetensors"):
        assert (tmp_path / name).read_bytes() == (whole / name).read_bytes(), name


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (("--split", "train"), "the train split has no defective image"),
        (("--categories", "bolt"), "no category bolt"),
    ],
)
def test_wrong_options_are_told(
    data: Path, weights: Path, tmp_path: Path, more: tuple[str, ...], told: str
) -> None:
    done = offnominal(*command(data, tmp_path / "p.safetensors", weights, *more))
    assert done.returncode == 2, done.stderr
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "p.safetensors").exists()


def test_options_come_from_the_recipe_and_the_prompts() -> None:
    told = offnominal("train", "coop", "--help").stdout
    for word in ("--local-weight", "--optimiser", "--position", "--start-from", "--temperature"):
        assert word in told
    assert "(50)" in told, "the recipe's own number of epochs"
    assert "--prompts" not in told, "what a training writes, it does not read"
    assert "--depth" in offnominal("train", "anomalyclip", "--help").stdout
    unknown = offnominal("train", "padim")
    assert unknown.returncode == 2
    assert "choose one of anomalyclip, april-gan, coop" in unknown.stderr
