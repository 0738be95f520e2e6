"""Max, average and adaptive average pooling."""

from __future__ import annotations

from kcompile.core.axis_map import Identity, Sliding
from kcompile.passes.record import OpRecord
from kcompile.passes.rules.registry import Refusal, Spatial, rule


@rule("aten.max_pool2d.default", "aten.max_pool1d.default", "aten.max_pool3d.default")
def max_pool(record: OpRecord) -> Spatial | Refusal:
    """As a convolution's regions (Krypton section 3.2); padding reads -inf, so that it never wins.

    ``ceil_mode`` only adds outputs at the high side: the map follows from the output's size.
    """
    maps = _sliding(record)
    axes = len(maps)
    return Spatial((maps,), fill=float("-inf"), overrides=(("padding", [0] * axes), ("ceil_mode", False)))


@rule("aten.avg_pool2d.default", "aten.avg_pool1d.default", "aten.avg_pool3d.default")
def avg_pool(record: OpRecord) -> Spatial | Refusal:
    """As a convolution's regions; padding reads 0.

    The divisor must be the same for all outputs; `passes.average_pool` has rewritten those where it isn't.
    """
    maps = _sliding(record)
    overrides = (("padding", [0] * len(maps)), ("ceil_mode", False))
    if record.param("divisor_override") is None and not all(_divides_evenly(m, record) for m in maps):
        return Refusal("its divisor varies along the border")
    return Spatial((maps,), overrides=overrides)


def _divides_evenly(m: Sliding, record: OpRecord) -> bool:
    """True if every output of the axis divides by the kernel's size."""
    low = m.padding if record.param("count_include_pad", True) else 0
    last = (m.out_size - 1) * m.stride - m.padding + m.kernel
    return (m.padding == 0 or low == m.padding) and last <= m.in_size + low


@rule("aten.adaptive_avg_pool2d.default")
def adaptive_avg_pool(record: OpRecord) -> Spatial | Refusal:
    """Equal windows, if each axis divides evenly: a plain average pool of kernel and stride ``in // out``."""
    assert record.out is not None
    pairs = list(zip(record.inputs[0].sizes, record.out.sizes, strict=True))
    if all(size == out for size, out in pairs):
        return Spatial((tuple(Identity(size) for size, _ in pairs),))
    if any(size % out for size, out in pairs):
        return Refusal(f"adaptive pooling from {record.inputs[0].sizes} to {record.out.sizes} has unequal windows")
    kernel = [size // out for size, out in pairs]
    maps = tuple(Sliding(k, k, 0, 1, size, out) for k, (size, out) in zip(kernel, pairs, strict=True))
    overrides = (("kernel_size", kernel), ("stride", kernel), ("padding", [0] * len(kernel)))
    return Spatial((maps,), op="aten.avg_pool2d.default", overrides=overrides)


def _sliding(record: OpRecord) -> tuple[Sliding, ...]:
    assert record.out is not None
    sizes = record.inputs[0].sizes
    axes = len(sizes)
    kernel = record.ints("kernel_size", axes)
    stride, padding = record.ints("stride", axes, kernel), record.ints("padding", axes, 0)
    dilation = record.ints("dilation", axes)
    parts = zip(kernel, stride, padding, dilation, sizes, record.out.sizes, strict=True)
    return tuple(Sliding(*part) for part in parts)
