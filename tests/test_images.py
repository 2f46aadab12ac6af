"""Reading real files of every kind, and refusing broken ones in words that help."""

import io
import os
import stat
import struct
import subprocess
import sys
import tempfile
import warnings
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageCms

from offnominal.errors import ImageError, OptionError
from offnominal.images import content_digest, describe, read_image
from offnominal.paths import find_images

# Pillow warns on its way to refusing a damaged TIFF.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL.TiffImagePlugin")

# What each value of the EXIF orientation tag asks a viewer to do to the stored pixels.
UPRIGHT = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: np.swapaxes(a, 0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.swapaxes(np.rot90(a, 2), 0, 1),
    8: lambda a: np.rot90(a, 1),
}


def picture(height=37, width=53, seed=0):
    """A smooth colour picture, so that lossy formats keep it nearly as it is."""
    noise = np.random.default_rng(seed).normal(size=(height, width, 3)).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 4)
    return cv2.normalize(smooth, None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)


def deep(*shape, low=0, high=65536):
    return np.random.default_rng(1).integers(low, high, shape, dtype=np.uint16)


def png(values, orientation=None):
    """A 16-bit PNG: no library here writes every colour type, or EXIF with 16 bits."""

    def chunk(name, data):
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    height, width, *rest = values.shape
    colour_type = {1: 0, 2: 4, 3: 2, 4: 6}[rest[0] if rest else 1]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    exif = b"MM\0*" + struct.pack(">IHHHIHHI", 8, 1, 274, 3, 1, orientation or 1, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + (chunk(b"eXIf", exif) if orientation else b"")
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def tiff(values, *, orientation=1, photometric=None, sample_format=1, order="<", packed12=False):
    """An uncompressed TIFF of any number type, byte order and orientation."""
    height, width, *rest = values.shape
    channels = rest[0] if rest else 1
    bits = 12 if packed12 else values.dtype.itemsize * 8
    if packed12:
        pairs = values.reshape(-1, 2).astype(np.uint32)
        wide = (pairs[:, 0] << 12 | pairs[:, 1]).astype(">u4")
        data = wide.view(np.uint8).reshape(-1, 4)[:, 1:].tobytes()
    else:
        data = values.astype(values.dtype.newbyteorder(order)).tobytes()
    if photometric is None:
        photometric = 2 if channels >= 3 else 1
    extra = [(338, [2])] if channels == 4 else []
    tags = [
        (256, [width]),
        (257, [height]),
        (258, [bits] * channels),
        (259, [1]),
        (262, [photometric]),
        (273, None),
        (274, [orientation]),
        (277, [channels]),
        (278, [height]),
        (279, [len(data)]),
        *extra,
        (339, [sample_format] * channels),
    ]
    after = 8 + 2 + 12 * len(tags) + 4
    entries, tail = b"", b""
    for tag, numbers in tags:
        if tag == 273:
            entries += struct.pack(order + "HHII", tag, 4, 1, after + 32)
        elif len(numbers) <= 2:
            numbers = [*numbers, 0][:2]
            count = 2 if tag == 258 and channels == 2 else 1
            entries += struct.pack(order + "HHIHH", tag, 3, count, *numbers)
        else:
            entries += struct.pack(order + "HHII", tag, 3, len(numbers), after + len(tail))
            tail += struct.pack(order + "H" * len(numbers), *numbers)
    mark = b"II" if order == "<" else b"MM"
    head = mark + struct.pack(order + "HI", 42, 8) + struct.pack(order + "H", len(tags))
    return head + entries + bytes(4) + tail.ljust(32, b"\0") + data


def saved(path, pixels, **options):
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(path, **options)
    return path


def write(path, data):
    path.write_bytes(data)
    return path


def opencv(path):
    return cv2.cvtColor(cv2.imread(str(path), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


def assert_close(image, rgb):
    """Within the rounding of another 8-bit colour space, which is coarse in LAB's deep blues."""
    error = np.abs(image.astype(int) - rgb)
    assert error.mean() < 1.5
    assert error.max() < 40


# --- agreement with OpenCV -------------------------------------------------------------------


def test_real_grey_jpegs_equal_opencv(tiles):
    files = find_images([tiles / "train", tiles / "test"])
    assert len(files) == 1344
    for path in files[::9]:
        np.testing.assert_array_equal(read_image(path), opencv(path))


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("progressive", [False, True])
def test_colour_jpeg_equals_opencv(tmp_path, subsampling, progressive):
    for quality in (40, 75, 95):
        path = tmp_path / f"{quality}.jpg"
        saved(path, picture(), subsampling=subsampling, quality=quality, progressive=progressive)
        image = read_image(path)
        assert image.dtype == np.uint8
        assert image.shape == (37, 53, 3)
        assert image.flags.c_contiguous
        assert image.flags.writeable
        np.testing.assert_array_equal(image, opencv(path))


def test_alpha_is_dropped_as_opencv_does(tmp_path):
    rgba = np.dstack([picture(), picture(seed=2)[..., 0]])
    path = saved(tmp_path / "a.png", rgba)
    np.testing.assert_array_equal(read_image(path), rgba[..., :3])
    np.testing.assert_array_equal(read_image(path), opencv(path))
    np.testing.assert_array_equal(read_image(saved(tmp_path / "a.tif", rgba)), rgba[..., :3])
    webp = saved(tmp_path / "a.webp", rgba, lossless=True, exact=True)
    np.testing.assert_array_equal(read_image(webp), rgba[..., :3])


# --- formats and modes -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [
        *(("RGB", suffix) for suffix in ("png", "bmp", "tif", "tiff", "webp")),
        *(("L", suffix) for suffix in ("png", "bmp", "tif", "webp")),
        *(("1", suffix) for suffix in ("png", "bmp", "tif")),
        *(("P", suffix) for suffix in ("png", "bmp", "tif")),
        *(("LA", suffix) for suffix in ("png", "tif")),
        ("PA", "tif"),
        ("RGBA", "png"),
    ],
)
def test_lossless_modes(tmp_path, mode, suffix):
    rgb = picture()
    grey = rgb[..., 0].copy()
    palette = np.random.default_rng(3).integers(0, 256, (256, 3), dtype=np.uint8)
    image = Image.fromarray(grey)
    expected = np.dstack([grey] * 3)
    if mode in ("RGB", "RGBA"):
        image, expected = Image.fromarray(rgb).convert(mode), rgb
    elif mode in ("P", "PA"):
        image = Image.fromarray(grey)
        image.putpalette(palette.tobytes())
        image, expected = image.convert(mode), palette[grey]
    elif mode == "1":
        expected = np.dstack([np.where(grey >= 128, 255, 0).astype(np.uint8)] * 3)
        image = Image.fromarray(grey >= 128)
    elif mode == "LA":
        image.putalpha(Image.fromarray(rgb[..., 1].copy()))
    assert image.mode == mode
    options = {"lossless": True} if suffix == "webp" else {}
    path = saved(tmp_path / f"a.{suffix}", image, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(read_image(path), expected)
        np.testing.assert_array_equal(read_image(image), expected)


def test_palette_with_several_transparencies_reads_without_a_warning(tmp_path):
    image = Image.fromarray(picture()).quantize(16)
    path = saved(tmp_path / "a.png", image, transparency=bytes(range(16)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(read_image(path), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "LAB", "HSV", "RGBa", "La"])
def test_other_colour_spaces_come_back_as_the_picture(mode):
    rgb = picture()
    image = Image.fromarray(rgb)
    if mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        image = ImageCms.profileToProfile(image, srgb, lab, outputMode="LAB")
    elif mode in ("RGBa", "La"):
        image = image.convert({"RGBa": "RGBA", "La": "LA"}[mode]).convert(mode)
    else:
        image = image.convert(mode)
    assert image.mode == mode
    if mode == "La":
        rgb = np.asarray(Image.fromarray(rgb).convert("L").convert("RGB"))
    assert_close(read_image(image), rgb)


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "LAB"])
def test_other_colour_spaces_in_tiff(tmp_path, mode):
    rgb = picture()
    image = Image.fromarray(rgb)
    if mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        image = ImageCms.profileToProfile(image, srgb, lab, outputMode="LAB")
    else:
        image = image.convert(mode)
    assert_close(read_image(saved(tmp_path / "a.tif", image)), rgb)


def test_cmyk_jpeg_with_adobe_inversion(tmp_path):
    path = saved(tmp_path / "a.jpg", Image.fromarray(picture()).convert("CMYK"), quality=95)
    with Image.open(path) as image:
        assert image.mode == "CMYK"
        assert "adobe" in image.info
    error = np.abs(read_image(path).astype(int) - picture())
    assert error.mean() < 3
    assert np.abs(read_image(path).astype(int) - opencv(path)).max() <= 2


def test_a_wrong_suffix_does_not_matter(tmp_path):
    path = saved(tmp_path / "a.png", picture(), format="BMP")
    np.testing.assert_array_equal(read_image(path), picture())


def test_a_jpeg_with_a_second_preview_picture_reads_as_the_first(tmp_path):
    first, second = Image.fromarray(picture()), Image.fromarray(picture(seed=5))
    path = saved(tmp_path / "a.jpg", first, format="MPO", save_all=True, append_images=[second])
    with Image.open(path) as image:
        assert image.n_frames == 2
        from_pillow = read_image(image)
    np.testing.assert_array_equal(read_image(path), opencv(path))
    np.testing.assert_array_equal(from_pillow, opencv(path))


# --- 16 bits ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("channels", "encode"),
    [
        *((channels, "png") for channels in (1, 2, 3, 4)),
        *((channels, order) for channels in (1, 3, 4) for order in "<>"),
    ],
)
def test_sixteen_bit_files_are_rounded_not_cut(tmp_path, channels, encode):
    values = deep(24, 30) if channels == 1 else deep(24, 30, channels)
    data = png(values) if encode == "png" else tiff(values, order=encode)
    path = write(tmp_path / "a.img", data)
    colour = {1: values, 2: values[..., 0], 3: values, 4: values[..., :3]}[channels]
    expected = np.rint(colour / 65535 * 255).astype(np.uint8)
    if expected.ndim == 2:
        expected = np.dstack([expected] * 3)
    assert (expected != np.resize(colour >> 8, colour.shape).reshape(24, 30, -1)).any()
    np.testing.assert_array_equal(read_image(path), expected)


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize(
    ("suffix", "how"),
    [
        (".png", []),
        (".tif", [cv2.IMWRITE_TIFF_COMPRESSION, 5, cv2.IMWRITE_TIFF_PREDICTOR, 2]),  # LZW
        (".tif", [cv2.IMWRITE_TIFF_COMPRESSION, 8, cv2.IMWRITE_TIFF_ROWSPERSTRIP, 7]),  # Deflate
    ],
)
def test_both_bytes_of_colour_come_out_of_compressed_files(tmp_path, channels, suffix, how):
    values = np.sort(deep(40, 30, channels), axis=0)  # filters and predictors have something to do
    assert cv2.imwrite(str(tmp_path / f"a{suffix}"), values, how)
    found = read_image(tmp_path / f"a{suffix}", "0,100")
    np.testing.assert_array_equal(found, read_image(values[..., 2::-1], "0,100"))
    narrow = values // 250  # all of it in the lower byte, but for a bit
    assert cv2.imwrite(str(tmp_path / f"b{suffix}"), narrow, how)
    found = read_image(tmp_path / f"b{suffix}", "0,100")
    np.testing.assert_array_equal(found, read_image(narrow[..., 2::-1], "0,100"))


