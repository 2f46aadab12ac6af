"""How long the program takes to answer, and to open a detector with a 100 MB bank.

python benchmarks/startup.py
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from offnominal import AnomalyDINO, Detector
from offnominal.datasets.synthetic import draw_good
from offnominal.detectors.saving import read_header

MAIN = "from offnominal.cli import main; main()"


def main() -> None:
    empty = timed(["-c", "pass"])
    print(f"{'bare Python':<28}{1000 * empty:7.0f} ms")
    for label, arguments in {
        "import offnominal": ["-c", "import offnominal"],
        "offnominal --help": ["-c", MAIN, "--help"],
        "offnominal methods": ["-c", MAIN, "methods"],
    }.items():
        print(f"{label:<28}{1000 * timed(arguments):7.0f} ms")
    with tempfile.TemporaryDirectory() as folder:
        print(f"{'open a 100 MB bank':<28}{1000 * opening(Path(folder)):7.0f} ms")


def timed(arguments: list[str], repeats: int = 9) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - start)
    return median(times)


def opening(folder: Path) -> float:
    """Seconds to open a detector whose bank has 100 MB, imports and a first opening left out."""
    detector = AnomalyDINO(backbone="builtin", rotations="none")
    detector.fit([draw_good("fabric", 0, 0)]).save(folder / "small.offn")
    with safe_open(folder / "small.offn", framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    dim = tensors["bank.rows"].shape[1]
    rows = 100 * 2**20 // (4 * dim)
    tensors["bank.rows"] = torch.rand(rows, dim)
    tensors["bank.owner"] = torch.zeros(rows, dtype=torch.int32)
    header = json.dumps(read_header(folder / "small.offn"))
    save_file(tensors, folder / "big.offn", metadata={"offnominal": header})
    Detector.load(folder / "small.offn", device="cpu")
    times = []
    for _ in range(5):
        start = time.perf_counter()
        Detector.load(folder / "big.offn", device="cpu")
        times.append(time.perf_counter() - start)
    return median(times)


if __name__ == "__main__":
    main()
