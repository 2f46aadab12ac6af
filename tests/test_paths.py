"""Which files count as pictures of parts, and what is said of the others."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from offnominal.errors import OptionError
from offnominal.paths import PassedOver, find_images, is_own, walk
from offnominal.pictures import save_picture


def picture(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (9, 9)).save(path, format="png")
    return path


def test_every_suffix_of_a_format_that_is_read_counts(tmp_path: Path) -> None:
    for name in ("a.jfif", "b.JPE", "c.jpg", "d.Tiff", "e.bmp", "f.webp", "g.png"):
        picture(tmp_path / name)
    assert len(find_images(tmp_path)) == 7


def test_what_is_left_aside_is_counted(tmp_path: Path) -> None:
    for name in ("a.png", "b.gif", "c.GIF", "d.jp2", "notes", ".hidden.gif", "Thumbs.db"):
        picture(tmp_path / name)
    passed = PassedOver()
    assert [file.name for file in find_images(tmp_path, passed)] == ["a.png"]
    assert str(passed) == "4 files passed over: 2 .gif, 1 .jp2, 1 without a suffix"


@pytest.mark.parametrize("folder", ["@eaDir/a.png", "$RECYCLE.BIN", "System Volume Information",
                                    "__MACOSX", "#recycle", ".cache"])  # fmt: skip
def test_thumbnails_and_bins_are_no_parts(tmp_path: Path, folder: str) -> None:
    picture(tmp_path / "a.png")
    picture(tmp_path / folder / "SYNOPHOTO_THUMB_M.png")
    assert [file.name for file in walk(tmp_path)] == ["a.png"]


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
def test_what_the_program_drew_is_recognised_anywhere(tmp_path: Path, suffix: str) -> None:
    picture(tmp_path / "part.png")
    shape = (9, 9, 3) if suffix == ".png" else (9, 9)
    kind = np.uint8 if suffix == ".png" else np.float32
    drawn = tmp_path / f"copy{suffix}"
    save_picture(drawn, np.zeros(shape, kind))
    (tmp_path / "part.offn").touch()
    passed = PassedOver()
    assert is_own(drawn)
    assert [file.name for file in find_images(tmp_path, passed)] == ["part.png"]
    assert str(passed) == "2 files passed over: 2 written by Offnominal"
    with pytest.raises(OptionError, match="written by Offnominal"):
        find_images(drawn)


def test_a_results_folder_is_passed_over_but_not_the_parts_beside_it(tmp_path: Path) -> None:
    picture(tmp_path / "part.png")
    picture(tmp_path / "overlays" / "part.png")  # without the mark, as an older version drew it
    for name in ("run.json", "results.jsonl", "results.csv"):
        (tmp_path / name).write_text(json.dumps({}))
    passed = PassedOver()
    assert find_images(tmp_path, passed) == [tmp_path / "part.png"]
    assert str(passed) == "4 files passed over: 4 written by Offnominal"


def test_an_empty_search_says_what_was_there(tmp_path: Path) -> None:
    picture(tmp_path / "a.gif")
    with pytest.raises(
        OptionError, match=r"no images in this folder \(1 file passed over: 1 \.gif"
    ):
        find_images(tmp_path)
