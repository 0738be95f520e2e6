"""Outputs: a call's flat results in the structure that the model returns, in full or as regions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from kcompile.core.boxes import Boxes
from kcompile.core.interval import IntArray
from kcompile.core.plan import Plan
from kcompile.core.region import Region, evaluate

_BASE = None  # in place of a result's number: what the base images gave, the same for all queries


@dataclass(frozen=True)
class MapRegion:
    """What patches can change of an output that is a map (``output="region"``); elsewhere it is the base's.

    Attributes:
        values: [N, …], laid out as the output itself, its spatial axes cut to one extent for all queries.
        origins: int64 [N, axes], the first cell of each region.
        axes: The dimensions of the spatial axes.
    """

    values: Tensor
    origins: Tensor
    axes: tuple[int, ...]

    def paste(self, base: Tensor, base_index: Tensor | None = None) -> Tensor:
        """The output in full.

        Args:
            base: The output [B, …] for the base images, as `materialize` returned it.
            base_index: [N], as given to `forward_patches`; default 0.
        """
        rows = torch.zeros(len(self.values), dtype=torch.int64) if base_index is None else torch.as_tensor(base_index)
        full = base[rows.to(base.device)]
        for row, origin in enumerate(self.origins.tolist()):
            place = full[row]
            for dim, low in zip(self.axes, origin, strict=True):
                place = place.narrow(dim - 1, low, self.values.shape[dim])
            place.copy_(self.values[row])
        return full


@dataclass(frozen=True)
class Outputs:
    """How flat results form the model's output.

    Attributes:
        entries: For each flat output the number of its result, a constant as (value,), or None where it is what the
            base images gave.
        spec: The structure.
        activations: The final softmax or sigmoid of each flat output, or None.
    """

    entries: tuple[int | tuple[Any] | None, ...]
    spec: pytree.TreeSpec
    activations: tuple[str | None, ...]

    @property
    def results(self) -> tuple[bool, ...]:
        """For each flat output: is it a result of queries?"""
        return tuple(isinstance(entry, int) for entry in self.entries)

    def moved(self, fn: Callable[[Tensor], Tensor]) -> Outputs:
        """With constant tensors moved or cast by ``fn``."""
        entries = tuple(pytree.tree_map_only(Tensor, fn, e) if isinstance(e, tuple) else e for e in self.entries)
        return replace(self, entries=entries)

    def empty(self, base: Sequence[Any]) -> list[Tensor]:
        """The results of no queries, given the flat outputs of the base images."""
        reached = [out for out, is_result in zip(base, self.results, strict=True) if is_result]
        return [out.new_empty((0, *out.shape[1:])) for out in reached]

    def restore(self, results: Sequence[Any], base: Sequence[Any]) -> Any:
        """Put results into the structure that the model returns."""
        flat = []
        for entry, before in zip(self.entries, base, strict=True):
            flat.append(before if entry is _BASE else results[entry] if isinstance(entry, int) else entry[0])
        return pytree.tree_unflatten(flat, self.spec)

    def activation_of(self, key: Any) -> str | None:
        """The final softmax or sigmoid of one part of the structure; None for the first that is a result."""
        if key is None:
            return next((a for a, reached in zip(self.activations, self.results, strict=True) if reached), None)
        named = pytree.tree_unflatten(list(range(len(self.entries))), self.spec)
        index = getattr(named, key) if isinstance(key, str) and not isinstance(named, dict) else named[key]
        return self.activations[index] if isinstance(index, int) else None


class Regions:
    """Cuts the regions out of the results of a call's groups."""

    def __init__(self, plan: Plan, patch: Region) -> None:
        """Work out where each query's patch (its box around all boxes) can change each result."""
        self.maps = plan.outputs
        regions = evaluate(plan.regions, patch)
        self.places = [
            None if out is None else Boxes.changed(regions[out.region], plan.regions[out.region].shape)
            for out in plan.outputs
        ]

    def cut(self, rows: IntArray, results: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The regions of some queries' results; what is no map, or changes everywhere, stays whole."""
        cut = []
        for out, place, result in zip(self.maps, self.places, results, strict=True):
            if out is None or place is None:
                cut.append(result)
                continue
            origins, extent = place.origins, place.extent
            if not len(rows) or 0 in extent:
                sizes = dict(zip(out.axes, extent, strict=True))
                cut.append(result.new_empty([sizes.get(dim, size) for dim, size in enumerate(result.shape)]))
                continue
            dims = (0, *out.axes, *(dim for dim in range(1, result.dim()) if dim not in out.axes))
            laid = result.permute(dims)
            inner = laid.flatten(len(extent) + 1) if laid.dim() > len(extent) + 1 else laid.unsqueeze(-1)
            where = torch.from_numpy(np.concatenate([np.arange(len(rows))[:, None], origins[rows]], axis=1))
            window = torch.ops.kcompile.gather(inner.contiguous(), where.to(result.device), list(extent)).movedim(1, -1)
            shaped = window.reshape(*window.shape[:-1], *laid.shape[len(extent) + 1 :])
            cut.append(shaped.permute([dims.index(dim) for dim in range(len(dims))]))
        return tuple(cut)

    def wrap(self, results: Sequence[Tensor]) -> list[Tensor | MapRegion]:
        """The cut results of all queries with their origins."""
        made: list[Tensor | MapRegion] = []
        for out, place, result in zip(self.maps, self.places, results, strict=True):
            if out is None or place is None:
                made.append(result)
                continue
            made.append(MapRegion(result, torch.from_numpy(place.origins), out.axes))
        return made


def place(results: list[Any], index: Tensor, outputs: Sequence[Tensor]) -> None:
    """Put the results of some rows into those of all, in place."""
    for into, out in zip(results, outputs, strict=True):
        into.index_copy_(0, index, out)
