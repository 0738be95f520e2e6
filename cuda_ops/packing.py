"""Arguments of the CUDA kernels: tensors as the structs of windows.cuh.

Only addresses differ from call to call; what follows from shapes and strides is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from struct import Struct
from typing import TypeAlias

import torch
from torch import Tensor

THREADS = 256  # per block
ITEMS = 4  # accesses per thread, unless the kernel has another number
WIDEST = 16  # bytes of one access
LIMIT = 2**31  # bytes per query
MOST_BLOCKS = 65535  # along y
AXES = 3

Sizes: TypeAlias = tuple[int, ...]
_POINTERS, _STEPS = Struct("@6Q"), Struct("@5q 5q 6q 4I")
_OUT, _SHAPE = Struct("@Q"), Struct("@2q 6I 8I")


@dataclass(frozen=True, slots=True)
class Source:
    """A base with one patch per query; see ``Source`` in windows.cuh.

    Attributes:
        base: [B, *sizes, C]; [N, *sizes, C] without origins; None where the patch is the whole window.
        patch: [N, C, *patch extent], or None.
        origins: [N, 1 + axes], or None.
        offsets: [N, axes], with a patch.
        start: [N, axes] and ``at`` [N, axes]: results are cropped; with ``stride`` and ``shift`` per axis.
    """

    base: Tensor | None
    patch: Tensor | None = None
    origins: Tensor | None = None
    offsets: Tensor | None = None
    start: Tensor | None = None
    at: Tensor | None = None
    stride: Sequence[int] = ()
    shift: Sequence[int] = ()

    def on(self, device: torch.device) -> Source:
        """The same with all coordinates on a device, contiguous, and the patch of the base's type."""
        patch = self.patch
        if patch is not None and self.base is not None:
            patch = patch.to(self.base.dtype)
        return Source(
            self.base,
            patch,
            _coordinates(self.origins, device),
            _coordinates(self.offsets, device),
            _coordinates(self.start, device),
            _coordinates(self.at, device),
            self.stride,
            self.shift,
        )

    def bits(self) -> int:
        """All addresses and steps in bytes, or'ed: their lowest set bit is the widest access that they allow."""
        base, patch, found = self.base, self.patch, 0
        if base is not None:
            found |= base.data_ptr() | _bits(base.shape, base.stride(), base.dim() - 1, base.element_size())
        if patch is not None:
            found |= patch.data_ptr() | _bits(patch.shape, patch.stride(), 1, patch.element_size())
        return found

    def pack(self, per: int) -> bytes:
        """The struct, for accesses of so many values."""
        base, patch = self.base, self.patch
        pointers = (base, patch, self.origins, self.offsets, self.start, self.at)
        under = () if base is None else base.stride()
        over = ((), ()) if patch is None else (tuple(patch.shape), patch.stride())
        steps = _source_steps(under, *over, per, tuple(self.stride), tuple(self.shift))
        return _POINTERS.pack(*(0 if t is None else t.data_ptr() for t in pointers)) + steps


@dataclass(frozen=True, slots=True)
class Frame:
    """The result; see ``Frame`` in windows.cuh.

    Attributes:
        out: [N, *extent, C]; channels are consecutive.
    """

    out: Tensor

    def bits(self) -> int:
        """See `Source.bits`."""
        out = self.out
        return out.data_ptr() | _bits(out.shape, out.stride(), out.dim() - 1, out.element_size())

    def pack(self, per: int) -> bytes:
        """The struct, for accesses of so many values; cells lie at even distances."""
        out = self.out
        return _OUT.pack(out.data_ptr()) + _frame_shape(tuple(out.shape), out.stride(0), out.stride(-2), per)

    def grid(self, per: int, items: int = ITEMS) -> tuple[int, int]:
        """Blocks along x and y, of threads that make so many accesses of so many values."""
        queries, *rest = self.out.shape
        return -(-prod(rest) // (per * items * THREADS)), min(queries, MOST_BLOCKS)


def widest(bits: int) -> int:
    """Bytes of one access: the widest power of two that all addresses and steps allow."""
    bits |= WIDEST
    return bits & -bits


def divisor(by: int) -> tuple[int, int]:
    """Magic number and shift for ``quotient`` in windows.cuh."""
    shift = (by - 1).bit_length()
    return (2**32 * (2**shift - by)) // by + 1, shift


@lru_cache(4096)
def _bits(shape: Sizes, strides: Sizes, channel: int, item: int) -> int:
    """Steps between cells, and the bytes of a cell where they are consecutive."""
    found = item * shape[channel] if strides[channel] == 1 or shape[channel] == 1 else item
    for axis, (size, stride) in enumerate(zip(shape, strides, strict=True)):
        if size > 1 and axis != channel:
            found |= stride * item
    return found


@lru_cache(4096)
def _source_steps(base: Sizes, patch_shape: Sizes, patch: Sizes, per: int, stride: Sizes, shift: Sizes) -> bytes:
    """Strides in units of ``per`` values; where a unit holds several, these are consecutive channels."""
    steps, over = [(0,) * (AXES + 2)] * 2
    if base:
        row, *axes, channel = base
        steps = (row // per, *three([axis // per for axis in axes], 0), channel if per == 1 else 1)
    if patch:
        row, channel, *axes = patch
        over = (row // per, *three([axis // per for axis in axes], 0), channel if per == 1 else 1)
    return _STEPS.pack(*steps, *over, *three(stride, 0), *three(shift, 0), *three(patch_shape[2:], 0), 0)


@lru_cache(4096)
def _frame_shape(shape: Sizes, row: int, cell: int, per: int) -> bytes:
    queries, *extent, channels = shape
    units = channels // per
    divisors = [part for by in (units, *three(extent)) for part in divisor(by)]
    return _SHAPE.pack(row // per, cell // per, queries, units, units * prod(extent), *three(extent), *divisors)


def three(values: Sequence[int], filler: int = 1) -> Sizes:
    """One number per axis, with fillers for the axes that there are not."""
    return (*values, *(filler,) * (AXES - len(values)))


def _coordinates(values: Tensor | None, device: torch.device) -> Tensor | None:
    return None if values is None else values.to(device=device, dtype=torch.int64).contiguous()
