"""What is suggested to be labelled: near the threshold, unlike each other, each once."""

import csv
import shutil
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

import offnominal
from offnominal import AnomalyDINO
from offnominal.errors import OptionError
from offnominal.suggestions import choose, description, suggest
from tests.cli.conftest import offnominal as run
from tests.cli.conftest import passed


def test_near_the_threshold_and_then_unlike() -> None:
    scores = np.array([0.1, 0.9, 1.0, 1.1, 1.05, 5.0])
    looks = np.array([[1, 0], [1, 0], [1, 0], [0, 1], [1, 0], [0, 1]], np.float32)
    places, apart = choose(scores, 1.0, looks, 2)
    assert places == [2, 3]  # 4 is nearer, and looks like 2
    assert apart == pytest.approx([2, np.sqrt(2)])
    assert choose(scores, 1.0, looks, 2, reach=1)[0] == [2, 4]
    assert sorted(choose(scores, 1.0, looks, 9)[0]) == [0, 1, 2, 3, 4, 5]


def test_a_description_is_of_the_most_anomalous_place() -> None:
    image = np.random.default_rng(0).integers(0, 255, (90, 120, 3), np.uint8)
    heat = np.zeros((90, 120), np.float32)
    heat[70, 100] = 1
    found = description(image, heat)
    assert found.shape == (176,)
    assert np.linalg.norm(found) == pytest.approx(1, abs=1e-5)
    elsewhere = image.copy()
    elsewhere[:30, :60] = 0
    assert np.array_equal(description(elsewhere, heat), found)
    elsewhere[55:85, 85:115] = 0
    assert not np.array_equal(description(elsewhere, heat), found)
    assert np.isfinite(description(np.zeros((5, 3, 3), np.uint8), np.zeros((5, 3)))).all()


def test_references_and_copies_are_left_out(
    fabric_model: Path, parts: Path, tmp_path: Path
) -> None:
    detector = offnominal.load(fabric_model, device="cpu")
    learned = sorted((parts / "fabric" / "train" / "good").iterdir())
    new = sorted((parts / "fabric" / "test").rglob("*.png"))[:3]
    twin = Path(shutil.copy(new[0], tmp_path / "twin.png"))
    found = suggest(detector, [learned[0], *new, twin], 9)
    assert sorted(one.source for one in found) == sorted(map(str, new))
    assert {new[one.number - 1] for one in found} == set(new)
    predicted = {one.source: one for one in detector.predict(new)}
    assert all(one.score == predicted[one.source].score for one in found)
    assert all(one.is_anomalous == predicted[one.source].is_anomalous for one in found)
    assert suggest(detector, learned[:2], 3) == []
    with pytest.raises(OptionError, match="-n 0: give 1 or more"):
        suggest(detector, new, 0)


def test_the_command_names_them_and_writes_a_table(
    fabric_model: Path, parts: Path, tmp_path: Path
) -> None:
    new, table = parts / "fabric" / "test", tmp_path / "picks.csv"
    done = run("suggest", fabric_model, new, "-n", 2, "-o", table)
    assert "2 images of 9 to label" in passed(done)
    rows = list(csv.DictReader(table.open()))
    assert done.stdout.splitlines() == [row["image"] for row in rows]
    assert rows[0]["apart"] == "2.0"
    done = run("suggest", fabric_model, new, "-o", tmp_path / "picks.txt")
    assert done.returncode == 2
    assert "ends in .csv" in done.stderr


@pytest.mark.slow
def test_more_defects_of_more_kinds_are_labelled_than_by_random_picks(
    tiles: Path, mobilenet: Path
) -> None:
    """Ten labels of 120 tiles, 12 of them defective; means of six pools."""
    rng = np.random.default_rng(0)
    good = sorted((tiles / "train" / "good").iterdir())[::4]
    bad = [file for file in sorted((tiles / "test").rglob("*/*.jpg")) if "/good/" not in str(file)]
    rng.shuffle(good)
    rng.shuffle(bad)
    detector = AnomalyDINO(weights=str(mobilenet), resolution=128, rotations="none", mask="off")
    detector.fit(good[:20], synthetic=False).calibrate(good[20:50], false_reject=0.05)
    threshold = detector.threshold
    assert threshold is not None
    seen = [*good[50:], *bad[:40]]
    found = detector.predict(seen)
    scores = np.array([one.score for one in found])
    looks = np.stack([description(one.image, one.anomaly_map) for one in found])
    kinds = np.array([Path(one.source).parent.name for one in found])
    fine, ill = np.flatnonzero(kinds == "good"), np.flatnonzero(kinds != "good")

    def gained(picks: npt.NDArray[np.intp]) -> tuple[int, int]:
        """Defects among some picks, and how many kinds of them."""
        return int((kinds[picks] != "good").sum()), len(set(kinds[picks]) - {"good"})

    suggested, by_chance = [], []
    for _ in range(6):
        pool = np.concatenate([rng.permutation(fine)[:108], rng.permutation(ill)[:12]])
        picks = choose(scores[pool], threshold.value, looks[pool], 10)[0]
        suggested.append(gained(pool[picks]))
        by_chance += [gained(rng.permutation(pool)[:10]) for _ in range(20)]
    defects, different = np.mean(suggested, 0)
    assert defects > 2 * np.mean(by_chance, 0)[0]
    assert different > 1.5 * np.mean(by_chance, 0)[1]
