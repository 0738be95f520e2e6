"""Executor: runs front and tail over batches of queries."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

import kcompile.cuda_ops  # noqa: F401  (registers torch.ops.kcompile)
from kcompile.core.interval import IntArray
from kcompile.core.plan import BaseTensor, Plan
from kcompile.runtime.base_store import BaseStore
from kcompile.runtime.scheduler import geometry, schedule

# One more batch costs about 20 us of host time per op; a core does about 50 multiply-adds per nanosecond.
OVERHEAD_MACS_PER_OP = 1e6
FRONT_BATCH = 32
TAIL_BYTES = 64 << 20


@dataclass
class Executor:
    """A plan with its graph modules, ready to run."""

    plan: Plan
    front: fx.GraphModule
    tail: fx.GraphModule
    batch: int = FRONT_BATCH

    def __post_init__(self) -> None:
        """Remember what the front asks for, by name."""
        self.inputs = [str(node.target) for node in self.front.graph.nodes if node.op == "placeholder"]
        self.ops = sum(node.op == "call_function" for node in self.front.graph.nodes)
        whole = [read for read in self.plan.reads if read.target is None]
        self.tail_values = sum(prod(self.plan.base(read.base).shape) for read in whole)

    def stream(
        self, store: BaseStore, patches: Callable[[IntArray], Tensor], positions: IntArray, base_index: IntArray
    ) -> Iterator[tuple[IntArray, tuple[Tensor, ...]]]:
        """Infer all queries, a group of like ones at a time.

        Args:
            store: The base images.
            patches: Gives the patch tensors [n, C, *sizes] of some queries, by their indices.
            positions: [N, axes].
            base_index: [N], which base image each query is a copy of.

        Yields:
            Indices of the queries and the tail's outputs for them; every query comes once.
        """
        if not len(positions):
            return
        sizes = tuple(patches(np.zeros(1, dtype=np.int64)).shape[2:])
        batches = schedule(self.plan, positions, sizes, self.batch, self.ops * OVERHEAD_MACS_PER_OP)
        yield from self._tails(self._fronts(store, patches, positions, base_index, sizes, batches))

    def _fronts(
        self,
        store: BaseStore,
        patches: Callable[[IntArray], Tensor],
        positions: IntArray,
        base_index: IntArray,
        sizes: tuple[int, ...],
        batches: list[IntArray],
    ) -> Iterator[tuple[IntArray, tuple[Tensor, ...]]]:
        for rows in batches:
            arguments = self.arguments(store, patches(rows), positions[rows], base_index[rows], sizes)
            yield rows, self.front(*arguments)

    def arguments(
        self, store: BaseStore, patches: Tensor, positions: IntArray, base_index: IntArray, sizes: tuple[int, ...]
    ) -> list[Any]:
        """The front's arguments for one batch, in the order of its placeholders."""
        given: dict[str, Any] = {"patches": patches}
        bases: dict[str, BaseTensor] = {base.name: base for base in self.plan.bases}
        given.update({f"base_{name}": tensor for name, tensor in store.tensors.items()})
        reads = {read.name: read for read in self.plan.reads}
        for name, where in geometry(self.plan, positions, sizes).items():
            index = base_index if bases[reads[name].base].batched else np.zeros_like(base_index)
            given[f"{name}_origins"] = torch.from_numpy(np.concatenate([index[:, None], where.origins], axis=1))
            given[f"{name}_extent"] = list(where.extent)
            if where.offsets is not None:
                given[f"{name}_offsets"] = torch.from_numpy(where.offsets)
        return [given[name] for name in self.inputs]

    def _tails(
        self, fronts: Iterator[tuple[IntArray, tuple[Tensor, ...]]]
    ) -> Iterator[tuple[IntArray, tuple[Tensor, ...]]]:
        """Run the tail on several front batches at once: its weights are then read less often."""
        waiting: list[tuple[IntArray, tuple[Tensor, ...]]] = []
        for rows, whole in fronts:
            waiting.append((rows, whole))
            queued = sum(len(r) for r, _ in waiting)
            if queued * self.tail_values * whole[0].element_size() >= TAIL_BYTES:
                yield self._tail(waiting)
                waiting = []
        if waiting:
            yield self._tail(waiting)

    def _tail(self, waiting: list[tuple[IntArray, tuple[Tensor, ...]]]) -> tuple[IntArray, tuple[Tensor, ...]]:
        rows = np.concatenate([r for r, _ in waiting])
        parts = list(zip(*(whole for _, whole in waiting), strict=True))
        inputs = [part[0] if len(part) == 1 else torch.cat(part) for part in parts]
        outputs = self.tail(*inputs)
        return rows, tuple(outputs)
