"""What `predict` and `explain` leave of scans: clouds, both modalities, and what is missing."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.cli.conftest import offnominal, passed

from offnominal import AnomalyDINO
from offnominal.captions import layout
from offnominal.scans.files import read_scan
from offnominal.scans.synthetic import write_scans


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three good plates learned by their normals; one with material on it, and a good one."""
    root = tmp_path_factory.mktemp("scans")
    write_scans(root, 3, 1, 1, 0, 0.1, (3.0,), 64, ["plate"], ["extra"])
    model = AnomalyDINO(backbone="builtin", rotations="none", modality="normals", resolution=64)
    model.fit(root / "plate/train/good", synthetic=False).save(root / "a.offn")
    lot = ("plate/test/extra", "plate/test/good")
    words = ("-o", "results", "--save", "cloud,overlay,csv,page", "--threshold", 0.1)
    passed(offnominal("predict", "a.offn", *lot, *words, cwd=root))
    return root


def test_clouds_are_written_beside_a_page_that_links_them(results: Path) -> None:
    folder = results / "results"
    row, other = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    assert row["cloud"] == "clouds/extra/xyz/000.ply"
    before = read_scan(results / "plate/test/extra/xyz/000.tiff")
    cloud = read_scan(folder / row["cloud"])
    np.testing.assert_allclose(cloud.points[0], before.points[before.measured])
    assert row["missing_points"] == before.missing > 0
    page = (folder / "index.html").read_text()
    data = json.loads(re.findall(r'id="data">(.*?)</script>', page)[0])
    assert [part[16] for part in data["parts"]] == ["clouds/extra/xyz/000", "clouds/good/xyz/000"]
    assert [part[17] for part in data["parts"]] == [row["missing_points"], other["missing_points"]]
    assert "Of 2 scans" in page
    assert f"{before.missing:,} of 4,096" in (folder / "clouds/extra/xyz/000.html").read_text()
    header, first = (folder / "results.csv").read_text().splitlines()[:2]
    assert dict(zip(header.split(","), first.split(","), strict=True))["missing_points"] == str(
        before.missing
    )
    # Its own clouds are no parts, and another run takes them away.
    refused = offnominal("predict", "a.offn", "results", cwd=results)
    assert "no images" in refused.stderr


def test_colour_or_what_was_seen_stands_beside_the_relief(results: Path) -> None:
    picture = np.asarray(Image.open(results / "results/overlays/good/xyz/000.png"), int)
    plan = layout(64, 64)

    def middle(box: tuple[int, int, int, int]) -> np.ndarray:
        left, top, wide, high = box
        return picture[top : top + high, left : left + wide]

    seen, relief = middle(plan.image), middle(plan.heat)
    assert np.median(seen[..., 2] - seen[..., 0]) > 60, "normals are blue"
    assert np.median(relief[..., 2] - relief[..., 0]) < 10, "a relief is grey"


def test_a_picture_has_no_cloud(results: Path) -> None:
    rgb = results / "plate/train/good/rgb"
    AnomalyDINO(backbone="builtin", rotations="none").fit(rgb, synthetic=False).save(
        results / "b.offn"
    )
    done = offnominal("predict", "b.offn", rgb, "-o", "none", "--save", "cloud", cwd=results)
    assert done.returncode == 2
    assert "is a picture and has no points; leave cloud out" in done.stderr


def test_an_explanation_shows_both(results: Path) -> None:
    part = "plate/test/extra/xyz/000.tiff"
    passed(offnominal("explain", "a.offn", part, "--worst", 1, "-o", "why.png", cwd=results))
    picture = np.asarray(Image.open(results / "why.png"), int)
    left = picture[:, : picture.shape[1] // 4]
    blue = (left[..., 2] - left[..., 0] > 60).mean(1)
    paper = ((np.abs(left[..., 2] - left[..., 0]) < 30) & (left[..., 0] < 235)).mean(1)
    assert np.flatnonzero(blue > 0.5).max() < np.flatnonzero(paper > 0.3).max(), (
        "one above the other"
    )
