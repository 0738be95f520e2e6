"""Ops that take tensors apart or put them together, in terms of slice, squeeze, unsqueeze and cat."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import fx

from kcompile.passes.infra import PassResult, aten, call, calls, finish

_END = torch.iinfo(torch.int64).max


@dataclass(frozen=True)
class SplitToSlices:
    """``split``, ``chunk`` and ``unbind`` with the items that are taken from them become slices and selects."""

    name: str = "split-to-slices"

    def apply(self, module: fx.GraphModule) -> PassResult:
        """Rewrite each item; what is left without users is dropped."""
        modified = False
        for item in calls(module, operator.getitem):
            rewrite = _ITEMS.get(getattr(item.args[0], "target", None))
            if rewrite is None:
                continue
            with module.graph.inserting_before(item):
                piece = rewrite(module.graph, item)
            if piece is not None:
                item.replace_all_uses_with(piece)
                module.graph.erase_node(item)
                modified = True
        return finish(module, modified)

    def postcondition(self, module: fx.GraphModule) -> str | None:
        """No item of a split is left, but of those that take the batch apart."""
        left = [n for n in calls(module, operator.getitem) if getattr(n.args[0], "target", None) in _SPLITS]
        left = [node for node in left if _is_known(node.args[0])]
        return f"{left[0]} is an item of a split" if left else None


def _is_known(source: Any) -> bool:
    return source.target is aten.unbind.int or all(isinstance(size, int) for size in _sizes(source))


def _dim(source: fx.Node, place: int, default: int) -> int:
    dim: Any = source.args[place] if len(source.args) > place else source.kwargs.get("dim", default)
    image: Any = source.args[0]
    return int(dim % image.meta["val"].dim())


def _sizes(source: fx.Node) -> list[Any]:
    """Sizes of the pieces of a split; symbols where it takes the batch apart."""
    dim = _dim(source, 2, 0)
    return [piece.shape[dim] for piece in source.meta["val"]]


def _split(graph: fx.Graph, item: fx.Node) -> fx.Node | None:
    source, index = item.args
    assert isinstance(source, fx.Node)
    assert isinstance(index, int)
    dim, sizes = _dim(source, 2, 0), _sizes(source)
    if not all(isinstance(size, int) for size in sizes):
        return None
    ends = list(accumulate(sizes))
    return call(graph, aten.slice.Tensor, (source.args[0], dim, ends[index] - sizes[index], ends[index]), item)


def _unbind(graph: fx.Graph, item: fx.Node) -> fx.Node:
    source, index = item.args
    assert isinstance(source, fx.Node)
    assert isinstance(index, int)
    count = len(source.meta["val"])
    return call(graph, aten.select.int, (source.args[0], _dim(source, 1, 0), index % count), item)


def _extreme(values: Any, places: Any) -> Callable[[fx.Graph, fx.Node], fx.Node]:
    """The value or the place of a maximum along one dimension."""

    def rewrite(graph: fx.Graph, item: fx.Node) -> fx.Node:
        source, index = item.args
        assert isinstance(source, fx.Node)
        keep = bool(source.args[2]) if len(source.args) > 2 else False
        dim = _dim(source, 1, 0)
        if index == 0:
            return call(graph, values, (source.args[0], [dim], keep), item)
        return call(graph, places, (source.args[0], dim, keep), item)

    return rewrite


def _adaptive_max(graph: fx.Graph, item: fx.Node) -> fx.Node | None:
    """An adaptive max pool with equal windows is a max pool."""
    source: Any = item.args[0]
    image, pool = source.args[0], _MAX_POOLS[source.target]
    axes = int(str(pool)[-len("d.default") - 1])
    before, after = image.meta["val"].shape[-axes:], item.meta["val"].shape[-axes:]
    if item.args[1] != 0 or any(size % out for size, out in zip(before, after, strict=True)):
        return None
    kernel = [size // out for size, out in zip(before, after, strict=True)]
    return call(graph, pool, (image, kernel, kernel), item)


_MAX_POOLS: dict[Any, Any] = {
    aten.adaptive_max_pool1d.default: aten.max_pool1d.default,
    aten.adaptive_max_pool2d.default: aten.max_pool2d.default,
    aten.adaptive_max_pool3d.default: aten.max_pool3d.default,
}


def _moment(graph: fx.Graph, item: fx.Node) -> fx.Node:
    """Variance or mean of ``var_mean``."""
    source, index = item.args
    assert isinstance(source, fx.Node)
    names = [argument.name for argument in source.target._schema.arguments]  # type: ignore[union-attr]
    given: dict[str, Any] = {**dict(zip(names, source.args, strict=False)), **source.kwargs}
    image, dims, keep = source.args[0], given.get("dim"), given.get("keepdim", False)
    if index == 0:
        options = {"correction": given.get("correction", int(given.get("unbiased", True))), "keepdim": keep}
        return call(graph, aten.var.correction, (image, dims), item, options)
    return call(graph, aten.mean.dim, (image, dims, keep), item)


_SPLITS: dict[Any, Callable[[fx.Graph, fx.Node], fx.Node | None]] = {
    aten.split.Tensor: _split,
    aten.split_with_sizes.default: _split,
    aten.chunk.default: _split,
    aten.unbind.int: _unbind,
}
_ITEMS: dict[Any, Callable[[fx.Graph, fx.Node], fx.Node | None]] = {
    **_SPLITS,
    aten.max.dim: _extreme(aten.amax.default, aten.argmax.default),
    aten.min.dim: _extreme(aten.amin.default, aten.argmin.default),
    aten.var_mean.correction: _moment,
    aten.var_mean.dim: _moment,
    **dict.fromkeys(_MAX_POOLS, _adaptive_max),
}
