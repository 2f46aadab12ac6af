"""3D-ST: a student learns a teacher's descriptors of points on good parts, and errs on others.

Bergmann and Sattlegger, "Anomaly Detection in 3D Point Clouds using Deep Geometric Descriptors",
WACV 2023 (arXiv 2202.11660). The authors published no code.
"""

from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.optim import Adam, Optimizer

from offnominal.checks import check_range
from offnominal.detectors.features import ViewScores
from offnominal.detectors.teacher_student.point_networks import (
    PointNetwork,
    farthest,
    graph_of,
    interpolated,
    spacing,
    student_loss,
)
from offnominal.detectors.teacher_student.point_teacher import (
    PointPlan,
    PointTeacherRecipe,
    read_point_teacher,
    teach,
)
from offnominal.detectors.trained import TrainedDetector
from offnominal.errors import OptionError
from offnominal.scans.scan import Modality
from offnominal.scoring import Scores
from offnominal.training.budget import Schedule
from offnominal.training.images import Batch, Images

__all__ = ["PointStudent"]

_FINEST = 256  # positions of a map's side at most
_ALIKE = 8  # good points with the nearest descriptors, whose errors are usual for such a point
_KEPT = 4000  # good points that are kept for that
_LEAST = 0.1  # of the mean error is added to the usual one, so that none is divided by nothing
_CACHED = 10**6  # points whose neighbours and teacher's descriptors are kept in a training: 0.4 GB
_ROWS = 4096  # points whose descriptors are compared at once
_TOP = 0.01  # of the points give the image score


