"""How an exported graph compares with the library, image by image and engine by engine."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from offnominal.errors import ImageError, OptionError
from offnominal.images import describe, read_image
from offnominal.paths import is_elsewhere
from offnominal.scoring import Size, size_of

if TYPE_CHECKING:
    from offnominal.detectors.base import Detector

__all__ = ["ENGINES", "GraphRunner", "Parity", "compare_graph", "drawn_images", "graph_runner"]
__all__ += ["sample_images"]

ENGINES = ("onnxruntime", "openvino")
OUTPUTS = ("score", "map", "is_anomalous", "threshold")


GraphRunner = Callable[[NDArray[np.uint8]], Mapping[str, NDArray[Any]]]
"""An image (H, W, 3), uint8, through a graph: what comes out, by name."""


@dataclass(frozen=True)
class Parity:
    """The largest differences of one engine from the library.

    Attributes
    ----------
    engine : str
    images : int
        How many it was run on.
    score : float
        Largest difference of a score, relative to the library's, or to the threshold where that is
        more.
    map : float
        Largest difference of a map's pixel, relative to that map's peak, or to the pixel threshold
        where that is more.
    decisions : int
        Images that are decided otherwise, but for those whose score lies as near to the threshold
        as the tolerance.
    tolerance : float
    """

    engine: str
    images: int
    score: float
    map: float
    decisions: int
    tolerance: float

    @property
    def holds(self) -> bool:
        """Whether all is within the tolerance; what is no number is not."""
        return self.score <= self.tolerance and self.map <= self.tolerance and not self.decisions

    def check(self, path: str) -> None:
        """Raise an :class:`OptionError` unless it holds."""
        if not self.holds:
            raise OptionError(
                f"{path}: not written, since {self.engine} does not score as the library does: "
                f"scores differ by up to {self.score:.2g}, maps by {self.map:.2g} (relative; "
                f"{self.tolerance:.2g} is allowed), decisions on {self.decisions} of {self.images} "
                "images; use the model with Python, or report it with the versions that "
                "`offnominal doctor` tells"
            )

    def __str__(self) -> str:
        """A line of the table."""
        return (
            f"{self.engine}: {self.images} images, scores within {self.score:.1e}, maps within "
            f"{self.map:.1e} (relative), {self.decisions} decisions differ"
        )


def compare_graph(
    detector: "Detector",
    path: str | Path,
    images: Sequence[Any] = (),
    *,
    size: Size | None = None,
    tolerance: float = 1e-4,
    engines: Sequence[str] | None = None,
) -> list[Parity]:
    """Run a single graph and the library on the same images.

    Parameters
    ----------
    detector : Detector
    path : path
        Of the ONNX file.
    images : sequence of paths or arrays
        All of the graph's size; none: see :func:`sample_images`.
    size : (H, W) or None
        Of the graph; None: that of the first image.
    tolerance : float
        See :class:`Parity`.
    engines : sequence of str or None
        Of ``onnxruntime`` and ``openvino``; None: those that are installed.

    Raises
    ------
    OptionError
        If an image has another size, or no engine is installed.
    """
    if not images and size is None:
        raise OptionError("give images to compare on, or the size of the graph")
    read = [(describe(one), read_image(one, detector.sixteen_bit)) for one in images]
    taken = size or size_of(read[0][1])
    for name, image in read:
        if size_of(image) != taken:
            (h, w), (height, width) = size_of(image), taken
            raise OptionError(f"{name}: is {h}x{w}, and the graph takes {height}x{width} alone")
    some = [image for _, image in read] or sample_images(detector, taken)[0]
    chosen = engines or [name for name in ENGINES if find_spec(name)]
    if not chosen:
        raise OptionError("no engine to compare with: pip install onnxruntime")
    ours = detector.predict(some)
    return [_compared(name, graph_runner(path, name), some, ours, tolerance) for name in chosen]


def _compared(
    engine: str,
    run: GraphRunner,
    images: Sequence[NDArray[np.uint8]],
    ours: Sequence[Any],
    tolerance: float,
) -> Parity:
    scores, maps, decisions = [0.0], [0.0], 0
    for image, known in zip(images, ours, strict=True):
        found = run(image)
        score = float(found["score"][0])
        # What scores nothing, as a reference against its own patches, has no digits to compare.
        limit = max(abs(known.threshold), 1e-12)
        scale = max(abs(known.score), limit)
        scores.append(abs(score - known.score) / scale)
        peak = max(float(np.abs(known.anomaly_map).max()), abs(known.pixel_threshold or limit))
        maps.append(float(np.abs(found["map"] - known.anomaly_map).max()) / peak)
        clear = abs(known.score - known.threshold) > tolerance * scale
        decisions += int(clear and bool(found["is_anomalous"][0]) != known.is_anomalous)
    worst = float(np.max(scores)), float(np.max(maps))  # which keep what is no number
    return Parity(engine, len(images), *worst, decisions, tolerance)


def graph_runner(path: str | Path, engine: str) -> GraphRunner:
    """A single graph, loaded by ``onnxruntime`` or ``openvino``, in float32 on the CPU."""
    if engine == "onnxruntime":
        import onnxruntime

        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        names = [one.name for one in session.get_outputs()]
        return lambda image: dict(zip(names, session.run(names, {"image": image}), strict=True))
    if engine != "openvino":
        raise OptionError(f"engine {engine!r}: choose from {', '.join(ENGINES)}")
    import openvino

    # Where the processor has bf16 instructions, OpenVINO would round by itself.
    core = openvino.Core()
    compiled = core.compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def run(image: NDArray[np.uint8]) -> Mapping[str, NDArray[Any]]:
        found = compiled({"image": image})
        # By place: a tensor that is two outputs has one name for both.
        return {name: found[place].copy() for place, name in enumerate(OUTPUTS)}

    return run


def sample_images(
    detector: "Detector", size: Size | None = None
) -> tuple[list[NDArray[np.uint8]], str]:
    """Images to compare on where none are given, and what they are, in words.

    Eight references that are still where they were, mirrored: a bank that holds an image says
    nothing of it. And two that are drawn.

    Parameters
    ----------
    detector : Detector
    size : (H, W) or None
        That all of them have; None: any.
    """
    known = [one for one in references_there(detector) if size in (None, size_of(one))]
    mirrored = [np.ascontiguousarray(one[:, ::-1]) for one in known]
    taken = size or next((one.size for one in detector.references), (256, 256))
    count = len(known)
    told = f"{count} reference{'s' * (count > 1)}, mirrored, and " if count else ""
    return [*mirrored, *drawn_images(taken)], f"{told}2 drawn images"


def references_there(detector: "Detector", most: int = 8) -> list[NDArray[np.uint8]]:
    """References whose files are still where they were."""
    found: list[NDArray[np.uint8]] = []
    for one in detector.references:
        if len(found) == most or is_elsewhere(one.file) or not Path(one.file).is_file():
            continue
        try:
            found.append(read_image(one.file, detector.sixteen_bit))
        except ImageError:
            continue
    return found


def drawn_images(size: Size) -> Iterator[NDArray[np.uint8]]:
    """Two images (H, W, 3) that look like nothing: soft colours, and noise over them."""
    height, width = size
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    phases = np.arange(3) * 2.0
    soft = 128 + 60 * np.sin(x[..., None] / 17 + phases) * np.cos(y[..., None] / 23 + phases)
    yield soft.round().astype(np.uint8)
    noise = np.random.default_rng(0).normal(0, 40, (height, width, 3))
    yield (soft + noise).round().clip(0, 255).astype(np.uint8)
