"""Convolution."""

from __future__ import annotations

from kcompile.core.axis_map import Sliding
from kcompile.passes.record import OpRecord
from kcompile.passes.rules.registry import Refusal, Spatial, rule


@rule("aten.conv1d.default", "aten.conv2d.default", "aten.conv3d.default", "aten.conv2d.padding")
def conv(record: OpRecord) -> Spatial | Refusal:
    """A kernel slides over each axis with stride, padding and dilation; padding reads 0.

    Regions and windows per axis: `core.axis_map.Sliding` (Krypton section 3.2, eq. 15-18, exact per position). A string
    padding "same" adds ``span`` cells, the smaller half on the low side. Groups split channels only.
    """
    image, weight = record.inputs[0], record.inputs[1]
    if any(spec.reached or spec.batched for spec in record.inputs[1:]):
        return Refusal("its weights depend on the image")
    assert record.out is not None
    axes = len(weight.shape) - 2
    if len(image.shape) != axes + 1:
        return Refusal("its input has no batch dimension")
    kernel, dilation = weight.shape[2:], record.ints("dilation", axes)
    padding = record.params["padding"]
    if padding == "same":
        low = tuple((k - 1) * d // 2 for k, d in zip(kernel, dilation, strict=True))
    else:
        low = (0,) * axes if padding == "valid" else record.ints("padding", axes, 0)
    parts = zip(kernel, record.ints("stride", axes), low, dilation, image.sizes, record.out.sizes, strict=True)
    maps = tuple(Sliding(*part) for part in parts)
    others = (None,) * (len(record.inputs) - 1)
    op = record.op.replace(".padding", ".default")
    return Spatial((maps, *others), op=op, overrides=(("padding", [0] * axes),))
