"""The coreset: the plain algorithm's selection, its options and its memory."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

from offnominal.backbones import load_backbone
from offnominal.errors import OptionError
from offnominal.images import read_image
from offnominal.memory import MemoryBank, coreset
from offnominal.memory.coreset import (
    cover,
    farthest_rows,
    pass_per_step,
    random_projection,
    select_coreset,
)
from offnominal.memory.search import arrays, lowering
from offnominal.memory.search.arrays import exact_distances
from offnominal.memory.storage import as_stored
from offnominal.sizing import resize_image, to_pixels

Floats = NDArray[np.float32]
Whole = NDArray[np.int64]


def normal(*shape: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def clusters(n: int, dim: int, spread: float) -> Floats:
    which = np.random.default_rng(1).integers(12, size=n)
    return normal(12, dim)[which] + np.float32(spread) * normal(n, dim, seed=2)


def outlier() -> Floats:
    rows = normal(1500, 24)
    rows[77] = 1e5
    return rows


CASES = {
    "random": normal(1500, 24),
    "clusters": clusters(1500, 24, 0.1),
    "tight clusters": clusters(1500, 24, 1e-3),
    "clusters at the limit of float32": clusters(1500, 24, 1e-6),
    "far from the origin": normal(1500, 24) + 500,
    "rows repeat": np.tile(normal(100, 24), (15, 1)),
    "rows repeat, side by side": normal(750, 24).repeat(2, 0),
    "all rows the same": np.ones((1500, 24), np.float32),
    "a grid, where many distances tie": (normal(1500, 12) > 0).astype(np.float32),
    "on a line": normal(1500, 1),
    "few dimensions in many": normal(1500, 3) @ normal(3, 40, seed=1),
    "one outlier": outlier(),
    "tiny": 1e-15 * normal(1500, 24),
    "zero": np.zeros((1500, 24), np.float32),
}


def plain_greedy(rows: Floats, count: int, start: int) -> Whole:
    """A pass over all rows for each selected one, in the documented order of additions."""
    nearest = np.full(len(rows), np.inf, np.float32)
    picked = [start]
    while len(picked) < count:
        squares = (rows - rows[picked[-1]]) ** 2
        while (width := squares.shape[1]) > 1:
            half = width // 2
            top = squares[:, width - half :]
            middle = squares[:, half : width - half]
            squares = np.concatenate([squares[:, :half] + top, middle], 1)
        nearest = np.minimum(nearest, squares[:, 0])
        nearest[picked] = -1
        picked.append(int(nearest.argmax()))
    return np.array(picked)


def one_pass_per_step(
    rows: Floats, count: int, start: int, progress: Callable[[str, int], None] | None = None
) -> Whole:
    """The way of other devices, on the CPU."""
    return pass_per_step(rows, count, start, "cpu", progress)


def covering_radius(rows: Floats, chosen: Floats) -> float:
    bank = MemoryBank(rows.shape[1])
    bank.add(chosen)
    return float(np.sqrt(bank.search(rows)[0].max()))


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many rounds, blocks and products in a few thousand rows, as in a few hundred thousand."""
    monkeypatch.setattr(coreset, "_COMPETING_BYTES", 2**12)
    monkeypatch.setattr(coreset, "_BLOCK_BYTES", 2**14)
    monkeypatch.setattr(coreset, "_AHEAD", 300)
    monkeypatch.setattr(coreset, "_CENTRES", 50)
    monkeypatch.setattr(coreset, "_STEP", 7)


