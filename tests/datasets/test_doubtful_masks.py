"""Masks that mark other pixels than they seem to: read as they were meant, and named."""

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.datasets.pictures import image

from offnominal.datasets import Sample, open_dataset, sample_mask
from offnominal.datasets.check import check
from offnominal.datasets.doubts import MASK_DOUBTS
from offnominal.datasets.masks import inspect_mask

MARK = np.zeros((16, 24), np.uint8)
MARK[4:8, 6:12] = 255
MARKED, TURNED = Image.fromarray(MARK), Image.fromarray(np.ascontiguousarray(MARK[::-1, ::-1]))
INVERTED = Image.fromarray(255 - MARK)
WHITE, BLACK = (Image.new("L", (24, 16), level) for level in (255, 0))
NOISE = np.random.default_rng(0).integers(40, 200, (16, 24, 3), np.uint8)


def exif(turn: int) -> dict[str, Any]:
    data = Image.Exif()
    data[0x0112] = turn
    return {"exif": data}


def pair(folder: Path, mask: Image.Image, *, suffix: str = ".png", **options: Any) -> Sample:
    image(folder, "part.png")
    mask.save(folder / f"mask{suffix}", **options)
    return Sample(folder / "part.png", 1, folder / f"mask{suffix}", "dent", "nut", "test")


def kinds(sample: Sample) -> set[str]:
    return {kind for kind, _ in inspect_mask(sample, (16, 24))[1]}


@pytest.mark.parametrize(
    ("bands", "suffix", "kind"),
    [
        ((WHITE, WHITE, WHITE, MARKED), ".png", "alpha"),
        ((BLACK, BLACK, BLACK, MARKED), ".png", "alpha"),
        ((INVERTED, INVERTED, INVERTED, MARKED), ".png", "alpha"),  # black strokes on nothing
        ((WHITE, MARKED), ".png", "alpha"),
        ((MARKED, MARKED, MARKED, WHITE), ".png", None),  # all opaque
        ((MARKED, BLACK, BLACK), ".png", "colour"),
        ((BLACK, BLACK, MARKED), ".bmp", "colour"),
        ((WHITE, INVERTED, INVERTED), ".png", "colour"),  # red on white
        ((MARKED,), ".gif", None),
        ((MARKED,), ".pgm", None),
    ],
)
def test_marks_are_found_in_every_channel(
    tmp_path: Path, bands: tuple[Image.Image, ...], suffix: str, kind: str | None
) -> None:
    mode = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}[len(bands)]
    sample = pair(tmp_path, Image.merge(mode, bands), suffix=suffix)
    marked, doubts = inspect_mask(sample, (16, 24))
    assert marked is not None
    assert np.array_equal(marked, MARK > 0)
    assert np.array_equal(marked, sample_mask(sample, (16, 24)))
    assert doubts == ([(kind, "")] if kind else [])


def test_inverted_whole_and_photographs_are_named(tmp_path: Path) -> None:
    assert kinds(pair(tmp_path, INVERTED)) == {"most"}
    assert kinds(pair(tmp_path, WHITE)) == {"whole"}
    scribbled = NOISE.copy()
    scribbled[MARK > 0] = 255, 0, 0
    for picture in (NOISE, NOISE[..., 0], scribbled):
        assert "photo" in kinds(pair(tmp_path, Image.fromarray(picture)))
    # Class numbers have few levels, and blurred marks few pixels between black and white.
    classes = np.repeat(np.arange(0, 240, 40, dtype=np.uint8), 64).reshape(16, 24)
    assert "photo" not in kinds(pair(tmp_path, Image.fromarray(classes)))


def test_masks_and_images_turned_by_their_exif_data(tmp_path: Path) -> None:
    sample = pair(tmp_path, TURNED, **exif(3))
    marked, doubts = inspect_mask(sample, (16, 24))
    assert np.array_equal(marked, MARK > 0)
    assert doubts == [("turned-mask", "")]
    sample = pair(tmp_path, MARKED)
    Image.fromarray(NOISE).save(sample.image, **exif(3))
    assert kinds(sample) == {"turned-image"}
    # Both alike: drawn on the picture as it is shown.
    sample = pair(tmp_path, TURNED, **exif(3))
    Image.fromarray(NOISE).save(sample.image, **exif(3))
    assert inspect_mask(sample, (16, 24))[1] == []
    # A quarter turn shows in the shape: upright it fits, as stored it does not.
    Image.fromarray(np.ascontiguousarray(NOISE.swapaxes(0, 1))).save(sample.image, **exif(6))
    assert kinds(pair(tmp_path / "new", MARKED)) == set()
    MARKED.save(sample.mask or "")
    assert kinds(sample) == set()
    MARKED.transpose(Image.Transpose.ROTATE_90).save(sample.mask or "")
    [(kind, detail)] = inspect_mask(sample, (16, 24))[1]
    assert kind == "misshapen"
    assert "16x24 for 24x16, as its image was before its EXIF turn" in detail


def test_masks_of_several_pages_and_of_endless_size_are_not_read(tmp_path: Path) -> None:
    sample = pair(tmp_path, MARKED, suffix=".gif", save_all=True, append_images=[WHITE])
    [(kind, detail)] = inspect_mask(sample, (16, 24))[1]
    assert kind == "unreadable"
    assert "2 pages or frames; save them as files of their own" in detail

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    head = struct.pack(">IIBBBBB", 24_000, 16_000, 8, 0, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b""))
    (tmp_path / "bomb.png").write_bytes(data + chunk(b"IEND", b""))
    bomb = Sample(sample.image, 1, tmp_path / "bomb.png", "dent", "nut", "test")
    assert kinds(bomb) == {"unreadable"}


def test_a_check_names_each_kind_with_the_first_files(tmp_path: Path) -> None:
    image(tmp_path, "train/good/0.png", "test/good/0.png")
    for kind, mask in (("a", INVERTED), ("b", WHITE), ("c", Image.merge("LA", (WHITE, MARKED)))):
        for number in range(4):
            folder = tmp_path / f"ground_truth/{kind}"
            folder.mkdir(parents=True, exist_ok=True)
            image(tmp_path, f"test/{kind}/{number}.png")
            mask.save(folder / f"{number}_mask.png")
    said = {f.what: f for f in check(open_dataset(tmp_path)).findings}
    for kind, first in [
        ("most", "ground_truth/a/0_mask.png (94%)"), ("whole", "ground_truth/b/0_mask.png"),
        ("alpha", "ground_truth/c/0_mask.png"),
    ]:  # fmt: skip
        finding = said[MASK_DOUBTS[kind][1]]
        assert (finding.severity, finding.count, finding.examples[0]) == ("warning", 4, first)
