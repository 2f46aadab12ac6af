"""A fitted detector as a model file that needs no torch, found to judge as the detector does."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from offnominal import modelfile
from offnominal._version import __version__
from offnominal.atomic import writing
from offnominal.detectors.deployed import (
    EXPORTED,
    Deployed,
    Gated,
    Row,
    SquareSizing,
    WholeSizing,
)
from offnominal.detectors.features import FeatureDetector
from offnominal.errors import OptionError
from offnominal.export.compared import Comparison, compare
from offnominal.export.fitted import as_learned, by_torch, refuse_exported, refuse_known
from offnominal.export.parity import ENGINES, sample_images
from offnominal.images import ImageSource, content_digest, read_image
from offnominal.paths import is_elsewhere
from offnominal.views import square_view

if TYPE_CHECKING:
    from torch import Tensor

    from offnominal.detectors.base import Detector
    from offnominal.engines.gate import Gate
    from offnominal.engines.network import ExportedNetwork
    from offnominal.export.program import Program
    from offnominal.prediction import Prediction

__all__ = ["Comparison", "export_int8", "export_model"]

_ENGINES = {"fp32": ENGINES, "bf16": ("openvino",)}
_NOTHING = Comparison()


def export_model(
    detector: "Detector",
    path: str | Path,
    sample: Comparison = _NOTHING,
) -> Deployed:
    """Write a detector with its network as a graph; :func:`offnominal.load` opens it without torch.

    Parameters
    ----------
    detector : Detector
        Fitted.
    path : path
        Such as ``part.offx``; what is there is replaced when all is well, and stays otherwise.
    sample : Comparison
        Images to compare on; none: references that are still there, mirrored, and two that are
        drawn.

    Returns
    -------
    Deployed
        What the file carries; ``parity`` has a row for each engine that is installed, and
        ``compared`` says on what.

    Raises
    ------
    OptionError
        If the method cannot be exported, or the file judges otherwise: there is no file then.
    """
    detector.check_fitted()
    if len(detector.categories) > 1:
        raise OptionError(
            f"{detector.method}: of several categories, each with a threshold of its own, which is "
            "not exported; fit one model for each"
        )
    _refuse(detector)
    plain = by_torch(detector)
    # In less than float32 features are an engine's own: the file is held to what was fitted.
    detector = plain if _precision(detector) == "fp32" else as_learned(detector)
    images, words = sample.images, str(sample)
    if not images:
        images, words = sample_images(detector)
    # What the fitted detector says comes first: without it nothing can be compared.
    before = detector.predict(images)
    first = images[0]
    deployed = _graph(plain, first if isinstance(first, np.ndarray) else read_image(first))
    with writing(Path(path)) as temporary:
        rows = _compared(detector, deployed, temporary, images, before, sample)
        deployed = replace(deployed, parity=tuple(rows), compared=words)
        _write(detector, deployed, temporary)
    return deployed


def export_int8(
    detector: "Detector", path: str | Path, sample: Comparison
) -> "tuple[Deployed, Gate]":
    """The same with a network in 8 bits, where a comparison shows that nothing is lost.

    The references are learned anew in 8 bits, since a bank has to come from the network that reads
    it, and the thresholds set from the good images of the sample.

    Parameters
    ----------
    detector, path
        As :func:`export_model` has them; the method keeps a memory bank.
    sample : Comparison
        Good images that it has not learned from, four at least, and better defects, too.

    Raises
    ------
    OptionError
        If the method or its network cannot be had in 8 bits, a reference is no longer there, or too
        much is lost.
    """
    from offnominal.engines.gate import compared
    from offnominal.engines.int8 import quantised

    detector.check_fitted()
    refuse_exported(detector, "--int8: ")
    refuse_known(detector, "--int8")
    if not _has_bank(detector):
        raise OptionError(f"--int8: {detector.method} keeps no memory bank; leave --int8 out")
    if (precision := _precision(detector)) != "fp32":
        raise OptionError(
            f"--int8: fitted with --precision {precision}, and 8 bits are compared with "
            "float32; fit anew with --precision fp32"
        )
    plain = by_torch(detector)
    read = [read_image(one, plain.sixteen_bit) for one in sample.good]
    network = quantised(plain, read)
    learned = _learned_by(plain, network)
    # On another with what it learned: half of the images set its thresholds for a trial.
    gate = compared(plain, learned.rescored(), sample.good, sample.defects)
    gate.check()
    learned.calibrate(sample.good)
    told = Gated(**gate.plain())
    deployed = Deployed("network", network, (), None, _licence(network), (), str(sample), told)
    with writing(Path(path)) as temporary:
        _write(learned, deployed, temporary)
        _check_opened(temporary, learned, sample.images)
    return deployed, replace(gate, detector=learned)


def _check_opened(path: Path, detector: Any, images: Sequence[ImageSource]) -> None:
    """Raise an OptionError unless a file judges as the detector that was written to it."""
    from offnominal.detectors.registry import load

    again = load(path, device="cpu", engine=detector.engine_in_force)
    pairs = zip(detector.predict(images), again.predict(images), strict=True)
    if any(
        one.is_anomalous != other.is_anomalous or not np.isclose(one.score, other.score, rtol=1e-4)
        for one, other in pairs
    ):
        raise OptionError("not written: opened again, the file judges otherwise")


def _learned_by(detector: Any, network: "ExportedNetwork") -> Any:
    """Another detector of the same options and references, whose network is a graph."""
    known = [one for one in detector.references if one.active]
    for one in known:
        there = not is_elsewhere(one.file) and Path(one.file).is_file()
        if not there or content_digest(detector.image_of(one.file)) != one.digest:
            raise OptionError(
                f"--int8: the references are learned anew, and {one.file} "
                f"{'is another picture now' if there else 'is no longer there'}; fit anew"
            )
    where = {"device": "cpu", "engine": "onnxruntime", "precision": "fp32"}  # beside the graph
    other = type(detector)(**(detector.options() | where))
    other.use_graph(network)
    return other.fit([one.file for one in known], synthetic=False)


def _precision(detector: Any) -> str:
    return str(getattr(detector, "precision", "fp32"))


def _has_bank(detector: Any) -> bool:
    return isinstance(detector, FeatureDetector) and detector.speaks_arrays


def _refuse(detector: "Detector") -> None:
    """Raise an OptionError that says why a detector cannot be exported, before any work."""
    refuse_exported(detector)
    bank = _has_bank(detector)
    if not bank and (told := detector.exportable()):
        raise OptionError(f"{detector.method}: {told}")
    precision = _precision(detector)
    if precision not in (_ENGINES if bank else ("fp32",)):
        raise OptionError(
            f"{detector.method}: fitted with --precision {precision}, which no graph of it "
            "computes in; fit anew with --precision fp32"
        )


def _write(detector: "Detector", deployed: Deployed, path: Path) -> None:
    arrays = detector.arrays()
    if deployed.kind == "program":  # in which all that was learned is
        kept = ("calibration.", "known.")
        arrays = {name: array for name, array in arrays.items() if name.startswith(kept)}
    header = detector.header() | {"export": deployed.section()}
    modelfile.write(path, header, arrays | {EXPORTED: deployed.array()})


def _graph(detector: Any, image: NDArray[np.uint8]) -> Deployed:
    """The network of a method with a memory bank, or all of another's program."""
    if _has_bank(detector):
        from offnominal.engines.export import export_embed

        network = export_embed(detector, detector.views(image)[0].pixels)
        return Deployed("network", network, licence=_licence(network))
    network, outputs = _program(detector, image)
    return Deployed("program", network, outputs, _sizing(detector), _licence(network))


