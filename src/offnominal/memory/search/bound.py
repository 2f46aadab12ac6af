"""First stage of the search: cheap bounds on how near each small group of rows can be.

One matrix product per block of rows, in a fast number format, gives ``-|q - b|² / 2`` with an
error that is bounded, not guessed. Of each group of consecutive rows only the maximum is kept.
"""

import math
import weakref
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from offnominal.memory.search.stored import StoredTensors
from offnominal.memory.storage import NORM_LIMIT, refuse_infinite

_FLOAT32_ROUNDOFF = 2.0**-24
_SPLITS = 2  # numbers of the fast format that together carry one half-norm


@dataclass(frozen=True)
class Bounds:
    """Approximate nearness of a set of queries to every group of some blocks of rows.

    Attributes
    ----------
    maxima : Tensor
        (Q, blocks, groups): per group, the largest approximate ``-|q - b|² / 2``, with what
        each row's own norm and rounding may have taken from it added; ``-inf`` where a block has
        fewer groups.
    slack : Tensor
        (Q, blocks) float32: by how much ``maxima`` may still be too small, beside the rounding of
        the product's result, which is relative and has unit roundoff ``roundoff``.
    """

    maxima: Tensor
    slack: Tensor
    roundoff: float

    def threshold(self, distances: Tensor, ids: Tensor) -> Tensor:
        """Values (n, blocks) below which a maximum proves that its whole group is too far away.

        ``distances`` (n,) float32 are squared ones, as :func:`exact_distances` rounds them, that a
        row must not exceed to matter; ``ids`` (n,) int64 the queries that they belong to.
        """
        # 2⁻¹⁸ covers the rounding of the exact distance: at most 64 float32 roundings deep.
        reach = (distances * (-0.5 * (1 + 2.0**-18)))[:, None] - self.slack[ids]
        # A product of at least `reach` is rounded to at least this. Rounding the threshold to the
        # same format keeps the order, so loses no group either.
        margin = 1.01 * self.roundoff + 2.0**-22
        reach = (reach - margin * reach.abs()).to(self.maxima.dtype)
        # Groups at -inf do not exist or are crossed off, even where nothing was found so far.
        return reach.clamp_(min=torch.finfo(reach.dtype).min)


