"""What needs no torch does not wait for it: counted by imports, not by the clock."""

import compileall
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.cli.conftest import ENVIRONMENT, offnominal, passed
from tests.seeded import CLIP_TINY, save_clip

import offnominal as package
from offnominal.checks import AUGMENT
from offnominal.cli.card import Card
from offnominal.cli.checks import CHECKS, check_values
from offnominal.cli.completion import COMPLETIONS
from offnominal.cli.info import describe, describe_tests
from offnominal.cli.option import options_of
from offnominal.detectors.methods import METHODS, POINT_TEACHER, REGAD, TEACHER, TRAINABLE_NAMES
from offnominal.detectors.registry import detector_class, light_class
from offnominal.detectors.signatures import option_defaults, stand_in
from offnominal.errors import OptionError

CODE = """
import sys
from typer.testing import CliRunner
from offnominal.cli import app
good, model, picture, text = sys.argv[1:]
for words, code, told in [
    (["info", model], 0, "written by Offnominal"),
    (["history", model], 0, "fit"),
    (["fit", "--method", "patchcore", "--help"], 0, "--coreset"),
    (["fit", "nowhere", "-o", "x.offn"], 2, "nowhere: no such file or folder"),
    (["fit", good, "-o", "absent/x.offn"], 2, "the folder absent does not exist"),
    (["fit", good, "-o", "x.offn", "--method", "pachcore"], 2, "did you mean patchcore?"),
    (["fit", good, "-o", "x.offn", "--corset", "1"], 2, "has no such option"),
    (["fit", good, "-o", "x.offn", "--method", "patchcore", "--coreset", "5"], 2, "--coreset 5"),
    (["fit", good, "-o", "x.offn", "--set", "rotations=nne"], 2, "rotations='nne'"),
    (["fit", good, "-o", "x.offn", "--false-reject", "2"], 2, "between 0 and 1"),
    (["fit", good, "-o", "x.offn", "--backbone", "resnet19"], 2, "did you mean resnet18"),
    (["fit", good, "-o", "x.offn", "--backbone", "dinov2_vits14"], 2, "backbones pull dinov2_vits"),
    (["fit", good, "-o", "x.offn", "--method", "winclip"], 2, "HF_HUB_OFFLINE is set"),
    (["fit", good, "-o", "x.offn", "--weights", model], 2, "is a model file"),
    (["fit", good, "-o", "x.offn", "--device", "gpu"], 2, "did you mean cuda?"),
    (["predict", picture, model], 2, "the model comes first"),
    (["predict", model, "nowhere.png"], 2, "nowhere.png: no such file"),
    (["predict", "--zero-shot-batch", good, "--method", "padim"], 2, "does not score a batch"),
    (["calibrate", good, model], 2, "the model comes first"),
    (["calibrate", model], 2, "--threshold VALUE"),
    (["calibrate", model, good, "--false-reject", "9"], 2, "between 0 and 1"),
    (["add", picture, model], 2, "the model comes first"),
    (["add", model, picture, "--when", "then"], 2, "--when then"),
    (["forget", text, picture], 2, "a text file, not an Offnominal model file"),
    (["explain", picture, model], 2, "the model comes first"),
    (["evaluate", model, "nowhere"], 2, "nowhere"),
    (["benchmark", "--data", good, "--method", "pachcore", "-o", "r"], 2, "mean patchcore?"),
    (["train", "anomalyclp"], 2, "did you mean anomalyclip?"),
    (["train", "coop", "--data", "nowhere", "-o", "x"], 2, "--data nowhere"),
    (["synthesize", "nowhere", "-o", "made", "--kind", "nsa"], 2, "nowhere: no such"),
]:
    done = CliRunner().invoke(app, words)
    assert done.exit_code == code, (words, done.output)
    assert told in " ".join(done.output.split()), (words, done.output)
    assert "torch" not in sys.modules, words
"""


