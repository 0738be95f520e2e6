"""Moves of graphs to another device or type: what their nodes name must follow their weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate


def retarget(module: fx.GraphModule, before: Tensor, after: Tensor) -> None:
    """Let constants that are made at run time follow a move; in place.

    Args:
        module: Its nodes may name a device, as ``zeros(…, device=cpu)`` does, or a type.
        before: Any tensor of the device and type that the graph was made for.
        after: The same tensor after the move.
    """
    if before.device == after.device and before.dtype == after.dtype:
        return

    def swap(value: Any) -> Any:
        if isinstance(value, torch.device):
            return after.device
        return after.dtype if isinstance(value, torch.dtype) and value == before.dtype else value

    for node in module.graph.nodes:
        node.args, node.kwargs = map_aggregate(node.args, swap), map_aggregate(node.kwargs, swap)
    module.recompile()


def once(fn: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """``fn``, but a buffer that several graphs share is moved once and stays shared, as parameters do by themselves."""
    moved: dict[int, tuple[Tensor, Tensor]] = {}  # with the tensor itself: its id is its own while it lives

    def move(tensor: Tensor) -> Tensor:
        if isinstance(tensor, nn.Parameter):
            return fn(tensor)
        if id(tensor) not in moved:
            moved[id(tensor)] = (tensor, fn(tensor))
        return moved[id(tensor)][1]

    return move
