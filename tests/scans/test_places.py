"""Where scans lie, a search finds their points, and nothing twice."""

from pathlib import Path

import numpy as np
from tests.scans import written

from offnominal import find_images
from offnominal.paths import MARK
from offnominal.scans.files import colour_of


def names(found: list[Path], root: Path) -> list[str]:
    return [path.relative_to(root).as_posix() for path in found]


def test_mvtec_3d(tmp_path: Path) -> None:
    written.mvtec3d(tmp_path)
    good = tmp_path / "plate/train/good"
    assert names(find_images(good), good) == ["xyz/000.tiff", "xyz/001.tiff", "xyz/002.tiff"]
    assert len(find_images(tmp_path)) == 5
    assert len(find_images(good / "rgb")) == 3  # who names the colours gets them
    assert len(find_images(good / "xyz")) == 3


def test_a_folder_called_xyz_of_pictures(tmp_path: Path) -> None:
    for place in ("xyz", "rgb"):
        written.picture(tmp_path / place / "0.tiff", written.colours(0, (16, 16)))
    assert len(find_images(tmp_path)) == 2


def test_eyecandies(tmp_path: Path) -> None:
    written.eyecandies(tmp_path)
    home = tmp_path / "Confetto/train/data"
    assert names(find_images(home), home) == ["000_depth.png", "001_depth.png"]
    assert len(find_images(tmp_path)) == 5


def test_depth_pictures(tmp_path: Path) -> None:
    # Beside the colours, in a folder above them, and among them.
    for case, (depths, rgb, where, said) in enumerate(
        [("depth", "rgb", "", "../rgb"), ("d", "c", "d", "../c"), ("", "rgb", "", "rgb")]
    ):
        root = tmp_path / str(case)
        written.camera(root / where, colour=said)
        written.depth(root / depths / "0.png")
        written.picture(root / rgb / "0.png", written.colours(0, (24, 30)))
        found = find_images(root)
        assert found == [root / depths / "0.png"]
        beside = colour_of(found[0])
        assert beside is not None
        assert beside.resolve() == (root / rgb / "0.png").resolve()
        assert find_images(root / rgb) == [root / rgb / "0.png"]


def test_clouds_count_and_those_of_results_do_not(tmp_path: Path) -> None:
    points = written.cloud()
    (tmp_path / "a.ply").write_bytes(written.ply(points, "ascii"))
    own = written.ply(points, "ascii").replace(b"comment made", f"comment {MARK}".encode())
    (tmp_path / "b.PLY").write_bytes(own)
    written.pcd(tmp_path / "c.pcd", points)
    np.savetxt(tmp_path / "d.xyz", points)
    (tmp_path / "e.txt").write_text("1 2 3")
    assert names(find_images(tmp_path), tmp_path) == ["a.ply", "c.pcd", "d.xyz"]
