"""Canonicalise: drop no-ops, fold batch norm and constants, so that rules see few kinds of ops."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from kcompile.passes.average_pool import SplitAveragePool
from kcompile.passes.infra import GraphPass, PassResult, add_constant, aten, calls, constant, finish

_NO_OPS = (aten.clone.default, aten.alias.default, aten.detach.default, aten.contiguous.default,
           aten.lift_fresh_copy.default, aten.dropout.default)  # fmt: skip
_CHECKS = (aten._assert_tensor_metadata.default, aten._assert_scalar.default, aten.sym_constrain_range_for_size.default)
_VIEWS = (aten.view.default, aten._unsafe_view.default)
_BATCH_NORM = aten._native_batch_norm_legit_no_training.default


@dataclass(frozen=True)
class DropNoOps:
    """Drop copies, checks, and poolings, views or slices that change nothing."""

    name: str = "drop-no-ops"

    def apply(self, module: fx.GraphModule) -> PassResult:
        """Replace each no-op by its input."""
        modified = False
        for node in list(module.graph.nodes):
            if node.op == "call_function" and node.target in _CHECKS:
                module.graph.erase_node(node)
                modified = True
            elif _is_no_op(node):
                node.replace_all_uses_with(node.args[0])
                module.graph.erase_node(node)
                modified = True
        return finish(module, modified)

    def postcondition(self, module: fx.GraphModule) -> str | None:
        """No no-op is left."""
        return next((f"{node} is a no-op" for node in module.graph.nodes if _is_no_op(node)), None)


def _is_no_op(node: fx.Node) -> bool:
    if node.op != "call_function" or not node.args or not isinstance(node.args[0], fx.Node):
        return False
    if node.target in _NO_OPS:
        return True
    before, after = node.args[0].meta.get("val"), node.meta.get("val")
    if not isinstance(before, Tensor) or not isinstance(after, Tensor) or before.dtype != after.dtype:
        return False
    same = before.shape[1:] == after.shape[1:] and before.dim() == after.dim()
    if node.target is aten.adaptive_avg_pool2d.default:
        return same
    return (
        node.target in (*_VIEWS, aten.reshape.default, aten.expand.default, aten.slice.Tensor)
        and bool(before.dim())
        and _same_shape(before, after)
    )


def _same_shape(before: Tensor, after: Tensor) -> bool:
    """Equal without adding a guard: symbolic sizes are compared as expressions."""
    return [str(size) for size in before.shape] == [str(size) for size in after.shape]


@dataclass(frozen=True)
class SelectToSlice:
    """``unsqueeze(select(x, 1, i), 1)`` keeps the channel dimension: a slice (as in torchvision's transform_input)."""

    name: str = "select-to-slice"

    def apply(self, module: fx.GraphModule) -> PassResult:
        """Rewrite each pair."""
        modified = False
        for node in calls(module, aten.unsqueeze.default):
            inner = node.args[0]
            if not (
                isinstance(inner, fx.Node) and inner.target is aten.select.int and inner.args[1] == node.args[1] == 1
            ):
                continue
            index: Any = inner.args[2]
            end = index + 1 if index != -1 else torch.iinfo(torch.int64).max
            with module.graph.inserting_before(node):
                cut = module.graph.call_function(aten.slice.Tensor, (inner.args[0], 1, index, end))
            cut.meta = dict(node.meta)
            node.replace_all_uses_with(cut)
            module.graph.erase_node(node)
            modified = True
        return finish(module, modified)

    def postcondition(self, module: fx.GraphModule) -> str | None:
        """Always holds: pairs that do not match stay."""
        return None


@dataclass(frozen=True)
class ViewToReshape:
    """Tensors are channels-last at run time, so a view may have to copy."""

    name: str = "view-to-reshape"

    def apply(self, module: fx.GraphModule) -> PassResult:
        """Retarget each view."""
        views = list(calls(module, *_VIEWS))
        for node in views:
            node.target = aten.reshape.default
        return finish(module, bool(views))

    def postcondition(self, module: fx.GraphModule) -> str | None:
        """No view is left."""
        return next((f"{node} is a view" for node in calls(module, *_VIEWS)), None)


@dataclass(frozen=True)
class FoldBatchNorm:
    """Fold inference batch norm into the convolution before it; elsewhere it becomes ``shift + x * scale``.

    Scales are computed in float64. ``y = (x - mean) / sqrt(var + eps) * weight + bias``.
    """

    name: str = "fold-batch-norm"

    def apply(self, module: fx.GraphModule) -> PassResult:
        """Rewrite each batch norm whose statistics are constants."""
        modified = False
        for node in calls(module, _BATCH_NORM):
            factors = _scale_and_shift(module, node)
            if factors is None or any(user.target is not operator.getitem or user.args[1] != 0 for user in node.users):
                continue
            if not _fold_into_conv(module, node, *factors):
                _as_addcmul(module, node, *factors)
            modified = True
        return finish(module, modified)

    def postcondition(self, module: fx.GraphModule) -> str | None:
        """No batch norm with constant statistics is left."""
        left = [node for node in calls(module, _BATCH_NORM) if _scale_and_shift(module, node) is not None]
        return f"{left[0]} was not folded" if left else None


def _scale_and_shift(module: fx.GraphModule, node: fx.Node) -> tuple[Tensor, Tensor] | None:
    """Per-channel scale and shift in float64, or None if a statistic is no constant."""
    weight, bias, mean, var = (constant(module, arg) for arg in node.args[1:5])
    if mean is None or var is None:
        return None
    if any(arg is not None and value is None for arg, value in zip(node.args[1:3], (weight, bias), strict=True)):
        return None
    scale = torch.rsqrt(var.detach().double() + float(node.args[6]))  # type: ignore[arg-type]
    scale = scale if weight is None else scale * weight.detach().double()
    shift = -mean.detach().double() * scale
    return scale, shift if bias is None else shift + bias.detach().double()


def _fold_into_conv(module: fx.GraphModule, node: fx.Node, scale: Tensor, shift: Tensor) -> bool:
    conv = node.args[0]
    if (
        not isinstance(conv, fx.Node)
        or conv.target not in (aten.conv2d.default, aten.conv2d.padding)
        or len(conv.users) > 1
    ):
        return False
    weight, bias = constant(module, conv.args[1]), conv.args[2] if len(conv.args) > 2 else None
    old_bias = constant(module, bias)
    if weight is None or (bias is not None and old_bias is None):
        return False
    shape = [-1] + [1] * (weight.dim() - 1)
    new_weight = (weight.detach().double() * scale.view(shape)).to(weight.dtype)
    new_bias = (shift if old_bias is None else shift + old_bias.detach().double() * scale).to(weight.dtype)
    name = str(conv.args[1].target)  # type: ignore[union-attr]
    conv.update_arg(1, add_constant(module, conv, f"{name}_folded", new_weight))
    new_bias_node = add_constant(module, conv, f"{name}_folded_bias", new_bias)
    conv.args = (*conv.args[:2], new_bias_node, *conv.args[3:])
    _replace_result(module, node, conv)
    return True


def _as_addcmul(module: fx.GraphModule, node: fx.Node, scale: Tensor, shift: Tensor) -> None:
    value = node.args[0].meta["val"]  # type: ignore[union-attr]
    shape = [-1] + [1] * (value.dim() - 2)
    scale_node = add_constant(module, node, f"{node.name}_scale", scale.to(value.dtype).view(shape))
    shift_node = add_constant(module, node, f"{node.name}_shift", shift.to(value.dtype).view(shape))
    with module.graph.inserting_before(node):
        affine = module.graph.call_function(aten.addcmul.default, (shift_node, node.args[0], scale_node))
    affine.meta = {**node.meta, "val": value}
    _replace_result(module, node, affine)


def _replace_result(module: fx.GraphModule, node: fx.Node, by: fx.Node) -> None:
    for user in list(node.users):
        user.replace_all_uses_with(by)
        module.graph.erase_node(user)
    module.graph.erase_node(node)


@dataclass(frozen=True)
class FoldConstants:
    """Evaluate calls whose tensor arguments are all constants."""

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
    if node.op != "call_function" or schema is None or schema.is_mutable or not node.all_input_nodes:
        return None
    values: Mapping[fx.Node, Tensor | None] = {arg: constant(module, arg) for arg in node.all_input_nodes}
    random = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
    if random or any(value is None for value in values.values()):
        return None
    args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), lambda arg: values[arg])
    with torch.no_grad():
        result = node.target(*args, **kwargs)  # type: ignore[operator]
    return result if isinstance(result, Tensor) else None


PASSES: list[GraphPass] = [
    DropNoOps(),
    FoldConstants(),
    ViewToReshape(),
    SelectToSlice(),
    FoldBatchNorm(),
    SplitAveragePool(),
    FoldConstants(),
]
