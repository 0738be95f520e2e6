"""CUDA kernel of `linear.read_linear`, for few queries: they read the weights of the cells that they change."""

from __future__ import annotations

from math import prod
from struct import Struct

from torch import Tensor

from kcompile.cuda_ops import cuda_reads, linear
from kcompile.cuda_ops.packing import MOST_BLOCKS, THREADS, Source, three, widest
from kcompile.cuda_ops.reads import Part, wide

SHARE = 32  # channels that a thread sums up
_TAIL = Struct("@2Q 6I 4i")


def read_linear(
    base: Tensor,
    patch: Tensor,
    bias: Tensor | None,
    low: float,
    high: float,
    origins: Tensor,
    offsets: Tensor,
    extent: list[int],
    weight: Tensor,
    own: Tensor | None,
    before: Tensor | None,
) -> Tensor:
    """See `linear.read_linear`.

    One product for the whole batch reads all weights once. So the kernel pays where the cells that the queries change
    are fewer than the map's: a few queries.
    """
    part = Part(base, patch, bias, low, high, origins, offsets)
    changed = origins.shape[0] * prod(patch.shape[2:])
    run = cuda_reads.runner([part], extent) if before is not None and changed < prod(extent) else None
    if run is None or before is None or base.dtype != weight.dtype:
        return linear.read_linear(base, patch, bias, low, high, origins, offsets, extent, weight, own, before)
    queries, channels, features = origins.shape[0], weight.shape[1], weight.shape[2]
    if not queries * features:
        return base.new_empty((queries, features))
    factors, parts = weight.contiguous(), -(-channels // SHARE)
    sums = base.new_empty((queries, parts, features), dtype=wide(base.dtype))
    unit = widest(factors.data_ptr() | features * factors.element_size())
    source = Source(base, patch, origins, offsets).on(base.device)
    ending = None if bias is None else cuda_reads.values_like(bias, base)
    units = features * factors.element_size() // unit
    tail = _TAIL.pack(
        factors.data_ptr(), sums.data_ptr(), queries, parts, SHARE, channels, units, 0, *three(extent), 0
    )  # fmt: skip
    defines = (("VALUE_TYPE", cuda_reads.VALUES[base.dtype]), ("UNIT_BYTES", unit), ("SPATIAL_AXES", len(extent)))
    grid = (-(-units // THREADS), min(queries * parts, MOST_BLOCKS))
    run.launch("linear", defines, grid, source.pack(1) + cuda_reads.epilogue(ending, low, high) + tail)
    rows = before.index_select(0, origins[:, 0].to(before.device))
    return (rows.to(sums.dtype) + sums.sum(1)).to(base.dtype)
