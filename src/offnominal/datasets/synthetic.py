"""Synthetic parts, good and defective, with exact masks: for demonstrations and for tests.

Two looks: ``part``, a machined flange on a table; ``fabric``, a twill that fills the frame. Good
images differ in exposure, white balance, focus, noise, position and material. A defect is made in
the scene before the picture is taken, and its mask holds the pixels that it changed. The same seed
gives the same bytes with the same versions of NumPy and OpenCV.
"""

import shutil
import zlib
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from offnominal.datasets.looks import fabric, part
from offnominal.datasets.looks.camera import SCALE, camera
from offnominal.datasets.sample import Sample
from offnominal.errors import DatasetError, OptionError

__all__ = ["DEFECTS", "LOOKS", "draw_defective", "draw_good", "object_mask", "write_dataset"]

Picture = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]

_MODULES: dict[str, Any] = {"part": part, "fabric": fabric}

#: Names of the looks.
LOOKS: tuple[str, ...] = tuple(_MODULES)

#: The kinds of defect of each look.
DEFECTS: dict[str, tuple[str, ...]] = {
    look: tuple(module.DAMAGES) for look, module in _MODULES.items()
}

# A change below this many grey levels, in every channel, drowns in the camera's noise: it is left
# out of the picture as well as out of the mask, so that the mask stays exact.
_VISIBLE = 6
_SMALLEST = 24  # pixels of a defect; one that mostly fell where it does not show is drawn again
_TRIES = 25


def draw_good(look: str, seed: int, index: int, split: str = "train") -> Picture:
    """Draw one good image.

    Parameters
    ----------
    look : str
        One of `LOOKS`.
    seed, index : int
        Not negative; each pair gives another image.
    split : str, default "train"
        Images of another split are other images.

    Returns
    -------
    uint8 array of shape (H, W, 3)
        RGB: 320 x 400 (part) or 320 x 320 (fabric) pixels high and wide.

    Raises
    ------
    OptionError
        If the look is unknown, or a number negative.
    """
    module = _module(look)
    rng = _generator(look, seed, split, index)
    scene = module.draw(rng)
    return camera(rng, module.SHAPE)(module.render(scene))


def draw_defective(
    look: str, seed: int, index: int, defect: str | None = None
) -> tuple[Picture, Mask, str]:
    """Draw one defective image.

    Parameters
    ----------
    look : str
        One of `LOOKS`.
    seed, index : int
        Not negative; each pair gives another image.
    defect : str or None
        One of `DEFECTS` of the look; drawn from the seed if None.

    Returns
    -------
    image : uint8 array of shape (H, W, 3)
        RGB.
    mask : bool array of shape (H, W)
        True where the image differs from the same part undamaged, by at least 6 grey levels in
        some channel; everywhere else the two are equal.
    defect : str
        The kind of defect.

    Raises
    ------
    OptionError
        If the look or the defect is unknown, or a number negative.
    """
    module = _module(look)
    if defect is None:
        choice = _generator(look, seed, "kind", index).integers(len(DEFECTS[look]))
        defect = DEFECTS[look][int(choice)]
    elif defect not in DEFECTS[look]:
        raise OptionError(f"defect is {defect!r}; {look} has {', '.join(DEFECTS[look])}")
    rng = _generator(look, seed, defect, index)
    scene = module.draw(rng)
    take = camera(rng, module.SHAPE)
    clean = take(module.render(scene))
    for _ in range(_TRIES):
        damaged = take(module.render(module.DAMAGES[defect](scene, rng)))
        mask = _changed(clean, damaged)
        if np.count_nonzero(mask) >= _SMALLEST:
            return np.where(mask[..., None], damaged, clean), mask, defect
    raise AssertionError(f"{look}: no visible {defect} in {_TRIES} tries")


