"""Every method that needs no reference, and the few-shot ones of CLIP, in one run over real images.

    python benchmarks/zero_shot.py DATASET -o runs [--clip FILE] [--dinov2 FILE] [--mae FILE] ...

``offnominal benchmark`` and ``offnominal report`` on some of a data set's images, the same for all
methods, each with the backbone that it takes. Where no file is given, weights and learned prompts
are small ones drawn at random, and their files say so: such figures show what runs, how fast, and
what methods share, and say nothing about the methods; the report marks them. A chat model takes
part where one is named; nothing stands in for it. Printed is also what the feature cache spared:
methods that ask CLIP's tower the same share its pass.
"""

import argparse
import csv
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from offnominal.backbones import load_backbone
from offnominal.backbones.clip import ClipBackbone
from offnominal.backbones.mae import SHAPES, MaskedAutoencoder, Shape
from offnominal.benchmark.store import read_runs
from offnominal.cli import app
from offnominal.cli.terminal import say
from offnominal.datasets import open_dataset
from offnominal.datasets.sample import Sample
from offnominal.detectors.registry import METHODS
from offnominal.language.learned import AnomalyCLIPPrompts, CoOpPrompts, LearnedPrompts, Projections
from offnominal.language.learnedfile import LearnedFile, write_learned

ROOT = Path(__file__).resolve().parents[1]
# Those that ask for the most come first: what others ask for is then there.
WANTED = ("april-gan", "winclip", "musc", "clip", "clip-ac", "coop", "anomalyclip")
BESIDE = ("anomalydino-batched", "maeday")

CLIP: dict[str, Any] = {
    "embed_dim": 64,
    "vision_cfg": {
        "image_size": 224,
        "layers": 12,
        "width": 128,
        "head_width": 64,
        "patch_size": 16,
    },
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 9},
}
MAE = Shape(16, 96, 4, 4, decoder_dim=64, decoder_depth=2, decoder_heads=4)
DRAWN = {"pretrained": "no: drawn at random from seeds"}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("data", type=Path, help="a data set with defects and masks")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder of results")
    parser.add_argument("--images", type=int, default=40, help="of each label, in the test split")
    parser.add_argument("--clip", metavar="NAME=FILE", help="as open_clip:ViT-L-14-336=FILE")
    parser.add_argument("--dinov2", metavar="NAME=FILE", help="as dinov2_vits14=FILE")
    parser.add_argument("--mae", metavar="NAME=FILE", help="as mae_vitb16=FILE")
    parser.add_argument("--anomalyclip", type=Path, help="learned prompts, for --clip")
    parser.add_argument("--coop", type=Path, help="learned prompts, for --clip")
    parser.add_argument("--april-gan", type=Path, help="learned layers, for --clip")
    parser.add_argument("--chat", metavar="MODEL=URL", help="a chat model behind an endpoint")
    parser.add_argument("--shots", default="0,1,4")
    parser.add_argument("--methods", default=",".join((*WANTED, *BESIDE)))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    given.output.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    run(given)
    minutes = (time.perf_counter() - start) / 60
    app(["report", str(given.output)], standalone_mode=False)
    summarise(given.output, minutes)


def run(given: argparse.Namespace) -> None:
    table = write_manifest(given.data, given.images, given.output)
    methods = [name for name in given.methods.split(",") if name in METHODS]
    for name in set(given.methods.split(",")) - set(methods):
        say(f"{name}: not a method of this version, left out")
    clip, dinov2, mae, learned = write_weights(given, methods)
    backbones = [clip]
    sets = [f"{method}:{option}={file}" for method, option, file in learned]
    if "anomalydino-batched" in methods:
        backbones.append(f"anomalydino-batched:{dinov2}")
        sets.append("anomalydino-batched:resolution=168")
    if "maeday" in methods:
        backbones.append(f"maeday:{mae}")
    if given.chat:
        model, _, endpoint = given.chat.partition("=")
        methods.append("chat")
        sets += [f"chat:model={model}", f"chat:endpoint={endpoint}"]
    arguments = ["benchmark", "--data", str(table), "-o", str(given.output)]
    arguments += ["--class-names", "categories", "--cache", str(given.output / "features")]
    arguments += ["--seeds", "1", "--shots", given.shots]
    for option, values in (("--method", methods), ("--backbone", backbones), ("--set", sets)):
        for value in values:
            arguments += [option, value]
    say(f"offnominal {' '.join(arguments)}")
    app(arguments, standalone_mode=False)


