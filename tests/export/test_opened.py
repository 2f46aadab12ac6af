"""Exported files once they are open: estimators that believe nothing, and keep what was found."""

import copy
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from offnominal import AnomalyDINO, load, modelfile
from offnominal.datasets.synthetic import draw_good
from offnominal.detectors.distribution.padim import PaDiM
from offnominal.detectors.memory_bank.patchcore import PatchCore
from offnominal.errors import ModelFileError, OptionError
from offnominal.export.compared import Comparison
from offnominal.export.graph import single_graph
from offnominal.export.model import export_int8, export_model
from offnominal.export.parity import sample_images

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def bank(resnet: str, good: list[Path]) -> AnomalyDINO:
    options: dict[str, Any] = {"resolution": 64, "mask": "off", "rotations": "0,90,180,270"}
    return AnomalyDINO(backbone="test_resnet", weights=resnet, **options).fit(
        good[:4], synthetic=False
    )


@pytest.fixture(scope="module")
def program(resnet: str, good: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    options: dict[str, Any] = {"resolution": 64, "resize": "square", "layers": (1,)}
    fitted = PaDiM(backbone="test_resnet", weights=resnet, **options)
    path = tmp_path_factory.mktemp("program") / "part.offx"
    export_model(fitted.fit(good[:4], synthetic=False), path)
    return path


def test_a_program_is_an_estimator(program: Path, good: list[Path]) -> None:
    opened = load(program, engine="onnxruntime")
    score = opened.predict(good[5])[0].score
    assert opened.get_params()["resolution"] == 64
    assert opened.get_params()["engine"] == opened.engine_in_force == "onnxruntime"
    assert opened.set_params() is opened
    with pytest.raises(OptionError, match=r"layers: an exported model of padim keeps its options"):
        opened.set_params(layers=(1, 2))
    with pytest.raises(OptionError, match=r"cannot be cloned, .* copy\.deepcopy"):
        opened.__sklearn_clone__()
    for again in (pickle.loads(pickle.dumps(opened)), copy.deepcopy(opened)):
        assert again.predict(good[5])[0].score == score
        assert again.threshold == opened.threshold
    with pytest.raises(OptionError, match="--device cuda:7: an exported network runs on the CPU"):
        load(program, device="cuda:7").predict(good[5])
    with pytest.raises(OptionError, match="engine 'none': choose one of"):
        load(program, engine="none")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"leave_one_out": "some"}, "leave one out"),
        ({"leave_one_out": None}, "leave one out"),
        ({"options": {"aggregate": [1]}}, "aggregate"),
        ({"options": {"aggregate": "worst"}}, "aggregate"),
        ({"options": {"smoothing": "x"}}, "smoothing"),
        ({"options": {"nothing": 1}}, "nothing: there is no such option"),
        ({"backbone": {"name": 7, "digest": ""}}, "no backbone"),
        ({"learned": None}, "contents do not fit"),
        ({"export": {"outputs": ["patches", "image", "weight"]}}, "how its program is run"),
        ({"export": {"outputs": ["patches", "patches"]}}, "how its program is run"),
        ({"export": {"gate": {"rank": 7}}}, "damaged"),
    ],
)
def test_a_header_is_not_believed(
    program: Path, tmp_path: Path, changes: dict[str, Any], told: str
) -> None:
    header = modelfile.read_header(program)
    arrays = modelfile.read(program, header)
    own = {k: v for k, v in header.items() if k not in ("format", "version", "sums")}
    for name, value in changes.items():
        own[name] = own[name] | value if name in ("options", "export") else value
    path = tmp_path / "part.offx"
    modelfile.write(path, own, arrays)
    with pytest.raises(ModelFileError, match=rf"{path}: .*{told}"):
        load(path)


