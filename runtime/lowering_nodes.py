"""What the passes of the GPU lowering share: nodes, and the activations that only limit."""

from __future__ import annotations

from math import inf
from typing import Any

import torch
from torch import fx

aten = torch.ops.aten

CONVS = (aten.conv1d.default, aten.conv2d.default, aten.conv3d.default)
LIMITS: dict[Any, tuple[float, float]] = {
    aten.relu.default: (0.0, inf),
    aten.relu6.default: (0.0, 6.0),
    aten.hardtanh.default: (-1.0, 1.0),
}


def limiting(node: fx.Node) -> tuple[float, float] | None:
    """Least and largest value of an activation that only limits."""
    if node.target not in LIMITS or node.kwargs:
        return None
    low, high = LIMITS[node.target]
    given: list[Any] = list(node.args[1:])
    return (float(given[0]) if given else low, float(given[1]) if len(given) > 1 else high)


def sole_user(node: fx.Node) -> fx.Node | None:
    """The node that alone uses another."""
    return next(iter(node.users)) if len(node.users) == 1 else None


def alike(parts: list[Any], node: fx.Node) -> bool:
    """No part is a number, or broadcast."""
    return all(isinstance(part, fx.Node) and part.meta.get("shape") == node.meta.get("shape") for part in parts) and (
        node.meta.get("shape") is not None
    )


def replace(graph: fx.Graph, node: fx.Node, target: Any, args: tuple[Any, ...]) -> fx.Node:
    """Put another call in a node's place."""
    with graph.inserting_before(node):
        new = graph.call_function(target, args)
    new.meta = dict(node.meta)
    node.replace_all_uses_with(new)
    graph.erase_node(node)
    return new
