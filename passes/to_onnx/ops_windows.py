"""Lowerings of the ops of incremental inference: gather, superimpose, crop and resample."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from kcompile.passes.to_onnx.call import Call, Value, array_of, lowers
from kcompile.passes.to_onnx.functions import name_of
from kcompile.passes.to_onnx.geometry import Place


def _place(c: Call) -> Place:
    assert c.place is not None, f"{c.label} reads nothing"
    return c.place


@lowers("kcompile.gather.default")
def gather(c: Call) -> str:
    """Windows of a base tensor."""
    place = _place(c)
    if c.out.rank == 2:  # a tensor without cells: a row for each query
        rows = c.graph.op("Concat", c.graph.op("Shape", place.origins, end=1), c.graph.ints(1), axis=0)
        return c.do("Expand", c["base"].name, rows)
    return c.graph.call(name_of("Gather", c.out.rank - 2), c["base"].name, place.origins, place.extent, name=c.label)


@lowers("kcompile.superimpose.default")
def superimpose(c: Call) -> str:
    """Patch tensors over windows."""
    offsets = _place(c).offsets
    if c.out.rank == 2:
        return str(c["patch"].name)
    assert offsets is not None
    return c.graph.call(
        name_of("Superimpose", c.out.rank - 2), c["window"].name, c["patch"].name, offsets, name=c.label
    )


@lowers("kcompile.gather_superimpose.default")
def gather_superimpose(c: Call) -> str:
    """Both in one."""
    place = _place(c)
    if c.out.rank == 2:
        return str(c["patch"].name)
    assert place.offsets is not None
    given = (c["base"].name, c["patch"].name, place.origins, place.offsets, place.extent)
    return c.graph.call(name_of("GatherSuperimpose", c.out.rank - 2), *given, name=c.label)


@lowers("kcompile.crop.default")
def crop(c: Call) -> str:
    """Boxes of results that begin at ``start * stride - shift``."""
    place, g = _place(c), c.graph
    begin = g.op("Sub", g.op("Mul", place.start, g.ints(*c["stride"])), g.ints(*c["shift"]))
    first = g.op("Sub", place.at, begin)
    return g.call(name_of("Crop", c.out.rank - 2), c["window"].name, first, place.size, name=c.label)


@lowers("kcompile.resample.default")
def resample(c: Call) -> str:
    """Weighted sums of cells, one axis after the other: see `cuda_ops.reference.resample`."""
    rank = c.out.rank
    result: str = c["window"].name
    for axis, (index, factor) in enumerate(zip(c["index"], c["factor"], strict=True)):
        cells, factors = (_values(part) for part in (index, factor))
        if cells.size:
            order = [0, axis + 2, *(dim for dim in range(1, rank) if dim != axis + 2)]
            lines = _resampled(c, c.do("Transpose", result, perm=order), axis, cells, factors)
            result = c.do("Transpose", lines, perm=[order.index(dim) for dim in range(rank)])
    return result


def _values(part: Value | Tensor) -> np.ndarray:
    assert isinstance(part, Tensor), "tables are constants"
    return array_of(part)


def _resampled(c: Call, lines: str, axis: int, cells: np.ndarray, factors: np.ndarray) -> str:
    """Lines [N, cells, ...] of the wanted outputs of one axis, from lines [N, window, ...]."""
    g, place = c.graph, _place(c)
    column = g.constant(axis, "int64")
    steps = g.op("Range", g.constant(0, "int64"), g.op("Gather", place.size, column), g.constant(1, "int64"))
    wanted = g.op("Add", g.op("Gather", place.at, g.ints(axis), axis=1), steps)  # [N, cells]
    start = g.op("Gather", place.start, g.ints(axis), axis=1)
    shape = g.op("Shape", lines)
    inner = g.op("Slice", shape, g.ints(2), g.ints(c.out.rank))
    flat = g.op("Reshape", lines, g.op("Concat", g.ints(-1), inner, axis=0))
    width = g.op("Gather", shape, g.constant(1, "int64"))
    count = g.op("Gather", shape, g.constant(0, "int64"))
    first = g.op("Mul", g.op("Range", g.constant(0, "int64"), count, g.constant(1, "int64")), width)
    first = g.op("Unsqueeze", first, g.ints(1))
    total = ""
    for tap in range(cells.shape[1]):
        place_of = g.op("Max", g.op("Sub", g.op("Gather", g.constant(cells[:, tap]), wanted), start), g.ints(0))
        term = c.do("Gather", flat, g.op("Add", first, place_of), axis=0)
        if factors.size:
            factor = g.op("Gather", g.constant(np.where(cells[:, tap] < 0, 0, factors[:, tap])), wanted)
            term = c.do("Mul", term, g.op("Unsqueeze", factor, g.ints(*range(2, c.out.rank))))
        total = c.do("Add", total, term) if total else term
    return total
