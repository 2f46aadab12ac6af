"""``offnominal synthesize`` as a user runs it, on a handful of images."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from tests.cli.conftest import Done, offnominal

from offnominal.datasets import open_dataset
from offnominal.datasets.masks import sample_mask
from offnominal.images import read_image


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("in") / "good"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(5):
        shade = np.linspace(80, 140, 72)[None, :, None] + rng.normal(0, 6, (56, 72, 3))
        cv2.imwrite(str(folder / f"{number}.png"), shade.astype(np.uint8))
    return folder


@pytest.fixture(scope="module")
def bad(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("real")
    image = np.random.default_rng(1).normal(110, 6, (56, 72, 3)).astype(np.uint8)
    mask = np.zeros((56, 72), np.uint8)
    mask[20:34, 30:50] = 255
    image[mask > 0] //= 3
    for name, picture in (("bad/0.png", image), ("bad/1.png", image), ("masks/0.png", mask)):
        (root / name).parent.mkdir(exist_ok=True)
        cv2.imwrite(str(root / name), picture)
    return root


def synthesize(good: Path, output: Path, kind: str, *more: object) -> Done:
    given = ("-o", output, "--kind", kind, "--object", "off", *more)
    return offnominal("synthesize", good, *given)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_a_data_set_whose_masks_are_exact(good: Path, tmp_path: Path) -> None:
    done = synthesize(good, tmp_path, "scar", "--count", 4)
    assert done.returncode == 0, done.stderr
    assert f"Look at {tmp_path / 'sheet_scar.png'}" in done.stdout
    dataset = open_dataset(tmp_path)
    assert dataset.layout == "mvtec"
    assert len(dataset.train("synthetic")) == 2
    defective = [sample for sample in dataset.test("synthetic") if sample.label]
    assert [sample.defect for sample in defective] == ["scar"] * 4
    record = json.loads((tmp_path / "synthetic" / "synthesis.json").read_text())
    for sample in defective:
        image = read_image(sample.image)
        before = tmp_path / "synthetic" / record["kinds"]["scar"]["made"][sample.image.name]
        mask = sample_mask(sample, image.shape[:2])
        assert mask is not None
        assert ((image != read_image(before)).any(-1) == mask).all()
        assert mask.sum() >= 16
    checked = offnominal("datasets", "check", tmp_path)
    assert checked.returncode == 0
    # A defect and the good image that it was made on are one picture, which is no more than a note.
    assert "images of one side that are one picture" in checked.stdout
    assert "error:" not in checked.stdout
    assert "warning:" not in checked.stdout


def test_more_later_and_after_a_stop_is_the_same(good: Path, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert synthesize(good, whole, "nsa", "--count", 4).returncode == 0
    assert synthesize(good, parts, "nsa", "--count", 2).returncode == 0
    (parts / "synthetic" / "test" / "nsa" / "001.png").unlink()  # stopped before it was written
    assert synthesize(good, parts, "nsa", "--count", 4).returncode == 0
    assert contents(parts) == contents(whole)


def test_other_settings_and_other_folders_are_refused(good: Path, tmp_path: Path) -> None:
    assert synthesize(good, tmp_path, "scar", "--count", 1).returncode == 0
    for more, told in [
        (("--seed", 1), "made with another --seed or --train-share, or of other good images"),
        (("--object", "on", "--backbone", "builtin"), "with other settings (network, object)"),
    ]:
        done = synthesize(good, tmp_path, "scar", *more)
        assert done.returncode == 2
        assert told in done.stderr
    other = tmp_path / "x" / "synthetic" / "test" / "good"
    other.mkdir(parents=True)
    (other / "0.png").touch()
    done = synthesize(good, tmp_path / "x", "scar")
    assert done.returncode == 2
    assert "holds no synthesis.json of an earlier run" in done.stderr


@pytest.mark.slow
def test_from_a_few_real_defects(good: Path, bad: Path, tmp_path: Path) -> None:
    real = ("--defects", bad / "bad", "--masks", bad / "masks", "--count", 1)
    done = synthesize(good, tmp_path, "seeds", *real)
    assert done.returncode == 0, done.stderr
    assert "1 defective image without a mask, or with an empty one, left out: 1.png" in done.stderr
    assert "1 defect cut out of 2 images" in done.stderr
    model = ("--model", tmp_path / "p.safetensors")
    done = synthesize(good, tmp_path, "diffusion", *real, *model, "--steps", 1)
    assert done.returncode == 0, done.stderr
    done = synthesize(good, tmp_path, "diffusion", *model, "--count", 2)
    assert done.returncode == 0, done.stderr
    assert "used as it is, trained for 1 step" in done.stderr
    assert len(list((tmp_path / "synthetic" / "test" / "diffusion").iterdir())) == 2


@pytest.mark.parametrize(
    ("kind", "more", "told"),
    [
        ("scar", ("--count", 0), "--count 0: give 1 or more"),
        ("scar", ("--seed", -1), "--seed -1: give 0 or more"),
        ("scar", ("--name", "a/b"), "--name a/b: give the plain name of a folder"),
        ("scar", ("--train-share", 1), "--train-share 1.0: give a share from 0 to below 1"),
        ("scar", ("--textures", "."), "--textures: --kind scar takes none"),
        ("nsa", ("--defects", "."), "--kind nsa takes none"),
        ("nsa", ("--model", "p"), "--kind nsa learns nothing"),
        ("seeds", (), "--kind seeds: give --defects and --masks"),
        ("diffusion", (), "is not there; give --defects and --masks"),
    ],
)
def test_what_does_not_go_together(
    good: Path, tmp_path: Path, kind: str, more: tuple[object, ...], told: str
) -> None:
    done = synthesize(good, tmp_path / "out", kind, *more)
    assert done.returncode == 2
    assert told in " ".join(done.stderr.split())


def test_images_of_one_colour_and_unreadable_ones(good: Path, tmp_path: Path) -> None:
    blank = tmp_path / "blank"
    blank.mkdir()
    cv2.imwrite(str(blank / "0.png"), np.full((40, 40, 3), 9, np.uint8))
    done = synthesize(blank, tmp_path / "out", "cutpaste", "--count", 1)
    assert done.returncode == 2
    assert "could a defect be made that shows; they may be of one colour" in done.stderr
    (blank / "1.png").write_bytes(b"")
    cv2.imwrite(str(blank / "2.png"), np.asarray(cv2.imread(str(good / "0.png"))))
    done = synthesize(blank, tmp_path / "other", "cutpaste", "--count", 1, "--train-share", 0)
    assert done.returncode == 3
    assert "1.png: is empty (0 bytes)" in done.stderr
    done = synthesize(good, good.parent, "scar")
    assert done.returncode == 2
    assert "holds some of the good images" in done.stderr
