"""Copies, flips, turns, other light and slight crops of a picture are found, and nothing else."""

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from offnominal.labels.alike import groups_of, same_pictures, thumbnail

Picture = NDArray[np.uint8]


def pictures(count: int, common: float = 0.0) -> list[Picture]:
    """Textures, with a share of one that is the same in all, as a fixture's."""
    rng = np.random.default_rng(0)

    def texture() -> NDArray[np.float32]:
        fine = cv2.GaussianBlur(rng.normal(size=(160, 120)).astype(np.float32), (0, 0), 2.5)
        return fine / fine.std()

    fixture = texture()
    mixed = [common * fixture + (1 - common) * texture() for _ in range(count)]
    return [np.clip(np.repeat((110 + 30 * one)[..., None], 3, 2), 0, 255).astype(np.uint8)
            for one in mixed]  # fmt: skip


def exported(picture: Picture) -> Picture:
    again = cv2.imdecode(
        cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 60])[1], cv2.IMREAD_COLOR
    )
    return np.asarray(again, np.uint8)


CHANGES: dict[str, Callable[[Picture], Picture]] = {
    "copy": lambda picture: picture,
    "flip": lambda picture: picture[:, ::-1],
    "turn": np.rot90,
    "both": lambda picture: np.rot90(picture[::-1], 3),
    "dark": lambda picture: (picture * 0.6).astype(np.uint8),
    "jpeg": exported,
    "crop": lambda picture: picture[3:-1, 2:-2],
}


@pytest.mark.parametrize("common", [0.0, 0.6])
def test_what_is_one_picture_is_one_group(common: float) -> None:
    own = pictures(40, common)
    changed = {name: change(own[number]) for number, (name, change) in enumerate(CHANGES.items())}
    every = [*own, *changed.values()]
    groups = groups_of([thumbnail(np.ascontiguousarray(one)) for one in every])
    assert groups[:40] == list(range(40))
    assert dict(zip(changed, groups[40:], strict=True)) == dict(zip(changed, range(7), strict=True))


def test_exposures_of_one_tile_are_found(tiles: Path) -> None:
    """Each crack was photographed several times, in other light, and cut out by hand."""
    files = sorted((tiles / "test/crack").iterdir())
    by_number = sorted(files, key=lambda file: int(file.stem.split("_")[-1]))
    groups = same_pictures([*by_number, Path("absent.png")])
    assert groups[-1] == 57
    numbers = [int(file.stem.split("_")[-1]) for file in by_number]
    told = dict(zip(numbers, groups, strict=False))
    assert told[85602] == told[86828] == told[88201]
    assert len({told[n] for n in (3191, 3211, 32128, 85602, 116527, 249594, 339819)}) == 6
    # Of eight tiles and a single image, some in light that shows other things of them.
    assert len(set(groups)) <= 18


def test_few_images_and_flat_ones() -> None:
    assert groups_of([]) == []
    flat = [np.full((64, 64), grey, np.uint8) for grey in (0, 0, 9)]
    assert groups_of(flat) == [0, 0, 2]
    one, two = (thumbnail(picture) for picture in pictures(2))
    assert groups_of([one, two]) == [0, 1]
    assert groups_of([one, two, np.ascontiguousarray(one[:, ::-1])]) == [0, 1, 0]
