"""Scans gone wrong, and what lies beside them: read as they are, or refused in a line."""

import logging
from pathlib import Path

import numpy as np
import pytest
from tests.fuzz.mutate import attack, json_mutations, mutations
from tests.scans import written

from offnominal.datasets import Sample, sample_mask
from offnominal.datasets.check import check
from offnominal.datasets.dataset import Dataset
from offnominal.scans.files import read_scan
from offnominal.scans.places import is_scan_file

pytestmark = pytest.mark.filterwarnings("ignore")  # of what is then refused or passed over


@pytest.fixture(autouse=True)
def _quiet() -> None:
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)


@pytest.mark.parametrize("form", ["ascii", "binary_little_endian"])
def test_ply(tmp_path: Path, form: str) -> None:
    file = tmp_path / "a.ply"
    file.write_bytes(written.ply(written.cloud(count=40), form))
    attack(file, lambda: read_scan(file), mutations)


@pytest.mark.parametrize("how", ["ascii", "binary", "binary_compressed"])
def test_pcd(tmp_path: Path, how: str) -> None:
    file = tmp_path / "a.pcd"
    written.pcd(file, written.cloud(count=40), how, written.colours(0, (40,)))
    attack(file, lambda: read_scan(file), mutations)


def test_text(tmp_path: Path) -> None:
    file = tmp_path / "a.xyz"
    np.savetxt(file, np.column_stack([written.cloud(count=40), written.colours(0, (40,))]))
    attack(file, lambda: read_scan(file), mutations)


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_tiff(tmp_path: Path, compression: str | None) -> None:
    file = tmp_path / "xyz/0.tiff"
    written.xyz(file, written.plate(size=(12, 12)), compression=compression)
    attack(file, lambda: (is_scan_file(file), read_scan(file)), mutations)


def test_depth_pictures_and_their_camera(tmp_path: Path) -> None:
    camera, file = written.camera(tmp_path, colour="../rgb"), tmp_path / "depth/0.png"
    written.depth(file, size=(12, 12))
    written.picture(tmp_path / "rgb/0.png", written.colours(0, (12, 12)))
    for victim, ways in (
        (camera, (mutations, json_mutations)),
        (file, (mutations,)),
        (tmp_path / "rgb/0.png", (mutations,)),
    ):
        attack(victim, lambda: read_scan(file), *ways, count=60)


def test_bounds_of_eyecandies(tmp_path: Path) -> None:
    written.eyecandies(tmp_path)
    file = tmp_path / "Confetto/train/data/000_depth.png"
    attack(file.with_name("000_info_depth.yaml"), lambda: read_scan(file), mutations)


def test_truth_of_clouds(tmp_path: Path) -> None:
    written.real3d(tmp_path)
    home = tmp_path / "fish"
    sample = Sample(
        home / "test/11_bulge_cut.pcd", 1, home / "gt/11_bulge_cut.txt", "b", "f", "test"
    )
    assert sample.mask is not None
    attack(sample.mask, lambda: sample_mask(sample, (1, 300)), mutations, count=60)


def test_checks(tmp_path: Path) -> None:
    file = tmp_path / "xyz/0.tiff"
    written.xyz(file, written.plate(size=(12, 12)))
    samples = (Sample(file, 0, None, "good", "a", "train"),)
    dataset = Dataset("a", tmp_path, "mvtec", samples)
    attack(file, lambda: check(dataset, workers=1), mutations, count=60)
