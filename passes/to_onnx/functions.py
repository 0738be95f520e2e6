"""Gather, superimpose and crop as model-local functions of the domain ``kcompile``, in terms of standard ops.

A window is read as rows: base tensors are kept [*sizes, C], so that one Gather over flat cell numbers copies runs of C
values. A patch tensor is laid over its window by another Gather, from both one after the other (patches of one batch
may lie at different offsets, and stick out). Windows and patch tensors are [N, C, *cells], coordinates int64 [N, axes].
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from onnx import FunctionProto, helper

from kcompile.passes.to_onnx.graph import DOMAIN, Graph
from kcompile.passes.to_onnx.weights import Weights

NAMES = ("Gather", "Superimpose", "GatherSuperimpose", "Crop")


def name_of(function: str, axes: int) -> str:
    """A function's name for windows of so many axes."""
    return f"{function}{axes}D"


@cache
def functions(axes: int, opset: int) -> tuple[FunctionProto, ...]:
    """The functions for windows of so many axes."""
    return tuple(_made(name, axes, opset) for name in NAMES)


def _made(name: str, axes: int, opset: int) -> FunctionProto:
    graph = Graph(Weights(), name)
    inputs, write = _BODIES[name]
    result = write(Cells(graph, axes), *inputs)
    constants = [helper.make_node("Constant", [], [value.name], value=value) for value in graph.initializers]
    nodes = [*constants, *graph.nodes, helper.make_node("Identity", [result], ["result"])]
    opsets = [helper.make_opsetid("", opset)]
    return helper.make_function(DOMAIN, name_of(name, axes), list(inputs), ["result"], nodes, opsets)


class Cells:
    """Writes arithmetic on cells of windows of so many axes."""

    def __init__(self, graph: Graph, axes: int) -> None:
        """Write into a graph."""
        self.graph, self.axes = graph, axes
        self.to_last = [0, *range(2, axes + 2), 1]
        self.to_first = [0, axes + 1, *range(1, axes + 1)]

    def last(self, window: str) -> str:
        """[N, *cells, C]."""
        return self.graph.op("Transpose", window, perm=self.to_last)

    def first(self, window: str) -> str:
        """[N, C, *cells]."""
        return self.graph.op("Transpose", window, perm=self.to_first)

    def rows(self, cells: str) -> str:
        """Rows of C values of [..., C]."""
        g = self.graph
        channels = g.op("Shape", cells, start=-1)
        return g.op("Reshape", cells, g.op("Concat", g.ints(-1), channels, axis=0))

    def steps(self, extent: str, axis: int) -> str:
        """0 … of a box's cells along one axis; ``extent`` is [axes]."""
        g = self.graph
        return g.op(
            "Range", g.constant(0, "int64"), g.op("Gather", extent, g.constant(axis, "int64")), g.constant(1, "int64")
        )

    def at(self, first: str, extent: str, axis: int) -> str:
        """Coordinates [N, cells] of boxes along one axis."""
        g = self.graph
        return g.op("Add", g.op("Gather", first, g.ints(axis), axis=1), self.steps(extent, axis))

    def numbers(self, at: list[str], sizes: str, row: str | None = None) -> str:
        """Flat numbers [N, *cells] of cells in a tensor of ``sizes`` [axes]; ``row`` [N, 1] counts whole tensors."""
        g = self.graph
        total = row
        for axis, cells in enumerate(at):
            if total is None:
                total = cells
                continue
            if axis:
                total = g.op("Unsqueeze", total, g.ints(-1))
                cells = g.op("Unsqueeze", cells, g.ints(*range(1, axis + 1)))
            total = g.op("Add", g.op("Mul", total, g.op("Gather", sizes, g.ints(axis))), cells)
        assert total is not None
        return total

    def queries(self, windows: str) -> str:
        """Numbers [N, 1] of the queries."""
        g = self.graph
        count = g.op("Squeeze", g.op("Shape", windows, end=1))
        return g.op("Unsqueeze", g.op("Range", g.constant(0, "int64"), count, g.constant(1, "int64")), g.ints(1))

    def sizes(self, cells: str) -> str:
        """Cells per axis of a base tensor [*sizes, C]."""
        return self.graph.op("Shape", cells, start=-1 - self.axes, end=-1)

    def gather(self, base: str, origins: str, extent: str) -> str:
        """Windows [N, *extent, C] of a base tensor."""
        at = [self.at(origins, extent, axis) for axis in range(self.axes)]
        return self.graph.op("Gather", self.rows(base), self.numbers(at, self.sizes(base)), axis=0)

    def lay(self, window: str, patch: str, offsets: str) -> str:
        """Patch tensors over windows, both [N, *cells, C]."""
        g = self.graph
        extent, sizes = self.sizes(window), self.sizes(patch)
        minus = g.op("Neg", offsets)
        at = [self.at(minus, extent, axis) for axis in range(self.axes)]
        inside = None
        for axis, cells in enumerate(at):
            size = g.op("Gather", sizes, g.ints(axis))
            within = g.op("And", g.op("GreaterOrEqual", cells, g.ints(0)), g.op("Less", cells, size))
            if inside is None:
                inside = within
            else:
                between = g.op("Unsqueeze", within, g.ints(*range(1, axis + 1)))
                inside = g.op("And", g.op("Unsqueeze", inside, g.ints(-1)), between)
        assert inside is not None
        below, above = self.rows(window), self.rows(patch)
        count = g.op("Shape", below, end=1)
        numbers = g.op("Add", self.numbers(at, sizes, self.queries(window)), count)
        own = g.op("Range", g.constant(0, "int64"), g.op("Squeeze", count), g.constant(1, "int64"))
        own = g.op("Reshape", own, g.op("Shape", window, end=-1))
        both = g.op("Concat", below, above, axis=0)
        return g.op("Gather", both, g.op("Where", inside, numbers, own), axis=0)

    def crop(self, window: str, first: str, extent: str) -> str:
        """Boxes [N, *extent, C] of windows [N, *cells, C]."""
        at = [self.at(first, extent, axis) for axis in range(self.axes)]
        numbers = self.numbers(at, self.sizes(window), self.queries(window))
        return self.graph.op("Gather", self.rows(window), numbers, axis=0)


def _gather(c: Cells, base: str, origins: str, extent: str) -> str:
    return c.first(c.gather(base, origins, extent))


def _superimpose(c: Cells, window: str, patch: str, offsets: str) -> str:
    return c.first(c.lay(c.last(window), c.last(patch), offsets))


def _gather_superimpose(c: Cells, base: str, patch: str, origins: str, offsets: str, extent: str) -> str:
    return c.first(c.lay(c.gather(base, origins, extent), c.last(patch), offsets))


def _crop(c: Cells, window: str, first: str, extent: str) -> str:
    return c.first(c.crop(c.last(window), first, extent))


_BODIES: dict[str, tuple[tuple[str, ...], Callable[..., str]]] = {
    "Gather": (("base", "origins", "extent"), _gather),
    "Superimpose": (("window", "patch", "offsets"), _superimpose),
    "GatherSuperimpose": (("base", "patch", "origins", "offsets", "extent"), _gather_superimpose),
    "Crop": (("window", "first", "extent"), _crop),
}
