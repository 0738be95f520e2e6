"""Global gates: what is made of the whole map and then joins a map again (squeeze-and-excite, norms over space).

Every patch changes such a value, and through it every cell behind. Held at the base's value it is a constant of the
base, and what is behind stays incremental: an approximation (docs/design.md, section 10).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any, TypeAlias

from torch import Tensor, fx

from kcompile.passes.infra import PassResult, aten, call, calls, finish
from kcompile.passes.rules.registry import Refusal, Spatial

LEAST = 4  # values that go into one of a gate's

Hold: TypeAlias = Callable[[fx.Node, Spatial | Refusal], bool]
"""Whether a node that the patch can reach is held, from the answer of its rule."""


def hold_gates(node: fx.Node, answer: Spatial | Refusal) -> bool:
    """True for a tensor made of the whole map whose followers meet, further on, a map that it did not make."""
    value = node.meta.get("val")
    return isinstance(value, Tensor) and _condenses(node, value) and _mixes(answer) and _rejoins(node)


def _condenses(node: fx.Node, value: Tensor) -> bool:
    """Whether far less comes out than goes in: attention, say, makes a map of a map."""
    sizes = [_values(arg.meta["val"]) for arg in node.all_input_nodes if isinstance(arg.meta.get("val"), Tensor)]
    return LEAST * _values(value) <= max(sizes, default=0)


def _values(value: Tensor) -> int:
    return prod(size for size in value.shape[1:] if isinstance(size, int))


def _mixes(answer: Spatial | Refusal) -> bool:
    if isinstance(answer, Refusal):
        return True
    maps = [m for axes in answer.maps if axes is not None for m in axes]
    return bool(maps) and all(m.out_size == 1 for m in maps) and any(m.in_size > 1 for m in maps)


def _rejoins(node: fx.Node) -> bool:
    image = next(n for n in node.graph.nodes if n.op == "placeholder")
    behind, reached = _followers(node), _followers(image)
    rank = image.meta["val"].dim()
    return any(
        isinstance(arg.meta.get("val"), Tensor) and _is_map(arg.meta["val"], rank)
        for user in behind - {node}
        if user.op != "output"  # where a model returns a map beside, say
        for arg in user.all_input_nodes
        if arg in reached and arg not in behind
    )


def _is_map(value: Tensor, rank: int) -> bool:
    sizes = [size for size in value.shape[2:] if isinstance(size, int)]
    return value.dim() >= rank and prod(sizes) > 1


def _followers(node: fx.Node) -> set[fx.Node]:
    """A node and all that is made of it."""
    found: set[fx.Node] = set()
    waiting = [node]
    while waiting:
        one = waiting.pop()
        if one not in found:
            found.add(one)
            waiting += one.users
    return found


@dataclass(frozen=True)
class SplitGlobalNorms:
    """``group_norm``, and ``layer_norm`` over all but the batch, become statistics and a pointwise rest."""

    name: str = "split-global-norms"

    def apply(self, module: fx.GraphModule) -> PassResult:
        """Rewrite each such norm."""
        modified = False
        for node in calls(module, aten.group_norm.default, aten.layer_norm.default):
            rewrite = _group_norm if node.target is aten.group_norm.default else _layer_norm
            with module.graph.inserting_before(node):
                new = rewrite(module.graph, node)
            if new is not None:
                node.replace_all_uses_with(new)
                module.graph.erase_node(node)
                modified = True
        return finish(module, modified)

    def postcondition(self, module: fx.GraphModule) -> str | None:
        """No group norm is left."""
        left = list(calls(module, aten.group_norm.default))
        return f"{left[0]} is whole" if left else None


def _group_norm(graph: fx.Graph, node: fx.Node) -> fx.Node:
    x, groups, weight, bias, eps = _given(node, ("input", "num_groups", "weight", "bias", "eps"))
    value: Tensor = x.meta["val"]
    split = call(graph, aten.unflatten.int, (x, 1, [groups, value.shape[1] // groups]), node)
    dims = list(range(2, value.dim() + 1))
    whole = call(graph, aten.flatten.using_ints, (_normed(graph, split, dims, eps, node), 1, 2), node)
    return _scaled(graph, whole, weight, bias, [-1] + [1] * (value.dim() - 2), node)


def _layer_norm(graph: fx.Graph, node: fx.Node) -> fx.Node | None:
    x, shape, weight, bias, eps = _given(node, ("input", "normalized_shape", "weight", "bias", "eps"))
    value: Tensor = x.meta["val"]
    if len(shape) != value.dim() - 1 or value.dim() < 3:
        return None  # of each cell by itself
    return _scaled(graph, _normed(graph, x, list(range(1, value.dim())), eps, node), weight, bias, list(shape), node)


def _given(node: fx.Node, names: tuple[str, ...]) -> list[Any]:
    arguments = node.target._schema.arguments  # type: ignore[union-attr]
    given = {argument.name: argument.default_value for argument in arguments if argument.has_default_value()}
    given.update(zip([argument.name for argument in arguments], node.args, strict=False))
    given.update(node.kwargs)
    return [given.get(name) for name in names]


def _normed(graph: fx.Graph, x: fx.Node, dims: list[int], eps: float, origin: fx.Node) -> fx.Node:
    mean = call(graph, aten.mean.dim, (x, dims, True), origin)
    spread = call(graph, aten.var.correction, (x, dims), origin, {"correction": 0, "keepdim": True})
    above = call(graph, aten.add.Tensor, (spread, eps), origin)
    factor = call(graph, aten.rsqrt.default, (above,), origin)
    centred = call(graph, aten.sub.Tensor, (x, mean), origin)
    return call(graph, aten.mul.Tensor, (centred, factor), origin)


def _scaled(
    graph: fx.Graph, x: fx.Node, weight: fx.Node | None, bias: fx.Node | None, shape: list[int], origin: fx.Node
) -> fx.Node:
    for target, factor in ((aten.mul.Tensor, weight), (aten.add.Tensor, bias)):
        if factor is not None:
            laid = call(graph, aten.reshape.default, (factor, shape), origin)
            x = call(graph, target, (x, laid), origin)
    return x
