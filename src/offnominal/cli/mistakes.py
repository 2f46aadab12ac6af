"""Mix-ups that are easily made, recognised from the words of a command line before any work."""

import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

from offnominal.checks import meant
from offnominal.errors import ModelFileError, OptionError, WeightsError
from offnominal.filekinds import MODEL, PICTURE, WEIGHTS, is_model, what_is

__all__ = [
    "check_device",
    "check_engine",
    "check_images_given",
    "check_model_given",
    "check_weights_given",
]
__all__ += ["in_words", "no_command"]

MODELS = (".offn", ".offx")
"""How the names of model files end: fitted ones', and exported ones'."""

_NEEDED = {
    "fit": "name the model file to write, as `offnominal fit good/ -o part.offn`",
    "benchmark": "name a folder for the results, as -o runs",
    "synthesize": "name a folder to write to, as -o made/",
    "train": "name the file to write, as -o prompts.safetensors",
}
_LIKE = {
    "fit": "fit good/ -o part.offn",
    "benchmark": "benchmark --data DATASET -o runs",
    "check": "datasets check DATASET",
    "predict": "predict part.offn new/",
    "calibrate": "calibrate part.offn more-good/",
    "add": "add part.offn false-alarm.png",
    "forget": "forget part.offn worn.png",
    "undo": "undo part.offn",
    "history": "history part.offn",
    "info": "info part.offn",
    "explain": "explain part.offn suspicious.png",
    "evaluate": "evaluate part.offn DATASET",
    "export": "export part.offn -o part.offx",
    "report": "report runs",
    "train": "train anomalyclip --data visa/ -o prompts.safetensors",
    "synthesize": "synthesize good/ -o made/ --kind nsa",
    "pull": "backbones pull dinov2_vits14",
}


def in_words(error: Any, command: str, args: Sequence[str]) -> str:
    """What is wrong with a command line that Typer refused, and what to do, in a line."""
    told = str(error.message).strip() if error.message else error.format_message().strip()
    param = getattr(error, "param", None)
    flags = getattr(param, "opts", None) or [""]
    flag = flags[0] if flags[0].startswith("-") else ""
    like = f"as `offnominal {_LIKE[command]}`" if command in _LIKE else "see --help"
    if type(error).__name__ == "MissingParameter":
        name = flag or str(getattr(param, "metavar", "") or "MODEL")
        if "-o" in flag and command in _NEEDED:
            models = [Path(one) for one in args if one.endswith(MODELS)]
            if command == "fit" and models:
                others = " ".join(one for one in args if not one.endswith(MODELS))
                like = f"`offnominal fit {others} -o {models[0].with_suffix('.offn')}`"
                return f"fit: the model file goes after -o: {like}"
            return f"{command}: {name} is missing; {_NEEDED[command]}"
        choices = getattr(getattr(param, "type_descriptor", None), "choices", None) or ()
        listed = f"one of {', '.join(map(str, choices))}, " if choices else ""
        return f"{command}: {name.strip('.')} is missing; {listed}{like}"
    if (found := re.search(r"'(.*)' is not one of (.*?)\.?$", told)) and flag:
        choices = re.findall(r"'([^']*)'", found[2])
        return f"{flag} {found[1]}: {meant(found[1], choices)}choose one of {', '.join(choices)}"
    if (found := re.search(r"valid (integer|number|float|int|boolean|bool)", told)) and flag:
        given = iter(_values(args, flags))
        kind = "a whole number" if found[1].startswith("int") else "a number"
        return f"{flag} {next(given, '')}: give {kind}"
    if found := re.search(r"unexpected extra argument(?:s|\(s\))? \((.*)\)", told):
        return f"{command} {found[1]}: more than the command takes; {like}"
    if found := re.search(r"Option '?([^' ]+)'? requires", told):
        return f"{found[1]}: give a value after it"
    if found := re.search(r"No such option:? '?([^' ]+)'?", told):
        near = meant(found[1], getattr(error, "possibilities", None) or ())
        return f"{found[1]}: no such option; {near}--help lists those that there are"
    return f"{flag}: {told}" if flag else f"{command}: {told}"


def _values(args: Sequence[str], flags: Sequence[str]) -> list[str]:
    """What a command line gives an option, the last one first."""
    found = [one.partition("=")[2] for one in args if one.partition("=")[0] in flags and "=" in one]
    found += [after for one, after in pairwise(args) if one in flags]
    return found[::-1]


def no_command(name: str, commands: Sequence[str]) -> str:
    """What to say of a command that there is not, or of a file in its place."""
    if name.endswith(MODELS) or is_model(Path(name)):
        return f"{name}: say first what to do, as `offnominal predict {name} new/`"
    if Path(name).exists():
        return f"{name}: say first what to do, as `offnominal fit {name} -o part.offn`"
    return f"{name}: no such command; {meant(name, commands)}`offnominal --help` lists them"


