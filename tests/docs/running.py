"""What the pages show is run as it stands, but for what these tables say."""

import io
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from contextlib import chdir, redirect_stdout
from dataclasses import dataclass, field
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from tests.chat_server import ChatServer
from tests.cli.conftest import ENVIRONMENT, Done, offnominal
from tests.docs.reading import ROOT, Piece, blocks

from offnominal import demo as offnominal_demo
from offnominal.demo import run_demo
from offnominal.detectors.methods import METHODS, add_methods_of_others

# Not run, and why. What begins with one of these is only parsed.
NOT_RUN = {
    ".venv/bin/python -m pip install": "changes an environment",
    "python3 -m venv": "makes an environment",
    "source ": "goes with that environment",
    "python -m pip wheel": "fetches every package",
    "make ": "makes an environment of its own, from the package index",
    "python -m pip install": "changes the environment that the tests run in",
    "offnominal --install-completion": "writes into the files of the user's shell",
    "offnominal backbones pull": "fetches weights from the hub",
    "offnominal fit -o part.offn --method maeday": "needs the file of a network of 112 million "
    "parameters, which is not passed on",
    "offnominal benchmark --data DATASET --preset labels": "fits all methods, which takes a night",
    "offnominal calibrate part.offn good/": "goes on with the model of that network",
    "python benchmarks/labels.py": "draws from tiles with all their kinds of defects",
    "python benchmarks/bank.py": "compares with faiss, which is installed by hand for it",
    "python benchmarks/peer.py": "needs an environment with another library",
    "python benchmarks/points.py": "compares with Open3D, in an environment of its own",
    "python benchmarks/scans.py": "fits nine detectors to scans of three noises",
    "python benchmarks/scale.py": "measures for minutes, some of it on a cluster",
    "ray start": "starts a cluster",
    "offnominal predict part.offn s3-images.txt": "needs that cluster, and an object store",
    "offnominal benchmark --data DATASET -o /shared": "needs that cluster",
    "offnominal fit good/ -o /shared": "needs that cluster",
    "docker ": "needs Docker",
    "createdb ": "needs a server of PostgreSQL",
    "git pull": "changes the clone that is tested",
    "systemctl ": "asks the system's services",
    "offnominal serve": "goes on until it is stopped",
    "curl ": "asks a station, with a token that only its owner has",
    "sudo apt install": "installs packages of the system",
    "arv-tool-0.8": "goes with one of them",
}

