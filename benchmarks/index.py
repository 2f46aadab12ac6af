"""Time searches with an index beside the memory bank's exact search, at growing sizes.

Run ``python benchmarks/index.py``; ``--help`` lists the sizes. The data look like patches of
aligned pictures (see ``search.py``). Queries are patches of a picture that is not in the bank. The
searches get the same queries and threads and take turns, and the median of the turns counts. A
ratio above 1 says that the index is faster. ``recall`` is what the tuning measured, ``new`` is the
share of the queries for which the index found the nearest row.

``--resident`` measures instead how much memory a process holds after it opened a saved index and
searched with it, for an index in memory and for one whose lists are on disk.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from offnominal.errors import OptionError
from offnominal.memory import MemoryBank
from offnominal.memory.index_build import build_index
from offnominal.memory.index_choice import load_faiss, parse_search
from offnominal.memory.index_file import attach_indexes, save_indexes
from search import interleaved, patch_data

PICTURE = 1024  # patches


def filled(rows: Tensor) -> MemoryBank:
    bank = MemoryBank(rows.shape[1])
    for owner, own in enumerate(torch.split(rows, PICTURE)):
        bank.add(own, owner)
    return bank


def compare(options: argparse.Namespace, size: int) -> None:
    clock = time.process_time if options.clock == "cpu" else time.perf_counter
    generator = torch.Generator().manual_seed(0)
    rows, queries = patch_data(size, PICTURE, options.dim, generator)
    bank = filled(rows)
    del rows
    true = bank.search(queries, 1)[0]
    for kind in options.kinds:
        if kind == "hnsw" and size > options.most_hnsw:
            continue
        start = clock()
        try:
            index = build_index(bank, parse_search(f"{kind},recall={options.recall}"))
        except OptionError as error:
            print(f"{size:8} {kind:6} {error}", flush=True)
            continue
        built = clock() - start
        assert index is not None

        def approximate(index: object = index) -> Tensor:
            bank.index = index  # type: ignore[assignment]  # an index; a default cannot say so
            found = bank.search(queries, 1)[0]
            bank.index = None
            return found

        new = float((approximate() == true).double().mean())
        runs: dict[str, Callable[[], object]] = {
            "exact": lambda: bank.search(queries, 1),
            "index": approximate,
        }
        spent = interleaved(runs, options.repeats, clock)
        width = load_faiss().serialize_index(index.faiss).nbytes / size
        print(
            f"{size:8} {kind:6} {built:8.1f} {width:6.0f} {index.recall:7.4f} {new:7.4f} "
            f"{1e3 * spent['exact']:9.1f} {1e3 * spent['index']:9.1f} "
            f"{spent['exact'] / spent['index']:6.2f}  {index.setting}",
            flush=True,
        )


def resident(options: argparse.Namespace, size: int) -> None:
    """Memory of a process that opens a bank and an index, both from files, and searches once."""
    rows, queries = patch_data(size, PICTURE, options.dim, torch.Generator().manual_seed(0))
    bank = filled(rows)
    for kind in ("ivf", "disk"):
        bank.index = build_index(bank, parse_search(f"{kind},recall={options.recall}"))
        with tempfile.TemporaryDirectory() as folder:
            from safetensors.torch import save_file

            model = Path(folder, "part.offn")
            holder = torch.nn.ModuleDict({"bank": bank})
            save_file(holder.state_dict() | save_indexes(holder, model), model)
            save_file({"queries": queries}, Path(folder, "queries"))
            subprocess.run([sys.executable, __file__, "--open", str(model)], check=True)


def open_and_search(model: Path) -> None:
    from safetensors import safe_open
    from safetensors.torch import load_file

    with safe_open(model, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    queries = load_file(model.with_name("queries"))["queries"]
    saved = {name: tensors.pop(name) for name in list(tensors) if name.endswith(".index")}
    bank = MemoryBank(tensors["bank.rows"].shape[1])
    holder = torch.nn.ModuleDict({"bank": bank})
    holder.load_state_dict(tensors, assign=True)
    load_faiss()
    before = memory()
    attach_indexes(holder, saved, model)
    after = memory()
    for part in torch.split(queries, 64):
        bank.search(part, 1)
    end = memory()
    assert bank.index is not None
    kind = getattr(bank.index, "kind", "")
    print(f"{len(bank):8} {kind:6}  MiB held by the process alone + mapped from files:")
    for name, (own, mapped) in {"before": before, "opened": after, "searched": end}.items():
        print(f"{'':16} {name:9} {own:8.0f} + {mapped:.0f}", flush=True)


def memory() -> tuple[float, float]:
    """MiB of anonymous and of file-backed memory that is resident (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    sizes = {line.split(":")[0]: line.split()[1] for line in lines if line.startswith("Rss")}
    return int(sizes["RssAnon"]) / 1024, int(sizes["RssFile"]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[16384, 65536, 262144])
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--kinds", nargs="+", default=["ivf", "hnsw", "ivfpq"])
    parser.add_argument("--recall", type=float, default=0.99)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--most-hnsw", type=int, default=2**18, help="its building takes long")
    parser.add_argument("--threads", type=int, default=min(2, torch.get_num_threads()))
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    parser.add_argument("--resident", action="store_true")
    parser.add_argument("--open", type=Path, default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.open:
        open_and_search(options.open)
        return
    if not options.resident:
        print(f"{PICTURE} queries, {options.dim} dimensions, {options.threads} threads")
        print(
            f"{'rows':>8} {'kind':6} {'build s':>8} {'B/row':>6} {'recall':>7} {'new':>7} "
            f"{'exact ms':>9} {'index ms':>9} {'ratio':>6}"
        )
    for size in options.rows:
        (resident if options.resident else compare)(options, size)


if __name__ == "__main__":
    main()
