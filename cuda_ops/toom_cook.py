"""Minimal filtering by Toom-Cook: F(m, r) makes m outputs of an r-tap correlation from m + r - 1 products.

``y = A^T [(G g) * (B^T d)]`` for taps g and inputs d (Lavin and Gray, "Fast algorithms for convolutional neural
networks", 2016, section 4); in two dimensions each axis has its own matrices. A polynomial product is interpolated at
chosen points and at infinity; transposing it gives the correlation. The points decide the rounding: those below were
the best of all pairs of sixteenths (eighths for eight points) on random data, better than 0, +-1, +-2.
A stride of 2 splits taps and inputs into even and odd ones, each a correlation of its own; their results are added.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from functools import cache
from math import lcm, log2
from typing import NamedTuple, TypeAlias

Matrix: TypeAlias = list[list[Fraction]]

_POINTS: dict[int, tuple[Fraction, ...]] = {
    3: (Fraction(0), Fraction(1)),
    4: (Fraction(0), Fraction(1), Fraction(-1)),
    5: (Fraction(0), Fraction(3, 4), Fraction(-3, 4), Fraction(2)),
    6: (Fraction(0), Fraction(11, 16), Fraction(-11, 16), Fraction(3, 2), Fraction(-3, 2)),
    8: (
        Fraction(0), Fraction(1, 2), Fraction(-1, 2), Fraction(1), Fraction(-1), Fraction(2), Fraction(-2),
    ),
}  # fmt: skip


class Axis(NamedTuple):
    """How one axis is filtered: F(outputs, taps) at a stride of 1 or 2; ``Axis(1, 1)`` leaves an axis alone."""

    outputs: int
    taps: int
    stride: int = 1

    @property
    def points(self) -> int:
        """Products, and as many inputs."""
        return (self.outputs - 1) * self.stride + self.taps


# What the native kernels are made for: rows and columns.
TILES: tuple[tuple[Axis, Axis], ...] = (
    *((Axis(m, 3), Axis(m, 3)) for m in (2, 3, 4)),
    (Axis(2, 5), Axis(2, 5)),
    (Axis(1, 1), Axis(4, 3)),
    (Axis(4, 3), Axis(1, 1)),
    (Axis(1, 1), Axis(2, 7)),
    (Axis(2, 7), Axis(1, 1)),
    *((Axis(m, 3, 2), Axis(m, 3, 2)) for m in (2, 3, 4)),
    *((Axis(1, 1, step), Axis(1, 1, step)) for step in (1, 2)),  # a plain product, for what surrounds it
)


@cache
def matrices(axis: Axis) -> tuple[Matrix, Matrix, Matrix]:
    """``B^T`` [n, n], ``G`` [n, taps] and ``A^T`` [outputs, n] of n points, exactly."""
    if axis.stride == 1:
        return _filtering(axis.outputs, axis.taps)
    inputs: Matrix = []
    taps: Matrix = []
    outputs: Matrix = [[] for _ in range(axis.outputs)]
    for phase in range(min(axis.stride, axis.taps)):
        own = _filtering(axis.outputs, len(range(phase, axis.taps, axis.stride)))
        inputs += _spread(own[0], axis.points, phase, axis.stride)
        taps += _spread(own[1], axis.taps, phase, axis.stride)
        outputs = [before + row for before, row in zip(outputs, own[2], strict=True)]
    return inputs, taps, outputs


def _spread(matrix: Matrix, size: int, first: int, step: int) -> Matrix:
    """Rows whose entries stand ``step`` apart in rows of zeros."""
    rows = [[Fraction(0)] * size for _ in matrix]
    for row, values in zip(rows, matrix, strict=True):
        row[first : first + step * len(values) : step] = values
    return rows


def _filtering(m: int, r: int) -> tuple[Matrix, Matrix, Matrix]:
    """``B^T``, ``G`` and ``A^T`` of F(m, r) at a stride of 1."""
    n = m + r - 1
    if r == 1:
        same = [[Fraction(int(i == j)) for j in range(m)] for i in range(m)]
        return same, [[Fraction(1)] for _ in range(m)], same
    points = _POINTS[n]
    to_outputs, to_taps, whole = (_values(points, terms) for terms in (m, r, n))
    inputs = [list(column) for column in zip(*_inverse(whole), strict=True)]
    for i in range(n):  # a row's factor may stand on either side: one that makes B^T binary, and both of like sizes
        odd = Fraction(lcm(*(x.denominator for x in inputs[i])))
        size = [sum(abs(float(x)) for x in row[i]) for row in (inputs, to_taps)]
        factor = odd * Fraction(2) ** round(log2(size[1] / size[0]) / 2 - log2(odd))
        inputs[i] = [x * factor for x in inputs[i]]
        to_taps[i] = [x / factor for x in to_taps[i]]
    return inputs, to_taps, [list(column) for column in zip(*to_outputs, strict=True)]


def header() -> str:
    """The matrices of all tiles as a C++ header."""
    lines = ["// Made by toom_cook.py.", "template <int M, int R, int S> struct Axis;"]
    for axis in sorted({axis for tile in TILES for axis in tile}):
        inputs, _, outputs = matrices(axis)
        lines.append(f"template <> struct Axis<{axis.outputs}, {axis.taps}, {axis.stride}> {{")
        lines.append(f"  static constexpr int m = {axis.outputs}, n = {axis.points}, s = {axis.stride};")
        for name, matrix in (("B", inputs), ("A", outputs)):
            rows = ", ".join("{" + ", ".join(f"{float(x)!r}f" for x in row) + "}" for row in matrix)
            lines.append(f"  static constexpr float {name}[{len(matrix)}][{len(matrix[0])}] = {{{rows}}};")
        lines.append("};")
    cases = [f"  X({i}, {', '.join(map(str, (*rows, *columns)))})" for i, (rows, columns) in enumerate(TILES)]
    return "\n".join([*lines, "#define TILES(X) \\", " \\\n".join(cases), ""])


def _values(points: Sequence[Fraction], terms: int) -> Matrix:
    """What polynomials of so many terms are at the points and at infinity, in terms of their coefficients."""
    rows = [[point**power for power in range(terms)] for point in points]
    return [*rows, [Fraction(int(power == terms - 1)) for power in range(terms)]]


def _inverse(matrix: Matrix) -> Matrix:
    size = len(matrix)
    rows = [[*row, *(Fraction(int(i == j)) for j in range(size))] for i, row in enumerate(matrix)]
    for i in range(size):
        pivot = next(k for k in range(i, size) if rows[k][i])
        rows[i], rows[pivot] = rows[pivot], rows[i]
        rows[i] = [x / rows[i][i] for x in rows[i]]
        for k in range(size):
            if k != i:
                rows[k] = [x - rows[k][i] * y for x, y in zip(rows[k], rows[i], strict=True)]
    return [row[size:] for row in rows]
