"""One ONNX file that scores as the library does, in both engines; and what cannot be in one."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from tests.seeded import UNTRAINED

from offnominal.backbones.mae import MaskedAutoencoder, Shape
from offnominal.backbones.pdn import PatchDescription
from offnominal.detectors.base import Detector
from offnominal.detectors.methods import METHODS
from offnominal.detectors.reconstruction.maeday import MAEDAY
from offnominal.detectors.registry import detector_class
from offnominal.errors import OptionError
from offnominal.export.graph import compare_graph, graph_size, single_graph
from offnominal.export.parity import graph_runner

SIZE = (100, 130)


def some(tiles: Path, count: int, size: tuple[int, int] = SIZE) -> list[np.ndarray]:
    """Good tiles, all of one size."""
    files = sorted((tiles / "train" / "good").iterdir())[:count]
    return [np.asarray(Image.open(one).convert("RGB").resize(size[::-1])) for one in files]


def fitted(method: str, images: Any, **options: Any) -> Any:
    options = {"backbone": "builtin", "resolution": 64} | options
    kind: Any = detector_class(method)
    detector = kind(**options).fit(images, synthetic=False)
    if detector.threshold is None:
        detector.set_threshold(1.0)
    return detector


@pytest.mark.slow
def test_a_graph_scores_as_the_library_does(tiles: Path, tmp_path: Path) -> None:
    images, good = some(tiles, 6), tmp_path / "good"
    good.mkdir()
    for number, image in enumerate(images[:4]):
        Image.fromarray(image).save(good / f"{number}.png")
    detector = fitted("anomalydino", good, mask="off", rotations="none")
    path = tmp_path / "part.onnx"
    found = single_graph(detector, path)
    assert found.size == SIZE
    assert {one.engine for one in found.parity} == {"onnxruntime", "openvino"}
    # References, mirrored: as they are they would score nothing. And two that are drawn.
    assert found.compared == "4 references, mirrored, and 2 drawn images"
    assert all(one.holds and one.images == 6 for one in found.parity)
    assert all(one.holds for one in compare_graph(detector, path, images[4:]))
    assert "scores within" in str(found.parity[0])

    model = onnx.load(path)
    about = {one.key: one.value for one in model.metadata_props}
    assert about["offnominal.method"] == "anomalydino"
    assert about["offnominal.backbone"] == "builtin"
    assert about["offnominal.weights_licence"] == "Apache-2.0"
    assert "weights" not in about["offnominal.options"]  # names no file of this machine
    assert [one.name for one in model.graph.output] == ["score", "map", "is_anomalous", "threshold"]

    # What C++ and C# call: bytes in, by name; a black part is none.
    black = graph_runner(path, "onnxruntime")(np.zeros((*SIZE, 3), np.uint8))
    [known] = detector.predict(np.zeros((*SIZE, 3), np.uint8))
    assert black["map"].shape == SIZE
    assert black["map"].dtype == np.float32
    assert bool(black["is_anomalous"][0]) is known.is_anomalous is True
    assert black["threshold"][0] == np.float32(detector.threshold.value)

    # Whoever scores otherwise leaves no file, and what was there stays.
    before = path.read_bytes()
    detector.set_threshold(1e9)
    with pytest.raises(OptionError, match="not written, since onnxruntime does not score as"):
        single_graph(detector, path, images=images[4:], tolerance=0.0)
    assert path.read_bytes() == before
    assert sorted(one.name for one in tmp_path.iterdir()) == ["good", "part.onnx"]
    [other] = compare_graph(detector, path, images[4:], engines=["onnxruntime"])
    rejected = graph_runner(path, "onnxruntime")
    assert other.decisions == sum(bool(rejected(one)["is_anomalous"][0]) for one in images[4:])
    with pytest.raises(OptionError, match="is 10x10, and the graph takes 100x130 alone"):
        compare_graph(detector, path, [np.zeros((10, 10, 3), np.uint8)], size=SIZE)


def test_the_size_is_that_of_the_references_or_named(tiles: Path) -> None:
    one, other = some(tiles, 2), some(tiles, 1, (90, 90))
    detector = fitted("dn2", one)
    assert graph_size(detector) == SIZE
    assert graph_size(detector, "480x640") == (480, 640)
    with pytest.raises(OptionError, match=r"have 2 sizes .90x90, 100x130.; .*as --size 480x640"):
        graph_size(fitted("dn2", one + other))
    for wrong in ("480", "0x3", "ax3"):
        with pytest.raises(OptionError, match="height and width in pixels"):
            graph_size(detector, wrong)


@pytest.mark.parametrize(
    ("method", "options", "told"),
    [
        ("anomalydino", {"mask": "on"}, "mask of the background .* --mask off"),
        ("anomalydino", {"tile": 64, "mask": "off"}, "--tile is not inside"),
        ("anomalydino", {"storage": "int8", "mask": "off", "normalize": "l2"}, "--storage fp32"),
        ("anomalydino", {"precision": "bf16", "mask": "off"}, "--precision fp32"),
        ("anomalydino", {"sixteen_bit": "1,99", "mask": "off"}, "--sixteen-bit range"),
        ("patchcore", {"neighbours": 2}, "--set reweight=false"),
        ("spade", {}, "finds for it"),
    ],
)
@pytest.mark.slow
def test_what_cannot_be_inside_is_named(
    tiles: Path, tmp_path: Path, method: str, options: dict[str, Any], told: str
) -> None:
    detector = fitted(method, some(tiles, 2), **options)
    with pytest.raises(OptionError, match=told):
        single_graph(detector, tmp_path / "part.onnx")
    assert not list(tmp_path.iterdir())


def test_every_method_says_whether_it_can() -> None:
    """By a text that says why not, or None: none is forgotten."""
    for name in METHODS:
        assert detector_class(name).exportable is not Detector.exportable, name


CASES: list[tuple[str, dict[str, Any]]] = [
    ("anomalydino", {"mask": "off", "neighbours": 2, "aggregate": "mean"}),
    ("anomalydino", {"mask": "off", "normalize": "l2", "storage": "fp16"}),
    ("multilayer-nn", {"query_views": "vflip,hflip,clamp", "summary_weight": 0.5}),
    ("patchcore", {"coreset": 0.2, "crop": 56}),
    ("patchcore", {"reweight": False, "neighbours": 3, "aggregate": "quantile97.5"}),
    ("softpatch", {"reweight": True}),
    ("padim", {}),
    ("subspacead", {"rotations": "none"}),
    ("subspacead", {"rotations": "none", "nearest": 0.5, "aggregate": "map-max"}),
    ("gaussian", {}),
    ("dn2", {}),
    ("autoencoder", {"steps": 2, "batch": 2}),
    ("stfpm", {"steps": 2, "batch": 2}),
    ("fastflow", {"steps": 2, "batch": 2}),
    ("simplenet", {"steps": 2, "batch": 2}),
    ("deep-svdd", {"steps": 2, "batch": 2}),
]


@pytest.mark.slow
@pytest.mark.parametrize(("method", "options"), CASES)
def test_methods_in_both_engines(
    tiles: Path, mobilenet: Path, tmp_path: Path, method: str, options: dict[str, Any]
) -> None:
    """On a real network and real tiles, good and bad."""
    images = some(tiles, 12, (120, 90))
    bad = sorted((tiles / "test").rglob("*.jpg"))[:3] or sorted((tiles / "test").rglob("*.png"))[:3]
    bad_images = [np.asarray(Image.open(one).convert("RGB").resize((90, 120))) for one in bad]
    takes = detector_class(method).option_defaults()
    if "backbone" in takes:
        options = {"backbone": "mobilenetv2_100", "weights": str(mobilenet)} | options
    detector = detector_class(method)(**{"resolution": 64} | options)
    detector.fit(images[:10], synthetic=False)
    if detector.threshold is None:
        detector.set_threshold(1.0)
    found = single_graph(detector, tmp_path / "part.onnx", images=[*images[10:], *bad_images])
    assert [one.engine for one in found.parity] == ["onnxruntime", "openvino"]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["efficientad", "dinomaly", "maeday", "anomalydino"])
def test_networks_that_are_not_fetched(tiles: Path, tmp_path: Path, method: str) -> None:
    """Small ones of their kinds, drawn at random: a teacher, a transformer, an autoencoder."""
    images = some(tiles, 6, (64, 80))
    options: dict[str, Any] = {"resolution": 64, "steps": 2, "batch": 2}
    network: Any
    about: dict[str, str] = {}
    detector: Any
    torch.manual_seed(0)
    weights = str(tmp_path / "weights.safetensors")
    if method == "maeday":
        network = MaskedAutoencoder("toy", Shape(4, 48, 3, 4, 32, 2, 4, 32)).eval()
        network.digest = "toy"
        detector = MAEDAY(masks=4)
        detector.use_network(network.requires_grad_(False))
        detector.fit().calibrate(images)
    else:
        if method == "efficientad":
            network, about = PatchDescription("pdn_small", 8, 0.05), {"model": "pdn_small"}
            options |= {"width": 0.05}
        else:
            network, about = timm.create_model("test_vit", num_classes=0), about
            options |= {"backbone": "test_vit"}
        save_file(network.state_dict(), weights, UNTRAINED | about)
        if method == "anomalydino":
            options = {"resolution": 64, "backbone": "test_vit", "mask": "off"}
        kind: Any = detector_class(method)
        detector = kind(weights=weights, **options)
        detector.fit(images[:4], synthetic=False)
        detector.set_threshold(0.5)
    found = single_graph(detector, tmp_path / "part.onnx", (64, 80), images[4:])
    assert all(one.holds for one in found.parity)
