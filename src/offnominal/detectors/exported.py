"""The detector that runs a whole exported program, for methods without a memory bank."""

from collections.abc import Mapping
from typing import Any, ClassVar, NoReturn, Self, get_args

import numpy as np
from numpy.typing import NDArray

from offnominal.detectors.deciding import LeaveOneOut
from offnominal.detectors.deployed import EXPORTED, Deployed, SquareSizing
from offnominal.detectors.features import ViewScores, joined
from offnominal.detectors.knowing import KnowingDetector
from offnominal.detectors.learned_state import must, must_fit
from offnominal.engines.base import restored
from offnominal.engines.choose import SETTLING, settle
from offnominal.engines.network import ExportedNetwork
from offnominal.errors import OptionError
from offnominal.scoring import Scores, Size
from offnominal.views import View, square_view, unseen, whole_view

__all__ = ["Exported"]

_COMMON = ("aggregate", "sixteen_bit", "smoothing", "false_reject")
_CHANGE = ("aggregate", "smoothing", "false_reject")


class Exported(KnowingDetector):
    """A fitted detector whose whole program was exported: it judges, and learns nothing more.

    Parameters
    ----------
    kind : type or Exported
        The class of the detector that was exported, a stand-in with its class attributes, or
        another of the same.
    header : mapping
        Of the model file; its options are of the right types.
    deployed : Deployed
        With a program.
    device : {"auto", "cpu"}
        A program runs on the CPU; the first image says so of any other.
    engine : {"auto", "onnxruntime", "openvino"}
        What runs it.

    Raises
    ------
    ModelFileError
        If the header does not say what its method's would.
    """

    method: ClassVar[str] = "exported"
    precision: ClassVar[str] = "fp32"

    def __init__(
        self,
        kind: Any,
        header: Mapping[str, Any],
        deployed: Deployed,
        device: str = "auto",
        engine: str = "auto",
    ) -> None:
        told = {name: getattr(kind, name) for name in ("own_score", "extrapolates", "judges_alone")}
        vars(self).update(told, method=header["method"])
        with must_fit():
            self._options: dict[str, Any] = dict(header["options"])
            super().__init__(**{name: self._options[name] for name in _COMMON})
            must(header["leave_one_out"] in get_args(LeaveOneOut), "unknown way to leave one out")
            about = header.get("backbone", {"name": "", "digest": ""})
            must(all(isinstance(about[name], str) for name in ("name", "digest")), "no backbone")
        self._header = header
        self.deployed = deployed
        self.network = deployed.network
        self.device, self.engine = device, engine
        self._engine: Any = None

    @property
    def leave_one_out(self) -> LeaveOneOut:
        """As the detector had it that was exported."""
        found: LeaveOneOut = self._header["leave_one_out"]
        return found

    @property
    def bank_rows(self) -> int:
        """As many patches as the detector had that was exported."""
        return self.references.steps[-1].rows if self.references.steps else 0

    def __repr__(self) -> str:
        """The method, and what was learned, in a few words."""
        return f"Exported({self.method!r}) fitted on {len(self.references.active)} images"

    # -- judging ------------------------------------------------------------------------------

    @property
    def engine_in_force(self) -> str:
        """The engine that runs; empty before the first image."""
        return self._engine.name if self._engine else ""

    def load_network(self) -> ExportedNetwork:
        """The program, in the place of a network."""
        return self.network

    def views(self, image: np.ndarray) -> list[View]:
        """An image, uint8 (H, W, 3), as the program takes it."""
        net, how = self.network, self.deployed.sizing
        if isinstance(how, SquareSizing):
            return [square_view(image, how.full, how.side, how.resample, net.mean, net.std)]
        assert how is not None
        return [whole_view(image, how.resolution, net.multiple, how.resize, net.mean, net.std)]

    def score(self, image: np.ndarray, without: int | None = None) -> Scores:
        """What the score and the map of an image are made of."""
        [view] = self.views(image)
        named = self._run(view)
        single = {n: float(named[n].ravel()[0]) for n in ("image", "weight") if n in named}
        told = ViewScores(named["patches"], single.get("image"), single.get("weight"))
        scores = joined([view], [told])
        if "features" in named:
            return self.as_known(scores, named["features"])
        if "kinds" not in named:
            return scores
        with must_fit():
            names = self._header["learned"]["labels_"]["kinds"]
            likely = dict(zip(names, named["kinds"].ravel().tolist(), strict=True))
        return scores._replace(kinds=likely)

    def patch_features(self, image: np.ndarray, grid: Size) -> NDArray[np.float32]:
        """Features (D, *grid) of an image's patches, where it knows defects."""
        return self._run(self.views(image)[0])["features"]

    def _run(self, view: View) -> dict[str, NDArray[np.float32]]:
        """What the program gives of a view, by its name."""
        if self._engine is None:
            with SETTLING:  # by the first of several threads
                self._engine = self._engine or settle(self, view.pixels)
        engine = self._engine
        given = restored(engine.structure, engine(view.pixels[None]))
        return dict(zip(self.deployed.outputs, given, strict=True))

    def not_inspected(self, size: Size) -> str | None:
        """What of an image (H, W) is never looked at, in words; None: all of it is."""
        return unseen(self.views(np.zeros((*size, 3), np.uint8)), size)

    # -- what it cannot do --------------------------------------------------------------------

    def learn(self, number: int, image: np.ndarray) -> NoReturn:
        """Raise an :class:`OptionError`: a program learns nothing."""
        raise OptionError(
            f"an exported model of {self.method} learns nothing more: fit anew, and export that"
        )

    def score_reference(self, number: int, kept: Any) -> NoReturn:
        """Raise an :class:`OptionError`, as :meth:`learn` does."""
        self.learn(number, kept)

    def refuse_defects(self) -> NoReturn:
        """Raise an :class:`OptionError`, as :meth:`learn` does."""
        self.learn(0, np.empty(0))

    def _fit(self, *args: Any) -> NoReturn:
        self.learn(0, np.empty(0))

    # -- options and files --------------------------------------------------------------------

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The options of the detector that was exported, as they are now, and what runs it."""
        return self.options() | {"device": self.device, "engine": self.engine}

    def set_params(self, **params: Any) -> Self:
        """Raise an :class:`OptionError` if anything is to be changed: it takes another fit."""
        if params:
            raise OptionError(
                f"{', '.join(params)}: an exported model of {self.method} keeps its options: fit "
                "anew, and export that; rescored() changes aggregate, smoothing and false_reject"
            )
        return self

    def __sklearn_clone__(self) -> NoReturn:
        """Raise an :class:`OptionError`: what has learned nothing yet could not learn."""
        raise OptionError(
            f"an exported model of {self.method} cannot be cloned, since a clone has to be fitted: "
            "clone the model that was exported, or copy this one with copy.deepcopy"
        )

    def options(self) -> dict[str, Any]:
        """Those of the detector that was exported, as they are now."""
        return {k: getattr(self, k, v) if k in _CHANGE else v for k, v in self._options.items()}

    def twin(self, changes: Mapping[str, Any]) -> Self:
        """Another of the same program, with some options changed."""
        header = dict(self._header) | {"options": self.options() | dict(changes)}
        other = type(self)(self, header, self.deployed, self.device, self.engine)
        other._engine = self._engine
        return other

    def header(self) -> dict[str, Any]:
        """All that is no array, as plain values."""
        known = self._header
        own = {name: known[name] for name in ("backbone", "learned") if name in known}
        found = super().header()
        learned = {"learned": dict(known["learned"]) | found["learned"]}
        return found | own | learned | {"export": self.deployed.section()}

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The graph and calibration scores."""
        return super().arrays() | {EXPORTED: self.deployed.array()}

    def restore(self, header: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
        """Take over what is decided by; what was learned is in the graph."""
        with must_fit():
            learned = {"depths_": header["learned"]["depths_"]}
            features = "features" in self.deployed.outputs
            must(features is ("known" in header), "known defects without features to tell them by")
        rest = {name: array for name, array in arrays.items() if name != EXPORTED}
        super().restore(dict(header) | {"learned": learned}, rest)
