"""What the registry knows of a method, without importing it."""

from dataclasses import dataclass
from typing import Literal

__all__ = ["Method"]


@dataclass(frozen=True)
class Method:
    """One line of the registry.

    Parameters
    ----------
    name : str
        As ``--method`` takes it.
    target : str
        ``module:class``, imported on use.
    needs : str
        What it learns from.
    about : str
        What it does, in a line.
    paper : str
        Authors, year, and where to find it.
    references : {"required", "optional", "none"}
        Whether it is fitted to good images.
    batched : bool
        Whether it scores the images of a batch by each other, so that there is nothing to fit.
    grows : {"no", "adds", "all"}
        What it can do without another fit: nothing, ``add``, or ``add``, ``forget`` and ``undo``.
    defects : {"none", "optional", "required"}
        Whether it learns from defective images beside good ones: trains on them, or, of those
        that train nothing, knows them on top of what good ones showed.
    """

    name: str
    target: str
    needs: str
    about: str
    paper: str
    references: Literal["required", "optional", "none"] = "required"
    batched: bool = False
    grows: Literal["no", "adds", "all"] = "no"
    defects: Literal["none", "optional", "required"] = "none"
