"""Detectors over a backbone: pixels in, features compared with what good parts showed."""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self, cast

import numpy as np
from numpy.typing import NDArray

from offnominal.checks import check_choice, check_range
from offnominal.detectors.backboned import BackboneDetector
from offnominal.detectors.knowing import KnowingDetector
from offnominal.detectors.options import EngineName
from offnominal.engines import choose
from offnominal.engines.base import Engine, restored
from offnominal.engines.same import read_engine
from offnominal.errors import OptionError
from offnominal.scoring import Scores, Size
from offnominal.sizing import Resize
from offnominal.tensors import as_tensors, is_tensor, no_gradients, to_numpy
from offnominal.views import View, merge, tiled_views, unflipped, unseen, whole_view

if TYPE_CHECKING:
    from torch import Tensor

    from offnominal.backbones.base import Backbone
    from offnominal.engines.network import ExportedNetwork

__all__ = [
    "FeatureDetector",
    "ViewScores",
    "joined",
    "tokens_of",
]

_LARGEST = 2**14  # pixels of a side that a network is given


class ViewScores(NamedTuple):
    """What a method says of one view.

    Attributes
    ----------
    patches : array or Tensor of shape (gh, gw), float32
    image : number, array or Tensor, or None
        Where the method scores the view itself, beside its patches.
    weight : number, array or Tensor, or None
        Multiplies the statistic of the patches; None: 1.
    kinds : array or Tensor of shape (K,), or None
        How likely each class of defects is, on [0, 1], where a method knows some.
    category : str or None
        The category of part that it was taken for, where a method recognises several.
    """

    patches: Any
    image: Any = None
    weight: Any = None
    kinds: Any = None
    category: str | None = None