def test_percentiles_keep_what_lies_below_eight_bits(tmp_path):
    values = deep(64, 64, 3, low=1000, high=1512)
    path = write(tmp_path / "a.png", png(values))
    assert len(np.unique(read_image(path))) <= 4
    stretched = read_image(path, sixteen_bit="0.5,99.5")
    low, high = np.percentile(values.astype(np.float64), [0.5, 99.5])
    expected = np.rint(np.clip((values - low) / (high - low), 0, 1) * 255)
    np.testing.assert_array_equal(stretched, expected.astype(np.uint8))
    assert len(np.unique(stretched)) == 256
    np.testing.assert_array_equal(read_image(values, "0.5,99.5"), stretched)
    from_tiff = write(tmp_path / "a.tif", tiff(values))
    np.testing.assert_array_equal(read_image(from_tiff, "0.5,99.5"), stretched)


def test_percentiles_of_a_flat_image_fall_back_to_the_range():
    flat = np.full((20, 20), 30000, np.uint16)
    assert set(np.unique(read_image(flat, "1,99"))) == {round(30000 / 257)}


def test_percentiles_ignore_alpha():
    rgba = np.dstack([deep(20, 20, 3, low=100, high=900), np.full((20, 20), 65535, np.uint16)])
    np.testing.assert_array_equal(read_image(rgba, "0,100"), read_image(rgba[..., :3], "0,100"))


