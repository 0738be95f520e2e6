"""Executor: runs front and tail over batches of queries."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import prod
from operator import attrgetter
from typing import Any, Literal, TypeAlias, cast

import numpy as np
import torch
from torch import Tensor, fx

import kcompile.cuda_ops  # noqa: F401  (registers torch.ops.kcompile)
from kcompile.core.interval import IntArray
from kcompile.core.plan import Placement, Plan
from kcompile.core.region import Region, evaluate
from kcompile.cuda_ops.slab import in_slabs
from kcompile.runtime.base_store import BaseStore
from kcompile.runtime.budget import RESERVE, Budget, Limits, Needs, too_small
from kcompile.runtime.choice import CPU, Choice, Costs, FloatArray, Way
from kcompile.runtime.derived import Derived
from kcompile.runtime.full import patched
from kcompile.runtime.needs import query_needs
from kcompile.runtime.out_of_memory import in_parts
from kcompile.runtime.queue import Queue
from kcompile.runtime.replaying import Replaying
from kcompile.runtime.returning import Returning
from kcompile.runtime.scheduler import geometry, patch_regions, schedule
from kcompile.runtime.scratch import surplus_bytes
from kcompile.runtime.tables import geometries, index_arrays, sizes_of, uploaded
from kcompile.runtime.transfers import upload

TAIL_BYTES = (8 << 20, 64 << 20)  # least and most that a batch of the tail holds


Group: TypeAlias = tuple[IntArray, tuple[Tensor, ...]]  # indices of some queries, and what was computed for them
Front: TypeAlias = Callable[..., tuple[Tensor, ...]]
Policy: TypeAlias = Literal["auto", "incremental", "full"]


@dataclass(frozen=True)
class Call:
    """The queries of one call, and their regions."""

    store: BaseStore
    patches: Callable[[IntArray], Tensor]
    positions: IntArray
    base_index: IntArray
    regions: list[Region]
    limits: Callable[[], Limits]
    returning: Returning


@dataclass
class Executor:
    """A plan with its graph modules, ready to run; without ``full`` every call is incremental.

    ``tabled``: the geometry of all batches goes to the device at once, before the first batch runs. ``replaying``
    decides whether the front runs as CUDA graphs.
    """

    plan: Plan
    front: fx.GraphModule
    tail: fx.GraphModule
    full: Callable[..., Sequence[Tensor]] | None = None
    costs: Costs = CPU
    budget: Budget | None = None
    replaying: Replaying | None = None
    derived: dict[str, Derived] = field(default_factory=dict)
    tabled: bool = False

    def __post_init__(self) -> None:
        """Remember what the front asks for, by name."""
        self.inputs = [str(node.target) for node in self.front.graph.nodes if node.op == "placeholder"]
        self.ops = sum(node.op == "call_function" for node in self.front.graph.nodes)
        nodes = [node for node in self.tail.graph.nodes if node.op == "placeholder"]
        self.hands_on = self.tail.graph.output_node().args[0] == tuple(nodes)  # the tail computes nothing
        self.batch, self.full_batch = self.costs.batch, self.costs.full_batch
        overhead = self.ops * self.costs.per_op + _weight_bytes(self.front) * self.costs.per_byte
        self.choice = Choice(self.plan, overhead, self.costs)
        whole = [read for read in self.plan.reads if read.target is None]
        inside = [prod(layer.shape) for layer in self.plan.layers if layer.placement is Placement.DENSE]
        self.tail_values = max(sum(prod(self.plan.base(read.base).shape) for read in whole), *inside, 0)
        least, most = TAIL_BYTES
        self.tail_bytes = min(max(_weight_bytes(self.tail) // 4, least), most)  # reading them should not dominate
        self._needs: dict[tuple[int, ...], Needs] = {}
        self.surplus = sum(map(surplus_bytes, (self.front, self.tail))) if self.budget is not None else 0

    def needs(self, sizes: tuple[int, ...]) -> Needs:
        """What queries with patches of some size take, under a budget; all up to the compiled size count as that."""
        assert self.budget is not None
        inside = all(size <= most for size, most in zip(sizes, self.plan.patch_shape, strict=True))
        key = self.plan.patch_shape if inside else sizes
        if key not in self._needs:
            self._needs[key] = query_needs(self, self.budget.kinds, key)
        return self._needs[key]

    def limits(self, store: BaseStore, sizes: tuple[int, ...]) -> Limits:
        """How many queries go at a time, now."""
        row = max(self.tail_values * store.images.element_size(), 1)
        fits = self.tail_bytes // row  # a front's batch more than fits is no reason to read all weights twice
        most = Limits(
            self.batch,
            max(-(-self.tail_bytes // row), self.batch),
            max(2 * fits, self.costs.full_batch),
            self.full_batch,
        )
        if self.budget is None:
            return most
        found = self.needs(sizes).limits(self.budget.room(store.held + self.held), most)
        if not found.batch and self.held > self.surplus and self.replaying is not None:
            self.replaying.graphed.drop()
            found = self.needs(sizes).limits(self.budget.room(store.held + self.held), most)
        return found

    @property
    def held(self) -> int:
        """Bytes that the executor holds between calls: what packing adds to weights, and CUDA graphs."""
        return self.surplus + (0 if self.replaying is None else self.replaying.graphed.pool.held)

    def stream(
        self,
        store: BaseStore,
        patches: Callable[[IntArray], Tensor],
        positions: IntArray,
        base_index: IntArray,
        policy: Policy = "auto",
    ) -> Iterator[Group]:
        """Infer all queries, a group of like ones at a time.

        Args:
            store: The base images.
            patches: Gives the patch tensors [n, C, *sizes] of some queries, by their indices.
            positions: [N, axes].
            base_index: [N], which base image each query is a copy of.
            policy: Incrementally, in full, or what is faster.

        Yields:
            Indices of the queries and the tail's outputs for them; every query comes once.
        """
        if not len(positions):
            return
        sizes = tuple(patches(np.zeros(1, dtype=np.int64)).shape[2:])
        limits = partial(self.limits, store, sizes)
        if self.budget is not None:
            policy = self._allowed(policy, store, sizes)
        most = len(positions) if self.budget is None else self.budget.at_once(self.plan, limits().batch)
        returning = Returning(None if self.budget is None else self.budget.nbytes)
        for first in range(0, len(positions), most):
            part = slice(first, first + most)

            def some(rows: IntArray, first: int = first) -> Tensor:
                return patches(rows + first)

            where = positions[part]
            regions = evaluate(self.plan.regions, patch_regions(where, sizes))
            call = Call(store, some, where, base_index[part], regions, limits, returning)
            for rows, outputs in self._run(call, sizes, policy):
                yield rows + first, outputs
                del outputs  # before the next group is made

    def _allowed(self, policy: Policy, store: BaseStore, sizes: tuple[int, ...]) -> Policy:
        """The policy, where only one of both ways fits into the budget; MemoryBudgetError if none does."""
        assert self.budget is not None
        limits = self.limits(store, sizes)
        ways: dict[Policy, int] = {"incremental": limits.batch, "full": limits.full}
        open_to: list[Policy] = [way for way in ways if ways[way] and policy in (way, "auto")]
        if not open_to:
            least = self.needs(sizes).least(policy)
            raise too_small(
                self.budget.nbytes, store.held + self.surplus + least, "what is kept of the base images, and one query,"
            )
        return open_to[0] if len(open_to) == 1 else policy

    def _run(self, call: Call, sizes: tuple[int, ...], policy: Policy) -> Iterator[Group]:
        """Infer the queries of a call whose indices fit into memory."""
        limits, regions = call.limits(), call.regions
        batches = schedule(self.plan, call.positions, sizes, max(limits.batch, 1), self.choice.overhead, regions)
        way = Way(policy) if policy != "auto" else Way.INCREMENTAL
        if policy == "auto" and self.full is not None:
            costs = self.choice.queries(regions)
            way = self.choice.way(costs, len(batches), timed=self._results_fit(call, sizes))
            if way is Way.TIMED:
                done, batches = self._timed(call, batches, costs)
                yield from done
                costs = costs[np.concatenate(batches)] if batches else costs[:0]
                way = self.choice.way(costs, len(batches))
        if way is Way.INCREMENTAL:
            yield from self._incremental(call, batches)
        elif batches:
            yield from self._full(call, np.concatenate(batches))

    def _timed(self, call: Call, batches: list[IntArray], costs: FloatArray) -> tuple[list[Group], list[IntArray]]:
        """Run some queries both ways and note the rates; what came out, and the batches that are left."""
        order = sorted(range(len(batches)), key=lambda i: float(costs[batches[i]].mean()))
        warm, timed = (batches[order[i]] for i in (len(order) // 2, len(order) // 2 - 1))
        rest = [rows for rows in batches if rows is not warm and rows is not timed]
        taken = np.concatenate(rest)[: 2 * self.costs.full_batch]
        half = len(taken) // 2
        done = list(self._incremental(call, [warm], replay=False))
        ours, seconds = self._clocked(self._incremental(call, [timed], replay=False), call)
        ours_rate = seconds / self.choice.incremental(costs[timed], 1)
        done += [*ours, *self._full(call, taken[:half])]
        theirs, seconds = self._clocked(self._full(call, taken[half:]), call)
        theirs_rate = seconds / self.choice.full(len(taken) - half)
        self.choice.rates = {Way.INCREMENTAL: ours_rate, Way.FULL: theirs_rate}  # at once: other threads may ask
        left = len(taken)
        for i, rows in enumerate(rest):
            rest[i], left = rows[left:], max(left - len(rows), 0)
        return [*done, *theirs], [rows for rows in rest if len(rows)]

    @staticmethod
    def _clocked(groups: Iterator[Group], call: Call) -> tuple[list[Group], float]:
        """What a run yields, and the seconds that it took on its device."""
        on_gpu = call.store.images.is_cuda
        start = time.perf_counter()
        done = list(groups)
        if on_gpu:
            torch.cuda.synchronize(call.store.images.device)
        return done, time.perf_counter() - start

    def _incremental(self, call: Call, batches: Sequence[IntArray], *, replay: bool = True) -> Iterator[Group]:
        fronts = self._fronts(call, batches, replay)
        return fronts if self.hands_on else self._tails(call, fronts, sum(map(len, batches)))

    def _full(self, call: Call, rows: IntArray) -> Iterator[Group]:
        """Full inference of the patched images."""
        while len(rows):
            count = call.limits().full
            some, rows = rows[:count], rows[count:]
            yield from in_parts(partial(self._full_rows, call), some, self._fewer_in_full)
            call.returning.check()

    def _full_rows(self, call: Call, rows: IntArray) -> tuple[Tensor, ...]:
        assert self.full is not None, "this executor has no graph for full inference"
        index = upload(call.base_index[rows], call.store.images.device)
        images = patched(call.store.images[index], call.patches(rows), call.positions[rows])
        with in_slabs():
            return tuple(self.full(images, *(other[index] for other in call.store.others)))

    def _fewer_in_full(self, rows: int) -> None:
        self.full_batch = min(self.full_batch, rows)

    def _smaller(self, rows: int) -> None:
        """Memory is short: smaller batches from now on."""
        self.batch = min(self.batch, rows)
        self.tail_bytes = min(self.tail_bytes, TAIL_BYTES[0])
        if self.replaying is not None:
            self.replaying.graphed.give_up()

    def _fronts(self, call: Call, batches: Sequence[IntArray], replay: bool) -> Iterator[Group]:
        """The front on all batches; of few kinds, with some queries twice to fill them up, where it is replayed."""
        filled, front = [(rows, len(rows)) for rows in batches], cast(Front, self.front)
        if self.replaying is not None and batches and replay:
            arguments = partial(self._arguments, call)
            found = self.replaying.batches(self.plan, call.regions, batches, self.choice, arguments)
            filled, front = (filled, front) if found is None else (found, self.replaying.graphed)
        tabled = self._tabled(call, [rows for rows, _ in filled], front)
        for (whole, count), run in zip(filled, tabled, strict=True):
            if count == len(whole):
                yield from in_parts(run, whole, self._smaller)
                call.returning.check()
                continue
            left = count
            for rows, outputs in in_parts(run, whole, self._smaller):
                real = min(len(rows), left)
                left -= real
                if real:
                    yield rows[:real], tuple(output[:real] for output in outputs)
                del outputs  # before the next part is run

    def _tabled(
        self, call: Call, batches: Sequence[IntArray], front: Front
    ) -> Iterator[Callable[[IntArray], tuple[Tensor, ...]]]:
        """What runs the front on each batch; where tables are wanted, their geometry is worked out here, at once."""
        if not self.tabled or self.budget is not None or not batches:
            yield from (partial(self._front, call, front=front) for _ in batches)
            return
        first = call.patches(batches[0][:1])
        found = geometries(self.plan, call.positions, tuple(first.shape[2:]), call.regions, batches)
        bases = [self._bases(call.base_index[rows]) for rows in batches]
        arrays = [index_arrays(*each) for each in zip(found, bases, strict=True)]
        for whole, where, tensors in zip(batches, found, uploaded(arrays, first.device), strict=True):

            def run(rows: IntArray, whole: IntArray = whole, where: Any = where, own: Any = tensors) -> Any:
                if rows is not whole:  # a part of the batch: memory was short
                    return self._front(call, rows)
                return front(*self._given(call.store, call.patches(rows), sizes_of(where), own))

            yield run

    def _front(self, call: Call, rows: IntArray, front: Front | None = None) -> tuple[Tensor, ...]:
        arguments = self._arguments(call, rows)
        with in_slabs():
            outputs: tuple[Tensor, ...] = (front or self.front)(*arguments)
        return outputs

    def _arguments(self, call: Call, rows: IntArray) -> list[Any]:
        here = [region.take(rows) for region in call.regions]
        return self.arguments(call.store, call.patches(rows), call.positions[rows], call.base_index[rows], here)

    def arguments(
        self,
        store: BaseStore,
        patches: Tensor,
        positions: IntArray,
        base_index: IntArray,
        regions: list[Region] | None = None,
    ) -> list[Any]:
        """The front's arguments for one batch, in the order of its placeholders.

        Args:
            store: The base images.
            patches: [N, C, *sizes].
            positions: [N, axes].
            base_index: [N].
            regions: The plan's regions for these positions, if they were evaluated before.
        """
        found = geometry(self.plan, positions, tuple(patches.shape[2:]), regions)
        (tensors,) = uploaded([index_arrays(found, self._bases(base_index))], patches.device)
        return self._given(store, patches, sizes_of(found), tensors)

    def _bases(self, base_index: IntArray) -> dict[str, IntArray]:
        """Which base tensor each query reads, by read."""
        batched, zeros = {base.name: base.batched for base in self.plan.bases}, np.zeros_like(base_index)
        return {read.name: base_index if batched[read.base] else zeros for read in self.plan.reads}

    def _given(
        self, store: BaseStore, patches: Tensor, sizes: dict[str, list[int]], tensors: dict[str, Tensor]
    ) -> list[Any]:
        """The front's arguments in the order of its placeholders."""
        given: dict[str, Any] = {"patches": patches, **sizes, **tensors}
        given.update({f"base_{name}": tensor for name, tensor in store.tensors.items()})
        given.update({name: store.derived(name, how) for name, how in self.derived.items()})
        return [given[name] for name in self.inputs]

    def _results_fit(self, call: Call, sizes: tuple[int, ...]) -> bool:
        """True if the results of the queries that are run to time both ways can be held at once."""
        if self.budget is None:
            return True
        limits = call.limits()
        held = (2 * limits.batch + 2 * self.costs.full_batch) * self.needs(sizes).tail.outputs
        return RESERVE * held <= self.budget.nbytes

    def _tails(self, call: Call, fronts: Iterator[Group], count: int) -> Iterator[Group]:
        """Run the tail on several front batches at once: its weights are then read less often."""
        queue = Queue(min(call.limits().queue, count))
        for rows, whole in fronts:
            if not queue.fits(rows):
                yield from self._tail(call, queue)
                queue = Queue(min(call.limits().queue, count))  # rows to come, these included
            queue.add(rows, whole)
            count -= len(rows)
            del whole
            if queue.full or not count:
                yield from self._tail(call, queue)
                queue = Queue(min(call.limits().queue, count))

    def _tail(self, call: Call, queue: Queue) -> Iterator[Group]:
        rows, inputs = queue.rows, queue.tensors
        tried: set[int] = set()

        def run(some: IntArray) -> tuple[Tensor, ...]:
            first, last = int(some[0]), int(some[-1]) + 1
            if first in tried:  # the tail may write into its inputs: after a failure they are made anew
                return tuple(self.tail(*self._front(call, rows[some])))
            tried.update(range(first, last))
            with in_slabs():
                return tuple(self.tail(*(x[first:last] for x in inputs)))

        for some in np.array_split(np.arange(len(rows)), -(-len(rows) // call.limits().tail)):
            for part, outputs in in_parts(run, some, self._smaller):
                yield rows[part], outputs
            call.returning.check()


def _weight_bytes(module: fx.GraphModule) -> int:
    """Bytes of all tensors that a graph holds and reads."""
    values = [attrgetter(str(node.target))(module) for node in module.graph.nodes if node.op == "get_attr"]
    return sum(value.numel() * value.element_size() for value in values if isinstance(value, Tensor))
