"""Images that do not belong among good ones are found by the others."""

from pathlib import Path

import numpy as np
import pytest

from offnominal import PatchCore
from offnominal.detectors.base import Detector
from offnominal.detectors.refine import refine
from offnominal.errors import ImageError, OptionError


def make() -> Detector:
    return PatchCore(backbone="builtin", resolution=96, coreset=0.25, calibrate_on=1)


@pytest.fixture(scope="module")
def mixed() -> tuple[list[np.ndarray], set[int]]:
    """Plain parts, and two with holes among them; alike, those would explain one another."""
    rng = np.random.default_rng(0)
    images = [rng.integers(110, 130, (96, 96, 3), dtype=np.uint8) for _ in range(12)]
    images[3][20:60, 20:60] = 255
    images[6][40:44, 10:90] = 0
    return images, {3, 6}


@pytest.mark.slow
def test_what_does_not_belong_is_left_out(mixed: tuple[list[np.ndarray], set[int]]) -> None:
    images, bad = mixed
    told: list[str] = []
    found = refine(make, images, tell=told.append)
    assert set(found.left_out) == bad
    assert set(found.kept) == set(range(len(images))) - bad
    assert found.settled
    assert told[-1].startswith(f"round {found.rounds}: 2 of {len(images)} images")
    by_share = refine(make, images, share=2 / len(images), rounds=1)
    assert set(by_share.left_out) == bad


@pytest.mark.slow
def test_copies_and_what_cannot_be_read_excuse_nothing(
    mixed: tuple[list[np.ndarray], set[int]], tmp_path: Path
) -> None:
    images, bad = mixed
    missing = tmp_path / "missing.png"
    more = [*images, *[images[0]] * 14, images[3].copy(), missing]
    unread: list[ImageError] = []
    found = refine(make, more, on_error=unread.append)
    assert set(found.left_out) == {*bad, len(more) - 2}
    assert set(found.kept) == set(range(len(more) - 1)) - set(found.left_out)
    assert len(unread) == 1
    with pytest.raises(ImageError):
        refine(make, more)


def test_what_cannot_be_refined(mixed: tuple[list[np.ndarray], set[int]]) -> None:
    images, _ = mixed
    with pytest.raises(OptionError, match="5 different images cannot be split into 3"):
        refine(make, images[:5])
    with pytest.raises(OptionError, match="--refine"):
        refine(make, images, share=0.9)


@pytest.mark.slow
def test_it_goes_on_where_it_was_broken_off(
    mixed: tuple[list[np.ndarray], set[int]], tmp_path: Path
) -> None:
    images, state, made = mixed[0][:6], tmp_path / "part.refine.json", 0

    def counted() -> Detector:
        nonlocal made
        made += 1
        if made == 4:  # the first one is asked for its options only
            raise KeyboardInterrupt
        return make()

    with pytest.raises(KeyboardInterrupt):
        refine(counted, images, rounds=1, state=state)
    made = 10
    found = refine(counted, images, rounds=1, state=state)
    assert made == 12, "two parts of three were there"
    assert found.scores.tolist() == refine(make, images, rounds=1).scores.tolist()
    refine(counted, images[::-1], rounds=1, state=state)
    assert made == 16, "in another order parts are others"
    state.write_text('{"x": 1}')
    with pytest.raises(OptionError, match=r"part\.refine\.json: is not the scores"):
        refine(make, images, state=state)
