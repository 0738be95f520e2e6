"""Executor: runs front and tail over batches of queries."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from operator import attrgetter
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

import kcompile.cuda_ops  # noqa: F401  (registers torch.ops.kcompile)
from kcompile.core.interval import IntArray
from kcompile.core.plan import Plan
from kcompile.core.region import Region, evaluate
from kcompile.runtime.base_store import BaseStore
from kcompile.runtime.scheduler import geometry, patch_regions, schedule

# One more batch costs about 0.1 ms of host time per op, its geometry included; a core does about 50 multiply-adds a ns.
OVERHEAD_MACS_PER_OP = 1e7
FRONT_BATCH = 32
TAIL_BYTES = (8 << 20, 64 << 20)  # least and most that a batch of the tail holds


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
        weights = sum(_bytes(self.tail, str(node.target)) for node in self.tail.graph.nodes if node.op == "get_attr")
        self.tail_bytes = min(max(weights, TAIL_BYTES[0]), TAIL_BYTES[1])  # reading them once should not dominate

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
        regions = evaluate(self.plan.regions, patch_regions(positions, sizes))
        overhead = self.ops * OVERHEAD_MACS_PER_OP
        batches = schedule(self.plan, positions, sizes, self.batch, overhead, regions)
        yield from self._tails(self._fronts(store, patches, positions, base_index, regions, batches))

    def _fronts(
        self,
        store: BaseStore,
        patches: Callable[[IntArray], Tensor],
        positions: IntArray,
        base_index: IntArray,
        regions: list[Region],
        batches: list[IntArray],
    ) -> Iterator[tuple[IntArray, tuple[Tensor, ...]]]:
        for rows in batches:
            here = [region.take(rows) for region in regions]
            yield rows, self.front(*self.arguments(store, patches(rows), positions[rows], base_index[rows], here))

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
        given: dict[str, Any] = {"patches": patches}
        given.update({f"base_{name}": tensor for name, tensor in store.tensors.items()})
        batched = {base.name: base.batched for base in self.plan.bases}
        bases = {read.name: base_index if batched[read.base] else np.zeros_like(base_index) for read in self.plan.reads}
        arrays: dict[str, IntArray] = {}
        for name, where in geometry(self.plan, positions, tuple(patches.shape[2:]), regions).items():
            given[f"{name}_extent"], given[f"{name}_padding"] = list(where.extent), list(where.padding)
            arrays[f"{name}_origins"] = np.concatenate([bases[name][:, None], where.origins], axis=1)
            if where.offsets is not None:
                arrays[f"{name}_offsets"] = where.offsets
            if where.start is not None and where.at is not None:
                given[f"{name}_size"] = list(where.size)
                arrays[f"{name}_start"], arrays[f"{name}_at"] = where.start, where.at
        given.update(_tensors(arrays, patches.device))
        return [given[name] for name in self.inputs]

    def _tails(
        self, fronts: Iterator[tuple[IntArray, tuple[Tensor, ...]]]
    ) -> Iterator[tuple[IntArray, tuple[Tensor, ...]]]:
        """Run the tail on several front batches at once: its weights are then read less often."""
        waiting: list[tuple[IntArray, tuple[Tensor, ...]]] = []
        for rows, whole in fronts:
            waiting.append((rows, whole))
            queued = sum(len(r) for r, _ in waiting)
            if queued * self.tail_values * whole[0].element_size() >= self.tail_bytes:
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


def _tensors(arrays: dict[str, IntArray], device: torch.device) -> dict[str, Tensor]:
    """Arrays as tensors; they go to another device in one copy."""
    if device.type == "cpu":
        return {name: torch.from_numpy(array) for name, array in arrays.items()}
    joined = torch.from_numpy(np.concatenate([array.reshape(-1) for array in arrays.values()])).to(device)
    parts = joined.split([array.size for array in arrays.values()])
    return {name: part.view(array.shape) for (name, array), part in zip(arrays.items(), parts, strict=True)}


def _bytes(module: fx.GraphModule, name: str) -> int:
    value = attrgetter(name)(module)
    return value.numel() * value.element_size() if isinstance(value, Tensor) else 0
