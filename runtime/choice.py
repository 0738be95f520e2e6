"""Choice: does a call run incrementally, or is full inference of the patched images faster?

An estimate from the plan decides where it is clear. Where it is close, the first batches are run both ways and timed:
how fast a machine copies and multiplies is not known from the plan.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from math import ceil, prod

import numpy as np
import numpy.typing as npt

from kcompile.core.plan import MACS_PER_VALUE, Layer, Placement, Plan
from kcompile.core.region import Region

FloatArray = npt.NDArray[np.float64]

FULL_BATCH = 16
WORTH_TIMING = 48  # queries
UNMEASURED = 0.85  # what is gained by less than this is not worth the risk that the estimate is wrong


@dataclass(frozen=True)
class Costs:
    """What a kind of device asks for; costs are in multiply-adds.

    Attributes:
        batch: Queries in a batch of the front, at most.
        full_batch: Images in a batch of full inference.
        per_op: Of one op of the front in one more batch: host time, geometry included.
        per_byte: Of each byte of weights, which each batch reads again.
        full_per_op: Of one op of full inference in one more batch.
        clear: An estimated ratio below this, or above its inverse, is believed; else both ways are timed.
    """

    batch: int = 32
    full_batch: int = FULL_BATCH
    per_op: float = 1e7
    per_byte: float = 3.0
    full_per_op: float = 1e6
    clear: float = 0.6


# Two cores do some 100 multiply-adds a ns; an op takes 0.1 ms of the host in the front, 20 us in full inference.
CPU = Costs()
# Tensor cores do some 60,000 a ns beside 2 bytes of memory in 1/1000 ns; an op takes 5 us of the host. Estimated, not
# measured: so more is timed.
GPU = Costs(batch=256, full_batch=64, per_op=3e8, per_byte=30.0, full_per_op=3e8, clear=0.35)


class Way(StrEnum):
    """How to run a call."""

    INCREMENTAL = "incremental"
    FULL = "full"
    TIMED = "timed"


@dataclass
class Choice:
    """The estimates for a plan, in multiply-adds, and what was measured.

    Attributes:
        plan: The plan.
        overhead: Cost of one more batch of the front.
        costs: What the device asks for.
        rates: Seconds per estimated multiply-add of each way, once measured.
    """

    plan: Plan
    overhead: float
    costs: Costs = CPU
    rates: dict[Way, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Sum up the plan's layers."""
        plan = self.plan
        self.cell_costs = np.zeros(len(plan.regions))
        for layer in plan.layers:
            if layer.placement is Placement.INCREMENTAL and layer.region is not None:
                self.cell_costs[layer.region] += _cost(layer) / max(prod(plan.regions[layer.region].shape), 1)
        fixed = sum(_cost(layer) for layer in plan.layers if layer.placement is Placement.DENSE)
        for read in plan.reads:
            copied = 2 * MACS_PER_VALUE * prod(plan.base(read.base).shape)
            if read.target is None:
                fixed += copied
            else:
                self.cell_costs[read.target] += copied / max(prod(plan.regions[read.target].shape), 1)
        self.fixed = fixed
        self.full_query = sum(_cost(layer) for layer in plan.layers)
        self.full_batch = self.costs.full_per_op * len(plan.layers)

    def queries(self, regions: Sequence[Region]) -> FloatArray:
        """Estimated cost [N] of each query, run incrementally."""
        cells = np.stack([np.asarray(region.cells, dtype=np.float64) for region in regions])
        return np.asarray(self.cell_costs @ cells + self.fixed)

    def full(self, count: int) -> float:
        """Estimated cost of full inference of so many queries."""
        return count * self.full_query + ceil(count / self.costs.full_batch) * self.full_batch

    def incremental(self, queries: FloatArray, batches: int) -> float:
        """Estimated cost of an incremental run."""
        return float(queries.sum()) + batches * self.overhead

    def way(self, queries: FloatArray, batches: int, *, timed: bool = True) -> Way:
        """How to run a call of these queries; TIMED only where that is allowed."""
        ours, theirs = self.incremental(queries, batches), self.full(len(queries))
        if ours < self.costs.clear * theirs:
            return Way.INCREMENTAL
        if ours > theirs / self.costs.clear:
            return Way.FULL
        if timed and not self.rates and len(queries) >= WORTH_TIMING and batches > 2:
            return Way.TIMED
        faster = ours * self.rates.get(Way.INCREMENTAL, 1.0) <= theirs * self.rates.get(Way.FULL, UNMEASURED)
        return Way.INCREMENTAL if faster else Way.FULL


def _cost(layer: Layer) -> float:
    return layer.macs + MACS_PER_VALUE * prod(layer.shape)
