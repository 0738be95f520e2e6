"""Derived tensors: what lowered fronts read of the base images beside the base tensors; made once per base."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, fx


@dataclass(frozen=True)
class Derived:
    """How a derived tensor is made.

    Attributes:
        base: The name of the base tensor that it is made from.
        make: Makes it, [B, …], given that tensor.
    """

    base: str
    make: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Lowered:
    """Graphs for a device.

    Attributes:
        front: With placeholders for the derived tensors.
        tail: The graph behind it.
        derived: The derived tensors, by the front's placeholder.
    """

    front: fx.GraphModule
    tail: fx.GraphModule
    derived: dict[str, Derived]


def placeholder(graph: fx.Graph, name: str) -> fx.Node:
    """A further argument of a graph, after those that it has."""
    last = [node for node in graph.nodes if node.op == "placeholder"][-1]
    with graph.inserting_after(last):
        return graph.placeholder(name)
