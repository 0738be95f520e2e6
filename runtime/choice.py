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
FULL_MACS_PER_OP = 1e6  # host time of one op of full inference, about 20 us
CLEAR = 0.6  # an estimated ratio below this, or above its inverse, is believed
WORTH_TIMING = 48  # queries
UNMEASURED = 0.85  # what is gained by less than this is not worth the risk that the estimate is wrong


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
        rates: Seconds per estimated multiply-add of each way, once measured.
    """

    plan: Plan
    overhead: float
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
        self.full_batch = FULL_MACS_PER_OP * len(plan.layers)

    def queries(self, regions: Sequence[Region]) -> FloatArray:
        """Estimated cost [N] of each query, run incrementally."""
        cells = np.stack([np.asarray(region.cells, dtype=np.float64) for region in regions])
        return np.asarray(self.cell_costs @ cells + self.fixed)

    def full(self, count: int) -> float:
        """Estimated cost of full inference of so many queries."""
        return count * self.full_query + ceil(count / FULL_BATCH) * self.full_batch

    def incremental(self, queries: FloatArray, batches: int) -> float:
        """Estimated cost of an incremental run."""
        return float(queries.sum()) + batches * self.overhead

    def way(self, queries: FloatArray, batches: int, *, timed: bool = True) -> Way:
        """How to run a call of these queries; TIMED only where that is allowed."""
        ours, theirs = self.incremental(queries, batches), self.full(len(queries))
        if ours < CLEAR * theirs:
            return Way.INCREMENTAL
        if ours > theirs / CLEAR:
            return Way.FULL
        if timed and not self.rates and len(queries) >= WORTH_TIMING and batches > 2:
            return Way.TIMED
        faster = ours * self.rates.get(Way.INCREMENTAL, 1.0) <= theirs * self.rates.get(Way.FULL, UNMEASURED)
        return Way.INCREMENTAL if faster else Way.FULL


def _cost(layer: Layer) -> float:
    return layer.macs + MACS_PER_VALUE * prod(layer.shape)
