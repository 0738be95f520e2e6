"""Lowerings of the incomplete gamma functions P(a, x) and Q = 1 - P, by four expansions, each where it is good."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from numpy.polynomial import Chebyshev

from kcompile.passes.to_onnx.call import Call
from kcompile.passes.to_onnx.fits import Fit, scipy_special, special
from kcompile.passes.to_onnx.formula import Term
from kcompile.passes.to_onnx.ops_erf import erfc
from kcompile.passes.to_onnx.ops_gamma import log_gamma_beyond_1, stirling
from kcompile.passes.to_onnx.weights import Array

_LARGE = 20.0  # a from which on the uniform expansion holds, for x between ...
_RATIOS = (0.6, 1.6)  # ... these times a
_TERMS, _DEPTH, _FEW = 45, 32, 14  # of the series, of the continued fraction, of the series for small x
_MORE = 2  # times as many for float64
_GAMMA = (1.0, 1 / 12, 1 / 288, -139 / 51840)  # Γ's asymptotic series (DLMF 5.11.4)


def _excess(mu: Array) -> Array:
    """``(mu - log(1 + mu)) / mu²``."""
    return np.asarray((mu - np.log1p(mu)) / mu**2)


def _log_gamma_rest(x: Array) -> Array:
    return np.asarray(scipy_special().gammaln(x) - (x - 0.5) * np.log(x) + x - 0.5 * math.log(2 * math.pi))


_EXCESS = Fit(_excess, _RATIOS[0] - 1, _RATIOS[1] - 1)
_REST = Fit(_log_gamma_rest, 1.0, 9.0)


@cache
def _uniform(order: int) -> Fit:
    """The coefficient c_k of Temme's expansion as a function of ``mu = x / a - 1`` (DLMF 8.12.9 to 8.12.12)."""

    def values(mu: Array) -> Array:
        if order == 0:
            return np.asarray(1 / mu - 1 / (mu * np.sqrt(2 * _excess(mu))))
        before = Chebyshev(_uniform(order - 1).series(torch.float64), domain=[_EXCESS.low, _EXCESS.high])
        return np.asarray(((1 + mu) * before.deriv()(mu) + (-1) ** order * _GAMMA[order]) / mu)

    return Fit(values, _EXCESS.low, _EXCESS.high)


@dataclass(frozen=True)
class _Point:
    """Where a function is asked for, with what the expansions share."""

    a: Term
    x: Term

    @property
    def ratio(self) -> Term:
        """``x / a``."""
        return self.x / self.a

    @property
    def tight(self) -> Term:
        """``mu² (excess of mu)`` near 0: the exponent keeps its digits."""
        mu = (self.x - self.a) / self.a
        near = mu * mu * _EXCESS.at(mu)
        inside = _inside(self.ratio)
        return inside.where(near, mu - self.ratio.do("Log"), mu.dtype)

    @property
    def power(self) -> Term:
        """``log (x^a / Γ(a + 1))``."""
        return self.a * self.x.do("Log") - log_gamma_beyond_1(self.a)

    @property
    def density(self) -> Term:
        """``x^a exp(-x) / Γ(a + 1)``."""
        a, dtype = self.a, self.a.dtype
        rest = a.test("Less", 9.0).where(_REST.at(a), stirling(a), dtype)
        root = (a * (2 * math.pi)).do("Sqrt")
        usual = (-(a * self.tight) - rest).do("Exp") / root
        return a.test("Less", 1.0).where((self.power - self.x).do("Exp"), usual, dtype)


def _inside(ratio: Term) -> Term:
    return ratio.test("Greater", _RATIOS[0]).do("And", ratio.test("Less", _RATIOS[1]))


@special("igamma", "gammainc", tensors=2)
def lower(c: Call, a: Term, x: Term) -> Term:
    """P, the lower one."""
    return _chosen(c, _Point(a, x))[0]


@special("igammac", "gammaincc", tensors=2)
def upper(c: Call, a: Term, x: Term) -> Term:
    """Q, the upper one."""
    return _chosen(c, _Point(a, x))[1]


