"""Whether a front runs as CUDA graphs: measured on the device where a module first is called again, and kept.

Graphs save the host's time, by which a batch may keep the device waiting. In return batches are made alike, which is
more work; and they are worth being captured only where batches of their kind come again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from kcompile.core.interval import IntArray
from kcompile.core.plan import Plan
from kcompile.core.region import Region
from kcompile.cuda_ops.tuning import Times, Tuner, tuner
from kcompile.runtime.buckets import buckets
from kcompile.runtime.budget import largest as fitting
from kcompile.runtime.captures import Captures, cleans_up, current, switches
from kcompile.runtime.choice import Choice
from kcompile.runtime.cuda_graphs import ERROR, Graphed
from kcompile.runtime.pool import SHARE, Pool

ENABLED: bool | None = None  # True: always; False: never; None: where measured to be faster, from PyTorch 2.13 on
GAIN = 0.9  # of the time without graphs: with them it must take less
PLAIN, REPLAYED = 0, 1

Batches = list[tuple[IntArray, int]]  # queries, and how many of them count: the rest fills up


@dataclass
class Replaying:
    """Decides for each call.

    Attributes:
        graphed: The front with graphs.
        tuner: What measures on the device.
        always: Nothing is measured.
        times: What was measured, by front and size of batch.
        calls: How many there were; the first one is not worth measuring for.
    """

    graphed: Graphed
    tuner: Callable[[], Tuner]
    always: bool = False
    times: dict[Hashable, Times | None] = field(default_factory=dict)
    calls: int = 0

    def batches(
        self,
        plan: Plan,
        regions: Sequence[Region],
        plain: Sequence[IntArray],
        choice: Choice,
        arguments: Callable[[IntArray], list[Any]],
    ) -> Batches | None:
        """The batches of a call that is to be replayed; None where it is not.

        Args:
            plan: Gives the multiply-adds per cell.
            regions: The plan's regions for all queries.
            plain: The batches as they would be without graphs.
            choice: The cost model.
            arguments: Gives the front's for some queries.
        """
        self.calls += 1
        if not self.graphed.most:
            return None
        largest = max(plain, key=len)
        most = self._most(len(largest))
        if 2 * most < len(largest):  # so small batches would lose more
            return None
        times = None if self.always else self._times(largest[:most], arguments)
        if not self.always and (times is None or not _pays(times, 1.0)):
            return None
        found = buckets(plan, regions, np.concatenate(plain), most, choice.overhead)
        widest = max(len(rows) for rows, _ in found)
        if widest > len(largest) and self.graphed.pool.limit is not None:
            return None
        if times is not None:
            more = work(choice, regions, [rows for rows, _ in found]) / work(choice, regions, plain)
            if not _pays(times, more):
                return None
        self.graphed.largest = widest
        return found

    def _most(self, rows: int) -> int:
        """How many queries a batch may have, of so many, for its graph to fit into the pool."""
        limit = self.graphed.pool.limit
        return rows if limit is None else fitting(rows, lambda n: 2 * self.graphed.in_flight(n) <= limit)

    def _times(self, rows: IntArray, arguments: Callable[[IntArray], list[Any]]) -> Times | None:
        """Seconds of a batch both ways, if they are known or can be found out now."""
        key = self._key(len(rows))
        if key not in self.times:
            known = self.tuner().recall(key)
            if known is None and self.calls < 2:
                return None
            self.times[key] = known or self._measured(key, arguments(rows))
        return self.times[key]

    def _measured(self, key: tuple[Hashable, ...], args: list[Any]) -> Times | None:
        """None where a graph can't be made of this batch, under the limit."""
        graphed = self.graphed
        graphed(*args)  # a kind that came before can be captured
        ways: dict[int, Callable[[], Tensor]] = {
            PLAIN: lambda: graphed.front(*args)[0],
            REPLAYED: lambda: graphed(*args)[0],
        }
        try:
            found = self.tuner().times(key, lambda: ways, ERROR) if graphed.captured(args) else None
        except torch.OutOfMemoryError:  # for both ways at once
            found = None
        if found is None or not _pays(found, 1.0):
            graphed.drop()
        return found

    def _key(self, rows: int) -> tuple[Hashable, ...]:
        return ("replayed front", self._digest, 1 << (rows - 1).bit_length())

    @cached_property
    def _digest(self) -> str:
        return digest(self.graphed.front)


def replaying(
    front: fx.GraphModule, device: torch.device, budget: int | None, in_flight: Callable[[int], int]
) -> Replaying | None:
    """What decides for a front on a device; None where there are no CUDA graphs, or a failing one would do harm.

    Args:
        front: As it runs on the device.
        device: Where.
        budget: The memory budget in bytes, or None.
        in_flight: See `Graphed`.
    """
    if device.type != "cuda" or ENABLED is False or (ENABLED is None and not cleans_up()):
        return None
    pool = Pool(None if budget is None else budget // SHARE)
    graphed = Graphed(front, Captures(), current, pool, in_flight, switches=switches)
    return Replaying(graphed, lambda: tuner(device), ENABLED is True)


def work(choice: Choice, regions: Sequence[Region], batches: Sequence[IntArray]) -> float:
    """Estimated cost of batches: each query costs what the batch's largest extents do."""
    extents = np.stack([np.stack([axis.size for axis in region.axes]) for region in regions])
    total = 0.0
    for rows in batches:
        cells = extents[:, :, rows].max(axis=2).astype(np.float64).prod(axis=1)
        total += len(rows) * (float(choice.cell_costs @ cells) + choice.fixed)
    return total


def digest(front: fx.GraphModule) -> str:
    """The same for fronts that launch the same kernels."""
    weights = [(name, tuple(value.shape), str(value.dtype)) for name, value in front.named_buffers()]
    weights += [(name, tuple(value.shape), str(value.dtype)) for name, value in front.named_parameters()]
    return hashlib.sha256(repr((front.code, sorted(weights))).encode()).hexdigest()[:24]


def _pays(times: Times, more: float) -> bool:
    """True if graphs are faster, although they have so many times the work."""
    found = dict(times)
    plain, replayed = found[PLAIN], found.get(REPLAYED)
    return plain is not None and replayed is not None and more * replayed < GAIN * plain
