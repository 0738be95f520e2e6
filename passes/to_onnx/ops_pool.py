"""Lowerings of pooling and of what weighs the cells of each axis: resizing, padding by mirroring, flips and rolls."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import numpy as np
import torch

from kcompile.core.errors import OnnxExportError
from kcompile.passes.record import OpRecord, TensorSpec
from kcompile.passes.rules.registry import Spatial, Weights
from kcompile.passes.rules.resize import resampled
from kcompile.passes.to_onnx.call import Call, Value, lowers


@lowers("aten.max_pool1d.default", "aten.max_pool2d.default", "aten.max_pool3d.default")
def max_pool(c: Call) -> str:
    """The same op; ``ceil_mode`` becomes padding at the end."""
    axes = _axes(c)
    folded, unfold = _folded(c, axes)
    pooled = c.do("MaxPool", folded, kernel_shape=c.ints("kernel_size", axes), strides=_strides(c, axes),
                  dilations=c.ints("dilation", axes), pads=_pads(c, axes))  # fmt: skip
    return unfold(pooled)


@lowers("aten.avg_pool1d.default", "aten.avg_pool2d.default", "aten.avg_pool3d.default")
def avg_pool(c: Call) -> str:
    """An average over the whole kernel, times what the divisor is off; ``ceil_mode`` becomes padding at the end.

    Where the divisor varies along the border, `passes.average_pool` has made sums and divisions of it.
    """
    axes = _axes(c)
    kernel, divisor = c.ints("kernel_size", axes), c.get("divisor_override")
    counted = divisor is not None or c.get("count_include_pad", True)
    folded, unfold = _folded(c, axes)
    pooled = c.do("AveragePool", folded, kernel_shape=kernel, strides=_strides(c, axes), pads=_pads(c, axes),
                  count_include_pad=counted)  # fmt: skip
    pooled = unfold(pooled)
    return pooled if divisor is None else c.do("Mul", pooled, c.number(prod(kernel) / divisor))


@lowers("aten.adaptive_avg_pool1d.default", "aten.adaptive_avg_pool2d.default", "aten.adaptive_avg_pool3d.default")
def adaptive_avg_pool(c: Call) -> str:
    """A global mean, an average pool, or weights per axis where windows are unequal."""
    axes = _axes(c)
    dims = range(c.x.rank - axes, c.x.rank)
    pairs = [(c.x.known(dim), c.out.known(dim)) for dim in dims]
    if any(size % out for size, out in pairs):
        return _weighted(c)
    kernel = [size // out for size, out in pairs]
    if all(out == 1 for _, out in pairs):
        return c.do("ReduceMean", c.x.name, c.graph.ints(*dims), keepdims=1)
    folded, unfold = _folded(c, axes)
    return unfold(c.do("AveragePool", folded, kernel_shape=kernel, strides=kernel))


@lowers("aten.adaptive_max_pool1d.default", "aten.adaptive_max_pool2d.default", "aten.adaptive_max_pool3d.default")
def adaptive_max_pool(c: Call) -> tuple[str, ...]:
    """The largest value of each window, axis by axis; the places are not made."""
    axes, result = _axes(c), c.x.name
    for dim in range(c.x.rank - axes, c.x.rank):
        size, out = c.x.known(dim), c.results[0].known(dim)
        bounds = [(i * size // out, -(-(i + 1) * size // out)) for i in range(out)]
        parts = [c.do("Slice", result, c.graph.ints(a), c.graph.ints(b), c.graph.ints(dim)) for a, b in bounds]
        largest = [c.do("ReduceMax", part, c.graph.ints(dim), keepdims=1) for part in parts]
        result = c.do("Concat", *largest, axis=dim)
    return (result,)


def _axes(c: Call) -> int:
    return int(c.op[-len("d.default") - 1])


def _folded(c: Call, axes: int) -> tuple[str, Callable[[str], str]]:
    """[N, C, *cells] of any tensor whose last dimensions are pooled, and the way back."""
    extra = c.x.rank - axes - 2
    if not extra:
        return c.x.name, lambda pooled: pooled
    if extra == -1:
        lifted = c.do("Unsqueeze", c.x.name, c.graph.ints(0))
        return lifted, lambda pooled: c.do("Squeeze", pooled, c.graph.ints(0))
    before = c.sizes(c.x, 0, c.x.rank - axes)
    folded = c.reshape(c.x.name, c.join([-1, 1], c.sizes(c.x, c.x.rank - axes)))

    def unfold(pooled: str) -> str:
        cells = c.graph.op("Shape", pooled, start=2)
        return c.reshape(pooled, c.join(before, cells))

    return folded, unfold


def _strides(c: Call, axes: int) -> list[int]:
    return c.ints("stride", axes, c.ints("kernel_size", axes))


def _pads(c: Call, axes: int) -> list[int]:
    """Cells before each axis, then behind each."""
    padding = c.ints("padding", axes, 0)
    if not c.get("ceil_mode", False):
        return padding * 2
    parts = zip(c.ints("kernel_size", axes), _strides(c, axes), c.ints("dilation", axes), padding, strict=True)
    behind = []
    for axis, (kernel, stride, dilation, low) in enumerate(parts):
        dim = c.x.rank - axes + axis
        reach = (c.out.known(dim) - 1) * stride + (kernel - 1) * dilation + 1
        behind.append(max(reach - c.x.known(dim) - low, 0))
    return padding + behind


_RESIZES = (
    "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "_upsample_nearest_exact1d",
    "_upsample_nearest_exact2d", "_upsample_nearest_exact3d", "upsample_linear1d", "upsample_bilinear2d",
    "upsample_trilinear3d", "upsample_bicubic2d", "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa",
)  # fmt: skip


@lowers(
    *(f"aten.{kind}.{overload}" for kind in _RESIZES for overload in ("vec", "default")),
    *(f"aten.{kind}_pad{axes}d.default" for kind in ("reflection", "replication") for axes in (1, 2, 3)),
    "aten.flip.default", "aten.roll.default",
)  # fmt: skip
def weighted(c: Call) -> str:
    """Each axis by the table of cells and factors that is read off the op, so that PyTorch's own rounding is in it."""
    return _weighted(c)


