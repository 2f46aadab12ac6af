"""What each of an image's worst patches was compared with."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offnominal.detectors.base import Detector
from offnominal.detectors.known import KnownDefects, rows_of
from offnominal.detectors.memory_bank.base import BankDetector
from offnominal.errors import ImageError, OptionError
from offnominal.explain.match import Explanation, KnownMatch, Match
from offnominal.images import Channels, ImageSource, as_rgb, content_digest, describe, read_picture
from offnominal.labelling import label
from offnominal.paths import find_images, is_elsewhere
from offnominal.pictures import Image
from offnominal.scans.draw import relief
from offnominal.scans.scan import Scan, is_scan
from offnominal.scoring import Size
from offnominal.views import Box, View, enclosing_box, patch_corners, unflipped
from offnominal.warping import inverse, through, warp

__all__ = ["explain"]

_MARGIN = 3.0  # patches that are shown around a patch on every side
_APART = 0.1  # of the shorter side: patches that are nearer to one another count as one region
_SLOPE = 0.6  # share of a peak of the map that belongs to its region
_LARGEST = 0.2  # share of the image above which that is the texture, not a region
_CUT = 1024  # most pixels of a side that is cut out
_OUTSIDE = (238, 226)  # stripes
_LARGE = 2**22  # pixels of a picture from which on no more is looked at than is shown


@dataclass(frozen=True)
class _Nearest:
    """A view of the image, and what its patches (gh, gw) were compared with.

    ``features`` (gh * gw, D) are those that known defects are told by.
    """

    view: View
    scores: NDArray[np.float32]
    distance: NDArray[np.float32]
    row: NDArray[np.int64]
    features: NDArray[np.float32]

    @property
    def grid(self) -> Size:
        return self.scores.shape[0], self.scores.shape[1]

    def corners(self, patch: int, margin: float = 0) -> NDArray[np.float64]:
        return patch_corners(self.view, self.grid, patch, margin)


def explain(
    detector: Detector,
    image: ImageSource,
    worst: int = 5,
    references: Iterable[str | Path] = (),
    channels: Channels = "rgb",
) -> Explanation:
    """The most anomalous patches of an image beside their nearest nominal ones.

    Where the detector knows defects, each is shown beside the nearest of those as well.

    Parameters
    ----------
    detector : Detector
        With a memory bank.
    image : path, uint8 or uint16 array, PIL image or tensor
    worst : int
        At most so many, from distinct regions.
    references : iterable of paths
        Folders to look through for references, and known defects, that are no longer where they
        were learned from; they are recognised by their pixels.
    channels : {"rgb", "bgr"}
        Order of the channels of an array or a tensor.

    Raises
    ------
    ImageError
        If the image, or a reference that is to be shown, cannot be read. (A known defect that
        cannot is named and not shown.)
    OptionError
        If the method keeps no patches.
    """
    if not isinstance(detector, BankDetector):
        raise OptionError(
            f"{detector.method} cannot show the nearest nominal patch, since it does not keep the "
            "patches of its references: choose a method with a memory bank (anomalydino, "
            "multilayer-nn, patchcore)"
        )
    if worst < 1:
        raise OptionError(f"--worst {worst}: give 1 or more")
    detector.check_fitted()
    picture = read_picture(as_rgb(image, channels), detector.sixteen_bit, detector.seen_as)
    picture = detector.taken(picture, describe(image))
    pixels = picture.pixels
    size = (pixels.shape[0], pixels.shape[1])
    if size[0] == 1 and is_scan(pixels):
        raise OptionError(
            f"{describe(image)}: a cloud without a grid has no patches to show; `offnominal "
            "predict --save cloud` shows its scores point by point"
        )
    shown = _shown(pixels)
    prediction = detector.prediction(describe(image), picture, detector.score(pixels))
    nearest = [_nearest(detector, view) for view in detector.views(pixels)]
    if len({one.view.window for one in nearest}) == 1:
        # Several ways to look at one place are averaged; the first stands for all of them.
        scores = unflipped(prediction.patch_scores, nearest[0].view)
        nearest = [replace(nearest[0], scores=scores)]
    found = _distinct(nearest, prediction.anomaly_map, worst)
    rows = [int(nearest[place].row.flat[patch]) for place, patch in found]
    origins = [detector.origin(row) for row in rows]
    near = [
        _known(detector.known_defects, nearest[place].features[patch]) for place, patch in found
    ]
    wanted = {origin.digest: origin.file for origin in origins}
    others = {one.digest: one.file for one in near if one}
    there = _read_again(others | wanted, references, detector)
    _refuse_missing(wanted, there)
    matches = []
    for number, ((place, patch), row, origin, known) in enumerate(
        zip(found, rows, origins, near, strict=True), start=1
    ):
        here = nearest[place]
        _, view, grid, nominal = detector.row_place(row)
        turned = bool(origin.angle % 90) or origin.mirrored
        around = patch_corners(view, grid, nominal, _MARGIN)
        if known and known.digest in there:
            known = replace(known, patch=_cut(_shown(there[known.digest]), _around(known.box)))
        matches.append(
            Match(
                number=number,
                score=float(here.scores.flat[patch]),
                distance=float(here.distance.flat[patch]),
                box=enclosing_box(here.corners(patch), size),
                origin=origin,
                patch=_cut(shown, here.corners(patch, _MARGIN)),
                nominal=_cut(_shown(there[origin.digest]), around, mirrored=turned),
                known=known,
            )
        )
    references_shown = {digest: _shown(there[digest]) for digest in wanted}
    return Explanation(prediction, tuple(matches), references_shown)


def _shown(pixels: NDArray[Any]) -> Image:
    """What a detector looked at, as a picture: of a scan its relief."""
    return relief(Scan.of(pixels)) if is_scan(pixels) else pixels


def _nearest(detector: BankDetector, view: View) -> _Nearest:
    features = detector.embedded(view.pixels)
    scores = detector.compare(features).patches
    distance, row = (each.reshape(scores.shape) for each in detector.nearest(features))
    return _Nearest(view, scores, distance, row, rows_of(detector.patches_of(features)))


def _known(known: KnownDefects | None, features: NDArray[np.float32]) -> KnownMatch | None:
    """The known defect nearest to a patch's features (D,), not read yet."""
    if known is None:
        return None
    [distances] = known.near(features[None])
    row = int(distances.argmin())
    one, kind = known.defects[known.defect[row]], known.kinds[known.kind[row]]
    left, top, width, height = known.boxes[row].tolist()
    box = (left, top, width, height)
    return KnownMatch(one.file, one.digest, kind, float(distances[row]), box, None)


