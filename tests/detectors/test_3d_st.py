"""3D-ST by its parts: distances, neighbours, receptive fields, invariances; a bump is found."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.looks_of_scans import BUMP, sheet
from typer.testing import CliRunner

from offnominal import load
from offnominal.cli import app
from offnominal.detectors.teacher_student.made_clouds import SOLIDS, make_cloud
from offnominal.detectors.teacher_student.point_networks import (
    PointNetwork,
    chamfer,
    farthest,
    graph_of,
    receptive_field,
    spacing,
)
from offnominal.detectors.teacher_student.point_teacher import (
    PointTeacherRecipe,
    read_point_teacher,
    teach_points,
)
from offnominal.detectors.teacher_student.points import PointStudent
from offnominal.errors import ModelFileError, OptionError
from offnominal.scans.scan import Scan


@pytest.fixture(scope="module")
def cloud() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(120, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    recipe = PointTeacherRecipe(16, 1, 6, points=100, clouds=2, decoded=16, steps=10, lr=3e-3)
    return teach_points(tmp_path_factory.mktemp("teacher") / "teacher.safetensors", recipe)


def test_chamfer_distance_by_its_definition(cloud: np.ndarray) -> None:
    one, other = torch.from_numpy(cloud[:50]), torch.from_numpy(cloud[50:])
    apart = (one[:, None] - other[None]).square().sum(2)
    wanted = apart.amin(1).mean() + apart.amin(0).mean()
    assert chamfer(one, other).item() == pytest.approx(wanted.item(), rel=1e-4)
    assert chamfer(one, one).item() == pytest.approx(0, abs=1e-5)


def test_neighbours_and_receptive_fields(cloud: np.ndarray) -> None:
    line = np.stack([np.arange(20.0), np.zeros(20), np.zeros(20)], axis=1).astype(np.float32)
    graph = torch.from_numpy(graph_of(line, 2))
    assert sorted(graph[10].tolist()) == [9, 11], "not the point itself"
    assert receptive_field(graph, 10, 3).tolist() == [7, 8, 9, 10, 11, 12, 13]
    assert spacing(torch.from_numpy(line), graph).item() == pytest.approx((18 * 1 + 2 * 1.5) / 20)
    # What a network says of a point depends on the points of its receptive field, and no others.
    points, near = torch.from_numpy(cloud), torch.from_numpy(graph_of(cloud, 5))
    torch.manual_seed(0)
    network = PointNetwork(16, blocks=1)
    field = receptive_field(near, 7, 2)
    points.requires_grad_(True)
    network(points, near)[7].sum().backward()
    assert points.grad is not None
    assert points.grad.abs().sum(1).nonzero()[:, 0].tolist() == sorted(field.tolist())


def test_descriptors_know_neither_the_place_nor_the_order(cloud: np.ndarray) -> None:
    torch.manual_seed(0)
    network = PointNetwork(16, blocks=2)
    plain = network(torch.from_numpy(cloud), torch.from_numpy(graph_of(cloud, 6)))
    order = np.random.default_rng(1).permutation(len(cloud))
    moved = cloud[order] + np.float32(2)
    found = network(torch.from_numpy(moved), torch.from_numpy(graph_of(moved, 6)))
    torch.testing.assert_close(found, plain[order], atol=1e-4, rtol=1e-4)


def test_farthest_points_cover_evenly() -> None:
    rng = np.random.default_rng(0)
    points = np.concatenate(
        [rng.uniform(0, 1, (400, 3)) * (1, 1, 0), rng.uniform(0, 0.1, (400, 3))]
    )
    chosen = points[farthest(points.astype(np.float32), 200, seed=0)]
    assert len(np.unique(chosen, axis=0)) == 200
    assert (chosen[:, :2].max(1) < 0.1).mean() < 0.2, "half of all points lie there"


@pytest.mark.parametrize("solid", SOLIDS)
def test_solids_and_clouds(solid: str) -> None:
    assert np.isfinite(SOLIDS[solid](np.random.default_rng(0), 50)).all()
    cloud = make_cloud(np.random.default_rng(3), 100)
    assert cloud.shape == (100, 3)
    assert np.array_equal(cloud, make_cloud(np.random.default_rng(3), 100))
    assert np.abs(cloud).max() < 4


def test_a_teacher_is_read_as_it_was_written(teacher: Path, tmp_path: Path) -> None:
    network, plan = read_point_teacher(teacher)
    assert plan == (16, 1, 6)
    assert not any(each.requires_grad for each in network.parameters())
    damaged = tmp_path / "damaged.safetensors"
    content = bytearray(teacher.read_bytes())
    content[-5] ^= 1
    damaged.write_bytes(content)
    for file in (damaged, tmp_path / "none.safetensors"):
        with pytest.raises(ModelFileError, match=file.name):
            read_point_teacher(file)


@pytest.mark.slow
def test_saved_without_its_teacher_and_asked_of_a_cloud(teacher: Path, tmp_path: Path) -> None:
    copy = tmp_path / "teacher.safetensors"
    copy.write_bytes(teacher.read_bytes())
    detector = PointStudent(teacher=str(copy), points=200, steps=60, lr_scale=5, device="cpu")
    detector.fit([sheet(seed, size=32) for seed in range(4)])
    assert detector.losses[-1]["total"] < 0.9 * detector.losses[0]["total"]
    assert detector.threshold is not None
    assert detector.threshold.kind == "conformal"
    scan = sheet(100, size=32, missing=0.1)
    [found] = detector.predict([scan])
    assert found.anomaly_map.shape == (32, 32)
    missing = np.isnan(scan.points[..., 2])
    assert not found.patch_scores[missing].any(), "missing is no defect"
    assert found.patch_scores[~missing].all()
    detector.save(tmp_path / "part.offn")
    copy.unlink()
    [again] = load(tmp_path / "part.offn", device="cpu").predict([scan])
    assert again.score == found.score
    assert np.array_equal(again.patch_scores, found.patch_scores)
    [unordered] = detector.predict([Scan(scan.points[scan.measured][None])])
    assert unordered.point_scores is not None
    assert unordered.score == found.score, "the same points in the same order"
    np.testing.assert_array_equal(unordered.point_scores[0], found.patch_scores[~missing])


def test_errors_are_held_against_those_of_points_alike(teacher: Path) -> None:
    detector = PointStudent(teacher=str(teacher), points=64, steps=1, device="cpu")
    detector.make_networks()
    detector.good_ = torch.cat([torch.zeros(8, 16), torch.ones(8, 16)])
    detector.errors_ = torch.tensor([1.0] * 8 + [5.0] * 8)
    found = detector.usual(torch.tensor([[0.1], [0.9]]).expand(2, 16))
    assert found.tolist() == pytest.approx([1 + 0.3, 5 + 0.3]), "and a tenth of the mean"
    scan = detector.sized(sheet(0, size=32).as_array())
    pixels = detector.images(scan[None], [0]).pixels([0])
    relative = detector.errors(pixels)
    detector.relative = False
    points, graph = detector.cloud(pixels[0])
    usual = detector.usual(detector.taught_of(points, graph))
    plain = detector.errors(pixels) / usual
    torch.testing.assert_close(relative, plain[graph].mean(1))


def test_a_teacher_is_made_by_command(tmp_path: Path) -> None:
    file = tmp_path / "teacher.safetensors"
    words = ["train", "3d-st-teacher", "--steps", "1", "--clouds", "1", "--points", "100"]
    words += ["--width", "8", "--blocks", "1", "--neighbours", "4", "-o", str(file)]
    told = CliRunner().invoke(app, words)
    assert told.exit_code == 0
    assert "--method 3d-st --teacher" in told.stdout
    assert read_point_teacher(file)[1] == (8, 1, 4)
    assert CliRunner().invoke(app, words).exit_code == 2, "is not written over"
    assert CliRunner().invoke(app, [*words, "--overwrite", "--data", str(tmp_path)]).exit_code == 2


@pytest.mark.slow
def test_a_bump_is_found(tmp_path: Path) -> None:
    recipe = PointTeacherRecipe(32, 2, 16, points=300, clouds=4, decoded=32, steps=60, lr=3e-3)
    file = teach_points(tmp_path / "teacher.safetensors", recipe)
    detector = PointStudent(teacher=str(file), points=800, steps=240, lr_scale=3, device="cpu")
    detector.fit([sheet(seed) for seed in range(12)])
    for seed in (100, 101):
        good, bad = detector.predict([sheet(seed), sheet(seed, bump=6e-3)])
        ratio = bad.anomaly_map / np.where(good.anomaly_map > 0, good.anomaly_map, np.nan)
        assert np.nanmean(ratio[BUMP]) > 1.3
        assert 0.8 < np.nanmedian(ratio[:12]) < 1.2, "far from the bump nothing changes"


def test_its_own_teacher_is_taught_first() -> None:
    options: dict[str, Any] = {
        "points": 64,
        "width": 8,
        "blocks": 1,
        "neighbours": 4,
        "teacher_steps": 1,
    }
    detector = PointStudent(**options, steps=1, device="cpu", hold_back=0)
    before = torch.cat([each.flatten() for each in PointNetwork(8, 1).parameters()])
    detector.fit([sheet(0), sheet(1)])
    after = torch.cat([each.flatten() for each in detector.taught.parameters()])
    assert after.shape == before.shape
    assert detector.header()["options"]["width"] == 8


def test_what_it_cannot_take_is_refused(teacher: Path) -> None:
    wrong: list[dict[str, Any]] = [{"modality": "depth"}, {"resolution": 64}, {"width": 30}]
    for options in (*wrong, {"aggregate": "max"}):
        with pytest.raises(OptionError):
            PointStudent(**options)
    few = Scan(sheet(0).points[:1, :4].copy())
    with pytest.raises(OptionError, match="a scan of"):
        PointStudent(teacher=str(teacher), steps=1, device="cpu").fit([few, few])
    with pytest.raises(OptionError, match="leave those out"):
        PointStudent(teacher=str(teacher), width=32, steps=1, device="cpu").fit(
            [sheet(0), sheet(1)]
        )
