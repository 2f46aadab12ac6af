"""The cache of features: the same figures as without, bounded, and never stale."""

import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.seeded import CLIP_TINY, save_clip

from offnominal import AnomalyDINO
from offnominal.backbones import load_backbone
from offnominal.backbones.base import Backbone
from offnominal.backbones.cache import FeatureCache, cached, default_cache
from offnominal.backbones.clip import ClipBackbone
from offnominal.benchmark.machine import NetworkMeter
from offnominal.detectors.language.clip import CLIPDetector
from offnominal.detectors.language.winclip import WinCLIP
from offnominal.errors import OptionError

BIG = 10**9


def entry(value: float, count: int = 250) -> list[np.ndarray]:
    return [np.full(count, value, np.float32), np.full(3, -value, np.float32)]


def metered(
    network: Backbone,
    cache: FeatureCache | None,
    conditions: tuple[str, ...] = ("fp32", "cpu"),
) -> tuple[Backbone, NetworkMeter]:
    meter = NetworkMeter()
    return cached(network, cache, conditions, meter), meter


def key(number: int) -> str:
    return f"{number:040x}"[::-1]


def test_what_was_put_comes_back(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path / "deep" / "down", BIG)
    assert cache.get(key(1)) is None
    cache.put(key(1), entry(3.5))
    found = cache.get(key(1))
    assert found is not None
    for array, expected in zip(found, entry(3.5), strict=True):
        np.testing.assert_array_equal(array, expected)
    # Another process sees it, and knows how much there is.
    other = FeatureCache(tmp_path / "deep" / "down", BIG)
    assert other.get(key(1)) is not None
    assert other.size >= 1000


def test_a_damaged_entry_is_made_again(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path, BIG)
    cache.put(key(1), entry(1))
    [file] = tmp_path.glob("??/*.npz")
    file.write_bytes(file.read_bytes()[:500])
    assert cache.get(key(1)) is None
    assert not file.exists()
    cache.put(key(1), entry(2))
    found = cache.get(key(1))
    assert found is not None
    assert found[0][0] == 2


def test_the_limit_holds_and_old_entries_make_room(tmp_path: Path) -> None:
    before = FeatureCache(tmp_path, BIG)
    for number in range(8):
        before.put(key(number), entry(number))
    past = time.time() - 1000
    for age, file in enumerate(sorted(tmp_path.glob("??/*.npz"))):
        os.utime(file, (past + age, past + age))
    cache = FeatureCache(tmp_path, 10_000)
    assert cache.get(key(3)) is not None  # used by this run: it stays
    for number in range(100, 130):
        cache.put(key(number), entry(number))
        on_disk = sum(file.stat().st_size for file in tmp_path.glob("??/*.npz"))
        assert on_disk <= 10_000 + 40 * 600  # file headers are not counted when they are written
    assert cache.get(key(3)) is not None
    assert cache.get(key(0)) is None
    # Entries of this run are never thrown out for later ones of the same run.
    assert cache.get(key(100)) is not None
    assert cache.get(key(129)) is None


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OptionError, match="--no-cache"):
        FeatureCache(tmp_path / "file" / "cache", BIG)


def test_default_place_follows_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    monkeypatch.delenv("OFFNOMINAL_CACHE", raising=False)
    assert default_cache() == tmp_path / "x" / "offnominal" / "features"
    monkeypatch.setenv("OFFNOMINAL_CACHE", str(tmp_path / "own"))
    assert default_cache() == tmp_path / "own" / "features"


@pytest.mark.slow
def test_a_second_pass_takes_all_from_the_cache_and_scores_alike(
    parts: Path, tmp_path: Path
) -> None:
    images = sorted((parts / "fabric").rglob("*.png"))[:7]
    network = load_backbone("builtin")
    found, counts = [], []
    for cache in (None, FeatureCache(tmp_path, BIG), FeatureCache(tmp_path, BIG)):
        wrapped, meter = metered(network, cache)
        detector = AnomalyDINO(backbone="builtin", rotations="0,90", device="cpu")
        detector.use_network(wrapped)
        detector.fit(images[:3])
        found.append([prediction.score for prediction in detector.predict(images[3:])])
        counts.append((meter.computed, meter.from_cache))
    assert found[0] == found[1] == found[2]
    # Three references at two angles, and four test images.
    assert counts == [(10, 0), (10, 0), (0, 10)]


def test_other_pixels_or_other_conditions_are_other_entries(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path, BIG)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(1, 3, 64, 64, generator=generator)
    network = load_backbone("builtin")
    metered(network, cache)[0](pixels)
    cases = [
        (network, ("bf16", "cpu"), pixels),
        (network, ("fp32", "card"), pixels),
        (load_backbone("builtin-aligned"), ("fp32", "cpu"), pixels),
        (network, ("fp32", "cpu"), pixels.transpose(2, 3).contiguous()),
        (network, ("fp32", "cpu"), pixels.reshape(1, 3, 32, 128)),
    ]
    for net, conditions, shown in cases:
        again, meter = metered(net, cache, conditions)
        again(shown)
        assert (meter.computed, meter.from_cache) == (1, 0)
    again, meter = metered(network, cache)
    torch.testing.assert_close(again(pixels), network(pixels), rtol=0, atol=0)
    assert (meter.computed, meter.from_cache) == (0, 1)
    assert (again.dim, again.stride, again.name) == (network.dim, network.stride, network.name)


