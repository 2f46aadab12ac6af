"""Opening a data set: the layout is told from what is there, or the message says what was there."""

import subprocess
import sys
from pathlib import Path

import pytest
from tests.datasets.pictures import image

from offnominal.datasets import open_dataset
from offnominal.datasets.catalogue import LAYOUTS, PRESETS
from offnominal.errors import DatasetError, OptionError


def nut(root: Path) -> Path:
    image(root, "nut/train/good/0.png", "nut/test/good/1.png", "nut/test/dent/2.png")
    return root


def test_an_unknown_category_lists_those_that_are_there(tmp_path: Path) -> None:
    nut(tmp_path)
    image(tmp_path, "bolt/train/good/0.png", "bolt/test/good/1.png")
    with pytest.raises(OptionError, match=r"no category cog in .*; there are bolt, nut"):
        open_dataset(tmp_path, categories=["nut", "cog"])


def test_a_folder_in_no_layout_says_what_was_looked_for_and_found(tmp_path: Path) -> None:
    image(tmp_path, "some.png", "deep/more.png")
    with pytest.raises(DatasetError) as caught:
        open_dataset(tmp_path)
    text = str(caught.value)
    assert all(f"  {layout.name}: {layout.looks_for}" in text for layout in LAYOUTS.values())
    assert "Found deep/, some.png." in text
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match="Found nothing"):
        open_dataset(tmp_path / "empty")


def test_a_data_set_one_folder_below_is_pointed_out(tmp_path: Path) -> None:
    nut(tmp_path / "unpacked" / "1cls")
    with pytest.raises(DatasetError, match=r"1cls is in mvtec layout: open that"):
        open_dataset(tmp_path / "unpacked")


def test_two_layouts_that_fit_are_not_chosen_between(tmp_path: Path) -> None:
    nut(tmp_path)
    (tmp_path / "meta.json").write_text('{"test": {}}')
    with pytest.raises(DatasetError, match=r"several layouts fit, mvtec .* and meta .*--layout"):
        open_dataset(tmp_path)
    assert open_dataset(tmp_path, "mvtec").layout == "mvtec"
    assert open_dataset(tmp_path, "mpdd").layout == "mvtec"


def test_a_preset_whose_files_are_not_there_says_what_it_needs(tmp_path: Path) -> None:
    image(tmp_path, "loose.png")
    for name, needs in [
        ("visa", "Data/Images/Normal"), ("mpdd", "train/good"), ("dagm", "Test/Label"),
        ("ksdd", "kosNN"), ("tn3k", "test-image, test-mask"), ("shanghaitech", "CLIP.npy"),
        ("folders", "one folder called good"), ("medical", "--layout brainmri"),
    ]:  # fmt: skip
        with pytest.raises(DatasetError, match=needs):
            open_dataset(tmp_path, name)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "no data set: name its folder"),
        ({"good": "g"}, "--good and --defects are both needed"),
        ({"root": ".", "good": "g", "defects": "d"}, "the one or the others"),
        ({"root": ".", "masks": "m"}, "the one or the others"),
        ({"root": ".", "layout": "mvtek"}, "layout 'mvtek' is not known; there are auto, mvtec"),
        ({"good": "g", "defects": "d", "layout": "visa"}, "needs a data set's folder"),
        ({"root": ".", "train_share": 1.5}, "train_share is 1.5"),
        ({"root": ".", "frame_step": 0}, "frame_step is 0"),
        ({"root": ".", "mask_threshold": 0}, "mask_threshold is 0"),
    ],
)
def test_options_that_contradict_each_other(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        open_dataset(**arguments)  # type: ignore[arg-type]  # one table for all kinds


def test_a_root_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no such data set"):
        open_dataset(tmp_path / "absent")


def test_a_mask_threshold_of_ones_own(tmp_path: Path) -> None:
    nut(tmp_path)
    assert {s.mask_threshold for s in open_dataset(tmp_path).samples} == {128}
    assert {s.mask_threshold for s in open_dataset(tmp_path, mask_threshold=9).samples} == {9}


def test_every_preset_has_a_source_and_names_known_layouts() -> None:
    for preset in PRESETS.values():
        assert preset.source.startswith(("https://", "http://"))
        assert set(preset.layouts) <= set(LAYOUTS)
        assert preset.licence


@pytest.mark.slow
def test_listing_and_opening_need_no_torch_and_listing_no_numpy(tmp_path: Path) -> None:
    nut(tmp_path)
    for code, banned in [
        ("import offnominal.datasets.catalogue", {"torch", "numpy", "cv2", "PIL"}),
        ("from offnominal.datasets import open_dataset", {"torch", "numpy", "cv2", "PIL"}),
        (f"from offnominal.datasets import open_dataset as o; o({str(tmp_path)!r})", {"torch"}),
    ]:
        done = subprocess.run(
            [sys.executable, "-c", f"{code}; import sys; print(*sys.modules)"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert not banned & set(done.stdout.split())
