"""A folder of synthetic defects in the layout of MVTec AD, written image by image.

::

    ROOT/NAME/train/good/000.png             copies of the good images to learn from
    ROOT/NAME/test/good/000.png              and of those to test on, of which defects are made
    ROOT/NAME/test/KIND/000.png
    ROOT/NAME/ground_truth/KIND/000_mask.png
    ROOT/NAME/synthesis.json                 what was made of what, and how
"""

import hashlib
import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter
from typing_extensions import TypedDict  # the one that pydantic takes before Python 3.12

from offnominal.atomic import write_atomically
from offnominal.errors import ImageError, OptionError
from offnominal.images import read_image
from offnominal.synthesis.kinds import Draw
from offnominal.synthesis.objects import Objects

__all__ = ["Made", "SyntheticFolder"]

Image = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Progress = Callable[[str, int], None]

_RECORD = "synthesis.json"


class _Kind(TypedDict):
    """What the record says of the defects of a kind: settings, and what each was made of."""

    settings: dict[str, Any]
    made: dict[str, str]


_FORMAT = 1
_TRIES = 6  # of one image, before the next one is taken
_DECIDE = 5  # images by which to tell whether there is a background
_KEPT = 32  # images in memory
_IMAGES = 12  # that are tried for one defect
_FEWEST = 16  # pixels of a defect
_SHARE = 0.0002  # of the image, if that is more


class Made(NamedTuple):
    """A synthetic image: its file, its mask's, and the good image's that it was made of."""

    image: Path
    mask: Path
    good: Path