class PointStudent(TrainedDetector):
    """3D student-teacher, for scans and for clouds without a grid; colour is not looked at.

    Parameters
    ----------
    teacher : str or None
        File of a teacher. None: one is taught first, for ``teacher_steps`` steps.
    teacher_steps : int
        Of that; 125,000 in the paper.
    points : int
        Of a scan, chosen as far from one another as can be, that the networks look at; 64,000 in
        the paper. Finer dents need more.
    relative : bool
        Divide each error by what is usual for points that look alike, and take the mean over a
        point's neighbours. No: errors as they are, as in the paper.
    width, blocks, neighbours : int or None
        Length of the descriptors, residual blocks, and neighbours of a point: 64, 4 and 32 in the
        paper. None: the teacher's; of one that is taught first 64, 2 and 16.
    **options
        See :class:`~offnominal.detectors.trainable.Trainable`.

    Notes
    -----
    Remove what lies behind the part beforehand, as the paper does (``datasets prepare``): it takes
    points from the part, and its torn edges are hard to learn.

    A student of few steps errs most at edges and holes, of good parts and bad. So an error is
    divided by the mean error of those good points, of scans trained on, whose descriptors are
    nearest; the paper does not. The learning rate begins at three times the paper's and falls to 0,
    as the steps are few. A training that goes on teaches its teacher anew, unless a file of one is
    given: ``offnominal train 3d-st-teacher`` makes it.

    On 28 made plates without their table (0.1 mm of noise, 110 s of one core) the map finds dents
    of 2 and 3 mm (AUROC of points 0.80 and 0.88) and 2 mm of missing material (0.91). The image
    score finds none (0.32 to 0.38): corners of good plates, where poses differ, err more.

    A point that the networks do not look at has the mean of the three nearest that they do, by the
    inverse of their squared distances, in the paper by harmonic interpolation. The image score,
    which the paper has none of, is the mean of the 1 % highest of the points that are looked at. Of
    good scans their highest point alone is kept, which sets the map's threshold.
    """

    method: ClassVar[str] = "3d-st"
    schedule: ClassVar[Schedule] = Schedule(batch=1, steps=1200, paper_epochs=100)
    learns_from: ClassVar[tuple[str, ...]] = ("teacher",)
    takes_scans: ClassVar[bool] = True

    def __init__(
        self,
        teacher: str | None = None,
        teacher_steps: int = 300,
        points: int = 2000,
        relative: bool = True,
        width: int | None = None,
        blocks: int | None = None,
        neighbours: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if self.modality not in ("auto", "scan") or self.resolution is not None:
            raise OptionError(f"--method {self.method}: sees points; leave modality and resolution")
        if self.aggregate != "paper":
            raise OptionError(f"--aggregate {self.aggregate}: {self.method} takes paper only")
        check_range("points", points, least=64, most=10**6, whole=True)
        self.teacher = str(teacher) if teacher is not None else None
        self.teacher_steps, self.points, self.relative = teacher_steps, points, relative
        self.width, self.blocks, self.neighbours = width, blocks, neighbours
        self._recipe()  # refuses what cannot be

    @property
    def seen_as(self) -> Modality:
        """Points alone are looked at."""
        return "scan"

    @property
    def plan(self) -> PointPlan:
        """How the networks are built: what is not said is the teacher's."""
        said = {"width": self.width, "blocks": self.blocks, "neighbours": self.neighbours}
        given = {name: value for name, value in said.items() if value is not None}
        if self.teacher is None or len(given) == len(said):
            return PointPlan(**given)
        _, theirs = read_point_teacher(self.teacher)
        return theirs._replace(**given)

    def _recipe(self) -> PointTeacherRecipe:
        plan = self.plan if self.teacher is None else PointPlan()
        usual = PointTeacherRecipe()
        points = max(min(self.points, usual.points), plan.neighbours + 1)
        clouds = min(self.teacher_steps, usual.clouds)
        told = {"points": points, "clouds": clouds, "steps": self.teacher_steps}
        return PointTeacherRecipe(*plan, **told, seed=self.seed)

    def header(self) -> dict[str, Any]:
        """All that is no array; how the networks are built, so that no teacher's file is needed."""
        found = super().header()
        found["options"] |= self._built._asdict()
        return found

    # -- points of scans ----------------------------------------------------------------------

    def sized(self, image: NDArray[Any]) -> NDArray[Any]:
        """The points of a scan (H, W, 6) that are looked at: (6, 1, points), NaN behind them."""
        rows = image.reshape(-1, 6)
        rows = rows[np.isfinite(rows[:, 5])]
        if len(rows) <= self._least:
            raise OptionError(
                f"--method {self.method}: a scan of {len(rows)} points; it takes more than the "
                f"{self._least} neighbours of each"
            )
        found = np.full((6, 1, self.points), np.nan, np.float32)
        chosen = rows[farthest(rows[:, 3:], self.points, self.seed)]
        found[:, 0, : len(chosen)] = chosen.T
        return found

    @property
    def _least(self) -> int:
        return self.neighbours or PointPlan().neighbours

    def blank(self) -> NDArray[Any]:
        """Points of a plane one metre away."""
        side = int(np.ceil(np.sqrt(self.points)))
        rows, columns = np.mgrid[:side, :side] / np.float32(side)
        still = np.zeros_like(rows)
        return self.sized(np.stack([still, still, still, rows, columns, still + 1], axis=2))

    def cloud(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Points (N, 3) whose spacing is 1 in good scans, from (6, 1, points), and neighbours."""
        points = pixels[3:, 0].T
        points = points[points[:, 2].isfinite()]
        points = (points - points.mean(0)) / self.scale_
        graph = graph_of(points.cpu().numpy(), self._built.neighbours)
        return points, torch.from_numpy(graph).to(points.device)

    # -- training -----------------------------------------------------------------------------

    def build(self) -> None:
        """Teacher and student, alike; what is known of good scans."""
        self._built = self.plan
        self.taught, self.student = (PointNetwork(*self._built[:2]) for _ in range(2))
        self.taught.requires_grad_(False)
        self.scale_ = 1.0
        self._known: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
        self.mean_, self.deviation_ = torch.zeros(self._built.width), torch.ones(self._built.width)
        self.good_, self.errors_ = torch.zeros(_ALIKE, self._built.width), torch.ones(_ALIKE)

    def optimisers(self) -> list[Optimizer]:
        """Adam, of the student (section 4)."""
        return [Adam(self.student.parameters(), lr=3e-3, weight_decay=1e-5)]

    def rate(self, done: float) -> float:
        """A cosine from 1 to 0."""
        return 0.5 + 0.5 * float(np.cos(np.pi * done))

    def prepare(self, images: Images) -> None:
        """The teacher, the spacing of points, and mean and deviation of its descriptors."""
        if self.teacher is None:
            network = teach(self._recipe(), torch.device(self._device))
        else:
            network, plan = read_point_teacher(self.teacher)
            if plan != self._built:
                raise OptionError(f"--teacher {self.teacher}: is built as {plan}; leave those out")
        self.taught.load_state_dict(network.state_dict())
        self._known = {}
        every = [pixels[0] for pixels in images.batches(1)]
        with torch.no_grad():
            self.scale_ = 1.0
            self.scale_ = float(np.mean([float(spacing(*self.cloud(each))) for each in every]))
            found = torch.cat([self.taught(*self.cloud(each)) for each in every]).double()
        self.mean_ = found.mean(0).float()
        self.deviation_ = found.std(0).clamp(min=1e-6).float()

    def taught_of(self, points: Tensor, graph: Tensor) -> Tensor:
        """The teacher's descriptors (N, d), standardised over good scans."""
        with torch.no_grad():
            found: Tensor = (self.taught(points, graph) - self.mean_) / self.deviation_
        return found

    def descriptors(self, points: Tensor, graph: Tensor) -> tuple[Tensor, Tensor]:
        """The student's (N, d), and the teacher's."""
        return self.student(points, graph), self.taught_of(points, graph)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Squared distance of the student's descriptors from the teacher's."""
        found = []
        for number, pixels in zip(batch.numbers.tolist(), batch.pixels, strict=True):
            if (known := self._known.get(number)) is None:
                cloud = self.cloud(pixels)
                known = (*cloud, self.taught_of(*cloud))
                if (len(self._known) + 1) * self.points <= _CACHED:
                    self._known[number] = known
            points, graph, teacher = known
            found.append(student_loss(self.student(points, graph), teacher))
        return {"total": torch.stack(found).mean()}

    def settle(self, images: Images) -> None:
        """Some descriptors of good points, with the student's errors there."""
        self._known = {}
        pairs = [self.descriptors(*self.cloud(pixels[0])) for pixels in images.batches(1)]
        good = torch.cat([teacher for _, teacher in pairs])
        errors = torch.cat([(student - teacher).norm(dim=1) for student, teacher in pairs])
        order = np.random.default_rng(self.seed).permutation(len(good))[:_KEPT]
        some = torch.from_numpy(order).to(good.device)
        self.good_, self.errors_ = good[some].float(), errors[some].float()

    # -- scoring ------------------------------------------------------------------------------

    def errors(self, pixels: Tensor) -> Tensor:
        """Distances (N,) of the descriptors of the points that are looked at."""
        points, graph = self.cloud(pixels[0])
        student, teacher = self.descriptors(points, graph)
        found: Tensor = (student - teacher).norm(dim=1).float()
        if self.relative:
            found = (found / self.usual(teacher.float()))[graph].mean(1)
        return found

    def usual(self, descriptors: Tensor) -> Tensor:
        """Errors (N,) to be expected of good points with such descriptors (N, d)."""
        near = [
            torch.cdist(some, self.good_).topk(_ALIKE, largest=False).indices
            for some in torch.split(descriptors, _ROWS)
        ]
        found: Tensor = self.errors_[torch.cat(near)].mean(1) + _LEAST * self.errors_.mean()
        return found

    def compare(self, pixels: Tensor) -> ViewScores:
        """The image score, and the highest point as the only patch."""
        errors = self.errors(pixels)
        top = errors.topk(max(1, int(_TOP * len(errors)))).values.mean()
        return ViewScores(errors.max()[None, None], top)

    def score(self, image: NDArray[Any], without: int | None = None) -> Scores:
        """Scores of all points of a scan: on a grid of 256 x 256 at most, of a cloud (1, N)."""
        found = super().score(image)
        looked = self.images(self.sized(image)[None], [0]).pixels([0])
        errors = self.errors(looked).cpu().numpy()
        places = looked[0, 3:, 0, : len(errors)].T.cpu().numpy()
        measured = np.isfinite(image[..., 5])
        heat = np.zeros(image.shape[:2], np.float32)
        heat[measured] = interpolated(places, errors, image[measured][:, 3:])
        if len(image) > 1 and max(heat.shape) > _FINEST:
            both = torch.from_numpy(np.stack([heat, measured.astype(np.float32)]))
            rows, columns = (min(side, _FINEST) for side in image.shape[:2])
            sums = F.adaptive_avg_pool2d(both, (rows, columns))
            heat = (sums[0] / sums[1].clamp(min=1e-6)).numpy()
        return found._replace(patches=heat)
