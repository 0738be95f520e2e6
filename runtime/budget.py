"""Memory budget: how many queries, and how many images, go at a time so that all that is held fits.

What counts is the base store and the working memory of a call. An eighth of the budget is left to what isn't metered:
the indices of the queries' windows, patches that a fill makes, and what PyTorch's convolutions take for themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from kcompile.core.errors import InputError, MemoryBudgetError
from kcompile.core.plan import Plan
from kcompile.runtime.metering import Footprint

RESERVE = 8  # an eighth
SURPLUS = 4  # a quarter at most for packed weights that are larger than the weights
CHUNK_BYTES = 64 << 20  # of patches that differ by position, at a time, where there is no budget


@dataclass(frozen=True)
class Kinds:
    """Types and shapes of what queries are made of.

    Attributes:
        rows: One row of the images, and of each other input with rows.
        dtypes: The types of the base tensors, by name.
    """

    rows: tuple[Tensor, ...]
    dtypes: dict[str, torch.dtype]


@dataclass(frozen=True)
class Budget:
    """A budget of so many bytes, for runs on what ``kinds`` says."""

    nbytes: int
    kinds: Kinds

    def room(self, held: int) -> int:
        """What is left for working memory where so many bytes are held."""
        return usable(self.nbytes) - held

    def at_once(self, plan: Plan, batch: int) -> int:
        """Queries whose boxes are worked out at once; each has some numbers per region."""
        each = 6 * 8 * sum(len(entry.shape) for entry in plan.regions)
        return max(self.nbytes // (2 * RESERVE) // max(each, 1), batch, 1)


@dataclass(frozen=True)
class Limits:
    """How many queries go at a time.

    Attributes:
        batch: In a batch of the front; 0: not even one fits.
        queue: Waiting for the tail.
        tail: In a run of the tail.
        full: In full inference; 0: not even one fits.
    """

    batch: int
    queue: int
    tail: int
    full: int


@dataclass(frozen=True)
class Needs:
    """What queries take, in bytes; see `Footprint`.

    Attributes:
        front: The front.
        tail: The tail, without its inputs.
        full: Full inference.
        row: The tail's inputs, per query.
    """

    front: Footprint
    tail: Footprint
    full: Footprint | None
    row: int

    def incremental(self, batch: int, queue: int, tail: int) -> int:
        """The peak of an incremental run with these limits."""
        queued = queue * self.row
        results = queued if self.tail.aliases else tail * self.tail.outputs  # of the group before, which is in use
        if queue == 1:  # a lone query needs no queue
            return results + max(self.front.peak(1), self.row + self.tail.peak(1))
        last = batch * self.row  # of the batch that no longer fitted
        return results + queued + max(self.front.peak(batch), last + self.tail.peak(tail))

    def least(self, policy: str) -> int:
        """The least that one query takes."""
        ways = [self.incremental(1, 1, 1)] if policy != "full" else []
        if self.full is not None and policy != "incremental":
            ways.append(self.full.peak(1) + self.full.outputs)
        return min(ways)

    def limits(self, room: int, most: Limits) -> Limits:
        """The largest numbers that fit into so many bytes, up to ``most``."""

        def fits(batch: int, queue: int, tail: int) -> bool:
            return self.incremental(batch, queue, tail) <= room

        full = self.full
        images = 0 if full is None else largest(most.full, lambda n: full.peak(n) + n * full.outputs <= room)
        batch = largest(most.batch, lambda n: 2 * self.front.peak(n) <= room and fits(n, n, 1))
        batch = batch or largest(most.batch, lambda n: fits(n, n, 1))
        if not batch:
            return Limits(0, 0, 0, images)
        queue = largest(max(most.queue, batch), lambda n: n <= batch or fits(batch, n, min(n, most.tail)))
        queue = max(queue, batch)
        tail = max(largest(min(queue, most.tail), lambda n: fits(batch, queue, n)), 1)
        batch = max(batch, largest(most.batch, lambda n: fits(n, max(queue, n), tail)))
        return Limits(batch, max(queue, batch), tail, images)


def largest(most: int, fits: Callable[[int], bool]) -> int:
    """The largest number up to ``most`` that fits, given that all smaller ones do too; 0 if not even 1 does."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def check_budget(value: Any) -> int | None:
    """A memory budget in bytes, or None for none.

    Raises:
        InputError: Anything else.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < 1:
        raise InputError(f"memory_budget is {value!r}; allowed are an integer of at least 1 (bytes) and None, no limit")
    return int(value)


def usable(budget: int) -> int:
    """The part of a budget that is dealt out."""
    return budget - budget // RESERVE


def too_small(budget: int, needed: int, what: str) -> MemoryBudgetError:
    """The error for a budget that can't be kept.

    Args:
        budget: What was given.
        needed: What it would take, in bytes, without the reserve.
        what: For what.
    """
    least = needed * RESERVE // (RESERVE - 1) - 1
    while usable(least) < needed:
        least += 1
    return MemoryBudgetError(f"memory_budget is {budget:,} bytes; {what} takes {least:,}")
