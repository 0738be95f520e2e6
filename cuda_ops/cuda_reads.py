"""CUDA kernels of the ops that read base or patch directly; where kernels can't be used, the reference runs."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, prod
from struct import Struct
from typing import Any

import torch
from torch import Tensor

from kcompile.cuda_ops import reads
from kcompile.cuda_ops.cuda import usable
from kcompile.cuda_ops.launch import Launcher, or_reference
from kcompile.cuda_ops.packing import Frame, Source, three, widest
from kcompile.cuda_ops.reads import READS, Join, Part, Pool, Read

VALUES = {
    torch.float32: "Float32",
    torch.float64: "Float64",
    torch.float16: "Float16",
    torch.bfloat16: "BFloat16",
}
_EPILOGUE, _POOL, _MEAN, _JOIN = Struct("@Q 2d 2i"), Struct("@2d 16i"), Struct("@Q 4i"), Struct("@2Q 2d")
_NO_SOURCE = Source(None)


class Kernel:
    """One launch: what its windows are read from, and where the result goes."""

    def __init__(self, run: Launcher, frame: Frame, axes: int, parts: Sequence[Part]) -> None:
        """Choose the widest access."""
        out = frame.out
        self.run, self.frame, self.axes = run, frame, axes
        self.sources = [_source(part).on(out.device) for part in parts]
        self.biases = [None if part.bias is None else values_like(part.bias, out) for part in parts]
        self.limits = [(part.low, part.high) for part in parts]
        bits = frame.bits()
        for source in self.sources:
            bits |= source.bits()
        self.unit = widest(bits)
        self.per = self.unit // out.element_size()

    def reading(self, index: int) -> bytes:
        """The struct of one source; of none where there are fewer."""
        if index >= len(self.sources):
            return _NO_SOURCE.pack(self.per) + _EPILOGUE.pack(0, 0.0, 0.0, 0, 0)
        return self.sources[index].pack(self.per) + epilogue(self.biases[index], *self.limits[index])

    def launch(self, name: str, items: int, tail: bytes = b"", sources: int = 1) -> None:
        """Queue the kernel, whose struct is its sources, the frame, and ``tail``."""
        dtype = VALUES[self.frame.out.dtype]
        defines = (("VALUE_TYPE", dtype), ("UNIT_BYTES", self.unit), ("SPATIAL_AXES", self.axes))
        argument = b"".join(self.reading(index) for index in range(sources)) + self.frame.pack(self.per) + tail
        self.run.launch(name, defines, self.frame.grid(self.per, items), argument)


@or_reference(reads.read_activated)
def read_activated(*given: Any) -> Tensor:
    """See `reads.read_activated`."""
    read = Read(*given)
    part, extent = read.part, read.extent
    if (run := runner([part], extent)) is None:
        return reads.read_activated(*given)
    out = read.base.new_empty((part.rows, *extent, part.channels))
    if out.numel():
        Kernel(run, Frame(out), len(extent), [part]).launch("activated", 4)
    return out.movedim(-1, 1)


@or_reference(reads.read_pooled)
def read_pooled(*given: Any) -> Tensor:
    """See `reads.read_pooled`."""
    read, pool = Read(*given[:READS]), Pool(*given[READS:])
    part, extent = read.part, read.extent
    if (run := runner([part], extent)) is None:
        return reads.read_pooled(*given)
    out = read.base.new_empty((part.rows, *pool.sizes(extent), part.channels))
    if out.numel():
        numbers = (number for values in (*pool[:-1], extent) for number in three(values))
        tail = _POOL.pack(pool.divisor, 0.0 if pool.divisor else -inf, *numbers, 0)
        Kernel(run, Frame(out), len(extent), [part]).launch("pooled", 1, tail)
    return out.movedim(-1, 1)


@or_reference(reads.read_mean)
def read_mean(*given: Any) -> Tensor:
    """See `reads.read_mean`."""
    *reading, sums = given
    read = Read(*reading)
    part, extent = read.part, read.extent
    if (run := runner([part], extent)) is None:
        return reads.read_mean(*given)
    out = read.base.new_empty((part.rows, part.channels))
    if out.numel():
        totals = None if sums is None else sums.to(device=out.device, dtype=reads.wide(out.dtype)).contiguous()
        frame = Frame(out.view(part.rows, *[1] * len(extent), part.channels))
        tail = _MEAN.pack(address(totals), *three(extent), prod(extent))
        Kernel(run, frame, len(extent), [part]).launch("mean", 1, tail)
    return out


@or_reference(reads.read_joined)
def read_joined(*given: Any) -> Tensor:
    """See `reads.read_joined`: a sum is one launch, a concatenation one for each window."""
    join = Join.of(*given)
    parts, extent = join.parts, join.extent
    run = runner(parts, extent) if join.cat or len(parts) <= 2 else None
    if run is None:
        return reads.read_joined(*given)
    out = join.like.new_empty((parts[0].rows, *extent, join.channels))
    if out.numel():
        factor, summand = (None if values is None else values_like(values, out) for values in (join.scale, join.shift))
        first = 0
        for some in [[part] for part in parts] if join.cat else [parts]:
            last = first + some[0].channels
            tail = _JOIN.pack(address(factor, first), address(summand, first), join.low, join.high)
            Kernel(run, Frame(out[..., first:last]), len(extent), some).launch("joined", 2, tail, sources=2)
            first = last
    return out.movedim(-1, 1)


@or_reference(reads.ended)
def ended(result: Tensor, bias: Tensor | None, other: Tensor | None, low: float, high: float) -> Tensor:
    """See `reads.ended`."""
    parts = [Part(None, result, bias, -inf, inf, None, None)]
    if other is not None:
        parts.append(Part(None, other, None, -inf, inf, None, None))
    extent = list(result.shape[2:])
    run = runner(parts, extent) if all(part.like.shape == result.shape for part in parts) else None
    if run is None:
        return reads.ended(result, bias, other, low, high)
    out = result.new_empty((result.shape[0], *extent, result.shape[1]))
    if out.numel():
        Kernel(run, Frame(out), len(extent), parts).launch("joined", 2, _JOIN.pack(0, 0, low, high), sources=2)
    return out.movedim(-1, 1)


def runner(parts: Sequence[Part], extent: Sequence[int]) -> Launcher | None:
    """What launches kernels for these windows; None where the reference must run."""
    like, channels = parts[0].like, max(part.channels for part in parts)
    if like.dtype not in VALUES or any(part.like.dtype != like.dtype for part in parts):
        return None
    return usable(like.device, like.dtype, extent, channels)


def _source(part: Part) -> Source:
    return Source(part.base, part.patch, part.origins, part.offsets)


def values_like(values: Tensor, like: Tensor) -> Tensor:
    """Numbers per channel as the kernels read them."""
    return values.to(device=like.device, dtype=like.dtype).reshape(-1).contiguous()


def epilogue(bias: Tensor | None, low: float, high: float) -> bytes:
    """The struct of what ends a patch; the bias must live until the launch."""
    return _EPILOGUE.pack(address(bias), low, high, bias is not None or (low, high) != (-inf, inf), 0)


def address(values: Tensor | None, first: int = 0) -> int:
    """Where values lie, from one on; 0 for none."""
    return 0 if values is None else values.data_ptr() + first * values.element_size()