def test_levels_are_kept_as_well(mobilenet: Path, tmp_path: Path) -> None:
    pixels = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    network = load_backbone(weights=mobilenet)
    cache = FeatureCache(tmp_path, BIG)
    plain = network.levels(pixels)
    assert [tuple(each.shape[-2:]) for each in plain.maps] == [(8, 12), (4, 6)]
    for counts in ((2, 0), (0, 2)):
        wrapped, meter = metered(network, cache)
        found = wrapped.levels(pixels)
        assert (meter.computed, meter.from_cache) == counts
        for kept, expected in zip(
            [*found.maps, found.summary], [*plain.maps, plain.summary], strict=True
        ):
            # One image at a time or two together: the last bit may differ.
            torch.testing.assert_close(kept, expected, rtol=1e-4, atol=1e-5)


def test_methods_on_clip_share_a_pass(tmp_path: Path) -> None:
    weights = save_clip(tmp_path, CLIP_TINY, "tiny")
    network = load_backbone(None, weights)
    assert isinstance(network, ClipBackbone)
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 255, (64, 64, 3), dtype=np.uint8) for _ in range(3)]
    plain = [WinCLIP(weights=str(weights)), CLIPDetector(weights=str(weights))]
    expected = [[p.score for p in d.fit().predict(images)] for d in plain]

    cache = FeatureCache(tmp_path / "cache", BIG)
    counts = []
    for method, scores in zip(
        (WinCLIP, CLIPDetector, CLIPDetector), (*expected, expected[1]), strict=True
    ):
        wrapped, meter = metered(network, cache)
        detector = method(weights=str(weights))
        detector.use_network(wrapped)
        assert [p.score for p in detector.fit().predict(images)] == pytest.approx(scores, abs=1e-6)
        counts.append((meter.computed, meter.from_cache))
    # WinCLIP asks for the whole image and for windows; CLIP finds what it needs of that pass.
    assert counts == [(6, 0), (0, 3), (0, 3)]


def test_clip_run_by_other_rules_has_entries_of_its_own(tmp_path: Path) -> None:
    network = load_backbone(None, save_clip(tmp_path, CLIP_TINY, "tiny"))
    assert isinstance(network, ClipBackbone)
    cache = FeatureCache(tmp_path / "cache", BIG)
    pixels = torch.rand(1, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    wrapped, meter = metered(network, cache)
    assert isinstance(wrapped, ClipBackbone)
    runs = [
        wrapped.adapted(positions, activation)
        for positions in ("bicubic", "bilinear")
        for activation in ("gelu", "quickgelu")
    ]
    for turn in range(2):
        for run in runs:
            for values_from in (None, 2):
                found = run.tokens(pixels, (1, 3), values_from)
                own = network.adapted(run.positions, run.activation)
                plain = own.tokens(pixels, (1, 3), values_from)
                for ours, theirs in zip(
                    [*found.blocks, *found.values, found.last],
                    [*plain.blocks, *plain.values, plain.last],
                    strict=True,
                ):
                    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
                assert found.grid == plain.grid
        assert (meter.computed, meter.from_cache) == (8, 8 * turn)
    assert len(list((tmp_path / "cache").glob("??/*.npz"))) == 4 * (2 + 2)


def test_the_time_of_what_is_found_is_that_of_its_making(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path, BIG)
    pixels = torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    wrapped, first = metered(load_backbone("builtin"), cache)
    wrapped(pixels)
    assert first.spared == 0
    assert first.handling > 0
    wrapped, again = metered(load_backbone("builtin"), cache)
    wrapped(pixels)
    assert again.seconds == 0
    assert again.spared == pytest.approx(first.seconds)
    assert again.correction == again.spared - again.handling
    # With other threads it would have taken another time, so that there is none to go by.
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        wrapped, other = metered(load_backbone("builtin"), cache)
        wrapped(pixels)
    finally:
        torch.set_num_threads(threads)
    assert other.from_cache == 2
    assert np.isnan(other.spared)


def test_a_native_grid_is_shared_whatever_the_rule_of_positions(tmp_path: Path) -> None:
    network = load_backbone(None, save_clip(tmp_path, CLIP_TINY, "tiny"))
    assert isinstance(network, ClipBackbone)
    for side, counts in ((64, (1, 1)), (96, (2, 0))):
        wrapped, meter = metered(network, FeatureCache(tmp_path / "cache", BIG))
        assert isinstance(wrapped, ClipBackbone)
        for positions in ("bicubic", "bilinear"):
            wrapped.adapted(positions).tokens(torch.zeros(1, 3, side, side))
        assert (meter.computed, meter.from_cache) == counts