# How a command line, or a block of Python, is made quick or led to weights that are here. The first
# is looked for by a regular expression; a line may be changed by several.
QUICKER = [
    # The tests are offline, and have an environment of their own.
    (r"^HF_HUB_OFFLINE=1 |^\.venv/bin/(?=offnominal)", ""),
    # Windows has drives.
    (r"(fit good/ --when none)", r"\1 --weights WEIGHTS/mobilenetv2_100"),
    (r"--weights D:\S+", "--weights WEIGHTS/mobilenetv2_100"),
    (r"^(SOURCE_DATE_EPOCH=\d+ offnominal fit .*)", r"\1 --backbone builtin --no-synthetic"),
    (r"(offnominal demo .*)--backbone dinov2_vits14", r"\1--backbone builtin"),
    # Six fits or more.
    (r"(fit unsorted/ --refine auto)", r"\1 --rotations none"),
    (r"(--refine auto)", r"\1 --backbone efficientnet_lite0 --resolution 64 --no-synthetic"),
    # Pictures as small as they are drawn, where a line names no size and no file that has one.
    (r"^(offnominal (?:fit|predict --zero-shot-batch) "
     r"(?!.*--(?:resolution|crop|help|prompts|projections|tile|endpoint|learned|members|method 3d))"
     r".*)",
     r"\1 --resolution 96"),
    # The plain line alone scores synthetic defects, which takes most of the time.
    (r"^(offnominal fit (?!good/ -o).*--resolution 96)$", r"\1 --no-synthetic"),
    (r"--method differnet", "--method differnet --width 0.1 --rotations 2"),
    (r"(--method (?:deep-svdd|igd) .*)--resolution 96", r"\1--resolution 64"),
    # Trainings: two steps in place of thousands, and small pictures.
    (r"--budget \S+", "--steps 2"),
    (r"--steps (?:paper|\d+)", "--steps 2"),
    (r"--width 128", "--width 8"),
    (r"budget=15m", "steps=2"),
    (r'Dinomaly\(budget="20m"\)', 'Dinomaly(steps=2, resolution=96, backbone="builtin")'),
    (r'budget="20m"', "steps=2, resolution=96"),
    (r"(offnominal train (?:anomalyclip|coop|april-gan) .*?)(?: --epochs \d+)?$",
     r"\1 --epochs 1 --batch 2 --resolution 112 --weights WEIGHTS/clip"),
    (r"(offnominal train efficientad-teacher --data \w+/)(?: --backbone \w+)?",
     r"\1 --width 0.125 --dim 16 --steps 1 --batch 2 --resolution 64 --backbone builtin"),
    (r"(offnominal train 3d-st-teacher .*)", r"\1 --steps 1 --clouds 1 --points 100"),
    (r"(offnominal train regad .*?)(?: --looks \d+)( .*)", r"\1\2 --steps 1 --batch 2 --shots 1 "
     "--resolution 64 --backbone mobilenetv2_100 --weights WEIGHTS/mobilenetv2_100"),
    (r"(offnominal fit good/ --method regad.*)", r"\1 --no-synthetic"),
    (r"(offnominal synthesize .*)", r"\1 --count 2 --backbone builtin"),
    (r"(offnominal datasets synthetic-scans .*)",
     r"\1 --size 64 --train 10 --test 3 --defective 1"),
    (r"--method 3d-st ", "--method 3d-st --points 200 --steps 2 --teacher-steps 1 "),
    (r'BTF\(backbone="fpfh"', 'BTF(resolution=96, backbone="fpfh"'),
    # The bench has few defects; a training of two steps.
    (r"--labelled 0 5 20", "--labelled 0 1 --set steps=2 --set resolution=96"),
    # Of a benchmark that takes minutes one round, with few pictures.
    (r"(benchmarks/engines\.py .*)--images 20",
     r"\1--images 2 --shots 2 --rounds 1 --cold 1 --engine onnxruntime"),
    (r"--resolution 672", "--resolution 96"),
    (r"--tile 448", "--tile 64"),
    # Networks that only the hub has.
    (r"--method (anomalyclip|coop|april-gan)(?= --p)", r"--method \1 --weights WEIGHTS/clip"),
    (r"--method winclip --class-name", "--method winclip --weights WEIGHTS/winclip --class-name"),
    (r"--backbone dinov2_vits14 --layers", "--backbone dinov2_vits14 --resolution 98 --weights "
     "WEIGHTS/dinov2 --layers"),
    (r"--weights \S*dinov2(?:_vits14)?\.pth", "--weights WEIGHTS/dinov2 --resolution 98"),
    (r"(--backbone) (?:dinov2_vitb14|wide_resnet50_2|vit_base_patch16_siglip_224\.webli)",
     r"\1 efficientnet_lite0"),
    (r"--backbone resnet18", "--backbone resnet18 --weights WEIGHTS/resnet18"),
    (r"--backbone (mobilenetv2_100) ", r"--backbone \1 --weights WEIGHTS/\1 "),
    (r"=mobilenetv2_100\.safetensors", "=WEIGHTS/mobilenetv2_100"),
    (r"--weights our_net\.safetensors", "--weights WEIGHTS/mobilenetv2_100"),
    (r"--backbone alexnet --weights \S+", "--backbone efficientnet_lite0"),
    (r'"resnet18.safetensors"', '"WEIGHTS/resnet18"'),
    (r"--method musc", "--method musc --weights WEIGHTS/clip"),
    (r"(AprilGAN|AnomalyCLIP|MuSc)\(\)", r'\1(weights="WEIGHTS/clip", resolution=112)'),
    (r'AnomalyCLIP\(prompts=', 'AnomalyCLIP(weights="WEIGHTS/clip", prompts='),
    (r"LanguageRecipe\(epochs=5\)", "LanguageRecipe(epochs=1, batch=2)"),
    (r"Ensemble\(\)", 'Ensemble(backbone="efficientnet_lite0,efficientnet_lite2")'),
    (r"resnet50,dinov2_vits14", "efficientnet_lite0,efficientnet_lite2"),
    # Benchmarks: one draw of a reference or two, small pictures, small networks.
    (r"(offnominal benchmark .*)--seeds 3", r"\1--seeds 1"),
    (r"(offnominal benchmark (?!.*--(?:seeds|preset)).*)", r"\1 --seeds 1"),
    (r"(offnominal benchmark (?!.*--(?:shots|preset)).*)", r"\1 --shots 1"),
    (r"(offnominal benchmark (?!.*--(?:backbone|preset)).*)", r"\1 --backbone builtin"),
    (r"--shots 1 2 4 8 16 full|--shots 16|--shots 1 4", "--shots 4"),
    (r"--shots 0 1 4", "--shots 0 1"),
    (r"--shots 4 16(?: 64)?", "--shots 4"),
    (r"(offnominal benchmark --data DATASET (?!.*--categories))", r"\1--categories bottle "),
    (r"--backbone dinov2_vits14 dinov2_vitb14 --resolution 448 672",
     "--backbone builtin efficientnet_lite0 --resolution 64 96"),
    (r"--set resolution=(?:224|128)", "--set resolution=64"),
    (r"open_clip:ViT-L-14-336 anomalydino:dinov2_vits14",
     "coop:WEIGHTS/clip anomalyclip:WEIGHTS/clip winclip:WEIGHTS/winclip anomalydino:builtin"),
    (r"--method winclip anomalyclip musc (.*)--backbone builtin", r"--method winclip anomalyclip "
     r"musc \1--backbone winclip:WEIGHTS/winclip anomalyclip:WEIGHTS/clip musc:WEIGHTS/clip"),
    (r" maeday:mae_vitb16=mae\.pth|(?<=anomalydino) maeday", ""),
    (r"--preset shots(?: --backbone builtin)?", "--preset shots --shots 1 2 --seeds 1 --no-cache "
     "--backbone builtin"),
    (r"--shots 200", "--shots 10 --set resolution=96"),
    (r"--shots 40", "--shots 10"),
    (r" magnetic_tile/ ", " mtd/magnetic_tile/ "),
    (r"(benchmarks/bank\.py) --images GOOD TEST .*", r"\1 --pictures 8 --views 1 --queries 1 "
     "--repeats 1 --images good new --backbone mobilenetv2_100 --weights WEIGHTS/mobilenetv2_100"),
    (r"(benchmarks/builtin\.py mtd/magnetic_tile/ .*)mobilenetv2_100\.safetensors",
     r"\1WEIGHTS/mobilenetv2_100 --shots 1 --seeds 1"),
    (r"(benchmarks/latency\.py.*)", r"\1 --method patchcore --mask off --backbone builtin "
     "--shots 1 --stream 1 --passes 1 --size 96x96"),
    (r"--images GOOD_DIR", "--images good"),
    (r"(benchmarks/noise\.py mtd/magnetic_tile/ .*)mobilenetv2\.safetensors",
     r"\1WEIGHTS/mobilenetv2_100 --methods patchcore --images 6 --test 2 --shares 0"),
    (r"(benchmarks/zero_shot\.py) DATASET -o runs .*",
     r"\1 my-parts -o runs --methods clip-ac --images 2 --shots 0"),
    (r"shots=\(1, 4\), seeds=3", "shots=(1, 2), seeds=1"),
]  # fmt: skip

