"""Runs queries of an exported model batch by batch, in the cheaper of two ways. Imports no torch."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from math import prod
from typing import Literal, TypeAlias

import numpy as np

from kcompile.core.interval import IntArray
from kcompile.core.onnx_files import INCREMENTAL
from kcompile.core.plan import Placement, Plan
from kcompile.core.region import evaluate
from kcompile.runtime.choice import CPU, Choice, Way
from kcompile.runtime.onnx_bases import Base, Materializer
from kcompile.runtime.onnx_queries import ArrayBox, paste
from kcompile.runtime.onnx_session import Array, Sessions
from kcompile.runtime.scheduler import patch_regions, schedule

Results: TypeAlias = Iterator[tuple[IntArray, list[Array]]]
Policy: TypeAlias = Literal["auto", "incremental", "full"]

BATCH = 32
DENSE_BYTES = 64 << 20  # of a batch's largest dense tensor: more leaves the caches, and takes memory anew each time
# What one more batch costs: geometry and the calls of some 10 nodes per layer; two cores do 100 multiply-adds a ns.
OVERHEAD_MACS_PER_LAYER = 1e7
_TIMED = 4  # queries of full inference that are timed


def fitting_batch(plan: Plan) -> int:
    """Queries in one run: up to 32, fewer where dense layers make large tensors for each of them."""
    whole = [plan.base(read.base).shape for read in plan.reads if read.target is None]
    dense = [layer.shape for layer in plan.layers if layer.placement is Placement.DENSE]
    largest = max((prod(shape) for shape in (*whole, *dense)), default=1)
    return max(1, min(BATCH, DENSE_BYTES // (4 * max(largest, 1))))


class Runs:
    """Runs the queries of one patched box each.

    Attributes:
        batch: Queries in one run of ``incremental.onnx``.
        choice: What either way costs, as the plan tells and as was measured.
    """

    def __init__(self, plan: Plan, sessions: Sessions, materializer: Materializer) -> None:
        """Open ``incremental.onnx``."""
        self.plan, self.sessions, self.materializer = plan, sessions, materializer
        self.batch = fitting_batch(plan)
        self.overhead = OVERHEAD_MACS_PER_LAYER * len(plan.layers)
        self.choice = Choice(plan, self.overhead, replace(CPU, full_batch=1))
        sessions.open(INCREMENTAL)

    def run(self, base: Base, box: ArrayBox, rows: IntArray, images: Array, which: IntArray, policy: Policy) -> Results:
        """Indices of some queries and their results, until all are done.

        Args:
            base: What they are copies of.
            box: Of all queries of the call.
            rows: Those that are wanted.
            images: [B, C, *S], what lies beneath.
            which: Each query's image among them.
            policy: "incremental" or "full", or "auto" for the cheaper one.
        """
        batches = [
            rows[some] for some in schedule(self.plan, box.positions[rows], box.sizes, self.batch, self.overhead)
        ]
        if not batches:
            return
        way = Way(policy) if policy != "auto" else self._way(box, rows, len(batches))
        if way is Way.TIMED:
            yield from self._timed(base, box, batches[:3], images, which)
            batches = batches[3:]
            way = self._way(box, rows, len(batches))
        for some in batches:
            if way is Way.FULL:
                yield from self._full(base, box, some, images, which)
            else:
                yield self._incremental(base, box, some, images, which)

    def _costs(self, box: ArrayBox, rows: IntArray) -> Array:
        """Estimated cost of each query, run incrementally."""
        return self.choice.queries(evaluate(self.plan.regions, patch_regions(box.positions[rows], box.sizes)))

    def _way(self, box: ArrayBox, rows: IntArray, batches: int) -> Way:
        return self.choice.way(self._costs(box, rows), batches)

    def _timed(self, base: Base, box: ArrayBox, batches: list[IntArray], images: Array, which: IntArray) -> Results:
        """Three batches: the first to warm up, the second timed, of the third some in full, timed after the first."""
        warm, second, third = batches
        yield self._incremental(base, box, warm, images, which)
        start = time.perf_counter()
        found = self._incremental(base, box, second, images, which)
        seconds = time.perf_counter() - start
        self.choice.rates[Way.INCREMENTAL] = seconds / self.choice.incremental(self._costs(box, second), 1)
        yield found
        yield from self._full(base, box, third[:1], images, which)
        some = third[1 : _TIMED + 1]
        start = time.perf_counter()
        made = list(self._full(base, box, some, images, which))
        if len(some):
            self.choice.rates[Way.FULL] = (time.perf_counter() - start) / self.choice.full(len(some))
        else:
            self.choice.rates.clear()
        yield from made
        if len(third) > _TIMED + 1:
            yield self._incremental(base, box, third[_TIMED + 1 :], images, which)

    def _incremental(
        self, base: Base, box: ArrayBox, some: IntArray, images: Array, which: IntArray
    ) -> tuple[IntArray, list[Array]]:
        given = {**base.values, "positions": box.positions[some], "patches": box.laid(some, images, which[some])}
        found = self.sessions.run(INCREMENTAL, given)
        return some, [found[f"result_{i}"].numpy() for i in range(len(found))]

    def _full(self, base: Base, box: ArrayBox, some: IntArray, images: Array, which: IntArray) -> Results:
        """One image after the other: ``materialize.onnx`` takes a batch of one."""
        for row in some:
            yield np.array([row]), self.materializer.full({**base.inputs, "image": under_box(box, row, images, which)})


def under_box(box: ArrayBox, row: int, images: Array, which: IntArray) -> Array:
    """The image [1, C, *S] of one query with its box."""
    one = np.array([row])
    laid = box.laid(one, images, which[one])[0]
    return paste(images[which[row]], laid, box.positions[row])[None]
