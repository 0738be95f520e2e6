"""Runners: what runs a module's graphs, and the memory that it takes. Made at first use, never saved."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import TYPE_CHECKING, Any
from weakref import ReferenceType, ref

import torch
from torch import fx

from kcompile.runtime import lowering_convs, lowering_cuda, replaying
from kcompile.runtime.autocast import autocast_dtype
from kcompile.runtime.budget import CHUNK_BYTES, RESERVE, SURPLUS, Budget, Kinds
from kcompile.runtime.choice import CPU, GPU, Costs
from kcompile.runtime.executor import Executor
from kcompile.runtime.full import Deferred, full_graph
from kcompile.runtime.lowering import available, lower
from kcompile.runtime.materializing import Materializer
from kcompile.runtime.memory import Memory
from kcompile.runtime.packing import Packed
from kcompile.runtime.scheduler import centre, geometry

if TYPE_CHECKING:
    from kcompile.runtime.module import IncrementalModule


class Runners:
    """The executors and materializers of a module, by the autocast that they are for.

    Attributes:
        executors: "lowered" ("lowered, TF32" on GPUs that use it) is the usual one; others run the graphs as they were
            emitted.
        surplus: Packed weights may be larger than the weights, and there may be CUDA graphs, if a memory budget has
            room for that.
    """

    def __init__(self, inc: IncrementalModule) -> None:
        """Take the module whose graphs are run."""
        self.inc = inc
        self.executors: dict[Any, Executor] = {}
        self.surplus = True
        self._materializers: dict[torch.dtype | None, Materializer] = {}

    def materializer(self, autocast: torch.dtype | None) -> Materializer:
        """The runner of the materialize graph."""
        if autocast not in self._materializers:
            graph = self.inc.folding.undone(self.inc.materializer, autocast)
            self._materializers[autocast] = Materializer(self.inc.plan, graph)
        return self._materializers[autocast]

    def usual(self) -> Executor:
        """The runner of front and tail with this device's own ops."""
        like = self.inc._like
        on_gpu_by_tf32 = like.is_cuda and lowering_convs.is_tf32(like.dtype)  # what is fastest depends on it
        key = "lowered, TF32" if on_gpu_by_tf32 else "lowered"
        if key not in self.executors:
            self.executors[key] = self._usual()
        return self.executors[key]

    def _usual(self) -> Executor:
        inc, plan = self.inc, self.inc.plan
        if available(inc._like.dtype, inc._like.device):
            packed: Packed = {}
            where = geometry(plan, centre(plan), plan.patch_shape)
            spare, rest = self._spare()
            front = lower(inc.front, packed, {name: window.extent for name, window in where.items()}, spare=spare)
            tail = lower(inc.tail, packed, owned=True, spare=rest)
            return self._executor(front, tail, Deferred(lambda: lower(self.full(), packed, spare=rest)))
        if lowering_cuda.available(inc._like):
            return self._on_gpu()
        return self._executor(inc.front, inc.tail, self.full())

    def _on_gpu(self) -> Executor:
        inc, plan = self.inc, self.inc.plan
        spare = None if inc.memory_budget is None else inc.memory_budget // RESERVE
        choice = lowering_convs.measured(inc._like, GPU.batch, spare)
        lowered = lowering_cuda.lower(inc.front, inc.tail, plan, inc._like.dtype, choice)
        made = self._executor(lowered.front, lowered.tail, self.full(), GPU)
        made.derived, made.tabled = lowered.derived, True
        if self.surplus:
            in_flight = _in_flight(ref(made), plan.patch_shape)
            made.replaying = replaying.replaying(made.front, inc._like.device, inc.memory_budget, in_flight)
        return made

    def as_emitted(self, autocast: torch.dtype | None) -> Executor:
        """The runner without oneDNN's ops: where values aren't finite, and for autocast, which doesn't know them."""
        if autocast not in self.executors:
            front, tail = (self.inc.folding.undone(part, autocast) for part in (self.inc.front, self.inc.tail))
            self.executors[autocast] = self._executor(front, tail, self.full(autocast))
        return self.executors[autocast]

    def _spare(self) -> tuple[float, float]:
        """Bytes by which packing may make the weights larger: those of the front, and what the others add."""
        if self.inc.memory_budget is None:
            return inf, inf
        return (self.inc.memory_budget // SURPLUS if self.surplus else 0), 0

    def _executor(
        self, front: fx.GraphModule, tail: fx.GraphModule, full: Callable[..., Any], costs: Costs | None = None
    ) -> Executor:
        inc, budget = self.inc, None
        costs = costs or (GPU if inc._like.is_cuda else CPU)
        if inc.memory_budget is not None:
            rows = inc.inputs.rows(inc.plan, inc._like)
            kinds = self.materializer(autocast_dtype(inc._like.device)).needs(rows).dtypes
            budget = Budget(inc.memory_budget, Kinds(rows, kinds))
        return Executor(inc.plan, front, tail, full, costs, budget=budget)

    def full(self, autocast: torch.dtype | None = None) -> fx.GraphModule:
        """Full inference, as emitted."""
        whole = full_graph(self.inc.materializer, self.inc.outputs.results)
        return self.inc.folding.undone(whole, autocast)

    def memory(self, autocast: torch.dtype | None) -> Memory | None:
        """The budget and what runs take under an autocast; None without a budget."""
        executor = self.usual() if autocast is None else self.as_emitted(autocast)
        if executor.budget is None:
            return None
        query = executor.needs(self.inc.plan.patch_shape)
        images = self.materializer(autocast).needs(executor.budget.kinds.rows)
        return Memory(executor.budget, images, query, self.inc.policy, executor.held)

    def checked_memory(self, images: int, autocast: torch.dtype | None) -> Memory | None:
        """As `memory`; MemoryBudgetError if so many base images and a query don't fit."""
        memory = self.memory(autocast)
        if memory is not None and memory.surplus and not memory.fits(images):
            self.executors, self.surplus = {}, False
            memory = self.memory(autocast)
        if memory is not None:
            memory.check(images)
        return memory

    def most_bases(self, most: int) -> int:
        """How many base images fit into the memory budget at once, up to ``most``; at least 1."""
        if self.inc.memory_budget is None or (memory := self.memory(autocast_dtype(self.inc._like.device))) is None:
            return most
        return max(memory.bases(most), 1)

    def chunk_bytes(self) -> int:
        """Most bytes of patches to make at a time, where they differ by position."""
        budget = self.inc.memory_budget
        return CHUNK_BYTES if budget is None else min(CHUNK_BYTES, budget // (4 * RESERVE))


def _in_flight(executor: ReferenceType[Executor], patch: tuple[int, ...]) -> Callable[[int], int]:
    """What gives the bytes that so many queries have in flight, under a budget; without one they don't matter.

    By a weak reference: what holds CUDA graphs must go when its executor does, not when Python finds a cycle.
    """

    def bytes_of(rows: int) -> int:
        found = executor()
        return 0 if found is None or found.budget is None else found.needs(patch).front.peak(rows)

    return bytes_of
