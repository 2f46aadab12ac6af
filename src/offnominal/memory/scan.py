"""The search where the first stage compares sketches (:mod:`offnominal.memory.sketch`).

The sketches are passed over once, in groups of consecutive rows. What a query has found so far
rules out nearly every group. The others wait; from time to time the most promising of them are
compared exactly, which rules out more.
"""

import math

import torch
from torch import Tensor

from offnominal.memory.exact import NOTHING, batches, distances_of, offer, sample
from offnominal.memory.nearly import nearly
from offnominal.memory.sketch import Sketch
from offnominal.memory.storage import Stored

__all__ = ["MOST_NEIGHBOURS", "scan"]

Spans = list[tuple[int, int]]

_GROUP = 16
MOST_NEIGHBOURS = _GROUP
"""Neighbours that one group always has."""
# Values of a product, which should stay within a core's own cache, and of the groups' maxima.
_PRODUCT, _MAXIMA = 2**20, 2**20
# One group in so many gives a first idea of how near the nearest rows are.
_STRIDE = 16
# If more than one group in so many is left, of the first so many, another way is quicker.
_CROWD, _START = 16, 256
# Groups that may begin to wait, for each query, before the most promising are compared.
_MORE = 64
# Groups that wait for each query, from which on queries are better looked at one by one.
_FEW = 256
_ENTRY = 32  # bytes of one that waits, and to sort it
_NEVER, _ALWAYS = torch.iinfo(torch.int32).min, torch.iinfo(torch.int32).max
_WORD = 8


