"""PatchCore here and in anomalib, on the same images and weights: time, memory, and agreement.

    python benchmarks/peer.py DATA --environment DIR [--train 40] [--test 60] [--threads 2]

DATA is laid out as MVTec AD: ``train/good`` and ``test/<kind>``. DIR is anomalib's own virtual
environment; where there is none it is made (6 GB), with this interpreter's versions of torch and
timm. Both sides get square images, the same weights (drawn at random unless --weights names a
file), the same layers and the same share of the patches, and each runs in a process of its own.

anomalib is measured three ways: through its Engine as its documentation has it, through its Engine
without the picture that it writes for every image, and its bare torch model on tensors that are
read and resized already, which leaves nothing that could be called overhead. It sets no thresholds
here, since it takes labelled images for them; this library scores every good image against the
others, and its time is given with that and without.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

VERSION = "2.7.0"
LAYERS = {"wide_resnet50_2": ("layer2", "layer3"), "resnet18": ("layer2", "layer3")}
Times = dict[str, dict[str, float]]


class Clock:
    """Wall and CPU seconds of named stages."""

    def __init__(self) -> None:
        self.stages: Times = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start, cpu = time.perf_counter(), _cpu()
        yield
        self.note(name, start, cpu)

    def note(self, name: str, start: float, cpu: float) -> None:
        self.stages[name] = {"wall": time.perf_counter() - start, "cpu": _cpu() - cpu}


def _cpu() -> float:
    own, children = (resource.getrusage(who) for who in (0, resource.RUSAGE_CHILDREN))
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--environment", type=Path, default=Path("build/anomalib"))
    parser.add_argument("--backbone", default="wide_resnet50_2", choices=sorted(LAYERS))
    parser.add_argument("--weights", type=Path, help="safetensors; drawn at random if left out")
    parser.add_argument("--train", type=int, default=40)
    parser.add_argument("--test", type=int, default=60, help="half of them good")
    parser.add_argument("--size", type=int, default=256, help="side of the square images")
    parser.add_argument("--share", type=float, default=0.1, help="of the patches in the coreset")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--side", choices=("ours", "anomalib"), help="used by the script itself")
    parser.add_argument("--work", type=Path, help="used by the script itself")
    given = parser.parse_args()
    if given.side:
        found = {"ours": ours, "anomalib": anomalib}[given.side](given)
        (given.work / f"{given.side}.json").write_text(json.dumps(found))
        return
    from latency import random_weights

    given.python = environment(given.environment)
    with tempfile.TemporaryDirectory() as folder:
        given.work = Path(folder)
        given.weights = given.weights or random_weights(given.backbone, given.work)
        lay_out(given.data, given.work, given.train, given.test)
        sides = {side: run(given, side) for side in ("ours", "anomalib")}
        report(given, sides)


def environment(folder: Path) -> str:
    """The interpreter of an environment with anomalib, which is made where there is none."""
    import timm
    import torch

    python = str(folder.absolute() / "bin" / "python")
    if not Path(python).exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    probe = subprocess.run([python, "-c", "import importlib.metadata as m; m.version('anomalib')"])
    if probe.returncode:
        # The same releases where anomalib allows them; "+cpu" is not for an index to find.
        same = [f"torch=={torch.__version__.split('+')[0]}", f"timm=={timm.__version__}"]
        install = [python, "-m", "pip", "install", "--no-cache-dir", f"anomalib=={VERSION}"]
        if subprocess.run([*install, *same]).returncode:
            subprocess.run(install, check=True)
    return python


def lay_out(data: Path, work: Path, train: int, test: int) -> None:
    """Links to evenly spread images: ``train`` good ones, and ``test``, half of them good."""
    from offnominal import find_images

    kinds = sorted(each for each in (data / "test").iterdir() if each.is_dir())
    bad = [file for kind in kinds if kind.name != "good" for file in find_images([kind])]
    wanted = {
        "train": _spread(find_images([data / "train" / "good"]), train),
        "test/good": _spread(find_images([data / "test" / "good"]), test - test // 2),
        "test/bad": _spread(bad, test // 2),
    }
    for name, files in wanted.items():
        (work / name).mkdir(parents=True)
        for number, file in enumerate(files):
            (work / name / f"{number:04}{file.suffix.lower()}").symlink_to(file.absolute())


def _spread(files: Sequence[Path], count: int) -> list[Path]:
    if len(files) < count:
        raise SystemExit(f"{count} images wanted, {len(files)} there: give --train and --test")
    return [files[number * len(files) // count] for number in range(count)]


def run(given: argparse.Namespace, side: str) -> dict[str, Any]:
    """One side in a process of its own; what it says is shown only if it fails."""
    python = sys.executable if side == "ours" else given.python
    command = [python, Path(__file__).absolute(), given.data.absolute(), "--side", side]
    command += ["--work", given.work]
    for name in ("backbone", "weights", "size", "share", "threads"):
        command += [f"--{name}", getattr(given, name)]
    env = os.environ | {"OMP_NUM_THREADS": str(given.threads), "HF_HUB_OFFLINE": "1"}
    start = time.perf_counter()
    with (given.work / f"{side}.log").open("w+") as log:
        said = {"stdout": log, "stderr": log, "cwd": given.work}
        process = subprocess.Popen([str(part) for part in command], env=env, **said)
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            log.seek(0)
            raise SystemExit(f"{log.read()}\n{side} failed; see above")
    found: dict[str, Any] = json.loads((given.work / f"{side}.json").read_text())
    found["process"] = time.perf_counter() - start
    found["peak"] = usage.ru_maxrss / 2**10  # MiB
    return found


def _images(given: argparse.Namespace) -> tuple[list[str], list[str]]:
    train = sorted(str(file) for file in (given.work / "train").iterdir())
    return train, sorted(str(file) for file in (given.work / "test").rglob("*.*"))


def ours(given: argparse.Namespace) -> dict[str, Any]:
    clock = Clock()
    last: dict[str, tuple[float, float]] = {}

    def progress(stage: str, done: int) -> None:
        last[stage] = (time.perf_counter(), _cpu())

    with clock.stage("start"):
        import torch

        from offnominal.detectors.memory_bank.patchcore import PatchCore

        torch.set_num_threads(given.threads)
        detector = PatchCore(
            backbone=given.backbone,
            weights=str(given.weights),
            resize="square",
            resolution=given.size,
            coreset=given.share,
            device="cpu",
        )
        detector.load_network()
    train, test = _images(given)
    begun = time.perf_counter(), _cpu()
    with clock.stage("fit"):
        detector.fit(train, progress=progress)
    plain = last["coreset"]
    clock.stages["fit, no thresholds"] = {"wall": plain[0] - begun[0], "cpu": plain[1] - begun[1]}
    with clock.stage("predict"):
        found = list(detector.stream(test))
    scores = {each.source: each.score for each in found}
    with clock.stage("predict, pictures"):
        _write_pictures(detector, test, given.work / "ours")
    with torch.inference_mode():
        ready = [torch.from_numpy(detector.views(each.image)[0].pixels)[None] for each in found]
        with clock.stage("network alone"):
            for one in ready:
                detector.levels(one)
    return {"stages": clock.stages, "scores": scores, "bank": list(detector.bank.rows.shape)}


def _write_pictures(detector: Any, test: list[str], folder: Path) -> None:
    from offnominal.cli.results import ResultWriter, parse_save

    files = [Path(file) for file in test]
    with closing(ResultWriter(folder, parse_save("overlay,json"), files, {})) as writer:
        for each in detector.stream(files):
            writer.write(each)


def anomalib(given: argparse.Namespace) -> dict[str, Any]:
    clock = Clock()
    with clock.stage("start"):
        import torch
        from safetensors.torch import load_file

        # By name, since the library's own environment, where this file is checked, has no anomalib.
        data, models = import_module("anomalib.data"), import_module("anomalib.models")
        Engine = import_module("anomalib.engine").Engine

        torch.set_num_threads(given.threads)
        model = models.Patchcore(
            backbone=given.backbone,
            layers=LAYERS[given.backbone],
            pre_trained=False,
            coreset_sampling_ratio=given.share,
            pre_processor=models.Patchcore.configure_pre_processor((given.size, given.size)),
        )
        network = model.model.feature_extractor.feature_extractor
        weights = load_file(given.weights)
        network.load_state_dict({name: weights[name] for name in network.state_dict()})
        # Reading in the process itself costs less memory than its eight readers, and on small
        # images no time. Without labelled images there is nothing to validate with.
        folder = data.Folder(
            name="peer",
            root=given.work,
            normal_dir="train",
            num_workers=0,
            test_split_mode="none",
            val_split_mode="none",
        )
        options = {"default_root_dir": given.work / "anomalib", "accelerator": "cpu"}
        engine = Engine(**options, limit_val_batches=0)
    with clock.stage("fit"):
        engine.fit(model=model, datamodule=folder)
    test = data.PredictDataset(given.work / "test")
    visualizer, model.visualizer = model.visualizer, None
    with clock.stage("predict"):
        found = Engine(**options).predict(model=model, dataset=test)
    scores = {
        str(Path(path).absolute()): float(score)
        for batch in found
        for path, score in zip(batch.image_path, batch.pred_score, strict=True)
    }
    model.visualizer = visualizer
    with clock.stage("predict, pictures"):
        Engine(**options).predict(model=model, dataset=test)
    bare = model.model.eval()
    with torch.inference_mode():
        ready = [model.pre_processor(item.image[None]) for item in test]
        for count in (1, 8):
            batches = [torch.cat(ready[at : at + count]) for at in range(0, len(ready), count)]
            with clock.stage(f"bare model, batches of {count}"):
                for batch in batches:
                    bare(batch)
        with clock.stage("network alone"):
            for one in ready:
                bare.feature_extractor(one)
    return {"stages": clock.stages, "scores": scores, "bank": list(bare.memory_bank.shape)}


def report(given: argparse.Namespace, sides: dict[str, dict[str, Any]]) -> None:
    a, b = sides["ours"], sides["anomalib"]
    print(
        f"PatchCore, {given.backbone}, {given.size}x{given.size} px, coreset {given.share:.0%}, "
        f"{given.train} good images, {given.test} test images, {given.threads} threads"
    )
    print(f"banks: ours {a['bank']}, anomalib {b['bank']}")
    print(f"{'':34}{'offnominal':>20}{'anomalib':>20}{'ratio':>16}")
    print(f"{'':34}{'wall s':>11}{'cpu s':>9}{'wall s':>11}{'cpu s':>9}{'wall':>9}{'cpu':>7}")
    pairs = (
        ("start: imports, network", "start", "start"),
        ("fit, as users get it", "fit", "fit"),
        ("fit, no thresholds on either side", "fit, no thresholds", "fit"),
        ("predict, a picture written for each", "predict, pictures", "predict, pictures"),
        ("predict", "predict", "predict"),
        ("predict; anomalib's bare model", "predict", "bare model, batches of 1"),
        ("the same, in batches of 8", "predict", "bare model, batches of 8"),
        ("the network alone", "network alone", "network alone"),
    )
    for label, mine, other in pairs:
        x, y = a["stages"][mine], b["stages"][other]
        line = f"{label:36}{x['wall']:9.2f}{x['cpu']:9.2f}{y['wall']:11.2f}{y['cpu']:9.2f}"
        print(f"{line}{y['wall'] / x['wall']:9.2f}{y['cpu'] / x['cpu']:7.2f}")
    for label, x, y in (
        ("peak memory, MiB", a["peak"], b["peak"]),
        ("whole process, s", a["process"], b["process"]),
    ):
        print(f"{label:36}{x:9.1f}{y:20.1f}{y / x:18.2f}")
    _agreement(a["scores"], b["scores"])


def _agreement(a: dict[str, float], b: dict[str, float]) -> None:
    from scipy.stats import spearmanr

    from offnominal.metrics import image_metrics

    names = sorted(a)
    if names != sorted(b):
        raise SystemExit("the two sides scored different images")
    bad = ["bad" in Path(name).parts for name in names]
    x, y = [a[name] for name in names], [b[name] for name in names]
    print(f"order of the image scores: Spearman {spearmanr(x, y).statistic:.3f}; ", end="")
    auroc = [image_metrics(bad, scores)["image_auroc"] for scores in (x, y)]
    print(f"AUROC {auroc[0]:.3f} and {auroc[1]:.3f}")


if __name__ == "__main__":
    main()
