"""Ops that join or cut channels."""

from __future__ import annotations

from kcompile.core.axis_map import Identity
from kcompile.passes.record import OpRecord
from kcompile.passes.rules.registry import Refusal, Spatial, rule


@rule("aten.cat.default")
def concat(record: OpRecord) -> Spatial | Refusal:
    """Along channels the region is the hull of all inputs' regions (Krypton section 3.3, eq. 22)."""
    assert record.out is not None
    rank = len(record.out.shape) + 1
    if record.param("dim", 0) % rank != 1:
        return Refusal("it joins tensors along another dimension than channels")
    if not record.out.sizes or not all(spec.batched for spec in record.inputs):
        return Refusal("it joins tensors without batch or spatial axes")
    return Spatial(tuple(tuple(Identity(size) for size in record.out.sizes) for _ in record.inputs))


@rule("aten.slice.Tensor")
def channel_slice(record: OpRecord) -> Spatial | Refusal:
    """A slice of channels leaves regions as they are."""
    assert record.out is not None
    if record.param("dim", 0) % (len(record.out.shape) + 1) != 1 or not record.out.sizes:
        return Refusal("it cuts another dimension than channels")
    return Spatial((tuple(Identity(size) for size in record.out.sizes),))
