"""What the Tab key offers for the values of options; quick, so nothing heavy is imported."""

from collections.abc import Callable

import typer

__all__ = ["COMPLETIONS"]

Complete = Callable[[typer.Context, list[str], str], list[tuple[str, str]]]


def _methods(context: typer.Context, args: list[str], begun: str) -> list[tuple[str, str]]:
    from offnominal.detectors.methods import METHODS

    return [(method.name, method.about) for method in METHODS.values()]


def _trainable(context: typer.Context, args: list[str], begun: str) -> list[tuple[str, str]]:
    from offnominal.detectors.methods import POINT_TEACHER, REGAD, TEACHER, TRAINABLE_NAMES

    return [(name, "") for name in (*TRAINABLE_NAMES, TEACHER, POINT_TEACHER, REGAD)]


def _backbones(context: typer.Context, args: list[str], begun: str) -> list[tuple[str, str]]:
    from offnominal.backbones.catalogue import CATALOGUE, CLIP_TAGS, OPEN_CLIP

    found = [("auto", "the best that can be had")]
    found += [(each.name, each.about) for each in CATALOGUE.values()]
    return found + [(OPEN_CLIP + name, "CLIP with its text tower") for name in CLIP_TAGS]


def _layouts(context: typer.Context, args: list[str], begun: str) -> list[tuple[str, str]]:
    from offnominal.datasets.catalogue import LAYOUTS, PRESETS

    found = [("auto", "recognised by what is there")]
    found += [(each.name, each.about) for each in LAYOUTS.values()]
    return found + [(each.name, each.title) for each in PRESETS.values()]


def _words(*words: str) -> Complete:
    def complete(context: typer.Context, args: list[str], begun: str) -> list[tuple[str, str]]:
        return [(word, "") for word in words]

    return complete


def _kinds(context: typer.Context, args: list[str], begun: str) -> list[tuple[str, str]]:
    """Some of several words, with commas between."""
    from offnominal.cli.writer import KINDS

    done = begun.rpartition(",")[0]
    chosen = done.split(",") if done else []
    left = [kind for kind in KINDS if kind not in chosen]
    return [(",".join([*chosen, kind]), "") for kind in left]


COMPLETIONS: dict[str, Complete] = {
    "aggregate": _words("top1", "max", "mean", "map-max", "map-top1", "quantile99"),
    "backbone": _backbones,
    "device": _words("auto", "cpu", "cuda", "cuda:0"),
    "engine": _words("auto", "torch", "onnxruntime", "openvino"),
    "false_reject": _words("auto", "0.01", "0.02", "0.05"),
    "layout": _layouts,
    "method": _methods,
    "names": _backbones,
    "refine": _words("auto"),
    "rotations": _words("auto", "none", "agnostic"),
    "save": _kinds,
    "sixteen_bit": _words("range"),
    "trainable": _trainable,
    "when": _words("now", "none"),
}
"""By the name of an argument; whatever else is a file, or a word that nobody can guess."""