# What a block of Python takes for granted.
GIVEN = {
    "docs/backbones.md": "import timm\nnetwork = timm.create_model('mobilenetv2_100')",
    "docs/metrics.md": "import numpy as np\nlabels, scores = [0, 0, 1, 1], [0.1, 0.2, 0.15, 0.9]\n"
    "mask = np.eye(64, dtype=bool)\nresults = [(mask * 0.5, mask), (mask * 0.1, ~mask & False)]",
    "docs/musc.md": "from offnominal import find_images\nfiles = find_images('lot17')",
    "docs/patchcore.md": "good = 'good'",
}
# Blocks that a page has its reader put into a file.
FILES = {"docs/your-own-method.md": "mean_patch.py", "docs/training.md": "painter.py"}


# Commands that are run where what they need is installed.
PROGRAMS = ("jq",)


# What the demonstration draws.
FEW = {"looks": ["fabric"], "n_train": 8, "n_good": 2, "n_per_defect": 1}


def script(words: list[str]) -> Done:
    """Run one of the benchmarks in this process, as from the root of the source."""
    path = ROOT / words[0]
    threads = torch.get_num_threads()
    try:
        with (
            patch.object(sys, "argv", [str(path), *words[1:]]),
            patch.object(sys, "path", [str(path.parent), *sys.path]),
            redirect_stdout(io.StringIO()) as said,
        ):
            runpy.run_path(str(path), run_name="__main__")
    finally:
        torch.set_num_threads(threads)
    return Done(0, said.getvalue(), "")


def is_trained(text: str) -> bool:
    """Whether a command fits a method that trains."""
    from offnominal.detectors.registry import detector_class
    from offnominal.detectors.trainable import Trainable

    method = re.match(r"offnominal fit .*--method (\S+)", text)
    return bool(
        method and method[1] in METHODS and issubclass(detector_class(method[1]), Trainable)
    )


def install(page: Path, folder: Path) -> None:
    """Put a page's method into a file, and its entry point where installed packages have theirs."""
    name = FILES[page.relative_to(ROOT).as_posix()]
    for language, text in blocks(page):
        if language == "python" and "class " in text:
            (folder / name).write_text(text)
        elif language == "toml":
            points = text.replace('project.entry-points."', "").replace('"]', "]").replace('"', "")
            package = folder / f"{Path(name).stem}-0.dist-info"
            package.mkdir(exist_ok=True)
            (package / "entry_points.txt").write_text(points)
            (package / "METADATA").write_text(f"Name: {Path(name).stem}\nVersion: 0\n")
            add_methods_of_others()


