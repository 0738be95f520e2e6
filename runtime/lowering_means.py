"""GPU lowering of global means, in the front or where the tail begins: only what patches cover is read.

Where the tail begins with a mean, the front hands over the means instead of whole maps. A query's mean is the base's
sum plus the differences inside its patch, over the number of cells.
"""

from __future__ import annotations

from functools import partial
from math import inf
from typing import Any

import torch
from torch import Tensor, fx

from kcompile.core.plan import BaseTensor, Plan
from kcompile.runtime.derived import Derived, placeholder

aten, ops = torch.ops.aten, torch.ops.kcompile

_ADAPTIVE = (aten.adaptive_avg_pool1d.default, aten.adaptive_avg_pool2d.default, aten.adaptive_avg_pool3d.default)
_POOLS = (aten.avg_pool1d.default, aten.avg_pool2d.default, aten.avg_pool3d.default)


def move_means(front: fx.GraphModule, tail: fx.GraphModule, plan: Plan, sums: torch.dtype) -> dict[str, Derived]:
    """Rewrite both graphs in place; all that is not a mean over the whole of a gathered map stays as it is.

    Args:
        front: Its outputs are the tail's inputs.
        tail: The graph behind it.
        plan: Gives the base tensors.
        sums: The type that the bases' sums are made in.

    Returns:
        These sums, which the front reads.
    """
    derived: dict[str, Derived] = {}
    for node in list(front.graph.nodes):
        if node.target in _POOLS:
            _lower_pool(front.graph, node, plan, sums, derived)
    output = next(node for node in front.graph.nodes if node.op == "output")
    handed: list[Any] = list(output.args[0])
    wanted = [node for node in tail.graph.nodes if node.op == "placeholder"]
    for place, (window, map_) in enumerate(zip(handed, wanted, strict=True)):
        mean = next(iter(map_.users), None)
        if len(map_.users) != 1 or mean is None or window.target is not ops.gather_superimpose.default:
            continue
        base = plan.base(window.meta["read"].base)
        keep = _kept(mean, len(base.sizes))
        if keep is None or handed.count(window) > 1 or len(window.users) > 1:
            continue
        handed[place] = _mean(front.graph, window, base, output, keep, sums, derived)
        mean.replace_all_uses_with(map_)
        tail.graph.erase_node(mean)
    output.args = (tuple(handed),)
    for module in (front, tail):
        module.graph.eliminate_dead_code()
        module.graph.lint()
        module.recompile()
    return derived


def _lower_pool(graph: fx.Graph, pool: fx.Node, plan: Plan, dtype: torch.dtype, derived: dict[str, Derived]) -> None:
    """An average pool of one window, which is the whole map."""
    window: Any = pool.args[0]
    if window.target is not ops.gather_superimpose.default or len(window.users) > 1:
        return
    read = window.meta["read"]
    base = plan.base(read.base)
    kernel: Any = pool.args[1]
    padding: Any = pool.args[3] if len(pool.args) > 3 else [0]
    if list(kernel) != list(base.sizes) or any(padding) or len(pool.args) > 6 or pool.kwargs:
        return
    if any(m.out_size != 1 or m.overhang != (0, 0) for m in read.maps):  # the pool's padding is in the window
        return
    mean = _mean(graph, window, base, pool, True, dtype, derived)
    mean.meta = dict(pool.meta)
    pool.replace_all_uses_with(mean)
    graph.erase_node(pool)


def _kept(mean: fx.Node, axes: int) -> bool | None:
    """Whether a mean over all ``axes`` of [N, C, *sizes] keeps them; None if it is another op."""
    if mean.target in _ADAPTIVE and not mean.kwargs:
        sizes: Any = mean.args[1]
        return True if list(sizes) == [1] * axes else None
    if mean.target is not aten.mean.dim or mean.kwargs:
        return None
    dims: Any = mean.args[1]
    if {dim % (axes + 2) for dim in dims} != set(range(2, axes + 2)):
        return None
    return bool(mean.args[2]) if len(mean.args) > 2 else False


def _mean(
    graph: fx.Graph,
    window: fx.Node,
    base: BaseTensor,
    before: fx.Node,
    keep: bool,
    dtype: torch.dtype,
    derived: dict[str, Derived],
) -> fx.Node:
    """The mean of a window that is the whole map."""
    source, patch, origins, offsets, extent = window.args
    axes = len(base.sizes)
    name = f"derived_{window.meta['read'].name}"
    sums = placeholder(graph, name)
    derived[name] = Derived(base.name, partial(_sums, base=base, dtype=dtype))
    with graph.inserting_before(before):
        read = (source, patch, None, -inf, inf, origins, offsets, extent, sums)
        mean = graph.call_function(ops.read_mean.default, read)
        for axis in range(axes) if keep else ():
            mean = graph.call_function(aten.unsqueeze.default, (mean, axis + 2))
    mean.meta.update(rule="mean", read=window.meta["read"])
    return mean


def _sums(stored: Tensor, base: BaseTensor, dtype: torch.dtype) -> Tensor:
    """Sums [B, C] over the cells of a base tensor, without its padding."""
    for axis, ((low, _), size) in enumerate(zip(base.padding, base.sizes, strict=True)):
        stored = stored.narrow(axis + 1, low, size)
    return stored.sum(list(range(1, len(base.sizes) + 1)), dtype=dtype)
