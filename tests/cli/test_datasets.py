"""``offnominal datasets`` as a user runs it."""

import json
from pathlib import Path

import pytest
from tests.cli.conftest import Done, offnominal
from tests.datasets.pictures import image, mask

from offnominal.datasets.catalogue import LAYOUTS, PRESETS


def datasets(*arguments: object) -> Done:
    return offnominal("datasets", *arguments)


def test_the_list_names_layouts_sources_and_licences() -> None:
    done = datasets()
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    for layout in LAYOUTS.values():
        assert any(line.startswith(layout.name) and layout.looks_for in line for line in lines)
    for preset in PRESETS.values():
        (line,) = [
            line for line in lines if line.split()[:1] == [preset.name] and preset.source in line
        ]
        assert preset.licence in line
    assert "Nothing is downloaded" in done.stderr


@pytest.mark.slow
def test_check_prints_what_it_understood(tiles: Path) -> None:
    done = datasets("check", tiles)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("magnetic_tile: mvtec layout, 1 category, 1,344 images read in ")
    text = " ".join(done.stdout.split())
    assert "magnetic_tile 761 191 392 392 blowhole 115" in text
    assert "1,225 sizes, 103 to 632 wide" in text
    assert "warning: empty masks of defective images: 4" in text
    assert "and 1 more" in text
    assert "-> the images count as defective" in text
    # Where it takes over ten seconds it says how far it is.
    assert all(line.startswith("checking: ") for line in done.stderr.splitlines())


def test_check_as_json_and_with_plain_folders(tmp_path: Path) -> None:
    image(tmp_path, "ok/0.png", "ok/1.png", "odd [x]/deep [y]/2.png", "extra/3.png")
    mask(tmp_path, "truth/2.png")
    folders = ("--good", tmp_path / "ok", "--defects", tmp_path / "odd [x]")
    given = ("check", *folders, "--masks", tmp_path / "truth", "--test-good", tmp_path / "extra")
    done = datasets(*given, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["layout"] == "folders"
    (contents,) = report["categories"]
    assert contents["test_defective"] == {"deep [y]": 1}
    assert (contents["train"], contents["test_good"], contents["masks"]) == (2, 1, 1)
    assert contents["sizes"] == [[24, 16, 4]]
    assert report["findings"] == []
    done = datasets(*given)
    assert "deep [y] 1" in done.stdout
    assert "Nothing odd." in done.stdout
    divided = datasets("check", *folders, "--train-share", "0.5")
    assert "note: " in divided.stdout
    assert "the good images were divided here, 1 to learn from and 1 to test on" in divided.stdout


def test_unreadable_files_exit_with_3_and_unusable_sets_with_2(tmp_path: Path) -> None:
    image(tmp_path, "nut/train/good/0.png", "nut/test/good/1.png", "nut/test/dent/2.png")
    (tmp_path / "nut/train/good/9.png").write_bytes(b"")
    done = datasets("check", tmp_path, "--layout", "mvtec", "--categories", "nut")
    assert done.returncode == 3, done.stderr
    assert "error: images that cannot be read: 1" in done.stdout
    assert "9.png: is empty (0 bytes)" in done.stdout
    for arguments, message in [
        ((tmp_path / "nut/train",), "no known layout"),
        ((tmp_path, "--categories", "nut, cog"), "no category cog"),
        ((tmp_path, "--layout", "mvtek"), "layout 'mvtek' is not known"),
        ((tmp_path, "--good", tmp_path), "give the one or the others"),
        ((), "no data set: name its folder"),
    ]:
        done = datasets("check", *arguments)
        assert done.returncode == 2
        assert message in done.stderr
        assert "Traceback" not in done.stderr
        assert done.stdout == ""
