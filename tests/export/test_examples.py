"""The examples in other languages run a graph, and say what the library says."""

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from PIL import Image

from offnominal import AnomalyDINO
from offnominal.export.graph import single_graph

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
# onnxruntime's Python package has the library and no headers; this one of the npm registry, for
# Unity, has them (MIT, as onnxruntime's own).
HEADERS = "com.github.asus4.onnxruntime@0.4.9"
SIZE = (60, 84)


@pytest.fixture(scope="module")
def headers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of onnxruntime's headers: $ONNXRUNTIME_INCLUDE, or fetched from the npm registry."""
    if given := os.environ.get("ONNXRUNTIME_INCLUDE"):
        return Path(given)
    if not (shutil.which("npm") and shutil.which("g++")):
        pytest.skip("takes g++, and npm for onnxruntime's headers; or set ONNXRUNTIME_INCLUDE")
    folder = tmp_path_factory.mktemp("headers")
    packed = subprocess.run(
        ["npm", "pack", HEADERS, "--silent"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
    )
    if packed.returncode:
        pytest.skip(f"{HEADERS} cannot be had: {packed.stderr[-200:]}; set ONNXRUNTIME_INCLUDE")
    [archive] = folder.glob("*.tgz")
    wanted = "*/ios-arm64/onnxruntime.framework/Headers/*.h"
    subprocess.run(["tar", "xzf", archive, "--wildcards", wanted], cwd=folder, check=True)
    archive.unlink()
    [found] = folder.rglob("onnxruntime_cxx_api.h")
    return found.parent


@pytest.fixture(scope="module")
def part(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, np.ndarray]:
    """A graph, its detector, and a picture, which lies beside the graph as ``part.ppm``."""
    folder = tmp_path_factory.mktemp("part")
    rng = np.random.default_rng(0)
    images = [rng.integers(90, 110, (*SIZE, 3), dtype=np.uint8) for _ in range(4)]
    detector = AnomalyDINO(backbone="builtin", resolution=64, mask="off", rotations="none")
    detector.fit(images, synthetic=False)
    single_graph(detector, folder / "part.onnx")
    bad = images[0].copy()
    bad[20:40, 20:50] = 240
    Image.fromarray(bad).save(folder / "part.ppm")
    return folder, detector, bad


@pytest.mark.slow
def test_the_cpp_example_says_what_the_library_says(
    part: tuple[Path, Any, np.ndarray], headers: Path, tmp_path: Path
) -> None:
    folder, detector, bad = part
    [library] = (Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*")
    for name in ("libonnxruntime.so", "libonnxruntime.so.1"):
        (tmp_path / name).symlink_to(library)
    source, program = EXAMPLES / "cpp/inspect.cpp", tmp_path / "inspect"
    built: list[str | Path] = [
        "g++",
        "-std=c++17",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-isystem",
        headers,
        source,
    ]
    built += ["-L", tmp_path, "-lonnxruntime", f"-Wl,-rpath,{tmp_path}", "-o", program]
    subprocess.run(built, check=True, timeout=300)

    ran = subprocess.run(
        [program, folder / "part.onnx", folder / "part.ppm", tmp_path / "map.pgm"],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    [known] = detector.predict(bad)
    assert ran.returncode == int(known.is_anomalous) == 1, ran.stderr
    found = re.fullmatch(r"score (\S+), threshold (\S+): REJECT\n", ran.stdout)
    assert found
    assert float(found[1]) == pytest.approx(known.score, rel=1e-4)
    assert float(found[2]) == pytest.approx(known.threshold, rel=1e-4)
    drawn = np.asarray(Image.open(tmp_path / "map.pgm"))
    wanted = np.clip(known.anomaly_map / known.threshold * 127.5, 0, 255)
    assert drawn.shape == SIZE
    assert np.abs(drawn - wanted).max() <= 1

    (tmp_path / "small.ppm").write_bytes(b"P6\n2 2\n255\n" + bytes(12))
    for wrong, told in (("small.ppm", "takes 84 x 60 pixels only"), ("no.ppm", "no binary PPM")):
        call = [program, folder / "part.onnx", tmp_path / wrong, tmp_path / "no.pgm"]
        ran = subprocess.run(call, capture_output=True, text=True, timeout=60)
        assert ran.returncode == 2
        assert told in ran.stderr


@pytest.mark.slow
def test_the_calls_of_the_csharp_example(part: tuple[Path, Any, np.ndarray]) -> None:
    """Read from its source and made from Python, for there is no C# compiler here."""
    folder, detector, bad = part
    source = (EXAMPLES / "csharp/Inspect.cs").read_text()
    session = onnxruntime.InferenceSession(folder / "part.onnx")
    [name] = re.findall(r'InputMetadata\["(\w+)"\]', source)
    assert re.findall(r'session\.Run\(options, new\[\] \{ "(\w+)" \}', source) == [name]
    size = next(one.shape for one in session.get_inputs() if one.name == name)
    header = (folder / "part.ppm").read_bytes()[: len(f"P6\n{size[1]} {size[0]}\n255\n")]
    assert header.split() == [b"P6", str(size[1]).encode(), str(size[0]).encode(), b"255"]
    [names] = re.findall(r"names = \{ (.*?) \};", source)
    outputs = [one.strip('"') for one in names.split(", ")]
    found = session.run(outputs, {name: bad.reshape(size)})
    types = [re.findall(rf"found\[{n}\]\.GetTensorDataAsSpan<(\w+)>", source) for n in range(4)]
    assert types == [["float"], ["float"], ["bool"], ["float"]]
    assert [str(one.dtype) for one in found] == ["float32", "float32", "bool", "float32"]
    [known] = detector.predict(bad)
    assert found[0][0] == pytest.approx(known.score, rel=1e-4)
    assert bool(found[2][0]) is known.is_anomalous


@pytest.mark.parametrize("file", ["cpp/inspect.cpp", "csharp/Inspect.cs"])
def test_an_example_is_short(file: str) -> None:
    assert len((EXAMPLES / file).read_text().splitlines()) < 60
