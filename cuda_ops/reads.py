"""Ops that read base or patch directly, without a tensor of windows: schemas, shape functions, pure-torch reference.

They take what `gather_superimpose` takes, and compute what follows it in the same launch. Everywhere, ``bias`` [C],
``low`` and ``high`` end the convolution that made the patch: the patch's values are min(max(patch + bias, low), high),
and NaN stays NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from kcompile.cuda_ops import reference
from kcompile.cuda_ops.schema import LIBRARY, channels_last_empty

READ = "Tensor base, Tensor patch, Tensor? bias, float low, float high, Tensor origins, Tensor offsets, SymInt[] extent"
LIBRARY.define(f"read_activated({READ}) -> Tensor")
LIBRARY.define(f"read_pooled({READ}, int[] kernel, int[] stride, int[] padding, int[] dilation, int divisor) -> Tensor")
LIBRARY.define(f"read_mean({READ}, Tensor? sums) -> Tensor")
LIBRARY.define(
    "read_joined(Tensor?[] bases, Tensor?[] patches, Tensor?[] biases, float[] lows, float[] highs, Tensor?[] origins, "
    "Tensor?[] offsets, SymInt[] extent, bool cat, Tensor? scale, Tensor? shift, float low, float high) -> Tensor"
)
LIBRARY.define("ended(Tensor result, Tensor? bias, Tensor? other, float low, float high) -> Tensor")


@dataclass(frozen=True)
class Part:
    """One window of a join; a patch without a base is the whole window, a base without a patch is only gathered."""

    base: Tensor | None
    patch: Tensor | None
    bias: Tensor | None
    low: float
    high: float
    origins: Tensor | None
    offsets: Tensor | None

    @property
    def like(self) -> Tensor:
        """A tensor of the window's type and device."""
        found = self.base if self.base is not None else self.patch
        assert found is not None, "a window without base and patch"
        return found

    @property
    def rows(self) -> int:
        """Number of queries."""
        found = self.origins if self.origins is not None else self.patch
        assert found is not None
        return found.shape[0]

    @property
    def channels(self) -> int:
        """Number of channels."""
        return self.base.shape[-1] if self.base is not None else self.like.shape[1]

    def window(self, extent: list[int]) -> Tensor:
        """The window, written out."""
        patch = None if self.patch is None else activated(self.patch, self.bias, self.low, self.high)
        if self.base is None:
            assert patch is not None
            return patch
        assert self.origins is not None
        if patch is None:
            return reference.gather(self.base, self.origins, extent)
        assert self.offsets is not None
        return reference.gather_superimpose(self.base, patch, self.origins, self.offsets, extent)


@dataclass(frozen=True)
class Join:
    """Windows that become one tensor.

    Attributes:
        parts: The windows.
        extent: Cells of the windows per axis.
        cat: Join along the channels; otherwise add.
        scale: [C], with ``shift`` [C], or None.
        shift: [C].
        low: Least value of the result.
        high: Largest value of the result.
    """

    parts: list[Part]
    extent: list[int]
    cat: bool
    scale: Tensor | None
    shift: Tensor | None
    low: float
    high: float

    @classmethod
    def of(cls, *given: Any) -> Join:
        """From the op's arguments: `Part`'s attributes, a list of each with an entry for each window, then its own."""
        columns, own = given[: -len(JOIN_OWN)], given[-len(JOIN_OWN) :]
        return cls([Part(*row) for row in zip(*columns, strict=True)], *own)

    @property
    def like(self) -> Tensor:
        """A tensor of the result's type and device."""
        return self.parts[0].like

    @property
    def channels(self) -> int:
        """Number of channels of the result."""
        return sum(part.channels for part in self.parts) if self.cat else self.parts[0].channels


class Read(NamedTuple):
    """What an op of one window reads: its first arguments, in the schemas' order.

    Attributes:
        base: [B, *sizes, C].
        patch: [N, C, *patch extent].
        bias: [C], of the convolution that made the patch, or None.
        low: Least value of the patch.
        high: Largest value of the patch.
        origins: [N, 1 + axes]: which base, and where in it the window begins.
        offsets: [N, axes], of the patch in the window.
        extent: Cells of the window per axis.
    """

    base: Tensor
    patch: Tensor
    bias: Tensor | None
    low: float
    high: float
    origins: Tensor
    offsets: Tensor
    extent: list[int]

    @property
    def part(self) -> Part:
        """The window, as one of a join."""
        return Part(*self[:-1])

    def window(self) -> Tensor:
        """The window, written out."""
        return self.part.window(self.extent)


