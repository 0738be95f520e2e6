"""Max, average and adaptive average pooling."""

from __future__ import annotations

from kcompile.core.axis_map import AxisMap, Identity, Sliding
from kcompile.passes.record import OpRecord
from kcompile.passes.rules.registry import Refusal, Spatial, rule
from kcompile.passes.rules.resize import resampled


@rule("aten.max_pool2d.default", "aten.max_pool1d.default", "aten.max_pool3d.default")
def max_pool(record: OpRecord) -> Spatial | Refusal:
    """As a convolution's regions (Krypton section 3.2); padding reads -inf, so that it never wins.

    ``ceil_mode`` only adds outputs at the high side: the map follows from the output's size.
    """
    return _pool(record, _sliding(record), float("-inf"))


@rule("aten.avg_pool2d.default", "aten.avg_pool1d.default", "aten.avg_pool3d.default")
def avg_pool(record: OpRecord) -> Spatial | Refusal:
    """As a convolution's regions; padding reads 0.

    The divisor must be the same for all outputs; `passes.average_pool` has rewritten those where it isn't.
    """
    pooled = _sliding(record)
    uneven = any(not _divides_evenly(pooled[axis], record) for axis in record.image.axes if axis in pooled)
    if record.param("divisor_override") is None and uneven:
        return Refusal("its divisor varies along the border")
    return _pool(record, pooled, 0.0)


def _pool(record: OpRecord, pooled: dict[int, Sliding], fill: float) -> Spatial | Refusal:
    """Pool the image's axes on windows, other dimensions (as local response norms do) as they are."""
    image = record.image
    maps: tuple[AxisMap, ...] = tuple(pooled.get(axis, Identity(image.size(axis))) for axis in image.axes)
    others = [m for dim, m in pooled.items() if dim not in image.axes]
    if record.param("ceil_mode", False) and any(m.out_size != m.in_size for m in others):
        return Refusal("it pools channels, with ceil_mode")
    padding = [0 if dim in image.axes else m.padding for dim, m in pooled.items()]
    return Spatial((maps,), fill=fill, overrides=(("padding", padding), ("ceil_mode", False)))


def _divides_evenly(m: Sliding, record: OpRecord) -> bool:
    """True if every output of the axis divides by the kernel's size."""
    low = m.padding if record.param("count_include_pad", True) else 0
    last = (m.out_size - 1) * m.stride - m.padding + m.kernel
    return (m.padding == 0 or low == m.padding) and last <= m.in_size + low


@rule("aten.adaptive_avg_pool1d.default", "aten.adaptive_avg_pool2d.default", "aten.adaptive_avg_pool3d.default")
def adaptive_avg_pool(record: OpRecord) -> Spatial | Refusal:
    """Output i averages inputs ``[floor(i*in/out), ceil((i+1)*in/out))``.

    Where each axis divides evenly that is a plain average pool of kernel and stride ``in // out``; else a resampling.
    """
    assert record.out is not None
    image, axes = record.image, int(record.op[-len("d.default") - 1])
    dims = range(image.rank - axes, image.rank)
    pairs = [(image.size(dim), record.out.size(dim)) for dim in dims]
    if any(size != out for dim, (size, out) in zip(dims, pairs, strict=True) if dim not in image.axes):
        return Refusal("it pools another dimension than space")
    if any(size % out for size, out in pairs):
        return resampled(record)
    each = [Sliding(size // out, size // out, 0, 1, size, out) for size, out in pairs]
    pooled: dict[int, AxisMap] = {dim: m for dim, m in zip(dims, each, strict=True) if m.kernel > 1}
    maps = tuple(pooled.get(axis, Identity(image.size(axis))) for axis in image.axes)
    kernel = [m.kernel for m in each]
    overrides = (("kernel_size", kernel), ("stride", kernel), ("padding", [0] * len(kernel)))
    return Spatial((maps,), op=f"aten.avg_pool{axes}d.default", overrides=overrides)


def _sliding(record: OpRecord) -> dict[int, Sliding]:
    """The map of each pooled dimension, counting the batch as 0."""
    assert record.out is not None
    image, axes = record.image, int(record.op[-len("d.default") - 1])
    dims = range(image.rank - axes, image.rank)
    kernel = record.ints("kernel_size", axes)
    stride, padding = record.ints("stride", axes, kernel), record.ints("padding", axes, 0)
    parts = zip(kernel, stride, padding, record.ints("dilation", axes), strict=True)
    return {dim: Sliding(*part, image.size(dim), record.out.size(dim)) for dim, part in zip(dims, parts, strict=True)}
