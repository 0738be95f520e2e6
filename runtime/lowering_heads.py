"""GPU lowering of the tail's first ops on whole maps: pools, sums and concatenations move to the front, to be fused.

Where a region covers most of a map, placement makes such an op dense: the front hands whole maps over, which the tail
reads again. In the front they run in the launch that reads base and patch (`lowering_windows`), so that only the result
is written: a quarter of the map behind a 2x2 pool, one map in place of two behind a residual sum.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from kcompile.runtime.lowering_nodes import alike, limiting, sole_user
from kcompile.runtime.lowering_windows import AVG_POOLS, MAX_POOLS, pool_geometry

aten, ops = torch.ops.aten, torch.ops.kcompile


def move_heads(front: fx.GraphModule, tail: fx.GraphModule) -> None:
    """Rewrite both graphs in place.

    Args:
        front: Its outputs are the tail's inputs.
        tail: The graph behind it.
    """
    for node in list(tail.graph.nodes):
        maps = _maps(node)
        if maps and _movable(front, tail, node, maps):
            _move(front, tail, node, maps)


def _maps(node: fx.Node) -> list[fx.Node]:
    """The maps that an op reads; none if it is not one that can be fused with reading them."""
    first: Any = node.args[0] if node.args else None
    if node.target in MAX_POOLS or node.target in AVG_POOLS:
        return [first] if pool_geometry(node) is not None else []
    if node.target is aten.cat.default and node.args[1:] == (1,) and not node.kwargs:
        return list(first)
    parts: list[Any] = list(node.args)
    added = node.target is aten.add.Tensor and len(parts) == 2 and not node.kwargs
    return parts if added and alike(parts, node) else []


def _movable(front: fx.GraphModule, tail: fx.GraphModule, node: fx.Node, maps: list[fx.Node]) -> bool:
    """True if an op alone reads maps that are handed over, each once, and all of them are windows."""
    handed, wanted = _handed(front), _placeholders(tail)
    if len(set(maps)) < len(maps) or any(map_ not in wanted or sole_user(map_) is not node for map_ in maps):
        return False
    windows = [handed[wanted.index(map_)] for map_ in maps]
    return all(
        window.target is ops.gather_superimpose.default and len(window.users) == 1 and handed.count(window) == 1
        for window in windows
    )


def _move(front: fx.GraphModule, tail: fx.GraphModule, node: fx.Node, maps: list[fx.Node]) -> None:
    """Make an op, and a limiting activation that alone reads its result, part of the front."""
    output, wanted = front.graph.output_node(), _placeholders(tail)
    handed: list[Any] = _handed(front)
    windows = {map_: handed[wanted.index(map_)] for map_ in maps}
    user = sole_user(node)
    chain = [node] if user is None or limiting(user) is None else [node, user]
    moved: dict[fx.Node, fx.Node] = dict(windows)
    for each in chain:
        with front.graph.inserting_before(output):
            moved[each] = front.graph.node_copy(each, lambda arg: moved[arg])
    last, (first, *others) = chain[-1], maps
    handed[wanted.index(first)] = moved[last]
    gone = {wanted.index(map_) for map_ in others}
    output.args = (tuple(value for place, value in enumerate(handed) if place not in gone),)
    last.replace_all_uses_with(first)
    for each in (*reversed(chain), *others):
        tail.graph.erase_node(each)
    first.meta["shape"] = last.meta.get("shape")


def _handed(front: fx.GraphModule) -> list[fx.Node]:
    return list(front.graph.output_node().args[0])  # type: ignore[arg-type]


def _placeholders(tail: fx.GraphModule) -> list[fx.Node]:
    return [node for node in tail.graph.nodes if node.op == "placeholder"]
