"""GPU lowering of what ends a convolution: its bias and a limiting activation move to those who read its result."""

from __future__ import annotations

from math import inf
from typing import Any

import torch
from torch import fx

from kcompile.runtime.lowering_nodes import CONVS, LIMITS, alike, limiting, replace, sole_user

aten, ops = torch.ops.aten, torch.ops.kcompile

_BIAS, _LOW, _HIGH = 2, 3, 4  # arguments of the ops that read one window
_ONE_WINDOW = (
    ops.read_activated.default,
    ops.read_pooled.default,
    ops.read_mean.default,
    ops.read_convolved.default,
)


def move_endings(graph: fx.Graph) -> None:
    """Rewrite a front in place: activations, then biases, whose results are only read as patches."""
    for node in list(graph.nodes):
        if node.target in LIMITS:
            _move_activation(graph, node)
    for node in list(graph.nodes):
        if node.target in CONVS:
            _move_bias(graph, node)


def end_convolutions(graph: fx.Graph) -> None:
    """Bias, sum and activation behind a convolution become one op where they would be two or three."""
    for node in list(graph.nodes):
        if node.target not in CONVS or node.meta.get("shape") is None:
            continue
        bias: Any = node.args[2] if len(node.args) > 2 else None
        last, other, between = node, None, (-inf, inf)
        user = sole_user(last)
        if user is not None and user.target is aten.add.Tensor and len(user.args) == 2 and not user.kwargs:
            parts: list[Any] = list(user.args)
            if parts[0] is not parts[1] and alike(parts, user):
                last, other = user, parts[1] if parts[0] is node else parts[0]
                user = sole_user(last)
        found = limiting(user) if user is not None else None
        if found is not None and user is not None:
            last, between = user, found
        if sum((bias is not None, other is not None, found is not None)) < 2:
            continue
        with graph.inserting_before(node):
            plain = graph.call_function(node.target, (*node.args[:2], None, *node.args[3:]), node.kwargs)
        plain.meta = dict(node.meta)
        node.replace_all_uses_with(plain)
        graph.erase_node(node)
        if last is node:
            last = plain
        replace(graph, last, ops.ended.default, (plain, bias, other, *between))


def _move_activation(graph: fx.Graph, node: fx.Node) -> None:
    """An activation whose result is only read as patches happens where these are read."""
    limits, source = limiting(node), node.args[0]
    if limits is None or not isinstance(source, fx.Node) or not _only_patches(node):
        return
    for user in list(node.users):
        reader = _reader(graph, user)
        for place in _places(reader, node):
            if _limits_of(reader, place) == (-inf, inf) and _column(reader, _BIAS, place) is None:
                _end(reader, place, source, None, *limits)
    if not node.users:
        graph.erase_node(node)


def _move_bias(graph: fx.Graph, node: fx.Node) -> None:
    """A convolution's bias is added where its result is read: on its own it costs a pass over the result."""
    bias: Any = node.args[2] if len(node.args) > 2 else None
    if not isinstance(bias, fx.Node) or bias.op != "get_attr" or not _only_patches(node):
        return
    with graph.inserting_before(node):
        plain = graph.call_function(node.target, (*node.args[:2], None, *node.args[3:]), node.kwargs)  # type: ignore[arg-type]
    plain.meta = dict(node.meta)
    for user in list(node.users):
        reader = _reader(graph, user)
        for place in _places(reader, node):
            _end(reader, place, plain, bias, *_limits_of(reader, place))
    graph.erase_node(node)


def _only_patches(node: fx.Node) -> bool:
    """True if every use of a node is as the patch of a window."""
    return bool(node.users) and all(
        user.target in (*_ONE_WINDOW, ops.gather_superimpose.default, ops.read_joined.default)
        and _uses(user, node) == len(_places(user, node))
        for user in node.users
    )


def _uses(user: fx.Node, node: fx.Node) -> int:
    """How often a node is among another one's arguments."""
    found: list[fx.Node] = []
    fx.node.map_arg((user.args, user.kwargs), lambda arg: found.append(arg) if arg is node else None)
    return len(found)


def _places(user: fx.Node, node: fx.Node) -> list[int]:
    """Which of a reader's patches a node is."""
    patches: Any = user.args[1] if user.target is ops.read_joined.default else [user.args[1]]
    return [place for place, patch in enumerate(patches) if patch is node]


def _reader(graph: fx.Graph, node: fx.Node) -> fx.Node:
    """The node itself, or what stands in its place and can end patches."""
    if node.target is not ops.gather_superimpose.default:
        return node
    base, patch, *rest = node.args
    return replace(graph, node, ops.read_activated.default, (base, patch, None, -inf, inf, *rest))


def _column(reader: fx.Node, column: int, place: int) -> Any:
    """One of a reader's arguments, for one of its windows."""
    given: Any = reader.args[column]
    return given[place] if reader.target is ops.read_joined.default else given


def _limits_of(reader: fx.Node, place: int) -> tuple[float, float]:
    low, high = _column(reader, _LOW, place), _column(reader, _HIGH, place)
    return low, high


def _end(reader: fx.Node, place: int, patch: fx.Node, bias: fx.Node | None, low: float, high: float) -> None:
    """Set a reader's patch, and how it ends."""
    ending: tuple[Any, ...] = (patch, bias, low, high)
    if reader.target is ops.read_joined.default:
        columns = [list(column) for column in reader.args[1:5]]  # type: ignore[arg-type]
        for column, value in zip(columns, ending, strict=True):
            column[place] = value
        ending = tuple(columns)
    reader.args = (reader.args[0], *ending, *reader.args[5:])
