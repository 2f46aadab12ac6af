"""What a model file says of itself: its header and its scores of good images, without torch."""

import inspect
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from offnominal import modelfile
from offnominal.detectors.deciding import Decider, LeaveOneOut
from offnominal.detectors.methods import METHODS
from offnominal.detectors.references import References
from offnominal.detectors.registry import light_class, load
from offnominal.detectors.signatures import option_defaults
from offnominal.errors import ModelFileError
from offnominal.good_scores import GoodScores
from offnominal.text import brief

__all__ = ["Card"]


class _Network(BaseModel):
    """What a header says of a backbone."""

    model_config = ConfigDict(extra="allow", strict=True)

    name: str
    digest: str
    note: str = ""


class _Part(BaseModel):
    """A header as far as its backbone goes: the detector's, or an ensemble's member's."""

    model_config = ConfigDict(extra="allow", strict=True)

    backbone: _Network | None = None
    members: list["_Part"] = []


class Card(Decider):
    """A model file, read as far as it takes to say what it is and by what it decides.

    What the detector learned that is a plain value, and its options, are attributes, as they are of
    the detector.

    Parameters
    ----------
    path : Path
    weights : str or None
        Only for files of earlier versions, which do not say how their references were scored: the
        detector is opened for that.

    Raises
    ------
    ModelFileError
        If the file cannot be used.
    """

    def __init__(self, path: Path, weights: str | None = None) -> None:
        self.header = header = modelfile.read_header(path)
        self.method: str = header["method"]
        if self.method not in METHODS:
            raise ModelFileError(
                f"{path}: made by the method {brief(repr(self.method))}, which this version lacks"
            )
        kind: Any = light_class(self.method)
        self.option_defaults = option_defaults(kind)
        self.extrapolates, self.judges_alone = kind.extrapolates, kind.judges_alone  # type: ignore[misc]  # of the class there
        try:
            _Part.model_validate(header)
            learned = header["learned"].items()
            known = {name: value for name, value in learned if name.endswith("_")}
            # What a file does not say is as the constructor has it.
            empty = inspect.Parameter.empty
            usual = {n: one for n, one in self.option_defaults.items() if one is not empty}
            vars(self).update(usual | known | header["options"])
            self.references = References.from_plain(header["references"])
            self.good = GoodScores()
            arrays = modelfile.read(path, header, only="calibration.")
            self.good.restore(arrays, header["calibration"])
            self.bank_rows = self.references.steps[-1].rows
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise ModelFileError(
                f"{path}: its contents do not fit its method ({brief(error)}); fit it anew"
            ) from error
        self.good.choose(self.references.active)
        told = header.get("leave_one_out")
        self._leave_one_out = told or load(path, weights, "cpu").leave_one_out

    @property
    def leave_one_out(self) -> LeaveOneOut:
        """How references were scored."""
        return self._leave_one_out

    def options(self) -> dict[str, Any]:
        """The constructor's arguments and their values."""
        return {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in self.header["options"].items()
        }
