"""Growing and shrinking: the same as another fit, to the bit where the bank holds everything."""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.spatial.distance import cdist

from offnominal import AnomalyDINO, MultiLayerNN, PaDiM, PatchCore, SoftPatch, SubspaceAD, load
from offnominal.detectors.base import Detector
from offnominal.detectors.memory_bank.base import BankDetector
from offnominal.detectors.references import References
from offnominal.detectors.registry import METHODS
from offnominal.errors import ImageError, OptionError
from offnominal.images import read_image

SMALL: dict[str, Any] = {"backbone": "builtin", "device": "cpu", "false_reject": 0.3}
FEW: dict[str, Any] = SMALL | {"resolution": 64, "normalize": "l2", "rotations": "none"}
CORE: dict[str, Any] = SMALL | {"resolution": 64, "dim": 48}

WHOLE: dict[str, Callable[[], BankDetector]] = {
    "turned": lambda: AnomalyDINO(**FEW | {"rotations": "0,45"}, mask="on"),
    "tiles": lambda: AnomalyDINO(
        **FEW | {"resolution": None}, tile=64, storage="int8", neighbours=3
    ),
    "weighted": lambda: PatchCore(**CORE, coreset=1),
    "layers": lambda: MultiLayerNN(**FEW | {"rotations": "0,90"}, summary_weight=0.5),
}
KINDS = WHOLE | {"coreset": lambda: PatchCore(**CORE, coreset=0.1)}


def plain() -> AnomalyDINO:
    return AnomalyDINO(**FEW, mask="off")