def object_mask(look: str, seed: int, index: int, split: str = "train") -> Mask:
    """Where the object is in the image that `draw_good` gives for the same arguments.

    Parameters
    ----------
    look, seed, index, split
        As for `draw_good`.

    Returns
    -------
    bool array of shape (H, W)
        True on the object. Its holes, through which the table shows, are False. True everywhere
        for ``fabric``, which fills the frame.
    """
    module = _module(look)
    height, width = module.SHAPE
    if module is not part:
        return np.ones((height, width), np.bool_)
    cover = part.silhouette(part.draw(_generator(look, seed, split, index)))
    blocks = cover.reshape(height, SCALE, width, SCALE).mean((1, 3))
    return np.asarray(blocks >= 0.5)


def write_dataset(
    root: Path,
    looks: Sequence[str] = LOOKS,
    n_train: int = 24,
    n_good: int = 12,
    n_per_defect: int = 4,
    seed: int = 0,
) -> list[Sample]:
    """Draw a data set and write it in the layout of MVTec AD.

    ``root/look/train/good/000.png``, ``root/look/test/good/000.png``,
    ``root/look/test/DEFECT/000.png`` and ``root/look/ground_truth/DEFECT/000_mask.png`` (0 or 255).

    Parameters
    ----------
    root : Path
        Folder to write to; it is made if absent. A look's folder must not exist yet.
    looks : sequence of str
        Some of `LOOKS`.
    n_train, n_good, n_per_defect : int
        Images per look: good ones to fit, good ones to test, defective ones of each kind.
    seed : int
        Not negative.

    Returns
    -------
    list of Sample
        In the order of writing.

    Raises
    ------
    OptionError
        If a look is unknown, or a number negative.
    DatasetError
        If a look's folder exists, or cannot be written.
    """
    if min(n_train, n_good, n_per_defect) < 0:
        raise OptionError("n_train, n_good and n_per_defect must not be negative")
    for look in looks:
        _module(look)
        if (Path(root) / look).exists():
            raise DatasetError(f"{Path(root) / look}: exists already; name another folder")
    samples: list[Sample] = []
    for look in looks:
        # A look appears under its name only when it is complete.
        home, draft = Path(root) / look, Path(root) / f".{look}.partial"
        shutil.rmtree(draft, ignore_errors=True)

        for split, count in (("train", n_train), ("test", n_good)):
            for index in range(count):
                name = Path(split, "good", f"{index:03d}.png")
                _save(draft / name, draw_good(look, seed, index, split)[..., ::-1])
                samples.append(Sample(home / name, 0, None, "good", look, split))
        for defect, index in product(DEFECTS[look], range(n_per_defect)):
            image, mask, _ = draw_defective(look, seed, index, defect)
            name = Path("test", defect, f"{index:03d}.png")
            truth = Path("ground_truth", defect, f"{index:03d}_mask.png")
            _save(draft / name, image[..., ::-1])
            _save(draft / truth, mask.astype(np.uint8) * 255)
            samples.append(Sample(home / name, 1, home / truth, defect, look, "test"))
        draft.rename(home)
    return samples


def _module(look: str) -> Any:
    if look not in _MODULES:
        raise OptionError(f"look is {look!r}; choose among {', '.join(LOOKS)}")
    return _MODULES[look]


def _generator(look: str, seed: int, stream: str, index: int) -> np.random.Generator:
    if seed < 0 or index < 0:
        raise OptionError(f"seed is {seed} and index {index}: neither may be negative")
    words = [zlib.crc32(word.encode()) for word in (look, stream)]
    return np.random.default_rng([seed, *words, index])


def _changed(clean: Picture, damaged: Picture) -> Mask:
    """Pixels that differ visibly, without lone specks."""
    differs = cv2.absdiff(clean, damaged).max(-1) >= _VISIBLE
    count, labels, stats, _ = cv2.connectedComponentsWithStats(differs.astype(np.uint8), None)
    large = stats[:, cv2.CC_STAT_AREA] >= 4
    large[0] = False
    return np.asarray(large[labels], np.bool_) if count > 1 else differs


def _save(path: Path, image: npt.NDArray[np.uint8]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        ok, data = cv2.imencode(".png", np.ascontiguousarray(image))
        if not ok:
            raise DatasetError(f"{path}: OpenCV cannot write PNG; reinstall opencv-python-headless")
        path.write_bytes(data.tobytes())
    except OSError as error:
        raise DatasetError(f"{path}: cannot be written ({error}); name another folder") from error
