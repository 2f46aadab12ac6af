"""A short sketch of every row, by which most rows can be ruled out without being read.

A sketch is the row's projection on the few directions in which the rows differ most, turned so
that all of its coordinates are about equally large, and how far it lies from their span; cut off
at a box and at a ball, and rounded to 8-bit integers. None of this moves two points apart but the
rounding, and what that does is measured. So the distance of two sketches, less those errors, is
a lower bound on that of the rows: proven, not estimated, whatever the directions are.

The squared norm that a squared distance needs beside the product of two sketches is written into
further coordinates, as digits. One integer product, the fastest that CPUs have, is then all that
it takes to compare sketches.
"""

import functools
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from offnominal.memory.exact import batches, refuse_infinite, sample
from offnominal.memory.room import Room
from offnominal.memory.screen import plain_float32
from offnominal.memory.storage import Stored

__all__ = ["Codes", "Sketch", "fast_integer_products"]

_LEVELS = 127
_DIGITS = 3  # high digits of a norm; one low digit follows
_WORD = 32  # lengths of sketches are multiples of this: others multiply slowly
_SHARE = 4  # a sketch is at most this part of a row's length
_LONGEST = 1024  # beyond, sums of products would not be exact in float32
_ENOUGH = 0.92  # of the variance
_LARGEST = _LEVELS * (_DIGITS * _LEVELS) + _LEVELS // 2  # what digits of either sign can hold
_SAMPLE = 4096
_ROUNDS = 3
_BLOCK = 1024


@functools.cache
def fast_integer_products() -> bool:
    """Whether the CPU has instructions that add up products of 8-bit integers (VNNI).

    Without them the library is slow, and its sums may saturate on the way.
    """
    # Neither is in PyTorch's documented interface, so both may be absent.
    probe = getattr(torch.cpu, "_is_vnni_supported", bool)
    if not probe() or not hasattr(torch, "_int_mm"):
        return False
    extreme = torch.full((33, 130), _LEVELS, dtype=torch.int8)
    try:
        product = torch._int_mm(extreme, -extreme.T)
    except RuntimeError:
        return False
    return bool((product == -130 * _LEVELS**2).all())


@dataclass(frozen=True)
class Codes:
    """Queries as sketches.

    Attributes
    ----------
    codes : Tensor
        (Q, K) int8.
    squares : Tensor
        (Q,) float64: their squared norms, in units.
    errors : Tensor
        (Q,) float64: how far rounding moved them at most, in units.
    """

    codes: Tensor
    squares: Tensor
    errors: Tensor


