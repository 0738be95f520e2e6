"""Lowerings of ops that arrange, cut, join or copy cells, and of sizes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from kcompile.core.errors import OnnxExportError
from kcompile.passes.to_onnx.call import Call, Value, lowers

_END = 2**63 - 1


@lowers("aten.permute.default")
def permute(c: Call) -> str:
    """The same op."""
    return c.do("Transpose", c.x.name, perm=[dim % c.x.rank for dim in c["dims"]])


@lowers("aten.transpose.int", "aten.t.default", "aten.numpy_T.default")
def transpose(c: Call) -> str:
    """Two dimensions change places."""
    order = list(range(c.x.rank))
    if order:
        one, two = c.get("dim0", 0) % c.x.rank, c.get("dim1", -1) % c.x.rank
        order[one], order[two] = two, one
    return c.do("Transpose", c.x.name, perm=order)


@lowers("aten.unsqueeze.default")
def unsqueeze(c: Call) -> str:
    """The same op."""
    return c.do("Unsqueeze", c.x.name, c.graph.ints(c["dim"] % (c.x.rank + 1)))


@lowers("aten.squeeze.dim", "aten.squeeze.dims", "aten.squeeze.default")
def squeeze(c: Call) -> str:
    """Dimensions of one cell disappear."""
    gone = [dim for dim in sorted(set(c.dims("dim", c.x.rank))) if c.x.shape[dim] == 1]
    return c.do("Squeeze", c.x.name, c.graph.ints(*gone)) if gone else c.x.name


@lowers("aten.flatten.using_ints")
def flatten(c: Call) -> str:
    """Neighbouring dimensions become one."""
    rank = c.x.rank
    first, last = c["start_dim"] % max(rank, 1), c["end_dim"] % max(rank, 1)
    behind: str | list[int] = c.sizes(c.x, last + 1) if last + 1 < rank else []
    return c.reshape(c.x.name, c.join([0] * first, [-1], behind))


@lowers("aten.unflatten.int")
def unflatten(c: Call) -> str:
    """One dimension becomes several."""
    dim = c["dim"] % c.x.rank
    behind: str | list[int] = c.sizes(c.x, dim + 1) if dim + 1 < c.x.rank else []
    return c.reshape(c.x.name, c.join([0] * dim, list(c["sizes"]), behind))


@lowers("aten.view.default", "aten.reshape.default", "aten._unsafe_view.default")
def reshape(c: Call) -> str:
    """The same op; sizes may be computed."""
    return c.reshape(c.x.name, c.shape(list(c.args.values())[1]))


@lowers("aten.expand.default")
def expand(c: Call) -> str:
    """Copies of single cells."""
    sizes = [1 if isinstance(size, int) and size == -1 else size for size in c["size"]]
    return c.do("Expand", c.x.name, c.shape(sizes))


@lowers("aten.repeat.default", "aten.tile.default")
def repeat(c: Call) -> str:
    """Copies of the whole."""
    times = list(list(c.args.values())[1])
    times = [1] * (c.x.rank - len(times)) + times
    lifted = len(times) - c.x.rank
    name = c.do("Unsqueeze", c.x.name, c.graph.ints(*range(lifted))) if lifted else c.x.name
    return c.do("Tile", name, c.shape(times))


@lowers("aten.repeat_interleave.self_int")
def repeat_interleave(c: Call) -> str:
    """Each cell of one dimension so many times."""
    dim = c.get("dim")
    if dim is None:
        raise OnnxExportError("repeat_interleave over all dimensions has no lowering to ONNX: name a dimension")
    order = np.repeat(np.arange(c.x.known(dim)), c["repeats"])
    return c.do("Gather", c.x.name, c.graph.constant(order), axis=dim % c.x.rank)


@lowers("aten.slice.Tensor")
def cut(c: Call) -> str:
    """Some cells of one dimension."""
    g, dim = c.graph, c["dim"] % c.x.rank
    start, end, step = c.get("start", 0), c.get("end", _END), c.get("step", 1)
    if all(isinstance(v, int) for v in (start, end)) and start == 0 and end >= 2**62 and step == 1:
        return c.x.name
    return c.do("Slice", c.x.name, c.shape([start]), c.shape([end]), g.ints(dim), g.ints(step))


@lowers("aten.unfold.default")
def windows(c: Call) -> str:
    """Windows of one dimension; their cells become the last one."""
    x, dim = c.x, c["dimension"] % max(c.x.rank, 1)
    starts = np.arange(0, x.known(dim) - c["size"] + 1, c["step"])
    found = c.do("Gather", x.name, c.graph.constant(starts[:, None] + np.arange(c["size"])), axis=dim)
    return c.do("Transpose", found, perm=[d for d in range(x.rank + 1) if d != dim + 1] + [dim + 1])


@lowers("aten.select.int")
def select(c: Call) -> str:
    """One cell of a dimension, which disappears."""
    index = c["index"]
    name = c.graph.constant(index, "int64") if isinstance(index, int) else index.name
    return c.do("Gather", c.x.name, name, axis=c["dim"] % c.x.rank)


@lowers("aten.slice_scatter.default")
def slice_scatter(c: Call) -> str:
    """Cells of one dimension written over others."""
    x, g = c.x, c.graph
    dim = c["dim"] % x.rank
    cells = range(x.known(dim))[c.get("start", 0) : c.get("end", _END) : c.get("step", 1)]
    size = x.known(dim)
    order = np.arange(size)
    order[list(cells)] = size + np.arange(len(cells))
    both = c.do("Concat", x.name, c.tensor(c["src"], x.dtype), axis=dim)
    return c.do("Gather", both, g.constant(order), axis=dim)


@lowers("aten.cat.default", "aten.concat.default", "aten.stack.default")
def cat(c: Call) -> str:
    """The same op; of one type."""
    parts = [c.tensor(part, c.out.dtype) for part in c["tensors"] if part.shape != (0,)]
    dim = c["dim"] % c.out.rank
    if "stack" in c.op:
        parts = [c.do("Unsqueeze", part, c.graph.ints(dim)) for part in parts]
    return c.do("Concat", *parts, axis=dim) if len(parts) > 1 else parts[0]


@lowers("aten.split.Tensor", "aten.split_with_sizes.default", "aten.chunk.default", "aten.unbind.int")
def split(c: Call) -> tuple[str, ...]:
    """Pieces of one dimension."""
    dim = c["dim"] % c.x.rank
    if "unbind" in c.op:
        return tuple(c.do("Gather", c.x.name, c.graph.constant(i, "int64"), axis=dim) for i in range(len(c.results)))
    sizes = c.graph.ints(*(piece.known(dim) for piece in c.results))
    return c.graph.ops("Split", c.x.name, sizes, count=len(c.results), name=c.label, axis=dim)


@lowers("aten.index_select.default")
def index_select(c: Call) -> str:
    """Cells of one dimension by their numbers."""
    return c.do("Gather", c.x.name, c["index"].name, axis=c["dim"] % c.x.rank)


@lowers("aten.index.Tensor", "aten._unsafe_index.Tensor")
def index(c: Call) -> str:
    """Cells by one list of numbers, or by several of neighbouring dimensions."""
    given = [(dim, value) for dim, value in enumerate(c["indices"]) if value is not None]
    dims = [dim for dim, _ in given]
    if any(value.dtype == torch.bool for _, value in given) or dims != list(range(dims[0], dims[0] + len(dims))):
        raise OnnxExportError(f"{c.op} by masks or by dimensions that are not neighbours has no lowering to ONNX")
    if len(given) == 1:
        return c.do("Gather", c.x.name, given[0][1].name, axis=dims[0])
    order = [*dims, *(dim for dim in range(c.x.rank) if dim not in dims)]
    moved = c.do("Transpose", c.x.name, perm=order)
    rank = max(value.rank for _, value in given)
    shape = c.sizes(c.out, dims[0], dims[0] + rank)
    columns = [_column(c, value, shape) for _, value in given]
    found = c.do("GatherND", moved, c.graph.op("Concat", *columns, axis=-1))
    back = [*range(rank, rank + dims[0]), *range(rank), *range(rank + dims[0], c.out.rank)]
    return c.do("Transpose", found, perm=back)


def _column(c: Call, value: Value, shape: str) -> str:
    return c.graph.op("Unsqueeze", c.do("Expand", c.tensor(value, torch.int64), shape), c.graph.ints(-1))


@lowers("aten.rot90.default")
def rot90(c: Call) -> str:
    """Quarter turns of two dimensions."""
    one, two = (dim % c.x.rank for dim in c["dims"])
    turns, name = c["k"] % 4, c.x.name
    order = list(range(c.x.rank))
    if turns % 2:
        order[one], order[two] = two, one
    flipped = {0: [], 1: [two], 2: [one, two], 3: [one]}[turns]
    for dim in flipped:
        name = c.do("Gather", name, c.graph.constant(np.arange(c.x.known(dim))[::-1].copy()), axis=dim)
    return c.do("Transpose", name, perm=order)


@lowers("aten.zeros_like.default", "aten.ones_like.default", "aten.full_like.default", "aten.new_ones.default",
        "aten.new_zeros.default", "aten.new_full.default", "aten.zeros.default", "aten.ones.default",
        "aten.full.default", "aten.empty_like.default", "aten.scalar_tensor.default", "aten.fill.Scalar",
        "aten.fill.Tensor")  # fmt: skip
def full(c: Call) -> str:
    """One value everywhere."""
    name = c.op.split(".")[1]
    value: Any = 1 if "ones" in name else next((c[k] for k in ("fill_value", "s", "value") if c.get(k) is not None), 0)
    given = c.get("size")
    like = c.sizes(c.x) if name.endswith("_like") or name == "fill" else c.shape(list(given or []))
    return c.do("Expand", c.number(value), like)


@lowers("aten.arange.default", "aten.arange.start", "aten.arange.start_step")
def arange(c: Call) -> str:
    """Evenly spaced numbers."""
    bounds = (c.get("start", 0), c["end"], c.get("step", 1))
    return c.do("Range", *(c.tensor(bound, c.out.dtype) for bound in bounds))


@lowers("aten.sym_size.int")
def size(c: Call) -> str:
    """A size as a number."""
    return c.graph.op("Squeeze", c.graph.op("Shape", c.x.name, start=c["dim"], end=c["dim"] + 1 or None))
