"""Drop calls that change nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx

from kcompile.passes.infra import PassResult, aten, finish

_NO_OPS = (
    aten.clone.default,
    aten.alias.default,
    aten.detach.default,
    aten.contiguous.default,
    aten.lift_fresh_copy.default,
    aten.dropout.default,
)
_CHECKS = (aten._assert_tensor_metadata.default, aten._assert_scalar.default, aten.sym_constrain_range_for_size.default)
_KEEP_SHAPE = (
    aten.view.default,
    aten._unsafe_view.default,
    aten.reshape.default,
    aten.expand.default,
    aten.slice.Tensor,
)


@dataclass(frozen=True)
class DropNoOps:
    """Drop copies, checks, poolings, views, slices or writes of slices that change nothing, and parts without cells."""

    name: str = "drop-no-ops"

    def apply(self, module: fx.GraphModule) -> PassResult:
        """Replace each no-op by its input."""
        modified = False
        for node in list(module.graph.nodes):
            if node.op == "call_function" and node.target in _CHECKS:
                module.graph.erase_node(node)
                modified = True
            elif parts := _parts_of_size(node):
                joined: Any = node.args[0]
                modified |= len(parts) < len(joined)
                node.update_arg(0, parts)
                if len(parts) == 1:
                    node.replace_all_uses_with(parts[0])
            elif _is_no_op(node):
                kept: Any = node.args[1 if node.target is aten.slice_scatter.default else 0]
                node.replace_all_uses_with(kept)
                module.graph.erase_node(node)
                modified = True
        return finish(module, modified)

    def postcondition(self, module: fx.GraphModule) -> str | None:
        """No no-op is left."""
        return next((f"{node} is a no-op" for node in module.graph.nodes if _is_no_op(node)), None)


def _parts_of_size(node: fx.Node) -> list[fx.Node]:
    """What a concat joins, without parts that hold no cell (as a crop by a computed amount may be)."""
    if node.target is not aten.cat.default:
        return []
    given: Any = node.args[0]
    full = [part for part in given if 0 not in part.meta["val"].shape[1:]]
    same = {part.meta["val"].dtype for part in given} == {node.meta["val"].dtype}
    return full if full and same else list(given)


def _is_no_op(node: fx.Node) -> bool:
    if node.op != "call_function" or not node.args or not isinstance(node.args[0], fx.Node):
        return False
    if node.target in _NO_OPS:
        return True
    before, after = node.args[0].meta.get("val"), node.meta.get("val")
    if not isinstance(before, Tensor) or not isinstance(after, Tensor) or before.dtype != after.dtype:
        return False
    if node.target is aten.slice_scatter.default:  # all of it is written over: what is left of `x[:, :] += y`
        source: Any = node.args[1]
        return isinstance(source.meta.get("val"), Tensor) and _same_shape(source.meta["val"], after)
    same = before.shape[1:] == after.shape[1:] and before.dim() == after.dim()
    if node.target is aten.adaptive_avg_pool2d.default:
        return same
    return node.target in _KEEP_SHAPE and bool(before.dim()) and _same_shape(before, after)


def _same_shape(before: Tensor, after: Tensor) -> bool:
    """Equal without adding a guard: symbolic sizes are compared as expressions."""
    return [str(size) for size in before.shape] == [str(size) for size in after.shape]
