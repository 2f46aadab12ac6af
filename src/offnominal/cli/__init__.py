"""The command line: one file per command, each thin. Importing this pulls in no torch."""

import io
import os
import signal
import sys
import traceback
import warnings
from types import FrameType
from typing import Any, NoReturn

import typer

from offnominal.cli.backbones import app as backbones_app
from offnominal.cli.benchmark import benchmark, benchmark_options
from offnominal.cli.calibrate import calibrate
from offnominal.cli.command import Group, add_command
from offnominal.cli.datasets import app as datasets_app
from offnominal.cli.datasets import dataset_options
from offnominal.cli.demo import demo
from offnominal.cli.doctor import doctor
from offnominal.cli.evaluate import evaluate
from offnominal.cli.explain import explain
from offnominal.cli.export import export
from offnominal.cli.fit import fit, fit_options
from offnominal.cli.grow import add, forget, history, undo
from offnominal.cli.info import info
from offnominal.cli.methods import methods
from offnominal.cli.predict import predict, predict_options
from offnominal.cli.report import report
from offnominal.cli.serve import serve
from offnominal.cli.suggest import suggest
from offnominal.cli.synthesize import synthesize
from offnominal.cli.terminal import INTERNAL, USAGE, print_error, say
from offnominal.cli.train import train, train_options
from offnominal.errors import EngineWarning, ImageWarning, OffnominalError, ThresholdWarning
from offnominal.extras import missing

__all__ = ["app", "main"]


# What a stop leaves, by command, where the command does not say so itself.
_KEPT = {
    "fit": "no model was written, and an earlier file is as it was",
    **dict.fromkeys(("add", "forget", "undo", "calibrate"), "the model file is as it was"),
}


class _Terminated(SystemExit):
    """The system asked the process to end."""


class _Program(Group):
    """All commands: errors that a user can mend are printed without a traceback, exit code 2."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command; where nobody reads its output any more, that is no error."""
        try:
            return super().invoke(ctx)
        except (KeyboardInterrupt, _Terminated) as stop:
            code = 130 if isinstance(stop, KeyboardInterrupt) else 143
            if not getattr(stop, "told", False):
                kept = _KEPT.get(ctx.invoked_subcommand or "", "")
                say(f"stopped; {kept}" if kept else "stopped")
            sys.exit(code)
        except ModuleNotFoundError as error:
            if told := missing(error, f"`offnominal {ctx.invoked_subcommand}`"):
                raise told from error
            raise
        except BrokenPipeError:
            # What Python would still flush at exit goes nowhere.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(0)

    def main(self, *args: Any, **extra: Any) -> Any:
        """Run a command line; standalone it ends the process, else errors are raised."""
        if not extra.get("standalone_mode", True):
            return super().main(*args, **extra)
        try:
            super().main(*args, **extra)
        except OffnominalError as error:
            print_error(str(error))
            sys.exit(USAGE)
        except OSError as error:  # a disk that is full or failing, a folder taken away
            where = f"{error.filename}: " if error.filename else "writing what the command says: "
            print_error(f"{where}{error.strerror or error}; mend that and run the command again")
            sys.exit(USAGE)
        except Exception:  # a defect of ours: never exit code 1, which means an anomaly
            traceback.print_exc()
            print_error("this is a defect of offnominal; please report it with the lines above")
            sys.exit(INTERNAL)


app = typer.Typer(
    name="offnominal",
    cls=_Program,
    help="Visual anomaly detection: shown a few good parts, it finds what is wrong in the next.",
    epilog="Exit codes: 0 all good, 1 anomalies found (with --fail-on-anomaly), 2 wrong usage or "
    "input, 3 some images unreadable, 70 a defect of the program.",
    no_args_is_help=True,
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


_WHOLE = ("good", "defects", "masks", "test_good", "train_share", "frame_step")
_PLAIN = (
    *(calibrate, explain, export, add, forget, undo, history, info, report, methods, demo, doctor),
    *(suggest, synthesize, serve),
)

add_command(app, fit, find=fit_options, grouped=True)
add_command(app, predict, find=predict_options)
for command in _PLAIN:
    add_command(app, command)
add_command(app, evaluate, dataset_options("test_good", "train_share"))
add_command(app, benchmark, dataset_options("root", "categories"), benchmark_options, many=True)
add_command(app, train, dataset_options("root", *_WHOLE), train_options)
app.add_typer(datasets_app, name="datasets")
app.add_typer(backbones_app, name="backbones")


def main() -> NoReturn:
    """Entry point of the process."""
    signal.signal(signal.SIGTERM, _stop)
    # A name that the terminal's encoding lacks is no reason to stop.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    # Once for each kind and run, by whoever warns; the place in the program is nothing to a user.
    warnings.showwarning = lambda message, *_: say(f"warning: {message}")
    warnings.simplefilter("always", ImageWarning)
    warnings.simplefilter("always", EngineWarning)
    warnings.simplefilter("ignore", ThresholdWarning)  # it is told beside the threshold
    app()
    sys.exit(0)


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    """End in good order, with files closed, when the system asks."""
    raise _Terminated(128 + number)
