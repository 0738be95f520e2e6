"""Ops that add or cut cells at the borders of the map, or cut channels."""

from __future__ import annotations

from kcompile.core.axis_map import AxisMap, Identity, Sliding
from kcompile.passes.record import OpRecord
from kcompile.passes.rules.registry import Refusal, Spatial, rule
from kcompile.passes.rules.resize import resampled

_END = 2**63 - 1


@rule("aten.pad.default", "aten.constant_pad_nd.default")
def pad(record: OpRecord) -> Spatial | Refusal:
    """Constant padding: output i reads input ``i - low``; the new cells hold the constant, whatever the patch.

    That is a kernel of one tap whose padding is ``low``: a window is the result already. Negative padding crops. Other
    modes repeat cells of the map (`rules.resize`).
    """
    assert record.out is not None
    if record.param("mode", "constant") != "constant":
        return resampled(record)
    image, given = record.image, list(record.params["pad"])
    lows = [0] * (image.rank - len(given) // 2) + given[0::2][::-1]  # PyTorch names the last dimension first
    if record.out.rank != image.rank or len(given) >= 2 * image.rank:
        return Refusal("it pads the batch")
    maps = tuple(Sliding(1, 1, lows[axis], 1, image.size(axis), record.out.size(axis)) for axis in image.axes)
    inside = [0 if image.rank - 1 - i // 2 in image.axes else value for i, value in enumerate(given)]
    return Spatial((maps,), fill=float(record.param("value", 0.0)), overrides=(("pad", inside),))


@rule("aten.slice.Tensor")
def cut(record: OpRecord) -> Spatial | Refusal:
    """A slice of channels leaves regions as they are; in one of space output i reads input ``start + i * step``."""
    assert record.out is not None
    image = record.image
    dim = record.param("dim", 0) % image.rank
    if dim == 0:
        return Refusal("it cuts the batch")
    maps: list[AxisMap] = [Identity(size) for size in image.sizes]
    if dim not in image.axes:
        return Spatial((tuple(maps),))
    start, size = record.param("start", 0), image.size(dim)
    start = min(start + size if start < 0 else start, size)
    step = record.param("step", 1)
    maps[image.axes.index(dim)] = Sliding(1, step, -max(start, 0), 1, size, record.out.size(dim))
    return Spatial((tuple(maps),), overrides=(("start", 0), ("end", _END)))
