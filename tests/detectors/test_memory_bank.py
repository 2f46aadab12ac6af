"""What a detector's bank holds: where its rows come from, and how they are stored."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from offnominal import AnomalyDINO, MultiLayerNN, PatchCore, SoftPatch, load
from offnominal.datasets.synthetic import draw_good
from offnominal.errors import OptionError

SMALL: dict[str, Any] = {"backbone": "builtin", "resolution": 64, "device": "cpu"}
FEW: dict[str, Any] = SMALL | {"normalize": "l2", "rotations": "none", "mask": "off"}


@pytest.fixture(scope="module")
def images() -> list[np.ndarray]:
    return [draw_good("part", 1, index) for index in range(6)]


def test_places_lead_to_what_the_network_saw() -> None:
    """An image whose pixels say where they are, looked at as references are."""
    height, width = 96, 128
    y, x = np.mgrid[:height, :width]
    image = np.stack([x, y, np.full_like(x, 128)], 2).astype(np.uint8)
    few = AnomalyDINO(**FEW | {"rotations": "0,90,30", "resolution": None, "tile": 64})
    many = MultiLayerNN(backbone="builtin", resolution=96, resize="short", device="cpu")
    for detector in (few.fit([image]), many.fit([image])):
        seen, net = detector.reference_views(image), detector.load_network()
        compared = 0
        for row in range(0, len(detector.bank), 7):
            origin = detector.origin(row)
            left, top, across, down = origin.box
            assert 0 <= left < left + across <= width
            assert 0 <= top < top + down <= height
            corners = np.array(origin.corners)
            if (corners < 0).any() or (corners > (width, height)).any():
                continue  # a part of it was filled by mirroring
            compared += 1
            patch, pixels = int(detector.bank.patch[row]), seen[int(detector.bank.view[row])].pixels
            columns = pixels.shape[2] // net.stride
            top, left = net.stride * (patch // columns), net.stride * (patch % columns)
            colour = pixels[:, top : top + net.stride, left : left + net.stride].mean((1, 2))
            found = 255 * (colour * np.array(net.std) + np.array(net.mean))
            np.testing.assert_allclose(found[:2], corners.mean(0) - 0.5, atol=0.6)
            sides = np.linalg.norm(corners - np.roll(corners, 1, 0), axis=1)
            np.testing.assert_allclose(sides, net.stride, rtol=1e-3)
        assert compared > 30
        with pytest.raises(OptionError, match="row 999999"):
            detector.origin(999_999)


@pytest.mark.parametrize("storage", ["fp16", "int8"])
def test_small_storage_scores_nearly_the_same(
    storage: Any, images: list[np.ndarray], tmp_path: Path
) -> None:
    full = AnomalyDINO(**FEW).fit(images[:4])
    small = AnomalyDINO(**FEW, storage=storage).fit(images[:4])
    assert small.bank.rows.itemsize == {"fp16": 2, "int8": 1}[storage]
    for a, b in zip(full.predict(images[4:]), small.predict(images[4:]), strict=True):
        assert b.score == pytest.approx(a.score, rel={"fp16": 0.01, "int8": 0.1}[storage])
    # A reference is rounded as it was when it was learned, so it has no distance from itself.
    assert small.predict(images[0])[0].score == 0
    small.save(tmp_path / "small.offn")
    assert load(tmp_path / "small.offn", device="cpu").predict(images[1])[0].score == 0
    with pytest.raises(OptionError, match="--storage fp32"):
        AnomalyDINO(**SMALL, storage=storage).fit(images[:2])


@pytest.mark.parametrize("kind", [AnomalyDINO, MultiLayerNN, PatchCore, SoftPatch])
def test_storage_is_checked_at_once(kind: Any) -> None:
    with pytest.raises(OptionError, match="storage 'fp8': choose one of fp32, fp16, int8"):
        kind(storage="fp8")
