"""GPU lowering: what follows a window runs in the launch that reads it, so that fewer tensors are written and read.

The emitted graphs are the reference. Lowered ones have the ops of `kcompile.cuda_ops.reads`: pools and joins read base
and patch directly, and a convolution leaves its bias and activation to those who read its result.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, prod
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, fx

from kcompile.core.plan import Plan
from kcompile.cuda_ops.cuda_reads import VALUES
from kcompile.cuda_ops.launch import launcher
from kcompile.cuda_ops.reads import wide
from kcompile.runtime.lowering_means import move_means

aten, ops = torch.ops.aten, torch.ops.kcompile

FUSE = True  # False: fronts run as they were emitted, on the kernels of gather and superimpose alone

_MAX_POOLS = (aten.max_pool1d.default, aten.max_pool2d.default, aten.max_pool3d.default)
_AVG_POOLS = (aten.avg_pool1d.default, aten.avg_pool2d.default, aten.avg_pool3d.default)
_CONVS = (aten.conv1d.default, aten.conv2d.default, aten.conv3d.default)
_LIMITS: dict[Any, tuple[float, float]] = {
    aten.relu.default: (0.0, inf),
    aten.relu6.default: (0.0, 6.0),
    aten.hardtanh.default: (-1.0, 1.0),
}
_BIAS, _LOW, _HIGH = 2, 3, 4  # arguments of the ops that read one window
_ONE_WINDOW = (ops.read_activated.default, ops.read_pooled.default, ops.read_mean.default)


def available(like: Tensor) -> bool:
    """True where modules of a tensor's type and device can be lowered."""
    return FUSE and like.is_cuda and like.dtype in VALUES and launcher(like.device) is not None


def lower(
    front: fx.GraphModule, tail: fx.GraphModule, plan: Plan, dtype: torch.dtype
) -> tuple[fx.GraphModule, fx.GraphModule]:
    """Copies of front and tail for GPUs; weights are shared, but those of convolutions, which become channels-last.

    Args:
        front: As it was emitted.
        tail: As it was emitted.
        plan: Their plan.
        dtype: The type of their values.
    """
    front, tail = _copy(front), _copy(tail)
    move_means(front, tail, plan, wide(dtype))
    for node in list(front.graph.nodes):
        if node.target in _MAX_POOLS or node.target in _AVG_POOLS:
            _lower_pool(front.graph, node)
        elif node.target in (aten.add.Tensor, aten.cat.default):
            _lower_join(front, node)
    for node in list(front.graph.nodes):
        if node.target in _LIMITS:
            _move_activation(front.graph, node)
    for node in list(front.graph.nodes):
        if node.target in _CONVS:
            _move_bias(front.graph, node)
    laid: dict[int, tuple[Tensor, Tensor]] = {}
    for module in (front, tail):
        _end_convolutions(module.graph)
        _lay_weights(module, laid)
        module.graph.eliminate_dead_code()
        module.graph.lint()
        module.recompile()
    return front, tail


def _lay_weights(module: fx.GraphModule, laid: dict[int, tuple[Tensor, Tensor]]) -> None:
    """Channels-last weights, as their windows are: PyTorch would make these anew at every call.

    Args:
        module: A lowered graph.
        laid: The weights that were laid out before, for another graph: by id, with the original, which keeps it alive.
    """
    for node in list(module.graph.nodes):
        weight: Any = node.args[1] if node.target is aten.conv2d.default else None
        if not isinstance(weight, fx.Node) or weight.op != "get_attr":
            continue
        value = attrgetter(str(weight.target))(module)
        if value.is_contiguous(memory_format=torch.channels_last):
            continue
        if id(value) not in laid:
            laid[id(value)] = (value, value.detach().contiguous(memory_format=torch.channels_last))
        name = f"channels_last_{node.name}"
        module.register_buffer(name, laid[id(value)][1], persistent=False)
        with module.graph.inserting_before(node):
            node.update_arg(1, module.graph.get_attr(name))


def _copy(module: fx.GraphModule) -> fx.GraphModule:
    graph = fx.Graph()
    graph.output(graph.graph_copy(module.graph, val_map={}))
    return fx.GraphModule(module, graph, module.__class__.__name__)


def _lower_pool(graph: fx.Graph, node: fx.Node) -> None:
    """A pool of a window that nothing else uses."""
    window: Any = node.args[0]
    geometry = _pool_geometry(node)
    if geometry is None or window.target is not ops.gather_superimpose.default or len(window.users) > 1:
        return
    base, patch, origins, offsets, extent = window.args
    read = (base, patch, None, -inf, inf, origins, offsets, extent)
    _replace(graph, node, ops.read_pooled.default, (*read, *geometry))


