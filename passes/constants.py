"""Fold constants."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

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
            value = _constant_value(module, node)
            if value is None:
                continue
            node.replace_all_uses_with(add_constant(module, node, node.name, value))
            module.graph.erase_node(node)
            modified = True
        return finish(module, modified)

    def postcondition(self, module: fx.GraphModule) -> str | None:
        """No foldable call is left."""
        left = [node for node in module.graph.nodes if _constant_value(module, node) is not None]
        return f"{left[0]} is constant" if left else None


def _constant_value(module: fx.GraphModule, node: fx.Node) -> Tensor | None:
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
    return result if isinstance(result, Tensor) else None
