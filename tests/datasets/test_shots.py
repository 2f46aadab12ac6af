"""Few-shot draws: the released code's rule, and the random one."""

from pathlib import Path

import pytest

from offnominal.datasets import Sample, draw_shots, open_dataset
from offnominal.errors import OptionError


def good(*names: str) -> list[Sample]:
    return [Sample(Path("good", name), 0, None, "good", "nut", "train") for name in names]


def names(samples: list[Sample]) -> list[str]:
    return [sample.image.name for sample in samples]


TEN = good("7.png", "0.png", "3.png", "9.png", "1.png", "5.png", "8.png", "2.png", "6.png", "4.png")


@pytest.mark.parametrize(
    ("shots", "seed", "drawn"),
    [
        (1, 0, "0"), (1, 1, "1"), (1, 9, "9"),
        (2, 0, "01"), (2, 1, "23"), (2, 4, "89"),
        (4, 0, "0123"), (4, 1, "4567"),
        (10, 0, "0123456789"),
    ],
)  # fmt: skip
def test_first_takes_consecutive_files(shots: int, seed: int, drawn: str) -> None:
    assert names(draw_shots(TEN, shots, seed, "first")) == [f"{d}.png" for d in drawn]


def test_first_follows_the_released_slice_on_real_files(tiles: Path) -> None:
    samples = open_dataset(tiles).train("magnetic_tile")
    listing = sorted(path.name for path in (tiles / "train/good").iterdir())
    for shots in (1, 2, 4, 8, 16):
        for seed in range(3):
            expected = listing[seed * shots : (seed + 1) * shots]
            assert names(draw_shots(samples[::-1], shots, seed, "first")) == expected


def test_first_sorts_by_the_name_as_text() -> None:
    samples = good("10.png", "9.png", "B.png", "a.png")
    assert names(draw_shots(samples, 4, 0, "first")) == ["10.png", "9.png", "B.png", "a.png"]
    spread = [Sample(Path(p), 0, None, "good", "n", "train") for p in ("b/1.png", "a/2.png")]
    assert names(draw_shots(spread, None, 0, "first")) == ["1.png", "2.png"]


def test_random_draws_repeat_by_seed_and_grow_within_it() -> None:
    for seed in range(5):
        four = names(draw_shots(TEN, 4, seed, "random"))
        assert len(set(four)) == 4
        assert four == names(draw_shots(TEN[::-1], 4, seed, "random"))
        assert names(draw_shots(TEN, 1, seed, "random")) == four[:1]
        assert names(draw_shots(TEN, 2, seed, "random")) == four[:2]
    draws = {tuple(names(draw_shots(TEN, 4, seed, "random"))) for seed in range(20)}
    assert len(draws) == 20
    assert {name for draw in draws for name in draw} == set(names(TEN))


@pytest.mark.parametrize("sampling", ["first", "random"])
def test_all_of_them(sampling: str) -> None:
    everything = draw_shots(TEN, None, 3, sampling)  # type: ignore[arg-type]  # from a table
    assert names(everything) == sorted(names(TEN))


def test_draws_that_cannot_be_made() -> None:
    with pytest.raises(
        OptionError, match=r"with 4 shots each, 10 good images last for 2 seeds \(0 to 1\)"
    ):
        draw_shots(TEN, 4, 2, "first")
    assert len(draw_shots(TEN, 4, 2, "random")) == 4
    for sampling in ("first", "random"):
        with pytest.raises(OptionError, match="shots is 11, but there are 10 good images"):
            draw_shots(TEN, 11, 0, sampling)  # type: ignore[arg-type]  # from a table
        with pytest.raises(OptionError, match="shots is 1, but there are 0 good images"):
            draw_shots([], 1, 0, sampling)  # type: ignore[arg-type]  # from a table
    assert draw_shots([], None, 0, "first") == []
    with pytest.raises(OptionError, match="shots is 0"):
        draw_shots(TEN, 0, 0, "first")
    with pytest.raises(OptionError, match="seed is -1"):
        draw_shots(TEN, 1, -1, "first")
    with pytest.raises(OptionError, match="sampling is 'last'"):
        draw_shots(TEN, 1, 0, "last")  # type: ignore[arg-type]  # the error is the point
