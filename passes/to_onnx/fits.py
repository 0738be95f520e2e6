"""Smooth functions of one tensor as Chebyshev series, fitted at export to SciPy's values of them.

So no table of coefficients stands in the code, and float64 gets as many terms as it needs. ONNX has none of the special
functions; their lowerings (``ops_gamma.py`` and others) are such series on intervals, beside asymptotic ones with known
coefficients.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.polynomial import Chebyshev

from kcompile.passes.to_onnx.call import Call, lowers
from kcompile.passes.to_onnx.formula import Term, term
from kcompile.passes.to_onnx.ops_pairs import overloads
from kcompile.passes.to_onnx.weights import Array

_NODES = 64  # all that is fitted here is known to 1e-15 by fewer
_LEFT_OUT = {torch.float32: 2.0**-31, torch.float64: 2.0**-44}  # smaller shares of the largest coefficient


def scipy_special() -> Any:
    """SciPy's special functions, imported once an export asks for some."""
    import scipy.special

    return scipy.special


@dataclass(frozen=True, eq=False)
class Fit:
    """A smooth function on an interval; what the series gives outside has no meaning.

    Attributes:
        function: Of an array of points inside, in float64.
        low: Where the interval begins.
        high: Where it ends.
    """

    function: Callable[[Array], Array]
    low: float
    high: float

    def series(self, dtype: torch.dtype) -> tuple[float, ...]:
        """Chebyshev coefficients: interpolation at Chebyshev's points, cut where the rest is too small to count."""
        return _series(self, dtype)

    def at(self, x: Term) -> Term:
        """The function of a tensor, by Clenshaw's recurrence (DLMF 3.11.15)."""
        twice = (x - (self.low + self.high) / 2) * (4 / (self.high - self.low))
        *others, last = self.series(x.dtype)[1:]
        newer: Term | float = last
        older: Term | float = 0.0
        for coefficient in reversed(others):
            newer, older = (twice * newer - older) + coefficient, newer
        return (twice * 0.5 * newer - older) + self.series(x.dtype)[0]


@cache
def _series(fit: Fit, dtype: torch.dtype) -> tuple[float, ...]:
    found = Chebyshev.interpolate(fit.function, _NODES - 1, domain=[fit.low, fit.high]).coef
    counts = np.abs(found) > _LEFT_OUT[dtype] * np.abs(found).max()
    return tuple(float(value) for value in found[: max(int(np.flatnonzero(counts)[-1]) + 1, 2)])


def polynomial(x: Term, coefficients: Sequence[float]) -> Term:
    """A sum of coefficients (two or more, the constant first) times powers, by Horner's scheme."""
    *others, before, last = coefficients
    total = x * last + before
    for coefficient in reversed(others):
        total = total * x + coefficient
    return total


def beyond(x: Term, root: float) -> Term:
    """``x - root``, with the digits of the root that a number of x's type lacks."""
    rounded = float(torch.tensor(root, dtype=x.dtype))
    return x - rounded if rounded == root else (x - rounded) - (root - rounded)


def bernoulli(count: int) -> list[float]:
    """The Bernoulli numbers B_2, B_4, and so on."""
    return [float(b) for b in scipy_special().bernoulli(2 * count)[2::2]]


def parity(n: Term) -> Term:
    """1 for even integers, -1 for odd ones."""
    return 1.0 - (n - (n * 0.5).do("Floor") * 2.0) * 2.0


def squared_exp(x: Term, factor: float) -> Term:
    """``exp(factor x²)``, the factor a power of two: the square in two parts, as its rounding error would grow with x².

    The first is exact (of a multiple of 1/16 below 64), the second is small.
    """
    near = x.clip(-40.0, 40.0)  # beyond the result is 0 or infinite
    coarse = (near * 16.0).do("Round") * (1 / 16)
    fine = (near - coarse) * (near + coarse)
    return (coarse * coarse * factor).do("Exp") * (fine * factor).do("Exp")


def wide(dtype: torch.dtype) -> torch.dtype:
    """The type to compute in: float32 at least."""
    return torch.float64 if dtype == torch.float64 else torch.float32


Formula = Callable[..., Term]


def special(*names: str, wanted: Sequence[str] = ("default",), tensors: int = 1) -> Callable[[Formula], Formula]:
    """Register a formula ``(call, first argument, …)`` for ops, also under their names ``special_…``.

    Args:
        names: Of the ops.
        wanted: Overloads, as far as they exist.
        tensors: How many arguments are tensors or numbers in a tensor's place; they come as float32 at least.
    """

    def register(function: Formula) -> Formula:
        @lowers(*overloads([*names, *(f"special_{name}" for name in names)], wanted))
        def lowered(c: Call) -> str:
            given = [term(c, value, wide(c.out.dtype)) for value in list(c.args.values())[:tensors]]
            return function(c, *given).cast(c.out.dtype).name

        return function

    return register