def test_no_other_network_takes_the_place_of_the_graph(
    bank: AnomalyDINO, good: list[Path], tmp_path: Path
) -> None:
    path = tmp_path / "part.offx"
    made = export_model(bank, path)
    # What lies in the bank would score nothing there, and hide what features differ by.
    images, words = sample_images(bank)
    assert bank.threshold is not None
    scores = [one.score for one in bank.predict(images)]
    assert min(scores) > bank.threshold.value / 4 > bank.predict(good[0])[0].score
    assert made.compared == words == "4 references, mirrored, and 2 drawn images"
    assert load(path).deployed.compared == words

    opened: Any = load(path, engine="onnxruntime")
    before = opened.predict(good[5])[0].score
    pixels = torch.zeros(1, 3, 64, 64)
    for use in (opened.torch_network, lambda: opened(pixels), lambda: opened.levels(pixels)):
        with pytest.raises(OptionError, match="use the fitted model that it was exported from"):
            use()
    with pytest.raises(OptionError, match="--single-graph: it is an exported model already"):
        single_graph(opened, tmp_path / "part.onnx", (64, 64))
    with pytest.raises(OptionError, match="--int8: it is an exported model already"):
        export_int8(opened, tmp_path / "int8.offx", Comparison(good[4:8]))
    assert opened.predict(good[5])[0].score == before
    assert [one.name for one in tmp_path.iterdir()] == ["part.offx"]


def test_what_no_graph_computes_in_is_told_before_any_work(
    good: list[Path], tmp_path: Path
) -> None:
    half = AnomalyDINO(backbone="builtin", resolution=64, precision="fp16", mask="off")
    half.fit(good[:2], synthetic=False)
    with pytest.raises(OptionError, match=r"--precision fp16, .* fit anew with --precision fp32"):
        export_model(half, tmp_path / "part.offx")


def test_what_eight_bits_lose_stays_in_the_file(
    bank: AnomalyDINO, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("offnominal.engines.gate.Gate.refused", [])  # of a network at random
    path = tmp_path / "part.offx"
    more = [draw_good("fabric", 0, number) for number in range(6)]
    deployed, gate = export_int8(bank, path, Comparison(more))
    opened: Any = load(path)
    assert opened.deployed.gate == deployed.gate
    assert opened.deployed.gate.rank == gate.rank
    assert opened.deployed.compared == "6 good images"
    assert "of 3 good images rejected" in str(opened.deployed.gate)
    # One step set the thresholds: none is left of the trial, and it can be undone.
    assert [step.what for step in opened.history()] == ["fit", "calibrate"]
    opened.undo()


def test_a_file_that_is_written_over_while_it_is_open(
    bank: AnomalyDINO, good: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, other = tmp_path / "part.offn", tmp_path / "other.offn"
    bank.save(path)
    changed = copy.deepcopy(bank)
    changed.add(good[4])
    changed.save(other)
    opened = load(path)
    score = opened.predict(good[5])[0].score
    shutil.copy(other, path)  # as `cp` has it, into the same file
    assert opened.predict(good[5])[0].score == score  # its arrays are small, and copies

    monkeypatch.setattr(modelfile, "_PIECE", 1000)  # they are large, and mapped
    bank.save(path)
    opened = load(path)
    assert opened.predict(good[5])[0].score == score
    opened.save(path)  # which puts another file in its place
    assert opened.predict(good[5])[0].score == score
    opened = load(path)
    stream = opened.stream(good[4:6])
    next(stream)
    shutil.copy(other, path)
    os.utime(path, (1, 1))
    with pytest.raises(ModelFileError, match=rf"{path}: was written over while it was open"):
        next(stream)
    with pytest.raises(ModelFileError, match="written over"):
        opened.rescored(smoothing=2.0)


def test_a_bank_that_keeps_all_is_searched_where_the_network_is(good: list[Path]) -> None:
    detector = PatchCore(backbone="builtin", resolution=64, coreset=1)
    detector.begin()
    detector.move("cuda:0")  # as the first image has it, after the bank was begun
    detector._all.add(np.zeros((4, 8), np.float32), 0)
    detector.finish(None)
    assert detector.bank.device == "cuda:0"
