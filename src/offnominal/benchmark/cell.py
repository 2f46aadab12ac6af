"""One cell of a benchmark: a method with its options, a category, some references."""

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from typing import Any, Literal

from offnominal.datasets.shots import Sampling

__all__ = ["SCORING_OPTIONS", "Cell", "Tested"]

# Options that act on patch scores only: cells that differ in nothing else share one fit and one
# pass over the test images.
SCORING_OPTIONS = ("aggregate", "smoothing", "false_reject")

_OF_LABELS = ("defects", "set_aside", "draw", "marked", "left_out", "tested")
Tested = Literal["all", "known", "left out"]


@dataclass(frozen=True)
class Cell:
    """What one result is the result of. Equal settings are the same cell on every machine.

    Attributes
    ----------
    dataset : str
        Name of the data set.
    category : str
    samples : str
        Digest of what the category's files hold, and their labels: a data set that changed gives
        other cells.
    method : str
        As the registry names it.
    shots : int or None
        Number of references; None: every training image; 0: none (batched zero-shot).
    seed : int
    sampling : {"first", "random"}
        How the references are drawn.
    options : dict
        The detector's options, all of them, as plain values; ``weights`` is a digest of the file.
    cached : bool
        Whether features may come from the cache, so that times are not those of the network.
    model : str or None
        Digest of the saved detector that was evaluated; None: fitted for the cell.
    defects : int
        Number of labelled defects that are learned from as well.
    set_aside : int
        Number of defects that this draw keeps from the test, the most that any of its cells learns
        from: all counts of a draw are tested on the same images. 0: labels play no part.
    draw : str
        Digest of the names of the defects that were set aside and of what is left to test on.
    marked : bool
        Whether their masks are known, or only that they are defective.
    left_out : str or None
        A kind of defect of which none is learned from.
    tested : {"all", "known", "left out"}
        The defects that are tested on: of all kinds, of those that may have been learned from, or
        of the one that was left out.
    """

    dataset: str
    category: str
    samples: str
    method: str
    shots: int | None
    seed: int
    sampling: Sampling
    options: dict[str, Any]
    cached: bool = True
    model: str | None = None
    defects: int = 0
    set_aside: int = 0
    draw: str = ""
    marked: bool = False
    left_out: str | None = None
    tested: Tested = "all"

    @property
    def name(self) -> str:
        """Name of the cell's folder: readable, and unlike that of any other cell."""
        shots = "full" if self.shots is None else f"{self.shots}shot"
        words = [self.dataset, self.category, self.method, shots, f"seed{self.seed}"]
        if self.set_aside:
            words.append(f"{self.defects}defects" + ("marked" if self.marked else ""))
            words += [] if self.tested == "all" else [self.tested]
        readable = "-".join(re.sub(r"[^A-Za-z0-9_.]+", "_", word) for word in words)
        return f"{readable}-{_digest(self._telling())[:10]}"

    @property
    def group(self) -> str:
        """Equal for cells that share a fit and the patch scores of every test image."""
        settings = self._telling()
        settings.pop("tested", None)
        settings["options"] = {
            name: value for name, value in self.options.items() if name not in SCORING_OPTIONS
        }
        return _digest(settings)

    def settings(self) -> dict[str, Any]:
        """Plain values for ``settings.json``."""
        return asdict(self)

    def _telling(self) -> dict[str, Any]:
        """What tells it from other cells: without labels the same as before there were any."""
        settings = asdict(self)
        if not self.set_aside:
            for name in _OF_LABELS:
                del settings[name]
        return settings


def _digest(value: object) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
