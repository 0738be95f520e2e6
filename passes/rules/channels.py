"""Ops that join channels, or reduce over them."""

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


@rule("aten.softmax.int", "aten.log_softmax.int", "aten.mean.dim", "aten.sum.dim_IntList", "aten.amax.default",
      "aten.amin.default")  # fmt: skip
def over_channels(record: OpRecord) -> Spatial | Refusal:
    """Along channels alone each cell stands for itself; any other reduction reads the whole map."""
    assert record.out is not None
    rank, dims = len(record.inputs[0].shape) + 1, record.params["dim"]
    wanted = {dim % rank for dim in ([dims] if isinstance(dims, int) else dims or range(rank))}
    sizes = record.inputs[0].sizes
    if wanted != {1} or record.out.sizes != sizes or not sizes:
        return Refusal("it reduces over the whole map")
    return Spatial((tuple(Identity(size) for size in sizes),))
