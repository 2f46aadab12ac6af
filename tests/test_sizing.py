"""Sizes, tiles and seams, and agreement with torchvision to the last bit."""

import numpy as np
import pytest
from PIL import Image
from torchvision import transforms

from offnominal.errors import OptionError
from offnominal.images import read_image
from offnominal.paths import find_images
from offnominal.sizing import (
    Tile,
    blend_tiles,
    fit_size,
    pad_image,
    resize_image,
    squared_mark,
    tile_grid,
    to_pixels,
)

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("size", "resolution", "multiple", "resize", "resized", "seen"),
    [
        ((361, 494), 448, 14, "short", (448, 616), (448, 616)),
        ((494, 361), 448, 14, "short", (616, 448), (616, 448)),
        ((1000, 1000), 450, 14, "short", (448, 448), (448, 448)),
        ((20, 1000), 14, 14, "short", (14, 700), (14, 700)),
        ((8, 8), 20, 14, "short", (14, 14), (14, 14)),
        ((361, 494), 448, 14, "crop", (448, 613), (448, 602)),
        ((494, 361), 448, 14, "crop", (613, 448), (602, 448)),
        ((1000, 1000), 450, 14, "crop", (450, 450), (448, 448)),
        ((20, 1000), 14, 14, "crop", (14, 700), (14, 700)),
        ((100, 300), 256, 32, "square", (256, 256), (256, 256)),
        ((100, 300), 250, 14, "square", (238, 238), (238, 238)),
    ],
)
def test_fit_size(size, resolution, multiple, resize, resized, seen):
    assert fit_size(*size, resolution, multiple, resize) == (resized, seen)
    image = resize_image(noise(*size), resolution, multiple, resize)
    assert image.shape == (*seen, 3)
    assert image.dtype == np.uint8
    assert image.flags.c_contiguous