def check_model_given(model: Path, others: Sequence[str] = (), command: str = "predict") -> None:
    """Raise a :class:`ModelFileError` where the first argument is no model, but something else.

    ``others`` are the arguments behind it, which may have changed places with it.
    """
    what = what_is(model)
    # Of thousands of pictures behind a model none is opened.
    may_be = others if what != MODEL else [one for one in others if one.endswith(MODELS)]
    swapped = next((one for one in may_be if is_model(Path(one))), None)
    if what != MODEL and swapped:
        rest = " ".join([str(model), *(one for one in others if one != swapped)])
        raise ModelFileError(
            f"{model}: the model comes first, then the images: `offnominal {command} {swapped} "
            f"{rest}`"
        )
    if what == MODEL:
        if swapped:
            raise OptionError(f"{swapped}: is a model file, not a picture; give one model")
        return
    made = "a model file is made by `offnominal fit GOOD_DIR -o part.offn`"
    if model.suffix.lower() == ".onnx" and model.is_file():
        raise ModelFileError(
            f"{model}: an ONNX graph, which other programs run; give the model file that it was "
            "exported from, or an .offx"
        )
    if what == WEIGHTS:
        raise ModelFileError(
            f"{model}: not an Offnominal model file, but, by its name, of a network's weights; "
            f"{made}, and `fit` takes weights with --weights {model}"
        )
    if what == "a folder":
        there = [one for one in sorted(model.iterdir()) if one.suffix in MODELS]
        also = f"; there is {there[0]} in it" if there else ""
        raise ModelFileError(
            f"{model}: is a folder, not a model file{also}; a model file is made by `offnominal "
            f"fit {model} -o part.offn`"
        )
    if what == PICTURE:
        raise ModelFileError(
            f"{model}: a picture, not an Offnominal model file; the model comes first, and {made}"
        )
    if what:
        raise ModelFileError(f"{model}: {what}, not an Offnominal model file; {made}")
    if not model.exists():
        folder = model.parent if model.parent.is_dir() else Path()
        near = meant(model.name, [one.name for one in folder.iterdir() if one.suffix in MODELS])
        if model.suffix == ".offx":
            raise ModelFileError(
                f"{model}: does not exist; {near}a fitted model is exported by `offnominal export "
                f"part.offn -o {model.name}`"
            )
        name = model.name if model.suffix == ".offn" else "part.offn"
        raise ModelFileError(
            f"{model}: does not exist; {near}a model file is made by `offnominal fit GOOD_DIR -o "
            f"{name}`"
        )


def check_images_given(names: Sequence[str]) -> None:
    """Raise an :class:`OptionError` if none of the images is one, and what they are is plain.

    Among others they are told with those that cannot be read.
    """
    for name in names:
        if what_is(Path(name)) in ("", PICTURE, "a folder"):
            return
    if names:
        what = what_is(Path(names[0]))
        told = f"is {what}, not a picture of a part; name pictures, or folders"
        raise OptionError(f"{names[0]}: {told}")


def check_weights_given(weights: str | None) -> None:
    """Raise a :class:`WeightsError` if what ``--weights`` names is not there, or surely is none.

    Several files have commas between.
    """
    if weights is None:
        return
    for name in [weights] if Path(weights).exists() else weights.split(","):
        path = Path(name.strip())
        what = what_is(path)
        if what == MODEL:
            raise WeightsError(
                f"--weights {path}: is {MODEL}, not a network's weights; score images with "
                f"`offnominal predict {path} new/`, or leave --weights out"
            )
        if not path.exists():
            raise WeightsError(f"--weights {path}: does not exist; check the path")
        if what == "a folder":
            raise WeightsError(
                f"--weights {path}: is a folder, not a weights file; name a .safetensors or .pth "
                "file in it"
            )
        if what in (PICTURE, "a PDF", "a video", "a text file", "a GIF"):
            raise WeightsError(
                f"--weights {path}: is {what}; name a .safetensors or .pth file of a network"
            )


def check_device(device: str | None) -> None:
    """Raise an :class:`OptionError` for what is no device's name; if it is there, torch says."""
    if device is None or re.fullmatch(r"(auto|cpu|cuda|mps|xpu|hpu|xla|meta)(:\d+)?", device):
        return
    near = {"gpu": "cuda"}.get(device.lower().rstrip("0123456789:"), "")
    told = f"did you mean {near}? " if near else meant(device, ("auto", "cpu", "cuda", "cuda:0"))
    raise OptionError(f"--device {device}: {told}give auto, cpu, cuda or cuda:N")


def check_engine(engine: str | None) -> None:
    """Raise an :class:`OptionError` for what is no engine, or not installed."""
    from offnominal.engines.base import EngineName, engine_named
    from offnominal.engines.machine import check_installed

    known = get_args(EngineName)
    if engine is not None and engine not in known:
        near = {"onnx": "onnxruntime", "ort": "onnxruntime", "pytorch": "torch"}.get(engine.lower())
        told = f"did you mean {near}? " if near else meant(engine, known)
        raise OptionError(f"--engine {engine}: {told}give one of {', '.join(known)}")
    if (named := engine_named(engine or "auto")) != "auto":
        check_installed(named)
