"""Integer arithmetic on coordinates, written into an ONNX graph; what bounds show to change nothing is left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from kcompile.core.interval import IntArray
from kcompile.passes.to_onnx.graph import Graph

Numbers: TypeAlias = "Ints | Sequence[int] | IntArray | int"


@dataclass(frozen=True)
class Ints:
    """Numbers per axis, int64 [N, axes] or, where all queries have the same, [axes].

    ``low`` and ``high`` [axes] bound them. The operators write nodes; those that the bounds show to change nothing are
    left out, and what can only be one number is a constant.
    """

    graph: Graph
    name: str
    low: IntArray
    high: IntArray
    batched: bool

    @staticmethod
    def of(graph: Graph, values: Numbers, axes: int) -> Ints:
        """Constants, one per axis."""
        if isinstance(values, Ints):
            return values
        array = np.broadcast_to(np.asarray(values, dtype=np.int64), (axes,))
        return Ints(graph, graph.ints(*array.tolist()), array, array, False)

    @property
    def axes(self) -> int:
        """Number of axes."""
        return len(self.low)

    @property
    def fixed(self) -> bool:
        """True if they can only be one number per axis."""
        return bool((self.low == self.high).all())

    def within(self, low: IntArray, high: IntArray) -> Ints:
        """The same numbers, known to lie in closer bounds."""
        return self._made(self.name, np.maximum(self.low, low), np.minimum(self.high, high))

    def column(self, axis: int) -> Ints:
        """The numbers of one axis, [N, 1] or [1]."""
        if self.fixed:
            return Ints.of(self.graph, self.low[axis : axis + 1], 1)
        name = self.graph.op("Gather", self.name, self.graph.ints(axis), axis=-1)
        return self._made(name, self.low[axis : axis + 1], self.high[axis : axis + 1])

    def rows(self, like: str) -> Ints:
        """As [N, axes], with as many rows as ``like`` [N, ...] has."""
        if self.batched:
            return self
        count = self.graph.op("Shape", like, end=1)
        shape = self.graph.op("Concat", count, self.graph.ints(1), axis=0)
        return Ints(self.graph, self.graph.op("Expand", self.name, shape), self.low, self.high, True)

    def largest(self) -> Ints:
        """The largest of all queries, [axes]."""
        if self.fixed:
            return self
        if not self.batched:
            return self
        name = self.graph.op("ReduceMax", self.name, self.graph.ints(0), keepdims=0)
        return self._made(name, self.low, self.high, batched=False)

    def __add__(self, other: Numbers) -> Ints:
        more = self._other(other)
        if more.fixed and not more.low.any():
            return self
        return self._pair("Add", more, self.low + more.low, self.high + more.high)

    def __sub__(self, other: Numbers) -> Ints:
        less = self._other(other)
        if less.fixed:
            return self + (-less.low)
        return self._pair("Sub", less, self.low - less.high, self.high - less.low)

    def __mul__(self, factors: Sequence[int] | IntArray) -> Ints:
        """Times numbers of at least 0."""
        by = np.asarray(factors, dtype=np.int64)
        if (by == 1).all():
            return self
        return self._pair("Mul", self._other(by), self.low * by, self.high * by)

    def __floordiv__(self, divisors: Sequence[int] | IntArray) -> Ints:
        """Rounded down; ONNX's Div rounds towards 0, so that negative numbers are moved up first."""
        by = np.asarray(divisors, dtype=np.int64)
        if (by == 1).all():
            return self
        up = -(np.minimum(self.low, 0) // by)
        moved = self + up * by
        quotient = moved._pair("Div", self._other(by), moved.low // by, moved.high // by)
        return quotient - up

    def at_least(self, other: Numbers) -> Ints:
        """The larger ones of each pair."""
        least = self._other(other)
        if (self.low >= least.high).all():
            return self
        return self._pair("Max", least, np.maximum(self.low, least.low), np.maximum(self.high, least.high))

    def at_most(self, other: Numbers) -> Ints:
        """The smaller ones of each pair."""
        most = self._other(other)
        if (self.high <= most.low).all():
            return self
        return self._pair("Min", most, np.minimum(self.low, most.low), np.minimum(self.high, most.high))

    def _other(self, value: Numbers) -> Ints:
        return Ints.of(self.graph, value, self.axes)

    def _pair(self, kind: str, other: Ints, low: IntArray, high: IntArray) -> Ints:
        if bool((low == high).all()):
            return Ints.of(self.graph, low, len(low))
        name = self.graph.op(kind, self.name, other.name)
        return Ints(self.graph, name, low, high, self.batched or other.batched)

    def _made(self, name: str, low: IntArray, high: IntArray, *, batched: bool | None = None) -> Ints:
        if bool((low == high).all()):
            return Ints.of(self.graph, low, len(low))
        return Ints(self.graph, name, low, high, self.batched if batched is None else batched)


def joined(columns: Sequence[Ints]) -> Ints:
    """Columns of single axes side by side."""
    first = columns[0]
    low, high = (np.concatenate([getattr(c, side) for c in columns]) for side in ("low", "high"))
    if all(c.fixed for c in columns):
        return Ints.of(first.graph, low, len(low))
    like = next((c.name for c in columns if c.batched), None)
    names = [c.name if like is None else c.rows(like).name for c in columns]
    return Ints(first.graph, first.graph.op("Concat", *names, axis=-1), low, high, like is not None)