def _program(detector: Any, image: NDArray[np.uint8]) -> tuple["ExportedNetwork", tuple[str, ...]]:
    """All that a detector computes of prepared pixels, as a graph, and what comes out."""
    import torch

    from offnominal.engines.export import OPSET, write_graph
    from offnominal.engines.network import ExportedNetwork, Facts, facts_of
    from offnominal.export.program import program

    made = program(detector)
    sizing = _sizing(detector)
    net = getattr(detector, "network", None)
    known = facts_of(net) if net is not None else _NO_NETWORK | {"name": detector.method}
    if isinstance(sizing, SquareSizing):
        known |= {"mean": tuple(detector.mean), "std": tuple(detector.std)}
        view = square_view(
            image, sizing.full, sizing.side, sizing.resample, known["mean"], known["std"]
        )
    else:
        view = detector.views(image)[0]
    pixels = torch.from_numpy(view.pixels[None])
    with torch.inference_mode():
        made(pixels)  # which settles what there is
    if isinstance(sizing, SquareSizing):
        content, opset = _fixed(made, pixels)
    else:
        content, opset = write_graph(made, pixels, outputs=made.outputs)[0], OPSET
    facts = Facts(
        **known,
        structure=["tuple", *(None for _ in made.outputs)],
        outputs=len(made.outputs),
        opset=opset,
        made_with={"offnominal": __version__, "torch": torch.__version__},
        size=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
    )
    return ExportedNetwork(facts, content), made.outputs


