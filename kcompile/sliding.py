"""Sliding windows: where they lie, and how their scores spread over the pixels that they cover."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, prod

import numpy as np
import torch
from torch import Tensor

from kcompile.core.interval import IntArray


@dataclass(frozen=True)
class Slide:
    """A window at a grid of places.

    Attributes:
        sizes: Of what it slides over, per axis.
        window: Its extent per axis.
        starts: Its first cells, per axis; a window may stick out at the end.
    """

    sizes: tuple[int, ...]
    window: tuple[int, ...]
    starts: tuple[IntArray, ...]

    @staticmethod
    def cropped(sizes: tuple[int, ...], window: tuple[int, ...], strides: tuple[int, ...]) -> Slide:
        """Every ``stride`` cells until all are covered; the last window may stick out (Captum)."""
        counts = [ceil((size - w) / s) + 1 for size, w, s in zip(sizes, window, strides, strict=True)]
        starts = [np.arange(count, dtype=np.int64) * s for count, s in zip(counts, strides, strict=True)]
        return Slide(sizes, window, tuple(starts))

    @staticmethod
    def shifted(sizes: tuple[int, ...], window: tuple[int, ...], strides: tuple[int, ...]) -> Slide:
        """The same, but the last window is shifted inside (MONAI)."""
        slide = Slide.cropped(sizes, window, strides)
        last = [size - w for size, w in zip(sizes, window, strict=True)]
        return Slide(sizes, window, tuple(np.minimum(s, end) for s, end in zip(slide.starts, last, strict=True)))

    @property
    def grid(self) -> tuple[int, ...]:
        """Number of windows per axis."""
        return tuple(len(starts) for starts in self.starts)

    @property
    def count(self) -> int:
        """Number of windows."""
        return prod(self.grid)

    def corners(self) -> IntArray:
        """First cells of all windows [count, axes], the last axis fastest."""
        return np.stack(np.meshgrid(*self.starts, indexing="ij"), axis=-1).reshape(-1, len(self.sizes))

    def spread(self, values: Tensor, weights: Tensor) -> Tensor:
        """Sums [K, *sizes] of every window's value times ``weights`` over the cells that it covers.

        Lines of windows along the last axis are one matrix product each.

        Args:
            values: [K, *grid].
            weights: [*window].
        """
        reach = [int(starts[-1]) + w for starts, w in zip(self.starts, self.window, strict=True)]
        room = [max(size, end) for size, end in zip(self.sizes, reach, strict=True)]
        line = weights.new_zeros((self.grid[-1], *self.window[:-1], room[-1]))
        for row, start in zip(line, self.starts[-1].tolist(), strict=True):
            row[..., start : start + self.window[-1]] = weights
        sums = values.new_zeros((len(values), *room))
        for index in np.ndindex(*self.grid[:-1]):
            lows = [int(starts[i]) for starts, i in zip(self.starts, index, strict=False)]
            places = [slice(low, low + w) for low, w in zip(lows, self.window, strict=False)]
            part = values[(slice(None), *index)] @ line.flatten(1)
            sums[(slice(None), *places)] += part.view(-1, *self.window[:-1], room[-1])
        return sums[(slice(None), *[slice(0, size) for size in self.sizes])]

    def coverage(self, weights: Tensor) -> Tensor:
        """Sums [1, *sizes] of the weights alone."""
        return self.spread(torch.ones((1, *self.grid), dtype=weights.dtype, device=weights.device), weights)
