"""Readers of scans: what was written comes out, in metres, and damage is told."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from tests.scans import written

from offnominal.errors import ImageError, MissingExtraError, OptionError
from offnominal.scans.files import colour_of, is_scan_file, mask_of, read_scan

PLY = ("ascii", "binary_little_endian", "binary_big_endian")


@pytest.mark.parametrize(
    "how", [{}, {"compression": "zlib"}, {"byteorder": ">"}, {"bigtiff": True}]
)
def test_tiff_of_points(tmp_path: Path, how: dict[str, Any]) -> None:
    points = written.plate()
    points[2, 3], points[4, 5, 1], points[6, 7, 0] = 0, np.nan, 0
    file = tmp_path / "good/xyz/003.tiff"
    written.xyz(file, points, **how)
    written.mark(tmp_path / "good/gt/003.png")
    scan = read_scan(file)
    there = np.ones(points.shape[:2], bool)
    there[2, 3] = there[4, 5] = False  # a point on the plane x = 0 is a point
    assert (scan.measured == there).all()
    assert np.isnan(scan.points[~there]).all()
    assert (scan.points[there] == points[there]).all()
    assert scan.colour is not None
    assert scan.missing == 2
    assert is_scan_file(file)
    assert colour_of(file) == tmp_path / "good/rgb/003.png"
    assert mask_of(file) == tmp_path / "good/gt/003.png"
    assert not is_scan_file(tmp_path / "good/rgb/003.png")
    in_millimetres = read_scan(file, "mm").points[there]
    assert np.allclose(in_millimetres * 1000, points[there], rtol=1e-6)


def test_pictures_in_tiff_are_no_scans(tmp_path: Path) -> None:
    for name, pixels in (
        ("rgb.tiff", np.zeros((16, 16, 3), np.uint8)),
        ("deep.tiff", np.zeros((16, 16, 3), np.uint16)),
        ("map.tiff", np.zeros((16, 16), np.float32)),
    ):
        tifffile.imwrite(tmp_path / name, pixels)
        assert not is_scan_file(tmp_path / name)
        with pytest.raises(ImageError, match="is no scan"):
            read_scan(tmp_path / name)


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
@pytest.mark.parametrize("above", [0, 1, 3])
def test_depth_pictures(tmp_path: Path, suffix: str, above: int) -> None:
    home = tmp_path / "a/b/c/depth"
    written.camera([home, *home.parents][above], colour="../rgb")
    counts = written.depth(home / "007.png")
    if suffix == ".tiff":
        (home / "007.png").unlink()
        tifffile.imwrite(home / "007.tiff", counts.astype(np.float32))
    file = home / f"007{suffix}"
    assert is_scan_file(file)
    assert colour_of(file) is None
    written.picture(home.parent / "rgb/007.png", written.colours(1, counts.shape))
    scan = read_scan(file)
    row, column = 9, 20
    z = counts[row, column] / 1000
    wanted = ((column - 15) * z / 100, (row - 12) * z / 110, z)
    assert np.allclose(scan.points[row, column], wanted, rtol=1e-6)
    assert scan.missing == 1
    assert np.isnan(scan.points[3, 4]).all()
    assert scan.colour is not None
    assert (scan.colour == written.colours(1, counts.shape)).all()


def test_a_camera_four_folders_up_is_another_s(tmp_path: Path) -> None:
    written.camera(tmp_path)
    written.depth(tmp_path / "a/b/c/depth/0.png")
    assert not is_scan_file(tmp_path / "a/b/c/depth/0.png")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"scale": 0}, "scale"),
        ({"scale": None}, "scale"),
        ({"intrinsics": [1, 2, 3]}, "intrinsics"),
        ({"intrinsics": [1, -2, 3, 4]}, "intrinsics"),
        ({"intrinsics": [1, 2, 3, "x"]}, "intrinsics"),
        ({"colour": "/rgb"}, "colour"),
        ({"intrinsic": 1}, "intrinsic"),
    ],
)
def test_cameras_are_checked(tmp_path: Path, change: dict[str, Any], told: str) -> None:
    written.camera(tmp_path, **change)
    written.depth(tmp_path / "0.png")
    with pytest.raises(ImageError, match=rf"camera.json: .*{told}"):
        read_scan(tmp_path / "0.png")


def test_colours_of_another_size_are_refused(tmp_path: Path) -> None:
    written.camera(tmp_path, colour="../rgb")
    written.depth(tmp_path / "depth/0.png")
    written.picture(tmp_path / "rgb/0.png", written.colours(0, (24, 31)))
    with pytest.raises(ImageError, match=r"rgb.0\.png: is 31x24 pixels"):
        read_scan(tmp_path / "depth/0.png")


def test_eyecandies(tmp_path: Path) -> None:
    written.eyecandies(tmp_path)
    file = tmp_path / "Confetto/test_public/data/01_depth.png"
    levels = np.random.default_rng(3).integers(0, 65536, (16, 16))
    scan = read_scan(file)
    z = levels / 65535 * 2 + 0.5
    assert np.allclose(scan.points[..., 2], z, atol=1e-6)
    assert np.allclose(scan.points[5, 11, :2], (3 * z[5, 11] / 711.11, -3 * z[5, 11] / 711.11))
    assert colour_of(file) == file.with_name("01_image_5.png")
    assert mask_of(file) == file.with_name("01_mask.png")
    assert [is_scan_file(path) for path in sorted(file.parent.glob("01_*.png"))].count(True) == 1
    file.with_name("01_info_depth.yaml").write_text("normalization: {min: 2, max: 1}")
    with pytest.raises(ImageError, match=r"01_info_depth\.yaml: says a depth from"):
        read_scan(file)


@pytest.mark.parametrize("form", PLY)
def test_ply(tmp_path: Path, form: str) -> None:
    points = written.cloud()
    points[7] = 0
    (tmp_path / "a.ply").write_bytes(written.ply(points, form))
    scan = read_scan(tmp_path / "a.ply")
    kept = np.delete(np.arange(len(points)), 7)
    assert scan.points.shape == (1, len(points) - 1, 3)
    assert (scan.points[0] == points[kept]).all()
    assert scan.colour is not None
    assert (scan.colour[0] == np.column_stack([0 * kept + 10, kept % 256, 0 * kept + 30])).all()
    assert is_scan_file(tmp_path / "a.ply")
    assert mask_of(tmp_path / "a.ply") is None


@pytest.mark.parametrize("how", ["ascii", "binary", "binary_compressed"])
@pytest.mark.parametrize("grid", [True, False])
def test_pcd(tmp_path: Path, how: str, grid: bool) -> None:
    points = written.plate() if grid else written.cloud()
    colour = written.colours(4, points.shape[:-1])  # (H, W, 3), or (N, 3)
    written.pcd(tmp_path / "a.pcd", points, how, colour)
    scan = read_scan(tmp_path / "a.pcd")
    assert scan.organised == grid
    assert np.allclose(scan.points, points if grid else points[None], rtol=1e-5)
    assert scan.colour is not None
    if how != "ascii":  # in which the writer rounds them to nothing
        assert (scan.colour == (colour if grid else colour[None])).all()


def test_colours_of_pcd_as_text(tmp_path: Path) -> None:
    points, colour = written.cloud(count=20), written.colours(2, (20,)).astype(int)
    packed = colour[:, 0] << 16 | colour[:, 1] << 8 | colour[:, 2]
    floats = packed.astype(np.uint32).view(np.float32)
    head = "# .PCD v0.7\n\nVERSION 0.7\nFIELDS x y z rgb\nSIZE 4 4 4 4\nTYPE F F F {}\n"
    head += "COUNT 1 1 1 1\nWIDTH 20\nHEIGHT 1\nVIEWPOINT 0 0 0 1 0 0 0\nPOINTS 20\nDATA ascii\n"
    for kind, column in (("U", packed), ("F", [f"{value:.9g}" for value in floats])):
        lines = [
            f"{x:.9g} {y:.9g}  {z:.9g} {c} " for (x, y, z), c in zip(points, column, strict=True)
        ]
        (tmp_path / "a.pcd").write_text(head.format(kind) + "\n".join(lines))
        scan = read_scan(tmp_path / "a.pcd")
        assert scan.colour is not None
        assert (scan.colour[0] == colour).all()


def test_text(tmp_path: Path) -> None:
    points = written.cloud(count=50)
    colour = written.colours(1, (50,))
    for number, (head, gap, columns) in enumerate(
        [
            ("", " ", points),
            ("50\n", " ", points),
            ("# x y z\n", ", ", points),
            ("x;y;z\n", ";", points),
            ("", " ", np.column_stack([points, colour])),
            ("", "\t", np.column_stack([points, points / 2])),  # normals
        ]
    ):
        file = tmp_path / f"{number}.xyz"
        lines = [gap.join(f"{value:.9g}" for value in row) for row in columns]
        file.write_text(head + "\n".join(lines) + "\n")
        scan = read_scan(file)
        assert np.allclose(scan.points[0], points, rtol=1e-6)
        assert (scan.colour is not None) == (number == 4)
    assert scan.colour is None
    assert not is_scan_file(tmp_path / "a.txt")


TEXT, LITTLE, BIG = PLY
WHOLE = written.ply(written.cloud(), LITTLE)
BAD: dict[str, list[tuple[bytes, str | None]]] = {
    "a.ply": [
        (b"", "empty"),
        (b"ply\n", "no PLY file"),
        (written.ply(written.cloud(), LITTLE, extra=False)[:-40], "truncated"),
        (written.ply(written.cloud(count=1), TEXT), "1 point;"),
        (written.ply(np.zeros((9, 3), np.float32), LITTLE), "all are missing"),
        (written.ply(np.full((9, 3), np.inf, np.float32), BIG), "all are missing"),
        (written.ply(np.ones((9, 3), np.float32), LITTLE), "in one place"),
        (WHOLE.replace(b"vertex 300", b"vertex 20000000"), "truncated"),
        (WHOLE.replace(b"vertex 300", b"vertex 99999999999"), "limit"),
        (WHOLE.replace(b"vertex 300", b"vertex 0"), "no points"),
        (WHOLE.replace(b"float z", b"float w"), "x, y and z"),
        (WHOLE.replace(b"double", b"triple"), "says nothing"),
        (written.ply(written.cloud(), TEXT).replace(b"vertex 300", b"vertex 290"), None),
        (written.ply(written.cloud(), TEXT).replace(b"vertex 300", b"vertex 301"), "no table"),
        (written.ply(written.cloud(), TEXT).replace(b"vertex 300", b"vertex 9000"), "truncated"),
    ],
    "a.xyz": [
        (b"\n\n", "no points"),
        (b"1 2 3\n", "1 point;"),
        (b"1 2\n3 4\n", "2 numbers a line"),
        (b"1 2 3\n4 5\n", "no table"),
        (b"what is\nthis file\n", "no table"),
        (b"1 2 3\0\0\n", "no text"),
        (b"nan nan nan\n" * 9, "all are missing"),
    ],
}


@pytest.mark.parametrize(
    ("name", "data", "told"), [(name, *case) for name, cases in BAD.items() for case in cases]
)
def test_damage_is_told(tmp_path: Path, name: str, data: bytes, told: str | None) -> None:
    file = tmp_path / name
    file.write_bytes(data)
    if told is None:
        read_scan(file)
        return
    with pytest.raises(ImageError, match=told) as caught:
        read_scan(file)
    assert str(caught.value).startswith(str(file))


@pytest.mark.parametrize("how", ["ascii", "binary", "binary_compressed"])
def test_damaged_pcd(tmp_path: Path, how: str) -> None:
    file = tmp_path / "a.pcd"
    written.pcd(file, written.cloud(), how)
    data = file.read_bytes()
    for changed, told in (
        (data[: len(data) // 2], "truncated|holds|no table"),
        (data.replace(b"POINTS 300", b"POINTS 900000000"), "grid"),
        (data.replace(b"300", b"900000000", 2), "limit|grid"),
        (data.replace(b"WIDTH 300", b"WIDTH 9000").replace(b"S 300", b"S 9000"), "truncated|holds"),
        (data.replace(b"FIELDS x", b"FIELDS v"), "has no x"),
        (data.replace(b"DATA", b"DATE"), "header"),
        (data.replace(b"SIZE 4 4 4", b"SIZE 4 4 3"), "header"),
    ):
        file.write_bytes(changed)
        with pytest.raises(ImageError, match=told):
            read_scan(file)


def test_damaged_tiff(tmp_path: Path) -> None:
    file = tmp_path / "xyz/0.tiff"
    written.xyz(file, written.plate())
    data = file.read_bytes()
    file.write_bytes(data[:-100])
    with pytest.raises(ImageError, match="truncated"):
        read_scan(file)
    tifffile.imwrite(file, np.stack([written.plate()] * 2), photometric="rgb")
    with pytest.raises(ImageError, match="2 pages"):
        read_scan(file)
    written.xyz(file, np.zeros((12, 12, 3), np.float32))
    with pytest.raises(ImageError, match="all are missing"):
        read_scan(file)


def test_what_is_no_file(tmp_path: Path) -> None:
    for path, told in ((tmp_path, "not a file"), (tmp_path / "no.ply", "does not exist")):
        with pytest.raises(ImageError, match=told):
            read_scan(path)
    with pytest.raises(OptionError, match="unit"):
        read_scan(tmp_path / "a.ply", "cm")  # type: ignore[arg-type]  # that is the test


def test_missing_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    written.xyz(tmp_path / "xyz/0.tiff", written.plate())
    written.pcd(tmp_path / "a.pcd", written.cloud())
    for module, file in (("tifffile", "xyz/0.tiff"), ("pypcd4", "a.pcd")):
        with monkeypatch.context() as without:
            without.setitem(sys.modules, module, None)
            with pytest.raises(MissingExtraError, match=r"pip install 'offnominal\[3d\]'"):
                read_scan(tmp_path / file)


def test_a_camera_that_is_no_json(tmp_path: Path) -> None:
    (tmp_path / "camera.json").write_text("{")
    written.depth(tmp_path / "0.png")
    with pytest.raises(ImageError, match=r"camera\.json"):
        read_scan(tmp_path / "0.png")
    (tmp_path / "camera.json").write_text(json.dumps([1]))
    with pytest.raises(ImageError, match=r"camera\.json"):
        read_scan(tmp_path / "0.png")