@dataclass
class Bench:
    """One page's run: the folder, and what its blocks of Python have defined."""

    folder: Path
    weights: dict[str, Path]
    chat: ChatServer
    drawn: Path  # where the demonstration is kept for the next page
    names: dict[str, Any] = field(default_factory=dict)
    trained: set[str] = field(default_factory=set)  # files that the page has made by itself

    @staticmethod
    def tiny(text: str) -> str:
        """The same piece, made quick."""
        for pattern, instead in QUICKER:
            text = re.sub(pattern, instead, text)
        return text + " --steps 2" * (is_trained(text) and "--steps" not in text)

    def quicker(self, text: str) -> str:
        """The same piece, tiny, with the weights and the server that are here."""
        text = self.tiny(text)
        if "runs/cells/NAME" in text:
            text = text.replace("NAME", next((self.folder / "runs/cells").iterdir()).name)
        text = text.replace("http://127.0.0.1:8080/v1", self.chat.endpoint)
        return re.sub(r"WEIGHTS/(\w+)", lambda found: str(self.weights[found[1]]), text)

    def run(self, piece: Piece) -> None:
        """Run a piece; a failure names it."""
        if any(piece.text.startswith(start) for start in NOT_RUN):
            return
        if any(f"| {each} " in piece.text and not shutil.which(each) for each in PROGRAMS):
            return
        text = self.quicker(piece.text)
        with chdir(self.folder):
            self.clear(text)
            if piece.kind == "python":
                self.python(piece.page, text)
                return
            done = self.command(text)
        allowed = (2,) if piece.fails else (0, 1) if "--fail-on-anomaly" in text else (0,)
        assert done.returncode in allowed, f"{piece.page}: {text}\n{done.stderr[-2000:]}"

    def clear(self, text: str) -> None:
        """Take away a prepared file that a page trains itself, once: a page's own stay."""
        if text.startswith("offnominal train ") or "train(" in text:
            for word in {*re.findall(r"[\w-]+\.safetensors", text)} - self.trained:
                self.trained.add(word)
                for left in Path().glob(f"{Path(word).stem}.*"):
                    left.unlink()

    def python(self, page: str, text: str) -> None:
        if page in FILES and "class " in text:
            install(ROOT / page, self.folder)
            return
        if not self.names:
            self.names["__name__"] = "__main__"
            exec(GIVEN.get(page, ""), self.names)
        exec(compile(text, page, "exec"), self.names)

    def command(self, text: str) -> Done:
        """Run a command in this process, or by the shell where the line takes one."""
        words = shlex.split(text)
        if words[:2] == ["offnominal", "demo"]:
            return self.demo(words)
        if words[:1] == ["python"] and words[1].startswith("benchmarks/"):
            return script(words[1:])
        if {"||", "&&", ">"} & set(words):
            return self.shell(text)
        done = Done(0, "", "")
        for part in re.split(r" \| (?=(?:[^']*'[^']*')*[^']*$)", text):  # no bar within quotes
            done = self.part(part, done.stdout)
            if done.returncode not in (0, 1):
                break
        return done

    def part(self, text: str, stdin: str) -> Done:
        """Run one command of a pipe, in this process where it is Offnominal's."""
        words = shlex.split(text)
        values = [*takewhile(lambda word: re.match(r"[A-Z_]+=", word), words)]
        if words[len(values) : len(values) + 1] != ["offnominal"]:
            return self.shell(text, stdin)
        words = words[len(values) + 1 :]
        spread = [map(str, Path().glob(word)) if "*" in word else [word] for word in words]
        given = {name: value for name, _, value in (word.partition("=") for word in values)}
        with patch.dict(ENVIRONMENT, given):
            return offnominal(*(word for each in spread for word in sorted(each)), stdin=stdin)

    def demo(self, words: list[str]) -> Done:
        """The demonstration, of few parts; that without options is the same for all pages."""
        target = Path(words[words.index("-o") + 1] if "-o" in words else "demo-report")
        with patch.object(offnominal_demo, "run_demo", partial(run_demo, **FEW)):
            if {*words[2:]} - {"-o", str(target)}:
                target.unlink(missing_ok=True)
                return offnominal(*words[1:])
            done = Done(0, "", "") if self.drawn.is_dir() else offnominal("demo", "-o", self.drawn)
        target.symlink_to(self.drawn)
        return done

    def shell(self, text: str, stdin: str = "") -> Done:
        own = self.folder / ".bin" / "offnominal"
        if not own.exists():
            own.parent.mkdir()
            own.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m offnominal "$@"\n')
            own.chmod(0o755)
        path = f"{own.parent}:{os.environ['PATH']}"
        environment = os.environ | ENVIRONMENT | {"PATH": path}
        done = subprocess.run(
            ["bash", "-c", text],
            capture_output=True, text=True, env=environment, check=False, input=stdin,
        )  # fmt: skip
        return Done(done.returncode, done.stdout, done.stderr)
