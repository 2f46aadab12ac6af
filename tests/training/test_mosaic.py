"""Mosaics of four images: what is drawn, how they are joined, what becomes of the truth."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.seeded import CLIP_TINY, save_clip

from offnominal.datasets.sample import Sample
from offnominal.detectors.language.april_gan import AprilGAN
from offnominal.detectors.language.training.samples import draw_mosaics, join_four
from offnominal.detectors.language.training.tower import Tower


def samples(folder: Path, category: str, **kinds: int) -> list[Sample]:
    found = []
    for kind, count in kinds.items():
        for number in range(count):
            path, mask = folder / category / kind / f"{number}.png", None
            bad = int(kind != "good")
            if bad:
                mask = folder / category / "masks" / f"{kind}{number}.png"
            found.append(Sample(path, bad, mask, kind, category, "test"))
    return found


def test_what_is_drawn(tmp_path: Path) -> None:
    mine = samples(tmp_path, "nut", good=90, bent=8, scratch=2)
    mine += samples(tmp_path, "tile", good=5, crack=5)
    generator = torch.Generator().manual_seed(1)
    draws = [draw_mosaics(mine, 0.2, generator) for _ in range(60)]
    share = np.mean([len(each) for each in draws]) / len(mine)
    assert share == pytest.approx(0.2, abs=0.02)
    kinds: Counter[str] = Counter()
    for each in draws:
        for number, four in each.items():
            assert len(four) == 4
            assert {mine[part].category for part in four} == {mine[number].category}
            if mine[number].category == "nut":
                kinds.update(mine[part].defect for part in four)
    # Kinds come as often as one another, however few their images.
    for kind in ("good", "bent", "scratch"):
        assert kinds[kind] / kinds.total() == pytest.approx(1 / 3, abs=0.04)
    again = torch.Generator().manual_seed(1)
    assert draws == [draw_mosaics(mine, 0.2, again) for _ in range(60)]
    before = generator.get_state()
    assert draw_mosaics(mine, 0.0, generator) == {}
    assert torch.equal(before, generator.get_state())
    assert len(draw_mosaics(mine, 1.0, generator)) == len(mine)


def test_four_are_joined() -> None:
    pictures = [np.full((4, 6, 3), 10 * n, np.uint8) for n in range(1, 5)]
    pictures[2] = np.full((9, 5, 3), 30, np.uint8)  # another size
    joined = join_four(pictures)
    assert joined.shape == (8, 12, 3)
    corners = joined[:4, :6], joined[:4, 6:], joined[4:, :6], joined[4:, 6:]
    assert [set(corner.ravel().tolist()) for corner in corners] == [{10}, {20}, {30}, {40}]
    assert join_four([picture[:, :, 0] for picture in pictures]).shape == (8, 12)


def test_a_batch_with_a_mosaic(tmp_path: Path) -> None:
    """Features are those of the joined picture; the truth shows each defect in its quarter."""
    mine = samples(tmp_path, "nut", good=2, bent=2)
    rng = np.random.default_rng(0)
    for sample in mine:
        sample.image.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(sample.image)
        if sample.mask:
            sample.mask.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((32, 32), 255, np.uint8)).save(sample.mask)
    weights = save_clip(tmp_path, CLIP_TINY, "tiny")
    detector = AprilGAN(weights=str(weights), device="cpu")
    batch = Tower(detector, mine, masks=True).load([(0, 2, 3, 1), (3,)])
    assert batch is not None
    assert batch.labels.tolist() == [1, 1]
    assert batch.truth is not None
    quarters = batch.truth[0].reshape(2, 32, 2, 32).mean((1, 3))
    assert quarters.tolist() == [[0, 1], [1, 0]]
    assert batch.truth[1].mean() == 1
    joined = join_four([np.asarray(Image.open(mine[n].image)) for n in (0, 2, 3, 1)])
    with torch.no_grad():
        seen = detector.embed(torch.from_numpy(detector.views(joined)[0].pixels))
    assert torch.equal(batch.levels[0][0], seen.levels[0])
