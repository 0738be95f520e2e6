"""Convolution and transposed convolution."""

from __future__ import annotations

from kcompile.core.axis_map import Sliding, Transposed
from kcompile.passes.record import OpRecord
from kcompile.passes.rules.registry import Refusal, Spatial, rule


def _not_local(record: OpRecord) -> Refusal | None:
    """Why a convolution is not one over exactly the image's axes by fixed weights, or None."""
    image = record.inputs[0]
    if any(spec.reached or spec.batched for spec in record.inputs[1:]):
        return Refusal("its weights depend on the image")
    if len(image.shape) != len(record.inputs[1].shape) - 1:
        return Refusal("its input has no batch dimension")
    if set(image.axes) != set(range(2, image.rank)):
        return Refusal("it slides over another dimension than space")
    return None


@rule("aten.conv1d.default", "aten.conv2d.default", "aten.conv3d.default", "aten.conv1d.padding",
      "aten.conv2d.padding", "aten.conv3d.padding")  # fmt: skip
def conv(record: OpRecord) -> Spatial | Refusal:
    """A kernel slides over each axis with stride, padding and dilation; padding reads 0.

    Regions and windows per axis: `core.axis_map.Sliding` (Krypton section 3.2, eq. 15-18, exact per position). A string
    padding "same" adds ``span`` cells, the smaller half on the low side. Groups split channels only.
    """
    image, weight = record.inputs[0], record.inputs[1]
    if refusal := _not_local(record):
        return refusal
    assert record.out is not None
    axes = len(weight.shape) - 2
    kernel, dilation = weight.shape[2:], record.ints("dilation", axes)
    padding = record.params["padding"]
    if padding == "same":
        low = tuple((k - 1) * d // 2 for k, d in zip(kernel, dilation, strict=True))
    else:
        low = (0,) * axes if padding == "valid" else record.ints("padding", axes, 0)
    parts = zip(kernel, record.ints("stride", axes), low, dilation, image.shape[1:], record.out.shape[1:], strict=True)
    each = [Sliding(*part) for part in parts]
    maps = tuple(each[axis - 2] for axis in image.axes)
    others = (None,) * (len(record.inputs) - 1)
    op = record.op.replace(".padding", ".default")
    symmetric = not isinstance(padding, str) and any(low) and image.axes == tuple(range(2, image.rank))
    native = low if symmetric else ()
    return Spatial((maps, *others), op=op, overrides=(("padding", [0] * axes),), native=native)


@rule("aten.conv_transpose1d.default", "aten.conv_transpose2d.input", "aten.conv_transpose3d.input")
def conv_transpose(record: OpRecord) -> Spatial | Refusal:
    """Each input cell writes a kernel's width of outputs: `core.axis_map.Transposed`.

    On a window it runs without padding, and with ``stride - 1`` cells more at the end (where no tap of the window
    writes, the result is the bias); the box is then cut out.
    """
    image, weight = record.inputs[0], record.inputs[1]
    if refusal := _not_local(record):
        return refusal
    assert record.out is not None
    axes = len(weight.shape) - 2
    stride, padding = record.ints("stride", axes), record.ints("padding", axes, 0)
    parts = (weight.shape[2:], stride, padding, record.ints("dilation", axes), image.shape[1:], record.out.shape[1:])
    each = [Transposed(*part) for part in zip(*parts, strict=True)]
    maps = tuple(each[axis - 2] for axis in image.axes)
    crop = tuple((m.stride, m.padding) for m in maps)
    overrides = (("padding", [0] * axes), ("output_padding", [s - 1 for s in stride]))
    others = (None,) * (len(record.inputs) - 1)
    return Spatial((maps, *others), overrides=overrides, crop=crop)
