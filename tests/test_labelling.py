"""Connected components, against OpenCV's."""

import cv2
import numpy as np
import pytest

from offnominal.labelling import components, label


@pytest.mark.parametrize("share", [0.0, 0.02, 0.3, 0.41, 0.5, 0.7, 0.98, 1.0])
@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1), (2, 3), (33, 64), (120, 77)])
@pytest.mark.parametrize("corners", [True, False])
def test_the_components_are_those_of_opencv(
    share: float, size: tuple[int, int], corners: bool
) -> None:
    random = np.random.default_rng(int(100 * share) + size[0])
    mask = random.random(size) < share
    labels, areas, _ = components(mask, corners)
    count, connectivity = len(areas), 8 if corners else 4
    wanted, theirs = cv2.connectedComponents(mask.astype(np.uint8), connectivity=connectivity)
    assert count == wanted - 1
    assert labels.dtype == np.int32
    assert ((labels > 0) == mask).all()
    # One of theirs to each of ours, and the other way round.
    assert len(np.unique(np.stack([labels, theirs])[:, mask], axis=1).T) == count
    firsts = np.unique(labels, return_index=True)
    assert (np.diff(firsts[1][firsts[0] > 0]) > 0).all()


def test_a_spiral_and_a_comb_are_one() -> None:
    spiral = np.zeros((201, 201), bool)
    for ring in range(0, 100, 2):
        spiral[ring, ring : 201 - ring] = spiral[200 - ring, ring : 201 - ring] = True
        spiral[ring : 201 - ring, 200 - ring] = spiral[ring + 2 : 201 - ring, ring] = True
        spiral[ring + 2, ring : ring + 3] = True
    comb = np.zeros((100, 201), bool)
    comb[:, ::2] = comb[-1] = True
    assert label(spiral)[1] == 1
    assert label(comb)[1] == 1
    assert label(comb[:-1])[1] == 101


def test_a_part_of_an_array_and_a_transposed_one() -> None:
    mask = np.random.default_rng(0).random((60, 80)) < 0.4
    for view in (mask[3:50:2, 5:70:3], mask.T):
        assert (label(view)[0] == label(view.copy())[0]).all()


def test_areas_and_boxes_are_those_of_opencv() -> None:
    mask = np.random.default_rng(1).random((90, 130)) < 0.3
    found = components(mask)
    ours = np.column_stack([found.boxes, found.areas])
    stats = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)[2]
    assert {tuple(row) for row in ours.tolist()} == {tuple(row) for row in stats[1:].tolist()}
    assert (found.areas == np.bincount(found.labels.ravel())[1:]).all()
    first = found.boxes[0]
    assert found.labels[first[1], first[0] : first[0] + first[2]].max() == 1
    assert components(np.zeros((3, 3), bool)).boxes.shape == (0, 4)
