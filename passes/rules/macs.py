"""Multiply-adds of one call, per image (Krypton eq. 10: only layers with weights count)."""

from __future__ import annotations

from math import prod

from kcompile.passes.record import OpRecord


def macs(record: OpRecord) -> int:
    """Multiply-adds of one full call; 0 for ops without weights."""
    if record.out is None:
        return 0
    if record.op.startswith(("aten.conv1d", "aten.conv2d", "aten.conv3d", "aten.linear")):
        return prod(record.inputs[1].shape[1:]) * prod(record.out.shape)
    if record.op.startswith("aten.conv_transpose"):
        return prod(record.inputs[1].shape[1:]) * prod(record.inputs[0].shape)
    if any(not spec.shape for spec in record.inputs):
        return 0  # the batch is folded into another dimension: the sizes per image are not known
    if record.op.startswith(("aten.mm", "aten.addmm", "aten.matmul", "aten.bmm")):
        return record.inputs[-2].shape[-1] * prod(record.out.shape)
    return 0