def product_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Number format of the matrix products that ``precision`` stands for on ``device``.

    "auto" is float16 on CUDA, bfloat16 on a CPU with instructions for bfloat16 products
    (AVX512-BF16 or AMX), and float32 elsewhere. On CUDA a half format is used only where the
    product can be had in float32 (PyTorch 2.8), since cuBLAS may otherwise round partial sums.
    """
    if precision == "auto" and device.type == "cuda":
        precision = "fp16"
    elif precision == "auto" and device.type == "cpu":
        # These probes are not in PyTorch's documented interface, so may be absent.
        probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        fast = any(getattr(torch.cpu, probe, bool)() for probe in probes)
        precision = "bf16" if fast else "fp32"
    if device.type == "cuda" and torch.__version__ < "2.8":
        precision = "fp32"
    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)


class Block(NamedTuple):
    """A block of rows as a product takes it."""

    # (n, D + 6), in the format of the products. The rows of a group lie n / group apart, so that
    # the maximum over them runs along memory.
    codes: Tensor
    reach: Tensor  # float32: the largest distance from the centre


class BlockCache:
    """Blocks of one bank's rows, kept from search to search.

    They are of the very tensor that they were made from, unchanged; of another one, all are made
    anew. Never saved, and no part of the result of a search. ``centre`` (D,) is what was
    subtracted from the rows.
    """

    def __init__(self) -> None:
        self._start(None, 0)

    def __reduce__(self) -> tuple[type["BlockCache"], tuple[()]]:
        """A copy of the bank makes its own."""
        return BlockCache, ()

    def _start(self, values: Tensor | None, room: int) -> None:
        self.centre: Tensor | None = None
        self._blocks: dict[tuple[Any, ...], Block] = {}
        self._room = room
        # Weak, so that the cache does not hold rows that the bank has given up.
        self._values = None if values is None else weakref.ref(values)
        self._version = 0 if values is None else values._version

    def of(self, values: Tensor, room: int) -> Self:
        """The cache for rows (N, D) as they now are; it may take ``room`` bytes."""
        if self._values is None or self._values() is not values or self._version != values._version:
            self._start(values, room)
        return self

    def get(self, key: tuple[Any, ...]) -> Block | None:
        """Find what was kept under this key."""
        return self._blocks.get(key)

    def put(self, key: tuple[Any, ...], block: Block) -> None:
        """Keep a copy of a block, if there is room."""
        if block.codes.nbytes <= self._room:
            self._room -= block.codes.nbytes
            self._blocks[key] = Block(block.codes.clone(), block.reach)


def bound(
    rows: StoredTensors,
    queries: Tensor,
    blocks: list[tuple[int, int]],
    centre: Tensor,
    dtype: torch.dtype,
    group: int,
    cache: BlockCache | None = None,
) -> Bounds:
    """Bound the nearness of every group of rows to every query.

    Subtracting ``centre`` from both sides changes no distance and makes the numbers, and with
    them their rounding errors, smaller. The half-norms ride along as extra columns, so that the
    product is ``-|q - b|² / 2`` itself: its rounding is then relative to the distance. Two more
    columns add to it what rounding may have taken away, row by row, so that a few rows far from
    the others do not make the bound worse for all.

    Parameters
    ----------
    rows : StoredTensors
        (N, D).
    queries : Tensor
        (Q, D) float32.
    blocks : list of (int, int)
        First row and end of each block.
    centre : Tensor
        (D,) float32, any vector; best near the middle of the rows.
    dtype : torch.dtype
        Format of the products.
    group : int
        Rows per group.
    cache : BlockCache, optional
        Of these very rows. Not for float16, where a block is scaled to the queries.

    Raises
    ------
    OptionError
        If a row is not finite or its norm exceeds ``NORM_LIMIT``.
    """
    device, dim = queries.device, queries.shape[1]
    most = math.ceil(max(stop - start for start, stop in blocks) / group)
    size = _padded(most) * group
    inner = dim + 2 * _SPLITS + 2
    loss = _Loss.of(inner, dtype, device)
    wide = device.type == "cuda" and dtype != torch.float32
    result = torch.float32 if wide or dtype == torch.float16 else dtype

    near = queries - centre
    query_norms = torch.linalg.vector_norm(near, dim=1)
    height = _padded(len(queries))
    left = torch.zeros((height, inner), dtype=dtype, device=device)
    left_scale, ends = 0.0, query_norms
    offset = torch.empty((size, dim), device=device)
    right = torch.empty((size * inner,), dtype=dtype, device=device)
    product = torch.empty((height * size,), dtype=result if wide else dtype, device=device)
    maxima = torch.full((len(queries), len(blocks), most), -math.inf, dtype=result, device=device)
    slack = torch.empty((len(queries), len(blocks)), device=device)
    farthest = torch.zeros((), device=device)

    for number, (start, stop) in enumerate(blocks):
        there = math.ceil((stop - start) / group)
        groups = _padded(there)
        key = (start, stop, group, dtype, loss.own)
        known = cache.get(key) if cache is not None else None
        if known is None:
            block = offset[: groups * group]
            torch.sub(rows[start:stop], centre, out=block[: stop - start])
            block[stop - start :] = block[stop - start - 1]
            norms = torch.linalg.vector_norm(block, dim=1)
            reach = norms.amax()
        else:
            reach = known.reach
        farthest = torch.maximum(farthest, reach)

        scale = _scale(query_norms, reach) if dtype == torch.float16 else 1.0
        if scale != left_scale:
            filled = left[: len(queries)]
            query_error = _encode(near, query_norms, scale, filled, dim + _SPLITS, 0.0)
            ends = query_norms + query_error
            _write_up(filled[:, -2:], query_error + ends * loss.both, ends * loss.one, scale)
            left_scale = scale
        if known is None:
            coded = right[: groups * group * inner].view(group, groups, inner)
            view = block.view(groups, group, dim).transpose(0, 1)
            across = norms.view(groups, group).T
            error = _encode(view, across, scale, coded, dim, loss.own)
            _write_up(coded[..., -2:], across, error, scale)
            known = Block(coded.view(groups * group, inner), reach)
            if cache is not None:
                cache.put(key, known)

        out = product[: height * groups * group].view(height, groups * group)
        if wide:
            torch.mm(left, known.codes.T, out_dtype=torch.float32, out=out)
        else:
            torch.mm(left, known.codes.T, out=out)
        best = out.view(height, group, groups)[: len(queries), :, :there].amax(1)
        maxima[:, number, :there] = best if scale == 1 else best.to(result) / scale**2
        slack[:, number] = ends.square() * loss.own + (loss.flushed / scale**2 + 1e-34)
    refuse_infinite(farthest.max())
    roundoff = torch.finfo(dtype if not wide else torch.float32).eps / 2
    return Bounds(maxima, slack, roundoff)


def _padded(size: int) -> int:
    """At least ``size``, one of 8 numbers between a power of two and the next.

    A library of matrix products prepares and keeps code for every shape that it meets, half a
    megabyte for each. Where every reference in turn is left out, blocks end at many places.
    """
    step = 1 << max(size.bit_length() - 4, 0)
    return math.ceil(size / step) * step


def _scale(query_norms: Tensor, reach: Tensor) -> float:
    """Power of two that brings every norm to at most 1, since float16 ends at 65504."""
    largest = float(torch.maximum(query_norms.amax(), reach))
    return 2.0 ** -math.ceil(math.log2(largest)) if 0 < largest < NORM_LIMIT else 1.0


def _encode(x: Tensor, norms: Tensor, scale: float, out: Tensor, own: int, loss: float) -> Tensor:
    """Write vectors (..., D) and their half-norms; return the norms of what was rounded off.

    ``out`` (..., D + 6) gets the vectors, two columns for the rows' half-norms and two for the
    queries', of which those not starting at column ``own`` are 1. The last two are left. A
    half-norm is made nearer to 0 by the share ``loss`` of the squared norm.
    """
    dim = x.shape[-1]
    out[..., :dim] = x if scale == 1 else x * scale
    out[..., dim : dim + 2 * _SPLITS] = 1
    half = (norms * scale).square() * (loss - 0.5)
    out[..., own] = half
    out[..., own + 1] = half - out[..., own]
    if out.dtype == torch.float32:
        return torch.zeros_like(norms)
    lost = out[..., :dim].float()
    if scale != 1:
        lost /= scale
    error: Tensor = torch.linalg.vector_norm(lost.sub_(x), dim=-1)
    return error


def _write_up(out: Tensor, one: Tensor, two: Tensor, scale: float) -> None:
    """Write two columns, rounded up."""
    up = scale * (1 + 4 * torch.finfo(out.dtype).eps)
    out[..., 0] = one * up
    out[..., 1] = two * up


class _Loss(NamedTuple):
    """By how much a product may be too small before its result is rounded, for norms q and b.

    The standard model of floating-point error (Higham, Accuracy and Stability of Numerical
    Algorithms, 2nd ed., 2002, §3.1): a sum of n products in any order is off by at most
    n·u·Σ|xᵢyᵢ| to first order, and Σ|xᵢyᵢ| ≤ q·b + q² + b². What the format rounds off the inputs,
    e and f, is measured, and enters by the Cauchy-Schwarz inequality as e·b + (q + e)·f.
    """

    own: float  # factor of q² and of b²
    both: float  # factor of (q + e)·b
    one: float  # factor of (q + e)·f
    flushed: float  # what numbers lose that are too small for the format

    @classmethod
    def of(cls, terms: int, dtype: torch.dtype, device: torch.device) -> "_Loss":
        """Factors for products of ``terms`` numbers."""
        roundoff = torch.finfo(dtype).eps / 2
        # Matrix units may truncate where they add: allow four times the roundoff of float32. The
        # last two columns are small beside the others, and covered by 2 %.
        adding = 1.02 * terms * _FLOAT32_ROUNDOFF * (1 if dtype == torch.float32 else 4)
        # Centring, the norms and the measured errors are themselves computed in float32.
        measuring = (terms + 8) * _FLOAT32_ROUNDOFF
        # Below the normal range float16 still rounds to multiples of 2⁻²⁴; bfloat16 may flush.
        flushed = 2.0**-25 if dtype == torch.float16 else 2.0**-126
        reduced = dtype == torch.float32 and not plain_float32(device)
        own = adding + measuring + roundoff**2 + 2.0**-5 * reduced
        return cls(own, adding + 2 * measuring, 1 + adding, 4 * terms * flushed)


def plain_float32(device: torch.device) -> bool:
    """Whether float32 products are computed as such, not in TF32 or bfloat16."""
    if torch.get_float32_matmul_precision() != "highest":
        return False
    backend = {"cpu": torch.backends.mkldnn, "cuda": torch.backends.cuda}.get(device.type)
    modes = (
        getattr(getattr(backend, "matmul", None), "fp32_precision", "ieee"),
        getattr(torch.backends, "fp32_precision", "ieee"),
    )
    return backend is not None and all(mode in ("ieee", "none") for mode in modes)
