"""CUDA kernel of `linear.read_linear`, for few queries: they read the weights of the cells that they change."""

from __future__ import annotations

from math import prod
from struct import Struct
from typing import Any

from torch import Tensor

from kcompile.cuda_ops import cuda_reads, linear
from kcompile.cuda_ops.launch import or_reference
from kcompile.cuda_ops.linear import Layer
from kcompile.cuda_ops.packing import MOST_BLOCKS, THREADS, Source, three, widest
from kcompile.cuda_ops.reads import READS, Read, wide

SHARE = 32  # channels that a thread sums up
_TAIL = Struct("@2Q 6I 4i")


@or_reference(linear.read_linear)
def read_linear(*given: Any) -> Tensor:
    """See `linear.read_linear`.

    One product for the whole batch reads all weights once. So the kernel pays where the cells that the queries change
    are fewer than the map's: a few queries.
    """
    read, layer = Read(*given[:READS]), Layer(*given[READS:])
    base, extent, before = read.base, read.extent, layer.before
    changed = read.origins.shape[0] * prod(read.patch.shape[2:])
    run = cuda_reads.runner([read.part], extent) if before is not None and changed < prod(extent) else None
    if run is None or before is None or base.dtype != layer.weight.dtype:
        return linear.read_linear(*given)
    queries, channels, features = read.origins.shape[0], layer.weight.shape[1], layer.weight.shape[2]
    if not queries * features:
        return base.new_empty((queries, features))
    factors, parts = layer.weight.contiguous(), -(-channels // SHARE)
    sums = base.new_empty((queries, parts, features), dtype=wide(base.dtype))
    unit = widest(factors.data_ptr() | features * factors.element_size())
    source = Source(base, read.patch, read.origins, read.offsets).on(base.device)
    ending = None if read.bias is None else cuda_reads.values_like(read.bias, base)
    units = features * factors.element_size() // unit
    tail = _TAIL.pack(
        factors.data_ptr(), sums.data_ptr(), queries, parts, SHARE, channels, units, 0, *three(extent), 0
    )  # fmt: skip
    defines = (("VALUE_TYPE", cuda_reads.VALUES[base.dtype]), ("UNIT_BYTES", unit), ("SPATIAL_AXES", len(extent)))
    grid = (-(-units // THREADS), min(queries * parts, MOST_BLOCKS))
    run.launch("linear", defines, grid, source.pack(1) + cuda_reads.epilogue(ending, read.low, read.high) + tail)
    rows = before.index_select(0, read.origins[:, 0].to(before.device))
    return (rows.to(sums.dtype) + sums.sum(1)).to(base.dtype)
