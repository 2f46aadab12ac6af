"""How a subspace learns from further images, and goes back a step."""

from collections.abc import Iterable
from datetime import datetime
from typing import TYPE_CHECKING, Any

import torch

from offnominal.detectors.growing import Change, Rescored, Version
from offnominal.detectors.steps import plain_step, versions
from offnominal.detectors.thresholds import pack, unpack
from offnominal.errors import OptionError
from offnominal.images import ImageSource, content_digest, describe
from offnominal.memory import MemoryBank

if TYPE_CHECKING:
    from offnominal.detectors.base import OnError, Progress
    from offnominal.detectors.subspacead import Held, SubspaceAD

__all__ = ["add", "history", "undo"]


@torch.inference_mode()
def add(
    detector: "SubspaceAD",
    images: Iterable[ImageSource],
    on_error: "OnError | None",
    progress: "Progress | None",
    when: datetime | None,
) -> Change:
    """See :meth:`~offnominal.detectors.subspacead.SubspaceAD.add`."""
    detector.load_network()
    digests = {reference["digest"] for reference in detector.references_}
    count, rows, threshold = len(detector.references_), detector.bank_rows, detector.threshold
    angles, total = detector.angles_, detector.moments
    detector.angles_ = list(angles)
    held: dict[int, Held] = {}
    added: list[dict[str, Any]] = []
    known: list[str] = []
    try:
        for source, image in detector._read(images, on_error):
            digest, owner = content_digest(image), count + len(added)
            if digest in digests:
                known.append(describe(source))
                continue
            digests.add(digest)
            if detector.nearest:
                _settle_width(detector.bank)
            held[owner] = detector._observe(owner, image)
            total = total.plus(held[owner].moments)
            size = list(image.shape[:2])
            added.append({"file": describe(source), "digest": digest, "owner": owner, "size": size})
            if progress:
                progress("features", len(added))
        scored = []
        for number, (owner, own) in enumerate(held.items(), start=1):
            scored.append(detector._score_without(total, owner, own))
            if progress:
                progress("threshold", number)
    except BaseException:
        detector.angles_ = angles
        detector.bank.forget(range(count, count + len(added) + 1))
        raise
    how: Rescored = "none"
    if added:
        if not detector.history_:  # a file of before there was one
            detector.history_ = [plain_step("fit", range(count), count, rows, None)]
        step = plain_step("add", held, count + len(added), detector.bank_rows, when)
        step |= {"count": detector.count_, "good": len(detector.good_)}
        detector.earlier_mean_, detector.earlier_scatter_ = detector.mean_, detector.scatter_
        detector._learn(total)
        detector.references_ = [*detector.references_, *added]
        detector.history_ = [*detector.history_, step]
        if detector.calibration_ != "held-out":
            how = "kept"
            earlier = unpack(detector.good_patches_, detector.good_)
            scores, peaks = detector.good_scores_, detector.good_peaks_
            detector._set_good(scored, "leave-one-out")
            detector.good_patches_, detector.good_ = pack([*earlier, *scored])
            detector.good_scores_ = torch.cat(
                [scores.to(detector.good_scores_), detector.good_scores_]
            )
            detector.good_peaks_ = torch.cat([peaks.to(detector.good_peaks_), detector.good_peaks_])
    return Change(
        "add",
        tuple(one["file"] for one in added),
        tuple(known),
        (count, len(detector.references_)),
        (rows, detector.bank_rows),
        (threshold, detector.threshold),
        how,
    )


@torch.inference_mode()
def undo(detector: "SubspaceAD") -> Change:
    """See :meth:`~offnominal.detectors.subspacead.SubspaceAD.undo`."""
    if len(detector.history_) < 2:
        raise OptionError("nothing to undo: no image was added since the fit")
    if not len(detector.earlier_mean_):
        raise OptionError(
            "subspacead keeps its sums of before the last step only, and that step was taken back "
            "already: fit it anew"
        )
    detector.load_network()
    step, count = detector.history_[-1], len(detector.references_)
    rows, threshold = detector.bank_rows, detector.threshold
    owners = set(step["owners"])
    names = tuple(r["file"] for r in detector.references_ if r["owner"] in owners)
    sums = type(detector.moments)(step["count"], detector.earlier_mean_, detector.earlier_scatter_)
    detector._learn(sums)
    detector.earlier_mean_ = detector.earlier_mean_.new_empty(0)
    detector.earlier_scatter_ = detector.earlier_scatter_.new_empty(0)
    kept = count - len(owners)
    detector.references_ = detector.references_[:kept]
    detector.angles_ = detector.angles_[:kept]
    detector.bank.forget(owners)
    detector.history_ = detector.history_[:-1]
    if detector.calibration_ != "held-out":
        good = unpack(detector.good_patches_, detector.good_)[: step["good"]]
        detector._set_good(good, "leave-one-out" if good else "none")
    return Change(
        "undo",
        names,
        (),
        (count, kept),
        (rows, detector.bank_rows),
        (threshold, detector.threshold),
    )


def history(detector: "SubspaceAD") -> list[Version]:
    """The steps so far."""
    names = dict(enumerate(reference["file"] for reference in detector.references_))
    return versions(detector.history_, names)


def _settle_width(bank: MemoryBank) -> None:
    """A loaded bank's width is that of its rows."""
    if len(bank):
        bank.dim = bank.rows.shape[1]
