"""The command line: one file per command, each thin. Importing this pulls in no torch."""

import os
import signal
import sys
import traceback
from types import FrameType
from typing import NoReturn

import typer

from offnominal.cli.add import add
from offnominal.cli.backbones import app as backbones_app
from offnominal.cli.benchmark import benchmark
from offnominal.cli.calibrate import calibrate
from offnominal.cli.datasets import app as datasets_app
from offnominal.cli.demo import demo
from offnominal.cli.doctor import doctor
from offnominal.cli.evaluate import evaluate
from offnominal.cli.explain import explain
from offnominal.cli.fit import fit
from offnominal.cli.forget import forget
from offnominal.cli.history import history
from offnominal.cli.info import info
from offnominal.cli.many import ManyValues
from offnominal.cli.merge import merge
from offnominal.cli.methods import methods
from offnominal.cli.predict import predict
from offnominal.cli.report import report
from offnominal.cli.terminal import INTERNAL, USAGE, print_error
from offnominal.cli.train import app as train_app
from offnominal.cli.undo import undo
from offnominal.errors import OffnominalError

__all__ = ["app", "main"]

app = typer.Typer(
    name="offnominal",
    help="Visual anomaly detection: shown a few good parts, it finds what is wrong in the next.",
    epilog="Exit codes: 0 all good, 1 anomalies found (with --fail-on-anomaly), 2 wrong usage or "
    "input, 3 some images unreadable, 70 a defect of the program.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(value: bool) -> None:
    if value:
        from offnominal._version import __version__

        typer.echo(f"offnominal {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(
        False, "--version", callback=_show_version, is_eager=True, help="Print the version."
    ),
) -> None:
    """Options before the command."""


app.command()(fit)
app.command()(predict)
app.command()(calibrate)
app.command()(explain)
app.command()(add)
app.command()(forget)
app.command()(undo)
app.command()(merge)
app.command()(history)
app.command()(info)
app.command()(evaluate)
app.command(cls=ManyValues)(benchmark)
app.command()(report)
app.add_typer(datasets_app, name="datasets")
app.add_typer(train_app, name="train")
app.command()(methods)
app.add_typer(backbones_app, name="backbones")
app.command()(demo)
app.command()(doctor)


def main() -> NoReturn:
    """Entry point: errors that a user can mend are printed without a traceback, exit code 2."""
    signal.signal(signal.SIGTERM, _stop)
    try:
        app()
    except OffnominalError as error:
        print_error(str(error))
        sys.exit(USAGE)
    except BrokenPipeError:  # whoever read our output has seen enough
        # What Python would still flush at exit goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except Exception:  # a defect of ours: never exit code 1, which means an anomaly
        traceback.print_exc()
        print_error("this is a defect of offnominal; please report it with the lines above")
        sys.exit(INTERNAL)
    sys.exit(0)


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    """End in good order, with files closed, when the system asks."""
    sys.exit(128 + number)
