"""One training of a detector: which images, how many steps, how it goes on, what is chosen."""

import hashlib
import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from offnominal.checks import check_augment, parse_budget
from offnominal.detectors.categories import grouped
from offnominal.detectors.learner import LOOKS, Learner, auroc
from offnominal.detectors.options import Progress
from offnominal.detectors.trainable import Trainable
from offnominal.errors import OptionError
from offnominal.scoring import Size
from offnominal.synthesis.cut_paste import KINDS, cut_paste
from offnominal.training.budget import steps_within
from offnominal.training.checkpoint import Checkpoint, Files
from offnominal.training.images import Batches
from offnominal.training.labels import Labels
from offnominal.training.loop import run, seeded
from offnominal.training.recipe import Course
from offnominal.training.several import train_on_several

__all__ = ["Descent"]

_LEAST_HELD = 8
_CHOSEN_BY = 16  # images with defects made on them, at most
_DEFECT = 0.005  # of an image's area
# What may be another where a training goes on: scoring, the length, which a budget may give, and
# the rate, for a smaller one helps where the loss ran away.
_APART = {"aggregate", "smoothing", "false_reject", "weights", "steps", "budget", "lr_scale"}
_APART |= {"devices", "compiled"}


class Descent:
    """A training of a detector on images of one size.

    Parameters
    ----------
    detector : Trainable
    stored : uint8 array of shape (n, 3, side, side)
        The images of its references, in their order, and behind them the defective ones.
    labels : Labels or None
        Of the defective ones, where it learns from such.
    known : mapping of str to str
        Their names, and digests of them and their labels.
    """

    def __init__(
        self,
        detector: Trainable,
        stored: np.ndarray,
        labels: Labels | None = None,
        known: Mapping[str, str] | None = None,
    ) -> None:
        self.detector, self.stored, self.labels, self.known = detector, stored, labels, known or {}
        train, self.held, judging = self._split()
        detector.make_networks()
        defects = range(len(detector.references), len(stored)) if labels else ()
        self.images = detector.images(stored, train)
        self.all = detector.images(stored, [*train, *defects])
        self.judges = detector.images(stored, judging)
        most = len(train) if labels is None else 2 * len(train)
        self.batch = min(detector.batch or detector.schedule.batch, most)
        if labels is not None and self.batch < 2:
            told = "of good and defective images in turn; give 2 or more"
            raise OptionError(f"--batch {self.batch}: a step takes both {told}")
        if detector.choose and not judging:
            raise OptionError("--choose: too few images to judge by; give 4 or more, better 50")
        detector.chosen_by_ = judging
        detector.held_back_, detector.held_back = self.held, detector.images(stored, self.held)

    def run(
        self,
        began: float,
        state: Path | None,
        overwrite: bool,
        progress: Progress | None,
        say: Callable[[str], None],
    ) -> None:
        """Train, and settle what follows from it.

        Parameters
        ----------
        began : float
            When the fit began, by the monotonic clock.
        state : path or None
            The model file that is to be, beside which the state is kept.
        overwrite : bool
        progress, say : callable
        """
        detector, images, batch = self.detector, self.images, self.batch
        detector.open_cache(self.all)
        detector.prepare(images)
        detector.train()
        augment = check_augment(detector.augment or detector.default_augment)
        share = detector.batch_share
        batches = Batches(self.all, batch, augment, self.labels, share)
        judge = self._judged if detector.choose else None
        learner = Learner(detector, judge, detector.compiled)
        names: dict[str, str] = {}
        for number, one in enumerate(detector.references):
            name = one.file if one.file not in names else f"{one.file} ({number})"
            names[name] = one.digest + one.category
        names |= {name if name not in names else f"{name} (defect)": digest
                  for name, digest in self.known.items()}  # fmt: skip
        for option in detector.learns_from:
            if lies := detector.options()[option]:
                names[f"--{option}"] = _content(Path(lies))
        kept = (
            Checkpoint(Files(state), self._identity(), sources=names, each_epoch=False)
            if state
            else None
        )
        there = kept.said("steps") if kept and not overwrite else None
        paper = detector.paper_steps(len(images), len(self.labels or ()), batch)
        if detector.budget is None:
            asked = detector.steps or detector.schedule.steps
            steps = paper if asked == "paper" else asked
        elif there is not None:
            steps = int(there)
            say(f"goes on with the {steps:,} steps that the budget of its beginning came to")
        else:
            detector.fill_cache(self.all)
            looking = time.monotonic()
            if judge:
                judge()
            looking = LOOKS * (time.monotonic() - looking)
            left = parse_budget(detector.budget) - (time.monotonic() - began) - looking
            plan = self._course(1)
            steps = steps_within(left, detector.budget, learner, batches.endless, plan, say)
        defects = f" and {len(self.labels)} defective ones" if self.labels else ""
        say(
            f"{len(images)} images{defects} to train on, {len(self.held)} held back for the "
            f"threshold; {steps:,} steps of {batch}; the paper's schedule is {paper:,}"
        )
        if kept:
            kept = replace(kept, identity={**kept.identity, "steps": steps}, overwrite=overwrite)

        def look(done: int) -> None:
            learner.look(done, steps)

        course = self._course(steps)
        if detector.devices > 1:
            detector.open_cache(self.all)  # empty, for each its own
            found = train_on_several(detector.devices, learner, batches, course, kept)
            learner.load_state_dict(found.state, strict=False)
            detector.losses = found.history
        else:
            told = (kept, progress, say)
            detector.losses = run(learner, batches, course, *told, after=look).history
        detector.steps_ = steps
        _check_fell([row["total"] for row in detector.losses], detector.lr_scale)
        learner.take_best()
        detector.eval()
        if detector.storage == "fp16":
            detector.round_halves()
        with torch.inference_mode():
            detector.settle(images)

    def _split(self) -> tuple[list[int], list[int], list[int]]:
        """Numbers of the images to train on, to set thresholds with, and to choose by.

        Of each category so many.
        """
        share, choose = self.detector.hold_back, self.detector.choose
        rng = np.random.default_rng(self.detector.seed)
        parts: tuple[list[int], ...] = ([], [], [])
        for numbers in grouped(self.detector.references):
            count = len(numbers)
            held = min(max(_LEAST_HELD, math.ceil(share * count)), count // 2) if share else 0
            order = rng.permutation(numbers).tolist()
            judging = held // 2 if choose else 0
            found = order[held:], order[judging:held], order[:judging]
            for part, some in zip(parts, found, strict=True):
                part += some
        train, held_back, judges = map(sorted, parts)
        return train, held_back, judges

    def _course(self, steps: int) -> Course:
        one = self.detector
        told = (one.optimisers, one.rate, one.schedule.clip, one.lr_scale)
        return Course(self.batch, steps, one.seed, *told)

    def _identity(self) -> Mapping[str, Any]:
        """What both parts of a training that was broken off have in common."""
        detector = self.detector
        apart = _APART.union(detector.learns_from)
        good = (one.digest + one.category for one in detector.references)
        digests = "".join([*good, *self.known.values()]).encode()
        return {
            "method": detector.method,
            **{name: _plain(one) for name, one in detector.options().items() if name not in apart},
            "backbone": getattr(getattr(detector, "network", None), "digest", ""),
            "images": hashlib.sha256(digests).hexdigest(),
        }

    def _judged(self) -> float:
        """AUROC on good images that are not trained on, and synthetic defects made on them."""
        detector = self.detector
        found: dict[bool, list[float]] = {False: [], True: []}
        detector.eval()
        with torch.no_grad(), seeded(detector.seed):
            detector.settle(self.images)
            for place in range(min(len(self.judges), _CHOSEN_BY)):
                good = self.judges.uint8([place])[0].permute(1, 2, 0).numpy()
                rng = np.random.default_rng([detector.seed, place])
                made = [cut_paste(good, kind, _DEFECT, rng)[0] for kind in KINDS]
                for image in (good, *made):
                    stored = np.ascontiguousarray(image.transpose(2, 0, 1))[None]
                    size: Size = (image.shape[0], image.shape[1])
                    scores = detector.scored(detector.images(stored, [0]).pixels([0]), size)
                    found[image is not good].append(detector.judged(scores, size)[0])
        detector.train()
        return auroc(np.array(found[False]), np.array(found[True]))


def _content(path: Path) -> str:
    """A digest of a file, or of the names and sizes of what lies in a folder."""
    if path.is_dir():
        inside = sorted(each for each in path.rglob("*") if each.is_file())
        told = [f"{each.relative_to(path)} {each.stat().st_size}\n" for each in inside]
        return hashlib.sha256("".join(told).encode()).hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_fell(totals: Sequence[float], lr_scale: float) -> None:
    """Warn where the loss rose, so that what was learned is worth nothing."""
    part = max(1, len(totals) // 20)
    first, last = (float(np.mean(some)) for some in (totals[:part], totals[-part:]))
    if last > first + 9 * abs(first):
        warnings.warn(
            f"the loss rose from {first:.3g} to {last:.3g}: nothing was learned; give a smaller "
            f"--lr-scale, such as {lr_scale / 3:.2g}",
            stacklevel=2,
        )


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value
