"""Engines in several threads, beside other files and after a cache went; and those that differ."""

import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from offnominal import AnomalyDINO, load, modelfile
from offnominal.engines import choose
from offnominal.engines.base import Array
from offnominal.engines.cache import EngineCache
from offnominal.engines.export import export_embed
from offnominal.engines.machine import has_bf16
from offnominal.engines.network import FACTS, ExportedNetwork
from offnominal.engines.sizes import BySize
from offnominal.errors import ModelFileError, OptionError
from offnominal.export.compared import Comparison
from offnominal.export.model import export_int8, export_model
from offnominal.memory.search import chosen
from offnominal.memory.search.arrays import ArraySearch
from tests.engines.conftest import CNN, VIT

pytestmark = pytest.mark.slow

ENGINES = ("onnxruntime", "openvino")


def _pixels(*size: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal((3, *size), np.float32)


@pytest.fixture(scope="module")
def graph(weights: dict[str, str]) -> ExportedNetwork:
    detector = AnomalyDINO(backbone=CNN, weights=weights[CNN])
    detector.load_network()
    return export_embed(detector, _pixels(64, 96))


@pytest.mark.parametrize("name", ENGINES)
def test_threads_share_an_engine(name: str, graph: ExportedNetwork) -> None:
    views = [_pixels(96, 96 + 32 * (n % 2), seed=n)[None] for n in range(8)]
    engine = choose.start(graph, name)
    right = [engine(view) for view in views]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda n: engine(views[n % 8]), range(160)))
    for n, one in enumerate(found):  # a size that comes often gets a graph of its own
        np.testing.assert_allclose(one[0], right[n % 8][0], atol=1e-4)


def test_threads_that_come_first_settle_on_one_engine(weights: dict[str, str]) -> None:
    made = []

    def make(size: Any) -> Any:
        made.append(size)
        threading.Event().wait(0.02)
        return size

    graphs: BySize[Any] = BySize(make, 1)
    detector = AnomalyDINO(
        backbone=VIT, weights=weights[VIT], engine="openvino", precision="bf16", device="cpu"
    )
    pixels = _pixels(32, 48)
    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(graphs.__getitem__, [(1, 2)] * 8)) == {(1, 2)}
        found = list(pool.map(lambda _: detector.embedded(pixels), range(4)))
    assert made == [(1, 2)]
    assert detector.precision == "bf16"
    assert all((one == found[0]).all() for one in found)


@pytest.mark.parametrize("name", ENGINES)
def test_the_cache_may_go_and_may_be_anybody_s(
    name: str, graph: ExportedNetwork, own_cache: Path
) -> None:
    foreign = graph.facts.model_copy(update={"stride": 3, "digest": "of something else"})
    held = np.frombuffer(graph.content(), np.uint8)
    cache = EngineCache()
    assert cache.filed(ExportedNetwork(foreign, held)).folder is not None
    there = cache.filed(ExportedNetwork(graph.facts, held))
    assert there.facts == graph.facts  # of a file nothing but the graph is shared
    engine, right = choose.start(there, name), choose.start(graph, name)
    for size in ((64, 96), (96, 64)):
        view = _pixels(*size)[None]
        np.testing.assert_allclose(engine(view)[0], right(view)[0], atol=1e-5)
        shutil.rmtree(own_cache, ignore_errors=True)
    # Of a network that the options name, what is kept is the file itself.
    kept = cache.put("0", graph)
    engine = choose.start(kept, name)
    cache.drop("0")
    engine(_pixels(64, 96)[None])
    # What lies there in its place is not believed.
    where = cache.filed(ExportedNetwork(graph.facts, held)).folder
    assert where is not None
    (where / "network.onnx").write_bytes(b"0" * graph.facts.size)
    (where / FACTS).write_bytes(b"{}")
    assert cache.filed(ExportedNetwork(graph.facts, held)).content() == graph.content()