def test_eight_bits_are_not_stretched(tmp_path):
    path = saved(tmp_path / "a.png", picture() // 4)
    np.testing.assert_array_equal(read_image(path, "5,95"), picture() // 4)


@pytest.mark.parametrize(
    "value", ["", "Range", "1", "1,2,3", "a,b", "99,1", "5,5", "-1,99", "0,101", "nan,99", "1;99"]
)
def test_bad_sixteen_bit_option(value):
    with pytest.raises(OptionError, match=r"sixteen_bit=.*0 <= P1 < P2 <= 100"):
        read_image(picture(), sixteen_bit=value)


def test_tiff_where_white_is_zero(tmp_path):
    values = deep(20, 24)
    path = write(tmp_path / "a.tif", tiff(values, photometric=0))
    expected = np.rint((65535 - values.astype(float)) / 257).astype(np.uint8)
    np.testing.assert_array_equal(read_image(path)[..., 0], expected)
    eight = write(tmp_path / "b.tif", tiff((values >> 8).astype(np.uint8), photometric=0))
    np.testing.assert_array_equal(read_image(eight)[..., 0], 255 - (values >> 8))


def test_twelve_bit_tiff_fills_its_own_range(tmp_path):
    values = deep(20, 24, high=4096)
    values[0, :2] = 0, 4095
    path = write(tmp_path / "a.tif", tiff(values, packed12=True))
    grey = read_image(path)[..., 0]
    assert (grey[0, 0], grey[0, 1]) == (0, 255)
    assert np.abs(grey - values / 4095 * 255).max() <= 0.51


def test_pillow_mode_i_holds_sixteen_bits_or_is_refused():
    values = deep(20, 24)
    image = Image.fromarray(values.astype(np.int32))
    assert image.mode == "I"
    np.testing.assert_array_equal(read_image(image), read_image(values))
    with pytest.raises(ImageError, match=r"32-bit.*uint16"):
        read_image(Image.fromarray(values.astype(np.int32) + 1_000_000))


@pytest.mark.parametrize(
    "values",
    [
        deep(20, 24).astype(np.float32),
        deep(20, 24).astype(np.float64),
        deep(20, 24).astype(np.int16),
        deep(20, 24).astype(np.uint32),
        deep(20, 24, 3).astype(np.uint32),
        deep(20, 24).astype(np.int8),
    ],
    ids=lambda values: f"{values.dtype}-{values.ndim}",
)
def test_other_number_types_in_tiff_say_what_to_convert_to(tmp_path, values):
    code = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    path = write(tmp_path / "a.tif", tiff(values, sample_format=code))
    with pytest.raises(ImageError, match=r"a\.tif: .*uint8.*uint16"):
        read_image(path)


# --- orientation -----------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_in_every_format(tmp_path, orientation):
    rgb, values = picture(), deep(24, 30, 3)
    exif = Image.Exif()
    exif[274] = orientation
    upright = UPRIGHT[orientation](rgb)
    for name, options in [("a.png", {}), ("a.webp", {"lossless": True}), ("a.tif", {})]:
        path = saved(tmp_path / name, rgb, exif=exif, **options)
        np.testing.assert_array_equal(read_image(path), upright, err_msg=name)
        with Image.open(path) as image:
            np.testing.assert_array_equal(read_image(image), upright, err_msg=name)
    grey = saved(tmp_path / "grey.png", rgb[..., 0].copy(), exif=exif)
    np.testing.assert_array_equal(read_image(grey), np.dstack([upright[..., 0]] * 3))
    jpeg = saved(tmp_path / "a.jpg", rgb, exif=exif, quality=95)
    np.testing.assert_array_equal(read_image(jpeg), opencv(jpeg))
    assert np.abs(read_image(jpeg).astype(int) - upright).mean() < 2

    for stored in (values, values[..., 0]):
        files = {
            "deep.png": png(stored, orientation),
            "little.tif": tiff(stored, orientation=orientation),
            "big.tif": tiff(stored, orientation=orientation, order=">"),
        }
        expected = read_image(np.ascontiguousarray(UPRIGHT[orientation](stored)))
        for name, data in files.items():
            image = read_image(write(tmp_path / name, data))
            np.testing.assert_array_equal(image, expected, err_msg=f"{name} {stored.ndim}")


def test_unreadable_orientation_leaves_the_picture_as_stored(tmp_path):
    for number, exif in enumerate([b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff"]):
        path = saved(tmp_path / f"{number}.jpg", picture(), exif=exif)
        assert read_image(path).shape == (37, 53, 3)
    exif = Image.Exif()
    exif[274] = 77
    assert read_image(saved(tmp_path / "a.png", picture(), exif=exif)).shape == (37, 53, 3)


# --- arrays and Pillow images ----------------------------------------------------------------


def test_arrays_of_every_accepted_shape():
    rgb = picture()
    grey = np.dstack([rgb[..., 0]] * 3)
    np.testing.assert_array_equal(read_image(rgb), rgb)
    np.testing.assert_array_equal(read_image(rgb[..., 0]), grey)
    np.testing.assert_array_equal(read_image(rgb[..., :1]), grey)
    np.testing.assert_array_equal(read_image(np.dstack([rgb, rgb[..., :1]])), rgb)
    turned = read_image(rgb[::-1, ::-1])
    np.testing.assert_array_equal(turned, rgb[::-1, ::-1])
    assert turned.flags.c_contiguous
    np.testing.assert_array_equal(read_image(rgb[::-1, ::-2, 0]), grey[::-1, ::-2])
    values = deep(20, 24, 3)
    expected = np.rint(values / 257).astype(np.uint8)
    for array in (values, values.astype(">u2"), np.dstack([values, values[..., :1]])):
        np.testing.assert_array_equal(read_image(array), expected)


def test_the_result_is_the_callers_own():
    rgb = picture()
    rgb.setflags(write=False)
    image = read_image(rgb)
    assert not np.shares_memory(image, rgb)
    image[:] = 0
    assert rgb.any()


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((20, 20), np.float32), r"float32; .*uint8"),
        (np.zeros((20, 20), bool), r"bool; .*uint8"),
        (np.zeros((20, 20, 3), np.int64), r"int64; .*uint8"),
        (np.zeros((3, 20, 20), np.uint8), r"channels last"),
        (np.zeros((20, 20, 2), np.uint8), r"1, 3 or 4 channels"),
        (np.zeros((1, 20, 20, 3), np.uint8), r"wrong shape"),
        (np.zeros((0, 20, 3), np.uint8), r"too small.*at least 8"),
        (np.zeros((1, 1), np.uint8), r"too small"),
        (np.zeros((7, 20), np.uint8), r"too small, 20 x 7 pixels"),
        (np.zeros((8, 401), np.uint8), r"too long, 401 x 8 pixels.*cut it"),
        (np.broadcast_to(np.uint8(0), (20000, 20000)), r"too large.*200 million"),
    ],
)
def test_unusable_arrays(array, message):
    with pytest.raises(ImageError, match=message) as caught:
        read_image(array)
    assert caught.value.source == describe(array) == f"array {array.shape} {array.dtype}"


def test_limits_are_inclusive():
    assert read_image(np.zeros((8, 400), np.uint8)).shape == (8, 400, 3)


def test_unusable_pillow_images(tmp_path):
    with pytest.raises(ImageError, match=r"PIL image 5x5 RGB: is too small"):
        read_image(Image.new("RGB", (5, 5)))
    with pytest.raises(ImageError, match=r"floating-point.*uint8"):
        read_image(Image.new("F", (20, 20)))
    path = saved(tmp_path / "a.gif", Image.new("L", (20, 20)), save_all=True,
                 append_images=[Image.new("L", (20, 20), 9)])  # fmt: skip
    with Image.open(path) as image, pytest.raises(ImageError, match=r"a\.gif: holds 2 frames"):
        read_image(image)
    path = saved(tmp_path / "a.jpg", picture())
    path.write_bytes(path.read_bytes()[:-200])
    with Image.open(path) as image, pytest.raises(ImageError, match=r"a\.jpg: is truncated"):
        read_image(image)


def test_neither_path_nor_picture():
    with pytest.raises(ImageError, match=r"object of type list: is not an image; give a path"):
        read_image([[0, 1]])


# --- refusals --------------------------------------------------------------------------------

ENCODINGS = {
    "a.jpg": {"quality": 90},
    "progressive.jpg": {"progressive": True},
    "a.png": {},
    "a.bmp": {},
    "a.webp": {},
    "lossless.webp": {"lossless": True},
    "a.tif": {},
    "lzw.tif": {"compression": "tiff_lzw"},
    "deflate.tif": {"compression": "tiff_adobe_deflate"},
}


@pytest.mark.parametrize("name", ENCODINGS)
def test_truncated_files_are_refused(tmp_path, name):
    path = saved(tmp_path / name, picture(), **ENCODINGS[name])
    whole = path.read_bytes()
    assert read_image(path).shape == (37, 53, 3)
    for keep in (len(whole) - 13, len(whole) * 9 // 10, len(whole) // 2, 40):
        path.write_bytes(whole[:keep])
        with pytest.raises(ImageError, match=r"truncated or damaged .*again") as caught:
            read_image(path)
        assert str(caught.value).startswith(str(path))


@pytest.mark.parametrize("data", [png(deep(24, 30, 3)), tiff(deep(24, 30, 3)), tiff(deep(24, 30))])
def test_truncated_sixteen_bit_files_are_refused(tmp_path, data):
    path = write(tmp_path / "a.img", data)
    assert read_image(path).shape == (24, 30, 3)
    path.write_bytes(data[: len(data) * 9 // 10])
    with pytest.raises(ImageError, match="truncated or damaged"):
        read_image(path)


def test_a_flipped_byte_in_a_png_is_noticed(tmp_path):
    path = saved(tmp_path / "a.png", picture(), compress_level=0)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(ImageError, match="damaged"):
        read_image(path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b"\0", "is not a JPEG, PNG, BMP, WebP or TIFF image; convert it to PNG"),
        (b"a line of text, not a picture at all\n" * 9, "is not a JPEG"),
        (b"GIF89a" + bytes(60), "is not a JPEG"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "is not a JPEG"),
        (b"\xff\xd8\xff", "truncated or damaged"),
        (b"\x89PNG\r\n\x1a\n", "truncated or damaged"),
        (b"BM", "truncated or damaged"),
        (b"II*\0", "truncated or damaged"),
        (b"RIFF\0\0\0\0WEBP", "truncated or damaged"),
    ],
)
def test_files_that_are_no_images(tmp_path, data, message):
    path = write(tmp_path / "part.png", data)
    with pytest.raises(ImageError, match=message) as caught:
        read_image(path)
    assert caught.value.source == str(path)


def test_missing_folder_and_odd_paths(tmp_path):
    with pytest.raises(ImageError, match=r"no\.png: does not exist; check the path"):
        read_image(tmp_path / "no.png")
    with pytest.raises(ImageError, match="is a folder"):
        read_image(tmp_path)
    with pytest.raises(ImageError, match="cannot be opened"):
        read_image("nul\0byte.png")
    with pytest.raises(ImageError, match="cannot be opened"):
        read_image(tmp_path / ("x" * 4000))
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.png")
        with pytest.raises(ImageError, match="not a regular file"):
            read_image(tmp_path / "pipe.png")


@pytest.mark.slow
def test_permission_denied():
    if os.name != "posix":
        pytest.skip("file permissions of this kind exist on POSIX only")
    # Permissions do not bind the superuser, so the reading is done as the user "nobody"; outside
    # pytest's own temporary folder, which other users may not enter.
    script = (
        "import os, sys\n"
        "from offnominal.images import read_image\n"
        "if os.geteuid() == 0:\n"
        "    os.setgid(65534); os.setuid(65534)\n"
        "print(read_image(sys.argv[1]).shape)\n"
        "try:\n"
        "    read_image(sys.argv[2])\n"
        "except Exception as error:\n"
        "    print(type(error).__name__, error)\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        allowed = saved(Path(folder) / "allowed.png", picture())
        denied = saved(Path(folder) / "denied.png", picture())
        allowed.chmod(0o644)
        denied.chmod(0)
        assert stat.S_IMODE(denied.stat().st_mode) == 0
        command = [sys.executable, "-c", script, str(allowed), str(denied)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first == "(37, 53, 3)"
    assert second.startswith(f"ImageError {denied}: permission denied; give this user the right")


@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.tif"])
def test_several_pictures_in_one_file_are_refused(tmp_path, name):
    others = [Image.fromarray(picture(seed=seed)) for seed in (1, 2)]
    path = saved(tmp_path / name, picture(), save_all=True, append_images=others)
    what = "3 pages" if name == "a.tif" else "3 frames of an animation"
    with pytest.raises(ImageError, match=f"holds {what}; save the one"):
        read_image(path)


@pytest.mark.parametrize(
    ("size", "message"),
    [((1, 1), "too small"), ((7, 30), "too small"), ((20000, 1), "too small"),
     ((8, 401), "too long"), ((4096, 80), "too long, 4096 x 80 pixels")],
)  # fmt: skip
@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "jpg"])
def test_sizes_that_make_no_sense(tmp_path, size, message, suffix):
    path = saved(tmp_path / f"a.{suffix}", Image.new("RGB", size))
    with pytest.raises(ImageError, match=message):
        read_image(path)


def test_declared_size_is_checked_before_decoding(tmp_path):
    bombs = {"a.png": bytearray(png(deep(24, 30))), "a.tif": bytearray(tiff(deep(24, 30)))}
    struct.pack_into(">II", bombs["a.png"], 16, 20000, 20000)
    struct.pack_into(">I", bombs["a.png"], 29, zlib.crc32(bombs["a.png"][12:29]))
    struct.pack_into("<H", bombs["a.tif"], 18, 20000)
    struct.pack_into("<H", bombs["a.tif"], 30, 20000)
    bmp = io.BytesIO()
    Image.fromarray(picture()).save(bmp, "BMP")
    bombs["a.bmp"] = bytearray(bmp.getvalue())
    struct.pack_into("<ii", bombs["a.bmp"], 18, 20000, 20000)
    jpeg = io.BytesIO()
    Image.fromarray(picture()).save(jpeg, "JPEG")
    bombs["a.jpg"] = bytearray(jpeg.getvalue())
    frame = bombs["a.jpg"].index(b"\xff\xc0")
    struct.pack_into(">HH", bombs["a.jpg"], frame + 5, 20000, 20000)
    for name, data in bombs.items():
        path = write(tmp_path / name, bytes(data))
        with pytest.raises(ImageError, match=r"too large, 20000 x 20000 pixels.*200 million"):
            read_image(path)


def test_pillows_own_lower_limit_does_not_interfere(tmp_path, monkeypatch):
    paths = [saved(tmp_path / name, picture()) for name in ("a.png", "a.jpg", "a.bmp")]
    paths_checked_again = [saved(tmp_path / name, picture()) for name in ("a.tif", "a.webp")]
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(Image.DecompressionBombError):
        Image.open(paths[0])
    for path in paths:
        assert read_image(path).shape == (37, 53, 3)
    for path in paths_checked_again:
        with pytest.raises(ImageError, match=r"exceeds limit of 200 pixels.*make it smaller"):
            read_image(path)


def test_damaged_files_give_an_image_or_an_image_error(tmp_path):
    rng = np.random.default_rng(0)
    sources = []
    for name, options in ENCODINGS.items():
        sources.append(saved(tmp_path / name, picture(), **options).read_bytes())
    sources += [png(deep(24, 30, 3), orientation=6), tiff(deep(24, 30, 3)), tiff(deep(24, 30))]
    path = tmp_path / "case.img"
    reasons = []
    for case in range(204):
        data = bytearray(sources[case % len(sources)])
        if case % 3 == 0:
            del data[int(rng.integers(len(data))) :]
        # Half of the flips go where headers are, for most flips among pixels change little.
        reach = 200 if case % 2 else len(data)
        for _ in range(int(rng.integers(1, 6))):
            if data:
                data[int(rng.integers(min(reach, len(data))))] = int(rng.integers(256))
        path.write_bytes(data)
        try:
            image = read_image(path)
        except ImageError as error:
            reasons.append(error.reason)
        else:
            assert image.dtype == np.uint8
            assert image.shape[2] == 3
    assert all(reasons)
    assert 50 < len(reasons) < 194


# --- names, lists, digests -------------------------------------------------------------------


def test_describe(tmp_path):
    assert describe("a/b.png") == str(Path("a/b.png"))
    assert describe(tmp_path / "b.png") == str(tmp_path / "b.png")
    assert describe(np.zeros((480, 640, 3), np.uint8)) == "array (480, 640, 3) uint8"
    assert describe(Image.new("L", (640, 480))) == "PIL image 640x480 L"
    with Image.open(saved(tmp_path / "c.png", picture())) as image:
        assert describe(image) == str(tmp_path / "c.png")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for name in [
        "good/b.png", "good/a.JPG", "good/sub/deep/c.tiff", "good/.DS_Store", "good/._a.jpg",
        "good/.hidden/x.png", "good/notes.txt", "bad/z.webp", "bad/y.bmp", "odd/part[1].png",
        "odd/part1.png", "empty/readme.md", "raw.dat",
    ]:  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["good"], ["good/a.JPG", "good/b.png", "good/sub/deep/c.tiff"]),
        (["bad", "good/b.png"], ["bad/y.bmp", "bad/z.webp", "good/b.png"]),
        (["good/b.png", "good"], ["good/b.png", "good/a.JPG", "good/sub/deep/c.tiff"]),
        (["good/b.png", "./good/../good/b.png"], ["good/b.png"]),
        (["good/*.png"], ["good/b.png"]),
        (["**/*.png"], ["good/b.png", "odd/part1.png", "odd/part[1].png"]),
        (["good/*"], ["good/a.JPG", "good/b.png", "good/sub/deep/c.tiff"]),
        (["ba?"], ["bad/y.bmp", "bad/z.webp"]),
        (["odd/part[1].png"], ["odd/part[1].png"]),
        (["raw.dat"], ["raw.dat"]),
        (["good/._a.jpg"], ["good/._a.jpg"]),
        ("raw.dat", ["raw.dat"]),
        (Path("bad"), ["bad/y.bmp", "bad/z.webp"]),
        ([], []),
    ],
)
def test_find_images(folder, arguments, expected):
    assert find_images(arguments) == [Path(name) for name in expected]


