"""Fold constants."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from kcompile.passes.infra import PassResult, add_constant, constant, finish


@dataclass(frozen=True)
class FoldConstants:
    """Evaluate calls whose tensor arguments are all constants, and those that make constants (zeros, arange, …)."""

    name: str = "fold-constants"

    def apply(self, module: fx.GraphModule) -> PassResult:
        """Evaluate in topological order; each result becomes a buffer."""
        modified = False
        for node in list(module.graph.nodes):
            for user, value in _results(module, node):
                user.replace_all_uses_with(add_constant(module, user, user.name, value))
                module.graph.erase_node(user)
                modified = True
        return finish(module, modified)

    def postcondition(self, module: fx.GraphModule) -> str | None:
        """No foldable call is left."""
        left = [node for node in module.graph.nodes if _results(module, node)]
        return f"{left[0]} is constant" if left else None


def _results(module: fx.GraphModule, node: fx.Node) -> list[tuple[fx.Node, Tensor]]:
    """The nodes whose values are constants once this call is evaluated: itself, or the getitems of several results."""
    value = _constant_value(module, node)
    if isinstance(value, Tensor):
        return [(node, value)]
    parts = [user for user in node.users if user.target is operator.getitem] if value is not None else []
    return [(user, value[user.args[1]]) for user in parts if isinstance(value[user.args[1]], Tensor)]


def _constant_value(module: fx.GraphModule, node: fx.Node) -> Any:
    schema = getattr(node.target, "_schema", None)
    if node.op != "call_function" or schema is None or schema.is_mutable:
        return None
    if not node.all_input_nodes and not isinstance(node.meta.get("val"), Tensor):
        return None
    values: Mapping[fx.Node, Tensor | None] = {arg: constant(module, arg) for arg in node.all_input_nodes}
    random = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()) or "empty" in str(node.target)
    if random or any(value is None for value in values.values()):
        return None
    args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), lambda arg: values[arg])
    with torch.no_grad():
        result = node.target(*args, **kwargs)  # type: ignore[operator]
    return result if isinstance(result, (Tensor, tuple)) else None