def test_damaged_graphs_and_those_of_int8(graph: ExportedNetwork, weights: dict[str, str]) -> None:
    detector = AnomalyDINO(backbone=CNN, weights=weights[CNN])
    content = graph.content()
    damaged = ExportedNetwork(graph.facts, content[:-9] + b"123456789")
    damaged.where = "part.offx"
    detector.use_graph(damaged)
    with pytest.raises(ModelFileError, match=r"part\.offx: its network: damaged: .*export it anew"):
        choose.settle(detector, _pixels(64, 96))
    # More arrays than the graph gives, beside one that was compiled before.
    more = graph.facts.model_copy(update={"outputs": 2, "structure": ["tuple", None, None]})
    held, cache = np.frombuffer(content, np.uint8), EngineCache()
    for name in ENGINES:
        choose.start(cache.filed(ExportedNetwork(graph.facts, held)), name)(_pixels(64, 96)[None])
        wrong = cache.filed(ExportedNetwork(more, held))
        with pytest.raises(ModelFileError, match="gives 1 arrays, not the 2"):
            choose.start(wrong, name)(_pixels(64, 96)[None])
    told = graph.facts.model_dump_json().replace('"outputs":1', '"outputs":2').encode()
    with pytest.raises(ModelFileError, match="its structure has 1 arrays"):
        ExportedNetwork.of(told, content)
    # OpenVINO's sums of such a graph are right at one size alone.
    int8 = ExportedNetwork(graph.facts.model_copy(update={"precision": "int8"}), content)
    detector.use_graph(int8)
    assert choose.settle(detector, _pixels(64, 96)).name == "onnxruntime"
    detector.engine = "openvino"
    with pytest.raises(OptionError, match=r"--engine openvino: .* int8 .* onnxruntime alone"):
        choose.settle(detector, _pixels(64, 96))


def test_bf16_is_read_by_the_engine_that_it_was_learned_by(
    parts: Path, weights: dict[str, str], tmp_path: Path
) -> None:
    good = sorted((parts / "part" / "train" / "good").iterdir())
    options = {"backbone": CNN, "weights": weights[CNN], "resolution": 64, "rotations": "none"}
    fitted, path = {}, tmp_path / "part.offn"
    for engine, precision in (("torch", "bf16"), ("openvino", "fp32"), ("openvino", "bf16")):
        one = AnomalyDINO(engine=engine, precision=precision, **options)
        fitted[engine, precision] = one.fit(good[:3], synthetic=False)
        one.save(path)
        told = modelfile.read_header(path).get("engine")
        assert told == (None if precision == "fp32" else engine)
    other = load(path, engine="torch")
    with pytest.raises(OptionError, match="learned in bf16 by openvino"):
        other.predict(good[3])
    again, right = load(path), fitted["openvino", "bf16"]
    assert again.predict(good[3])[0].score == right.predict(good[3])[0].score
    assert again.engine_in_force == "openvino"
    # What is exported is held to what was fitted, and opened without another engine's features.
    deployed = export_model(load(path, engine="torch"), tmp_path / "part.offx")
    assert [(row.engine, row.score) for row in deployed.parity] == [("openvino", 0)]
    opened = load(tmp_path / "part.offx")
    assert opened.predict(good[3])[0].score == right.predict(good[3])[0].score
    with pytest.raises(OptionError, match="bf16 by torch"):
        export_model(fitted["torch", "bf16"], tmp_path / "no.offx")
    with pytest.raises(OptionError, match="--int8: fitted with --precision bf16"):
        export_int8(right, tmp_path / "no.offx", Comparison(good[4:8]))


def test_searches_import_torch_in_the_main_thread_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chosen, "_KEPT_OUT", threading.Event())
    search = chosen.ChosenSearch()
    slow: Any = ArraySearch.__new__(ArraySearch)
    slow.seconds = 99.0
    search._made = np.zeros(1), slow
    assert search._pays() == has_bf16()
    with ThreadPoolExecutor(1) as pool:
        assert not pool.submit(search._pays).result()
    chosen.keep_torch_out()
    assert not search._pays()
