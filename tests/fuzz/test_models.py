"""Model files gone wrong: as they lie there, and as somebody would write them on purpose."""

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm  # noqa: F401 (a header may name any network, and its import is not what is timed)
from tests.fuzz.mutate import COUNT, attack, json_mutations, mutations, safetensors_mutations

from offnominal import load, modelfile
from offnominal.cli.card import Card
from offnominal.cli.info import describe, describe_tests
from offnominal.detectors.registry import detector_class
from offnominal.errors import OffnominalError

os.environ["HF_HUB_OFFLINE"] = "1"  # a header may name any network

SMALL: dict[str, Any] = {"resolution": 48, "backbone": "builtin"}
OPTIONS: dict[str, dict[str, Any]] = {
    "anomalydino": {"rotations": "none"},
    "patchcore": {"storage": "int8"},
    "multilayer-nn": {"rotations": "none"},
    "spade": {},
    "dn2": {},
    "padim": {},
    "subspacead": {"rotations": "none"},
    "softpatch": {},
}


def images() -> list[np.ndarray]:
    noise = np.random.default_rng(0)
    return [noise.integers(0, 255, (48, 48, 3), dtype=np.uint8) for _ in range(4)]


def fitted(method: str, path: Path) -> Path:
    detector_class(method)(**SMALL, **OPTIONS[method]).fit(images()[:3]).save(path)
    return path


def use(path: Path) -> None:
    """Open a model, and do with it what may be done."""
    with suppress(OffnominalError):
        card = Card(path)
        describe(card, card.header)
        describe_tests(card)
    detector = load(path, device="cpu")
    [found] = detector.predict(images()[3])
    assert np.isfinite(found.score)
    assert np.isfinite(found.anomaly_map).all()
    assert detector.threshold is None or np.isfinite(detector.threshold.value)
    if hasattr(detector, "forget"):
        detector.history()
        try:
            detector.forget(images()[:1])
            detector.undo()
        except OffnominalError as error:
            assert str(error)  # noqa: PT017 (a refusal in words is a right outcome)


@pytest.mark.parametrize("method", OPTIONS)
@pytest.mark.slow
def test_headers_that_were_written_on_purpose(method: str, tmp_path: Path) -> None:
    """Checksums are right, so nothing but what is said can give a file away."""
    path = fitted(method, tmp_path / "m.offn")
    header = modelfile.read_header(path)
    arrays = modelfile.read(path, header)

    def written(data: bytes, seed: int, count: int) -> Iterator[bytes]:
        for text in json_mutations(json.dumps(header).encode(), seed, count):
            try:
                modelfile.write(path, json.loads(text), arrays)
            except (OffnominalError, RecursionError, ValueError, TypeError):
                continue  # nothing writes that
            yield path.read_bytes()

    attack(path, lambda: use(path), written, count=COUNT // 3)


@pytest.mark.parametrize("method", OPTIONS)
@pytest.mark.slow
def test_tensors_that_were_written_on_purpose(method: str, tmp_path: Path) -> None:
    path = fitted(method, tmp_path / "m.offn")
    header = modelfile.read_header(path)
    arrays = modelfile.read(path, header)

    def written(data: bytes, seed: int, count: int) -> Iterator[bytes]:
        chance = np.random.default_rng(seed)
        names = sorted(arrays)
        for _ in range(count):
            name = names[chance.integers(len(names))]
            modelfile.write(path, header, arrays | {name: _other(arrays[name], chance)})
            yield path.read_bytes()

    attack(path, lambda: use(path), written, count=COUNT // 3)


def test_files_that_were_damaged(tmp_path: Path) -> None:
    path = fitted("anomalydino", tmp_path / "m.offn")
    attack(path, lambda: use(path), mutations, safetensors_mutations)


def _other(array: np.ndarray, chance: np.random.Generator) -> np.ndarray:
    """Another shape, another type, or other numbers."""
    kind = chance.integers(8)
    if kind == 0:
        return array[: chance.integers(len(array) + 1)]
    if kind == 1:
        return np.concatenate([array, array])
    if kind == 2:
        return array.ravel()[None]
    if kind == 3:
        types = [np.float16, np.float64, np.int64, np.uint8]
        return np.nan_to_num(array, posinf=1).astype(types[chance.integers(4)])
    if kind == 4:
        return np.zeros_like(array)
    changed = array.copy()
    if changed.size:
        at = chance.integers(changed.size)
        if changed.dtype.kind == "f":
            values = [np.nan, np.inf, -np.inf, -1, 3e4, -3e4]
            changed.ravel()[at] = values[chance.integers(6)]
        elif changed.dtype == bool:
            changed[:] = ~changed
        else:
            info = np.iinfo(changed.dtype)
            values = [info.max, info.min, -1 if info.min else 255, 100]
            changed.ravel()[at] = values[chance.integers(4)]
    return changed
