"""How long the program takes to answer, and to open a detector with a 100 MB bank.

python benchmarks/startup.py
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np

from offnominal import AnomalyDINO, load, modelfile
from offnominal.datasets.synthetic import draw_good

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
    header = modelfile.read_header(folder / "small.offn")
    arrays = modelfile.read(folder / "small.offn", header)
    dim = arrays["bank.rows"].shape[1]
    rows = 100 * 2**20 // (4 * dim)
    for name in [name for name in arrays if name.startswith("bank.")]:
        arrays[name] = np.resize(arrays[name], (rows, *arrays[name].shape[1:]))
    modelfile.write(folder / "big.offn", header, arrays)
    load(folder / "small.offn", device="cpu")
    times = []
    for _ in range(5):
        start = time.perf_counter()
        load(folder / "big.offn", device="cpu")
        times.append(time.perf_counter() - start)
    return median(times)


if __name__ == "__main__":
    main()
