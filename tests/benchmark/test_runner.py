"""The runner on real parts: what it writes, that it resumes, and that several share the work."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from offnominal import AnomalyDINO
from offnominal.backbones.cache import FeatureCache
from offnominal.benchmark.evaluate import evaluate_detector
from offnominal.benchmark.plan import Request, Work, make_plan
from offnominal.benchmark.runner import Outcome, Runner
from offnominal.benchmark.store import FinishedCell, Store, read_runs
from offnominal.datasets import Dataset, open_dataset, read_mask
from offnominal.detectors.base import Detector
from offnominal.detectors.ensemble import Ensemble
from offnominal.detectors.registry import METHODS as METHODS_KNOWN
from offnominal.detectors.registry import Method, detector_class, load
from offnominal.errors import DatasetError
from offnominal.metrics import image_metrics, pixel_metrics
from offnominal.report.results import gather
from offnominal.report.tables import overview
from offnominal.scoring import Scores, anomaly_map

AGGREGATES = ["top1", "max", "map-max"]


def plan(dataset: Dataset, **request: Any) -> Work:
    asked: dict[str, Any] = {
        "shots": (2, 4),
        "seeds": 2,
        "backbones": ("builtin",),
        "sets": {"rotations": ["none"], "aggregate": AGGREGATES},
    }
    return make_plan([dataset], Request(**(asked | request)))


@pytest.fixture(scope="module")
def dataset(parts: Path) -> Dataset:
    return open_dataset(parts, categories=["fabric"])


@pytest.fixture(scope="module")
def runs(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    cache = FeatureCache(tmp_path_factory.mktemp("cache"), 10**9)
    outcome = Runner(plan(dataset), Store(root), cache, keep_maps=True).run()
    assert (outcome.finished, outcome.failed) == (12, [])
    # Six training images at most and the test images, once each, for four fits.
    views = len(dataset.test("fabric")) + len(dataset.train("fabric"))
    assert outcome.computed <= views
    assert outcome.from_cache > 2 * outcome.computed
    return root


def cell_of(cells: list[FinishedCell], **wanted: Any) -> FinishedCell:
    def fits(cell: FinishedCell) -> bool:
        known = cell.settings | cell.settings["options"]
        return all(known[name] == value for name, value in wanted.items())

    [found] = [cell for cell in cells if fits(cell)]
    return found


@pytest.mark.slow
def test_a_cell_is_what_a_detector_of_its_own_gives(runs: Path, dataset: Dataset) -> None:
    cells, _ = read_runs(runs)
    test = dataset.test("fabric")
    for how in AGGREGATES:
        cell = cell_of(cells, shots=4, seed=1, aggregate=how)
        detector = AnomalyDINO(backbone="builtin", rotations="none", aggregate=how)
        detector.fit([dataset.root / name for name in cell.settings["references"]])
        predictions = detector.predict([sample.image for sample in test])
        scores = [prediction.score for prediction in predictions]
        assert cell.scores["score"] == pytest.approx(scores, rel=1e-6)
        assert detector.threshold is not None
        assert cell.run["threshold"]["value"] == pytest.approx(detector.threshold.value, rel=1e-6)
        labels = [sample.label for sample in test]
        assert cell.scores["label"] == labels
        expected = image_metrics(labels, scores)
        for name, value in expected.items():
            assert cell.metrics["figures"][name] == pytest.approx(value, nan_ok=True), name
        masks = [
            np.zeros(p.anomaly_map.shape, bool)
            if sample.mask is None
            else read_mask(sample.mask, p.anomaly_map.shape)
            for sample, p in zip(test, predictions, strict=True)
        ]
        exact = pixel_metrics([p.anomaly_map for p in predictions], masks)
        for name in ("pixel_auroc", "pixel_ap", "pixel_f1_max", "aupro"):
            assert cell.metrics["figures"][name] == pytest.approx(exact[name], abs=1e-4), name


def test_a_cell_keeps_what_the_report_needs(runs: Path, dataset: Dataset) -> None:
    cells, _ = read_runs(runs)
    cell = cell_of(cells, shots=2, seed=0, aggregate="max")
    assert len(cell.settings["references"]) == 2
    assert (dataset.root / cell.scores["image"][0]).is_file()
    assert cell.settings["data"]["test_good"] == 3
    assert {"version", "device", "packages", "threads", "timings", "backbone"} <= set(cell.run)
    assert cell.run["timings"]["predict"] > cell.run["timings"]["per_image"] > 0
    assert cell.run["shared_with"] == 2
    grids = cell.patch_scores()
    assert len(grids) == len(cell.scores["image"])
    rows = zip(cell.scores["height"], cell.scores["width"], grids, strict=True)
    for number, (height, width, grid) in enumerate(rows):
        heat = anomaly_map(grid, (height, width), 4.0)
        assert float(heat.max()) == pytest.approx(cell.scores["map_max"][number], rel=1e-5)
        kept = np.load(cell.folder / "maps" / f"{number:05d}.npy")
        np.testing.assert_allclose(kept, heat, rtol=2e-3)
    figures = cell.metrics["figures"]
    decided = np.array(cell.scores["is_anomalous"], dtype=object)
    labels = np.array(cell.scores["label"])
    if decided[0] is not None:
        assert figures["false_rejects"] == np.mean(decided[labels == 0].astype(bool))
        missed = 1 - np.mean(decided[labels == 1].astype(bool))
        assert figures["misses"] == pytest.approx(missed)


def test_a_rerun_does_only_what_is_missing(runs: Path, dataset: Dataset) -> None:
    work = plan(dataset)
    store = Store(runs)
    before = {path: path.stat().st_mtime_ns for path in runs.glob("cells/*/*.json")}
    outcome = Runner(work, store).run()
    assert (outcome.finished, outcome.before) == (0, 12)
    assert {path: path.stat().st_mtime_ns for path in runs.glob("cells/*/*.json")} == before
    gone = store.cells / work.cells[4].name
    for file in sorted(gone.rglob("*"), reverse=True):
        file.rmdir() if file.is_dir() else file.unlink()
    gone.rmdir()
    outcome = Runner(work, store).run()
    assert (outcome.finished, outcome.before) == (1, 11)
    assert not list(runs.glob("claims/*"))


def test_a_group_is_one_process_s_at_a_time(tmp_path: Path) -> None:
    store, other = Store(tmp_path), Store(tmp_path)
    with store.claim("work") as first, other.claim("work") as second, other.claim("more") as third:
        assert (first, second, third) == (True, False, True)
    with other.claim("work") as again:
        assert again
    assert not list(tmp_path.glob("claims/*"))


@pytest.mark.slow
def test_a_cell_that_fails_leaves_nothing_and_the_others_go_on(
    dataset: Dataset, tmp_path: Path
) -> None:
    # A tile smaller than the backbone takes is found out only when the first image is cut.
    work = plan(dataset, shots=(2,), seeds=1, sets={"rotations": ["none"], "tile": [4, 128]})
    outcome = Runner(work, Store(tmp_path)).run()
    assert outcome.finished == 1
    assert len(outcome.failed) == 1
    assert "--tile 4" in outcome.failed[0]
    assert len(list((tmp_path / "cells").iterdir())) == 1


def test_unreadable_images_are_left_out_and_told(dataset: Dataset, tmp_path: Path) -> None:
    broken = tmp_path / "parts" / "fabric"
    for sample in dataset.samples:
        new = broken / sample.image.relative_to(dataset.root / "fabric")
        new.parent.mkdir(parents=True, exist_ok=True)
        new.write_bytes(sample.image.read_bytes())
    victim = sorted((broken / "test" / "good").iterdir())[1]
    victim.write_bytes(victim.read_bytes()[:200])
    found = open_dataset(tmp_path / "parts")
    work = plan(found, shots=(2,), seeds=1, sets={"rotations": ["none"]})
    outcome = Runner(work, Store(tmp_path / "runs")).run()
    assert len(outcome.unreadable) == 1
    [cell] = read_runs(tmp_path / "runs")[0]
    assert victim.name in cell.run["unreadable"][0]
    assert len(cell.scores["image"]) == len(found.test("fabric")) - 1
    # Without masks there are no pixel figures, and none is made up.
    assert "pixel_auroc" not in cell.metrics["figures"]


@pytest.mark.slow
def test_the_batched_form_runs_without_references(dataset: Dataset, tmp_path: Path) -> None:
    work = plan(dataset, methods=("anomalydino-batched",), sets={"aggregate": ["top1", "max"]})
    outcome = Runner(work, Store(tmp_path)).run()
    assert (outcome.finished, outcome.failed) == (2, [])
    cells, _ = read_runs(tmp_path)
    aurocs = [cell.metrics["figures"]["image_auroc"] for cell in cells]
    assert all(0 <= auroc <= 1 for auroc in aurocs)
    assert cells[0].scores["score"] != cells[1].scores["score"]
    assert cells[0].settings["references"] == []


METHODS = ("patchcore", "padim", "dn2", "spade", "subspacead", "multilayer-nn")


@pytest.mark.slow
def test_every_method_scores_as_it_does_by_itself_at_its_own_levels_of_a_shared_network(
    dataset: Dataset, mobilenet: Path, tmp_path: Path
) -> None:
    sets = {"rotations": ["none"], "aggregate": ["max", "mean"], "resize": ["square"]}
    sets |= {"resolution": [96]}
    asked = {"methods": METHODS, "shots": (3,), "seeds": 1, "backbones": (str(mobilenet),)}
    cache = FeatureCache(tmp_path / "cache", 10**9)
    outcome = Runner(plan(dataset, **asked, sets=sets), Store(tmp_path), cache).run()
    assert outcome.failed == []
    cells, _ = read_runs(tmp_path)
    assert len(cells) == 2 * len(METHODS)
    test = [sample.image for sample in dataset.test("fabric")][:4]
    for cell in cells:
        options = cell.settings["options"] | {"weights": str(mobilenet)}
        detector = detector_class(cell.settings["method"])(**options, device="cpu")
        detector.fit([dataset.root / name for name in cell.settings["references"]])
        scores = [prediction.score for prediction in detector.predict(test)]
        assert cell.scores["score"][:4] == pytest.approx(scores, rel=1e-4), cell.name


@pytest.mark.slow
def test_an_ensemble_shares_its_networks(dataset: Dataset, tmp_path: Path) -> None:
    sets = {"of": ["dn2"], "aggregate": ["members", "max"]}
    sets["backbone"] = ["builtin,builtin-aligned"]
    work = plan(dataset, methods=("ensemble",), shots=(2,), seeds=1, backbones=(), sets=sets)
    outcome = Runner(work, Store(tmp_path)).run()
    assert (outcome.finished, outcome.failed) == (2, [])
    # Two members, and each of two references and of the test images once.
    assert outcome.computed == 2 * (2 + len(dataset.test("fabric")))
    cell = cell_of(read_runs(tmp_path)[0], aggregate="members")
    assert cell.run["backbone"]["name"] == "builtin,builtin-aligned"
    detector = Ensemble(of="dn2", backbone="builtin,builtin-aligned", device="cpu")
    detector.fit([dataset.root / name for name in cell.settings["references"]])
    found = detector.predict([sample.image for sample in dataset.test("fabric")])
    assert cell.scores["score"] == pytest.approx([p.score for p in found], rel=1e-5)


class Darkness(Detector):
    """A method of another package, without a network: how dark an image is."""

    method = "darkness"
    needs_references = False

    def __init__(self, power: float = 1.0, **options: Any) -> None:
        super().__init__(**options)
        self.power = power

    def learn(self, number: int, image: np.ndarray) -> np.ndarray:
        return image

    def score(self, image: np.ndarray) -> Scores:
        grey = image.mean(2, dtype=np.float32) / 255
        return Scores(((1 - grey[::16, ::16]) ** self.power).astype(np.float32), stride=16)

    def score_reference(self, number: int, kept: np.ndarray) -> Scores:
        return self.score(kept)


@pytest.mark.slow
def test_a_method_without_a_network_takes_part(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = f"{__name__}:Darkness"
    monkeypatch.setitem(METHODS_KNOWN, "darkness", Method("darkness", target, "", "", ""))
    # The backbone is for others.
    sets = {"power": [1.0, 2.0], "aggregate": ["max", "mean"]}
    work = plan(dataset, methods=("darkness",), shots=(0, 2), seeds=1, sets=sets)
    outcome = Runner(work, Store(tmp_path)).run()
    assert (outcome.finished, outcome.failed, outcome.computed) == (8, [], 0)
    cells, _ = read_runs(tmp_path)
    assert all(cell.run["backbone"] is None for cell in cells)
    assert {cell.untrained for cell in cells} == {""}
    scores = cell_of(cells, shots=2, power=1.0, aggregate="max").scores["score"]
    squared = cell_of(cells, shots=0, power=2.0, aggregate="max").scores["score"]
    np.testing.assert_allclose(squared, np.square(scores), rtol=1e-6)

    model = tmp_path / "dark.offn"
    Darkness().fit([dataset.train("fabric")[0].image]).save(model)
    [found] = evaluate_detector(load(model), model, dataset, tmp_path / "evaluated")
    assert (found.good, found.defective) == (3, len(scores) - 3)
    [cell] = read_runs(tmp_path / "evaluated")[0]
    assert cell.settings["options"]["power"] == 1.0


RUN = """
import os, signal, sys, time
from pathlib import Path
import torch
from offnominal.benchmark.evaluate import evaluate_detector
from offnominal.benchmark.plan import Request, make_plan
from offnominal.benchmark.runner import Outcome, Runner
from offnominal.benchmark.store import Store
from offnominal.datasets import open_dataset
torch.set_num_threads(1)
request = Request(shots=(1, 2), seeds=3, backbones=("builtin",), sets={"rotations": ["none"]})
work = make_plan([open_dataset(Path(sys.argv[1]))], request)

