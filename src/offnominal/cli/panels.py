"""Under which heading the help lists an option, and in which order the headings come."""

from collections.abc import Sequence
from typing import Any

__all__ = ["ADVANCED", "in_order"]

GIVEN = "What you give"
USUAL, SIZING, TRAINING = "Most used", "How images are sized", "Training"
ADVANCED = "Advanced, and hardware"

_PANELS = {
    **dict.fromkeys(("output", "method"), GIVEN),
    **dict.fromkeys(("backbone", "weights", "shots", "false_reject", "categories"), USUAL),
    **dict.fromkeys(("resolution", "resize", "tile", "sixteen_bit"), SIZING),
    **dict.fromkeys(
        ("steps", "budget", "batch", "lr_scale", "augment", "hold_back", "choose", "devices",
         "compiled", "overwrite"), TRAINING),
    **dict.fromkeys(
        ("sets", "seed", "synthetic", "refine", "strict", "when", "precision", "device", "engine",
         "storage", "calibrate_on", "smoothing", "layers"), ADVANCED),
}  # fmt: skip


def in_order(params: Sequence[Any]) -> list[Any]:
    """Parameters of a command under their headings, the usual ones first."""
    order = {name: number for number, name in enumerate(_PANELS)}
    panels = [GIVEN, USUAL, SIZING, "", TRAINING, ADVANCED]

    def place(param: Any) -> tuple[int, int]:
        name = str(param.name).removeprefix("option_")  # of a method's
        if param.param_type_name == "argument":
            return -1, 0
        param.rich_help_panel = _PANELS.get(name, param.rich_help_panel or GIVEN)
        panel = param.rich_help_panel
        at = panels.index(panel) if panel in panels else panels.index("")
        return at, order.get(name, -1) if panel in panels else 0

    return sorted(params, key=place)
