"""GPU lowering of a linear layer of a whole map where the tail begins: only what patches change is computed anew.

The front hands over the layer's results instead of whole maps. For few queries the weights of the changed cells alone
are read (`kcompile.cuda_ops.linear`).
"""

from __future__ import annotations

from functools import partial
from math import inf, prod
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, fx

from kcompile.core.plan import Plan
from kcompile.cuda_ops import linear
from kcompile.runtime.derived import Derived, placeholder
from kcompile.runtime.lowering_nodes import sole_user

aten, ops = torch.ops.aten, torch.ops.kcompile


def move_linears(front: fx.GraphModule, tail: fx.GraphModule, plan: Plan) -> dict[str, Derived]:
    """Rewrite both graphs in place.

    Args:
        front: Its outputs are the tail's inputs.
        tail: The graph behind it.
        plan: Gives the base tensors.

    Returns:
        What the front reads of the base beside the base tensors.
    """
    output = front.graph.output_node()
    handed: list[Any] = list(output.args[0])  # type: ignore[arg-type]
    wanted = [node for node in tail.graph.nodes if node.op == "placeholder"]
    derived: dict[str, Derived] = {}
    for place, (window, map_) in enumerate(zip(handed, wanted, strict=True)):
        layer = _layer(map_)
        if layer is None or window.target is not ops.gather_superimpose.default:
            continue
        values = [_value(tail, arg) for arg in (*layer.args[1:], None)[:2]]
        base = plan.base(window.meta["read"].base)
        channels_first = base.axes == tuple(range(2, len(base.shape) + 1))
        if not channels_first or values[0] is None or handed.count(window) > 1 or len(window.users) > 1:
            continue
        packed, own = linear.pack(values[0], prod(base.sizes)), values[1]
        name = f"derived_{window.meta['read'].name}"
        lows = [low for low, _ in base.padding]
        make = partial(linear.of_bases, weight=packed, own=own, lows=lows, extent=list(base.sizes))
        derived[name] = Derived(base.name, make)
        handed[place] = _read(front, window, name, packed, own)
        map_.meta["shape"] = (packed.shape[2],)
        layer.replace_all_uses_with(map_)
        for node in (layer, layer.args[0]):
            tail.graph.erase_node(node)  # type: ignore[arg-type]
    output.args = (tuple(handed),)
    return derived


def _layer(map_: fx.Node) -> fx.Node | None:
    """The linear layer of a flattened map that nothing else reads."""
    flat = sole_user(map_)
    if flat is None or flat.target is not aten.flatten.using_ints or flat.args[1:2] != (1,):
        return None
    dims = len(map_.meta["shape"]) if "shape" in map_.meta else 0
    layer = sole_user(flat)
    whole = flat.args[2:] in ((-1,), (dims,))
    return layer if whole and layer is not None and layer.target is aten.linear.default and not layer.kwargs else None


def _value(module: fx.GraphModule, node: Any) -> Tensor | None:
    """A constant's value; None for none."""
    if not isinstance(node, fx.Node) or node.op != "get_attr":
        return None
    value: Tensor = attrgetter(str(node.target))(module)
    return value.detach()


def _read(front: fx.GraphModule, window: fx.Node, name: str, packed: Tensor, own: Tensor | None) -> fx.Node:
    """The op in place of a window."""
    source, patch, origins, offsets, extent = window.args
    before = placeholder(front.graph, name)
    constants: list[fx.Node | None] = []
    for part, value in (("weight", packed), ("own", own)):
        if value is not None:
            front.register_buffer(f"{name}_{part}", value, persistent=False)
        with front.graph.inserting_before(window):
            constants.append(None if value is None else front.graph.get_attr(f"{name}_{part}"))
    with front.graph.inserting_before(window):
        read = (source, patch, None, -inf, inf, origins, offsets, extent, *constants, before)
        node = front.graph.call_function(ops.read_linear.default, read)
    node.meta.update(rule="linear", read=window.meta["read"], shape=(packed.shape[2],))
    return node