class Pool(NamedTuple):
    """A pool: lists have one entry for each axis; it gives maxima (divisor 0), or sums divided by ``divisor``."""

    kernel: list[int]
    stride: list[int]
    padding: list[int]
    dilation: list[int]
    divisor: int

    def sizes(self, extent: Sequence[int]) -> list[int]:
        """Cells of the result per axis."""
        given = zip(extent, self.kernel, self.stride, self.padding, self.dilation, strict=True)
        return [(e + 2 * p - (k - 1) * d - 1) // s + 1 for e, k, s, p, d in given]


READS = len(Read._fields)
JOIN_OWN = ("extent", "cat", "scale", "shift", "low", "high")


def activated(patch: Tensor, bias: Tensor | None, low: float, high: float) -> Tensor:
    """The patch after its convolution's bias and activation."""
    if bias is not None:
        patch = patch + _per_channel(bias, patch)
    return patch.clamp(low, high)


def read_activated(*given: Any) -> Tensor:
    """`reference.gather_superimpose` of the patch after bias and activation; arguments as of `Read`."""
    return Read(*given).window()


def read_pooled(*given: Any) -> Tensor:
    """A pool of the window, whose padding counts as -inf or as 0; arguments as of `Read` and `Pool`."""
    window, pool = Read(*given[:READS]).window(), Pool(*given[READS:])
    axes = window.dim() - 2
    if axes == 1:  # the pools of two axes do for one
        window = window.unsqueeze(2)
        pool = Pool([1, *pool.kernel], [1, *pool.stride], [0, *pool.padding], [1, *pool.dilation], pool.divisor)
    if pool.divisor:
        average = F.avg_pool3d if axes == 3 else F.avg_pool2d
        summed = window.to(wide(window.dtype))  # pools of three axes know no half precision on the CPU
        result = average(summed, pool.kernel, pool.stride, pool.padding, divisor_override=pool.divisor)
        result = result.to(window.dtype)
    else:
        result = (F.max_pool3d if axes == 3 else F.max_pool2d)(window, *pool[:-1])
    return _channels_last(result.squeeze(2) if axes == 1 else result)


def read_mean(*given: Any) -> Tensor:
    """Means [N, C] over all cells of the window; arguments as of `Read`, and ``sums``.

    ``sums`` [B, C] are the bases' own sums over these cells, in float32 (float64 for float64), or None: with them, a
    kernel reads only the cells that patches cover.
    """
    window = Read(*given[:READS]).window()
    return window.to(wide(window.dtype)).mean(dim=list(range(2, window.dim()))).to(window.dtype)


def read_joined(*given: Any) -> Tensor:
    """Windows of one extent as one tensor: min(max(joined * scale + shift, low), high); arguments as of `Join.of`."""
    join = Join.of(*given)
    windows = [part.window(join.extent) for part in join.parts]
    result = torch.cat(windows, 1) if join.cat else sum(windows[1:], windows[0])
    if join.scale is not None and join.shift is not None:
        result = _per_channel(join.shift, result) + result * _per_channel(join.scale, result)
    limits = (join.low, join.high)
    return _channels_last(result.clamp(*limits) if limits != (-inf, inf) else result)


def ended(result: Tensor, bias: Tensor | None, other: Tensor | None, low: float, high: float) -> Tensor:
    """What ends a convolution, where its result is not read as a patch: min(max(result + bias + other, low), high).

    Args:
        result: [N, C, *sizes].
        bias: [C], or None.
        other: As ``result``, or None.
        low: Least value.
        high: Largest value.
    """
    summed = activated(result, bias, -inf, inf)
    return _channels_last((summed if other is None else summed + other).clamp(low, high))


def wide(dtype: torch.dtype) -> torch.dtype:
    """The type that sums are computed in."""
    return torch.float64 if dtype is torch.float64 else torch.float32


def _per_channel(values: Tensor, like: Tensor) -> Tensor:
    return values.reshape(-1, *[1] * (like.dim() - 2))


def _channels_last(value: Tensor) -> Tensor:
    return value.movedim(1, -1).clone(memory_format=torch.contiguous_format).movedim(-1, 1)


def _fake_activated(*given: Any) -> Tensor:
    read = Read(*given)
    return channels_last_empty(read.base, read.origins.shape[0], read.base.shape[-1], read.extent)


def _fake_pooled(*given: Any) -> Tensor:
    read, pool = Read(*given[:READS]), Pool(*given[READS:])
    return channels_last_empty(read.base, read.origins.shape[0], read.base.shape[-1], pool.sizes(read.extent))


def _fake_mean(*given: Any) -> Tensor:
    read = Read(*given[:READS])
    return read.base.new_empty((read.origins.shape[0], read.base.shape[-1]))


def _fake_joined(*given: Any) -> Tensor:
    join = Join.of(*given)
    return channels_last_empty(join.like, join.parts[0].rows, join.channels, join.extent)


def _fake_ended(result: Tensor, bias: Tensor | None, other: Tensor | None, low: float, high: float) -> Tensor:
    return channels_last_empty(result, result.shape[0], result.shape[1], list(result.shape[2:]))


REFERENCE: dict[str, Callable[..., Tensor]] = {
    "read_activated": read_activated,
    "read_pooled": read_pooled,
    "read_mean": read_mean,
    "read_joined": read_joined,
    "ended": ended,
}
_FAKE: dict[str, Callable[..., Tensor]] = {
    "read_activated": _fake_activated,
    "read_pooled": _fake_pooled,
    "read_mean": _fake_mean,
    "read_joined": _fake_joined,
    "ended": _fake_ended,
}
for _name, _fake in _FAKE.items():
    torch.library.register_fake(f"kcompile::{_name}", _fake, lib=LIBRARY)
