"""Axis maps of ops that change the resolution otherwise than by a sliding kernel. See `core.axis_map`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from kcompile.core.interval import BoolArray, IntArray, Interval


@dataclass(frozen=True)
class Blocks:
    """Each input cell becomes ``factor`` output cells (pixel shuffle; merging an axis with a channel dimension).

    Regions are whole blocks, and so are boxes around them: the op may run on any window as it is.
    """

    factor: int
    in_size: int

    @property
    def out_size(self) -> int:
        """Cells of the output along this axis."""
        return self.in_size * self.factor

    @property
    def overhang(self) -> tuple[int, int]:
        """Windows lie inside the input."""
        return 0, 0

    def region(self, changed: Interval) -> Interval:
        """``[lo*f, hi*f)``."""
        return Interval.of(changed.lo * self.factor, changed.hi * self.factor)

    def window(self, wanted: Interval) -> Interval:
        """``[floor(lo/f), ceil(hi/f))``."""
        return Interval.of(wanted.lo // self.factor, -(-wanted.hi // self.factor)).where(~wanted.empty)


@dataclass(frozen=True)
class Transposed:
    """A transposed convolution: input i writes outputs ``i*stride - padding + dilation*[0, kernel)``.

    The op runs on a window without padding; its first result then stands at ``start*stride - padding`` and the box is
    cut out of it (`torch.ops.kcompile.crop`).
    """

    kernel: int
    stride: int
    padding: int
    dilation: int
    in_size: int
    out_size: int

    @property
    def span(self) -> int:
        """Distance between the first and the last tap, in cells."""
        return (self.kernel - 1) * self.dilation

    @property
    def overhang(self) -> tuple[int, int]:
        """Windows read what is beyond the input as 0; equal boxes may have windows that differ by one cell."""
        whole = self.window(Interval.of(0, self.out_size))
        return max(-int(whole.lo), 0), max(int(whole.hi) + 1 - self.in_size, 0)

    def region(self, changed: Interval) -> Interval:
        """``[lo*s - p, (hi-1)*s - p + span + 1)``, clipped; the hull, as taps leave holes where ``s > kernel``."""
        low = changed.lo * self.stride - self.padding
        high = (changed.hi - 1) * self.stride - self.padding + self.span + 1
        return Interval.of(np.maximum(low, 0), np.minimum(high, self.out_size)).where(~changed.empty)

    def window(self, wanted: Interval) -> Interval:
        """``[ceil((lo + p - span)/s), floor((hi - 1 + p)/s) + 1)``, at least the cell at or before the first output."""
        at = (wanted.lo + self.padding) // self.stride
        low = np.minimum(-((self.span - self.padding - wanted.lo) // self.stride), at)
        high = np.maximum((wanted.hi - 1 + self.padding) // self.stride + 1, low + 1)
        return Interval.of(low, high).where(~wanted.empty)


@dataclass(frozen=True)
class Table:
    """Output i reads inputs within ``[first[i], stop[i])``: resizing, unequal windows, mirrored borders.

    The lists need not be ascending. Windows are hulls and lie inside the input.
    """

    first: tuple[int, ...]
    stop: tuple[int, ...]
    in_size: int

    @property
    def out_size(self) -> int:
        """Cells of the output along this axis."""
        return len(self.first)

    @property
    def overhang(self) -> tuple[int, int]:
        """Windows lie inside the input."""
        return 0, 0

    @cached_property
    def _bounds(self) -> tuple[IntArray, IntArray]:
        return np.asarray(self.first, dtype=np.int64), np.asarray(self.stop, dtype=np.int64)

    def region(self, changed: Interval) -> Interval:
        """The hull of the outputs that read a changed cell."""
        first, stop = self._bounds
        return _each(changed, lambda lo, hi: _hull_of((first < hi[:, None]) & (stop > lo[:, None])))

    def window(self, wanted: Interval) -> Interval:
        """The hull of what the wanted outputs read."""
        first, stop = self._bounds
        out = np.arange(self.out_size)

        def hull(lo: IntArray, hi: IntArray) -> tuple[IntArray, IntArray]:
            inside = (out >= lo[:, None]) & (out < hi[:, None])
            return np.where(inside, first, self.in_size).min(axis=1), np.where(inside, stop, 0).max(axis=1)

        return _each(wanted, hull)


def _each(intervals: Interval, hull: Callable[[IntArray, IntArray], tuple[IntArray, IntArray]]) -> Interval:
    """Apply a function of many intervals to each different one once; empty ones stay empty."""
    ends = np.stack([intervals.lo.reshape(-1), intervals.hi.reshape(-1)])
    unique, back = np.unique(ends, axis=1, return_inverse=True)
    lo, hi = hull(unique[0], unique[1]) if unique.size else (unique[0], unique[1])
    back = back.reshape(intervals.lo.shape)
    return Interval.of(lo[back], hi[back]).where(~intervals.empty)


def _hull_of(cells: BoolArray) -> tuple[IntArray, IntArray]:
    """First and one behind the last true cell of each row; [0, 0) for none."""
    any_ = cells.any(axis=1)
    lo, hi = cells.argmax(axis=1), cells.shape[1] - cells[:, ::-1].argmax(axis=1)
    return np.where(any_, lo, 0), np.where(any_, hi, 0)
