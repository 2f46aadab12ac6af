"""A detector as an estimator: its options, what it has learned, and files of both.

The names are scikit-learn's where it has one: ``get_params``, ``set_params``, and ``clone``, which
calls ``__sklearn_clone__``.
"""

from collections.abc import Callable, Mapping
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Self

from numpy.typing import NDArray

from offnominal import modelfile
from offnominal.detectors.judging import Judge
from offnominal.detectors.learned_state import (
    learned_arrays,
    learned_values,
    must,
    must_fit,
    parts,
    restore_learned,
)
from offnominal.detectors.options import option_defaults, refuse_unknown
from offnominal.detectors.references import References
from offnominal.errors import OffnominalError, OptionError
from offnominal.filekinds import is_model
from offnominal.memory import MemoryBank
from offnominal.synthesis.sizes import CELLS

__all__ = ["Estimator"]

_WHERE = ("device", "engine")


class Estimator(Judge):
    """Options that can be read, changed and copied; learned state that can be saved.

    Attributes
    ----------
    fitted : bool
        Whether a fit went through, or a file was opened.
    depths_ : list of int
        Bits of a channel, 8 or 16, of what was learned from.
    unverified : callable or None
        Where large arrays of a file are mapped: finds out whether they are as they were written.
    """

    method: ClassVar[str]
    # Options that nobody but a model file has named.
    unconfirmed: frozenset[str] = frozenset()

    fitted: bool
    depths_: list[int]
    unverified: Callable[[], None] | None

    # -- options ------------------------------------------------------------------------------

    @classmethod
    def option_defaults(cls) -> dict[str, Any]:
        """The constructor's arguments, all of them plain values, and their defaults."""
        return option_defaults(cls)

    def options(self) -> dict[str, Any]:
        """The constructor's arguments and their values, but for those that say where it runs."""
        return {name: getattr(self, name) for name in self.option_defaults() if name not in _WHERE}

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The constructor's arguments and their values, the device among them.

        ``deep`` makes no difference: no option is an estimator.
        """
        return {name: getattr(self, name) for name in self.option_defaults()}

    def set_params(self, **params: Any) -> Self:
        """Change options, each checked as the constructor does; what was learned is forgotten.

        Without any nothing happens. :meth:`rescored` changes the scoring of a fit and keeps it.

        Raises
        ------
        OptionError
            If there is no such option, or a value is out of range; nothing is changed then.
        """
        if params:
            other = self._afresh(params)
            vars(self).clear()
            vars(self).update(vars(other))
        return self

    def __sklearn_clone__(self) -> Self:
        """Another with the same options, that has learned nothing."""
        return self._afresh({})

    def _afresh(self, params: Mapping[str, Any]) -> Self:
        refuse_unknown(self.method, params, self.option_defaults())
        other = type(self)(**(deepcopy(self.get_params()) | dict(params)))
        # A copy asks nobody whom this one may not ask.
        other.unconfirmed = self.unconfirmed - params.keys()
        return other

    def __repr__(self) -> str:
        """The options that differ from their defaults, and what was learned, in a few words."""
        kind: Any = type(self)  # hashable, whatever its metaclass is thought to do
        usual, given = _usual_options(kind), self.get_params()
        changed = (f"{k}={v!r}" for k, v in given.items() if v != usual[k])
        name = f"{type(self).__name__}({', '.join(changed)})"
        if not self.fitted:
            return name
        count, names = len(self.references.active), self.categories
        told = f"{name} fitted on {count or 'no'} image{'s' * (count > 1)}"
        if len(names) > 1:
            told += f" of {len(names)} categories"
            if self.category is None:  # each has its own threshold
                return told
        threshold = self.threshold
        told += f", threshold {threshold.value:.4g}" if threshold else ", no threshold"
        return told if len(names) < 2 else f"{told} for {self.category!r}"

    def rescored(self, **changes: Any) -> Self:
        """A detector that has learned the same and scores it another way; thresholds are set anew.

        ``changes`` are of ``aggregate``, ``smoothing`` and ``false_reject``; any other raises an
        :class:`OptionError`. What was learned is shared, and stays as it is if the other grows.
        """
        for name in changes:
            if name not in ("aggregate", "smoothing", "false_reject"):
                raise OptionError(f"{name}: takes another fit; only the scoring can be changed")
        self.verify()
        other = self.twin(changes)
        other.category, other.unverified = self.category, self.unverified
        other.restore(deepcopy(self.header()), self.arrays())  # nothing that changes is shared
        other.good.remeasure(other.judged, other.references.active)
        return other

    def twin(self, changes: Mapping[str, Any]) -> Self:
        """Another with the same options, but for some, that has learned nothing yet."""
        return type(self)(**(self.options() | dict(changes)))

    # -- files --------------------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, atomically; :func:`offnominal.load` opens it.

        Raises
        ------
        OptionError
            If something else than a model is there, such as a picture; it stays as it is.
        """
        self.check_fitted()
        there = Path(path)
        if there.exists() and not (
            there.is_file() and (is_model(there) or not there.stat().st_size)
        ):
            raise OptionError(f"{path}: is there, and no model; name another file, as part.offn")
        modelfile.write(Path(path), self.header(), self.arrays())

    def header(self) -> dict[str, Any]:
        """All that is no array, as plain values."""
        return {
            "method": self.method,
            "leave_one_out": self.leave_one_out,
            "options": self.options(),
            "references": self.references.plain(),
            "learned": learned_values(self),
            "calibration": self.good.facts(),
        }

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Learned arrays and calibration scores; the backbone's weights are not among them."""
        return learned_arrays(self) | self.good.arrays()

    def restore(self, header: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
        """Take over what :meth:`header` and :meth:`arrays` gave, or raise a ModelFileError."""
        with must_fit():
            self.references = References.from_plain(header["references"])
            good = {n: a for n, a in arrays.items() if n.startswith("calibration.")}
            self.good.restore(good, header["calibration"])
            rest = {name: array for name, array in arrays.items() if name not in good}
            restore_learned(self, header["learned"], rest)
            self.check_learned()
        self.fitted = True  # no other can be saved
        self.good.choose(self.references.active)

    def check_learned(self) -> None:
        """Raise a ValueError unless what a file gave fits together: sizes, numbers, ranges."""
        known = range(len(self.references))
        must(set(self.depths_) <= {8, 16}, "depths of pictures that there are not")
        must(all(n in known for n in self.good.references.numbers), "scores of no reference")
        must(all(n < len(CELLS) for n in self.good.defects.numbers), "unknown synthetic defects")
        for bank in parts(self).values():
            if isinstance(bank, MemoryBank) and len(bank):
                must(known and int(bank.reference.min()) >= 0, "rows of no reference")
                last = max(int(bank.reference.max()), int(bank.loo_reference.max()))
                must(last < len(known), "rows of a reference that there is not")


@cache
def _usual_options(kind: type[Estimator]) -> dict[str, Any]:
    """Values that options have where nothing is said; a method may fill in what is None."""
    try:
        return kind().get_params()
    except OffnominalError:  # something has to be said
        return kind.option_defaults()