def write_manifest(data: Path, images: int, folder: Path) -> Path:
    """Some good training images, and as many good as defective test images, by turns of kinds."""
    samples = open_dataset(data).samples
    path = folder / f"{data.name}-{images}-and-{images}.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("image", "label", "mask", "defect", "category", "split"))
        for sample in some(samples, images):
            mask = "" if sample.mask is None else sample.mask.absolute()
            words = ("good" if sample.label == 0 else sample.defect, sample.category, sample.split)
            writer.writerow((sample.image.absolute(), sample.label, mask, *words))
    return path


def some(samples: Sequence[Sample], images: int) -> list[Sample]:
    train = [sample for sample in samples if sample.split == "train" and sample.label == 0]
    kinds: dict[str, list[Sample]] = {}
    for sample in samples:
        if sample.split == "test":
            kinds.setdefault(sample.defect if sample.label else "", []).append(sample)
    good = kinds.pop("")
    defective = [
        kind[turn] for turn in range(images) for kind in kinds.values() if turn < len(kind)
    ]
    return [*train[:8], *good[:images], *defective[:images]]


def write_weights(
    given: argparse.Namespace, methods: list[str]
) -> tuple[str, str | None, str | None, list[tuple[str, str, Path]]]:
    """Weights, and for methods that need them learned files: those given, otherwise random ones."""
    sys.path.insert(0, str(ROOT))
    from tests.seeded import save_clip, save_dinov2_vits14

    folder = given.output / "weights"
    folder.mkdir(exist_ok=True)
    clip = given.clip or f"open_clip:toy={save_clip(folder, CLIP, 'toy')}"
    dinov2, mae = given.dinov2, given.mae
    if dinov2 is None and "anomalydino-batched" in methods:
        dinov2 = f"dinov2_vits14={save_dinov2_vits14(folder)}"
    if mae is None and "maeday" in methods:
        SHAPES["mae_toy"] = MAE
        torch.manual_seed(0)
        mae = f"mae_toy={folder / 'mae.safetensors'}"
        tensors = MaskedAutoencoder("mae_toy", MAE).state_dict()
        save_file(tensors, folder / "mae.safetensors", metadata=DRAWN)
    name, _, file = clip.partition("=")
    network = load_backbone(name, file)
    assert isinstance(network, ClipBackbone)
    width = network.load_text().width
    generator = torch.Generator().manual_seed(0)
    learners: dict[str, tuple[str, LearnedPrompts | Projections]] = {
        "anomalyclip": ("prompts", AnomalyCLIPPrompts(width, generator=generator)),
        "coop": ("prompts", CoOpPrompts(width, generator=generator)),
        "april-gan": ("projections", Projections(network.width, network.embed_dim)),
    }
    learned = []
    for method in [name for name in learners if name in methods]:
        option, learner = learners[method]
        path = getattr(given, method.replace("-", "_"))
        if path is None:
            path = folder / f"{method}.safetensors"
            write_learned(path, learner, LearnedFile(method, learner.settings()))
            mark(path)
        learned.append((method, option, path))
    return clip, dinov2, mae, learned


def mark(path: Path) -> None:
    """Let a safetensors file say that what it holds was drawn at random."""
    with safe_open(path, framework="pt") as file:
        metadata = dict(file.metadata() or {})
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    save_file(tensors, path, metadata=metadata | DRAWN)


def summarise(folder: Path, minutes: float) -> None:
    cells = sorted(read_runs(folder)[0], key=lambda cell: cell.run["finished"])
    print(f"\n{len(cells)} cells in {minutes:.1f} minutes, this run's own times:")
    print(f"{'':<26}{'images':>8}{'passes':>8}{'found':>8}{'network, s':>12}{'spared, s':>11}")
    network = spared = 0.0
    for cell in cells:
        settings, run, timings = cell.settings, cell.run, cell.run["timings"]
        name = f"{settings['method']}, {settings['shots']} images"
        found = run["features"]
        told = f"{run['images']:8d}{found['computed']:8d}{found['from_cache']:8d}"
        saved = timings["network_spared"] or 0.0
        print(f"{name:<26}{told}{timings['network']:12.1f}{saved:11.1f}")
        network, spared = network + timings["network"], spared + saved
    whole = network + spared
    print(
        f"the networks took {network:.1f} s; without the cache it had been {whole:.1f} s: "
        f"{whole / max(network, 1e-9):.1f} times as much"
    )


if __name__ == "__main__":
    main()
