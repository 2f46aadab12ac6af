"""``offnominal export``: a model that predicts without torch, or one ONNX graph of everything."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from offnominal.cli import options
from offnominal.cli.terminal import console, say, table, tell, waiting
from offnominal.errors import OptionError
from offnominal.text import printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from offnominal.detectors.deployed import Row


def export(
    model: options.Model,
    output: Annotated[Path | None, "-o"] = None,
    check: Annotated[list[str] | None, "--check GOOD_DIR"] = None,
    defects: Annotated[list[str] | None, "--defects DIR"] = None,
    int8: Annotated[bool, "--int8"] = False,
    single_graph: Annotated[bool, "--single-graph"] = False,
    size: Annotated[str | None, "--size HxW"] = None,
    weights: options.Weights = None,
) -> None:
    """Write a model that needs no torch, or one ONNX graph of everything, once it is found alike.

    Images are judged before and after, and the differences printed. Where they are more than
    rounding there is no file.

    Parameters
    ----------
    output : path or None
        File to write; else the model's name with .offx, or .onnx.
    check : list of str or None
        Good images to compare on, as folders, files or globs; else references that are still there,
        mirrored, and drawn images. Repeatable.
    defects : list of str or None
        Images of defects to compare on, beside --check, which gives the AUROC; repeatable.
    int8 : bool
        Compute in 8 bits, where --check good/ shows that nothing is lost; thresholds are set anew.
    single_graph : bool
        Write ONNX with sizing, search, map and decision inside, for other languages.
    size : str or None
        Of the images that the graph takes, height first; else the references' own.
    """
    from offnominal.paths import find_images

    options.check_given(model, (), "export", weights)
    target = output or Path(model.with_suffix(".onnx" if single_graph else ".offx").name)
    _check_target(target, model, single_graph)
    for flag, given in (("--size", size), ("--single-graph", single_graph)):
        if given and (int8 or not single_graph):
            told = "--int8 is of an .offx" if int8 else "goes with --single-graph"
            raise OptionError(f"{flag}: {told}")
    if int8 and not check:
        raise OptionError(
            "--int8: give good images that it has not learned from, to see what 8 bits lose: "
            "--check good/, better with --defects bad/"
        )
    if defects and not check:
        raise OptionError("--defects: give good images to compare on, too, with --check good/")
    good, bad = (find_images(named) if named else [] for named in (check, defects))
    detector = options.open_model(model, weights, "cpu", engine="torch")
    if single_graph:
        from offnominal.export.graph import single_graph as write

        with waiting("writing the graph, and running it"):
            made = write(detector, target, size, [*good, *bad])
        for line in made.parity:
            say(str(line))
        say(f"compared on {made.compared}")
        height, width = made.size
        say(
            f"{target}: {made.bytes / 1e6:.1f} MB, opset {made.opset}, images of {height} x {width}"
        )
        return
    from offnominal.export.model import Comparison, export_int8, export_model

    sample = Comparison(good, bad)
    with waiting("exporting, and judging the images twice"):
        if int8:
            deployed, gate = export_int8(detector, target, sample)
        else:
            deployed = export_model(detector, target, sample)
    if int8:
        console(100).print(table(["", "float32", "int8"], gate.rows(), ["float32", "int8"]))
    else:
        _print(deployed.parity)
    facts = deployed.network.facts
    better = "" if good else "; --check good/ takes yours"
    tell(
        ("compared", deployed.compared + better),
        ("graph", f"{facts.size / 1e6:.1f} MB, opset {facts.opset}, {deployed.kind}"),
        ("licence", deployed.licence or "of the weights: not known"),
    )
    say(f"{target}: `offnominal predict {printable(str(target))} new/` needs no torch")


def _check_target(target: Path, model: Path, single: bool) -> None:
    wanted = ".onnx" if single else ".offx"
    if target.suffix.lower() != wanted:
        raise OptionError(f"-o {target}: give a name that ends in {wanted}")
    if target.resolve() == model.resolve():
        raise OptionError(f"-o {target}: is the model itself; name another file")
    options.check_folder(target)
    if not single:
        options.check_model(target)


def _print(rows: "Sequence[Row]") -> None:
    """The table of differences."""
    headings = ["engine", "precision", "images", "scores", "maps", "decisions", "rank", "AUROC"]
    lines = [
        (
            row.engine,
            row.precision,
            str(row.images),
            f"{row.score:.1e}",
            f"{row.map:.1e}",
            f"{row.decisions} differ",
            "" if row.spearman is None else f"{row.spearman:.4f}",
            ""
            if row.auroc is None or row.auroc_before is None
            else f"{100 * row.auroc_before:.1f} -> {100 * row.auroc:.1f}",
        )
        for row in rows
    ]
    console(100).print(table(headings, lines, headings[2:]))
