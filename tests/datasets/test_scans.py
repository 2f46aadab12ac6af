"""Data sets of scans: what the layouts hold, what checking says, and prepared copies."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from tests.cli.conftest import offnominal
from tests.datasets.pictures import mask
from tests.scans import written

from offnominal.datasets import Sample, open_dataset, sample_mask
from offnominal.datasets.check import check
from offnominal.datasets.contents import read_contents
from offnominal.errors import DatasetError
from offnominal.scans.files import read_scan


def of(samples: tuple[Sample, ...]) -> Counter[tuple[str, str, int, bool]]:
    return Counter((s.split, s.defect, s.label, s.mask is not None) for s in samples)


def test_mvtec_3d(tmp_path: Path) -> None:
    written.mvtec3d(tmp_path)
    dataset = open_dataset(tmp_path)
    assert (dataset.layout, dataset.categories, dataset.notes) == ("mvtec", ("plate",), ())
    assert open_dataset(tmp_path, "mvtec3d").samples == dataset.samples
    assert of(dataset.samples) == {
        ("train", "good", 0, False): 3,
        ("test", "good", 0, False): 1,
        ("test", "dent", 1, True): 1,
    }
    [bad] = [s for s in dataset.samples if s.label]
    assert bad.image == tmp_path / "plate/test/dent/xyz/000.tiff"
    marked = sample_mask(bad, (24, 30))
    assert marked is not None
    assert marked.sum() == 16
    before = read_contents(dataset.samples, tmp_path)
    assert {Path(name).parent.name for name in before.files} == {"xyz", "rgb", "gt"}
    written.picture(tmp_path / "plate/train/good/rgb/001.png", written.colours(99, (24, 30)))
    assert before.unlike(read_contents(dataset.samples, tmp_path).files)


def test_depth_pictures_in_mvtec_layout(tmp_path: Path) -> None:
    written.camera(tmp_path / "cup", colour="../rgb")
    for place in ("train/good", "test/good", "test/dent"):
        written.depth(tmp_path / "cup" / place / "depth/0.png")
        written.picture(tmp_path / "cup" / place / "rgb/0.png", written.colours(0, (24, 30)))
    mask(tmp_path, "cup/ground_truth/dent/0_mask.png", size=(24, 30))
    dataset = open_dataset(tmp_path / "cup")
    assert [s.image.parent.name for s in dataset.samples] == ["depth"] * 3
    assert of(dataset.samples)["test", "dent", 1, True] == 1
    assert read_scan(dataset.samples[0].image).colour is not None


def test_eyecandies(tmp_path: Path) -> None:
    written.eyecandies(tmp_path)
    dataset = open_dataset(tmp_path)
    assert (dataset.layout, dataset.categories) == ("eyecandies", ("Confetto",))
    counts = of(dataset.samples)
    assert counts == {
        ("train", "good", 0, False): 2,
        ("validation", "good", 0, False): 1,
        ("test", "good", 0, False): 1,
        ("test", "dents", 1, True): 1,
    }
    home = tmp_path / "Confetto/test_public/data"
    for metadata in home.glob("*_metadata.yaml"):
        metadata.unlink()
    assert of(open_dataset(tmp_path / "Confetto").samples) == counts  # by the masks
    (home / "00_mask.png").unlink()
    with pytest.raises(DatasetError, match=r"00_metadata\.yaml nor a mask"):
        open_dataset(tmp_path)


def test_real3d(tmp_path: Path) -> None:
    written.real3d(tmp_path)
    dataset = open_dataset(tmp_path)
    assert (dataset.layout, dataset.categories) == ("clouds", ("fish",))
    assert of(dataset.samples) == {
        ("train", "good", 0, False): 4,
        ("test", "good", 0, False): 1,
        ("test", "bulge", 1, True): 1,
    }
    [bad] = [s for s in dataset.samples if s.label]
    truth = sample_mask(bad, (1, 300))
    assert truth is not None
    assert (truth[0] == (written.cloud(11)[:, 0] > 0.005)).all()
    # In another order, with commas, as of another tool.
    assert bad.mask is not None
    rows = np.loadtxt(bad.mask)[::-1]
    np.savetxt(bad.mask, rows, delimiter=",")
    again = sample_mask(bad, (1, 300))
    assert (again == truth).all()
    np.savetxt(bad.mask, rows + np.array([0, 0, 9, 0]))
    with pytest.raises(DatasetError, match="other points"):
        sample_mask(bad, (1, 300))
    np.savetxt(bad.mask, rows)
    with pytest.raises(DatasetError, match="labels"):
        sample_mask(bad, (1, 299))


def test_anomaly_shapenet(tmp_path: Path) -> None:
    home = tmp_path / "ashtray0"
    for place in ("train/ashtray0_template0", "test/ashtray0_positive3", "test/ashtray0_bulge1"):
        written.pcd(home / f"{place}.pcd", written.cloud())
    (home / "GT").mkdir()
    table = np.column_stack([written.cloud(), np.ones(300)])
    np.savetxt(home / "GT/ashtray0_bulge1.txt", table, delimiter=",")
    kinds = {(s.split, s.defect, s.mask is not None) for s in open_dataset(tmp_path).samples}
    assert kinds == {("train", "good", False), ("test", "good", False), ("test", "bulge", True)}


def findings(root: Path) -> dict[str, tuple[str, ...]]:
    report = check(open_dataset(root), workers=1)
    return {f"{finding.severity} {finding.what}": finding.examples for finding in report.findings}


def test_nothing_odd(tmp_path: Path) -> None:
    written.mvtec3d(tmp_path)
    assert findings(tmp_path) == {}
    written.real3d(tmp_path / "clouds")
    assert findings(tmp_path / "clouds") == {}


def test_checks_of_scans(tmp_path: Path) -> None:
    written.mvtec3d(tmp_path)
    home = tmp_path / "plate/train/good/xyz"
    holed = written.plate(20)
    holed[:6] = 0
    one = np.zeros((24, 30, 3), np.float32)
    one[3, 3] = 1
    for name, points in {
        "millimetres": 1000 * written.plate(21),
        "upside-down": written.plate(22) * np.float32([1, -1, 1]),
        "behind": written.plate(23) * np.float32([1, 1, -1]),
        "holed": holed,
        "one": one,
        "none": np.zeros_like(one),
    }.items():
        written.xyz(home / f"{name}.tiff", points)
    (home / "short.tiff").write_bytes((home / "000.tiff").read_bytes()[:-500])
    found = findings(tmp_path)
    where = "plate/train/good/xyz"
    unreadable = found.pop("error images that cannot be read")
    assert [Path(text.partition(": ")[0]).stem for text in unreadable] == ["none", "one", "short"]
    [mixed] = found.pop("error scans in another unit than others of their category")
    assert mixed.startswith(f"{where}/millimetres.tiff (neighbours 1 apart, others 0.001")
    turned = found.pop("error scans whose axes run another way than in others of their category")
    assert turned == (f"{where}/behind.tiff (z)", f"{where}/upside-down.tiff (y)")
    [missing] = [found.pop(name) for name in list(found) if "missing points" in name]
    assert missing == (f"{where}/holed.tiff (most: 25.0%)",)
    assert found == {}


def test_sets_that_are_odd_throughout(tmp_path: Path) -> None:
    for case, factor, told in (
        ("mm", (1000, 1000, 1000), "warning scans that are hardly in metres"),
        ("back", (1, -1, -1), "warning scans behind the camera, with negative z"),
        ("up", (1, -1, 1), "warning scans that are mirrored: x to the right, y up and z away, or "
         "the like"),
    ):  # fmt: skip
        written.mvtec3d(tmp_path / case)
        for file in (tmp_path / case).rglob("*.tiff"):
            points = read_scan(file).points
            written.xyz(file, points * np.float32(factor))
        assert list(findings(tmp_path / case)) == [told]


def test_prepared_copies(tmp_path: Path) -> None:
    source, out = tmp_path / "set", tmp_path / "ready"
    written.mvtec3d(source)
    done = offnominal("datasets", "prepare", source, out, "--size", 50)
    assert done.returncode == 0, done.stderr
    assert "5 scans" in done.stderr
    dataset = open_dataset(out)
    assert of(dataset.samples) == of(open_dataset(source).samples)
    [bad] = [s for s in dataset.samples if s.label]
    scan = read_scan(bad.image)
    assert scan.points.shape == (50, 50, 3)  # a square of 100, halved
    assert 0 < scan.measured.sum() < 60  # the part alone
    assert scan.colour is not None
    marked = sample_mask(bad, (50, 50))
    assert marked is not None
    assert marked.sum() == 4
    before = {path: path.read_bytes() for path in out.rglob("*.*")}
    lost = out / "plate/train/good/xyz/001.tiff"
    lost.unlink()
    assert offnominal("datasets", "prepare", source, out, "--size", 50).returncode == 0
    assert {path: path.read_bytes() for path in out.rglob("*.*")} == before
    for words, told in (
        ((source, out), "other options"),
        ((source, source / "in"), "lies in"),
        ((source, tmp_path / "plain"), "holds no prepared.json"),
        ((tmp_path / "plain", tmp_path / "new"), "holds no scans"),
    ):
        written.picture(tmp_path / "plain/0.png", written.colours(0, (16, 16)))
        done = offnominal("datasets", "prepare", *words)
        assert done.returncode == 2
        assert told in done.stderr


def test_prepared_folders_and_units(tmp_path: Path) -> None:
    for number in range(2):
        written.xyz(tmp_path / f"lot/xyz/{number}.tiff", 1000 * written.plate(number))
    (tmp_path / "lot/xyz/2.tiff").write_bytes((tmp_path / "lot/xyz/1.tiff").read_bytes()[:-900])
    words = ("--no-plane", "--no-largest", "--unit", "mm")
    done = offnominal("datasets", "prepare", tmp_path / "lot", tmp_path / "out", *words)
    assert done.returncode == 3
    assert "2.tiff" in done.stderr
    assert "2 scans" in done.stderr
    scan = read_scan(tmp_path / "out/xyz/1.tiff")
    assert np.allclose(scan.points, written.plate(1), rtol=1e-6)


def test_prepared_clouds(tmp_path: Path) -> None:
    written.real3d(tmp_path / "set")
    source, out = tmp_path / "set", tmp_path / "out"
    bad = source / "fish/test/11_bulge_cut.pcd"
    points = np.concatenate([written.cloud(11, 900), written.cloud(3, 9) + np.float32(0.2)])
    written.pcd(bad, points, "binary_compressed")
    label = np.r_[(points[:900, 0] > 0.005), np.ones(9, bool)]
    table = np.column_stack([points, label])
    np.savetxt(source / "fish/gt/11_bulge_cut.txt", table, fmt=("%.9g", "%.9g", "%.9g", "%d"))
    refused = offnominal("datasets", "prepare", source, out)
    assert (refused.returncode, "--no-plane" in refused.stderr) == (2, True)
    done = offnominal("datasets", "prepare", source, out, "--no-plane")
    assert done.returncode == 0, done.stderr
    dataset = open_dataset(out)
    assert (dataset.layout, of(dataset.samples)) == ("clouds", of(open_dataset(source).samples))
    [sample] = [s for s in dataset.samples if s.label]
    assert (read_scan(sample.image).points[0] == points[:900]).all()
    truth = sample_mask(sample, (1, 900))
    assert truth is not None
    assert (truth[0] == label[:900]).all()
