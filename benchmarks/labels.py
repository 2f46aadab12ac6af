"""What labelled defects are worth, on magnetic tiles: the set, the runs, the figure of the docs.

    python benchmarks/labels.py set MAGNETIC_TILES tiles
    python benchmarks/labels.py run tiles runs --weights FILE --method patchcore anomalydino
    python benchmarks/labels.py figure runs docs/pictures/some-defects.webp

The tiles were photographed several times each, in other light; numbers in the names of their files
tell which pictures are of one tile. ``set`` divides good tiles into those to learn from and those
to test on, tile by tile, keeps at most three pictures of each, and halves their size. ``run`` is
the preset ``labels`` on 64 good pictures, with tiles told apart by these numbers and by likeness;
it goes on where it was broken off. ``figure`` draws all that there is, and prints its tables.
"""

import argparse
import random
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from PIL import Image

from offnominal.backbones.cache import FeatureCache
from offnominal.benchmark.cell import Cell
from offnominal.benchmark.draw import parts
from offnominal.benchmark.grid import parse_sets
from offnominal.benchmark.plan import Request, make_plan, varied
from offnominal.benchmark.presets import PRESETS
from offnominal.benchmark.runner import Runner
from offnominal.benchmark.store import Plan, Store, read_runs
from offnominal.datasets import Sample, open_dataset
from offnominal.report.labels import labels_figure, labels_lines, labels_tables
from offnominal.report.results import gather

KINDS = ("blowhole", "break", "crack", "fray", "uneven")
MOST_PICTURES, GOOD = 3, 64
_NEXT = 150  # numbers further apart are of another tile


def tiles_of(paths: Iterable[Path]) -> list[list[Path]]:
    """Pictures of each tile: close numbers, each with a longer exposure than the one before."""
    found: list[list[Path]] = []
    last = (0, 0)
    for number, exposure, path in sorted((*_numbers(path), path) for path in paths):
        if not found or number - last[0] >= _NEXT or exposure <= last[1]:
            found.append([])
        found[-1].append(path)
        last = number, exposure
    return found


def part_of(samples: Sequence[Sample]) -> dict[Path, int]:
    """Tiles by their numbers, joined where pictures are alike: some tiles have two runs of them."""
    first: dict[object, object] = {}

    def root(place: object) -> object:
        while first.setdefault(place, place) != place:
            place = first[place]
        return place

    alike = parts(samples)
    for kind in sorted({sample.defect for sample in samples}):
        for tile in tiles_of(sample.image for sample in samples if sample.defect == kind):
            for path in tile:
                first[root(path)] = root(tile[0])
                first[root(path)] = root(("alike", alike[path]))
    names: dict[object, int] = {}
    return {s.image: names.setdefault(root(s.image), len(names)) for s in samples}


def make_set(source: Path, target: Path) -> None:
    """Halved pictures in MVTec layout; no tile is both learned from and tested on."""
    good = tiles_of(path for split in ("train", "test") for path in source.glob(f"{split}/good/*"))
    random.Random(0).shuffle(good)
    left, rng = iter(good), random.Random(1)

    def some(count: int, tiles: Iterator[list[Path]]) -> list[Path]:
        found: list[Path] = []
        while len(found) < count and (paths := next(tiles, None)):
            found += rng.sample(paths, min(MOST_PICTURES, len(paths)))
        return sorted(found, key=lambda path: path.name)

    chosen = {"test/good": some(120, left)[:100], "train/good": some(200, left)}
    for kind in KINDS:
        own = tiles_of((source / "test" / kind).iterdir())
        chosen[f"test/{kind}"] = some(len(KINDS) * 1000, iter(own))
    for folder, paths in chosen.items():
        kind = Path(folder).name
        for path in paths:
            _halve(path, target / folder / f"{path.stem}.png")
            if kind in KINDS:
                mask = Path("ground_truth", kind, f"{path.stem}_mask.png")
                _halve(source / mask, target / mask, Image.Resampling.NEAREST)


def _halve(source: Path, target: Path, how: Image.Resampling = Image.Resampling.BOX) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with Image.open(source) as picture:
        size = (picture.width // 2, picture.height // 2)
        picture.convert("L").resize(size, how).save(target)


def _numbers(path: Path) -> tuple[int, int]:
    match = re.match(r"exp(\d)_num_(\d+)", path.name)
    assert match
    return int(match[2]), int(match[1])


def run(options: argparse.Namespace) -> None:
    """Run what is missing of the cells."""
    torch.set_num_threads(1)
    preset, data = PRESETS["labels"], open_dataset(options.data)
    methods = options.method or preset.methods
    request = Request(
        methods=methods,
        shots=(GOOD,),
        seeds=3,
        backbones=[f"mobilenetv2_100={options.weights}"],
        sets=parse_sets(options.set, methods),
        labelled=preset.labelled,
        marks=(True,) if options.with_marks else (False, True),
        part_of=part_of,
    )
    work, store = make_plan([data], request), Store(options.runs)
    only = set(options.only or preset.labelled)
    work.cells = [cell for cell in work.cells if cell.defects in only]
    for place, contents in work.contents.items():
        store.note(*place, contents)
    names = tuple(cell.name for cell in work.cells)
    store.add_plan(Plan(f"labels-{'-'.join(methods)}", preset.title, varied(request), names))

    def told(cell: Cell, figures: dict[str, float]) -> None:
        print(f"{cell.name}: image AUROC {figures['image_auroc']:.3f}", flush=True)

    cache = FeatureCache(options.runs / "cache", 4 * 10**9)
    for line in Runner(work, store, cache, "cpu").run(finished=told).failed:
        print(line)


def figure(options: argparse.Namespace) -> None:
    """Draw the figure, and print the tables and what they come to."""
    setups = [setup for setup in gather(read_runs(options.runs)[0]) if setup.settings["set_aside"]]
    drawn = labels_figure(setups)
    assert drawn
    drawn.savefig(options.to, dpi=110, pil_kwargs={"quality": 88})
    for line in labels_lines(setups):
        print(line)
    for table in labels_tables(setups, []):
        print(f"\n{table.caption}\n| {' | '.join([*table.heads, *table.columns])} |")
        print("|" + "---|" * (len(table.heads) + len(table.columns)))
        for names, entries in table.rows:
            print(f"| {' | '.join([*names, *(entry.text for entry in entries)])} |")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("set")
    one.add_argument("source", type=Path)
    one.add_argument("target", type=Path)
    one = commands.add_parser("run")
    one.add_argument("data", type=Path)
    one.add_argument("runs", type=Path)
    one.add_argument("--weights", required=True)
    one.add_argument("--method", nargs="*")
    one.add_argument("--set", nargs="*", default=["resolution=128"])
    one.add_argument("--only", nargs="*", type=int, help="numbers of defects to run now")
    one.add_argument("--with-marks", action="store_true", help="leave out those without masks")
    one = commands.add_parser("figure")
    one.add_argument("runs", type=Path)
    one.add_argument("to", type=Path)
    options = parser.parse_args()
    if options.command == "set":
        make_set(options.source, options.target)
    else:
        {"run": run, "figure": figure}[options.command](options)


if __name__ == "__main__":
    main()