@pytest.mark.parametrize("precision", ["numpy", "fp32", "bf16", "fp16"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.usefixtures("small_pieces")
def test_selects_what_the_plain_algorithm_selects(
    case: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if precision == "numpy":  # as where PyTorch was not imported
        monkeypatch.setattr(lowering, "lowered", without_torch)
    else:
        formats = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
        monkeypatch.setattr(
            lowering, "product_dtype", lambda how, _: formats[precision if how == "auto" else how]
        )
    picked = select_coreset(CASES[case], 120, start=42)
    assert picked.dtype == np.int64
    assert np.array_equal(picked, plain_greedy(CASES[case], 120, 42))


def without_torch(*given: Any) -> tuple[Floats, str]:
    far, rows, others, centre, precision, at_once = given
    return arrays.lowered(far, rows, others, centre, at_once), precision


@pytest.mark.parametrize("case", CASES)
def test_selects_the_same_in_pieces_of_the_usual_size(case: str) -> None:
    picked = select_coreset(CASES[case], 60, start=0)
    assert np.array_equal(picked, plain_greedy(CASES[case], 60, 0))


def test_what_is_too_far_is_covered_farthest_first() -> None:
    rows = np.array([[0.0], [1.0], [5.0], [5.5], [9.0]], np.float32)
    near = np.array([0.1, 4.0, 25.0, 30.25, 81.0], np.float32)
    assert cover(rows, near, 1.0).tolist() == [4, 2, 1]
    assert cover(rows, near, 100.0).tolist() == []
    assert cover(rows, np.full(5, np.inf, np.float32), 0.5**2).tolist() == [0, 4, 2, 1]


@pytest.mark.usefixtures("small_pieces")
def test_every_row_can_be_selected_and_none_twice() -> None:
    rows = np.tile(normal(100, 8), (5, 1))
    picked = select_coreset(rows, 500, start=7)
    assert sorted(picked.tolist()) == list(range(500))
    # Copies are left for last, lowest first.
    assert picked[100:].tolist() == sorted(picked[100:].tolist())


@pytest.fixture(scope="session")
def features(tiles: Path, mobilenet: Path) -> Floats:
    """Patch features of real tiles: (12 × 256, 128)."""
    backbone = load_backbone(weights=mobilenet)
    rows = []
    for file in sorted((tiles / "train" / "good").iterdir())[:12]:
        image = resize_image(read_image(file), 128, 128, "square")
        with torch.inference_mode():
            maps = backbone(torch.from_numpy(to_pixels(image, backbone.mean, backbone.std))[None])
        rows.append(maps[0].flatten(1).T.numpy())
    return np.concatenate(rows)


@pytest.mark.usefixtures("small_pieces")
def test_selects_what_the_plain_algorithm_selects_of_real_features(features: Floats) -> None:
    assert features.shape == (12 * 256, 128)
    picked = select_coreset(features, 200, start=5)
    assert np.array_equal(picked, plain_greedy(features, 200, 5))


def test_a_pass_per_step_selects_the_same_of_real_features(features: Floats) -> None:
    """It rounds in another order; here no two rows are that close."""
    picked = one_pass_per_step(features, 200, start=5)
    assert np.array_equal(picked, plain_greedy(features, 200, 5))


def test_a_pass_per_step_takes_the_lowest_of_copies_and_none_twice() -> None:
    rows = np.tile(normal(20, 8), (5, 1))
    picked = one_pass_per_step(rows, 100, start=0)
    assert picked[:20].max() < 20
    assert sorted(picked.tolist()) == list(range(100))


def test_covers_better_than_chance_and_within_twice_the_best(features: Floats) -> None:
    picked = select_coreset(features, 100)
    radius = covering_radius(features, features[picked])
    # Selected rows are that far apart, so 99 other rows cannot do with less than half.
    apart = cdist(features[picked], features[picked])[~np.eye(100, dtype=bool)].min()
    assert radius <= apart * 1.0001
    chance = np.random.default_rng(0).permutation(len(features))[:100]
    assert radius < 0.75 * covering_radius(features, features[chance])


def test_projection_covers_nearly_as_well(features: Floats) -> None:
    exact = covering_radius(features, features[select_coreset(features, 100)])
    projected = select_coreset(features, 100, project=32)
    assert covering_radius(features, features[projected]) < 1.4 * exact
    rows = random_projection(features, 32, seed=0)
    start = int(projected[0])
    assert np.array_equal(projected, select_coreset(rows, 100, start=start))
    assert start == int(select_coreset(features, 1)[0])


def test_projection_keeps_squared_distances_on_average() -> None:
    rows = normal(400, 256)
    pairs = np.triu_indices(400, 1)
    projected = random_projection(rows, 64)
    ratio = cdist(projected, projected)[pairs] ** 2 / cdist(rows, rows)[pairs] ** 2
    # √(2/64) = 0.177
    assert abs(ratio.mean() - 1) < 0.05
    assert 0.14 < ratio.std() < 0.22
    assert random_projection(rows, 256) is rows
    assert not np.array_equal(random_projection(rows, 64, 1), random_projection(rows, 64, 2))


def test_threads_do_not_change_the_selection() -> None:
    rows, before = normal(20000, 64), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = select_coreset(rows, 300)
        torch.set_num_threads(2)
        assert np.array_equal(select_coreset(rows, 300), alone)
    finally:
        torch.set_num_threads(before)


def test_the_seed_decides() -> None:
    rows = normal(500, 16)
    for project in (None, 8):
        first = select_coreset(rows, 20, seed=3, project=project)
        assert np.array_equal(first, select_coreset(rows, 20, seed=3, project=project))
        assert first[0] != select_coreset(rows, 20, seed=4, project=project)[0]


@pytest.mark.parametrize("select", [select_coreset, one_pass_per_step])
def test_progress_tells_every_selected_row(select: Callable[..., Whole]) -> None:
    told: list[tuple[str, int]] = []
    select(normal(100, 4), 10, start=0, progress=lambda stage, done: told.append((stage, done)))
    assert told == [("coreset", done) for done in range(2, 11)]


def test_rows_need_not_be_contiguous() -> None:
    rows = normal(16, 600).T
    picked = select_coreset(rows, 30, start=1)
    assert np.array_equal(picked, plain_greedy(rows.copy(), 30, 1))


@pytest.mark.parametrize("seed", [0, 1, 12345])
def test_the_first_row_is_what_torch_draws(seed: int) -> None:
    """So that models stay what they were."""
    drawn = torch.randint(1000, (1,), generator=torch.Generator().manual_seed(seed))
    assert select_coreset(normal(1000, 2), 1, seed=seed)[0] == int(drawn)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": np.zeros(9, np.float32)}, "shape .9,."),
        ({"rows": np.zeros((9, 4))}, "float64"),
        ({"rows": np.array([[0.0]] * 8 + [[np.nan]], np.float32)}, "finite"),
        ({"rows": np.full((9, 4), 1e19, np.float32)}, "norms below 1e.18"),
        ({"count": 0}, "count: cannot select 0 of 9 rows"),
        ({"count": 10}, "count: cannot select 10 of 9 rows"),
        ({"start": 9}, "start: 9 is not one of the rows 0 to 8"),
        ({"project": 0}, "project: 0"),
    ],
)
def test_errors_name_the_option(change: dict[str, object], message: str) -> None:
    arguments = {"rows": normal(9, 4), "count": 3} | change
    with pytest.raises(OptionError, match=message):
        select_coreset(**arguments)


@pytest.mark.slow
def test_memory_beside_the_rows_is_bounded() -> None:
    """150 MiB of rows; a copy of them or their products with 1,500 others would show."""
    program = """
import resource, torch
import numpy as np
from offnominal.memory.coreset import select_coreset
torch.set_num_threads(1)
rows = np.random.default_rng(0).standard_normal((150000, 256), np.float32)
select_coreset(rows[:5000], 50)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
select_coreset(rows, 300)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    if sys.platform != "linux":
        pytest.skip("ru_maxrss is in KiB on Linux only")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 80


@pytest.mark.parametrize("storage", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("case", ["random", "rows repeat", "all rows the same", "tight clusters"])
@pytest.mark.usefixtures("small_pieces")
def test_a_bank_takes_in_the_farthest_rows(case: str, storage: Literal["fp32", "int8"]) -> None:
    rows = CASES[case]
    bank = MemoryBank(storage=storage)
    bank.add(rows[:40] + 0.01)
    rows = as_stored(rows[:500], storage)
    near, picked = bank.search(rows)[0][:, 0], []
    for _ in range(60):
        picked.append(int(near.argmax()))
        near = np.minimum(near, exact_distances(rows.copy(), rows[picked[-1]]))
        near[picked] = -1
    assert farthest_rows(CASES[case][:500], bank, 60).tolist() == picked
