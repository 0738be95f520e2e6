"""GPU lowering of pools and joins: they read base and patch directly, in one launch."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, prod
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, fx

from kcompile.runtime.lowering_nodes import alike, limiting, replace, sole_user

aten, ops = torch.ops.aten, torch.ops.kcompile

MAX_POOLS = (aten.max_pool1d.default, aten.max_pool2d.default, aten.max_pool3d.default)
AVG_POOLS = (aten.avg_pool1d.default, aten.avg_pool2d.default, aten.avg_pool3d.default)


def lower_windows(front: fx.GraphModule) -> None:
    """Rewrite a front in place: pools, sums of two and concatenations of windows that nothing else uses."""
    for node in list(front.graph.nodes):
        if node.target in MAX_POOLS or node.target in AVG_POOLS:
            _lower_pool(front.graph, node)
        elif node.target in (aten.add.Tensor, aten.cat.default):
            _lower_join(front, node)
    front.graph.eliminate_dead_code()  # what a join took along would still count as a user


def _lower_pool(graph: fx.Graph, node: fx.Node) -> None:
    """A pool of a window that nothing else uses."""
    window: Any = node.args[0]
    geometry = pool_geometry(node)
    if geometry is None or window.target is not ops.gather_superimpose.default or len(window.users) > 1:
        return
    base, patch, origins, offsets, extent = window.args
    read = (base, patch, None, -inf, inf, origins, offsets, extent)
    replace(graph, node, ops.read_pooled.default, (*read, *geometry))


def pool_geometry(node: fx.Node) -> tuple[Any, ...] | None:
    """Kernel, stride, padding, dilation and divisor (0 for maxima); None where the kernel doesn't know them."""
    defaults: list[Any] = [None, None, [], 0, 1, False] if node.target in MAX_POOLS else [None, None, [], 0, False]
    given: list[Any] = [*node.args, *defaults[len(node.args) :]]
    axes = int(str(node.target)[-len("d.default") - 1])
    if node.kwargs or not all(_is_static(value) for value in given[1:5]) or given[5 if len(defaults) > 5 else 4]:
        return None
    kernel, stride, padding = _each(given[1], axes), _each(given[2], axes), _each(given[3], axes)
    if node.target in MAX_POOLS:
        return kernel, stride or kernel, padding, _each(given[4], axes), 0
    if any(padding):
        return None  # whether it counts as cells is another argument
    divisor = given[6] if len(given) > 6 and given[6] else prod(kernel)
    return kernel, stride or kernel, padding, [1] * axes, divisor


def _is_static(value: Any) -> bool:
    return isinstance(value, bool | int) or (isinstance(value, list | tuple) and all(isinstance(v, int) for v in value))


def _each(value: Any, axes: int) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return values * axes if len(values) == 1 else values


@dataclass(frozen=True)
class _Ending:
    """What is done to a join: factor and shift per channel, limits; ``last`` is the node that it replaces."""

    last: fx.Node
    scale: fx.Node | None = None
    shift: fx.Node | None = None
    low: float = -inf
    high: float = inf


def _lower_join(module: fx.GraphModule, node: fx.Node) -> None:
    """A sum of two tensors or a concatenation of channels, if a window is among them."""
    cat = node.target is aten.cat.default
    if node.kwargs or len(node.args) != 2 or (cat and node.args[1] != 1):
        return
    parts: list[Any] = list(node.args[0]) if cat else list(node.args)  # type: ignore[arg-type]
    windows = [part for part in parts if _is_window(part)]
    if not windows or len(set(parts)) < len(parts) or not (cat or alike(parts, node)):
        return
    end = _ending(module, node)
    rows = [_part(part) for part in parts]
    columns = [list(column) for column in zip(*rows, strict=True)]
    args = (*columns, windows[0].args[-1], cat, end.scale, end.shift, end.low, end.high)
    replace(module.graph, end.last, ops.read_joined.default, args)


def _is_window(node: Any) -> bool:
    """A read of a window that only the join uses."""
    windows = (ops.gather.default, ops.gather_superimpose.default)
    return isinstance(node, fx.Node) and node.target in windows and len(node.users) == 1


def _part(node: fx.Node) -> tuple[Any, ...]:
    """Base, patch, bias, limits, origins and offsets of a window, or of a tensor that is the whole window."""
    if not _is_window(node):
        return None, node, None, -inf, inf, None, None
    if node.target is ops.gather.default:
        return node.args[0], None, None, -inf, inf, node.args[1], None
    base, patch, origins, offsets, _ = node.args
    return base, patch, None, -inf, inf, origins, offsets


def _ending(module: fx.GraphModule, node: fx.Node) -> _Ending:
    """A norm's factor and shift and an activation that alone follow a join."""
    last, scale, shift = node, None, None
    user = sole_user(last)
    if user is not None and user.target is aten.addcmul.default and user.args[1] is last and not user.kwargs:
        factors: list[Any] = [user.args[2], user.args[0]]
        if len(user.args) == 3 and all(_is_per_channel(module, factor, node) for factor in factors):
            last, (scale, shift) = user, factors
            user = sole_user(last)
    limits = None if user is None else limiting(user)
    if limits is None or user is None:
        return _Ending(last, scale, shift)
    return _Ending(user, scale, shift, *limits)


def _is_per_channel(module: fx.GraphModule, node: Any, join: fx.Node) -> bool:
    """True for a constant [C, 1, …] or [1, C, 1, …], C being the channels of a join."""
    if not isinstance(node, fx.Node) or node.op != "get_attr" or join.meta.get("shape") is None:
        return False
    value = attrgetter(str(node.target))(module)
    shape, channels = tuple(value.shape), join.meta["shape"][0]
    ones = (1,) * (len(join.meta["shape"]) - 1)
    return isinstance(value, Tensor) and shape in ((channels, *ones), (1, channels, *ones))