class FeatureDetector(KnowingDetector, BackboneDetector):
    """A detector whose patches are features of a backbone.

    A method writes :meth:`learn_features` and :meth:`compare`, and where it needs to
    :meth:`embed`, :meth:`finish` and :meth:`begin`. Learning, scoring, leave-one-out, tiles and
    files follow from these.

    Parameters
    ----------
    resolution : int or None
        Length of the image's smaller side in pixels (of both with ``resize="square"``); None: the
        backbone's default, which is 448 for DINOv2.
    resize : {"short", "crop", "square"} or None
        ``short`` keeps the aspect ratio but for less than half a patch: each side is rounded to
        whole patches, so that all of the image is seen; ``crop`` keeps it and cuts off what does
        not fill a patch, as the released codes do; ``square`` squashes. None: the backbone's.
    tile : int or None
        Side of overlapping tiles at full resolution, in pixels, for very large images.
    engine : {"auto", "torch", "onnxruntime", "openvino"}
        What runs the network; ``auto``: on a CPU the fastest of those that are installed. Like the
        device it is not stored in the saved detector.
    **options
        See :class:`~offnominal.detectors.backboned.BackboneDetector`.
    """

    # The paper's resolution for families of backbones; others have their own.
    default_resolutions: ClassVar[Mapping[str, int]] = {}
    takes_tiles: ClassVar[bool] = True
    # Whether features are handed to the method as arrays; as tensors otherwise.
    speaks_arrays: ClassVar[bool] = False
    # Whether `embed` can be written down as a graph, which other engines than torch run. A class
    # that has an `embed` of its own says so itself.
    exports: ClassVar[bool] = False
    # Options that `embed` depends on, beside the network and its levels.
    embedding: ClassVar[tuple[str, ...]] = ()
    # Whether what is made of a reference depends on it and the options alone, so that other
    # processes can make it. A class that has a `learn` or a `look` of its own says so itself.
    looks: ClassVar[bool] = False
    # The options by which a part of the image can be left out.
    cropping: ClassVar[str] = "--resize crop"

    def __init__(
        self,
        resolution: int | None = None,
        resize: Resize | None = None,
        tile: int | None = None,
        engine: EngineName = "auto",
        **options: Any,
    ) -> None:
        super().__init__(**options)
        check_choice("engine", engine, EngineName)
        if resize is not None:
            check_choice("resize", resize, Resize)
        for name, pixels in (("resolution", resolution), ("tile", tile)):
            if pixels is not None:
                check_range(name, pixels, least=1, most=_LARGEST)
                if pixels != int(pixels):
                    raise OptionError(f"--{name} {pixels}: give a whole number of pixels")
        if tile and not self.takes_tiles:
            raise OptionError(
                f"--tile {tile}: {self.method} looks at images as a whole; leave it out, or "
                "choose a method that judges patches, such as anomalydino"
            )
        self.resolution = resolution
        self.resize = resize
        self.tile = tile
        self.engine: EngineName = engine
        self._engine: Engine | None = None  # chosen on the first image
        self.learned_by = ""  # the engine whose features it knows, once it knows some
        self._geometry: dict[Size, list[View]] = {}
        # Tells what :meth:`look` made of a reference elsewhere; None: it is looked at here.
        self.looked_at: Callable[[int], list[Any]] | None = None

    # -- what a method writes -----------------------------------------------------------------

    def embed(self, pixels: "Tensor") -> Any:
        """Features of one view (3, h, w) as a tensor or several: (D, gh, gw) here.

        Nothing but tensor operations, so that other engines can run it.
        """
        return self.features(pixels[None])[0]

    def patches_of(self, features: Any) -> Any:
        """What :meth:`embedded` gave as features of patches (D, gh, gw), on the scores' grid.

        Known defects are told by these, and the mask of a background is made of them.
        """
        return features

    def learn_features(self, number: int, features: Any, view: int, upright: bool) -> None:
        """Learn from a view of a reference.

        Parameters
        ----------
        number : int
            Of the reference.
        features : what :meth:`embedded` gave
        view : int
            Place of the view in :meth:`reference_views`.
        upright : bool
            Whether new images are looked at so too.
        """

    @abstractmethod
    def compare(self, features: Any, without: int | None = None) -> ViewScores:
        """Score a view by its features, as if reference ``without`` had never been learned."""

    def default_resolution(self, network: "Backbone") -> int:
        """Resolution where the option names none."""
        return self.default_resolutions.get(network.family, network.resolution)

    def views(self, image: np.ndarray) -> list[View]:
        """An image, uint8 (H, W, 3), sized for the backbone, or cut into tiles."""
        net = self.load_network()
        if self.tile:
            return tiled_views(image, self.tile, net.multiple, net.mean, net.std)
        resolution = self.resolution or self.default_resolution(net)
        resize = self.resize or net.resize
        return [whole_view(image, resolution, net.multiple, resize, net.mean, net.std)]

    def reference_views(self, image: np.ndarray) -> list[View]:
        """The same of a reference: those of :meth:`views` first, then turned or flipped ones."""
        return self.views(image)

    # -- what follows -------------------------------------------------------------------------

    def embedded(self, pixels: NDArray[np.float32]) -> Any:
        """Features of one view (3, h, w) by the engine, as the method speaks of them."""
        engine = self._settled(pixels)
        self.learned_by = self.learned_by or engine.name
        if engine.name != "torch":
            arrays = restored(engine.structure, engine(pixels[None]))
            return arrays if self.speaks_arrays else as_tensors(arrays)
        from torch import from_numpy

        with no_gradients():
            found = self.embed(from_numpy(pixels))
        return _as_arrays(found) if self.speaks_arrays else found

    def _settled(self, pixels: NDArray[np.float32]) -> Engine:
        """The engine, chosen once by the first of several threads."""
        if self._engine is None:
            with choose.SETTLING:
                if self._engine is None:
                    self._engine = choose.settle(self, pixels)
        return self._engine

    def load_network(self) -> "Backbone":
        """The backbone, or a graph of it that was written down before: then torch is not needed."""
        if self.network is not None:
            return self.network
        with choose.SETTLING:  # of several threads one builds it
            if self.network is None and (found := choose.ready(self)) is not None:
                self.network = cast("Backbone", found)
            return super().load_network()

    def use_network(self, network: "Backbone", shared: bool = True) -> None:
        """Adopt a backbone; of one that nobody else uses, only the levels that are needed."""
        self._engine = None
        super().use_network(network, shared)

    def twin(self, changes: Mapping[str, Any]) -> Self:
        """Another with the same options, but for some, on the same network and by its engine."""
        other = super().twin(changes)
        other.engine = self.engine
        same = other.embed_options() == self.embed_options() and other.precision == self.precision
        if same and self.engine_in_force != "torch":  # torch's is of this detector
            other._engine = self._engine
        return other

    def use_graph(self, network: "ExportedNetwork") -> None:
        """Have a graph run in the place of the backbone, one that was written down of it."""
        self._engine = None
        self.engine = "auto" if self.engine == "torch" else self.engine  # which runs no graph
        self.network = cast("Backbone", network)

    def run_by(self, engine: EngineName) -> Self:
        """The same on the CPU with its network run by an engine; what was learned is shared."""
        other = copy(self)
        other.device, other.engine, other._engine = "cpu", engine, None
        return other

    def embed_options(self) -> dict[str, Any]:
        """The options that :meth:`embed` depends on, beside the network and its levels."""
        return {name: getattr(self, name) for name in self.embedding}

    @property
    def engine_in_force(self) -> str:
        """The engine that runs, such as ``onnxruntime``; empty before the first image."""
        return self._engine.name if self._engine else ""

    def header(self) -> dict[str, Any]:
        """All that is no array; and the engine of what was learned, unless it is float32."""
        by = {"engine": self.learned_by} if self.learned_by and self.precision != "fp32" else {}
        return super().header() | by

    def restore(self, header: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
        """Take over what was learned, if the backbone is the one that it was learned with."""
        self.learned_by = read_engine(header)
        super().restore(header, arrays)

    def learn(self, number: int, image: np.ndarray) -> Any:
        """Take in one good image; features of its upright views are what is kept."""
        kept = []
        looked = self.looked_at(number) if self.looked_at else None
        for place, view in enumerate(self.reference_views(image)):
            self.match_parts(view.pixels)
            features = self.embedded(view.pixels) if looked is None else looked[place]
            self.learn_features(number, features, place, view.upright)
            if view.upright:
                kept.append(features)
        return kept

    def look(self, number: int, image: np.ndarray) -> list[Any]:
        """What takes the time of :meth:`learn` and needs nothing learned: features of the views.

        Arrays, tensors, and lists and tuples of them.
        """
        return [self.embedded(view.pixels) for view in self.reference_views(image)]

    def score(self, image: np.ndarray, without: int | None = None) -> Scores:
        """What the score and the map of an image are made of, as if ``without`` were not known."""
        views = self.views(image)
        each = [self.embedded(view.pixels) for view in views]
        found = joined(views, [self.compare(features, without) for features in each])
        if self.known_defects is None:
            return found
        return self.as_known(found, self._upright(views[0], each[0]))

    def patch_features(self, image: np.ndarray, grid: Size) -> Any:
        """Features (D, *grid) of the first view's patches, set upright."""
        view = self.views(image)[0]
        return self._upright(view, self.embedded(view.pixels))

    def _upright(self, view: View, features: Any) -> NDArray[np.float32]:
        return unflipped(to_numpy(self.patches_of(features)), view)

    def refuse_defects(self) -> None:
        """Raise an :class:`OptionError` where no defects can be known: among tiles, none."""
        super().refuse_defects()
        if self.tile:
            raise OptionError(
                f"--tile {self.tile} --defects: overlapping tiles have no one grid of patches that "
                "known defects could be told by; leave one of the two out"
            )

    def score_reference(self, number: int, kept: Any) -> Scores:
        """Score a reference's features as if it had never been learned."""
        views = self.views_of(self.references[number].size)
        return joined(views, [self.compare(features, without=number) for features in kept])

    def __call__(self, pixels: "Tensor", size: Size | None = None) -> tuple["Tensor", "Tensor"]:
        """Image scores and patch scores of a batch of prepared pixels.

        Parameters
        ----------
        pixels : Tensor of shape (B, 3, h, w), float32
        size : (H, W) or None
            The images' own size, which ``aggregate="map-max"`` depends on; None: (h, w).

        Returns
        -------
        scores : Tensor of shape (B,), float32
        patch_scores : Tensor of shape (B, gh, gw), float32
        """
        import torch

        self.verify()
        seen: Size = (pixels.shape[-2], pixels.shape[-1])
        window = None if size is None or self.tile else self.views_of(size)[0].window
        embedded = [self.embed(one) for one in pixels]
        found = [self.compare(_as_arrays(one) if self.speaks_arrays else one) for one in embedded]
        each = [one_view(one, seen)._replace(window=window) for one in found]
        if self.known_defects is not None:
            known = [self.patches_of(one) for one in embedded]
            each = [self.as_known(*pair) for pair in zip(each, known, strict=True)]
        scores = [self.image_score(one, size or seen) for one in each]
        made = found if self.known_defects is None else each
        patches = torch.stack([torch.as_tensor(one.patches) for one in made])
        return torch.tensor(scores, device=patches.device), patches

    def views_of(self, size: Size) -> list[View]:
        """Upright views of any image (H, W), for where they lie; their pixels mean nothing."""
        if size not in self._geometry:
            if len(self._geometry) > 16:
                self._geometry.clear()
            self._geometry[size] = self.views(np.zeros((*size, 3), np.uint8))
        return self._geometry[size]

    def not_inspected(self, size: Size) -> str | None:
        """What of an image (H, W) no view shows, in words; None: all of it is looked at."""
        told = unseen(self.views_of(size), size)
        return told and f"{told}; leave out {self.cropping} to see all of it"


def one_view(found: ViewScores, seen: Size) -> Scores:
    """Scores of an image that was looked at once, at a size (h, w)."""
    return Scores(
        to_numpy(found.patches).astype(np.float32, copy=False),
        None if found.image is None else float(found.image),
        1.0 if found.weight is None else float(found.weight),
        None,
        seen[0] // found.patches.shape[0],
        category=found.category,
    )


def joined(views: Sequence[View], found: Sequence[ViewScores]) -> Scores:
    """Scores of an image from those of its views."""
    each = [one_view(one, view.size) for one, view in zip(found, views, strict=True)]
    patches, window = merge(views, [one.patches for one in each])
    # Of several views the most anomalous one speaks for the image.
    worst = max(each, key=lambda one: float(one.patches.max()))
    return worst._replace(patches=patches, window=window)


def tokens_of(features: Any) -> Any:
    """Patch features (D, gh, gw), a tensor or an array, as rows (gh * gw, D)."""
    if is_tensor(features):
        return features.flatten(1).T.contiguous()
    return np.ascontiguousarray(features.reshape(len(features), -1).T)


def _as_arrays(features: Any) -> Any:
    if is_tensor(features):
        return to_numpy(features.float())
    return tuple(_as_arrays(one) for one in features)
