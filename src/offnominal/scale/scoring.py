"""Scoring images in shards: a worker's detector, and the rows that it writes."""

import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offnominal.cli.drawn import draw, place
from offnominal.cli.writer import readable
from offnominal.errors import ImageError, OptionError
from offnominal.extras import needs
from offnominal.paths import stamp
from offnominal.prefetch import prefetch
from offnominal.scale.parts import Parts, is_url, persistently
from offnominal.scale.shards import Shard
from offnominal.text import json_line

if TYPE_CHECKING:
    from offnominal.detectors.base import Detector
    from offnominal.prediction import Prediction

_FETCHERS = 4  # images on their way from a store

__all__ = ["Model", "Scorer", "digest_of", "error_line", "fetch", "weights_of"]


@dataclass
class Model:
    """A model file, and how to open it: what each worker does for itself.

    Attributes
    ----------
    path : str
    digest : str
        SHA-256 of the file; a worker refuses one that took its place.
    weights : str or None
        Files with commas between, as ``--weights`` has them.
    """

    path: str
    digest: str
    weights: str | None = None
    device: str = "auto"
    engine: str = "auto"
    endpoint: str | None = None
    key_variable: str | None = None
    category: str | None = None

    def open(self) -> "Detector":
        """The detector."""
        from offnominal.cli.options import open_model

        told = f"{self.path}: was changed during the run; score the images again"
        if self.digest and digest_of(self.path) != self.digest:
            raise OptionError(told)
        asked = self.device, self.endpoint, self.key_variable, self.engine
        detector = open_model(self.path, self.weights, *asked)
        if self.category is not None:
            detector = detector.for_category(self.category)
        detector.check_category()
        detector.predict([])
        return detector

    def files(self) -> list[Path]:
        """The model, and its weights where they are files."""
        named = [part.strip() for part in (self.weights or "").split(",")]
        return [Path(one) for one in (self.path, *named) if one and Path(one).is_file()]

    def moved(self, places: Mapping[str, Path]) -> "Model":
        """The same with its files elsewhere."""
        named = [part.strip() for part in (self.weights or "").split(",") if part.strip()]
        weights = ",".join(str(places.get(str(Path(one)), one)) for one in named) or None
        path = str(places.get(str(Path(self.path)), self.path))
        return replace(self, path=path, weights=weights)


@dataclass
class Scorer:
    """Scores shards of images; see :class:`.shards.Function` and :class:`.files.Sent`.

    Attributes
    ----------
    model : Model
    parts : Parts
    kinds : frozenset of str
        Pictures that are asked for, as :func:`~offnominal.cli.results.parse_save` gives them.
    names : dict of str to str
        Of the pictures of each image; empty where there are none.
    threshold : float or None
        In the place of the model's.
    """

    model: Model
    parts: Parts
    kinds: frozenset[str] = frozenset()
    names: dict[str, str] = field(default_factory=dict)
    threshold: float | None = None
    detector: Any = None

    def files(self) -> list[Path]:
        """Files that are sent along."""
        return self.model.files()

    def take(self, places: Mapping[str, Path]) -> None:
        """Open those in their place."""
        self.model = self.model.moved(places)

    def begin(self) -> None:
        """Open the model."""
        self.detector = self.model.open()

    def __call__(self, shard: Shard) -> dict[str, Any]:
        """Score a shard's images and write its part; returns how many were what."""
        lines: list[str] = []
        told: Counter[str] = Counter()
        unseen: Counter[str] = Counter()
        errors: list[tuple[str, str]] = []

        def on_error(error: ImageError) -> None:
            lines.append(error_line(error.source, error.reason))
            errors.append((error.source, error.reason))

        with tempfile.TemporaryDirectory(prefix="offnominal-") as folder:
            for one in self._scored(shard, Path(folder), on_error):
                row = one.to_dict() | {"file": "" if is_url(one.source) else stamp(one.source)}
                row |= self._drawn(one, Path(folder))
                lines.append(json_line(readable(row)))
                told[str(one.is_anomalous)] += 1
                if words := self.detector.not_inspected((row["height"], row["width"])):
                    unseen[words] += 1
        self.parts.write(shard, lines)
        return {"decided": dict(told), "errors": errors, "unseen": dict(unseen)}

    def _scored(
        self, shard: Shard, folder: Path, on_error: Callable[[ImageError], None]
    ) -> "Iterator[Prediction]":
        """Predictions of a shard's images; what lies in a store is fetched, and goes again."""
        # By its place, not its name: an image that is named twice is fetched twice.
        places = [str(Path(folder, f"{number}{Path(name).suffix}")) if is_url(name) else name
                  for number, name in enumerate(shard.items)]  # fmt: skip
        names = dict(zip(places, shard.items, strict=True))
        unfetched: dict[str, str] = {}

        def bring(place: str) -> str:
            if names[place] != place:
                try:
                    fetch(names[place], place)
                except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
                    # The detector reads what is not there, and hands the error on in its turn. A
                    # store that fails, or a full disk, is no image's fault and ends the run.
                    unfetched[place] = f"cannot be fetched ({error})"
            return place

        def tell(error: ImageError) -> None:
            reason = unfetched.get(error.source, error.reason)
            on_error(ImageError(names.get(error.source, error.source), reason))

        brought = prefetch(places, bring, _FETCHERS, 2 * _FETCHERS)
        elsewhere = any(map(is_url, shard.items))
        sources = (path for _, path, _ in brought) if elsewhere else places
        for one in self.detector.stream(sources, tell):
            name = names[one.source]
            if self.threshold is not None:
                one = replace(one, threshold=self.threshold)
            yield replace(one, source=name)
            if name != one.source:
                Path(one.source).unlink(missing_ok=True)

    def _drawn(self, one: "Prediction", folder: Path) -> dict[str, str]:
        """Pictures of a prediction, in the folder of results; of a store, by way of another."""
        if not self.names:
            return {}
        store = self.parts.store
        base = Path(store.root) if store.local else folder / "drawn"
        where = partial(place, base, os.path.realpath(base))
        drawn = draw(one, self.kinds, self.names[one.source], where)
        if not store.local and base.is_dir():
            for file in sorted(base.rglob("*")):
                if file.is_file():
                    store.write(file.relative_to(base).as_posix(), file.read_bytes())
            shutil.rmtree(base)
        return drawn


def fetch(url: str, path: str) -> None:
    """Fetch a file from wherever fsspec has a driver for."""
    fsspec = needs("fsspec", "scale", url)

    def get() -> None:
        with fsspec.open(url, "rb") as there, Path(path).open("wb") as here:
            shutil.copyfileobj(there, here)

    persistently(get, url)


def error_line(image: str, reason: str) -> str:
    """The line of an image that could not be used."""
    return json_line(readable({"image": image, "error": reason}))


def digest_of(path: str) -> str:
    """SHA-256 of a file."""
    import hashlib

    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def weights_of(path: str) -> str | None:
    """The files of weights that a model file names and this machine has, to be sent along."""
    from offnominal.modelfile import read_header

    told = read_header(Path(path)).get("options")
    named = told.get("weights") if isinstance(told, dict) else None
    if not isinstance(named, str) or not named:
        return None
    return named if all(Path(part.strip()).is_file() for part in named.split(",")) else None