class SyntheticFolder:
    """Good images, and defects made of some of them.

    The same good images and seed give the same files, whatever their number, so that more can be
    made later and a run that was stopped goes on.

    Parameters
    ----------
    root : path
    name : str
        Of the category, a folder in ``root``.
    good : sequence of path
        Good images; those that cannot be read are left out.
    train_share : float
        Share of them that is only copied, to learn from; the first of a draw.
    seed : int
        Of that draw, and of all defects.
    objects : Objects
        Finds the object; it is asked to decide by some of the images.
    on_error : callable
        Called with the error of each image that cannot be read.
    progress : callable or None

    Raises
    ------
    OptionError
        If the folder is not one that the same images and seed gave, or cannot be written.
    ImageError
        If no image can be read.
    """

    def __init__(
        self,
        root: Path,
        name: str,
        good: Sequence[Path],
        train_share: float,
        seed: int,
        objects: Objects,
        on_error: Callable[[ImageError], None],
        progress: Progress | None = None,
    ) -> None:
        self.home, self.seed, self._objects = root / name, seed, objects
        self._record: dict[str, Any] = {}
        digests: dict[Path, str] = {}
        for number, path in enumerate(good):
            try:
                read_image(path)
                digests[path] = hashlib.sha256(path.read_bytes()).hexdigest()
            except ImageError as error:
                on_error(error)
            if progress:
                progress("reading", number + 1)
        if not digests:
            raise OptionError(f"{good[0]}: none of the good images can be used")
        self._begin(digests, train_share)
        some = self.good[:: max(1, len(self.good) // _DECIDE)][:_DECIDE]
        objects.decide(read_image(path) for path in some)
        self._read = lru_cache(_KEPT)(self._read_anew)

    def other(self, rng: np.random.Generator) -> tuple[Image, Mask | None]:
        """Any of the good images, and where the object is in it."""
        return self._read(self.good[int(rng.integers(len(self.good)))])

    def _read_anew(self, path: Path) -> tuple[Image, Mask | None]:
        image = read_image(path)
        return image, self._objects(image)

    def _begin(self, digests: Mapping[Path, str], train_share: float) -> None:
        """Divide and copy the good images, unless that was done."""
        files = list(digests)
        order = np.random.default_rng([self.seed, 0]).permutation(len(files))
        learn = min(round(train_share * len(files)), len(files) - 1)
        splits = {"train": sorted(order[:learn]), "test": sorted(order[learn:])}
        kept = {
            f"{split}/good/{place:03d}{files[number].suffix.lower()}": files[number]
            for split, numbers in splits.items()
            for place, number in enumerate(numbers)
        }
        self.test = [self.home / name for name in kept if name.startswith("test")]
        self.good = [self.home / name for name in kept]
        # Known by content, so that they may lie elsewhere the next time.
        identity = {"format": _FORMAT, "seed": self.seed,
                    "good": {name: digests[path] for name, path in kept.items()}}  # fmt: skip
        self._record = self._found(identity) or {**identity, "kinds": {}}
        self._write_record()  # first: a folder with the copies and without it is another's
        for name, path in kept.items():
            if not (self.home / name).exists():
                _into(self.home / name, path.read_bytes())

    def _found(self, identity: Mapping[str, Any]) -> dict[str, Any] | None:
        """The record of an earlier run, which must be of the same images and seed."""
        path = self.home / _RECORD
        if not path.is_file():
            if self.home.exists() and any(self.home.glob("*/good/*")):
                raise OptionError(
                    f"{self.home}: exists, and holds no {_RECORD} of an earlier run; name another "
                    "folder, or another --name"
                )
            return None
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            TypeAdapter(dict[str, _Kind]).validate_python(found["kinds"])
            same = {key: found[key] for key in identity} == dict(identity)
        except (OSError, ValueError, KeyError, TypeError) as error:
            told = f"{path}: damaged ({str(error)[:100]}); name another folder"
            raise OptionError(told) from error
        if not same:
            raise OptionError(
                f"{self.home}: was made with another --seed or --train-share, or of other good "
                "images; give the same to go on, or name another folder"
            )
        return dict(found)

    def make(
        self,
        kind: str,
        draw: Draw,
        count: int,
        settings: Mapping[str, Any],
        progress: Progress | None = None,
    ) -> list[Made]:
        """Make defects until there are ``count`` of a kind; those that are there are kept.

        Parameters
        ----------
        kind : str
            Name of their folder.
        draw : callable
            Makes one.
        count : int
        settings : mapping
            Plain values that all defects of this kind have in common.
        progress : callable or None

        Raises
        ------
        OptionError
            If there are such defects with other settings, or none can be made to show.
        """
        kinds = self._record["kinds"]
        known = kinds.setdefault(kind, {"settings": dict(settings), "made": {}})
        if known["settings"] != dict(settings):
            differ = sorted(k for k in {*known["settings"], *settings}
                            if known["settings"].get(k) != settings.get(k))  # fmt: skip
            raise OptionError(
                f"{self.home}: holds defects of the kind {kind} made with other settings "
                f"({', '.join(differ)}); give the same to go on, or name another folder"
            )
        self._write_record()
        try:
            return self._make_all(kind, draw, count, known["made"], progress)
        finally:
            self._write_record()

    def _make_all(
        self,
        kind: str,
        draw: Draw,
        count: int,
        known: dict[str, str],
        progress: Progress | None,
    ) -> list[Made]:
        words = [self.seed, zlib.crc32(kind.encode())]
        order = np.random.default_rng(words).permutation(len(self.test))
        found = []
        for number in range(count):
            image = self.home / "test" / kind / f"{number:03d}.png"
            mask = self.home / "ground_truth" / kind / f"{number:03d}_mask.png"
            if not image.exists() or image.name not in known:
                turn = [self.test[order[(number + k) % len(order)]] for k in range(_IMAGES)]
                rng = np.random.default_rng([*words, number])
                good = self._make_one(kind, draw, turn, rng, image, mask)
                known[image.name] = good.relative_to(self.home).as_posix()
            found.append(Made(image, mask, self.home / known[image.name]))
            if progress:
                progress(kind, number + 1)
        return found

    def _make_one(
        self,
        kind: str,
        draw: Draw,
        turn: Sequence[Path],
        rng: np.random.Generator,
        image: Path,
        mask: Path,
    ) -> Path:
        for good in turn:
            pixels, on = self._read(good)
            for _ in range(_TRIES):
                made, where = draw(pixels, rng, on)
                if np.count_nonzero(where) >= max(_FEWEST, _SHARE * where.size):
                    # The mask first: an image that is there has one.
                    _into(mask, _png(where.astype(np.uint8) * 255))
                    _into(image, _png(made[..., ::-1]))
                    return good
        raise OptionError(
            f"--kind {kind}: on none of {len(set(turn))} good images, such as {turn[0]}, could a "
            "defect be made that shows; they may be of one colour, or the object too small for it: "
            "try --object off, or another kind"
        )

    def _write_record(self) -> None:
        _into(self.home / _RECORD, json.dumps(self._record, indent=1).encode())


def _png(picture: NDArray[np.uint8]) -> bytes:
    """Without the mark of pictures that are not parts."""
    _, data = cv2.imencode(".png", np.ascontiguousarray(picture))
    return bytes(data.tobytes())


def _into(path: Path, content: bytes) -> None:
    """Write a file, and the folders above it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OptionError(f"{path.parent}: cannot be made ({error.strerror})") from error
    write_atomically(path, content)