@pytest.fixture(scope="module")
def files(parts: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Six small pictures of good parts, and two that are not learned from."""
    made, folder = [], tmp_path_factory.mktemp("small")
    drawn = sorted((parts / "part" / "train" / "good").iterdir())
    for file in [*drawn, *sorted((parts / "part" / "test").rglob("*.png"))[:2]]:
        made.append(folder / f"{len(made):03}.png")
        with Image.open(file) as opened:
            opened.resize((100, 80)).save(made[-1])
    return made


@pytest.fixture(scope="module")
def fresh(files: list[Path]) -> list[Path]:
    return files[6:]


def same_scores(one: Detector, two: Detector, images: list[Path]) -> None:
    assert np.array_equal(one.calibration.images, two.calibration.images)
    assert np.array_equal(one.calibration.peaks, two.calibration.peaks)
    assert one.threshold == two.threshold
    for a, b in zip(one.predict(images), two.predict(images), strict=True):
        assert a.score == b.score
        assert np.array_equal(a.patch_scores, b.patch_scores)


def content(detector: Detector, path: Path) -> bytes:
    """All that a detector knows."""
    detector.save(path)
    return path.read_bytes()


@pytest.mark.parametrize("kind", WHOLE)
@pytest.mark.slow
def test_adding_and_forgetting_are_the_same_as_another_fit(
    kind: str, files: list[Path], fresh: list[Path]
) -> None:
    grown = WHOLE[kind]().fit(files[:3])
    change = grown.add([files[3], files[1], files[4], files[3]])
    assert change.images == (str(files[3]), str(files[4]))
    assert change.known == (str(files[1]), str(files[3]))
    assert change.references == (3, 5)
    assert change.rescored == ("all" if kind in ("tiles", "weighted") else "affected")
    same_scores(grown, WHOLE[kind]().fit(files[:5]), fresh)
    grown.forget(files[2])
    same_scores(grown, WHOLE[kind]().fit([*files[:2], *files[3:5]]), fresh)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.slow
def test_every_step_is_taken_back_exactly(
    kind: str, files: list[Path], fresh: list[Path], tmp_path: Path
) -> None:
    """Also by a model that was saved in between; what is dropped for good changes no score."""
    detector, path = KINDS[kind]().fit(files[:3]), tmp_path / "part.offn"
    states = [content(detector, path)]
    for step in (
        lambda one: one.add(files[3:5]),
        lambda one: one.forget([files[1].name, files[3].name]),
        lambda one: one.add([files[1]]),
    ):
        step(detector)
        detector = opened(path, detector)
        states.append(path.read_bytes())
    assert [version.what for version in detector.history()] == ["fit", "add", "forget", "add"]
    assert [version.references for version in detector.history()] == [3, 5, 3, 4]
    smaller = opened(path, detector)
    assert smaller.compact().images == (str(files[1]), str(files[3]))
    assert smaller.bank_rows == len(smaller.bank) < len(detector.bank)
    same_scores(smaller, detector, fresh)
    same_scores(opened(path, smaller), detector, fresh)
    for state in reversed(states[:-1]):
        detector.undo()
        assert content(detector, path) == state
    with pytest.raises(OptionError, match="nothing to undo"):
        detector.undo()
    for left in (detector, smaller):  # growing goes on
        left.add([files[5]])
    if kind in WHOLE:
        same_scores(detector, WHOLE[kind]().fit([*files[:3], files[5]]), fresh)
        same_scores(
            smaller, WHOLE[kind]().fit([files[0], files[2], files[4], files[1], files[5]]), fresh
        )


def opened(path: Path, detector: BankDetector) -> BankDetector:
    """The detector, saved and loaded."""
    detector.save(path)
    loaded = load(path, device="cpu")
    assert isinstance(loaded, BankDetector)
    return loaded


def test_a_reference_that_sets_no_threshold_is_searched_again(files: list[Path]) -> None:
    """Of some references only the scores are wanted, but the rows of all count."""
    detector = AnomalyDINO(**FEW, mask="off", calibrate_on=2).fit(files[:4])
    before = [detector.calibration.images.tolist(), detector.bank.loo_distance.tolist()]
    for number in set(range(4)) - set(detector.calibration.numbers):
        detector.forget(files[number])
        assert detector.calibration.images.tolist() != before[0]
        detector.undo()
        assert [detector.calibration.images.tolist(), detector.bank.loo_distance.tolist()] == before


def test_a_coreset_takes_in_the_patches_that_are_farthest(files: list[Path]) -> None:
    detector = KINDS["coreset"]().fit(files[:4])
    before, scores = detector.bank.take(slice(None)).copy(), detector.calibration.images
    [view] = detector.views(read_image(files[4]))
    rows = detector.rows(detector.embedded(view.pixels))
    near, wanted = cdist(rows, before).min(1), []
    for _ in range(int(len(rows) * 0.1)):
        wanted.append(int(near.argmax()))
        near = np.minimum(near, cdist(rows, rows[wanted[-1:]])[:, 0])
    change = detector.add([files[4]])
    assert change.rescored == "kept"
    assert change.rows == (len(before), len(before) + len(wanted))
    mine = detector.bank.rows_of(4)
    assert detector.bank.patch[mine].tolist() == sorted(wanted)
    assert np.array_equal(detector.bank.take(mine), rows[sorted(wanted)])
    assert np.array_equal(detector.bank.take(slice(0, len(before))), before)
    # The others keep their scores; the new one is scored by all the others.
    assert np.array_equal(detector.calibration.images[:4], scores)
    found, weight = detector.judge(rows, without=4)
    assert detector.calibration.images[4] == pytest.approx(float(found.max() * weight), rel=1e-6)
    assert detector.forget(files[1]).rescored == "kept"
    assert detector.calibration.images[:3].tolist() == scores[[0, 2, 3]].tolist()


def test_the_same_steps_give_the_same_file(files: list[Path], tmp_path: Path) -> None:
    made = []
    for _ in range(2):
        detector = PatchCore(**CORE, coreset=0.3).fit(files[:3])
        detector.add(files[3:5])
        detector.forget(files[0])
        made.append(content(detector, tmp_path / "part.offn"))
    assert made[0] == made[1]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.slow
def test_a_step_that_breaks_off_leaves_everything(
    kind: str, files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad, path = tmp_path / "empty.png", tmp_path / "part.offn"
    bad.touch()
    detector = KINDS[kind]().fit(files[:2])
    detector.add([files[2]])
    before = content(detector, path)
    with pytest.raises(ImageError):
        detector.add([files[3], bad])
    assert content(detector, path) == before

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    for step in (
        lambda: detector.add(files[3:5]),
        lambda: detector.forget(files[1]),
        detector.undo,
    ):
        # While thresholds are set, and once they are; a step back writes no history.
        for owner, name in ((Detector, "judged"), (References, "note")):
            if step == detector.undo and name == "note":
                continue
            with monkeypatch.context() as patch:
                patch.setattr(owner, name, stop)
                with pytest.raises(KeyboardInterrupt):
                    step()
            assert content(detector, path) == before
    assert detector.add([bad, files[3]], on_error=lambda error: None).references == (3, 4)


def test_held_out_scores_stay_while_they_hold(files: list[Path], fresh: list[Path]) -> None:
    detector = plain().fit(files[:4])
    detector.calibrate(fresh)
    before = detector.calibration.images
    assert detector.calibration_note is None
    assert detector.add([files[4]]).rescored == "none"
    assert detector.calibration.images is before
    assert "when there were 4 references, not 5" in str(detector.calibration_note)
    detector.forget(files[4])
    assert (detector.calibration.kind, detector.calibration_note) == ("held-out", None)
    detector.forget(files[0])
    assert detector.calibration.kind == "leave-one-out"
    assert len(detector.calibration) == 3
    assert "forgotten" in str(detector.calibration_note)
    detector.undo()
    assert detector.calibration.kind == "held-out"
    assert np.array_equal(detector.calibration.images, before)
    detector.forget(files[0])
    detector.compact()
    assert detector.calibration_note is None


def test_scores_by_a_reference_that_was_undone_are_not_those_by_another(
    files: list[Path], fresh: list[Path]
) -> None:
    detector = plain().fit(files[:3])
    detector.add([files[3]])
    detector.calibrate(fresh)
    detector.references.steps.pop()  # as files of earlier versions have it
    detector.undo()
    detector.add([files[4]])
    assert detector.calibration.kind == "leave-one-out"
    assert "forgotten" in str(detector.calibration_note)


def test_one_reference_gets_a_threshold_with_the_others(
    files: list[Path], fresh: list[Path]
) -> None:
    detector = plain().fit(files[:1])
    assert detector.threshold is not None
    assert (detector.threshold.kind, detector.calibration.kind) == ("guess", "copies")
    detector.add(files[1:4])
    same_scores(detector, plain().fit(files[:4]), fresh)
    detector.forget(list(files[1:4]))
    assert detector.threshold is not None
    assert (detector.threshold.kind, detector.calibration.kind) == ("guess", "copies")


def test_the_file_grows_by_what_was_added(files: list[Path], tmp_path: Path) -> None:
    path = tmp_path / "part.offn"
    detector = plain().fit(files[:4])
    sizes = [len(content(detector, path))]
    detector.add(files[4:6], when=datetime(2026, 3, 1, 9, 30, tzinfo=UTC))
    sizes.append(len(content(detector, path)))
    each = len(detector.bank.rows_of(4))
    # A row, what is known of it, and its patch score.
    row = 4 * detector.bank.dim + sum(c.itemsize for c in detector.bank.columns().values()) + 4
    assert 0 <= sizes[1] - sizes[0] - 2 * each * (row - 4) < 1500, "a little header beside"
    detector.forget(files[0])
    sizes.append(len(content(detector, path)))
    assert abs(sizes[2] - sizes[1]) < 1500 + 4 * each, "forgotten rows stay"
    assert [v.when for v in detector.history()] == [None, "2026-03-01T09:30:00Z", None]
    detector.compact()
    assert sizes[2] - len(content(detector, path)) > 0.9 * each * row
    assert [v.what for v in detector.history()] == ["compact"]
    with pytest.raises(OptionError, match="begins with compact"):
        detector.undo()


def test_methods_that_cannot_say_so(files: list[Path]) -> None:
    soft = SoftPatch(**CORE).fit(files[:3])
    for step in (
        lambda: soft.add([files[4]]),
        lambda: soft.forget(files[0]),
        soft.undo,
        soft.compact,
    ):
        with pytest.raises(OptionError, match=r"softpatch cannot .*by those of all other images"):
            step()
    assert [version.what for version in soft.history()] == ["fit"]
    assert soft.origin(0).file in {str(file) for file in files[:3]}
    for kind in (PaDiM, SubspaceAD):
        assert METHODS[kind.method].grows == ("adds" if hasattr(kind, "add") else "no")
        assert not hasattr(kind, "forget")
