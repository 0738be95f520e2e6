"""Two boxes in one query, as two-mask certification asks for: from a patched base, or as one box around both.

Where queries share their first box, the base with that box is materialised once and the second boxes are queries of it.
Otherwise the box around both is one patch, which shows the base's own pixels between them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kcompile.core.interval import IntArray
from kcompile.core.plan import Plan
from kcompile.core.region import Region, evaluate
from kcompile.runtime.base_store import BaseStore
from kcompile.runtime.executor import Executor, Group, Policy
from kcompile.runtime.full import patched
from kcompile.runtime.patches import pixels
from kcompile.runtime.query import Box, Queries
from kcompile.runtime.scheduler import patch_regions

BASES = 8  # patched bases held at a time
SIZES = 8  # sizes per axis that boxes around both are rounded up to


@dataclass(frozen=True)
class TwoBoxes:
    """Runs queries of two boxes.

    Attributes:
        plan: The plan.
        executor: Runs queries of one box.
        store: The base images.
        materialize: Makes the store of other images, given which base's other inputs go with each.
        policy: As `IncrementalModule.policy`.
        bases: Patched bases held at a time; 0 for none.
    """

    plan: Plan
    executor: Executor
    store: BaseStore
    materialize: Callable[[Tensor, IntArray], BaseStore]
    policy: Policy
    bases: int = BASES

    def stream(self, queries: Queries) -> Iterator[Group]:
        """Infer all queries, some at a time; every query comes once."""
        hull = queries.hull(self.plan.input_shape[1:])
        first = _same(queries)
        shared = self._from_patched_bases(queries, hull, first)
        chosen = np.unique(first[shared])
        for start in range(0, len(chosen), max(self.bases, 1)):
            some = chosen[start : start + self.bases]
            yield from self._on_bases(queries, first, np.flatnonzero(shared & np.isin(first, some)))
        yield from self._around(queries, hull, np.flatnonzero(~shared))

    def _from_patched_bases(self, queries: Queries, hull: Region, first: IntArray) -> np.ndarray:
        """True for queries whose first box is worth a base of its own: one full inference for all that share it."""
        if self.policy == "full" or not self.bases:
            return np.zeros(len(queries), dtype=bool)
        choice, second = self.executor.choice, queries.boxes[1]
        alone = choice.queries(evaluate(self.plan.regions, patch_regions(second.positions, second.patches.sizes)))
        around = np.minimum(choice.queries(evaluate(self.plan.regions, hull)), choice.full_query)
        saved = np.bincount(first, around - alone)
        return np.asarray(saved[first] > choice.full(1))

    def _on_bases(self, queries: Queries, first: IntArray, rows: IntArray) -> Iterator[Group]:
        """Queries of the second boxes, on bases that show the first."""
        under, over = queries.boxes
        _, lead, number = np.unique(first[rows], return_index=True, return_inverse=True)
        lead = rows[lead]  # a query for each base
        which = queries.base_index[lead]
        images = self.store.images[torch.from_numpy(which).to(self.store.images.device)]
        own = np.arange(len(lead))
        store = self.materialize(
            patched(images, under.laid(lead, images, own, under.positions[lead]), under.positions[lead]), which
        )
        number = number.reshape(-1).astype(np.int64)

        def patches(some: IntArray) -> Tensor:
            return over.laid(rows[some], store.images, number[some], over.positions[rows[some]])

        for group, outputs in self.executor.stream(store, patches, over.positions[rows], number, self.policy):
            yield rows[group], outputs

    def _around(self, queries: Queries, hull: Region, rows: IntArray) -> Iterator[Group]:
        """Queries of one box around both, by its size."""
        image = np.asarray(self.plan.input_shape[1:])
        low = np.stack([axis.lo for axis in hull.axes], axis=1)[rows]
        high = np.stack([axis.hi for axis in hull.axes], axis=1)[rows]
        step = -(-image // SIZES)
        sizes = np.minimum(-(-(high - low) // step) * step, image)
        low = np.minimum(low, image - sizes)
        kinds, of = np.unique(sizes, axis=0, return_inverse=True)
        for kind, size in enumerate(kinds.tolist()):
            mine = np.flatnonzero(of.reshape(-1) == kind)
            some, at = rows[mine], low[mine]
            patches = self._canvas(queries, some, at, tuple(size))
            bases = queries.base_index[some]
            for group, outputs in self.executor.stream(self.store, patches, at, bases, self.policy):
                yield some[group], outputs

    def _canvas(
        self, queries: Queries, rows: IntArray, at: IntArray, sizes: tuple[int, ...]
    ) -> Callable[[IntArray], Tensor]:
        """Patches of the size around both boxes."""

        def patches(some: IntArray) -> Tensor:
            laid = pixels(self.store.images, queries.base_index[rows[some]], at[some], sizes)
            own = np.arange(len(some))
            for box in queries.boxes:
                offsets = box.positions[rows[some]] - at[some]
                laid = patched(laid, box.laid(rows[some], laid, own, offsets), offsets)
            return laid

        return patches


def _same(queries: Queries) -> IntArray:
    """A number [N] for each query, equal where base and first box are."""
    box: Box = queries.boxes[0]
    keys: dict[tuple[object, ...], int] = {}
    numbers = np.zeros(len(queries), dtype=np.int64)
    for row, (base, place) in enumerate(zip(queries.base_index.tolist(), box.positions.tolist(), strict=True)):
        content = tuple(
            b"" if source is None or source.constant else _bytes(source.rows(np.array([row])))
            for source in (box.patches, box.alpha)
        )
        numbers[row] = keys.setdefault((base, *place, *content), len(keys))
    return numbers


def _bytes(values: Tensor) -> bytes:
    return values.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
