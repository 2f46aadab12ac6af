"""Other engines than torch: the same features and scores, found again without torch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from offnominal import DN2, SPADE, AnomalyDINO, MultiLayerNN, PatchCore
from offnominal.backbones.positions import resize_positions, tracing_positions
from offnominal.detectors.features import FeatureDetector
from offnominal.engines import choose
from offnominal.engines.base import flat
from offnominal.engines.cache import EngineCache
from offnominal.engines.export import compare_with, export_embed
from offnominal.engines.identity import is_exportable, wanted_graph
from offnominal.engines.network import FACTS, GRAPH, ExportedNetwork
from offnominal.errors import EngineWarning, ModelFileError, OptionError
from tests.engines.conftest import CNN, VIT

pytestmark = pytest.mark.slow

ENGINES = ("onnxruntime", "openvino")


@pytest.mark.parametrize("rule", ["dino", "bicubic", "bicubic-antialias", "bilinear"])
def test_tables_of_positions_by_matrices(rule: str) -> None:
    table = 0.1 * torch.randn(1 + 14 * 14, 8, generator=torch.Generator().manual_seed(0))
    for grid in [(14, 14), (10, 21), (32, 5), (1, 1), (14, 20)]:
        right = resize_positions(table, *grid, rule)  # type: ignore[arg-type]
        with tracing_positions():
            found = resize_positions(table, *grid, rule)  # type: ignore[arg-type]
        torch.testing.assert_close(found, right, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("kind", "name", "options"),
    [
        (PatchCore, CNN, {"dim": 50}),
        (SPADE, CNN, {}),
        (MultiLayerNN, VIT, {"layers": [1, 3]}),
    ],
)
def test_graphs_give_what_torch_gives_at_any_size(
    kind: type[FeatureDetector], name: str, options: dict[str, object], weights: dict[str, str]
) -> None:
    detector = kind(backbone=name, weights=weights[name], **options)
    step = detector.load_network().multiple
    draw = np.random.default_rng(0)
    pixels = draw.standard_normal((3, 3 * step, 4 * step)).astype(np.float32)
    graph = export_embed(detector, pixels)
    for engine in (choose.start(graph, one) for one in ENGINES):
        for size in [(3, 4), (5, 3), (4, 4)]:
            there = draw.standard_normal((3, size[0] * step, size[1] * step)).astype(np.float32)
            with torch.inference_mode():
                right = [one.numpy() for one in flat(detector.embed(torch.from_numpy(there)))]
            assert compare_with(right, engine(there[None])) < 1e-5


def test_scores_and_decisions_are_the_same(tiles: Path, weights: dict[str, str]) -> None:
    good = sorted((tiles / "train" / "good").iterdir())
    test = [*good[3:5], *sorted(tiles.glob("test/*/*"))[::80]]
    found = {}
    for engine in ("torch", *ENGINES):
        detector = AnomalyDINO(
            backbone=CNN, weights=weights[CNN], rotations="none", resolution=128, engine=engine
        ).fit(good[:3])  # fmt: skip
        found[engine] = detector.predict(test)
        assert detector.engine_in_force == engine
    for engine in ENGINES:
        for one, right in zip(found[engine], found["torch"], strict=True):
            assert one.score == pytest.approx(right.score, rel=1e-4)
            assert one.is_anomalous == right.is_anomalous
            np.testing.assert_allclose(one.anomaly_map, right.anomaly_map, atol=1e-4)


def test_auto_keeps_the_fastest_and_finds_it_again(
    weights: dict[str, str], own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("offnominal.engines.choose._IMAGES", 20)  # on a machine that is busy, too
    options = {"backbone": VIT, "weights": weights[VIT]}
    pixels = np.zeros((3, 32, 48), np.float32)
    small = AnomalyDINO(**options)
    assert choose.settle(small, pixels).name == "torch"  # over before a graph would be written
    assert not list(own_cache.glob("graph-*"))
    named = AnomalyDINO(engine="onnxruntime", **options)
    assert choose.ready(named) is None
    choose.settle(named, pixels)
    assert choose.ready(named) is not None
    assert choose.ready(small) is None  # nobody has tried which is fastest
    best = choose.settle(small, pixels)
    assert choose.ready(small) is None if best.name == "torch" else choose.ready(small) is not None
    [told] = [json.loads(one.read_text()) for one in own_cache.glob("choices/*")]
    assert told["engine"] == best.name
    assert {"torch", *ENGINES} == set(told["seconds"])
    # Another resolution is the same graph; other layers, options or weights are another.
    keys = [
        wanted_graph(one, EngineCache().files)
        for one in (
            small,
            AnomalyDINO(resolution=64, **options),
            AnomalyDINO(layers=[2], **options),
            DN2(**options),
            AnomalyDINO(backbone=CNN, weights=weights[CNN]),
        )
    ]
    assert len({one.key for one in keys if one}) == 4
    assert keys[0] == keys[1]


def test_a_damaged_graph_is_told_and_made_anew(weights: dict[str, str], own_cache: Path) -> None:
    detector = AnomalyDINO(backbone=VIT, weights=weights[VIT], engine="onnxruntime")
    pixels = np.zeros((3, 32, 48), np.float32)
    right = choose.settle(detector, pixels)(pixels[None])
    [place] = own_cache.glob("graph-*")
    whole = (place / GRAPH).read_bytes()
    (place / GRAPH).write_bytes(whole[:-9] + b"123456789")
    with pytest.warns(EngineWarning, match="checksum"):
        assert choose.ready(detector) is None
    other = AnomalyDINO(backbone=VIT, weights=weights[VIT], engine="onnxruntime")
    np.testing.assert_array_equal(choose.settle(other, pixels)(pixels[None])[0], right[0])
    # What OpenVINO compiled is used without a look at the graph; damaged, it is compiled again.
    compiled = AnomalyDINO(backbone=VIT, weights=weights[VIT], engine="openvino")
    first = choose.settle(compiled, pixels)(pixels[None])[0]
    [blob] = place.glob("openvino/*.blob")
    blob.write_bytes(blob.read_bytes()[:-9] + b"123456789")
    (place / GRAPH).write_bytes(whole[:-9] + b"123456789")
    found = choose.ready(compiled)
    compiled.network = found
    with pytest.warns(EngineWarning, match="checksum"):
        again = choose.settle(compiled, pixels)
    np.testing.assert_array_equal(again(pixels[None])[0], first)
    facts = json.loads((place / FACTS).read_text())
    for change, told in [
        ({"format": 9}, "newer version"),
        ({"stride": 0}, "'stride'"),
        ({"std": [1, 1, 0]}, "'std'"),
        ({"structure": ["set", None]}, "'structure'"),
        ({"more": 1}, "'more'"),
        ({"sha256": "0" * 64}, "checksum"),
        ({"size": 5}, "bytes, not the 5"),
    ]:
        with pytest.raises(ModelFileError, match=told):
            ExportedNetwork.of(json.dumps(facts | change).encode(), whole)
    with pytest.raises(ModelFileError, match="of something else"):
        ExportedNetwork.of(b"[1]", whole)


def test_the_cache_makes_room(weights: dict[str, str], tmp_path: Path) -> None:
    detector = AnomalyDINO(backbone=CNN, weights=weights[CNN])
    detector.load_network()
    graph = export_embed(detector, np.ones((3, 64, 64), np.float32))
    cache = EngineCache(tmp_path / "small", limit=2 * graph.facts.size + 100_000)
    for number in range(3):
        cache.put(f"{number}", graph)
        os.utime(cache.folder / f"graph-{number}" / FACTS, (number, number))
    assert [cache.find(f"{number}")[0] is None for number in range(3)] == [True, False, False]


def test_what_cannot_run_is_told(weights: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"backbone": VIT, "weights": weights[VIT]}
    pixels = np.zeros((3, 32, 48), np.float32)
    with pytest.raises(OptionError, match="bf16"):
        choose.settle(AnomalyDINO(engine="onnxruntime", precision="bf16", **options), pixels)
    with pytest.raises(OptionError, match="fp16"):
        choose.settle(AnomalyDINO(engine="openvino", precision="fp16", **options), pixels)

    class Own(AnomalyDINO):
        def embed(self, pixels: torch.Tensor) -> torch.Tensor:
            return super().embed(pixels)

    assert is_exportable(AnomalyDINO)
    assert not is_exportable(Own)
    assert choose.settle(Own(**options), pixels).name == "torch"
    with pytest.raises(OptionError, match="torch alone"):
        choose.settle(Own(engine="openvino", **options), pixels)
    monkeypatch.setenv("OFFNOMINAL_ENGINE", "tensorrt")
    with pytest.raises(OptionError, match="OFFNOMINAL_ENGINE=tensorrt"):
        choose.settle(AnomalyDINO(**options), pixels)


def test_a_graph_is_found_without_torch(weights: dict[str, str]) -> None:
    detector = DN2(backbone=VIT, weights=weights[VIT], engine="onnxruntime")
    pixels = np.ones((3, 32, 48), np.float32)
    [right] = choose.settle(detector, pixels)(pixels[None])
    graph = wanted_graph(detector, EngineCache().files)
    assert graph is not None
    code = (
        "import sys, numpy as np\n"
        "from offnominal.engines import choose\n"
        "from offnominal.engines.cache import EngineCache\n"
        f"network, _ = EngineCache().find({graph.key!r})\n"
        "[found] = choose.start(network, 'onnxruntime')(np.ones((1, 3, 32, 48), np.float32))\n"
        "print(network.dim, float(found.sum()), 'torch' in sys.modules)"
    )
    told = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert told[::2] == ["64", "False"]
    assert float(told[1]) == pytest.approx(right.sum(), rel=1e-4)