def test_find_images_by_absolute_path(folder):
    assert find_images([folder / "bad"]) == [folder / "bad/y.bmp", folder / "bad/z.webp"]
    assert find_images([f"{folder}/**/z.*"]) == [folder / "bad/z.webp"]
    assert find_images(["bad", folder / "bad"]) == [Path("bad/y.bmp"), Path("bad/z.webp")]


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("nowhere", r"nowhere: no such file or folder"),
        ("good/*.gif", r"good/\*\.gif: the pattern matches no image"),
        ("empty", r"empty: no images in this folder \(.*\); looked for \.bmp"),
    ],
)
def test_find_images_names_the_argument_at_fault(folder, argument, message):
    with pytest.raises(OptionError, match=message):
        find_images(["good", argument])


def test_find_images_follows_links_but_not_in_circles(folder):
    (folder / "linked").mkdir()
    (folder / "linked/bad").symlink_to(folder / "bad")
    (folder / "linked/bad/up").symlink_to(folder / "linked")
    expected = [Path("linked/bad/y.bmp"), Path("linked/bad/z.webp")]
    assert find_images(["linked"]) == expected


def test_content_digest():
    image = picture()
    digest = content_digest(image)
    assert len(digest) == 64
    assert digest == content_digest(image.copy(order="F"))
    changed = image.copy()
    changed[-1, -1, -1] ^= 1
    others = [changed, image.reshape(53, 37, 3), image.astype(np.uint16)]
    assert len({digest, *map(content_digest, others)}) == 4
