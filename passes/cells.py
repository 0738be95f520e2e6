"""Ops that take, write or join single cells of a dimension, in terms of slice, squeeze, unsqueeze and cat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx

from kcompile.passes.infra import PassResult, aten, call, calls, finish


@dataclass(frozen=True)
class SelectToSqueeze:
    """``select`` of a dimension other than the batch becomes a slice of one cell and a squeeze."""

    name: str = "select-to-squeeze"

    def apply(self, module: fx.GraphModule) -> PassResult:
        """Rewrite each select."""
        selects = [node for node in calls(module, aten.select.int) if _selected(node) is not None]
        for node in selects:
            dim, index = _selected(node) or (0, 0)
            with module.graph.inserting_before(node):
                cut = call(module.graph, aten.slice.Tensor, (node.args[0], dim, index, index + 1), node)
                flat = call(module.graph, aten.squeeze.dims, (cut, [dim]), node)
            node.replace_all_uses_with(flat)
            module.graph.erase_node(node)
        return finish(module, bool(selects))

    def postcondition(self, module: fx.GraphModule) -> str | None:
        """None is left but those of the batch."""
        return next((f"{n} selects" for n in calls(module, aten.select.int) if _selected(n) is not None), None)


def _selected(node: fx.Node) -> tuple[int, int] | None:
    """Dimension and index, both non-negative; None for the batch or what is not known."""
    image, dim, index = node.args
    value = image.meta.get("val") if isinstance(image, fx.Node) else None
    if not isinstance(value, Tensor) or not isinstance(dim, int) or not isinstance(index, int):
        return None
    dim %= value.dim()
    size = value.shape[dim]
    return (dim, index % size) if dim and isinstance(size, int) else None


@dataclass(frozen=True)
class SelectScatterToSlices:
    """``select_scatter`` (``x[:, i] = y``) writes a slice of one cell."""

    name: str = "select-scatter-to-slices"

    def apply(self, module: fx.GraphModule) -> PassResult:
        """Rewrite each of them."""
        writes = list(calls(module, aten.select_scatter.default))
        for node in writes:
            image, source, dim, index = (node.args[i] for i in range(4))
            assert isinstance(image, fx.Node)
            assert isinstance(dim, int)
            assert isinstance(index, int)
            place = index % image.meta["val"].shape[dim] if index < 0 else index
            with module.graph.inserting_before(node):
                raised = call(module.graph, aten.unsqueeze.default, (source, dim), node)
                written = call(module.graph, aten.slice_scatter.default, (image, raised, dim, place, place + 1), node)
            node.replace_all_uses_with(written)
            module.graph.erase_node(node)
        return finish(module, bool(writes))

    def postcondition(self, module: fx.GraphModule) -> str | None:
        """None is left."""
        return next((f"{node} writes" for node in calls(module, aten.select_scatter.default)), None)


@dataclass(frozen=True)
class StackToCat:
    """``stack`` becomes a cat of unsqueezed tensors."""

    name: str = "stack-to-cat"

    def apply(self, module: fx.GraphModule) -> PassResult:
        """Rewrite each stack."""
        stacks = list(calls(module, aten.stack.default))
        for node in stacks:
            parts: Any = node.args[0]
            dim = int(node.args[1] if len(node.args) > 1 else 0) % node.meta["val"].dim()  # type: ignore[arg-type]
            with module.graph.inserting_before(node):
                raised = [call(module.graph, aten.unsqueeze.default, (part, dim), node) for part in parts]
                both = call(module.graph, aten.cat.default, (raised, dim), node)
            node.replace_all_uses_with(both)
            module.graph.erase_node(node)
        return finish(module, bool(stacks))

    def postcondition(self, module: fx.GraphModule) -> str | None:
        """No stack is left."""
        return next((f"{node} stacks" for node in calls(module, aten.stack.default)), None)