def _pool_geometry(node: fx.Node) -> tuple[Any, ...] | None:
    """Kernel, stride, padding, dilation and divisor (0 for maxima); None where the kernel doesn't know them."""
    defaults: list[Any] = [None, None, [], 0, 1, False] if node.target in _MAX_POOLS else [None, None, [], 0, False]
    given: list[Any] = [*node.args, *defaults[len(node.args) :]]
    axes = int(str(node.target)[-len("d.default") - 1])
    if node.kwargs or not all(_is_static(value) for value in given[1:5]) or given[5 if len(defaults) > 5 else 4]:
        return None
    kernel, stride, padding = _each(given[1], axes), _each(given[2], axes), _each(given[3], axes)
    if node.target in _MAX_POOLS:
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
    if not windows or len(set(parts)) < len(parts) or not (cat or _alike(parts, node)):
        return
    end = _ending(module, node)
    rows = [_part(part) for part in parts]
    columns = [list(column) for column in zip(*rows, strict=True)]
    args = (*columns, windows[0].args[-1], cat, end.scale, end.shift, end.low, end.high)
    _replace(module.graph, end.last, ops.read_joined.default, args)


def _is_window(node: Any) -> bool:
    """A read of a window that only the join uses."""
    windows = (ops.gather.default, ops.gather_superimpose.default)
    return isinstance(node, fx.Node) and node.target in windows and len(node.users) == 1


def _alike(parts: list[Any], node: fx.Node) -> bool:
    """No part is a number, or broadcast."""
    return all(isinstance(part, fx.Node) and part.meta.get("shape") == node.meta.get("shape") for part in parts) and (
        node.meta.get("shape") is not None
    )


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
    user = _sole_user(last)
    if user is not None and user.target is aten.addcmul.default and user.args[1] is last and not user.kwargs:
        factors: list[Any] = [user.args[2], user.args[0]]
        if len(user.args) == 3 and all(_is_per_channel(module, factor, node) for factor in factors):
            last, (scale, shift) = user, factors
            user = _sole_user(last)
    limits = None if user is None else _limits(user)
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


def _limits(node: fx.Node) -> tuple[float, float] | None:
    """Least and largest value of an activation that only limits."""
    if node.target not in _LIMITS or node.kwargs:
        return None
    low, high = _LIMITS[node.target]
    given: list[Any] = list(node.args[1:])
    return (float(given[0]) if given else low, float(given[1]) if len(given) > 1 else high)


def _sole_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _move_activation(graph: fx.Graph, node: fx.Node) -> None:
    """An activation whose result is only read as patches happens where these are read."""
    limits, source = _limits(node), node.args[0]
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


def _end_convolutions(graph: fx.Graph) -> None:
    """Bias, sum and activation behind a convolution become one op where they would be two or three."""
    for node in list(graph.nodes):
        if node.target not in _CONVS or node.meta.get("shape") is None:
            continue
        bias: Any = node.args[2] if len(node.args) > 2 else None
        last, other, limits = node, None, (-inf, inf)
        user = _sole_user(last)
        if user is not None and user.target is aten.add.Tensor and len(user.args) == 2 and not user.kwargs:
            parts: list[Any] = list(user.args)
            if parts[0] is not parts[1] and _alike(parts, user):
                last, other = user, parts[1] if parts[0] is node else parts[0]
                user = _sole_user(last)
        found = _limits(user) if user is not None else None
        if found is not None and user is not None:
            last, limits = user, found
        if sum((bias is not None, other is not None, found is not None)) < 2:
            continue
        with graph.inserting_before(node):
            plain = graph.call_function(node.target, (*node.args[:2], None, *node.args[3:]), node.kwargs)
        plain.meta = dict(node.meta)
        node.replace_all_uses_with(plain)
        graph.erase_node(node)
        if last is node:
            last = plain
        _replace(graph, last, ops.ended.default, (plain, bias, other, *limits))


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
    return _replace(graph, node, ops.read_activated.default, (base, patch, None, -inf, inf, *rest))


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


def _replace(graph: fx.Graph, node: fx.Node, target: Any, args: tuple[Any, ...]) -> fx.Node:
    """Put another call in a node's place."""
    with graph.inserting_before(node):
        new = graph.call_function(target, args)
    new.meta = dict(node.meta)
    node.replace_all_uses_with(new)
    graph.erase_node(node)
    return new
