"""The report of an index: blemishes, which images are taken, and that its figures are true."""

from dataclasses import asdict

import numpy as np
import pytest
import torch
from torch import Tensor

from offnominal.datasets.synthetic import draw_good
from offnominal.errors import OptionError
from offnominal.memory import MemoryBank
from offnominal.memory.index_build import build_index
from offnominal.memory.index_choice import parse_search
from offnominal.memory.index_report import Picture, Sampled, blemish, measure_index


def look(image: Picture) -> Tensor:
    """The mean and deviation of each colour in blocks of 16 × 16 pixels, with a little context."""
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    mean = torch.nn.functional.avg_pool2d(pixels, 16)
    spread = (torch.nn.functional.avg_pool2d(pixels**2, 16) - mean**2).clamp(min=0).sqrt()
    maps = torch.cat([mean, spread], 1)
    maps = torch.cat([maps, torch.nn.functional.avg_pool2d(maps, 3, 1, 1)], 1)
    return maps[0].flatten(1).T.contiguous()


@pytest.fixture(scope="module")
def images() -> list[tuple[int, Picture]]:
    return [(number, draw_good("fabric", 0, number)) for number in range(8)]


@pytest.fixture(scope="module")
def bank(images: list[tuple[int, Picture]]) -> MemoryBank:
    bank = MemoryBank(12)
    for number, image in images:
        bank.add(look(image), number)
    return bank


def test_a_blemish_is_one_part_of_the_image(images: list[tuple[int, Picture]]) -> None:
    image = images[0][1]
    shares = []
    for seed in range(40):
        found = blemish(image, np.random.default_rng(seed))
        assert found.dtype == np.uint8
        assert found.shape == image.shape
        changed = (found != image).any(-1)
        rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
        shares.append(np.ptp(rows) * np.ptp(columns) / changed.size)
        assert changed[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].mean() > 0.8
    assert min(shares) < 0.004
    assert 0.01 < max(shares) < 0.025
    again = blemish(image, np.random.default_rng(3))
    assert np.array_equal(again, blemish(image, np.random.default_rng(3)))
    assert not np.array_equal(again, blemish(image, np.random.default_rng(4)))


def test_a_blemish_fits_the_smallest_image() -> None:
    for shape in ((1, 1, 3), (2, 300, 3), (300, 3, 3)):
        image = np.full(shape, 100, np.uint8)
        assert blemish(image, np.random.default_rng(0)).shape == shape
        assert (image == 100).all()


def test_images_of_a_stream_are_evenly_spread() -> None:
    for count in (1, 5, 16, 17, 100, 1000):
        sampled = Sampled()
        for number in range(count):
            sampled.offer(number, np.zeros((2, 2, 3), np.uint8))
        numbers = [number for number, _ in sampled.images]
        assert len(numbers) == count if count <= 16 else 8 <= len(numbers) <= 16
        assert len(set(np.diff(numbers).tolist())) <= 1
        assert numbers[-1] >= count - count // len(numbers) - 1
    sampled = Sampled()
    for number in range(20):
        sampled.offer(number, np.empty((5000, 5000, 3), np.uint8))
    assert [number for number, _ in sampled.images] == [0, 8, 16]


def test_the_report(bank: MemoryBank, images: list[tuple[int, Picture]]) -> None:
    calls: list[str] = []

    def score(seen: Tensor, owner: int) -> float:
        return float(bank.search(seen, skip=owner)[0].amax())

    bank.index = build_index(bank, parse_search("ivf,recall=0.95"))
    report = measure_index(
        [bank], images[:6], look, score, progress=lambda stage, done: calls.append(f"{stage}{done}")
    )
    index, bank.index = bank.index, None
    assert index is not None
    assert calls == [f"auroc{done}" for done in range(1, 7)]
    plain = [score(look(image), owner) for owner, image in images[:6]]
    marred = [
        score(look(blemish(image, np.random.default_rng([0, owner]))), owner)
        for owner, image in images[:6]
    ]
    wins = np.subtract.outer(marred, plain)
    assert report.auroc_exact == pytest.approx(((wins > 0) + 0.5 * (wins == 0)).mean())
    assert report.auroc_exact > 0.6
    assert report.auroc_change == report.auroc_approximate - report.auroc_exact
    assert (report.kind, report.rows, report.images) == ("ivf", len(bank), 6)
    assert (report.recall, report.queries) == (index.recall, index.queries)  # type: ignore[attr-defined]
    assert report.recall >= report.target == 0.95
    assert report.speed > 0
    assert f"recall {report.recall:.4f} on {report.queries} held-back patches" in str(report)
    assert asdict(report)["kind"] == "ivf"


def test_the_report_shows_an_index_that_misses(
    bank: MemoryBank, images: list[tuple[int, Picture]]
) -> None:
    def score(seen: Tensor, owner: int) -> float:
        return float(bank.search(seen, skip=owner)[0].mean())

    bank.index = build_index(bank, parse_search("ivf,recall=0.95"))
    good = measure_index([bank], images[:3], look, score)
    bank.index.effort = bank.index.named = 1  # type: ignore[union-attr]
    poor = measure_index([bank], images[:3], look, score)
    bank.index = None
    assert 0 <= good.score_change < poor.score_change


def test_a_report_takes_an_index_and_images(
    bank: MemoryBank, images: list[tuple[int, Picture]]
) -> None:
    with pytest.raises(OptionError, match="have an index"):
        measure_index([bank], images, look, lambda seen, owner: 0.0)
