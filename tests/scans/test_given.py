"""Scans that are given to detectors from Python, and those that a detector cannot take."""

import numpy as np
import pytest
from tests.looks_of_scans import sheet

from offnominal.detectors.distribution.padim import PaDiM
from offnominal.detectors.distribution.subspacead import SubspaceAD
from offnominal.detectors.memory_bank.anomalydino import AnomalyDINO
from offnominal.detectors.reconstruction.draem import DRAEM
from offnominal.errors import ImageError, OptionError
from offnominal.export.model import export_model
from offnominal.filekinds import what_is
from offnominal.images import read_picture
from offnominal.labels.alike import groups_of, thumbnail
from offnominal.rotations import rotate_image
from offnominal.scans.scan import Scan


@pytest.mark.parametrize("value", [0, np.inf])
def test_what_is_missing_is_nan_however_it_was_given(value):
    scan = sheet(0, size=16, missing=0.1)
    given = np.where(np.isfinite(scan.points), scan.points, np.float32(value))
    read = read_picture(Scan(given, scan.colour), modality="scan")
    assert scan.missing > 5
    np.testing.assert_array_equal(read.points, scan.points)


def test_a_point_that_lacks_one_coordinate_is_missing():
    scan = sheet(0, size=16, missing=0)
    scan.points[3, 4, 0] = np.nan
    read = read_picture(scan, modality="scan")
    assert np.isnan(read.points[3, 4]).all()
    assert np.isnan(read.points[..., 2]).sum() == 1


@pytest.mark.parametrize("colour", [300, -1, np.nan])
def test_an_array_whose_colours_are_none_is_refused(colour):
    array = sheet(0, size=16).as_array()
    array[5, 5, 1] = colour
    with pytest.raises(ImageError, match="from 0 to 255"):
        read_picture(array, modality="scan")


def test_arrays_that_are_no_scans_are_told_what_one_is():
    points = sheet(0, size=16).points
    for array in (points, np.zeros((16, 16, 6))):
        with pytest.raises(ImageError, match=r"float32 \(H, W, 6\)"):
            read_picture(array, modality="scan")
    with pytest.raises(ImageError, match="no points"):
        read_picture(np.zeros((0, 0, 6), np.float32), modality="scan")
    with pytest.raises(OptionError, match="uint8"):
        Scan(points, points)


def test_joined_networks_of_pictures_take_no_scan_without_colour():
    detector = PaDiM(backbone="builtin+fpfh")
    scan = sheet(0, size=16, missing=0)
    with pytest.raises(ImageError, match=r"plate\.tiff: has no colour, and builtin"):
        detector.taken(read_picture(Scan(scan.points), modality="scan"), "plate.tiff")
    cloud = Scan(scan.points.reshape(1, -1, 3), scan.colour.reshape(1, -1, 3))
    with pytest.raises(ImageError, match="cloud without a grid, and builtin"):
        detector.taken(read_picture(cloud, modality="scan"), "plate.ply")
    picture = read_picture(scan, modality="scan")
    assert detector.taken(picture, "plate.tiff") is picture


def test_a_scan_of_the_other_kind_is_left_out_and_the_others_go_on():
    detector = PaDiM(backbone="fpfh")
    scan = sheet(0, size=16, missing=0)
    cloud = Scan(scan.points.reshape(1, -1, 3))
    bad = []
    read = [shape for _, shape in detector.read([cloud, scan, cloud], bad.append)]
    assert [len(one) for one in read] == [1, 1]
    assert [error.reason.split(",")[0] for error in bad] == ["is a scan on a grid"]


def test_the_mask_of_a_scan_is_drawn_on_what_it_is_shown_by():
    scans = [sheet(seed, size=32) for seed in range(2)]
    detector = AnomalyDINO(backbone="fpfh", resolution=32, rotations="none").fit(scans)
    picture = detector.foreground_picture(detector.image_of(scans[0]))
    assert picture.dtype == np.uint8
    assert picture.shape[2] == 3


@pytest.mark.parametrize("name", ["a.ply", "a.PCD", "a.xyz"])
def test_a_cloud_written_as_text_may_be_named(name, tmp_path):
    (tmp_path / name).write_text("0 0 1\n")
    assert what_is(tmp_path / name) == ""


def test_padim_says_that_clouds_have_no_positions():
    clouds = [Scan(sheet(seed, size=16, missing=0).points.reshape(1, -1, 3)) for seed in range(2)]
    with pytest.raises(OptionError, match="clouds without a grid"):
        PaDiM(backbone="fpfh").fit(clouds)


def test_subspacead_turns_scans():
    scans = [sheet(seed, size=32) for seed in range(2)]
    detector = SubspaceAD(backbone="fpfh", resolution=32, rotations="0,90").fit(scans)
    assert np.isfinite(detector.predict(scans)[0].score)


def test_a_cloud_is_not_turned_on_a_grid():
    cloud = Scan(sheet(0, size=16, missing=0).points.reshape(1, -1, 3)).as_array()
    assert rotate_image(cloud, 45) is cloud


def test_methods_without_a_backbone_see_no_points():
    with pytest.raises(OptionError, match="draem looks at pictures"):
        DRAEM(modality="scan")


def test_scans_of_defects_are_compared_by_what_they_are_shown_by():
    first, other = (sheet(seed, size=32).as_array() for seed in range(2))
    assert groups_of([thumbnail(one) for one in (first, other, first)])[2] == 0
    assert thumbnail(Scan(first[None, ..., 3:].reshape(1, -1, 3)).as_array()).shape == (64, 64)


def test_what_looks_at_points_is_not_exported(tmp_path):
    scans = [sheet(seed, size=32) for seed in range(2)]
    detector = PaDiM(backbone="fpfh", resolution=32).fit(scans)
    with pytest.raises(OptionError, match="looks at points"):
        export_model(detector, tmp_path / "a.offx")
