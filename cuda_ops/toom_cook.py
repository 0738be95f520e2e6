"""Minimal filtering by Toom-Cook: F(m, r) makes m outputs of an r-tap correlation from m + r - 1 products.

``y = A^T [(G g) * (B^T d)]`` for taps g and inputs d (Lavin and Gray, "Fast algorithms for convolutional neural
networks", 2016, section 4); in two dimensions each axis has its own matrices. A polynomial product is interpolated at
chosen points and at infinity; transposing it gives the correlation. The points decide the rounding: those below were
the best of all pairs of sixteenths (eighths for eight points) on random data, 2-5 times better than 0, +-1, +-2.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from functools import cache
from math import lcm, log2
from typing import TypeAlias

Matrix: TypeAlias = list[list[Fraction]]

_POINTS: dict[int, tuple[Fraction, ...]] = {
    1: (),
    4: (Fraction(0), Fraction(1), Fraction(-1)),
    5: (Fraction(0), Fraction(3, 4), Fraction(-3, 4), Fraction(2)),
    6: (Fraction(0), Fraction(11, 16), Fraction(-11, 16), Fraction(3, 2), Fraction(-3, 2)),
    8: (
        Fraction(0), Fraction(1, 2), Fraction(-1, 2), Fraction(1), Fraction(-1), Fraction(2), Fraction(-2),
    ),
}  # fmt: skip

# (m, r) per axis; (1, 1) leaves an axis alone. The native kernels are made for the pairs in `TILES`.
TILES: tuple[tuple[tuple[int, int], tuple[int, int]], ...] = (
    ((2, 3), (2, 3)),
    ((3, 3), (3, 3)),
    ((4, 3), (4, 3)),
    ((2, 5), (2, 5)),
    ((1, 1), (4, 3)),
    ((4, 3), (1, 1)),
    ((1, 1), (2, 7)),
    ((2, 7), (1, 1)),
)


@cache
def matrices(m: int, r: int) -> tuple[Matrix, Matrix, Matrix]:
    """``B^T`` [n, n], ``G`` [n, r] and ``A^T`` [m, n] of F(m, r), n = m + r - 1, exactly."""
    n = m + r - 1
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
    pairs = sorted({axis for tile in TILES for axis in tile})
    lines = ["// Made by toom_cook.py.", "template <int M, int R> struct Axis;"]
    for m, r in pairs:
        inputs, _, outputs = matrices(m, r)
        lines.append(f"template <> struct Axis<{m}, {r}> {{")
        lines.append(f"  static constexpr int m = {m}, n = {m + r - 1};")
        for name, matrix in (("B", inputs), ("A", outputs)):
            rows = ", ".join("{" + ", ".join(f"{float(x)!r}f" for x in row) + "}" for row in matrix)
            lines.append(f"  static constexpr float {name}[{len(matrix)}][{len(matrix[0])}] = {{{rows}}};")
        lines.append("};")
    cases = [f"  X({i}, {h[0]}, {h[1]}, {w[0]}, {w[1]})" for i, (h, w) in enumerate(TILES)]
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
