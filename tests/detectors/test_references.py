"""References by name, digest or picture, and what is said of a wrong one."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from offnominal.detectors.references import References
from offnominal.errors import ImageError, OptionError
from offnominal.images import read_image


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("good")
    drawn = np.random.default_rng(0).integers(0, 255, (5, 9, 8, 3), np.uint8)
    for number, image in enumerate(drawn):
        Image.fromarray(image).save(folder / f"{number:03}.png")
    return sorted(folder.iterdir())


def known(*images: Path | np.ndarray) -> References:
    found = References()
    list(found.take_in(((image, read_image(image)) for image in images), []))
    return found


def test_a_reference_is_found_by_name_digest_or_picture(files: list[Path], tmp_path: Path) -> None:
    references = known(*files)
    moved = tmp_path / "moved.png"
    moved.write_bytes(files[2].read_bytes())
    digest = references[1].digest
    for image, number in [
        (files[0].name, 0),
        (str(files[0]), 0),
        (digest, 1),
        (digest[:10].upper(), 1),
        (moved, 2),
        (read_image(files[3]), 3),
        (Image.fromarray(read_image(files[4])), 4),
    ]:
        assert references.find(image) == number
    references[2].active = False
    with pytest.raises(OptionError, match="not among the 4 references"):
        references.find(moved)


def test_wrong_names_are_told_apart(files: list[Path], tmp_path: Path) -> None:
    copies = []
    for folder, file in (("a", files[0]), ("b", files[1])):
        (tmp_path / folder).mkdir()
        copies.append(tmp_path / folder / "same.png")
        copies[-1].write_bytes(file.read_bytes())
    arrays = np.random.default_rng(1).integers(0, 255, (2, 9, 8, 3), np.uint8)
    references = known(*copies, *files[2:4], *arrays)
    with pytest.raises(OptionError, match=r"stands for 2 references(.|\n)*a/same(.|\n)*b/same"):
        references.find("same.png")
    with pytest.raises(OptionError, match=r"stands for 2 references(.|\n)*digest"):
        references.find("array (9, 8, 3) uint8")
    with pytest.raises(OptionError, match=r"not among the 6(.|\n)*002.png"):
        references.find("OO2.png")
    with pytest.raises(OptionError, match=r"not among"):
        references.find(files[4])
    assert references.find("b/same.png") == 1
    assert references.find(arrays[1]) == 5
    with pytest.raises(ImageError):
        references.find(np.zeros((3, 3, 7), np.uint8))