def _fixed(made: "Program", pixels: "Tensor") -> tuple[bytes, int]:
    """The graph of a program whose pixels have one size, and its opset."""
    from tempfile import TemporaryDirectory

    from offnominal.export.onnxfile import write_onnx

    with TemporaryDirectory() as folder:
        file = Path(folder) / "program.onnx"
        opset = write_onnx(made, (pixels,), file, ["pixels"], made.outputs, {})
        return file.read_bytes(), opset


# Of a method that has no backbone.
_NO_NETWORK: dict[str, Any] = {
    "family": "", "dim": 1, "stride": 1, "multiple": 1, "resolution": 1, "resize": "square",
    "normalize": "none", "mask_threshold": None, "layers": (), "level_count": 1,
    "is_transformer": False, "digest": "", "untrained": "", "parameters": 0,
}  # fmt: skip


def _sizing(detector: Any) -> WholeSizing | SquareSizing:
    if not isinstance(detector, FeatureDetector):
        full, side = detector.full_side, detector.side
        return SquareSizing(full=full, side=side, resample=detector.resample)
    if detector.tile:
        raise OptionError(f"{detector.method}: --tile is not exported; fit anew without it")
    net = detector.load_network()
    resolution = detector.resolution or detector.default_resolution(net)
    return WholeSizing(resolution=resolution, resize=detector.resize or net.resize)


def _licence(network: "ExportedNetwork") -> str:
    from offnominal.backbones.catalogue import CATALOGUE

    return CATALOGUE[network.name].licence if network.name in CATALOGUE else ""


def _compared(
    detector: Any,
    deployed: Deployed,
    path: Path,
    images: Sequence[ImageSource],
    before: Sequence["Prediction"],
    sample: Comparison,
) -> list[Row]:
    """Run the file by each engine that is installed; raise an OptionError where it differs."""
    from offnominal.detectors.registry import load

    _write(detector, deployed, path)
    precision = deployed.network.facts.precision
    precision = getattr(detector, "precision", "fp32") if precision == "fp32" else precision
    names = [name for name in _ENGINES[precision] if find_spec(name)]
    if not names:
        raise OptionError(
            f"no engine is installed that computes in {precision}, to compare the file with: "
            f"pip install {_ENGINES[precision][0]}"
        )
    rows = []
    for name in names:
        after = load(path, device="cpu", engine=name).predict(images)
        row, wrong = compare(before, after, name, precision, detector, len(sample.defects))
        rows.append(row)
        if wrong:
            raise OptionError(f"not written: run by {name}, {wrong}")
    return rows
