"""Agreement with RAD's released code on seeded features.

``rad.npz`` holds what the evaluation function of ``longkukuhi/RAD`` (``rad_mvtec_visa_3dadam.py``,
January 2026) made of the features that are drawn below, with an encoder that hands them out: maps
before they are enlarged, every 16th pixel of the enlarged and blurred ones, and image scores.
"""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from offnominal.detectors.memory_bank.rad import RAD
from offnominal.detectors.references import Reference, References
from offnominal.scoring import Size, anomaly_map

REFERENCES, QUERIES, GRID, WIDTHS, TOKEN, K = 30, 3, 6, (16, 16, 16), 16, 5
Floats = NDArray[np.float32]
Image = tuple[list[Floats], Floats]


def drawn() -> tuple[list[Image], list[Image]]:
    """References and test images of three kinds: levels (D, gh, gw), and a class token (1, D')."""
    rng = np.random.default_rng(2601_22763)
    kinds = rng.standard_normal((3, TOKEN))
    places = [rng.standard_normal((GRID * GRID, width)) for width in WIDTHS]

    def images(count: int) -> list[Image]:
        tokens = kinds[np.arange(count) % 3] + 0.4 * rng.standard_normal((count, TOKEN))
        patches = [
            0.3 * place + 0.5 * rng.standard_normal((count, *place.shape)) for place in places
        ]
        return [
            (
                [unit(p[n].astype(np.float32)).T.reshape(-1, GRID, GRID) for p in patches],
                unit(tokens[n : n + 1].astype(np.float32)),
            )
            for n in range(count)
        ]

    return images(REFERENCES), images(QUERIES)


def unit(rows: Floats) -> Floats:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


class Seeded(RAD):
    """One that is given features, all on one grid."""

    def reference_grid(self, number: int) -> Size:
        return GRID, GRID


@pytest.mark.parametrize("case", ["anywhere", "radius0", "radius1", "radius2"])
@pytest.mark.parametrize("storage", ["fp32", "fp16"])
def test_scores_of_the_released_code(case: str, storage: str) -> None:
    known, asked = drawn()
    radius = None if case == "anywhere" else int(case[-1])
    detector = Seeded(backbone="builtin", retrieve=K, radius=radius, storage=storage)
    for number, one in enumerate(known):
        detector.learn_features(number, one, 0, True)
    detector.references = References(Reference(f"{n}", "", (8, 8)) for n in range(len(known)))
    close = 1e-6 if storage == "fp32" else 2e-4
    with np.load(Path(__file__).with_name("rad.npz")) as told:
        for number, one in enumerate(asked):
            patches = detector.compare(one).patches
            np.testing.assert_allclose(patches, told[f"{case}.patches"][number], atol=close)
            # The released blur has 5 taps, and zeros beyond the border: two pixels are darker.
            large = anomaly_map(patches, (256, 256), 1.0)
            inner, theirs = large[::16, ::16][1:, 1:], told[f"{case}.map"][number][1:, 1:]
            np.testing.assert_allclose(inner, theirs, atol=5e-4)
            seen = large[2:-2, 2:-2].ravel()
            top = np.sort(seen)[-int(0.01 * large.size) :].mean()
            assert top == pytest.approx(told[f"{case}.image"][number], abs=2e-3)
