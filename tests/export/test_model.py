"""Exported model files: opened without torch they judge as the detector that was fitted."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from tests.seeded import save_dinov2_vits14
from torchvision.models import alexnet

from offnominal import AnomalyDINO, load, modelfile
from offnominal.detectors.deployed import EXPORTED
from offnominal.detectors.exported import Exported
from offnominal.detectors.methods import METHODS
from offnominal.detectors.registry import detector_class
from offnominal.errors import ModelFileError, OptionError
from offnominal.export.compared import Comparison, compare
from offnominal.export.model import export_model
from offnominal.images import read_image
from offnominal.labels.labelled import Labelled, Mark

ENGINES = ("onnxruntime", "openvino")


@pytest.fixture(scope="module")
def detector(resnet: str, good: list[Path]) -> AnomalyDINO:
    options: dict[str, Any] = {"resolution": 96, "mask": "on", "rotations": "0,90"}
    return AnomalyDINO(backbone="test_resnet", weights=resnet, **options).fit(
        good[:4], synthetic=False
    )


@pytest.fixture(scope="module")
def exported(detector: AnomalyDINO, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "part.offx"
    export_model(detector, path)
    return path


@pytest.mark.slow
def test_what_is_opened_judges_alike(
    detector: AnomalyDINO, exported: Path, good: list[Path]
) -> None:
    narrow = read_image(good[5])[:, :150]
    before = detector.predict([*good[4:6], narrow])
    for engine in ENGINES:
        again = load(exported, engine=engine)
        assert isinstance(again, AnomalyDINO)
        assert again.threshold == detector.threshold
        row, wrong = compare(before, again.predict([*good[4:6], narrow]), engine, "fp32", detector)
        assert not wrong
        assert row.decisions == 0
    assert [row.engine for row in again.deployed.parity] == list(ENGINES)
    assert all(row.images == 6 and row.score < 1e-4 for row in again.deployed.parity)


@pytest.mark.slow
def test_nothing_of_torch_is_needed(
    exported: Path, good: list[Path], parts: Path, tmp_path: Path
) -> None:
    """All of the work beside the line, in a process that refuses heavy packages."""
    code = """
import sys
for heavy in ("torch", "torchvision", "timm", "cv2", "scipy", "huggingface_hub"):
    sys.modules[heavy] = None
from offnominal import load
from offnominal.explain.explanation import explain
part = load(sys.argv[1])
one = part.predict(sys.argv[3])[0].score
told = explain(part, sys.argv[3], worst=2).matches
part.add(sys.argv[3])
assert len(part.references) == 5 and part.predict(sys.argv[3])[0].score < one
part.undo()
part.calibrate([sys.argv[3], sys.argv[4]])
part.save(sys.argv[2])
again = load(sys.argv[2])
assert again.predict(sys.argv[3])[0].score == one and again.threshold == part.threshold
for heavy in ("pandas", "pyarrow", "matplotlib"):
    sys.modules[heavy] = None
