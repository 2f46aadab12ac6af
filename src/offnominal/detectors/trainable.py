"""What every trained method says: networks, loss, score; and the options that all of them have.

Images are squares of one size.
"""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from offnominal.checks import check_augment, check_choice, check_range, check_steps, parse_budget
from offnominal.detectors.features import ViewScores, one_view
from offnominal.detectors.learner import Learner
from offnominal.detectors.on_device import OnDevice
from offnominal.errors import OptionError
from offnominal.scoring import Scores, Size, Window
from offnominal.sizing import Resample, square_window, squared
from offnominal.training.budget import Schedule, Steps
from offnominal.training.checkpoint import History
from offnominal.training.images import Batch, Images, Triple
from offnominal.training.loop import seeded

__all__ = ["Trainable"]


class Trainable(OnDevice, nn.Module):
    """What a method that trains networks on good images says, and how it looks at images.

    A method writes :meth:`build`, :meth:`optimisers`, :meth:`loss` and :meth:`compare`, and where
    it needs to :meth:`rate`, :meth:`prepare` and :meth:`settle`. What its submodules hold, and its
    attributes whose names end in ``_``, is saved; ``network``, a frozen backbone, is not.

    Parameters
    ----------
    steps : int, "paper" or None
        Of the training; ``paper``: as many as the paper's. None: the method's own number, which two
        cores do in about 20 minutes.
    budget : str or None
        A time such as ``20m`` that the whole fit may take; steps are timed first, and the schedule,
        warm-up and decay included, is fitted to it.
    batch : int or None
        Images a step; None: the method's own, of which its page says what the paper has.
    lr_scale : float
        Factor on the paper's learning rates.
    augment : str or None
        What may happen to a good part and leaves it good: ``none``, or some of ``flips``,
        ``turns``, ``rotations``, ``tilts``, ``shifts``, ``light`` and ``colour``, as
        ``flips,light``. None: none, unless it is part of the method.
    hold_back : float
        Share of the good images that is not trained on, at least 8 and at most half of them; the
        thresholds are set from those. 0: none, and no threshold.
    choose : bool
        Keep the best of ten states of the training instead of the last one, judged on synthetic
        defects that are made on half of the images held back; the other half sets the thresholds.
    resolution : int or None
        Side of the square that images are resized to, in pixels; None: the method's own.
    crop : bool
        Resize a little larger and look at the middle only, where the paper does so. What lies
        outside of it is never inspected.
    storage : {"fp32", "fp16"}
        How the model file holds what was learned.
    devices : int
        Train on so many GPUs at once, through Lightning Fabric (``pip install lightning-fabric``),
        each with its part of every batch.
    compiled : bool
        Compile the loss, which pays on a GPU in long trainings.
    seed : int
        Of everything that is drawn.
    smoothing : float
        Standard deviation of another Gaussian on the map, in pixels of the image; the paper's own
        smoothing is part of the method.
    aggregate : str
        ``paper``: the paper's image score.
    **options
        See :class:`~offnominal.detectors.on_device.OnDevice`.
    """

    own_score: ClassVar[str | None] = "paper"
    schedule: ClassVar[Schedule]
    default_side: ClassVar[int] = 256
    # Sides are multiples of it.
    side_multiple: ClassVar[int] = 1
    # The side that the paper crops from, for each pixel of what is left.
    paper_crop: ClassVar[float] = 1.0
    default_augment: ClassVar[str] = "none"
    # Options that name a file or folder whose content the training depends on; a frozen backbone's
    # weights are known by their digest anyway.
    learns_from: ClassVar[tuple[str, ...]] = ()
    resample: ClassVar[Resample] = "bilinear"
    mean: ClassVar[Triple] = (0.485, 0.456, 0.406)
    std: ClassVar[Triple] = (0.229, 0.224, 0.225)
    # Of the images of a step that are defective, where a method learns from such.
    batch_share: float = 0.5
    # Maps are kept with at most so many values a side.
    finest: ClassVar[int] = 64

    held_back: Images

    def __init__(
        self,
        steps: Steps | None = None,
        budget: str | None = None,
        batch: int | None = None,
        lr_scale: float = 1.0,
        augment: str | None = None,
        hold_back: float = 0.2,
        choose: bool = False,
        resolution: int | None = None,
        crop: bool = False,
        storage: Literal["fp32", "fp16"] = "fp32",
        devices: int = 1,
        compiled: bool = False,
        seed: int = 0,
        smoothing: float = 0.0,
        aggregate: str = "paper",
        **options: Any,
    ) -> None:
        super().__init__(smoothing=smoothing, aggregate=aggregate, **options)
        if self.precision == "fp16":
            raise OptionError(
                f"--precision fp16: {self.method} would lose small gradients; give bf16 or fp32"
            )
        if steps is not None and budget is not None:
            raise OptionError(f"--steps {steps} --budget {budget}: give one of the two")
        check_steps(steps)
        if budget is not None:
            parse_budget(budget)
        if batch is not None:
            check_range("batch", batch, least=1, most=4096, whole=True)
        check_range("lr_scale", lr_scale, above=0, most=1e6)
        check_augment(augment or self.default_augment)
        check_range("hold_back", hold_back, least=0, most=0.5)
        check_range("seed", seed, least=0, below=2**32, whole=True)
        if crop and self.paper_crop == 1:
            raise OptionError(f"--crop: the paper of {self.method} does not crop; leave it out")
        if resolution is not None:
            check_range("resolution", resolution, least=8, most=4096, whole=True)
            if resolution % self.side_multiple:
                told = f"give a multiple of {self.side_multiple}"
                raise OptionError(f"--resolution {resolution}: {told}")
        check_choice("storage", storage, ("fp32", "fp16"))
        if choose and not hold_back:
            raise OptionError("--choose: needs images to judge by; leave --hold-back 0 out")
        self.steps, self.budget, self.batch, self.lr_scale = steps, budget, batch, lr_scale
        self.augment, self.hold_back, self.choose = augment, hold_back, choose
        check_range("devices", devices, least=1, most=64, whole=True)
        if choose and devices > 1:
            raise OptionError(f"--choose --devices {devices}: choose on one device")
        if compiled and devices > 1:
            raise OptionError(f"--compiled --devices {devices}: give one of the two")
        if self.seen_as == "scan" and (augment not in (None, "none") or choose):
            told = "changes pictures, and this looks at scans; leave it out"
            raise OptionError(f"--{'choose' if choose else f'augment {augment}'}: {told}")
        self.devices, self.compiled = devices, compiled
        self.resolution, self.crop, self.storage, self.seed = resolution, crop, storage, seed
        self._clear()

    def _clear(self) -> None:
        self.steps_ = 0
        self.held_back_: list[int] = []  # references that were not trained on, for thresholds
        self.chosen_by_: list[int] = []  # and those by which the best state was chosen
        self.losses: History = []

    def release(self) -> None:
        """Let go of the images held back, and with them of the temporary file that they are in."""
        super().release()
        self.held_back = self.images(np.empty((0, 3, 1, 1), np.uint8), [])

    # -- what a method writes -----------------------------------------------------------------

    @abstractmethod
    def build(self) -> None:
        """Make the networks as submodules; called at a fit, seeded, and when a file is opened."""

    @abstractmethod
    def optimisers(self) -> list[Optimizer]:
        """Optimisers of all that is trained, with the paper's learning rates."""

    def rate(self, done: float) -> float:
        """Factor on the learning rates at a share of the schedule, on [0, 1)."""
        return 1.0

    def prepare(self, images: Images) -> None:
        """Before the first step: statistics of the images that are trained on.

        It is done again when a training goes on, and has to come to the same.
        """

    @abstractmethod
    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Of a batch, as scalars: ``total``, which is to fall, and the parts that it is made of."""

    def settle(self, images: Images) -> None:
        """After the last step: densities, memories, quantiles (over :attr:`held_back`)."""

    @abstractmethod
    def compare(self, pixels: Tensor) -> ViewScores:
        """Score normalised pixels (1, 3, h, w).

        Where no image score is given, it is the maximum of the map.
        """

    # -- images -------------------------------------------------------------------------------

    @property
    def side(self) -> int:
        """Side of the images, in pixels."""
        return self.resolution or self.default_side

    def sized(self, image: np.ndarray) -> np.ndarray:
        """An image, uint8 (H, W, 3), as (3, side, side); a scan, (H, W, 6), as (6, side, side)."""
        cut = squared(image, self.full_side, self.side, self.resample)
        return np.ascontiguousarray(cut.transpose(2, 0, 1))

    def blank(self) -> np.ndarray:
        """What :meth:`sized` could give, of nothing: a black image, or a plane one metre away."""
        if self.seen_as != "scan":
            return np.zeros((3, self.side, self.side), np.uint8)
        found = np.zeros((6, self.side, self.side), np.float32)
        found[3:5] = np.mgrid[: self.side, : self.side][::-1] / self.side
        found[5] = 1
        return found

    @property
    def full_side(self) -> int:
        """Side of the square that the images are the middle of, in pixels."""
        return round(self.side * self.paper_crop) if self.crop else self.side

    def window(self, size: Size) -> Window | None:
        """What is looked at of an image (H, W); None: all of it."""
        return square_window(size, self.full_side, self.side)

    def not_inspected(self, size: Size) -> str | None:
        """What of an image (H, W) is never looked at, in words; None: all of it is."""
        if self.window(size) is None:
            return None
        full = self.full_side
        margin = (full - self.side) // 2
        return (
            f"margins of {margin / full:.1%} on each side are not inspected; leave out --crop to "
            "see all of it"
        )

    def scored(self, pixels: Tensor, size: Size) -> Scores:
        """Scores of prepared pixels (1, 3, side, side) of an image (H, W)."""
        with self._autocast():
            found = self.compare(pixels)
        scores = one_view(self.condensed(found), (pixels.shape[-2], pixels.shape[-1]))
        if found.kinds is not None:
            likely = zip(self.class_names, found.kinds.float().tolist(), strict=True)
            scores = scores._replace(kinds=dict(likely))
        return scores._replace(window=self.window(size))

    @property
    def class_names(self) -> Sequence[str]:
        """Classes of defects, in the order of what :meth:`compare` says of them."""
        return ()

    def condensed(self, found: ViewScores) -> ViewScores:
        """What :meth:`compare` gave, with a map as fine as it is kept, and an image score."""
        patches = found.patches.float()
        image = patches.max() if found.image is None else found.image
        height, width = (min(side, self.finest) for side in patches.shape)
        pooled = F.adaptive_avg_pool2d(patches[None, None], (height, width))[0, 0]
        return ViewScores(pooled, image, found.weight, found.kinds)

    def exportable(self) -> str | None:
        """Why not; None: networks and what follows from them are tensors."""
        return None

    # -- training -----------------------------------------------------------------------------

    def paper_steps(self, good: int, defects: int, batch: int) -> int:
        """The paper's steps for so many images to train on, in batches of so many."""
        return self.schedule.paper(good, batch)

    def training_loss(self, batch: Batch) -> dict[str, Tensor]:
        """:meth:`loss` in the precision that was asked for."""
        try:
            with self._autocast():
                return {name: value.float() for name, value in self.loss(batch).items()}
        except ValueError as error:  # torch's, of batch norm
            if "more than 1 value per channel" not in str(error):
                raise
            raise OptionError(
                f"--batch {len(batch.pixels)}: too few for batch norm at {self.side} px; train on "
                "more images, or give a larger --batch or --resolution"
            ) from error

    def open_cache(self, images: Images) -> None:
        """Make room for what is computed once of each image."""

    def fill_cache(self, images: Images) -> None:
        """Compute what is computed once of each image, so that steps can be timed."""

    def make_networks(self) -> None:
        """Build the networks, from the seed, on the device."""
        with seeded(self.seed):
            self.build()
        self.use_device()

    def images(self, stored: np.ndarray, numbers: Sequence[int]) -> Images:
        """Some of stored images, uint8 (n, 3, side, side), as its networks take them."""
        return Images(stored, numbers, self.mean, self.std, self._device)

    def round_halves(self) -> None:
        """Give what is learned the values that a file in half precision can hold."""
        for name, each in Learner(self).named_parameters():
            half = each.detach().half()
            if not half.isfinite().all():
                raise OptionError(f"--storage fp16: {name} has values beyond it; give fp32")
            each.data = half.float()
