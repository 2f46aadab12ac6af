"""``offnominal evaluate``: how good a fitted detector is, on images whose labels are known."""

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from offnominal.cli import options
from offnominal.cli.datasets import open_from_options
from offnominal.cli.terminal import Unreadable, progress_bar, say, warn_untrained
from offnominal.text import printable

if TYPE_CHECKING:
    from offnominal.benchmark.evaluate import Evaluation

_ROWS = {
    "image_auroc": "image AUROC",
    "image_ap": "image AP",
    "image_f1_max": "image F1-max",
    "image_miss_at_0.1%": "missed at 0.1 % false rejects",
    "image_miss_at_1%": "missed at 1 % false rejects",
    "image_miss_at_5%": "missed at 5 % false rejects",
    "pixel_auroc": "pixel AUROC",
    "pixel_ap": "pixel AP",
    "pixel_f1_max": "pixel F1-max",
    "aupro": "AUPRO to 0.3",
    "aupro_0.05": "AUPRO to 0.05",
    "false_rejects": "good images rejected, own threshold",
    "misses": "defects missed, own threshold",
}
_KINDS = {
    "image_auroc": "image AUROC",
    "image_miss_at_1%": "missed at 1 %",
    "misses": "missed, own threshold",
    "named": "class told right",
}
_CLASS, _TAKEN = "by class of defect", "was, and was taken for"


def evaluate(
    model: options.Model,
    output: Annotated[Path | None, "-o"] = None,
    weights: options.Weights = None,
    device: options.Device = "auto",
    engine: options.Engine = "auto",
    endpoint: options.Endpoint = None,
    key_variable: options.KeyVariable = None,
    maps: bool = False,
    as_json: options.Json = False,
    strict: options.Strict = False,
    **data: Any,
) -> None:
    """Measure a fitted detector on a data set's test images.

    With --good and --defects, all the good images are tested on: name such as it has not learned.

    Parameters
    ----------
    output : path or None
        Folder of results, for `offnominal report`.
    maps : bool
        With -o: keep every anomaly map.
    """
    options.check_given(model, (), "evaluate", weights, device, engine)
    # Of plain folders all the good images are tested on: the detector has learned elsewhere.
    found = open_from_options(**data, train_share=0.0)
    from offnominal.benchmark.evaluate import evaluate_detector
    from offnominal.benchmark.store import require

    if output is not None:
        require("pyarrow", "offnominal evaluate -o")
    detector = options.open_model(model, weights, device, endpoint, key_variable, engine)
    warn_untrained(detector)
    for note in found.notes:
        say(note)
    with Unreadable(strict) as unreadable:
        with progress_bar(sum(len(found.test(c)) for c in found.categories)) as advance:
            results = evaluate_detector(detector, model, found, output, maps, unreadable, advance)
        if as_json:
            text = json.dumps([asdict(result) for result in results])
            # What is not a number is null in JSON.
            typer.echo(json.dumps(json.loads(text, parse_constant=lambda name: None), indent=1))
        for result in results:
            if not as_json:
                _print(result)
            for note in result.notes:
                say(note if len(results) == 1 else f"{printable(result.category)}: {note}")
        if output is not None:
            say(f"Make a page of it with: offnominal report {output}")


def _print(result: "Evaluation") -> None:
    images = "image" if result.good + result.defective == 1 else "images"
    name = printable(result.category)
    typer.echo(f"{name}: {result.good} good and {result.defective} defective {images}")
    for key, words in _ROWS.items():
        value = result.figures.get(key, math.nan)
        low, high = result.intervals.get(key, (math.nan, math.nan))
        spread = "" if math.isnan(low) else f"   95 %: {100 * low:.1f} to {100 * high:.1f}"
        if not math.isnan(value):
            typer.echo(f"  {words:<36}{100 * value:6.1f}{spread}")
    _print_kinds(result)
    if result.confusion:
        _print_confusion(result.confusion)


def _print_kinds(result: "Evaluation") -> None:
    """A row for each class of defect, of the columns that there are."""
    shown = [key for key in _KINDS if any(not math.isnan(row[key]) for row in result.kinds)]
    if not shown:
        return
    names = [printable(row["kind"]) for row in result.kinds]
    first = max(map(len, (_CLASS, *names)))
    typer.echo(f"  {_CLASS:<{first}}  images" + "".join(f"  {_KINDS[key]}" for key in shown))
    for name, row in zip(names, result.kinds, strict=True):
        figures = ["-" if math.isnan(row[key]) else f"{100 * row[key]:.1f}" for key in shown]
        cells = zip(figures, shown, strict=True)
        told = "".join(f"  {text:>{len(_KINDS[key])}}" for text, key in cells)
        typer.echo(f"  {name:<{first}}  {row['images']:>6}{told}")


def _print_confusion(table: dict[str, Any]) -> None:
    """Rows of what it was, columns of what was said."""
    rows, columns = ([printable(name) for name in table[key]] for key in ("truth", "said"))
    first = max(map(len, (_TAKEN, *rows)))
    typer.echo(f"  {_TAKEN:<{first}}" + "".join(f"  {name:>5}" for name in columns))
    for name, counts in zip(rows, table["counts"], strict=True):
        cells = zip(counts, columns, strict=True)
        told = "".join(f"  {number:>{max(5, len(head))}}" for number, head in cells)
        typer.echo(f"  {name:<{first}}{told}")