@pytest.mark.slow
def test_what_is_told_without_torch(fabric_model: Path, good: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("what to do\n")
    told = [good, fabric_model, good / "000.png", tmp_path / "notes.txt"]
    done = subprocess.run(
        [sys.executable, "-c", CODE, *map(str, told)],
        cwd=tmp_path, env=os.environ | ENVIRONMENT,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_stand_ins_say_what_constructors_say() -> None:
    names = ("default_backbone", "backbone_family", "own_score", "needs_references", "extrapolates")
    for method in METHODS.values():
        light, real = stand_in(*method.target.split(":")), detector_class(method.name)
        assert options_of(light) == options_of(real), method.name
        for name in names:
            assert getattr(light, name, None) == getattr(real, name, None), method.name
        check_values(light, option_defaults(light))


# A value that cannot be, and a method that can be constructed in no time.
WRONG = {
    "aggregate": ("anomalydino", "top0"),
    "budget": ("autoencoder", 20),
    "coreset": ("patchcore", 5),
    "false_reject": ("anomalydino", 2),
    "neighbours": ("dn2", 0),
    "resolution": ("padim", -64),
    "rotations": ("anomalydino", "nne"),
    "sixteen_bit": ("padim", "50"),
    "smoothing": ("padim", -1),
    "steps": ("autoencoder", "many"),
}


def test_what_is_told_early_is_what_the_constructor_tells() -> None:
    assert set(WRONG) == set(CHECKS)
    for name, (method, value) in WRONG.items():
        with pytest.raises(OptionError, match=name.replace("_", ".")) as early:
            check_values(light_class(method), {name: value})
        with pytest.raises(OptionError) as late:
            detector_class(method)(**{name: value})
        if name != "resolution":  # whose upper end is the method's own
            assert str(early.value) == str(late.value)


@pytest.mark.slow
def test_without_sources_the_classes_themselves_are_read(
    fabric_model: Path, tmp_path: Path
) -> None:
    """As where only compiled files are installed: slower, and the same."""
    copy = tmp_path / "offnominal"
    shutil.copytree(Path(package.__file__).parent, copy, ignore=lambda *_: ["__pycache__"])
    assert compileall.compile_dir(copy, quiet=1, legacy=True)
    for source in copy.rglob("*.py"):
        source.unlink()
    code = """
import sys
from typer.testing import CliRunner
from offnominal.cli import app
assert __import__("offnominal").__file__.endswith(".pyc")
for words in (["fit", "--method", "patchcore", "--help"], ["info", sys.argv[1]]):
    done = CliRunner().invoke(app, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    print(done.stdout)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, fabric_model], capture_output=True, text=True, check=False,
        env=os.environ | ENVIRONMENT | {"PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "--coreset" in done.stdout
    assert offnominal("info", fabric_model).stdout in done.stdout


def test_an_import_leaves_warnings_to_the_user() -> None:
    code = """
import warnings
before = list(warnings.filters)
import offnominal.backbones, offnominal.progress, offnominal.checks, offnominal.cli
assert warnings.filters == before
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_names_for_the_tab_key_are_those_of_the_program() -> None:
    from offnominal.detectors.language.training.learners import TRAINABLE
    from offnominal.training.augment import AUGMENTATIONS

    assert set(TRAINABLE) == set(TRAINABLE_NAMES)
    assert [name for name, _ in COMPLETIONS["trainable"](None, [], "")] == [
        *TRAINABLE_NAMES,
        TEACHER,
        POINT_TEACHER,
        REGAD,
    ]
    assert tuple(AUGMENTATIONS) == AUGMENT


SMALL = ["--backbone", "builtin", "--resolution", "64"]
TRAINED = [*SMALL, "--steps", "2", "--hidden", "8", "--method", "simplenet"]
CARDS = {
    "anomalydino": [*SMALL],
    "categories": [*TRAINED, "--categories"],
    "chat": ["--method", "chat", "--model", "m", "--endpoint", "http://127.0.0.1:9/v1"],
    "dn2": [*SMALL, "--method", "dn2"],
    "ensemble": ["--backbone", "builtin,builtin-aligned", "--resolution", "64",
                 "--method", "ensemble"],
    "padim": [*SMALL, "--method", "padim"],
    "patchcore": [*SMALL, "--method", "patchcore", "--storage", "int8"],
    "spade": [*SMALL, "--method", "spade"],
    "subspacead": [*SMALL, "--method", "subspacead"],
    "trained": [*TRAINED],
    "winclip": ["--method", "winclip", "--class-name", "fabric"],
    "winclip of pictures": ["--method", "winclip", "--class-name", "fabric"],
}  # fmt: skip


@pytest.mark.parametrize("kind", CARDS)
@pytest.mark.slow
def test_a_card_says_what_the_detector_says(kind: str, good: Path, tmp_path: Path) -> None:
    model, options = tmp_path / "m.offn", CARDS[kind]
    if "winclip" in options:
        options = [*options, "--weights", str(save_clip(tmp_path, CLIP_TINY, "tiny"))]
    of = {"categories": [good.parents[2]], "chat": [], "winclip": []}.get(kind, [good])
    passed(offnominal("fit", *of, "-o", model, *options, "--false-reject", "0.2"))
    card, detector = Card(model), package.load(model, device="cpu")
    assert describe(card, card.header) == describe(detector, card.header)
    assert describe_tests(card) == describe_tests(detector)
    assert card.categories == detector.categories
    for one, other in zip(card.each_category(), detector.each_category(), strict=True):
        assert one.category == other.category
        limits = (other.threshold, other.pixel_threshold)
        assert (one.threshold, one.pixel_threshold) == limits
        assert one.calibration_note == other.calibration_note
    assert card.leave_one_out == detector.leave_one_out
    assert (card.extrapolates, card.judges_alone) == (detector.extrapolates, detector.judges_alone)
    assert card.options() == detector.options()
    assert card.option_defaults == detector.option_defaults()
    assert card.references.history() == detector.references.history()
    facts = json.loads(offnominal("info", model, "--json").stdout)
    assert facts["patches"] == detector.bank_rows
    assert facts["options"] == json.loads(json.dumps(detector.options()))