def _weighted(c: Call) -> str:
    x, result = c.x, c.x.name
    axes = _weighted_dims(c)
    spec, out = (
        TensorSpec(tuple(v.known(dim) if dim in axes else 1 for dim in range(1, x.rank)), True, True, axes, _short(x))
        for v in (x, c.out)
    )
    params = {name: spec if value is x else value for name, value in c.args.items()}
    answer = resampled(OpRecord(c.op, params, (spec,), out)) if "_aa." not in c.op else Spatial((), weights=_smooth(c))
    if not isinstance(answer, Spatial) or answer.weights is None:
        raise OnnxExportError(f"{c.op} changes other dimensions than {axes}")
    for axis, weights in zip(axes, answer.weights, strict=True):
        if weights is not None:
            result = _axis(c, result, axis, weights)
    return result


def _smooth(c: Call) -> tuple[Weights, ...]:
    """The tables of antialiased resizing: it goes wrong on maps one cell wide, so the other axis has two cells."""
    kind = getattr(torch.ops.aten, c.op.split(".")[1]).default
    tables = []
    for axis in (2, 3):
        size, out = c.x.known(axis), c.out.known(axis)
        units = torch.eye(size, dtype=torch.float32).reshape(size, 1, size, 1).expand(-1, -1, -1, 2)
        across = kind(units, [out, 2], c["align_corners"])[:, 0, :, 0].T.double().numpy()
        order = np.argsort(across == 0, axis=1, kind="stable")[:, : max(int((across != 0).sum(axis=1).max()), 1)]
        tables.append(Weights(order, np.take_along_axis(across, order, axis=1)))
    return tuple(tables)


def _weighted_dims(c: Call) -> tuple[int, ...]:
    x = c.x
    if c.op in ("aten.flip.default", "aten.roll.default"):
        return tuple(sorted(set(c.dims("dims", x.rank))))
    if c.op == "aten.pad.default":
        return tuple(range(x.rank - len(c["pad"]) // 2, x.rank))
    return tuple(range(2, x.rank))


def _axis(c: Call, name: str, axis: int, weights: Weights) -> str:
    """Sums of the cells of one axis, tap by tap."""
    g, total = c.graph, ""
    for tap in range(weights.index.shape[1]):
        cells = weights.index[:, tap]
        term = c.do("Gather", name, g.constant(np.maximum(cells, 0)), axis=axis)
        if weights.factor is not None:
            shape = [-1 if dim == axis else 1 for dim in range(c.x.rank)]
            factor = np.where(cells < 0, 0, weights.factor[:, tap]).reshape(shape)
            term = c.do("Mul", term, c.tensor(torch.from_numpy(factor), c.out.dtype))
        total = c.do("Add", total, term) if total else term
    return total


def _short(value: Value) -> str:
    return str(value.dtype).removeprefix("torch.")


@lowers("aten.pad.default", "aten.constant_pad_nd.default")
def pad(c: Call) -> str:
    """Constants at the borders, or cells cut off; other modes repeat cells of the map."""
    if c.get("mode", "constant") != "constant":
        return _weighted(c)
    given = list(c["pad"])
    kept = [0] * (c.x.rank - len(given) // 2)  # ONNX Runtime 1.31 moves a Transpose through a Pad of some axes wrongly
    pads = [*kept, *given[0::2][::-1], *kept, *given[1::2][::-1]]  # PyTorch names the last dimension first
    value = c.tensor(c.get("value", 0.0), c.x.dtype)
    return c.do("Pad", c.x.name, c.graph.ints(*pads), value) if any(pads) else c.x.name


@lowers("aten.pixel_shuffle.default")
def pixel_shuffle(c: Call) -> str:
    """Blocks of channels become cells."""
    return c.do("DepthToSpace", c.x.name, blocksize=c["upscale_factor"], mode="CRD")


@lowers("aten.pixel_unshuffle.default")
def pixel_unshuffle(c: Call) -> str:
    """Cells become channels."""
    factor, x, g = c["downscale_factor"], c.x, c.graph
    by = g.ints(factor)
    rows, cols = (g.op("Div", c.size(x, dim), by) for dim in (2, 3))
    split = c.reshape(x.name, c.join([0, 0], rows, by, cols, by))
    moved = c.do("Transpose", split, perm=[0, 1, 3, 5, 2, 4])
    return c.reshape(moved, c.join([0, x.known(1) * factor**2], rows, cols))


@lowers("aten.channel_shuffle.default", "aten.native_channel_shuffle.default")
def channel_shuffle(c: Call) -> str:
    """Channels change places."""
    x, groups = c.x, c["groups"]
    order = np.arange(x.known(1)).reshape(groups, -1).T.reshape(-1)
    return c.do("Gather", x.name, c.graph.constant(order), axis=1)