class Sketch:
    """Sketches of rows.

    Parameters
    ----------
    rows : Tensor or Stored
        (N, D) float32, on a CPU; N above 0.

    Attributes
    ----------
    codes : Tensor
        (N, K) int8, K at most :meth:`length`.
    unit : float
        What 1 stands for.
    error : float
        How far rounding moved any row at most, in units.

    Raises
    ------
    OptionError
        If a row is not finite or its norm exceeds ``NORM_LIMIT``.
    """

    def __init__(self, rows: Tensor | Stored) -> None:
        some = rows.index_select(0, sample(len(rows), _SAMPLE))
        refuse_infinite(torch.linalg.vector_norm(some, dim=1))
        self.centre = some.mean(0)
        some -= self.centre
        self.axes = _directions(some)
        self._used = self.axes.shape[1] + 1
        self._ball = math.sqrt(4 * _LARGEST) - math.sqrt(self._used) / 2 - 1
        # Of a vector's norm: what sums in float32 lose, and the directions' own errors.
        double = self.axes.double()
        defect = torch.linalg.matrix_norm(double.T @ double - torch.eye(self._used - 1))
        self._loss = len(self.axes) * math.sqrt(self._used) * 2.0**-24 + float(defect)
        # Moving all by the same is no matter, and keeps this coordinate as small as the others.
        self._typical = 0.0
        points = self._project(some)[0]
        self._typical = float(points[:, -1].mean())
        points[:, -1] -= self._typical
        # Cutting off some outliers costs less than a coarser unit for all.
        box = points.abs().amax(1).quantile(0.99) / _LEVELS
        ball = torch.linalg.vector_norm(points, dim=1).quantile(0.95) / self._ball
        self.unit = max(float(torch.maximum(box, ball)), 2.0**-100)
        self.error = 0.0
        self._buffers = {"codes": torch.empty((0, self._word), dtype=torch.int8)}
        self._buffers["norms"] = torch.empty(0)
        self._rooms = {name: Room() for name in self._buffers}
        self.extend(rows)

    @staticmethod
    def length(dim: int) -> int:
        """Bytes of a sketch at most, beside 4 of a norm, for rows of length ``dim``."""
        return max(_WORD, min(dim // _SHARE, _LONGEST) // _WORD * _WORD)

    @property
    def codes(self) -> Tensor:
        """(N, K) int8."""
        return self._buffers["codes"]

    @property
    def norms(self) -> Tensor:
        """(N,) float32: those of the rows themselves."""
        return self._buffers["norms"]

    @property
    def _word(self) -> int:
        return math.ceil((self._used + _DIGITS + 1) / _WORD) * _WORD

    def extend(self, rows: Tensor | Stored) -> None:
        """Sketch those of ``rows`` (N, D) that follow the ones there are sketches of."""
        for part in batches(len(rows), _BLOCK, len(self.codes)):
            own = rows[part]
            norms = torch.linalg.vector_norm(own, dim=1)
            refuse_infinite(norms)
            points, errors = self._round(own)
            self.error = max(self.error, float(errors.amax()))
            # Half a squared norm, rounded down, so that no distance is made larger by it.
            halves = points.square().sum(1).div_(2).floor_()
            high, low = _digits(_LARGEST - halves)
            filling = points.new_zeros((len(points), self._word - points.shape[1] - _DIGITS - 1))
            codes = torch.cat([points, filling, high, low], 1).to(torch.int8)
            for name, values in (("codes", codes), ("norms", norms)):
                self._rooms[name].append(self._buffers, name, values)

    def keep(self, index: Tensor) -> None:
        """Reduce to the rows ``index`` (m,) int64, ascending."""
        for name, room in self._rooms.items():
            room.keep(self._buffers, name, index)

    def of(self, queries: Tensor) -> Codes:
        """Sketch queries (Q, D) float32, finite."""
        points, errors = self._round(queries)
        codes = points.new_zeros((len(points), self._word))
        codes[:, : points.shape[1]] = points
        codes[:, -_DIGITS - 1 : -1] = _LEVELS
        codes[:, -1] = 1
        squares = points.double().square().sum(1)
        return Codes(codes.to(torch.int8), squares, errors.double())

    def thresholds(self, queries: Codes, squared: Tensor) -> Tensor:
        """What the product with a row's sketch is at least, unless the row is too far.

        Parameters
        ----------
        queries : Codes
            Q of them.
        squared : Tensor
            (Q,) float32: squared distances, as ``exact_distances`` rounds them, that a row must
            not exceed to matter.

        Returns
        -------
        Tensor
            (Q,) int32.
        """
        # 2⁻¹⁸ covers the rounding of the exact distance, at most 64 float32 roundings deep, and
        # 1e-34 squares that are too small for float32.
        reach = (squared.double() * (1 + 2.0**-18) + 1e-34).sqrt_() / self.unit
        reach += queries.errors + self.error
        least = (queries.squares - reach.square() * (1 + 1e-12)) / 2 + _LARGEST
        limits = torch.iinfo(torch.int32)
        return least.floor_().clamp_(limits.min + 1, limits.max).to(torch.int32)

    def _project(self, near: Tensor) -> tuple[Tensor, Tensor]:
        """Points (n, m) of centred rows (n, D), and how far these may be from the true ones."""
        points = near @ self.axes
        # Not the root of a difference of squares, which is the worse known the smaller it is.
        beyond = torch.linalg.vector_norm(torch.addmm(near, points, self.axes.T, alpha=-1), dim=1)
        rounding = self._loss if plain_float32(near.device) else 2.0**-5
        blur = torch.linalg.vector_norm(near, dim=1) * (4 * rounding)
        return torch.cat([points, beyond[:, None] - self._typical], 1), blur

    def _round(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Integers (n, m) float32, and bounds (n,) float32 on their errors, in units."""
        points, blur = self._project(rows - self.centre)
        points.div_(self.unit).clamp_(-_LEVELS, _LEVELS)
        lengths = torch.linalg.vector_norm(points, dim=1)
        points.mul_((self._ball / lengths).clamp_(max=1)[:, None])
        whole = points.round()
        errors = torch.linalg.vector_norm(points.sub_(whole), dim=1)
        # A thousandth of a unit is far above what float32 loses within the box.
        return whole, errors.add_(blur / self.unit).add_(1e-3)


def _directions(some: Tensor) -> Tensor:
    """Orthonormal directions (D, m), few in which centred rows (n, D) differ most, and turned."""
    dim = some.shape[1]
    generator = torch.Generator().manual_seed(0)
    most = min(Sketch.length(dim) - _DIGITS - 2, dim)
    spread = some.T @ some
    # Any scale will do; tiny ones would vanish.
    spread /= spread.diagonal().amax().clamp_(min=1e-30)
    axes = torch.randn((dim, most), generator=generator)
    for _ in range(_ROUNDS):
        axes = torch.linalg.qr(spread @ axes)[0]
    values, vectors = torch.linalg.eigh(axes.T @ spread @ axes)
    share = values.flip(0).cumsum(0) / spread.trace().clamp_(min=1e-30)
    enough = int((share < _ENOUGH).sum()) + 1
    used = min(math.ceil((enough + _DIGITS + 2) / _WORD) * _WORD - _DIGITS - 2, most)
    turn = torch.linalg.qr(torch.randn((used, used), generator=generator))[0]
    turned: Tensor = axes @ vectors.flip(1)[:, :used] @ turn
    return turned


def _digits(values: Tensor) -> tuple[Tensor, Tensor]:
    """Digits (n, 3) worth 127 each, and (n, 1) worth 1, of whole values (n,) float32."""
    left = (values / _LEVELS).round_()
    low = values - left * _LEVELS
    high: list[Any] = []
    for _ in range(_DIGITS):
        high.append(left.clamp(-_LEVELS, _LEVELS))
        left = left - high[-1]
    return torch.stack(high, 1), low[:, None]
