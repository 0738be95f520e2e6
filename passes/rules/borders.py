"""Ops that add or cut cells at the borders of the map, or cut channels."""

from __future__ import annotations

from kcompile.core.axis_map import AxisMap, Identity, Sliding
from kcompile.passes.record import OpRecord
from kcompile.passes.rules.registry import Refusal, Spatial, rule

_END = 2**63 - 1


@rule("aten.pad.default", "aten.constant_pad_nd.default")
def pad(record: OpRecord) -> Spatial | Refusal:
    """Constant padding: output i reads input ``i - low``; the new cells hold the constant, whatever the patch.

    That is a kernel of one tap whose padding is ``low``: a window is the result already. Negative padding crops.
    """
    assert record.out is not None
    mode = record.param("mode", "constant")
    if mode != "constant":
        return Refusal(f"padding of mode {mode!r} has no rule")
    sizes, given = record.inputs[0].sizes, list(record.params["pad"])
    if len(given) > 2 * len(sizes):
        return Refusal("it pads another dimension than space")
    lows = [0] * (len(sizes) - len(given) // 2) + given[0::2][::-1]  # PyTorch names the last axis first
    maps = tuple(Sliding(1, 1, low, 1, size, out) for low, size, out in zip(lows, sizes, record.out.sizes, strict=True))
    return Spatial((maps,), fill=float(record.param("value", 0.0)), overrides=(("pad", [0] * len(given)),))


@rule("aten.slice.Tensor")
def cut(record: OpRecord) -> Spatial | Refusal:
    """A slice of channels leaves regions as they are; in one of space output i reads input ``start + i * step``."""
    assert record.out is not None
    sizes = record.inputs[0].sizes
    dim = record.param("dim", 0) % (len(record.out.shape) + 1)
    if dim == 0 or not sizes:
        return Refusal("it cuts the batch, or a tensor without spatial axes")
    maps: list[AxisMap] = [Identity(size) for size in record.out.sizes]
    if dim == 1:
        return Spatial((tuple(maps),))
    start, size = record.param("start", 0), sizes[dim - 2]
    start = min(start + size if start < 0 else start, size)
    maps[dim - 2] = Sliding(1, record.param("step", 1), -max(start, 0), 1, size, record.out.sizes[dim - 2])
    return Spatial((tuple(maps),), overrides=(("start", 0), ("end", _END)))
