"""CPU lowering: convolutions and linear layers, packed, with fused neighbours, by minimal filtering or oneDNN.

Bias, addition and activation go into them. The emitted modules are the reference; lowered ones give the same values up
to rounding, except where they aren't finite: oneDNN's fused activations turn NaN into 0, a filtering tile reads more
cells than one result needs. Without oneDNN (or in another type than float32) modules stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf
from typing import Any

import torch
from torch import Tensor, fx

from kcompile.runtime import filtering, packing
from kcompile.runtime.lowering_slabs import lower_results
from kcompile.runtime.packing import Packed

aten = torch.ops.aten
mkldnn = torch.ops.mkldnn

# What a convolution can end with: oneDNN's name and the op's arguments that become its scalars.
_ACTIVATIONS: dict[Any, str] = {
    aten.relu.default: "relu",
    aten.hardtanh.default: "hardtanh",
    aten.relu6.default: "hardtanh",
    aten.sigmoid.default: "sigmoid",
    aten.tanh.default: "tanh",
    aten.hardswish.default: "hardswish",
    aten.silu.default: "swish",
    aten.leaky_relu.default: "leaky_relu",
}
_DEFAULTS: dict[Any, list[float]] = {
    aten.hardtanh.default: [-1.0, 1.0],
    aten.relu6.default: [0.0, 6.0],
    aten.leaky_relu.default: [0.01],
}
_AFTER_SUM = {"none", "relu"}  # what oneDNN's sum in place can end with
# Ops whose result is a tensor of its own, so that a convolution may add into it.
_FRESH = {
    "kcompile.gather.default",
    "kcompile.gather_superimpose.default",
    "aten.conv2d.default",
    "mkldnn._convolution_pointwise.default",
    "mkldnn._convolution_pointwise_.binary",
    "kcompile.winograd.default",
    "kcompile.gather_winograd.default",
}


def available(dtype: torch.dtype, device: torch.device) -> bool:
    """True where the oneDNN ops can be used."""
    return (
        dtype is torch.float32
        and device.type == "cpu"
        and torch.backends.mkldnn.is_available()
        and hasattr(mkldnn, "_convolution_pointwise")
        and hasattr(mkldnn, "_linear_pointwise")
    )


def lower(
    module: fx.GraphModule,
    packed: Packed,
    extents: Mapping[str, Sequence[int]] | None = None,
    *,
    owned: bool = False,
    spare: float = inf,
) -> fx.GraphModule:
    """A copy of a graph module with its convolutions and linear layers lowered; other weights are shared.

    Args:
        module: Front or tail, or full inference.
        packed: Weights that were packed for another of these graphs are taken from here, new ones are added.
        extents: Usual size per axis of the windows that a convolution reads, by its name. oneDNN chooses a weight
            layout by the size; a convolution that is not named reads its whole input.
        owned: The module's inputs are nobody else's, so that a convolution may add into them.
        spare: Bytes by which packed weights may be larger than the weights themselves.
    """
    graph = fx.Graph()
    graph.output(graph.graph_copy(module.graph, val_map={}))
    lowered = fx.GraphModule(module, graph, module.__class__.__name__)
    for node in list(graph.nodes):
        if node.op == "call_function" and node.target is aten.conv2d.default:
            sizes = (extents or {}).get(node.name, node.meta["input_sizes"][0])
            spare -= _lower_conv(lowered, packed, node, sizes, owned, spare)
        elif node.op == "call_function" and node.target is aten.linear.default:
            _lower_linear(lowered, packed, node)
    lower_results(graph)
    graph.eliminate_dead_code()
    graph.lint()
    lowered.recompile()
    return lowered


def _lower_conv(
    module: fx.GraphModule, known: Packed, conv: fx.Node, sizes: Sequence[int], owned: bool, spare: float
) -> int:
    """Lower one; the bytes of ``spare`` that it took."""
    image, weight, bias, stride, padding, dilation, groups = _arguments(conv)
    value = _tensor(module, weight)
    if value is None or value.dtype is not torch.float32 or (bias is not None and _tensor(module, bias) is None):
        return 0
    geometry = (padding, stride, dilation, groups)
    sizes = _usual(value, sizes, geometry)
    own = [0, 0] if isinstance(padding, fx.Node) else padding
    tile = filtering.tile_for(value, sizes, own, stride, dilation, groups)
    tile = tile if tile is None else packing.known_tile(known, value, tile)
    surplus = 0 if tile is None else packing.surplus_bytes(known, value, tile)
    if surplus > spare:
        tile, surplus = None, 0
    add, other = _residual(conv)
    if add is not None and other is not None and tile is None and not _fresh(other, owned):
        add = other = None
    last = add or conv
    activation = _sole_user(last)
    if tile is not None:
        packed = packing.for_tile(module, known, conv, value, tile)
        with module.graph.inserting_before(last):
            arguments = (module.graph, conv, (image, bias, padding), packed, value.shape[0], tile, other, activation)
            fused, clamps = filtering.insert(*arguments)
        last = activation if clamps and activation is not None else last
    else:
        attr, scalars = _activation(activation)
        if add is not None and attr not in _AFTER_SUM:
            attr, scalars = "none", []
        last = activation if attr != "none" and activation is not None else last
        packed = packing.for_conv(module, known, conv, value, sizes, geometry)
        with module.graph.inserting_before(last):
            fused = _onednn(module.graph, (image, packed, bias, *geometry), other, attr, scalars)
    fused.meta = dict(last.meta)
    last.replace_all_uses_with(fused)
    for node in dict.fromkeys((last, add, conv)):
        if node is not None:
            module.graph.erase_node(node)
    return surplus


def _lower_linear(module: fx.GraphModule, known: Packed, linear: fx.Node) -> None:
    """A linear layer with packed weights: without, they are packed at every call."""
    image, weight, bias = (*linear.args, None)[:3]
    value = _tensor(module, weight)
    if value is None or value.dtype is not torch.float32 or (bias is not None and _tensor(module, bias) is None):
        return
    activation = _sole_user(linear)
    attr, scalars = _activation(activation)
    last = activation if attr != "none" and activation is not None else linear
    packed = packing.for_linear(module, known, linear, value)
    with module.graph.inserting_before(last):
        arguments = (image, packed, bias, attr, scalars, None)
        fused = module.graph.call_function(mkldnn._linear_pointwise.default, arguments)
    fused.meta = dict(last.meta)
    last.replace_all_uses_with(fused)
    for node in dict.fromkeys((last, linear)):
        module.graph.erase_node(node)


def _onednn(
    graph: fx.Graph, arguments: tuple[Any, ...], other: fx.Node | None, attr: str, scalars: list[float]
) -> fx.Node:
    image, *rest = arguments
    if other is None:
        return graph.call_function(mkldnn._convolution_pointwise.default, (image, *rest, attr, scalars, None))
    post = (None, [], None) if attr == "none" else (attr, scalars, None)
    return graph.call_function(mkldnn._convolution_pointwise_.binary, (other, image, *rest, "add", 1.0, *post))


def _arguments(conv: fx.Node) -> list[Any]:
    defaults: list[Any] = [None, None, None, [1, 1], [0, 0], [1, 1], 1]
    given: list[Any] = [*conv.args, *defaults[len(conv.args) :]]
    image, weight, bias, stride, padding, dilation, groups = given
    padding = padding if isinstance(padding, fx.Node) else _pair(padding)  # a node: known at run time
    return [image, weight, bias, _pair(stride), padding, _pair(dilation), groups]


def _pair(value: Any) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return values * 2 if len(values) == 1 else values


def _tensor(module: fx.GraphModule, node: Any) -> Tensor | None:
    if not isinstance(node, fx.Node) or node.op != "get_attr":
        return None
    value: Any = module
    for part in str(node.target).split("."):
        value = getattr(value, part)
    return value if isinstance(value, Tensor) else None


def _sole_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _activation(node: fx.Node | None) -> tuple[str, list[float]]:
    name = _ACTIVATIONS.get(node.target) if node is not None and node.op == "call_function" else None
    if node is None or name is None:
        return "none", []
    default = _DEFAULTS.get(node.target, [])
    given = [float(arg) for arg in node.args[1:]]  # type: ignore[arg-type]
    return name, [*given, *default[len(given) :]]


def _residual(conv: fx.Node) -> tuple[fx.Node | None, fx.Node | None]:
    """The addition that alone uses a convolution, and its other operand, if that has the same cells."""
    add = _sole_user(conv)
    if add is None or add.target is not aten.add.Tensor or len(add.args) != 2 or add.kwargs:
        return None, None
    other = add.args[1] if add.args[0] is conv else add.args[0]
    if not isinstance(other, fx.Node) or other is conv:
        return None, None
    same = other.meta.get("shape") == conv.meta.get("shape") is not None  # else one of them is broadcast
    whole = "read" not in other.meta or other.meta["read"].maps_are_identities
    return (add, other) if same and whole else (None, None)


def _fresh(other: fx.Node, owned: bool) -> bool:
    """True if a sum may be formed in this tensor."""
    return len(other.users) == 1 and (owned if other.op == "placeholder" else str(other.target) in _FRESH)


def _usual(weight: Tensor, sizes: Sequence[int], geometry: tuple[Any, ...]) -> list[int]:
    """Where the op pads by itself, a window may be narrower than the kernel."""
    padding, _, dilation, _ = geometry
    if not isinstance(padding, fx.Node):
        return list(sizes)
    spans = [(kernel - 1) * step + 1 for kernel, step in zip(weight.shape[2:], dilation, strict=True)]
    return [max(size, span) for size, span in zip(sizes, spans, strict=True)]
