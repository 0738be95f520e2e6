"""Fold inference batch norm."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from kcompile.passes.infra import PassResult, add_constant, aten, calls, constant, finish

_HALVES = (torch.bfloat16, torch.float16)
_BATCH_NORM = aten._native_batch_norm_legit_no_training.default


@dataclass(frozen=True)
class FoldBatchNorm:
    """Fold inference batch norm into the convolution before it; elsewhere it becomes ``shift + x * scale``.

    In half precision nothing is folded, and the norm computes in float32 as the model's own does: rounded weights would
    err more than twice as much as the model. Scales are computed in float64.
    ``y = (x - mean) / sqrt(var + eps) * weight + bias``.
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
    if weight is None or weight.dtype in _HALVES or (bias is not None and old_bias is None):
        return False
    shape = [-1] + [1] * (weight.dim() - 1)
    new_weight = (weight.detach().double() * scale.view(shape)).to(weight.dtype)
    new_bias = (shift if old_bias is None else shift + old_bias.detach().double() * scale).to(weight.dtype)
    name = str(conv.args[1].target)  # type: ignore[union-attr]
    folded = add_constant(module, conv, f"{name}_folded", new_weight)
    folded.meta["folded"] = scale.to(weight.dtype)  # autocast takes it out again: see `runtime.folding`
    conv.update_arg(1, folded)
    new_bias_node = add_constant(module, conv, f"{name}_folded_bias", new_bias)
    conv.args = (*conv.args[:2], new_bias_node, *conv.args[3:])
    _replace_result(module, node, conv)
    return True


def _as_addcmul(module: fx.GraphModule, node: fx.Node, scale: Tensor, shift: Tensor) -> None:
    source: Any = node.args[0]
    value: Tensor = source.meta["val"]
    half = value.dtype in _HALVES
    dtype = torch.float32 if half else value.dtype
    shape = [-1] + [1] * (value.dim() - 2)
    scale_node = add_constant(module, node, f"{node.name}_scale", scale.to(dtype).view(shape))
    shift_node = add_constant(module, node, f"{node.name}_shift", shift.to(dtype).view(shape))
    wide = value.to(dtype)
    with module.graph.inserting_before(node):
        if half:
            source = module.graph.call_function(aten._to_copy.default, (source,), {"dtype": dtype})
            source.meta = {**node.meta, "val": wide}
        affine = module.graph.call_function(aten.addcmul.default, (shift_node, source, scale_node))
        affine.meta = {**node.meta, "val": wide}
        if half:
            affine = module.graph.call_function(aten._to_copy.default, (affine,), {"dtype": value.dtype})
            affine.meta = {**node.meta, "val": value}
    _replace_result(module, node, affine)


def _replace_result(module: fx.GraphModule, node: fx.Node, by: fx.Node) -> None:
    for user in list(node.users):
        user.replace_all_uses_with(by)
        module.graph.erase_node(user)
    module.graph.erase_node(node)