from typer.testing import CliRunner
from offnominal.cli import app
done = CliRunner().invoke(app, ["evaluate", *sys.argv[2::3], "--json", "--engine", "onnxruntime"])
assert not done.exit_code and "image_auroc" in done.stdout, (done.output, done.exception)
print(one, len(told))
"""
    files = [str(one) for one in (exported, tmp_path / "again.offx", *good[4:6], parts)]
    home = {"HOME": str(tmp_path / "home"), "OFFNOMINAL_CACHE": str(tmp_path / "cache")}
    told = subprocess.run(
        [sys.executable, "-c", code, *files],
        capture_output=True, text=True, check=False, env=os.environ | home,
    )  # fmt: skip
    assert told.returncode == 0, told.stderr
    assert not list((tmp_path / "home").glob("**/*"))  # no number of the machine is kept
    score, matches = told.stdout.split()
    right = load(exported, engine="onnxruntime").predict(good[4])[0].score
    assert float(score) == pytest.approx(right, rel=1e-5)
    assert matches == "2"


def test_what_cannot_be_is_told(
    detector: AnomalyDINO, exported: Path, resnet: str, tmp_path: Path
) -> None:
    with pytest.raises(OptionError, match="brings its own network"):
        load(exported, weights=resnet)
    with pytest.raises(OptionError, match="--engine torch"):
        load(exported, engine="torch").predict(np.zeros((99, 99, 3), np.uint8))
    with pytest.raises(OptionError, match="exported model already"):
        export_model(load(exported), tmp_path / "twice.offx")
    spade = detector_class("spade")(backbone="test_resnet", weights=resnet)
    spade.fit([np.zeros((99, 99, 3), np.uint8), np.ones((99, 99, 3), np.uint8)])
    with pytest.raises(OptionError, match=r"spade: .* use dn2 or patchcore"):
        export_model(spade, tmp_path / "no.offx")
    assert not list(tmp_path.iterdir())


def test_there_is_no_file_where_answers_differ(
    detector: AnomalyDINO, good: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("offnominal.export.compared.TOLERANCE", {"fp32": 0.0})
    path = tmp_path / "part.offx"
    path.write_bytes(b"")
    with pytest.raises(OptionError, match=r"not written: run by onnxruntime, its scores differ"):
        export_model(detector, path, Comparison(good[4:6]))
    assert [one.name for one in tmp_path.iterdir()] == ["part.offx"]
    assert not path.read_bytes()


def test_damaged_and_foreign_files(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OFFNOMINAL_CACHE", str(tmp_path / "cache"))  # where the right graph is not
    header = modelfile.read_header(exported)
    arrays = modelfile.read(exported, header)
    own = {k: v for k, v in header.items() if k not in ("format", "version", "sums")}
    path = tmp_path / "part.offx"

    def opened(changes: dict[str, Any], graph: np.ndarray | None = arrays[EXPORTED]) -> str:
        kept = {k: v for k, v in arrays.items() if k != EXPORTED}
        rest = {} if graph is None else {EXPORTED: graph}
        modelfile.write(path, own | {"export": own["export"] | changes}, kept | rest)
        with pytest.raises(ModelFileError) as told:
            load(path, engine="onnxruntime").predict(np.zeros((99, 99, 3), np.uint8))
        return str(told.value)

    assert "newer version" in opened({"format": 2})
    assert "holds no graph" in opened({}, None)
    assert "damaged" in opened({"facts": own["export"]["facts"] | {"stride": 0}})
    assert "damaged" in opened({"kind": "whole"})
    assert "does not say how its program is run" in opened({"kind": "program"})
    assert "checksum" in opened({}, arrays[EXPORTED] ^ np.uint8(1))
    assert "bytes" in opened({}, arrays[EXPORTED][:-9])
    whole = exported.read_bytes()
    path.write_bytes(whole[:-1000])
    with pytest.raises(ModelFileError, match="truncated"):
        load(path)


@pytest.mark.slow
def test_the_command(exported: Path, detector: AnomalyDINO, parts: Path, tmp_path: Path) -> None:
    model = tmp_path / "part.offn"
    detector.save(model)
    test = parts / "part" / "test"
    bad = next(one for one in sorted(test.iterdir()) if one.name != "good")
    call = [sys.executable, "-m", "offnominal", "export", str(model), "-o"]
    from typer.testing import CliRunner

    from offnominal.cli import app

    for words, wanted in (
        ([*call[3:5], "--defects", str(bad)], "give good images to compare on, too, with --check"),
        (["info", str(tmp_path / "prt.offx")], "did you mean part.offn"),
        (["export", str(tmp_path / "no.offx")], "offnominal export part.offn -o no.offx"),
        (["part.offx"], "offnominal predict part.offx new/"),
        (["fit", "good/", "part.offx"], "offnominal fit good/ -o part.offn"),
    ):
        found = CliRunner().invoke(app, words)
        assert wanted in f"{found.output}{found.exception}", words
    more = ["--check", str(test / "good"), "--defects", str(bad)]
    told = subprocess.run(
        [*call, str(tmp_path / "part.offx"), *more], capture_output=True, text=True, check=False
    )
    assert told.returncode == 0, told.stderr
    assert "0 differ" in told.stdout
    assert "->" in told.stdout  # the AUROC before and after
    assert "of defects" in told.stderr  # what was compared
    info = subprocess.run(
        [*call[:3], "info", "--json", str(tmp_path / "part.offx")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert json.loads(info.stdout)["export"]["kind"] == "network"
    wrong = subprocess.run([*call, "part.onnx"], capture_output=True, text=True, check=False)
    assert wrong.returncode == 2
    assert "ends in .offx" in wrong.stderr


# -- every method, every family of networks ---------------------------------------------------

SMALL: dict[str, dict[str, Any]] = {
    "padim": {"resize": "square", "resolution": 96},
    "autoencoder": {"resolution": 128},
    "igd": {"resolution": 64, "width": 0.1},
    "fastflow": {"couplings": 2, "width": 0.2},
    "loe": {"transformations": 3},
    "deep-svdd": {"resolution": 32},
    "cutpaste": {"resolution": 64},
    "draem": {"resolution": 64},
    "riad": {"resolution": 64, "width": 4, "squares": (4, 16)},
    "cflow": {"couplings": 2, "width": 0.2},
    "trustmae": {"resolution": 96, "width": 8},
    "dra": {"scales": 1},
    "devnet": {"scales": 1},
    "maeday": {},
    "segmentation": {"width": 0.25},
    "saliency": {"width": 0.25},
}


_NEED_A_FILE = ("maeday", "efficientad")  # of a network that no seed can draw


def exportable() -> list[str]:
    """Methods that say of themselves that they can be exported, and need no file to be fitted."""
    found = []
    for name in METHODS:
        kind: Any = detector_class(name)
        if name in _NEED_A_FILE or not kind.needs_references:
            continue
        if (made := kind()).exportable() is None and made.seen_as != "scan":
            found.append(name)
    return found


def marked(image: Path) -> Labelled:
    """A defective tile with its class and its mask."""
    kind = image.parent.name
    mask = image.parents[2] / "ground_truth" / kind / f"{image.stem}_mask.png"
    return Labelled(image, (kind,), (Mark(kind, mask=mask),))


@pytest.mark.slow
@pytest.mark.parametrize("method", exportable())
def test_every_method_on_tiles_of_several_shapes(
    method: str, resnet: str, tiles: Path, tmp_path: Path
) -> None:
    files = sorted((tiles / "train" / "good").iterdir())[:14]
    bad = [next(iter(sorted(one.iterdir()))) for one in sorted((tiles / "test").iterdir())]
    kind = detector_class(method)
    options: dict[str, Any] = {"resolution": 96} | SMALL.get(method, {})
    if "steps" in kind.option_defaults():
        options |= {"steps": 1}
    if "backbone" in kind.option_defaults():
        options |= {"backbone": "test_resnet", "weights": resnet}
    given: dict[str, Any] = {}
    if METHODS[method].defects != "none":
        given["defects"] = [marked(one) for one in bad if one.parent.name != "good"]
    fitted = kind(**options).fit(files[:10], synthetic=False, **given)
    deployed = export_model(fitted, tmp_path / "part.offx", Comparison(files[10:], bad))
    assert [row.engine for row in deployed.parity] == list(ENGINES)
    assert all(row.decisions == 0 for row in deployed.parity)
    again = load(tmp_path / "part.offx")
    assert isinstance(again, Exported) is (deployed.kind == "program")
    [before], [after] = fitted.predict(bad[0]), again.predict(bad[0])
    assert (before.kinds is None) is (after.kinds is None)
    if before.kinds is not None:
        assert after.kinds == pytest.approx(before.kinds, abs=1e-4)
    again.calibrate(files[10:])
    again.save(tmp_path / "part.offx")
    assert load(tmp_path / "part.offx").threshold == again.threshold


@pytest.mark.slow
@pytest.mark.parametrize("family", ["dinov2", "vit", "packaged", "builtin", "alexnet"])
def test_every_family_of_networks(family: str, tiles: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"resolution": 112}
    if family == "dinov2":
        options |= {"backbone": "dinov2_vits14", "weights": str(save_dinov2_vits14(tmp_path))}
    elif family in ("vit", "alexnet"):
        torch.manual_seed(0)
        path = tmp_path / f"{family}.safetensors"
        if family == "vit":
            state = timm.create_model("test_vit2", num_classes=0).state_dict()
        else:
            state = {f"features.{k}": v for k, v in alexnet().features.state_dict().items()}
        save_file(state, path)
        name = {"vit": "test_vit2"}.get(family, family)
        options |= {"backbone": name, "weights": str(path), "resolution": 160}
    else:
        options |= {"backbone": {"packaged": "efficientnet_lite0"}.get(family, family)}
    files = sorted((tiles / "train" / "good").iterdir())
    fitted = AnomalyDINO(**options).fit(files[:3], synthetic=False)
    deployed = export_model(fitted, tmp_path / "part.offx", Comparison(files[3:7]))
    assert all(row.decisions == 0 for row in deployed.parity)
