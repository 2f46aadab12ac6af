"""What ``--search`` asks for: exact search, or an index with a target for its recall."""

from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import torch

from offnominal.errors import OptionError

__all__ = ["AUTO_ROWS", "LEAST_ROWS", "Kind", "SearchChoice", "load_faiss", "parse_search"]

Kind = Literal["exact", "auto", "ivf", "hnsw", "ivfpq", "disk"]

#: Rows from which ``auto`` builds an index. Below, exact search of the patches of an image takes
#: less than a quarter of a second on one core, which is little beside any network.
AUTO_ROWS = 2**16
#: Rows below which an index is refused.
LEAST_ROWS = 2**10
_RECALL = 0.99
_EXAMPLE = "give exact, recall=0.99, or a kind such as hnsw,recall=0.99"


@dataclass(frozen=True)
class SearchChoice:
    """How the nearest rows are found.

    Attributes
    ----------
    kind : {"exact", "auto", "ivf", "hnsw", "ivfpq", "disk"}
        ``auto`` is settled when the bank is there: see :meth:`settled`.
    recall : float
        In (0, 1]: share of the true nearest rows that the search must find; 1 for ``exact``.
    """

    kind: Kind
    recall: float

    def __str__(self) -> str:
        """The choice as ``--search`` takes it."""
        return self.kind if self.kind == "exact" else f"{self.kind},recall={self.recall:g}"

    def settled(self, rows: int, device: torch.device) -> "SearchChoice":
        """What ``auto`` stands for with a bank of so many rows; another kind is as it is.

        The rule is exact search below :data:`AUTO_ROWS` rows, and on a GPU, where the products of
        exact search are quick and FAISS' index would have to run on the CPU; ``ivf`` otherwise. It
        does not depend on the rows' length, which makes both searches slower alike.
        """
        if self.kind != "auto":
            return self
        if rows < AUTO_ROWS or device.type != "cpu":
            return SearchChoice("exact", 1.0)
        return SearchChoice("ivf", self.recall)


def parse_search(text: str) -> SearchChoice:
    """Read the option ``--search``.

    Parameters
    ----------
    text : str
        ``exact``; ``recall=R``; a kind (``auto``, ``ivf``, ``hnsw``, ``ivfpq``, ``disk``), whose
        recall is then 0.99; or a kind and ``recall=R`` with a comma between them.

    Raises
    ------
    OptionError
        If it is something else, or the recall is outside (0, 1].
    """
    kind: Kind | None = None
    recall: float | None = None
    for part in text.split(","):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if name == "recall" and equals and recall is None:
            recall = _recall(text, value)
        elif name in get_args(Kind) and not equals and kind is None:
            kind = cast(Kind, name)
        else:
            kinds = ", ".join(get_args(Kind))
            raise OptionError(
                f"--search {text!r}: {part.strip()!r} is neither recall=R nor one of {kinds}, or "
                f"is said twice; {_EXAMPLE}"
            )
    if kind == "exact":
        if recall is not None:
            raise OptionError(
                f"--search {text!r}: exact search finds every nearest row; leave out the recall, "
                "or exact"
            )
        return SearchChoice("exact", 1.0)
    return SearchChoice(kind or "auto", _RECALL if recall is None else recall)


def _recall(text: str, value: str) -> float:
    try:
        recall = float(value)
    except ValueError:
        recall = 0.0
    if not 0 < recall <= 1:
        raise OptionError(
            f"--search {text!r}: the recall is a share above 0 and up to 1; {_EXAMPLE}"
        )
    return recall


def load_faiss() -> Any:
    """Import FAISS, which is optional, and give it as many threads as PyTorch has.

    Raises
    ------
    OptionError
        If it is not installed.
    """
    try:
        import faiss
    except ImportError as error:
        raise OptionError(
            "--search: an index needs FAISS, which is not installed; run "
            "`pip install 'offnominal[scale]'`, or leave --search out for exact search"
        ) from error
    faiss.omp_set_num_threads(torch.get_num_threads())
    return faiss
