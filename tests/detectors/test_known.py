"""Known defects on top of detectors of good parts: named, and trusted as far as tests show."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.cli.conftest import offnominal, passed

from offnominal import AnomalyDINO, Autoencoder, PatchCore, load, modelfile
from offnominal.costs import threshold_by_cost
from offnominal.detectors.known import KnownDefects, boxes_of, defective_rows, rows_of
from offnominal.detectors.known_layer import Layer, cross_tested
from offnominal.detectors.methods import METHODS
from offnominal.detectors.registry import detector_class
from offnominal.detectors.supervised.base import Supervised
from offnominal.errors import ModelFileError, OptionError
from offnominal.explain.explanation import explain
from offnominal.explain.picture import draw
from offnominal.export.model import Comparison, export_int8, export_model
from offnominal.labels.labelled import Labelled, Mark
from offnominal.scoring import Scores

SMALL = {"backbone": "builtin", "resolution": 64, "device": "cpu", "smoothing": 0}


def picture(seed: int, kind: str = "") -> tuple[np.ndarray, np.ndarray]:
    """A plate with a bright spot, which is good; or with a dark comb, or noise; and where it is."""
    draw = np.random.default_rng(seed)
    image = 120 + 6 * draw.standard_normal((64, 64, 1))
    y, x = draw.integers(8, 40, 2)
    where = np.zeros((64, 64), np.bool_)
    where[y : y + 16, x : x + 16] = True
    if kind == "comb":
        image[y : y + 16, x : x + 16 : 4] -= 45
    elif kind == "noise":
        image[y : y + 16, x : x + 16] += 80 * draw.standard_normal((16, 16, 1))
    else:
        size = int(draw.integers(4, 14))
        image[y : y + size, x : x + size] += draw.integers(20, 110)
    return np.repeat(image.clip(0, 255).astype(np.uint8), 3, axis=2), where


def defects(count: int, kind: str = "comb", marked: bool = True) -> list[Labelled]:
    drawn = [picture(200 + seed, kind) for seed in range(count)]
    return [Labelled(i, (kind,), (Mark(kind, mask=m),) if marked else ()) for i, m in drawn]


GOOD = [picture(seed)[0] for seed in range(12)]


@pytest.fixture(scope="module")
def alone() -> PatchCore:
    return PatchCore(**SMALL).fit(GOOD, synthetic=False)


@pytest.mark.slow
def test_four_defects_find_those_that_would_pass_and_cost_no_good_part(
    alone: PatchCore, tmp_path: Path
) -> None:
    detector = PatchCore(**SMALL).fit(GOOD, defects=defects(4), synthetic=False)
    assert detector.known_defects is not None
    assert detector.known_defects.layer is not None
    others = [picture(300 + seed, "comb")[0] for seed in range(10)]
    good = [picture(100 + seed)[0] for seed in range(20)]
    unseen = [picture(400 + seed, "noise")[0] for seed in range(10)]
    assert not any(one.is_anomalous for one in alone.predict(others)), "without, all pass"
    found = detector.predict(others)
    assert sum(one.is_anomalous and one.kind == "comb" for one in found) >= 7
    assert not any(one.is_anomalous for one in detector.predict(good))
    before, after = alone.predict(unseen), detector.predict(unseen)
    assert all(one.is_anomalous for one in after), "a kind that nobody labelled"
    for one, other in zip(before, after, strict=True):
        ratio = other.patch_scores / one.patch_scores
        assert ratio == pytest.approx(other.score / one.score, rel=1e-4), "the map is of the score"
    assert detector.threshold is not None
    assert detector.threshold.kind != "conformal"
    assert detector.good.references.images.max() < detector.threshold.value * 1.001
    with pytest.raises(OptionError, match="fit anew with --defects"):
        detector.add(picture(500)[0])
    with pytest.raises(OptionError, match="--int8"):
        export_int8(detector, tmp_path / "small.offx", Comparison(good=GOOD))

    detector.save(tmp_path / "known.offn")
    again = load(tmp_path / "known.offn")
    assert again.predict(others[0])[0].score == pytest.approx(found[0].score, rel=1e-6)
    assert again.predict(others[0])[0].to_dict()["kind"] == "comb"
    about = offnominal("info", tmp_path / "known.offn").stdout
    assert "4 defective images, 4 of them marked: comb 4; a layer changes scores: left out" in about
    header = modelfile.read_header(tmp_path / "known.offn")
    with pytest.raises(ModelFileError, match="of others than it says"):
        again.restore(header, detector.arrays() | {"known.kind": detector.known_defects.kind + 1})

    with pytest.raises(ModelFileError, match="of other features than they are"):
        again.restore(header, detector.arrays() | {"known.layer.mean": np.zeros(3, np.float32)})

    again.calibrate(good)
    with pytest.warns(UserWarning, match=r"no longer counts \(20 held-out good images\)"):
        fewer = again.learn_defects(defects(1), GOOD)  # the trust in others goes, and its mark
    assert fewer.layer is None
    assert fewer.gain is None
    for one, other in zip(before, again.predict(unseen), strict=True):
        assert other.score == pytest.approx(one.score, rel=1e-5)
    assert again.threshold.value == pytest.approx(alone.threshold.value, rel=1e-5)  # type: ignore[union-attr]  # both have one


@pytest.mark.parametrize("marked", [True, False])
def test_one_defect_changes_no_score_and_names_the_class(alone: PatchCore, marked: bool) -> None:
    known = [*defects(1, "comb", marked), *defects(1, "noise", marked)]
    detector = PatchCore(**SMALL).fit(GOOD, defects=known, synthetic=False)
    images = [picture(300 + seed, kind)[0] for kind in ("comb", "noise") for seed in range(4)]
    found, before = detector.predict(images), alone.predict(images)
    assert [one.score for one in found] == pytest.approx([one.score for one in before], rel=1e-6)
    named = [max(one.kinds, key=one.kinds.__getitem__) for one in found if one.kinds]
    assert named == ["comb"] * 4 + ["noise"] * 4
    assert all(sum(one.kinds.values()) == pytest.approx(1) for one in found if one.kinds)


def channels(seed: int, good: int, bad: int, shift: float) -> tuple[np.ndarray, ...]:
    """Channels of images, scores that say little, which are defective, and parts; one tells."""
    draw = np.random.default_rng(seed)
    peaks = draw.standard_normal((good + bad, 30)).astype(np.float32)
    peaks[good:, 3] += shift
    defective = np.arange(good + bad) >= good
    above = np.exp(0.3 * draw.standard_normal(good + bad) + 0.2 * defective)
    return peaks, above, defective, np.r_[np.arange(good), np.arange(bad)]


def test_a_layer_finds_the_channel_that_tells_and_leaves_usual_images_alone() -> None:
    peaks, above, bad, part = channels(0, 60, 12, 4.0)
    found = cross_tested(peaks, above, bad, part)
    assert found.helps
    assert int(np.abs(found.layer.weight).argmax()) == 3
    assert found.layer.exponent(peaks[~bad].mean(0)) == pytest.approx(0, abs=1e-5)
    assert len(found.without) == 5
    others, scores, defective, _ = channels(1, 60, 60, 4.0)
    after = scores * np.exp(found.layer.exponent(others))
    ranks = [(s[~defective] < s[defective][:, None]).mean() for s in (scores, after)]
    assert ranks[1] > ranks[0] + 0.15
    odd = found.layer.exponent(others[:1] + 1e6)
    assert np.abs(odd) <= 3 * np.abs(found.layer.weight).sum() + 1e-5, "cut at 3 deviations"


def test_a_layer_of_chance_is_seen_to_be_one() -> None:
    chance = sum(cross_tested(*channels(seed, 60, 6, 0.0)).helps for seed in range(40))
    assert chance <= 14, "about one in five"
    peaks, above, bad, part = channels(0, 20, 4, 4.0)
    same = np.zeros_like(peaks)  # features that say nothing, and scores that are all alike
    for known in (same, same + 1):
        found = cross_tested(known, np.ones_like(above), bad, part)
        assert not found.helps
        assert not found.layer.weight.any()


def test_patches_of_a_defect_are_those_that_marks_cover() -> None:
    scores = np.arange(16, dtype=np.float32).reshape(4, 4)
    image = np.zeros((40, 40, 3), np.uint8)
    inside = np.zeros((40, 40), np.bool_)
    inside[0:10, 0:16] = True  # a patch, and 6 of 10 columns of the next
    one = Labelled(image, ("a",), (Mark("a", mask=inside), Mark("b", box=(0, 10, 10, 10))))
    all_of = Scores(scores)
    assert defective_rows(one, all_of, (40, 40)) == [(0, "a"), (1, "a"), (4, "b")]
    tiny = np.zeros((40, 40), np.bool_)
    tiny[25, 25] = True
    assert defective_rows(Labelled(image, ("a",), (Mark(mask=tiny),)), all_of, (40, 40)) == [
        (10, "defect")
    ]
    worst = defective_rows(Labelled(image, ("a", "b")), all_of, (40, 40))
    assert [place for place, _ in worst[::2]] == [15, 14, 13, 12, 11]
    # Only the middle was looked at: patches are of 5 pixels, and lie there.
    middle = Scores(scores, window=(10, 10, 20, 20))
    cut = Labelled(image, ("a",), (Mark("a", box=(10, 15, 4, 4)),))
    assert defective_rows(cut, middle, (40, 40)) == [(4, "a")]
    assert boxes_of([4, 15], middle, (40, 40)).tolist() == [[10, 15, 5, 5], [25, 25, 5, 5]]


def test_what_cannot_know_defects_says_so(alone: PatchCore) -> None:
    with pytest.raises(OptionError, match="autoencoder learns from good images alone"):
        Autoencoder().fit(GOOD[:2], defects=defects(1))
    with pytest.raises(OptionError, match="--tile 64 --defects"):
        AnomalyDINO(backbone="builtin", tile=64).fit(GOOD[:2], defects=defects(1))
    with pytest.raises(OptionError, match="among the good images"):
        alone.learn_defects(GOOD[0], GOOD)
    facts = {"kinds": ["a"], "defects": [], "floor": 0.0, "gain": None}
    with pytest.raises(ValueError, match="defects"):
        KnownDefects.of(facts | {"before": None}, {})


def test_the_list_of_methods_says_which_can() -> None:
    for name, method in METHODS.items():
        kind = detector_class(name)
        learns = kind.takes_defects or issubclass(kind, Supervised)
        assert learns is (method.defects != "none"), name


QUICK = ("padim", "spade", "multilayer-nn", "dn2", "fastflow")
TRAINED = {"steps": 1, "batch": 2, "resolution": 64}
OPTIONS = {
    "spade": {"resolution": 64}, "dn2": {"resolution": 64},
    "multilayer-nn": {"resolution": 64, "rotations": "0", "query_views": "vflip,plain"},
    "padim": {"resolution": 64, "dimensions": 8},
    "anomalydino": {"resolution": 64}, "softpatch": {"resolution": 64},
    "subspacead": {"resolution": 64}, "gaussian": {"resolution": 64},
    "fastflow": TRAINED | {"couplings": 1}, "cflow": TRAINED | {"couplings": 1},
    "differnet": TRAINED | {"couplings": 1, "width": 0.01, "rotations": 1},
    "simplenet": TRAINED | {"hidden": 8}, "loe": TRAINED, "igd": TRAINED, "trustmae": TRAINED,
    "dinomaly": TRAINED,
}  # fmt: skip
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in OPTIONS if name not in QUICK]


def made(method: str) -> Any:
    return detector_class(method)(backbone="builtin", device="cpu", **OPTIONS[method])


@pytest.mark.parametrize("method", [*QUICK, *SLOW])
def test_many_methods_know_patches_where_they_lie(method: str, tmp_path: Path) -> None:
    listed = [*defects(1, "comb"), *defects(1, "noise")]
    plain = made(method).fit(GOOD, synthetic=False)
    detector = made(method).fit(GOOD, synthetic=False, defects=listed)
    images = [np.asarray(one.image) for one in listed]
    found, before = detector.predict(images), plain.predict(images)
    assert [one.score for one in found] == pytest.approx([one.score for one in before], rel=1e-4)
    known = detector.known_defects
    for number, one in enumerate(found):
        assert one.kinds is not None
        assert sum(one.kinds.values()) == pytest.approx(1)
        grid = one.patch_scores.shape
        near = known.near(rows_of(detector.patch_features(images[number], grid)))
        own = known.defect == number
        assert near[:, own].min(0) == pytest.approx(0, abs=1e-5), "its patches are among these"
        places = [place for place, _ in defective_rows(listed[number], one.scores, (64, 64))]
        assert near[places, np.flatnonzero(own)] == pytest.approx(0, abs=1e-5), "at their places"
        if method in ("padim", "spade", "multilayer-nn", "dn2", "anomalydino"):
            assert max(one.kinds, key=one.kinds.__getitem__) == listed[number].kinds[0]
    detector.save(tmp_path / "known.offn")
    again = load(tmp_path / "known.offn", device="cpu")
    assert again.predict(images[0])[0].kinds == pytest.approx(found[0].kinds, abs=1e-4)


def test_a_layer_changes_what_a_method_says_of_the_image_itself() -> None:
    """And where good ones score below 0, scores are counted from the lowest of them."""
    one = np.ones(2, np.float32)
    layer = Layer(0 * one, one, np.array([np.log(2), 0], np.float32))
    alone = Scores(np.array([[-1.0, -3.0, 1.0]], np.float32), image=4.0)
    found = layer.weighed(alone, np.array([1.0, 9.0], np.float32), floor=-2.0)
    assert found.patches == pytest.approx(np.array([[0.0, -3.0, 4.0]]))
    assert found.image == pytest.approx(10)
    lower = layer.weighed(alone, np.array([-1.0, 9.0], np.float32), floor=-2.0)
    assert lower.patches[0, 2] == pytest.approx(-0.5)


def test_a_trained_method_is_tested_on_what_was_held_back() -> None:
    detector = made("fastflow").fit(GOOD, synthetic=False)
    [before] = detector.predict(picture(700)[0])
    detector.calibrate([picture(800 + n)[0] for n in range(4)])  # by other images
    known = detector.learn_defects(defects(4), GOOD)
    assert known.gain is None, "too few are held back"
    assert detector.predict(picture(700)[0])[0].score == pytest.approx(before.score, rel=1e-5)


@pytest.mark.parametrize("method", ["padim", pytest.param("fastflow", marks=pytest.mark.slow)])
def test_an_exported_program_knows_the_same(method: str, tmp_path: Path) -> None:
    detector = made(method).fit(GOOD, defects=defects(4), synthetic=False)
    others = [picture(300 + n, kind)[0] for n in range(2) for kind in ("comb", "noise", "")]
    export_model(detector, tmp_path / "known.offx", Comparison(good=GOOD[:4]))
    again = load(tmp_path / "known.offx")
    for one, other in zip(detector.predict(others), again.predict(others), strict=True):
        assert other.score == pytest.approx(one.score, rel=1e-3)
        assert other.kinds == pytest.approx(one.kinds, abs=1e-3)
    with pytest.raises(OptionError, match="learns nothing more"):
        again.learn_defects(defects(1))
    again.save(tmp_path / "again.offx")
    assert load(tmp_path / "again.offx").known_defects is not None


def test_an_explanation_names_the_nearest_known_defect(tmp_path: Path) -> None:
    files = []
    for number, one in enumerate(defects(2)):
        files.append(tmp_path / f"bad{number}.png")
        Image.fromarray(np.asarray(one.image)).save(files[-1])
        Image.fromarray(GOOD[number]).save(tmp_path / f"good{number}.png")
    good = sorted(tmp_path.glob("good*"))
    given = [Labelled(file, one.kinds, one.marks)
             for file, one in zip(files, defects(2), strict=True)]  # fmt: skip
    detector = PatchCore(**SMALL).fit(good, defects=given, synthetic=False)
    told = explain(detector, files[1], worst=2)
    for match in told.matches:
        assert match.known is not None
        assert match.known.kind == "comb"
    first = told.matches[0].known
    assert first is not None
    assert first.file == str(files[1]), "it is the same picture"
    assert first.distance < 1e-5
    assert first.box == told.matches[0].box
    assert first.patch is not None
    assert np.array_equal(first.patch, told.matches[0].patch)
    whole = draw(told).shape
    files[1].unlink()
    again = explain(detector, np.asarray(defects(2)[1].image), worst=1)
    [row] = again.to_dict()["matches"]
    assert row["known_defect"]["file"] == str(files[1])
    assert not row["known_defect"]["there"], "named, without its picture"
    assert draw(again).shape[1] == whole[1]


def test_costs_set_a_threshold() -> None:
    draw = np.random.default_rng(0)
    good, bad = np.exp(draw.normal(0, 0.3, 200)), np.exp(draw.normal(1, 0.3, 200))
    dear = threshold_by_cost(good, bad, 50, 1, 0.05)
    cheap = threshold_by_cost(good, bad, 1, 1, 0.05)
    assert dear.value < cheap.value
    assert dear.missed <= cheap.missed
    assert dear.rejected >= cheap.rejected
    # The best threshold of the true distributions, where the odds are those of the costs.
    odds = np.log(1 / 50) - np.log(0.05 / 0.95)
    assert np.log(dear.value) == pytest.approx(0.5 + odds * 0.09, abs=0.15)
    apart = threshold_by_cost([1.0, 1.1, 1.2], [3.0], 50, 1, 0.01)
    assert 1.2 < apart.value < 3
    with pytest.raises(OptionError, match="score no higher"):
        threshold_by_cost([1.0, 2.0], [0.5], 50, 1, 0.01)


@pytest.mark.slow
def test_the_command_line_adds_defects_and_weighs_costs(tmp_path: Path) -> None:
    for folder, images in (("good", GOOD), ("bad/comb", [one.image for one in defects(4)])):
        (tmp_path / folder).mkdir(parents=True)
        for number, image in enumerate(images):
            Image.fromarray(np.asarray(image)).save(tmp_path / folder / f"{number}.png")
    model, bad = tmp_path / "part.offn", tmp_path / "bad"
    sets = ("--set", "resolution=64", "--set", "smoothing=0", "--no-synthetic")
    passed(offnominal("fit", tmp_path / "good", "-o", model, "--method", "patchcore",
                      "--backbone", "builtin", *sets))  # fmt: skip
    said = passed(offnominal("add", model, "--defects", bad, "--classes", "by-folder"))
    assert "knows 4 defective images" in said
    assert "comb 4" in offnominal("info", model).stdout
    assert "by hand" in passed(offnominal("calibrate", model, "--threshold", 100))
    with pytest.warns(UserWarning, match=r"no longer counts \(a threshold set by hand\)"):
        passed(offnominal("add", model, "--defects", bad / "comb" / "0.png"))
    assert "by hand" not in offnominal("info", model).stdout
    told = passed(offnominal("calibrate", model, "--defects", bad, "--cost-miss", 50,
                             "--defect-rate", 0.01))  # fmt: skip
    assert "threshold set by costs" in told
    assert "50 a miss" in told
    before = model.read_bytes()
    wrong = offnominal("calibrate", model, bad, "--defects", tmp_path / "good",
                       "--cost-miss", 50, "--defect-rate", 0.01)  # fmt: skip
    assert wrong.returncode == 2
    assert "learned from it as a good part" in wrong.stderr
    assert model.read_bytes() == before, "nor is half of it done"
    assert offnominal("add", model).returncode == 2, "neither good images nor defects"