def _chosen(c: Call, at: _Point) -> tuple[Term, Term]:
    """P and Q by what is best; each where it is the smaller one, the other as what is left of 1."""
    a, x, dtype = at.a, at.x, at.x.dtype
    density = at.density
    series, fraction, small = density * _series(at), density * a / _fraction(at), _small(at)
    high = x.test("Greater", a)
    tiny = high.do("And", x.test("Less", 1.1))
    uniform = _inside(at.ratio).do("And", a.test("GreaterOrEqual", _LARGE))
    below, above = _temme(c, at)
    p = high.where(1.0 - fraction, series, dtype)
    q = high.where(fraction, 1.0 - series, dtype)
    p, q = tiny.where(series, p, dtype), tiny.where(small, q, dtype)
    p, q = uniform.where(below, p, dtype), uniform.where(above, q, dtype)
    return _bounded(a, x, p, 0.0), _bounded(a, x, q, 1.0)


def _bounded(a: Term, x: Term, found: Term, none: float) -> Term:
    """With the values at the ends; ``none`` is the one where the integral has no interval."""
    dtype, all_ = x.dtype, 1.0 - none
    ends = [x.test("IsInf"), a.test("IsInf"), x.test("Equal", 0.0), a.test("Equal", 0.0)]
    for condition, value in zip(ends, (all_, none, none, all_), strict=True):
        found = condition.where(value, found, dtype)
    void = ends[0].do("And", ends[1]).do("Or", ends[2].do("And", ends[3]))
    for condition in (x.test("Less", 0.0), a.test("Less", 0.0), x.test("IsNaN")):
        void = void.do("Or", condition)
    return void.where(math.nan, found, dtype)


def _count(x: Term, count: int) -> int:
    return count * _MORE if x.dtype == torch.float64 else count


def _series(at: _Point) -> Term:
    """``1 + x / (a + 1) + x² / ((a + 1) (a + 2)) + …`` (DLMF 8.11.4), for x up to a."""
    total = at.x / (at.a + float(_count(at.x, _TERMS))) + 1.0
    for k in range(_count(at.x, _TERMS) - 1, 0, -1):
        total = total * (at.x / (at.a + float(k))) + 1.0
    return total


def _fraction(at: _Point) -> Term:
    """``x + 1 - a - 1 (1 - a) / (x + 3 - a - 2 (2 - a) / …`` (DLMF 8.9.2, contracted), for x from a and 1 on."""
    away = at.x - at.a
    total = away + (2.0 * _count(at.x, _DEPTH) + 1)
    for k in range(_count(at.x, _DEPTH), 0, -1):
        total = away + (2.0 * k - 1) + (at.a - float(k)) * float(k) / total
    return total


def _small(at: _Point) -> Term:
    """Q for small x: ``1 - (x^a / Γ(a + 1)) (1 + a Σ (-x)^k / (k! (a + k)))`` (DLMF 8.7.1), digits of 1 - x^a kept."""
    half = at.power * 0.5
    taken = half.do("Sinh") * half.do("Exp") * -2.0
    total, power = at.x * 0.0, at.x
    for k in range(1, _count(at.x, _FEW)):
        total = total + power * ((-1) ** k / math.factorial(k)) / (at.a + float(k))
        power = power * at.x
    return taken - at.power.do("Exp") * at.a * total


def _temme(c: Call, at: _Point) -> tuple[Term, Term]:
    """P and Q by Temme's uniform expansion (DLMF 8.12.3 to 8.12.7)."""
    mu = (at.x - at.a) / at.a
    eta = mu * (_EXCESS.at(mu) * 2.0).do("Sqrt")
    scaled = eta * (at.a * 0.5).do("Sqrt")
    once = at.a.do("Reciprocal")
    total = _uniform(len(_GAMMA) - 1).at(mu)
    for order in reversed(range(len(_GAMMA) - 1)):
        total = total * once + _uniform(order).at(mu)
    rest = (-(at.a * at.tight)).do("Exp") / (at.a * (2 * math.pi)).do("Sqrt") * total
    return erfc(c, -scaled) * 0.5 - rest, erfc(c, scaled) * 0.5 + rest
