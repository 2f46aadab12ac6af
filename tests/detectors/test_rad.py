"""RAD: references retrieved first, several kinds of part in one model."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.cli.conftest import offnominal, passed

from offnominal import RAD, load
from offnominal.errors import ModelFileError, OptionError

LOOKS = ("fabric", "part")
SMALL: dict[str, Any] = {"backbone": "builtin", "resolution": 64, "device": "cpu"}


def good(parts: Path, look: str) -> list[Path]:
    return sorted((parts / look / "train" / "good").iterdir())


@pytest.fixture(scope="module")
def both(parts: Path) -> RAD:
    return RAD(**SMALL).fit({look: good(parts, look) for look in LOOKS})


def test_it_recognises_the_kind_and_judges_by_its_threshold(both: RAD, parts: Path) -> None:
    assert both.categories == LOOKS
    limits = {}
    for look in LOOKS:
        threshold = both.for_category(look).threshold
        assert threshold is not None
        limits[look] = threshold.value
        found = both.predict(sorted((parts / look / "test").rglob("*.png")))
        assert {one.category for one in found} == {look}
        assert {one.threshold for one in found} == {limits[look]}
        assert {one.to_dict()["category"] for one in found} == {look}
        assert both.for_category(look).predict(found[0].source)[0].score == found[0].score
    assert limits["fabric"] != limits["part"]
    other = both.for_category("part").predict(good(parts, "fabric")[0])[0]
    assert (other.category, other.threshold) == ("part", limits["part"]), "as it was named"
    with pytest.raises(OptionError, match="several categories"):
        both.add(good(parts, "part")[0])
    with pytest.raises(OptionError, match="keeps the thresholds of its fit"):
        both.calibrate(good(parts, "part"))


def test_thresholds_are_from_each_without_itself(both: RAD, parts: Path) -> None:
    files = [file for look in LOOKS for file in good(parts, look)]
    scored = dict(zip(both.good.references.numbers, both.good.references.images, strict=True))
    for number in (0, len(files) - 1):
        others = [file for n, file in enumerate(files) if n != number]
        [fresh] = RAD(**SMALL).fit(others, synthetic=False).predict(files[number])
        assert scored[number] == pytest.approx(fresh.score, rel=1e-5)


@pytest.mark.slow
def test_only_what_is_retrieved_is_searched(parts: Path) -> None:
    files = [file for look in LOOKS for file in good(parts, look)]
    few, all_ = (RAD(**SMALL, retrieve=k).fit(files, synthetic=False) for k in (2, 150))
    assert (few.leave_one_out, all_.leave_one_out) == ("approximate", "exact")
    [one], [other] = few.predict(files[7]), all_.predict(files[7])
    assert one.score == other.score == pytest.approx(0, abs=1e-6), "it retrieves itself"
    tests = sorted((parts / "part" / "test").rglob("*.png"))
    for one, other in zip(few.predict(tests), all_.predict(tests), strict=True):
        assert (one.patch_scores >= other.patch_scores - 1e-7).all()
        features = few.embedded(few.views(one.image)[0].pixels)
        numbers = few.retrieved(features[1])
        assert len(numbers) == 2
        alone = RAD(**SMALL).fit([files[n] for n in sorted(numbers)], synthetic=False)
        np.testing.assert_allclose(alone.predict(one.image)[0].patch_scores, one.patch_scores)


def test_near_the_same_place(parts: Path) -> None:
    files = good(parts, "part")
    wide, near, whole = (
        RAD(**SMALL, radius=r).fit(files[:3], synthetic=False) for r in (None, 0, 100)
    )
    test = sorted((parts / "part" / "test").rglob("*.png"))[0]
    [a], [b], [c] = (each.predict(test) for each in (wide, near, whole))
    assert (b.patch_scores >= a.patch_scores - 1e-6).all()
    assert (b.patch_scores > a.patch_scores + 1e-6).any()
    np.testing.assert_allclose(a.patch_scores, c.patch_scores, atol=1e-6)


def test_it_grows_and_shrinks(parts: Path, tmp_path: Path) -> None:
    files = good(parts, "part")
    grown = RAD(**SMALL).fit(files[:4], synthetic=False)
    before = grown.threshold
    grown.add(files[4:])
    at_once = RAD(**SMALL).fit(files, synthetic=False)
    assert grown.threshold == at_once.threshold
    grown.save(tmp_path / "grown.offn")
    again = load(tmp_path / "grown.offn", device="cpu")
    [one], [other] = (each.predict(files[0]) for each in (again, at_once))
    assert one.score == other.score
    grown.undo()
    assert grown.threshold == before
    again.forget(files[4:])
    assert again.threshold == before


def test_rows_in_a_file_of_their_own(parts: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    rows = folder / "kinds.rows"
    groups = {look: good(parts, look) for look in LOOKS}
    filed = RAD(**SMALL, rows_file=str(rows)).fit(groups)
    inside = RAD(**SMALL, storage="fp16").fit(groups)
    filed.save(folder / "kinds.offn")
    inside.save(folder / "inside.offn")
    again = load(folder / "kinds.offn", device="cpu")
    for file in (good(parts, "part")[0], *sorted((parts / "fabric" / "test").rglob("*.png"))[:2]):
        [one], [other] = again.predict(file), inside.predict(file)
        assert (one.score, one.threshold, one.category) == (
            other.score,
            other.threshold,
            other.category,
        )
    one_kind = RAD(**SMALL, rows_file=str(tmp_path / "one.rows"))
    one_kind.fit(good(parts, "part")[:2], synthetic=False)
    with pytest.raises(OptionError, match="--rows-file"):
        one_kind.add(good(parts, "fabric")[0])
    rows.rename(folder / "away.rows")
    with pytest.raises(ModelFileError, match=r"kinds.rows: .* does not exist; bring it back"):
        load(folder / "kinds.offn")


def test_options_are_checked() -> None:
    for wrong, told in (
        ({"neighbours": 2}, "--neighbours 2"),
        ({"storage": "int8"}, "--storage int8"),
        ({"retrieve": 0}, "retrieve"),
        ({"radius": -1}, "radius"),
        ({"tile": 64}, "--tile 64"),
    ):
        with pytest.raises(OptionError, match=told):
            RAD(**(SMALL | wrong))


def test_a_kind_of_one_image_is_refused(parts: Path) -> None:
    with pytest.raises(OptionError, match="category part: 1 images"):
        RAD(**SMALL).fit({"part": good(parts, "part")[:1], "fabric": good(parts, "fabric")})


def test_on_the_command_line(parts: Path, tmp_path: Path) -> None:
    model = tmp_path / "kinds.offn"
    options = ("--method", "rad", "--backbone", "builtin", "--resolution", "64", "--device", "cpu")
    passed(offnominal("fit", parts, "--categories", *options, "-o", model))
    facts = json.loads(offnominal("info", model, "--json").stdout)
    assert set(facts["categories"]) == set(LOOKS)
    test = sorted((parts / "fabric" / "test" / "good").iterdir())[0]
    passed(offnominal("predict", model, test, "-o", tmp_path / "out"))
    [line] = (tmp_path / "out" / "results.jsonl").read_text().splitlines()
    assert json.loads(line)["category"] == "fabric"
    told = offnominal("export", model, "-o", tmp_path / "kinds.offx")
    assert told.returncode != 0
    assert "several categories" in told.stderr


@pytest.mark.slow
def test_real_tiles_and_made_parts_in_one_model(tiles: Path, parts: Path, mobilenet: Path) -> None:
    good_tiles, bad = (
        [p for p in sorted((tiles / "test").rglob("*.*")) if (p.parent.name == "good") == is_good]
        for is_good in (True, False)
    )
    groups = {look: good(parts, look) for look in LOOKS}
    groups["tiles"] = sorted((tiles / "train" / "good").iterdir())[:48:2]
    options: dict[str, Any] = {"resolution": 224, "resize": "square", "radius": 0, "device": "cpu"}
    detector = RAD(backbone="mobilenetv2_100", weights=str(mobilenet), **options).fit(groups)
    thresholds = {name: detector.for_category(name).threshold for name in detector.categories}
    assert len({one.value for one in thresholds.values() if one}) == 3
    scores = [
        [one.score for one in detector.predict(files) if one.category == "tiles"]
        for files in (good_tiles[::4][:40], bad[::7][:50])
    ]
    assert [len(each) for each in scores] == [40, 50]
    auroc = np.mean([[b > a for b in scores[1]] for a in scores[0]])
    assert auroc > 0.75
    for look in LOOKS:
        found = detector.predict(sorted((parts / look / "test").rglob("*.png")))
        assert {one.category for one in found} == {look}
        assert {one.threshold for one in found} == {getattr(thresholds[look], "value", None)}
        good_scores, others = (
            [one.score for one in found if (Path(one.source).parent.name == "good") == is_good]
            for is_good in (True, False)
        )
        assert np.mean([[b > a for b in others] for a in good_scores]) > 0.7
