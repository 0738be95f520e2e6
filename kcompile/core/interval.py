"""Half-open integer intervals, one per query."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

IntArray: TypeAlias = npt.NDArray[np.int64]
BoolArray: TypeAlias = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Interval:
    """A batch of half-open intervals ``[lo, hi)`` along one axis, in cells.

    ``lo`` and ``hi`` are int64 arrays of one shape (0-d for a single interval). Every empty interval is stored as
    ``[0, 0)``, so that equality of sets is equality of arrays. ``|`` is the hull, ``&`` the intersection.
    """

    lo: IntArray
    hi: IntArray

    @classmethod
    def of(cls, lo: npt.ArrayLike, hi: npt.ArrayLike) -> Interval:
        """Build intervals from anything array-like; the two are broadcast against each other."""
        low, high = np.asarray(lo, dtype=np.int64), np.asarray(hi, dtype=np.int64)
        if low.shape != high.shape:
            low, high = np.broadcast_arrays(low, high)
        full = low < high
        if full.all():
            return cls(low, high)
        return cls(np.where(full, low, 0), np.where(full, high, 0))

    @property
    def empty(self) -> BoolArray:
        """True where the interval holds no cell."""
        return np.asarray(self.lo >= self.hi)

    @property
    def size(self) -> IntArray:
        """Number of cells."""
        return np.asarray(self.hi - self.lo)

    def where(self, keep: npt.ArrayLike) -> Interval:
        """These intervals where ``keep`` is true, empty ones elsewhere."""
        if np.all(keep):
            return self
        return Interval.of(np.where(keep, self.lo, 0), np.where(keep, self.hi, 0))

    def shift(self, cells: npt.ArrayLike) -> Interval:
        """Move by ``cells``; empty intervals stay empty."""
        offset = np.asarray(cells, dtype=np.int64)
        return Interval.of(self.lo + offset, self.hi + offset)

    def contains(self, other: Interval) -> BoolArray:
        """True where every cell of ``other`` lies in this interval."""
        return np.asarray(other.empty | ((self.lo <= other.lo) & (other.hi <= self.hi)))

    def __or__(self, other: Interval) -> Interval:
        """Hull: the smallest interval that holds both. The empty interval is neutral."""
        lo = np.where(self.empty, other.lo, np.where(other.empty, self.lo, np.minimum(self.lo, other.lo)))
        hi = np.where(self.empty, other.hi, np.where(other.empty, self.hi, np.maximum(self.hi, other.hi)))
        return Interval.of(lo, hi)

    def __and__(self, other: Interval) -> Interval:
        """Intersection."""
        return Interval.of(np.maximum(self.lo, other.lo), np.minimum(self.hi, other.hi))

    def __eq__(self, other: Any) -> bool:
        """Equality of the whole batch, as sets of cells."""
        if not isinstance(other, Interval):
            return NotImplemented
        return np.array_equal(self.lo, other.lo) and np.array_equal(self.hi, other.hi)

    def key(self) -> tuple[bytes, bytes]:
        """A hashable value that is equal exactly for equal batches of one shape."""
        return self.lo.tobytes(), self.hi.tobytes()

    def __repr__(self) -> str:
        """Show the bounds."""
        if self.lo.ndim == 0:
            return f"[{int(self.lo)}, {int(self.hi)})"
        return f"Interval({self.lo.tolist()}, {self.hi.tolist()})"