def _around(box: Box) -> NDArray[np.float64]:
    """Corners (x, y), clockwise from the upper left, of a box with its surroundings."""
    left, top, width, height = box
    x, y = left - _MARGIN * width, top - _MARGIN * height
    across, down = (1 + 2 * _MARGIN) * width, (1 + 2 * _MARGIN) * height
    return np.array([[x, y], [x + across, y], [x + across, y + down], [x, y + down]])


def _distinct(
    nearest: Sequence[_Nearest], heat: NDArray[np.float32], worst: int
) -> list[tuple[int, int]]:
    """The highest-scoring patches (view, patch), one of each region of the map (H, W)."""
    size = (heat.shape[0], heat.shape[1])
    scores = np.concatenate([one.scores.ravel() for one in nearest])
    places = [(at, patch) for at, one in enumerate(nearest) for patch in range(one.scores.size)]
    centres = np.array([nearest[at].corners(patch).mean(0) for at, patch in places])
    corners = nearest[0].corners(0)
    longest = max(np.linalg.norm(corners[1] - corners[0]), np.linalg.norm(corners[3] - corners[0]))
    apart = max(_MARGIN * float(longest), _APART * min(size))
    # The last patches reach beyond the image, and of tiles the last ones may lie outside.
    least = np.array([nearest[at].corners(patch).min(0) for at, patch in places])
    inside = (least < np.array([size[1], size[0]])).all(1)
    x, y = np.minimum(centres.astype(int), [size[1] - 1, size[0] - 1]).T
    left = np.where(inside, scores, -np.inf)
    # Regions of a map, which is as smooth as patches are large, are found on every nth pixel.
    step = max(1, math.isqrt(heat.size // _LARGE))
    heat, y, x = heat[::step, ::step], y // step, x // step
    chosen: list[tuple[int, int]] = []
    while len(chosen) < worst:
        best = int(left.argmax())
        # What scores nothing is background, or a copy of a reference; one is shown nevertheless.
        if left[best] == -np.inf or (chosen and left[best] <= 0):
            break
        chosen.append(places[best])
        left[np.abs(centres - centres[best]).max(1) < apart] = -np.inf
        labels, _ = label(heat >= _SLOPE * heat[y[best], x[best]])
        region = labels == labels[y[best], x[best]]
        if region.mean() < _LARGEST:
            left[region[y, x]] = -np.inf
    return chosen


def _cut(image: Image, corners: NDArray[np.float64], mirrored: bool = False) -> Image:
    """What lies between four corners (x, y), clockwise from the upper left, set upright."""
    across = float(np.linalg.norm(corners[1] - corners[0]))
    down = float(np.linalg.norm(corners[3] - corners[0]))
    shrink = min(1.0, _CUT / max(across, down))
    width, height = max(8, round(across * shrink)), max(8, round(down * shrink))
    target = np.array([[0, 0], [width, 0], [width, height]]) - 0.5
    size = (width, height)
    if mirrored:  # as the corners of a turned reference were filled
        return warp(image, through(corners[:3] - 0.5, target), size)
    part, corner = image, np.zeros(2, int)
    if image.shape[0] * image.shape[1] > _LARGE:  # warp copies all of what it is given
        part, corner = _around_corners(image, corners)
    matrix = through(corners[:3] - corner - 0.5, target)
    cut = warp(part, matrix, size, "repeat")
    y, x = np.mgrid[:height, :width]
    there = np.stack([x, y, np.ones_like(x)], -1) @ inverse(matrix).T + corner
    beyond = ((there < -0.5) | (there >= np.array(image.shape[1::-1]) - 0.5)).any(-1, keepdims=True)
    step = max(1, min(size) // 21)
    stripes = np.where((x + y) // step % 2, *_OUTSIDE).astype(np.uint8)
    return np.where(beyond, stripes[..., None], cut).astype(np.uint8)


def _around_corners(image: Image, corners: NDArray[np.float64]) -> tuple[Image, NDArray[np.int_]]:
    """What of an image lies between its corners (x, y) and by two pixels around, and where."""
    extent = np.array(image.shape[1::-1])
    low = (np.floor(corners.min(0)) - 2).clip(0, extent - 1).astype(int)
    high = (np.ceil(corners.max(0)) + 3).clip(low + 1, extent).astype(int)
    return image[low[1] : high[1], low[0] : high[0]], low


def _read_again(
    wanted: Mapping[str, str], folders: Iterable[str | Path], detector: BankDetector
) -> dict[str, Image]:
    """Images by digest, from the files (by digest) where they were, or else from folders."""
    found: dict[str, Image] = {}
    for digest, file in wanted.items():
        # A model file must not have another machine contacted.
        image = None if is_elsewhere(file) else _read_if(file, detector)
        if image is not None and content_digest(image) == digest:
            found[digest] = image
    missing = set(wanted) - set(found)
    if missing and (places := list(folders)):
        names = {Path(wanted[digest]).name for digest in missing}
        files = find_images(places)
        # Files of the same name first: then others need not be read.
        for path in sorted(files, key=lambda path: path.name not in names):
            image = _read_if(path, detector)
            digest = "" if image is None else content_digest(image)
            if image is not None and digest in missing:
                found[digest] = image
                missing.discard(digest)
            if not missing:
                break
    return found


def _refuse_missing(references: Mapping[str, str], found: Mapping[str, Image]) -> None:
    """Raise an ImageError that names a reference (a file by its digest) that was not found."""
    for digest in references.keys() - found.keys():
        file = references[digest]
        there = not is_elsewhere(file) and Path(file).is_file()
        what = "holds another picture now" if there else "is no longer there"
        raise ImageError(
            file,
            f"this reference {what}; name a folder where it is now with --references FOLDER (it is "
            f"recognised by its pixels, digest {digest[:12]})",
        )


def _read_if(path: str | Path, detector: BankDetector) -> Image | None:
    try:
        return detector.image_of(path)
    except ImageError:
        return None
