"""Growing and shrinking: the same as another fit, to the bit where the bank holds everything."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from offnominal.detectors.banked import Banked
from offnominal.detectors.saving import read_header
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from offnominal import (
    AnomalyDINO,
    Detector,
    MultiLayerNN,
    PaDiM,
    PatchCore,
    SoftPatch,
    SubspaceAD,
    load,
)
from offnominal.detectors import measuring
from offnominal.errors import ImageError, ModelFileError, OptionError
from offnominal.images import read_image
from offnominal.views import rotate_image

SMALL: dict[str, Any] = {"backbone": "builtin", "resolution": 64, "device": "cpu"}
FEW: dict[str, Any] = SMALL | {"normalize": "l2", "rotations": "none", "mask": "off"}
CORE: dict[str, Any] = SMALL | {"dim": 48, "coreset": 1, "reweight": False}

# Methods whose banks hold every patch: growing them is exact.
WHOLE: dict[str, Callable[[], Banked]] = {
    "turned": lambda: AnomalyDINO(**FEW | {"rotations": "0,90,45"}),
    "standardized": lambda: AnomalyDINO(**SMALL, rotations="none"),
    "masked": lambda: AnomalyDINO(**FEW | {"mask": "on"}, mask_references=True),
    "mask": lambda: AnomalyDINO(**FEW | {"mask": "on"}),
    "neighbours": lambda: AnomalyDINO(**FEW, neighbours=3),
    "tiles": lambda: AnomalyDINO(**FEW | {"resolution": None, "tile": 160}),
    "int8": lambda: AnomalyDINO(**FEW, storage="int8"),
    "fp16": lambda: AnomalyDINO(**FEW | {"rotations": "0,90"}, storage="fp16"),
    "layers": lambda: MultiLayerNN(**SMALL, normalize="l2", summary_weight=0.5),
    "layers masked": lambda: MultiLayerNN(**SMALL, mask="on", query_views="vflip,plain"),
    "patchcore": lambda: PatchCore(**CORE),
    "weighted": lambda: PatchCore(**CORE | {"reweight": True}, neighbours=2),
    "squared": lambda: PatchCore(**CORE, distance="squared", storage="int8"),
}
# A bank that is standardised at a fit keeps that scale afterwards, so another fit differs.
REFITTED = [name for name in WHOLE if name not in ("standardized", "layers masked")]


@pytest.fixture(scope="module")
def files(parts: Path) -> list[Path]:
    return sorted((parts / "part" / "train" / "good").iterdir())


@pytest.fixture(scope="module")
def fresh(parts: Path) -> list[Path]:
    return sorted((parts / "part" / "test").rglob("*.png"))[:3]


def state_of(detector: Banked, images: list[Path]) -> list[Any]:
    """Everything that a step back must bring back."""
    predictions = detector.predict(images)
    return [
        [p.score for p in predictions],
        [p.anomaly_map.tobytes() for p in predictions],
        detector.calibration.images.tolist(),
        detector.calibration.peaks.tolist(),
        detector.good_patches_.numpy().tobytes(),
        [r["file"] for r in detector.references],
        [b.numpy().tobytes() for bank in detector._banks for b in bank.buffers()],
        detector.calibration.kind,
        detector.threshold,
    ]


def same_scores(one: Detector, two: Detector, images: list[Path]) -> None:
    assert np.array_equal(one.calibration.images, two.calibration.images)
    assert np.array_equal(one.calibration.peaks, two.calibration.peaks)
    assert one.threshold == two.threshold
    for a, b in zip(one.predict(images), two.predict(images), strict=True):
        assert a.score == b.score
        assert np.array_equal(a.patch_scores, b.patch_scores)


@pytest.mark.parametrize("kind", REFITTED)
def test_adding_and_forgetting_are_the_same_as_another_fit(
    kind: str, files: list[Path], fresh: list[Path]
) -> None:
    grown = WHOLE[kind]().fit(files[:4])
    change = grown.add([files[4], files[1], files[5], files[4]])
    assert change.images == (str(files[4]), str(files[5]))
    assert change.known == (str(files[1]), str(files[4]))
    assert change.references == (4, 6)
    assert change.rescored == ("all" if kind in ("neighbours", "weighted") else "affected")
    same_scores(grown, WHOLE[kind]().fit(files[:6]), fresh)
    grown.forget(files[2])
    same_scores(grown, WHOLE[kind]().fit([*files[:2], *files[3:6]]), fresh)


@pytest.mark.parametrize("kind", WHOLE)
def test_steps_are_taken_back_exactly(kind: str, files: list[Path], fresh: list[Path]) -> None:
    detector = WHOLE[kind]().fit(files[:3])
    other = WHOLE[kind]().fit([files[0], files[5]])
    other.masks_ = getattr(detector, "masks_", False)
    steps = [
        lambda: detector.add(files[3:5]),
        lambda: detector.forget([files[1].name, files[3].name]),
        lambda: detector.merge(other),
        lambda: detector.forget(files[5]),
        lambda: detector.add([files[1]]),
    ]
    states = [state_of(detector, fresh)]
    for step in steps:
        step()
        states.append(state_of(detector, fresh))
    what = [version.what for version in detector.history()]
    assert what == ["fit", "add", "forget", "merge", "forget", "add"]
    for owner in detector.reaches.owners:  # what was kept is what measuring anew gives
        if owner in detector._owners:
            again = detector._reach(owner, measuring.learned_before(detector, owner))
            assert torch.equal(again.distance, detector.reaches.of(owner).distance)
    for state in reversed(states[:-1]):
        detector.undo()
        assert state_of(detector, fresh) == state
    with pytest.raises(OptionError, match="nothing to undo"):
        detector.undo()


@pytest.mark.parametrize("kind", ["standardized", "turned", "tiles", "layers", "patchcore"])
def test_merging_is_the_same_as_one_fit(kind: str, files: list[Path], fresh: list[Path]) -> None:
    merged = WHOLE[kind]().fit(files[:3])
    change = merged.merge(WHOLE[kind]().fit([files[2], *files[3:6]]))
    assert (change.references, change.known) == ((3, 6), (str(files[2]),))
    if kind != "standardized":
        same_scores(merged, WHOLE[kind]().fit(files[:6]), fresh)
        return
    # Rows of another scale are brought to this one's: as if added, but for rounding.
    added = WHOLE[kind]().fit(files[:3])
    added.add(files[3:6])
    np.testing.assert_allclose(merged.calibration.images, added.calibration.images, rtol=1e-4)
    [one], [two] = merged.predict(fresh[0]), added.predict(fresh[0])
    np.testing.assert_allclose(one.patch_scores, two.patch_scores, rtol=1e-3, atol=1e-4)


def test_merging_names_what_differs(files: list[Path]) -> None:
    base = AnomalyDINO(**FEW).fit(files[:2])
    before = base.options()
    for other, words in [
        (AnomalyDINO(**FEW | {"resolution": 72}), "resolution"),
        (AnomalyDINO(**FEW | {"mask": "on"}), "mask .off and on."),
        (AnomalyDINO(**FEW | {"backbone": "builtin-aligned"}), "digest"),
        (PatchCore(**CORE), "anomalydino and patchcore"),
    ]:
        with pytest.raises(OptionError, match=words):
            base.merge(other.fit(files[2:4]))
    nothing = base.merge(AnomalyDINO(**FEW, calibrate_on=1, false_reject=0.3).fit(files[:2]))
    assert (nothing.images, len(nothing.known)) == ((), 2)
    assert len(base.history()) == 1
    assert base.options() == before


def test_a_coreset_takes_in_the_patches_that_are_farthest(files: list[Path]) -> None:
    detector = PatchCore(**CORE | {"coreset": 0.1, "reweight": True}).fit(files[:4])
    before, scores = detector.bank.take(slice(None)).clone(), detector.calibration.images.copy()
    with torch.inference_mode():
        rows, _ = detector._rows(detector.views(read_image(files[4])).pixels[0])
    near, wanted = torch.cdist(rows.double(), before.double()).amin(1), []
    for _ in range(int(len(rows) * 0.1)):
        wanted.append(int(near.argmax()))
        near = torch.minimum(near, torch.cdist(rows.double(), rows[wanted[-1:]].double())[:, 0])
    change = detector.add([files[4]])
    assert change.rescored == "kept"
    assert change.rows == (len(before), len(before) + len(wanted))
    mine = detector.bank.owner == 4
    assert detector.bank.patch[mine].tolist() == sorted(wanted)
    assert torch.equal(detector.bank.take(mine.nonzero()[:, 0]), rows[sorted(wanted)])
    assert torch.equal(detector.bank.take(slice(0, len(before))), before)
    # The others keep their scores; the new one is scored by all the others.
    assert torch.equal(detector.calibration.images[:4], scores)
    with torch.inference_mode():
        found = detector._measure(rows, skip=4)
    assert detector.calibration.images[4].item() == pytest.approx(
        float(found.scores.max() * found.weight)
    )


@pytest.mark.parametrize("distance", ["euclidean", "squared"])
def test_forgetting_in_a_coreset_bounds_the_others_from_above(
    distance: str, files: list[Path], fresh: list[Path]
) -> None:
    options = CORE | {"coreset": 0.2, "reweight": True, "distance": distance}
    detector = PatchCore(**options).fit(files[:5])
    before = state_of(detector, fresh)
    old = detector.calibration.images.copy()
    change = detector.forget(files[1])
    assert change.rescored == "kept"
    with torch.inference_mode():
        rows = [detector._rows(detector.views(read_image(f)).pixels[0])[0] for f in files[:5]]
        for owner in (0, 2, 3, 4):
            true = detector._measure(rows[owner], skip=owner).scores
            bound = measuring.settled(detector, owner).distance
            assert (bound >= true * (1 - 1e-5)).all()
            assert (bound > true * (1 + 1e-3)).float().mean() < 0.5, "few patches are affected"
    assert (detector.calibration.images >= old[[0, 2, 3, 4]] * (1 - 1e-6)).all()
    detector.add([files[5]])
    detector.undo()
    detector.undo()
    assert state_of(detector, fresh) == before
    # What was a bound stays one once the rows that it leads by are dropped.
    detector.forget(files[1])
    scores = detector.calibration.images.copy()
    detector.compact()
    detector.forget(files[0])
    detector.undo()
    assert torch.equal(detector.calibration.images, scores)
    with pytest.raises(OptionError, match="--neighbours 2"):
        PatchCore(**options | {"neighbours": 2}).fit(files[:3]).forget(files[0])


def test_merging_coresets_bounds_by_way_of_copies(files: list[Path]) -> None:
    options = CORE | {"coreset": 0.2}
    merged = PatchCore(**options).fit(files[:3])
    merged.merge(PatchCore(**options).fit(files[2:6]))
    assert len(merged.references) == 6
    with torch.inference_mode():
        for owner, file in enumerate(files[:6]):
            rows, _ = merged._rows(merged.views(read_image(file)).pixels[0])
            true = merged._measure(rows, skip=owner).scores
            assert (measuring.settled(merged, owner).distance >= true * (1 - 1e-5)).all()


@pytest.mark.parametrize("kind", ["turned", "tiles", "layers", "patchcore"])
def test_every_row_names_its_place(kind: str, files: list[Path]) -> None:
    """Of a turned or flipped reference too: the corners lead back to the patch."""
    detector = WHOLE[kind]().fit(files[:2])
    detector.add([files[2]])
    detector.forget(files[0])
    generator = np.random.default_rng(0)
    for number, bank in enumerate(detector._banks[: len(detector._banks) - (kind == "layers")]):
        for row in generator.choice(len(bank), 12, replace=False).tolist():
            origin = detector.origin(row, number)
            owner = int(bank.owner[row])
            assert origin.file == str(files[owner])
            left, top, width, height = origin.box
            assert 0 <= left < left + width <= origin.size[1]
            assert 0 <= top < top + height <= origin.size[0]
            x, y = np.mean(origin.corners, axis=0)
            assert left <= x <= left + width
            assert top <= y <= top + height
    with pytest.raises(OptionError, match="row 999999"):
        detector.origin(999_999)


def test_places_lead_to_what_the_network_saw() -> None:
    """An image whose pixels say where they are, looked at as references are."""
    height, width = 96, 128
    y, x = np.mgrid[:height, :width]
    image = np.stack([x, y, np.full_like(x, 128)], 2).astype(np.uint8)
    few = AnomalyDINO(**FEW | {"rotations": "0,90,30", "resolution": None, "tile": 64})
    many = MultiLayerNN(backbone="builtin", resolution=96, resize="short", device="cpu")
    for detector in (few.fit([image]), many.fit([image])):
        tiles = len(detector.views(image).pixels)
        seen = looks(detector, image)
        net = detector.load_network()
        compared = 0
        for row in range(0, len(detector.bank), 7):
            corners = np.array(detector.origin(row).corners)
            if (corners < 0).any() or (corners > (width, height)).any():
                continue  # a part of it was filled by mirroring
            compared += 1
            patch, view = int(detector.bank.patch[row]), int(detector.bank.view[row])
            assert view < tiles * len(detector._looks(0))
            columns = seen[view].shape[2] // net.stride
            top, left = net.stride * (patch // columns), net.stride * (patch % columns)
            colour = seen[view][:, top : top + net.stride, left : left + net.stride].mean((1, 2))
            found = 255 * (colour.numpy() * np.array(net.std) + np.array(net.mean))
            np.testing.assert_allclose(found[:2], corners.mean(0) - 0.5, atol=0.6)
            sides = np.linalg.norm(corners - np.roll(corners, 1, 0), axis=1)
            np.testing.assert_allclose(sides, net.stride, rtol=1e-3)
        assert compared > 30


def looks(detector: Banked, image: np.ndarray) -> list[torch.Tensor]:
    """What the network saw of a reference, by the number of the view."""
    if isinstance(detector, MultiLayerNN):
        found = detector._augmented(image, detector.views(image))
        return [pixels for pixels, _ in sorted(found, key=lambda one: one[1])]
    turned = [detector.views(rotate_image(image, angle)) for angle in (0, 90, 30)]
    return [pixels for views in turned for pixels in views.pixels]


def test_held_out_scores_stay_while_they_hold(files: list[Path], fresh: list[Path]) -> None:
    detector = AnomalyDINO(**FEW, false_reject=0.3).fit(files[:4])
    detector.calibrate(fresh)
    before = detector.calibration.images.copy()
    assert detector.calibration_note is None
    assert detector.add([files[4]]).rescored == "none"
    assert torch.equal(detector.calibration.images, before)
    assert "when there were 4 references, not 5" in str(detector.calibration_note)
    detector.forget(files[4])
    assert (detector.calibration.kind, detector.calibration_note) == ("held-out", None)
    detector.forget(files[0])
    assert detector.calibration.kind == "leave-one-out"
    assert len(detector.calibration.images) == 3
    assert "forgotten" in str(detector.calibration_note)
    detector.undo()
    assert detector.calibration.kind == "held-out"
    assert torch.equal(detector.calibration.images, before)
    detector.forget(files[0])
    detector.compact()
    assert detector.calibration_note is None


def test_one_reference_gets_a_threshold_with_the_others(
    files: list[Path], fresh: list[Path]
) -> None:
    detector = AnomalyDINO(**FEW, false_reject=0.3).fit(files[:1])
    assert (detector.threshold, detector.calibration.kind) == (None, "none")
    detector.add(files[1:4])
    same_scores(detector, AnomalyDINO(**FEW, false_reject=0.3).fit(files[:4]), fresh)
    detector.forget(list(files[1:4]))
    assert (detector.threshold, detector.calibration.kind) == (None, "none")


def test_the_file_grows_by_what_was_added(
    files: list[Path], fresh: list[Path], tmp_path: Path
) -> None:
    path = tmp_path / "part.offn"
    detector = AnomalyDINO(**FEW).fit(files[:4])
    detector.save(path)
    first = path.stat().st_size
    loaded = load(path, device="cpu")
    loaded.add(files[4:6], when=datetime(2026, 3, 1, 9, 30, tzinfo=UTC))
    loaded.save(path)
    second = path.stat().st_size
    cells = loaded.reaches.entries[-1]["cells"]
    # A row, its place, its patch score, its distance and the row that it was measured to.
    row = 4 * loaded.bank.dim + 4 + 2 + 4 + 4 + 4 + 8
    assert 0 <= second - first - 2 * cells * row < 1500, "beside the rows, a little header"
    loaded.forget(files[0])
    loaded.save(path)
    assert abs(path.stat().st_size - second) < 1500, "forgotten rows stay"
    again = load(path, device="cpu")
    assert [v.when for v in again.history()] == [None, "2026-03-01T09:30:00Z", None]
    again.undo()
    detector.add(files[4:6])
    same_scores(again, detector, fresh)
    again.forget(files[0])
    change = again.compact()
    again.save(path)
    assert change.images == (str(files[0]),)
    assert second - path.stat().st_size > 0.9 * cells * row
    assert [v.what for v in again.history()] == ["compact"]
    with pytest.raises(OptionError, match="begins with compact"):
        again.undo()
    smaller = load(path, device="cpu").rescored(aggregate="max")
    wanted = AnomalyDINO(**FEW, aggregate="max").fit(files[1:6])
    assert np.array_equal(smaller.calibration.images, wanted.calibration.images)


def test_the_same_steps_give_the_same_file(files: list[Path], tmp_path: Path) -> None:
    for name in ("a", "b"):
        detector = PatchCore(**CORE | {"coreset": 0.3}).fit(files[:3])
        detector.add(files[3:5])
        detector.forget(files[0])
        detector.save(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_an_addition_that_breaks_off_leaves_everything(
    files: list[Path], fresh: list[Path], tmp_path: Path
) -> None:
    bad = tmp_path / "empty.png"
    bad.touch()
    for kind in ("turned", "layers", "patchcore"):
        detector = WHOLE[kind]().fit(files[:3])
        before = state_of(detector, fresh)
        with pytest.raises(ImageError):
            detector.add([files[3], bad])
        assert state_of(detector, fresh) == before
        assert detector.add([bad, files[3]], on_error=lambda error: None).references == (3, 4)


def test_a_reference_is_found_by_name_digest_or_picture(files: list[Path], tmp_path: Path) -> None:
    detector = AnomalyDINO(**FEW).fit(files[:5])
    digest = detector.references[1]["digest"]
    moved = tmp_path / "moved.png"
    moved.write_bytes(files[2].read_bytes())
    for image, owner in [
        (files[0].name, 0),
        (digest[:10].upper(), 1),
        (moved, 2),
        (read_image(files[3]), 3),
    ]:
        assert detector.forget(image).images == (str(files[owner]),)
    with pytest.raises(OptionError, match="no reference would be left"):
        detector.forget(files[4])


def test_wrong_names_are_told_apart(files: list[Path], tmp_path: Path) -> None:
    copies = []
    for folder, file in (("a", files[0]), ("b", files[1])):
        (tmp_path / folder).mkdir()
        copies.append(tmp_path / folder / "same.png")
        copies[-1].write_bytes(file.read_bytes())
    detector = AnomalyDINO(**FEW).fit([*copies, *files[2:4]])
    with pytest.raises(OptionError, match=r"stands for 2 references(.|\n)*a/same(.|\n)*b/same"):
        detector.forget("same.png")
    with pytest.raises(OptionError, match=r"not among the 4(.|\n)*002.png"):
        detector.forget("OO2.png")
    with pytest.raises(OptionError, match=r"not among"):
        detector.forget(files[4])
    assert detector.forget("b/same.png").images == (str(copies[1]),)


def test_methods_that_cannot_say_so(files: list[Path]) -> None:
    padim = PaDiM(**SMALL).fit(files[:3])
    soft = SoftPatch(**SMALL, dim=48).fit(files[:3])
    subspace = SubspaceAD(**SMALL, rotations="none").fit(files[:3])
    for detector, words in [(padim, "memory bank"), (soft, "by those of all other images")]:
        for step in (
            lambda d: d.add([files[4]]),
            lambda d: d.forget(files[0]),
            lambda d: d.undo(),
            lambda d: d.merge(d),
            lambda d: d.compact(),
        ):
            with pytest.raises(OptionError, match=rf"{detector.method} cannot .*{words}"):
                step(detector)
        assert [version.what for version in detector.history()] == ["fit"]
    for step in (lambda: subspace.forget(files[0]), lambda: subspace.merge(subspace)):
        with pytest.raises(OptionError, match="subspacead cannot"):
            step()
    with pytest.raises(OptionError, match="padim cannot name the place"):
        padim.origin(0)
    assert soft.origin(0).file in {str(file) for file in files[:3]}


def test_a_file_of_before_is_opened_but_does_not_grow(
    files: list[Path], fresh: list[Path], tmp_path: Path
) -> None:
    detector = AnomalyDINO(**FEW).fit(files[:3])
    detector.save(tmp_path / "new.offn")
    header = read_header(tmp_path / "new.offn")
    state = {key: header["state"][key] for key in ("calibration_", "masks_", "masking_test_")}
    known = [{"file": r["file"], "digest": r["digest"]} for r in header["state"]["references_"]]
    state["references_"] = known
    options = {k: v for k, v in header["options"].items() if k not in ("storage", "search")}
    header |= {"format": 1, "state": state, "options": options}
    old = ("bank.rows", "bank.owner", "centre_", "scale_", "good_scores_", "good_peaks_")
    with safe_open(tmp_path / "new.offn", framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in old}
    save_file(tensors, tmp_path / "old.offn", metadata={"offnominal": json.dumps(header)})
    again = load(tmp_path / "old.offn", device="cpu")
    [one], [two] = detector.predict(fresh[0]), again.predict(fresh[0])
    assert (one.score, one.threshold) == (two.score, two.threshold)
    assert np.array_equal(one.anomaly_map, two.anomaly_map)
    assert [version.references for version in again.history()] == [3]
    for step in (
        lambda: again.add([files[4]]),
        lambda: again.forget(files[0]),
        lambda: again.explain(fresh[0]),
        lambda: again.origin(0),
    ):
        with pytest.raises(OptionError, match="did not note where"):
            step()
    with pytest.raises(OptionError, match="earlier version"):
        again.rescored(aggregate="max")
    again.save(tmp_path / "again.offn")
    load(tmp_path / "again.offn", device="cpu")
    header["format"] = 3
    save_file(tensors, tmp_path / "newer.offn", metadata={"offnominal": json.dumps(header)})
    with pytest.raises(ModelFileError, match="upgrade"):
        load(tmp_path / "newer.offn")


@pytest.mark.parametrize("storage", ["fp16", "int8"])
def test_small_storage_scores_nearly_the_same(
    storage: Any, files: list[Path], fresh: list[Path], tmp_path: Path
) -> None:
    full = AnomalyDINO(**FEW).fit(files[:4])
    small = AnomalyDINO(**FEW, storage=storage).fit(files[:4])
    assert small.bank.rows.element_size() == {"fp16": 2, "int8": 1}[storage]
    for a, b in zip(full.predict(fresh), small.predict(fresh), strict=True):
        assert b.score == pytest.approx(a.score, rel={"fp16": 0.01, "int8": 0.1}[storage])
    # A reference is rounded as it was when it was learned, so it has no distance from itself.
    assert small.predict(files[0])[0].score == 0
    small.save(tmp_path / "small.offn")
    assert load(tmp_path / "small.offn").predict(files[1])[0].score == 0
    with pytest.raises(OptionError, match="--storage fp32"):
        AnomalyDINO(**SMALL, storage=storage).fit(files[:2])


def test_storage_and_search_are_checked_at_once() -> None:
    for kind in (AnomalyDINO, MultiLayerNN, PatchCore, SoftPatch):
        with pytest.raises(OptionError, match="storage"):
            kind(storage="fp8")
        with pytest.raises(OptionError, match="--search"):
            kind(search="fast")
        assert kind(search="hnsw,recall=0.95").options()["search"] == "hnsw,recall=0.95"


def test_pictures_of_the_same_name_may_be_arrays(tmp_path: Path) -> None:
    arrays = [np.random.default_rng(n).integers(0, 255, (64, 64, 3), np.uint8) for n in range(4)]
    detector = AnomalyDINO(**FEW).fit(arrays[:3])
    detector.add([Image.fromarray(arrays[3])])
    assert detector.forget(arrays[0]).references == (4, 3)
    with pytest.raises(OptionError, match="stands for 2 references"):
        detector.forget("array (64, 64, 3) uint8")
