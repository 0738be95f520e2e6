"""How one op moves an interval along one axis: a closed set of maps, evaluated for all positions at once.

Each map answers two questions. ``region``: if the input may differ from the base inside this interval, where may the
output differ? ``window``: to compute the output inside this interval, which input cells must be read? A window may
stick out of the input by up to the ``overhang``: the cells outside are the op's own padding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from kcompile.core.interval import Interval
from kcompile.core.resize_maps import Blocks, Table, Transposed

__all__ = ["AxisMap", "Blocks", "Everything", "Identity", "Sliding", "Table", "Transposed", "centre"]


@dataclass(frozen=True)
class Identity:
    """Output cell i reads input cell i (pointwise ops, concat along channels)."""

    size: int

    @property
    def in_size(self) -> int:
        """Cells of the input along this axis."""
        return self.size

    @property
    def out_size(self) -> int:
        """Cells of the output along this axis."""
        return self.size

    @property
    def overhang(self) -> tuple[int, int]:
        """Windows lie inside the input."""
        return 0, 0

    def region(self, changed: Interval) -> Interval:
        """The changed interval itself."""
        return changed

    def window(self, wanted: Interval) -> Interval:
        """The wanted interval itself."""
        return wanted


@dataclass(frozen=True)
class Sliding:
    """A kernel slides over the axis: output i reads inputs ``i*stride - padding + dilation*[0, kernel)``.

    ``padding`` is that of the low side; what lies beyond the high side follows from ``out_size``. ``region`` is
    Krypton's eq. 15-16 made exact per position: the hull of the outputs whose taps' span meets the change, clipped to
    the tensor. It is larger than the true change only under dilation, where the change is narrower than ``dilation``:
    taps can then miss it, at the tensor's border or because stride and dilation share a factor. ``window`` is eq.
    17-18.
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
        """Cells (low, high) by which windows can stick out of the input."""
        last = (self.out_size - 1) * self.stride - self.padding + self.span
        return max(self.padding, 0), max(last + 1 - self.in_size, 0)

    def region(self, changed: Interval) -> Interval:
        """``[max(0, ceil((lo + p - span)/s)), min(W, floor((hi - 1 + p)/s) + 1))``; empty stays empty."""
        low = -((self.span - self.padding - changed.lo) // self.stride)
        high = (changed.hi - 1 + self.padding) // self.stride + 1
        return Interval.of(np.maximum(low, 0), np.minimum(high, self.out_size)).where(~changed.empty)

    def window(self, wanted: Interval) -> Interval:
        """``[lo*s - p, (hi-1)*s - p + span + 1)``; may stick out of the input."""
        low = wanted.lo * self.stride - self.padding
        high = (wanted.hi - 1) * self.stride - self.padding + self.span + 1
        return Interval.of(low, high).where(~wanted.empty)


@dataclass(frozen=True)
class Everything:
    """Every output cell reads every input cell (global ops, broadcasting one cell over an axis)."""

    in_size: int
    out_size: int

    @property
    def overhang(self) -> tuple[int, int]:
        """Windows lie inside the input."""
        return 0, 0

    def region(self, changed: Interval) -> Interval:
        """The whole output, unless nothing changed."""
        return Interval.of(np.zeros_like(changed.lo), np.full_like(changed.lo, self.out_size)).where(~changed.empty)

    def window(self, wanted: Interval) -> Interval:
        """The whole input, unless nothing is wanted."""
        return Interval.of(np.zeros_like(wanted.lo), np.full_like(wanted.lo, self.in_size)).where(~wanted.empty)


def centre(m: Identity | Sliding | Everything | Blocks | Transposed | Table) -> tuple[float, float]:
    """``(a, b)``: what is centred on input cell c is centred on output cell ``a * c + b``, borders aside.

    A kernel is centred on the middle of its taps. What resizes keeps the places of the axis's ends.
    """
    if isinstance(m, Identity):
        return 1.0, 0.0
    if isinstance(m, Sliding):
        return 1 / m.stride, (m.padding - m.span / 2) / m.stride
    if isinstance(m, Transposed):
        return float(m.stride), m.span / 2 - m.padding
    scale = m.out_size / max(m.in_size, 1)
    return scale, (scale - 1) / 2


AxisMap: TypeAlias = Identity | Sliding | Everything | Blocks | Transposed | Table
