"""What each engine makes of a whole fit and a whole predict, beside torch in float32.

    python benchmarks/engines.py                                 # three set-ups, 1 and 2 threads
    python benchmarks/engines.py --setup mobilenet --threads 1 --images 20
    python benchmarks/engines.py --data CATEGORY --mobilenet-weights FILE --dino-weights FILE

Set-ups: AnomalyDINO with DINOv2 ViT-S/14 at 448 px and 16 references; the same with MobileNetV2 at
256; PatchCore with WideResNet-50-2 at 224. Every row is a process of its own, which fits and then
predicts; rows take turns, --rounds times, and the median is printed, so that what else the machine
does meets all of them. With one thread times are processor time, of the whole process; with more
they are wall time.

    fit       fit of the references, without imports and reading of weights
    predict   for an image, from its file to score and map
    ratio     torch float32's predict, divided by this one's
    memory    the largest that the process was
    cold      the command line, from the shell: `offnominal predict` of one image with a fitted
              model, and `offnominal fit` of the references; imports and all. Torch is not loaded
              where "torch" says no.
    rank, decided   rank correlation of the scores with those of torch float32, and how many
              decisions are the same; the images of --data, or drawn ones

Graphs are written down beforehand, into a cache of this run's own; the first column of the last
table says how long that took. Weights are seeded where none are given: they cost the same time as
trained ones, and their scores only say whether engines agree.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import Any

SETUPS: dict[str, dict[str, Any]] = {
    "vit-s": {
        "method": "anomalydino", "backbone": "dinov2_vits14", "resolution": 448,
        "rotations": "none", "mask": "off",
    },
    "mobilenet": {
        "method": "anomalydino", "backbone": "mobilenetv2_100", "resolution": 256,
        "rotations": "none", "mask": "off",
    },
    "wide-resnet": {"method": "patchcore", "backbone": "wide_resnet50_2", "resolution": 224},
}  # fmt: skip
ENGINES = [
    ("torch", "fp32"),
    ("onnxruntime", "fp32"),
    ("openvino", "fp32"),
    ("torch", "bf16"),
    ("openvino", "bf16"),
]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--setup", nargs="+", choices=list(SETUPS), default=list(SETUPS))
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    names = list(dict.fromkeys(name for name, _ in ENGINES))
    told = "of these alone; the first is what others are compared with"
    parser.add_argument("--engine", nargs="+", choices=names, default=names, help=told)
    parser.add_argument("--shots", type=int, default=16)
    parser.add_argument("--images", type=int, default=60, help="to predict")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cold", type=int, default=3, help="cold starts of each command")
    parser.add_argument("--data", type=Path, help="a category in MVTec's layout; else drawn")
    parser.add_argument("--dino-weights", type=Path)
    parser.add_argument("--mobilenet-weights", type=Path)
    parser.add_argument("--wide-resnet-weights", type=Path)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        work(json.loads(given.worker))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        good, test = pictures(folder, given)
        for setup in given.setup:
            weights = weights_of(setup, given, folder)
            for threads in given.threads:
                compare(setup, weights, threads, good, test, folder, given)


def pictures(folder: Path, given: Any) -> tuple[list[str], list[str]]:
    """References, and images to predict: spread over a data set's test images, or drawn."""
    if given.data:
        good = sorted((given.data / "train" / "good").iterdir())
        test = sorted(one for one in (given.data / "test").glob("*/*") if one.is_file())
        step = max(1, len(test) // given.images)
        return [str(p) for p in good[: given.shots]], [str(p) for p in test[::step][: given.images]]
    from PIL import Image

    from offnominal.datasets.synthetic import draw_good

    files = []
    for index in range(given.shots + given.images):
        files.append(str(folder / f"{index:03}.png"))
        Image.fromarray(draw_good("fabric", 0, index)).resize((640, 480)).save(files[-1])
    return files[: given.shots], files[given.shots :]


def weights_of(setup: str, given: Any, folder: Path) -> str:
    told = {
        "vit-s": given.dino_weights,
        "mobilenet": given.mobilenet_weights,
        "wide-resnet": given.wide_resnet_weights,
    }
    if told[setup]:
        return str(told[setup].resolve())
    import timm
    import torch
    from safetensors.torch import save_file

    from offnominal.backbones.catalogue import CATALOGUE

    generator = torch.Generator().manual_seed(0)
    name = SETUPS[setup]["backbone"]
    tensors = timm.create_model(CATALOGUE[name].timm, num_classes=0).state_dict()
    for key, tensor in tensors.items():
        if tensor.ndim > 1:
            tensor.normal_(generator=generator).div_(max(1, tensor[0].numel()) ** 0.5)
        elif key.endswith("gamma"):
            tensor.fill_(0.3)
    path = folder / f"{name}.safetensors"
    save_file(tensors, path, metadata={"pretrained": "no: drawn at random from seed 0"})
    return str(path)


def compare(
    setup: str, weights: str, threads: int, good: list[str], test: list[str], folder: Path,
    given: Any,
) -> None:  # fmt: skip
    here = installed()
    rows = [one for one in ENGINES if here[one[0]] and one[0] in given.engine]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    environment |= {"OFFNOMINAL_CACHE": str(folder / f"cache-{threads}")}
    environment |= {"PYTHONPYCACHEPREFIX": str(folder / "compiled")}  # as what is installed has it
    for name in ("OFFNOMINAL_ENGINE", "PYTHONDONTWRITEBYTECODE"):
        environment.pop(name, None)

    def run(engine: str, precision: str, images: list[str], model: Path) -> dict[str, Any]:
        task = {
            "options": {**SETUPS[setup], "weights": weights, "precision": precision,
                        "engine": engine},
            "good": good, "test": images, "model": str(model), "threads": threads,
        }  # fmt: skip
        done = subprocess.run(
            [sys.executable, __file__, "--worker", json.dumps(task)],
            env=environment, capture_output=True, text=True,
        )  # fmt: skip
        if done.returncode:
            sys.exit(f"{engine} {precision}:\n{done.stderr}")
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found

    models = {one: folder / f"{setup}-{threads}-{'-'.join(one)}.offn" for one in rows}
    wrote = {one: run(*one, test[:1], models[one]) for one in rows}  # graphs are there from here on
    found: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for _ in range(given.rounds):
        for one in rows:
            found[one].append(run(*one, test, models[one]))
    auto = run("auto", "fp32", test[:1], folder / "auto.offn")

    clock = "CPU" if threads == 1 else "wall"
    print(f"\n{setup}: {SETUPS[setup]['method']}, {SETUPS[setup]['backbone']}, {len(good)} "
          f"references, {len(test)} images, {threads} thread(s), {clock} time")  # fmt: skip
    print(f"{'':<18}{'fit':>9}{'predict':>10}{'ratio':>7}{'memory':>9}{'rank':>9}{'decided':>9}")
    base = middle(found[rows[0]], "predict")
    for one in rows:
        last, first = found[one][-1], found[rows[0]][-1]
        same = sum(a == b for a, b in zip(last["decided"], first["decided"], strict=True))
        took = middle(found[one], "predict")
        print(
            f"{' '.join(one):<18}{middle(found[one], 'fit'):>7.2f} s{1000 * took:>7.1f} ms"
            f"{base / took:>7.2f}{middle(found[one], 'memory'):>6.0f} MB"
            f"{rank(last['scores'], first['scores']):>9.4f}{same:>5}/{len(test)}"
        )
    print(f"auto chose {auto['engine']}")
    print(f"{'':<18}{'graph':>9}{'cold predict':>22}{'cold fit':>20}{'memory':>9}{'torch':>7}")
    for one in rows:
        starts = [cold(one, "predict", models[one], test[:1], weights, environment, setup)
                for _ in range(given.cold)]  # fmt: skip
        fits = [cold(one, "fit", models[one], good, weights, environment, setup)
                for _ in range(given.cold)]  # fmt: skip
        more = wrote[one]["fit_wall"] - min(each["fit_wall"] for each in found[one])
        print(
            f"{' '.join(one):<18}{max(0.0, more):>7.1f} s{pair(starts):>22}{pair(fits):>20}"
            f"{median(each[2] for each in starts):>6.0f} MB"
            f"{'yes' if any(each[3] for each in starts) else 'no':>7}"
        )


def installed() -> dict[str, str]:
    from offnominal.engines import machine

    return machine.installed()


def middle(runs: list[dict[str, Any]], name: str) -> float:
    return float(median(each[name] for each in runs))


def pair(runs: list[tuple[float, float, float, bool]]) -> str:
    cpu, wall = median(each[0] for each in runs), median(each[1] for each in runs)
    return f"{cpu:.2f} s CPU, {wall:.2f} s  "


def rank(one: list[float], other: list[float]) -> float:
    from scipy.stats import spearmanr

    return float(spearmanr(one, other).statistic) if len(one) > 2 else float("nan")


def cold(
    row: tuple[str, str], what: str, model: Path, images: list[str], weights: str,
    environment: dict[str, str], setup: str,
) -> tuple[float, float, float, bool]:  # fmt: skip
    """CPU and wall seconds of a command from the shell, its memory, and whether torch came in."""
    engine, precision = row
    own = SETUPS[setup]
    if what == "predict":
        command = ["predict", str(model), *images, "--engine", engine, "--device", "cpu"]
    else:
        command = ["fit", *images, "-o", str(model.with_suffix(".cold.offn")), "--weights", weights]
        command += ["--engine", engine, "--precision", precision, "--device", "cpu"]
        for name, value in own.items():
            command += [f"--{name.replace('_', '-')}", str(value)]
    code = (
        "import atexit, resource, sys\n"
        "def tell():\n"
        "    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024\n"
        "    print(f'peak {peak}', 'torch' in sys.modules, file=sys.stderr)\n"
        "atexit.register(tell)\n"
        "from offnominal.cli import main\n"
        "main()"
    )
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    process = subprocess.Popen(
        [sys.executable, "-c", code, *command], env=environment, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    out, told = process.communicate()
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    if process.returncode:
        sys.exit(f"offnominal {' '.join(command)}:\n{out}\n{told}")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    _, peak, torch = told.strip().splitlines()[-1].split()
    return cpu, wall, float(peak), torch == "True"


def work(task: dict[str, Any]) -> None:
    """A process of its own: fit, save, predict."""
    import numpy as np

    from offnominal.detectors.registry import detector_class

    clock = time.process_time if task["threads"] == 1 else time.perf_counter
    options = dict(task["options"])
    detector: Any = detector_class(options.pop("method"))(**options, device="cpu")
    detector.load_network()
    start, wall = clock(), time.perf_counter()
    detector.fit(task["good"], synthetic=False)
    fit, fit_wall = clock() - start, time.perf_counter() - wall
    detector.save(task["model"])
    detector.predict(task["test"][:1])
    start = clock()
    found = [(one.score, one.is_anomalous) for one in detector.stream(task["test"])]
    predict = (clock() - start) / len(found)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    told = {
        "fit": fit, "fit_wall": fit_wall, "predict": predict, "memory": memory,
        "scores": [float(np.float64(score)) for score, _ in found],
        "decided": [bool(decided) for _, decided in found],
        "engine": detector.engine_in_force,
    }  # fmt: skip
    print(json.dumps(told))


if __name__ == "__main__":
    main()