def test_sizes_of_the_reference_code(tiles):
    # Grids that the released code printed for these images at 448.
    for name, grid in [
        ("test/good/exp1_num_10181.jpg", (32, 43)),
        ("test/good/exp1_num_127649.jpg", (36, 32)),
        ("test/good/exp1_num_129580.jpg", (46, 32)),
        ("test/crack/exp1_num_249594.jpg", (38, 32)),
    ]:
        image = resize_image(read_image(tiles / name), 448, 14, "crop")
        assert (image.shape[0] // 14, image.shape[1] // 14) == grid


def test_bad_sizes():
    with pytest.raises(OptionError, match=r"resolution=13: .*at least 14"):
        fit_size(100, 100, 13, 14, "short")
    with pytest.raises(OptionError, match=r"resize='long': expected 'short', 'crop' or 'square'"):
        resize_image(noise(20, 20), 28, 14, "long")


@pytest.mark.parametrize("resolution", [56, 448, 672])
@pytest.mark.parametrize("seed", range(4))
def test_equals_torchvision_bit_for_bit(seed, resolution):
    rng = np.random.default_rng(seed)
    image = noise(*rng.integers(60, 500, 2), seed)
    check_against_torchvision(image, resolution)


def test_equals_torchvision_on_real_tiles(tiles):
    for path in find_images([tiles / "test"])[::60]:
        check_against_torchvision(read_image(path), 448)


def check_against_torchvision(image, resolution):
    reference = transforms.Compose(
        [
            transforms.Resize(
                resolution, interpolation=transforms.InterpolationMode.BICUBIC, antialias=True
            ),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )(Image.fromarray(image))
    rows, columns = reference.shape[1:]
    height, width = rows - rows % 14, columns - columns % 14
    pixels = to_pixels(resize_image(image, resolution, 14, "crop"), MEAN, STD)
    assert pixels.dtype == np.float32
    assert pixels.flags.c_contiguous
    np.testing.assert_array_equal(pixels, reference[:, :height, :width].numpy())
    whole = resize_image(image, resolution, 14)
    sides = zip(whole.shape[:2], (rows, columns), strict=True)
    assert all(side % 14 == 0 and abs(side - own) <= 7 for side, own in sides)


def test_square_equals_torchvision():
    image = noise(90, 170)
    expected = transforms.Resize((224, 224), transforms.InterpolationMode.BICUBIC)(
        Image.fromarray(image)
    )
    np.testing.assert_array_equal(resize_image(image, 230, 16, "square"), np.asarray(expected))


def test_a_thin_mark_beside_a_large_one_is_not_lost():
    mark = np.zeros((64, 64), bool)
    mark[:, 2] = mark[20:60, 36:] = True  # a scratch, a quarter of a pixel wide
    found = squared_mark(mark, 16, 16)
    assert found[:, 0].all()
    assert found[5:15, 9:].all()
    assert found.sum() == 16 + 10 * 7


def test_every_value_is_normalised_as_torchvision_does():
    image = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
    for mean, std in [(MEAN, STD), ((0.5,) * 3, (0.5,) * 3), ((0.0,) * 3, (1.0,) * 3)]:
        expected = transforms.Normalize(mean, std)(transforms.ToTensor()(Image.fromarray(image)))
        np.testing.assert_array_equal(to_pixels(image, mean, std), expected.numpy())


def test_to_pixels_leaves_the_image_alone_and_takes_any_view():
    image = noise(28, 42)
    image.setflags(write=False)
    before = image.copy()
    pixels = to_pixels(image[::-1], MEAN, STD)
    np.testing.assert_array_equal(image, before)
    expected = (before[::-1].astype(np.float64) / 255 - MEAN) / STD
    np.testing.assert_allclose(pixels.transpose(1, 2, 0), expected, atol=1e-6)


@pytest.mark.parametrize("size", [(448, 448), (100, 1000), (1037, 613), (15, 29), (8, 8)])
@pytest.mark.parametrize("tile", [14, 100, 448, 2000])
@pytest.mark.parametrize("overlap", [0, 0.25, 0.5, 0.9])
def test_tile_grid_covers_the_image(size, tile, overlap):
    padded, tiles = tile_grid(*size, tile, 14, overlap)
    for side, whole in zip(size, padded, strict=True):
        assert whole % 14 == 0
        assert side <= whole < side + 14
    covered = np.zeros(padded, int)
    for t in tiles:
        assert t.top % 14 == t.left % 14 == t.height % 14 == t.width % 14 == 0
        assert t.height <= tile
        assert t.width <= tile
        covered[t.top : t.top + t.height, t.left : t.left + t.width] += 1
    assert covered.shape == padded
    assert covered.min() >= 1
    assert len(set(tiles)) == len(tiles)
    assert len({(t.height, t.width) for t in tiles}) == 1
    for starts, length, whole in [
        (sorted({t.top for t in tiles}), tiles[0].height, padded[0]),
        (sorted({t.left for t in tiles}), tiles[0].width, padded[1]),
    ]:
        assert starts[0] == 0
        assert starts[-1] + length == whole
        steps = np.diff(starts)
        if len(steps):
            assert steps.max() - steps.min() <= 14
            # A patch is the least step there is.
            assert steps.max() <= max(14, length * (1 - overlap) + 1e-9)


def test_tile_grid_example():
    padded, tiles = tile_grid(100, 200, 64, 16, 0.25)
    assert padded == (112, 208)
    assert {t.top for t in tiles} == {0, 48}
    assert {t.left for t in tiles} == {0, 48, 96, 144}
    assert tiles[1] == Tile(top=0, left=48, height=64, width=64)


@pytest.mark.parametrize(
    ("tile", "overlap", "message"),
    [
        (13, 0.25, r"tile=13: .*at least 14"),
        (28, 1, r"overlap=1: "),
        (28, -0.1, r"overlap=-0\.1: "),
        (28, float("nan"), r"overlap=nan: "),
    ],
)
def test_bad_tiles(tile, overlap, message):
    with pytest.raises(OptionError, match=message):
        tile_grid(100, 100, tile, 14, overlap)


def test_pad_image_mirrors():
    image = np.array([[1, 2, 3], [4, 5, 6]], np.uint8)
    np.testing.assert_array_equal(
        pad_image(image, 3, 4), [[1, 2, 3, 2], [4, 5, 6, 5], [1, 2, 3, 2]]
    )
    far = pad_image(image, 2, 9)
    np.testing.assert_array_equal(far[0], [1, 2, 3, 2, 1, 2, 3, 2, 1])
    colour = noise(10, 9)
    padded = pad_image(colour, 50, 40)
    assert padded.shape == (50, 40, 3)
    assert padded.dtype == np.uint8
    np.testing.assert_array_equal(padded[:10, :9], colour)
    np.testing.assert_array_equal(padded[10], padded[8])
    np.testing.assert_array_equal(pad_image(colour, 10, 9), colour)
    with pytest.raises(OptionError, match=r"cannot pad 10 x 9 pixels to 9 x 9"):
        pad_image(colour, 9, 9)


@pytest.mark.parametrize("overlap", [0, 0.25, 0.6])
@pytest.mark.parametrize("constant", [0.1, 1 / 3, 13.6, 1e-30])
def test_a_constant_stays_exactly_that_constant(overlap, constant):
    padded, tiles = tile_grid(500, 700, 168, 14, overlap)
    scores = [np.full((t.height // 14, t.width // 14), constant, np.float32) for t in tiles]
    blended = blend_tiles(scores, tiles, padded, 14)
    assert blended.dtype == np.float32
    assert blended.shape == (padded[0] // 14, padded[1] // 14)
    assert (blended == np.float32(constant)).all()


def test_tiles_of_one_map_give_that_map_back():
    padded, tiles = tile_grid(500, 300, 112, 14, 0.3)
    whole = np.random.default_rng(0).normal(size=(padded[0] // 14, padded[1] // 14))
    scores = [cut(whole, t) for t in tiles]
    blended = blend_tiles(scores, tiles, padded, 14)
    assert blended.dtype == np.float64
    np.testing.assert_allclose(blended, whole, atol=1e-12)


def cut(whole, t, multiple=14):
    top, left = t.top // multiple, t.left // multiple
    return whole[top : top + t.height // multiple, left : left + t.width // multiple]


def test_tiles_that_disagree_leave_no_seam():
    padded, tiles = tile_grid(14 * 40, 14 * 100, 14 * 40, 14, 0.25)
    levels = np.arange(len(tiles)) % 2
    assert len(tiles) >= 3
    scores = [np.full((40, 40), float(level)) for level in levels]
    row = blend_tiles(scores, tiles, padded, 14)[20]
    assert row.min() >= 0
    assert row.max() <= 1
    # Ten patches in common: a plain mean would jump by a half at both ends of them.
    assert np.abs(np.diff(row)).max() < 0.101
    first_end = tiles[0].width // 14
    second_start = tiles[1].left // 14
    assert row[second_start - 1] == 0
    assert 0 < row[second_start] < 0.051
    assert 0.949 < row[first_end - 1] < 1
    assert (np.diff(row[second_start - 1 : first_end + 1]) >= 0).all()


def test_an_outlier_at_a_tiles_inner_edge_hardly_counts():
    padded, tiles = tile_grid(280, 560, 280, 14, 0.5)
    scores = [np.zeros((20, 20)) for _ in tiles]
    scores[0][:, -1] = 1.0
    assert blend_tiles(scores, tiles, padded, 14).max() < 0.051
    # At the border of the image itself there is no other tile to ask.
    scores[0][:] = 0
    scores[0][:, 0] = 1.0
    assert blend_tiles(scores, tiles, padded, 14)[:, 0].min() == 1


def test_the_border_of_the_image_is_no_edge_of_a_tile():
    padded, tiles = tile_grid(280, 560, 280, 14, 0.9)
    assert [t.left for t in tiles] == list(range(0, 281, 28))
    scores = [np.zeros((20, 20)) for _ in tiles]
    scores[0][:] = 1.0
    # Here the second tile begins; the first one sees as much of the picture, and more to the left.
    assert blend_tiles(scores, tiles, padded, 14)[:, 2].min() > 0.9
    assert blend_tiles(scores[::-1], tiles, padded, 14)[:, -3].min() > 0.9


def test_blend_tiles_refuses_what_does_not_fit():
    padded, tiles = tile_grid(100, 200, 64, 16)
    scores = [np.zeros((4, 4))] * len(tiles)
    with pytest.raises(OptionError, match=r"7 score grids for 8 tiles"):
        blend_tiles(scores[1:], tiles, padded, 16)
    with pytest.raises(OptionError, match=r"expected scores of shape \(4, 4\)"):
        blend_tiles([np.zeros((4, 5)), *scores[1:]], tiles, padded, 16)
    with pytest.raises(OptionError, match=r"do not cover"):
        blend_tiles(scores[1:], tiles[1:], padded, 16)