def scan(
    rows: Tensor | Stored, sketch: Sketch, queries: Tensor, k: int, spans: Spans, memory: int
) -> Tensor | None:
    """Find the ``k`` nearest rows of each query.

    Parameters
    ----------
    rows : Tensor or Stored
        (N, D) float32, on a CPU.
    sketch : Sketch
        Of these rows.
    queries : Tensor
        (Q, D) float32, finite.
    k : int
        At most ``MOST_NEIGHBOURS``, and at most the number of rows in ``spans``.
    spans : list of (int, int)
        First row and end of each stretch of rows to search, ascending.
    memory : int
        Bytes that may be used, as far as a group of rows allows.

    Returns
    -------
    Tensor or None
        Keys (Q, k) int64, ascending. None where the sketches rule out so little that another way
        is quicker.
    """
    inside = [(-(-a // _GROUP), b // _GROUP) for a, b in spans if b // _GROUP > -(-a // _GROUP)]
    if not inside:  # too few rows for a whole group
        return None
    allowed = None
    if spans != [(0, len(rows))]:
        allowed = torch.zeros(len(rows), dtype=torch.bool)
        for start, stop in spans:
            allowed[start:stop] = True
    first = _Scan(rows, sketch, queries, k, allowed, memory)
    first.look_at(torch.cat([a + sample(b - a, math.ceil((b - a) / _STRIDE)) for a, b in inside]))
    work = _Scan(rows, sketch, queries, k, allowed, memory)
    work.known = distances_of(first.best[:, -1])
    del first
    for start, stop in spans:
        work.pass_over(start, stop)
        if work.crowded:
            return None
    work.finish()
    return work.best


class _Scan:
    """A scan in progress.

    Attributes
    ----------
    best : Tensor
        (Q, k) int64: keys of the nearest rows that were compared exactly.
    known : Tensor
        (Q,) float32: squared distances that are known to be no less than the k-th smallest.
    crowded : bool
        Whether so much is left that the scan had better stop.
    """

    def __init__(
        self,
        rows: Tensor | Stored,
        sketch: Sketch,
        queries: Tensor,
        k: int,
        allowed: Tensor | None,
        memory: int,
    ) -> None:
        self.rows, self.sketch, self.queries, self.allowed = rows, sketch, queries, allowed
        self.coded = sketch.of(queries)
        # Masks are read eight values at a time, so there are columns that nothing is found in.
        count = -(-len(queries) // _WORD) * _WORD
        self.codes = self.coded.codes.new_zeros((count, self.coded.codes.shape[1]))
        self.codes[: len(queries)] = self.coded.codes
        self.best = torch.full((len(queries), k), NOTHING)
        self.known = torch.full((len(queries),), math.inf)
        self.crowded = False
        # Groups that wait: their queries, numbers and values.
        self.waiting: list[tuple[Tensor, Tensor, Tensor]] = []
        self.done = self.seen = self.held = self.fresh = 0
        self.more = min(_MORE * count, memory // (8 * _ENTRY))
        self.room = memory // (2 * _ENTRY)
        self.touch = max(_GROUP, min(memory // 8, 2**22) // (8 * rows.shape[1]))
        self.chunk = max(1, min(memory // 8, 2**21) // (_GROUP * sketch.codes.shape[1]))
        self.step = max(1, min(_PRODUCT, memory // 16) // count // _GROUP)
        self.blocks = max(1, min(_MAXIMA, memory // 128) // count // self.step)
        self.product = torch.empty((self.step * _GROUP, count), dtype=torch.int32)
        self.maxima = torch.empty((self.step * self.blocks, count), dtype=torch.int32)
        self.steps = torch.arange(_GROUP)

    def look_at(self, groups: Tensor) -> None:
        """Compare the best of some whole groups (n,) exactly."""
        codes = self.sketch.codes
        codes = codes[: len(codes) // _GROUP * _GROUP].view(-1, _GROUP, codes.shape[1])
        value = torch.full((len(self.codes),), _NEVER, dtype=torch.int32)
        best = torch.zeros(len(self.codes), dtype=torch.int64)
        for part in batches(len(groups), self.step):
            found = self._maxima(codes[groups[part]].flatten(0, 1), self.maxima)
            high, where = found.max(0)
            best = torch.where(high > value, groups[part][where], best)
            value = torch.maximum(high, value)
        who = torch.arange(len(self.queries))
        self._compare(who, best[: len(who), None] * _GROUP + self.steps)

    def pass_over(self, start: int, stop: int) -> None:
        """Look at a stretch of rows."""
        size = self.step * _GROUP
        # A group between two stretches was looked at with the first of them.
        start, self.done = max(start, self.done * _GROUP), -(-stop // _GROUP)
        end = min(-(-stop // _GROUP) * _GROUP, len(self.rows))
        for part in batches(end, size * self.blocks, start // _GROUP * _GROUP):
            first = part.start // _GROUP
            for rows in batches(part.stop, size, part.start):
                self._maxima(self.sketch.codes[rows], self.maxima[rows.start // _GROUP - first :])
            maxima = self.maxima[: -(-part.stop // _GROUP) - first]
            group, who = _places(maxima >= self._columns())
            if len(who):
                value = maxima[group, who]
                self.waiting.append((who.int(), (group + first).int(), value))
                self.fresh += len(who)
            # The list at most doubles, so that it is not gone through too often.
            self.seen += len(maxima)
            if self.fresh > max(self.more, self.held):
                self._compare_best()
                if self.crowded:
                    return

    def finish(self) -> None:
        """Compare what still waits."""
        self._compare_best()
        if self.waiting:
            self._compare_waiting()

    def _compare_waiting(self) -> None:
        """Compare everything on the list, and clear it."""
        who, group = (torch.cat([entry[i] for entry in self.waiting]).long() for i in (0, 1))
        self.waiting, self.held = [], 0
        if len(who) < _FEW * len(self.queries):
            self._compare_few(who, group)
        else:
            self._compare_many(who, group)

    def _compare_few(self, who: Tensor, group: Tensor) -> None:
        """Compare queries ``who`` (n,) with groups (n,): all queries at once."""
        bar, found = self._bar(), []
        for part in batches(len(who), self.chunk):
            row = group[part, None] * _GROUP + self.steps
            codes = self.sketch.codes.index_select(0, row.clamp(max=len(self.rows) - 1).flatten())
            mine = self.codes[who[part], None].float()
            # Whole numbers below 2²⁴, so float32 has them exactly.
            value = codes.float().view(*row.shape, -1).mul_(mine).sum(-1).int()
            pair, step = (
                ((value >= bar[who[part], None]) & (row < len(self.rows))).nonzero().unbind(1)
            )
            found.append((who[part][pair], row[pair, step], value[pair, step]))
        who, row, value = (torch.cat(each) for each in zip(*found, strict=True))
        high = torch.full((len(self.queries),), torch.iinfo(torch.int64).min)
        high.scatter_reduce_(0, who, _ranks(value, row), "amax")
        best = _ranks(value, row) == high[who]
        self._compare(who[best], row[best, None])
        left = ~best & (value >= self._bar()[who])
        self._compare(who[left], row[left, None])

    def _compare_many(self, who: Tensor, group: Tensor) -> None:
        """Compare queries ``who`` (n,) with groups (n,): one query after the other."""
        counts = who.bincount(minlength=len(self.queries)).tolist()
        bars = self._bar().tolist()
        found = []
        for number, mine in enumerate(torch.split(group[who.argsort()], counts)):
            row = self._rows_that_matter(number, mine, bars[number])
            found.append((torch.full_like(row, number), row))
        who, row = (torch.cat(each) for each in zip(*found, strict=True))
        self._compare(who, row[:, None])

    def _rows_that_matter(self, number: int, groups: Tensor, bar: int) -> Tensor:
        """Rows (n,) int64 of some groups (m,) int64 that query ``number`` must be compared with."""
        codes, size = self.sketch.codes, len(self.rows) // _GROUP
        whole, found = codes[: size * _GROUP].view(size, -1), [groups[:0]]
        for part in batches(len(groups), self.chunk):
            mine = groups[part]
            # A product with one vector: many times faster than one of pairs.
            picked = whole.index_select(0, mine.clamp(max=size - 1)).view(-1, codes.shape[1])
            value = torch._int_mm(picked, self.coded.codes[number, :, None]).view(-1, _GROUP)
            # The last group may be incomplete, and is compared as it is.
            value[mine >= size] = _ALWAYS
            place = (value.flatten() >= bar).nonzero()[:, 0]
            found.append(mine[place // _GROUP] * _GROUP + place % _GROUP)
        row = self._existing(torch.cat(found))
        row = row[row >= 0]
        low, high = [], [distances_of(self.best[number, -1:]).double()]
        for part in batches(len(row), self.touch):
            bounds = nearly(self.rows, self.sketch.norms, self.queries[number], row[part])
            low.append(bounds[0])
            high.append(bounds[1])
        if not low:
            return row
        # The k-th of the upper bounds and of what was compared is no less than the k-th smallest.
        nearest = torch.cat(high[1:])
        k = self.best.shape[1]
        kth = high[0] if len(nearest) < k else high[0].minimum(nearest.kthvalue(k).values)
        return row[torch.cat(low) <= kth * (1 + 2.0**-18) + 1e-34]

    def _maxima(self, codes: Tensor, out: Tensor) -> Tensor:
        """Largest product of any row of each group, (n / 16, Q), in the first rows of ``out``."""
        short = -len(codes) % _GROUP
        if short:
            codes = torch.cat([codes, codes[-1:].expand(short, -1)])
        product = self.product[: len(codes)]
        torch._int_mm(codes, self.codes.T, out=product)
        out = out[: len(codes) // _GROUP]
        return torch.amax(product.view(-1, _GROUP, product.shape[1]), 1, out=out)

    def _bar(self) -> Tensor:
        """Values (Q,) int32 that a row must reach to matter."""
        kth = distances_of(self.best[:, -1]).minimum(self.known)
        return self.sketch.thresholds(self.coded, kth)

    def _columns(self) -> Tensor:
        """As :meth:`_bar`, for every column of the products."""
        bar = torch.full((len(self.codes),), _ALWAYS, dtype=torch.int32)
        bar[: len(self.queries)] = self._bar()
        return bar

    def _compare_best(self) -> None:
        """Compare the best group of each query, and drop what that rules out."""
        high = torch.full((len(self.queries),), torch.iinfo(torch.int64).min)
        for who, group, value in self.waiting:
            high.scatter_reduce_(0, who.long(), _ranks(value, group), "amax")
        kept = []
        for who, group, value in self.waiting:
            best = _ranks(value, group) == high[who]
            self._compare(who[best].long(), group[best, None].long() * _GROUP + self.steps)
            kept.append((who[~best], group[~best], value[~best]))
        bar = self._bar()
        for number, (who, group, value) in enumerate(kept):
            left = value >= bar[who]
            kept[number] = who[left], group[left], value[left]
        self.waiting = [entry for entry in kept if len(entry[0])]
        self.held, self.fresh = sum(len(entry[0]) for entry in kept), 0
        self.crowded = self.held * _CROWD > max(self.seen, _START) * len(self.queries)
        if self.held > self.room and not self.crowded:
            self._compare_waiting()

    def _compare(self, who: Tensor, index: Tensor) -> None:
        """Compare queries ``who`` (n,) with rows ``index`` (n, G) exactly."""
        offer(self.rows, self.queries, self.best, who, self._existing(index), self.touch)

    def _existing(self, index: Tensor) -> Tensor:
        """Numbers of rows, -1 for those that do not exist or are not searched."""
        wrong = index >= len(self.rows)
        if self.allowed is not None:
            wrong |= ~self.allowed[index.clamp(max=len(self.rows) - 1)]
        return index.masked_fill(wrong, -1)


def _ranks(value: Tensor, group: Tensor) -> Tensor:
    """Numbers (n,) int64 in the order of values, and none twice for a query."""
    return value.long() << 32 | group


def _places(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Where a sparse mask (n, m) holds, m a multiple of 8: (p,) int64 rows and columns."""
    word = mask.view(torch.int64).flatten().nonzero()[:, 0]
    some, byte = mask.view(-1, _WORD)[word].nonzero().unbind(1)
    place = word[some] * _WORD + byte
    return place // mask.shape[1], place % mask.shape[1]
