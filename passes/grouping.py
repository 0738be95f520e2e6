"""Reshapes written as merges and splits of dimensions, and expands that name only what they change.

Both forms hold for a window as for the whole tensor: they name no size of an axis that they keep.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx

from kcompile.passes.infra import PassResult, aten, call, calls, finish


@dataclass(frozen=True)
class GroupReshapes:
    """``reshape`` becomes ``flatten`` and ``unflatten`` of neighbouring dimensions, where it keeps the batch."""

    name: str = "group-reshapes"

    def apply(self, module: fx.GraphModule) -> PassResult:
        """Rewrite each such reshape."""
        modified = False
        for node in calls(module, aten.reshape.default):
            groups = _groups(node)
            if groups is None:
                continue
            with module.graph.inserting_before(node):
                last: Any = node.args[0]
                dim = 1
                for before, after in groups:
                    if len(before) > 1:
                        last = call(module.graph, aten.flatten.using_ints, (last, dim, dim + len(before) - 1), node)
                    if len(after) > 1:
                        last = call(module.graph, aten.unflatten.int, (last, dim, list(after)), node)
                    dim += len(after)
            node.replace_all_uses_with(last)
            module.graph.erase_node(node)
            modified = True
        return finish(module, modified)

    def postcondition(self, module: fx.GraphModule) -> str | None:
        """No reshape with a group is left."""
        return next((f"{n} could be grouped" for n in calls(module, aten.reshape.default) if _groups(n)), None)


def _groups(node: fx.Node) -> list[tuple[list[int], list[int]]] | None:
    """Dimensions before and after, group by group behind the batch; None where they cannot be grouped."""
    image: Any = node.args[0]
    before, after = image.meta.get("val"), node.meta.get("val")
    if not isinstance(before, Tensor) or not isinstance(after, Tensor) or not before.dim() or not after.dim():
        return None
    sizes = [*before.shape[1:], *after.shape[1:]]
    if str(before.shape[0]) != str(after.shape[0]) or not all(isinstance(s, int) and s > 0 for s in sizes):
        return None
    return group(list(before.shape[1:]), list(after.shape[1:]))


def group(before: Sequence[int], after: Sequence[int]) -> list[tuple[list[int], list[int]]] | None:
    """The finest groups of equal products; cells of size 1 at the end join the last group."""
    groups: list[tuple[list[int], list[int]]] = []
    left, right = list(before), list(after)
    while left and right:
        mine, theirs = [left.pop(0)], [right.pop(0)]
        a, b = mine[0], theirs[0]
        while a != b:
            side, rest = (mine, left) if a < b else (theirs, right)
            if not rest:
                return None
            side.append(rest.pop(0))
            a, b = (a * side[-1], b) if side is mine else (a, b * side[-1])
        groups.append((mine, theirs))
    if (left or right) and not groups:
        return None
    if groups:
        groups[-1][0].extend(left)
        groups[-1][1].extend(right)
    return groups


@dataclass(frozen=True)
class ExpandWithoutSizes:
    """``expand`` gets -1 for each size that it keeps."""

    name: str = "expand-without-sizes"

    def apply(self, module: fx.GraphModule) -> PassResult:
        """Rewrite the sizes."""
        modified = False
        for node in calls(module, aten.expand.default):
            sizes = _expanded(node)
            if list(node.args[1]) != sizes:  # type: ignore[arg-type]
                node.args = (node.args[0], sizes)
                modified = True
        return finish(module, modified)

    def postcondition(self, module: fx.GraphModule) -> str | None:
        """Nothing is named that could be kept."""
        left = [n for n in calls(module, aten.expand.default) if list(n.args[1]) != _expanded(n)]  # type: ignore[arg-type]
        return f"{left[0]} names sizes that it keeps" if left else None


def _expanded(node: fx.Node) -> list[Any]:
    given: Any = node.args[1]
    image: Any = node.args[0]
    before, after = image.meta.get("val"), node.meta.get("val")
    if not isinstance(before, Tensor) or not isinstance(after, Tensor) or before.dim() != after.dim():
        return list(given)
    pairs = zip(before.shape, after.shape, given, strict=True)
    return [-1 if str(old) == str(new) else size for old, new, size in pairs]
