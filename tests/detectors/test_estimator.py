"""A detector as scikit-learn and a reader of its repr have it, and all doors for images."""

import copy
import io
from pathlib import Path
from typing import Any

import cv2
import pytest
import torch
from sklearn.base import clone
from torch.utils.data import DataLoader

import offnominal
from offnominal import AnomalyDINO, Autoencoder, BatchedAnomalyDINO, read_image, refine
from offnominal.detectors.registry import METHODS, detector_class
from offnominal.errors import OptionError
from offnominal.progress import shown


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_an_estimator(name: str) -> None:
    given: dict[str, Any] = {"model": "some"} if name == "chat" else {}
    kind = detector_class(name)
    detector = kind(**given)
    params = detector.get_params()
    assert params.keys() == kind.option_defaults().keys()
    told = ", ".join(f"{key}={value!r}" for key, value in given.items())
    assert repr(detector) == f"{kind.__name__}({told})"
    other = clone(detector)
    assert type(other) is kind
    assert other is not detector
    assert other.get_params() == params
    assert other.set_params(false_reject=0.25) is other
    assert other.get_params() == params | {"false_reject": 0.25}
    with pytest.raises(OptionError, match="no option smothing: did you mean smoothing"):
        other.set_params(smothing=1.0)
    with pytest.raises(OptionError, match="false-reject"):
        other.set_params(smoothing=1.0, false_reject=2.0)
    assert other.get_params() == params | {"false_reject": 0.25}  # nothing of it
    assert detector.get_params() == params


@pytest.mark.slow
def test_a_fit_is_told_and_forgotten(fabric_model: Path) -> None:
    detector = offnominal.load(fabric_model)
    told = repr(detector)
    assert told.startswith("AnomalyDINO(")
    assert "backbone='builtin', rotations='none') fitted on 6 images, threshold " in told
    assert repr(copy.deepcopy(detector)) == told
    assert not clone(detector).fitted
    assert detector.set_params() is detector
    assert detector.fitted
    assert repr(detector.set_params(smoothing=2.0)).endswith("rotations='none')")
    assert not detector.fitted
    assert "fitted on no image" not in repr(detector)


def test_a_clone_asks_nobody_it_may_not_ask() -> None:
    detector = detector_class("chat")(model="some", endpoint="http://127.0.0.1:9/v1")
    detector.unconfirmed = frozenset({"endpoint"})  # as a model file leaves it
    assert clone(detector).unconfirmed == {"endpoint"}
    assert detector.set_params(seed=1).unconfirmed == {"endpoint"}
    assert not detector.set_params(endpoint="http://127.0.0.1:8/v1").unconfirmed


def test_every_door_takes_what_there_is(parts: Path, fabric_model: Path) -> None:
    good, test = parts / "fabric/train/good", parts / "fabric/test"
    files = sorted(good.iterdir())
    frames = [cv2.imread(str(file)) for file in files]
    scores = [one.score for one in offnominal.load(fabric_model).predict(files)]

    detector = AnomalyDINO(backbone="builtin", rotations="none", false_reject=0.2)
    seen: list[tuple[str, int]] = []
    detector.fit(str(good / "00[0-3].png"), progress=lambda *told: seen.append(told))
    assert seen[-1] == ("threshold", 4)
    assert len(detector.references) == 4
    detector.add(frames[4:], channels="bgr", progress=True)
    assert [one.score for one in detector.predict(good, progress=True)] == scores
    assert [one.score for one in detector.stream(iter(frames), channels="bgr")] == scores
    assert detector.predict(frames[0])[0].score != scores[0]
    assert len(detector.forget(frames[5], channels="bgr").images) == 1
    assert detector.calibrate(good, progress=True, false_reject=0.5) == 5
    assert detector.calibrate(frames, channels="bgr", false_reject=0.5) == 5

    batch = BatchedAnomalyDINO(backbone="builtin")
    by_file = [one.score for one in batch.predict(good, progress=True)]
    assert [one.score for one in batch.predict(frames, channels="bgr")] == by_file

    def make() -> AnomalyDINO:
        return AnomalyDINO(backbone="builtin", rotations="none")

    found = refine(make, [good, str(test / "hole")], share=0.15, rounds=1)
    assert [str(found.images[number]) for number in found.left_out] == [
        str(file) for file in (test / "hole").iterdir()
    ]


def test_a_training_takes_them_too(parts: Path) -> None:
    files = sorted((parts / "fabric/train/good").iterdir())
    tensors = [torch.from_numpy(read_image(file)).permute(2, 0, 1) / 255 for file in files]
    frames = [cv2.imread(str(file)) for file in files]

    def fitted(given: Any, **options: Any) -> Autoencoder:
        detector = Autoencoder(steps=1, batch=2, resolution=32)
        return detector.fit(given, synthetic=False, **options)

    known = fitted(str(files[0].parent), progress=True)
    for other in (fitted(DataLoader(tensors, batch_size=4)), fitted(iter(frames), channels="bgr")):
        assert [one.score for one in other.predict(files)] == [
            one.score for one in known.predict(files)
        ]
    both = fitted({"one": [str(files[0]), files[1]], "two": frames[2:]}, channels="bgr")
    assert repr(both).endswith("fitted on 6 images of 2 categories")
    assert repr(both.for_category("two")).endswith(" for 'two'")


def test_a_bar_in_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for stream, drawn in ((Terminal(), True), (io.StringIO(), False)):
        monkeypatch.setattr("sys.stderr", stream)
        monkeypatch.setenv("TERM", "xterm")
        with shown(True, range(5)) as told:
            assert told is not None
            told("features", 5)
            told("coreset", 100)
        assert ("features" in stream.getvalue() and "5/5" in stream.getvalue()) is drawn
    with shown(False, None) as told:
        assert told is None