def start(pipe):
    def tell(cell, figures):
        os.write(pipe, (cell.name + "\\n").encode())
    child = os.fork()
    if not child:
        outcome = Runner(work, Store(Path(sys.argv[2]))).run(finished=tell)
        os._exit(bool(outcome.failed))
    return child

# The first is killed in the middle, without a chance to clean up.
reading, writing = os.pipe()
doomed = start(writing)
os.read(reading, 1)
time.sleep(0.1)
os.kill(doomed, signal.SIGKILL)
os.waitpid(doomed, 0)
racers = [start(1), start(1)]
sys.exit(any(os.waitpid(racer, 0)[1] for racer in racers))
"""


@pytest.mark.slow
def test_processes_share_a_folder_and_a_killed_one_leaves_nothing_half_done(
    parts: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-c", RUN, str(parts / "fabric"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    run = done.stdout.splitlines()
    assert len(run) == len(set(run))  # no cell was run twice
    cells, _ = read_runs(tmp_path)
    assert len(cells) == 6
    assert {cell.name for cell in cells} >= set(run)
    # Nobody waits for the dead one: what it was at is run by another.
    assert not list(tmp_path.glob("claims/*"))
    for cell in cells:
        assert len(cell.scores["score"]) == len(cell.patch_scores())


@pytest.mark.slow
def test_what_was_changed_since_is_run_anew_and_named(dataset: Dataset, tmp_path: Path) -> None:
    root = tmp_path / "parts"
    shutil.copytree(dataset.root, root)

    def run() -> tuple[Outcome, str]:
        work = plan(open_dataset(root, categories=["fabric"]), shots=(2,), seeds=1, sets={})
        store = Store(tmp_path / "runs")
        [(place, contents)] = work.contents.items()
        return Runner(work, store).run(), store.note(*place, contents)

    first, nothing = run()
    assert (first.finished, nothing, run()[0].before) == (1, "", 1)
    # Another picture of the same name, size and time.
    one, two = sorted((root / "fabric" / "test" / "good").iterdir())[:2]
    before = one.stat()
    one.write_bytes(two.read_bytes()[: before.st_size].ljust(before.st_size, b"\0"))
    os.utime(one, ns=(before.st_atime_ns, before.st_mtime_ns))
    again, told = run()
    assert (again.finished, again.before) == (1, 0)
    assert told.startswith("1 files are not as they were")
    assert one.name in told


@pytest.mark.slow
def test_a_cell_that_is_not_as_it_was_written_is_refused_and_run_anew(
    dataset: Dataset, tmp_path: Path
) -> None:
    work = plan(dataset, shots=(2,), seeds=1, sets={"rotations": ["none"]})
    Runner(work, Store(tmp_path)).run()
    [cell] = read_runs(tmp_path)[0]
    for name in ("metrics.json", "scores.parquet", "patch_scores.npz"):
        damaged = cell.folder / name
        whole = damaged.read_bytes()
        damaged.write_bytes(whole[:-3] + b"!" + whole[-2:])
        with pytest.raises(DatasetError, match=rf"{name}: damaged.*sha256sums.*delete"):
            _ = [(each.scores, each.patch_scores()) for each in read_runs(tmp_path)[0]]
        assert Runner(work, Store(tmp_path)).run().finished == 1
        [again] = read_runs(tmp_path)[0]
        assert again.scores["score"] == cell.scores["score"]


@pytest.mark.slow
def test_a_picture_changed_during_the_run_fails_its_cell(dataset: Dataset, tmp_path: Path) -> None:
    shutil.copytree(dataset.root, tmp_path / "parts")
    work = plan(open_dataset(tmp_path / "parts", categories=["fabric"]), shots=(2,), seeds=1)
    victim = next((tmp_path / "parts" / "fabric" / "train" / "good").iterdir())
    victim.touch()  # another time, the same picture
    assert Runner(work, Store(tmp_path / "runs")).run().failed == []
    shutil.rmtree(tmp_path / "runs")
    victim.write_bytes(victim.read_bytes() + b" ")
    outcome = Runner(work, Store(tmp_path / "runs")).run()
    assert len(outcome.failed) == len(AGGREGATES)
    assert all(f"{victim}: changed during the run" in line for line in outcome.failed)


def test_an_empty_or_damaged_folder_is_named(tmp_path: Path, runs: Path) -> None:
    with pytest.raises(DatasetError, match="no finished cell"):
        read_runs(tmp_path)
    broken = tmp_path / "cells" / "one"
    broken.mkdir(parents=True)
    (broken / "settings.json").write_text("{")
    with pytest.raises(DatasetError, match=r"settings\.json"):
        read_runs(tmp_path)


def test_trained_methods_are_timed_and_reported(dataset: Dataset, tmp_path: Path) -> None:
    """Whether they have a network or not; what is frozen they keep by themselves."""
    work = plan(
        dataset,
        methods=("simplenet", "autoencoder"),
        shots=(None,),
        seeds=1,
        sets={"steps": [2], "resolution": [32]},
    )
    outcome = Runner(work, Store(tmp_path), FeatureCache(tmp_path / "cache", 10**9)).run()
    assert (outcome.finished, outcome.failed) == (2, [])
    cells, _ = read_runs(tmp_path)
    for cell in cells:
        assert cell.run["timings"]["fit"] > 0
        assert cell.run["threshold"]["kind"] == "conformal"
    table = overview("", gather(cells), ["method"], [])
    assert {"Fit time", "Image time"} <= set(table.columns)
