"""Frames of videos with a label for each frame, read as an image set (ShanghaiTech and the like).

::

    training/frames/01_001/000.jpg            or training/01_001/000.jpg
    testing/frames/01_0014/000.jpg            or testing/01_0014/000.jpg
    testing/test_frame_mask/01_0014.npy       or test_frame_mask/01_0014.npy: 0 or 1 for each frame

The category is the scene, the number before the underscore, where all clips have one.
"""

import re
from pathlib import Path

from offnominal.datasets.reading import Options, Reading, images_in, subfolders
from offnominal.datasets.sample import Sample
from offnominal.errors import DatasetError

__all__ = ["fits", "read"]

_LABELS = "test_frame_mask"


def fits(root: Path) -> bool:
    """Whether this layout lies here."""
    return _label_folder(root) is not None and (root / "testing").is_dir()


def read(root: Path, options: Options) -> Reading:
    """Read the frames of all clips; each test clip needs as many labels, 0 or 1, as frames."""
    labels = _label_folder(root)
    clips = {split: _clips(root / f"{split}ing") for split in ("train", "test")}
    if labels is None or not clips["test"]:
        raise DatasetError(
            f"{root}: needs frames as testing/frames/CLIP/000.jpg and labels as "
            f"testing/{_LABELS}/CLIP.npy; extract the frames of videos first"
        )
    every = clips["train"] + clips["test"]
    scenes = all(re.match(r"\d+_", clip.name) for clip in every)
    reading = Reading()
    for split in ("train", "test"):
        for clip in clips[split]:
            category = clip.name.split("_")[0] if scenes else options.name
            if not options.wants(category):
                continue
            frames = sorted(images_in(clip, reading.passed), key=_frame_number)
            values = [0] * len(frames)
            if split == "test":
                values = _frame_labels(labels, clip, len(frames))
            for frame, label in list(zip(frames, values, strict=True))[:: options.frame_step]:
                kind = "anomaly" if label else "good"
                reading.samples.append(Sample(frame, label, None, kind, category, split))
    if options.frame_step > 1:
        reading.notes.append(f"one frame in {options.frame_step} of each clip, from its first")
    return reading


def _label_folder(root: Path) -> Path | None:
    for folder in (root / "testing" / _LABELS, root / _LABELS):
        if folder.is_dir():
            return folder
    return None


def _clips(split: Path) -> list[Path]:
    home = split / "frames" if (split / "frames").is_dir() else split
    return [folder for folder in subfolders(home) if images_in(folder)]


def _frame_number(frame: Path) -> tuple[int, str]:
    """Frames in the order of the film, whether or not their numbers are padded with zeros."""
    number = re.search(r"\d+$", frame.stem)
    return (int(number.group()) if number else 0, frame.name)


def _frame_labels(folder: Path, clip: Path, frames: int) -> list[int]:
    # NumPy is needed for this layout only; listing the layouts must not wait for it.
    import numpy as np

    file = folder / f"{clip.name}.npy"
    try:
        labels = np.load(file, allow_pickle=False).squeeze()
    except FileNotFoundError as error:
        raise DatasetError(f"{file}: no labels for the frames of {clip}; add them") from error
    # A damaged header makes NumPy raise nearly anything, and an archive is no array.
    except Exception as error:
        raise DatasetError(f"{file}: cannot be read ({error}); copy it again") from error
    if labels.ndim != 1 or len(labels) != frames:
        raise DatasetError(
            f"{file}: holds labels of shape {labels.shape} and {clip} {frames} frames; "
            "give one label for each frame"
        )
    if labels.dtype.kind not in "biuf" or not np.isin(labels, (0, 1)).all():
        raise DatasetError(f"{file}: holds labels other than 0 and 1; 1 means anomalous")
    return [int(label) for label in labels]
