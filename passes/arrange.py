"""Between a tensor's own layout and the windows' [N, C, *cells]: what emit puts around gather and superimpose.

In memory windows are channels-last, so for [N, H, W, C] and the like these ops are views.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx

from kcompile.passes.infra import PassResult, aten, calls, finish


def to_channels_first(graph: fx.Graph, node: fx.Node, axes: Sequence[int], shape: Sequence[int]) -> fx.Node:
    """[N, C, *cells] of a tensor whose spatial axes are the dimensions ``axes``; ``shape`` leaves out the batch."""
    channels = _channels(axes, shape)
    order = [0, *channels, *axes]
    if order != sorted(order):
        node = _call(graph, aten.permute.default, node, order)
        node.meta["shape"] = tuple(shape[dim - 1] for dim in order[1:])
    if not channels:
        return _call(graph, aten.unsqueeze.default, node, 1)
    return _call(graph, aten.flatten.using_ints, node, 1, len(channels)) if len(channels) > 1 else node


def from_channels_first(graph: fx.Graph, node: fx.Node, axes: Sequence[int], shape: Sequence[int]) -> fx.Node:
    """The inverse: a window in the layout of its tensor."""
    channels = _channels(axes, shape)
    if not channels:
        node = _call(graph, aten.squeeze.dim, node, 1)
    elif len(channels) > 1:
        node = _call(graph, aten.unflatten.int, node, 1, [shape[dim - 1] for dim in channels])
    order = [0, *channels, *axes]
    if order != sorted(order):
        node = _call(graph, aten.permute.default, node, [order.index(dim) for dim in range(len(order))])
    return node


def _call(graph: fx.Graph, target: Any, *args: Any) -> fx.Node:
    node = graph.call_function(target, args)
    node.meta["rule"] = "arrange"
    return node


def _channels(axes: Sequence[int], shape: Sequence[int]) -> list[int]:
    return [dim for dim in range(1, len(shape) + 1) if dim not in axes]


@dataclass(frozen=True)
class CancelArrangements:
    """Permutes, splits and merges of dimensions that undo each other disappear."""

    name: str = "cancel-arrangements"

    def apply(self, module: fx.GraphModule) -> PassResult:
        """Rewrite each pair, from the first to the last."""
        modified = False
        for node in calls(module, *_UNDONE):
            inner: Any = node.args[0]
            replacement = _undone(module.graph, node, inner)
            if replacement is not None:
                node.replace_all_uses_with(replacement)
                module.graph.erase_node(node)
                modified = True
        return finish(module, modified)

    def postcondition(self, module: fx.GraphModule) -> str | None:
        """Checked by its own tests: what is left may only be told from the tensors' sizes."""
        return None


_UNDONE = (aten.permute.default, aten.unflatten.int, aten.squeeze.dim)


def _undone(graph: fx.Graph, node: fx.Node, inner: fx.Node) -> fx.Node | None:
    """What two such ops in a row come to, if they undo each other."""
    source: Any = inner.args[0] if inner.op == "call_function" and inner.args else None
    if node.target is aten.permute.default:
        order: Any = list(node.args[1])  # type: ignore[arg-type]
        if inner.target is aten.permute.default:
            first: Any = inner.args[1]
            order = [first[dim] for dim in order]
            if order != list(range(len(order))):
                with graph.inserting_before(node):
                    both = graph.call_function(aten.permute.default, (source, order))
                both.meta = dict(node.meta)
                return both
            return source if isinstance(source, fx.Node) else None
        return inner if order == list(range(len(order))) else None
    if node.target is aten.unflatten.int and inner.target is aten.flatten.using_ints:
        shape, start = source.meta.get("shape"), inner.args[1]
        end: Any = inner.args[2] if len(inner.args) > 2 else None
        same = shape and node.args[1] == start == 1 and list(shape[:end]) == list(node.args[2])  # type: ignore[arg-type]
        return source if same else None
    if node.target is aten.squeeze.dim and inner.target is aten.unsqueeze.default:
        return source if node.args[1] == inner.args[1] else None
    return None
