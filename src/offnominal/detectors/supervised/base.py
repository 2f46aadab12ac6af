"""What methods share that learn from good and defective images."""

import hashlib
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter
from typing_extensions import TypedDict  # the one that pydantic takes before Python 3.12

from offnominal.checks import check_range
from offnominal.detectors.learned_state import must, must_fit
from offnominal.detectors.options import OnError
from offnominal.detectors.trained import Learned, TrainedDetector
from offnominal.errors import OptionError
from offnominal.images import content_digest, describe
from offnominal.labels.labelled import (
    ANY_KIND,
    UNKNOWN,
    Defects,
    Labelled,
    instances_of,
    labelled,
    target_of,
)
from offnominal.sizing import squared_mark
from offnominal.training.images import ImageStore
from offnominal.training.labels import Labels

__all__ = ["Defect", "Supervised"]


class Defect(TypedDict):
    """A defective image that was learned from: name, digest of its pixels, classes.

    ``marked``: whether it was known where the defect is.
    """

    file: str
    digest: str
    kinds: list[str]
    marked: bool


class _Labels(TypedDict):
    kinds: list[str]
    defects: list[Defect]


_LABELS = TypeAdapter[_Labels | None](_Labels | None)


class Supervised(TrainedDetector):
    """Base of the methods that are trained on good and on defective images.

    Parameters
    ----------
    defect_share : float or None
        Of the images of a step that are defective, above 0 and below 1; None: the method's own.
    **options
        See :class:`~offnominal.detectors.trained.TrainedDetector`, or
        :class:`~offnominal.detectors.trained_features.TrainedFeatureDetector`.
    """

    takes_defects: ClassVar[bool] = False  # on top: it is trained on them
    # Whether there is nothing to learn without defects.
    defects_needed: ClassVar[bool] = True
    default_share: ClassVar[float] = 0.5
    # What it makes of marks. A benchmark runs it without where they are ignored, with them where
    # they are needed, and once each otherwise.
    use_of_marks: ClassVar[Literal["ignored", "used", "needed"]] = "used"

    def __init__(self, defect_share: float | None = None, **options: Any) -> None:
        if defect_share is not None:
            check_range("defect_share", defect_share, above=0, below=1)
        super().__init__(**options)
        self.defect_share = defect_share
        self.batch_share = self.default_share if defect_share is None else defect_share

    def _clear(self) -> None:
        super()._clear()
        self.labels_: dict[str, Any] | None = None  # kinds_ and defects_, as a file has them

    @property
    def kinds_(self) -> list[str]:
        """Classes of the defects that it learned from, sorted; ``defect`` if nobody named any."""
        return list(self.labels_["kinds"]) if self.labels_ else []

    @property
    def defects_(self) -> list[Defect]:
        """The defective images that it learned from."""
        return list(self.labels_["defects"]) if self.labels_ else []

    def learned_digests(self) -> set[str]:
        """Digests of the images that it has learned from, the defective ones among them."""
        return super().learned_digests() | {one["digest"] for one in self.defects_}

    @property
    def class_names(self) -> Sequence[str]:
        """The same as :attr:`kinds_`."""
        return self.kinds_

    def refuse_defects(self) -> None:
        """Raise an :class:`OptionError`: defects are learned in the training."""
        raise OptionError(
            f"--defects: {self.method} learns from good and defective images at once; fit it "
            "anew with all of them"
        )

    def store_defects(
        self, defects: Defects, store: ImageStore, on_error: OnError | None
    ) -> Learned:
        """Take the defective images in, sized as the good ones are."""
        given = labelled(defects)
        if not given:
            if self.defects_needed:
                raise OptionError(
                    f"{self.method}: learns from defective images as well; give some, as --defects "
                    "bad/, or take a method that needs none, such as anomalydino"
                )
            return Learned(None, {})
        seen: list[Defect] = []
        # What is only known to be defective is of any of the classes, and none of its own.
        named = {kind for one in given for kind in one.kinds} - {ANY_KIND}
        self.labels_ = {"kinds": sorted(named) or [ANY_KIND], "defects": seen}
        known = {one.digest: one.file for one in self.references}
        by_source = {id(one.image): one for one in given}
        prepared = []
        names: dict[str, str] = {}
        for source, image in self.read([one.image for one in given], on_error):
            one, digest, file = by_source[id(source)], content_digest(image), describe(source)
            found = self._prepared(one, (image.shape[0], image.shape[1]))
            marks = hashlib.sha256(found[0].tobytes() + found[1].tobytes()).hexdigest()
            label = " ".join([digest, marks, *one.kinds])
            if digest in known:
                same = f"the same picture as {known[digest]}"
                if label in names.values():
                    continue  # an exact copy counts once, as of good images
                told = f"{same}, with other labels; leave one out"
                if not any(other["digest"] == digest for other in seen):
                    told = f"{same}; it is either good or defective"
                raise OptionError(f"{file}: {told}")
            known[digest] = file
            names[f"{file} ({len(names)})"] = label
            store.add(self.sized(image))
            prepared.append(found)
            marked = bool((found[0] != UNKNOWN).any())
            seen.append(Defect(file=file, digest=digest, kinds=[*one.kinds], marked=marked))
        if not prepared:
            raise OptionError(f"--defects: none of {len(given)} images could be read")
        targets, instances, kinds, of_marks = zip(*prepared, strict=True)
        return Learned(
            Labels(np.stack(targets), np.stack(instances), np.stack(kinds), of_marks), names
        )

    def _prepared(
        self, one: Labelled, size: tuple[int, int]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, tuple[int, ...]]:
        """Target, instances, classes, and the classes of its marks."""
        drawn = one.drawn(size, partial(squared_mark, full=self.full_side, side=self.side))
        square = (self.side, self.side)
        unknown = {mark.kind for mark in one.marks} - {*one.kinds, ANY_KIND}
        if unknown:
            raise OptionError(
                f"{describe(one.image)}: has a mark of {min(unknown)}, and its classes are "
                f"{', '.join(one.kinds)}: name it among them"
            )
        places = {kind: self.kinds_.index(kind) for kind in one.kinds if kind in self.kinds_}
        others = UNKNOWN if ANY_KIND in one.kinds else 0
        kinds = np.array([1 if k in places else others for k in self.kinds_], np.float32)
        # A mark of no class, in an image of one class, is of that; of several it may be of any.
        only = places.get(one.kinds[0], -1) if len(one.kinds) == 1 else -1
        of_marks = tuple(places.get(mark.kind, only) for mark in one.marks)
        return target_of(one.marks, drawn, square), instances_of(drawn, square), kinds, of_marks

    def restore(self, header: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
        """Take over what was learned; the classes first, for which networks are built."""
        with must_fit():
            told = _LABELS.validate_python(header["learned"]["labels_"])
            names = told["kinds"] if told else []
            must(names == sorted(set(names)), "classes that are not sorted")
            for one in told["defects"] if told else ():
                must(set(one["kinds"]) <= {*names, ANY_KIND}, "a defect of an unknown class")
            self.labels_ = dict(told) if told else None
        super().restore(header, arrays)
