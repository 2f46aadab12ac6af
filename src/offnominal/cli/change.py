"""What the commands share that change a model by single references."""

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from offnominal.cli.info_lines import describe_search
from offnominal.cli.terminal import say
from offnominal.errors import OptionError

if TYPE_CHECKING:
    from offnominal.detectors.base import Detector
    from offnominal.detectors.growing import Change

__all__ = ["Model", "Output", "When", "parse_when", "report_change"]

Model = Annotated[Path, typer.Argument(help="Model file made by `offnominal fit`.")]
Output = Annotated[
    Path | None,
    typer.Option("-o", "--output", help="Write here.", show_default="over the model file"),
]
When = Annotated[
    str | None,
    typer.Option(
        "--when",
        help="Time to note in the history: now, or as 2026-03-01T09:30.",
        show_default="none, so that the same steps give the same file",
    ),
]

_DONE = {
    "add": "learned",
    "forget": "forgot",
    "merge": "took over",
    "undo": "took back a step with",
    "compact": "dropped for good",
}
_SCORED = {
    "affected": "the other references' scores were brought up to date, exactly",
    "all": "every reference was scored anew",
    "kept": "the other references keep their scores, which can be too high but not too low",
    "none": "",
}


def parse_when(text: str | None) -> datetime | None:
    """The time that ``--when`` names."""
    if text is None:
        return None
    if text == "now":
        return datetime.now(UTC)
    try:
        return datetime.fromisoformat(text)
    except ValueError as error:
        raise OptionError(f"--when {text}: give now, or a time as 2026-03-01T09:30") from error


def report_change(change: "Change", detector: "Detector", output: Path) -> None:
    """Say what a step changed."""
    from offnominal.cli.fit import describe_threshold

    count = len(change.images)
    say(f"{output}: {_DONE[change.what]} {count} image{'s' if count != 1 else ''}")
    for name in change.images[:5]:
        say(f"             {name}")
    if count > 5:
        say(f"             and {count - 5} more")
    if change.known:
        say(f"  left out   {len(change.known)} that it knows already: {_first(change.known)}")
    say(f"  references {_from_to(*map(str, change.references))}")
    if any(change.rows):
        say(f"  bank       {_from_to(*(f'{rows:,}' for rows in change.rows))} patches")
    search = describe_search(detector, measured=False)
    for title, words in search:
        say(f"  {title:<11}{words}")
    say(f"  threshold  {describe_threshold(detector)}")
    before, after = (f"{each.value:.4g}" if each else "none" for each in change.threshold)
    moved = f"before: {before}" if before != after else ""
    scored = _SCORED[change.rescored]
    if search and not detector.promises:  # what the index misses, they miss
        scored = scored.removesuffix(", exactly")
    for told in (moved, scored, detector.calibration_note):
        if told:
            say(f"             {told}")


def _from_to(before: str, after: str) -> str:
    return before if before == after else f"{before} -> {after}"


def _first(names: tuple[str, ...]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
