"""Lowerings of the gamma function's logarithm and its derivatives."""

from __future__ import annotations

import math

from kcompile.passes.to_onnx.call import Call
from kcompile.passes.to_onnx.fits import Fit, bernoulli, beyond, polynomial, scipy_special, special
from kcompile.passes.to_onnx.formula import Term

_FAR = 9.0  # from here on asymptotic series, in this many terms
_TERMS = 7
_ROOT = 1.4616321449683623413  # of digamma (DLMF 5.4.20)

_LGAMMA, _LGAMMA_ABOVE = (  # the roots 1 and 2 are taken out: results near them keep their digits
    Fit(lambda x: scipy_special().gammaln(x) / ((x - 1) * (x - 2)), *ends) for ends in ((0.5, 3.0), (3.0, _FAR))
)
_DIGAMMA = Fit(lambda x: scipy_special().psi(x) / (x - _ROOT), 1.0, 3.0)
_DIGAMMA_ABOVE = Fit(lambda x: scipy_special().psi(x), 3.0, _FAR)


@special("lgamma", "gammaln")
def lgamma(c: Call, x: Term) -> Term:
    """``log |Γ(x)|``; below 0 by reflection: ``log π - log |sin πx| - log Γ(1 - x)`` (DLMF 5.5.3)."""
    negative = x.test("Less", 0.0)
    above = log_gamma(negative.where(1.0 - x, x, x.dtype))
    sine = ((x - x.do("Round")) * math.pi).do("Sin").do("Abs")
    mirrored = math.log(math.pi) - sine.do("Log") - above
    found = negative.where(mirrored, above, x.dtype)
    return x.test("IsInf").where(math.inf, found, x.dtype)


def log_gamma(x: Term) -> Term:
    """``log Γ(x)`` of numbers from 0 on."""
    least = x.test("Less", 0.5)
    y = least.where(x + 1.0, x, x.dtype)  # log Γ(x) = log Γ(x + 1) - log x
    below_far = y.test("Less", 3.0).where(_LGAMMA.at(y), _LGAMMA_ABOVE.at(y), x.dtype) * (y - 1.0) * (y - 2.0)
    far = (y - 0.5) * (y.do("Log") - 1.0) + (math.log(2 * math.pi) - 1) / 2 + stirling(y)
    found = y.test("Less", _FAR).where(below_far, far, x.dtype)
    return least.where(found - x.do("Log"), found, x.dtype)


def log_gamma_beyond_1(x: Term) -> Term:
    """``log Γ(1 + x)`` for x from 0 to 1, exact near 0 too."""
    return x * (x - 1.0) * _LGAMMA.at(x + 1.0)


def stirling(x: Term) -> Term:
    """``log Γ(x) - ((x - 1/2) log x - x + log √2π)`` for large x (DLMF 5.11.1)."""
    once = x.do("Reciprocal")
    factors = [b / (2 * k * (2 * k - 1)) for k, b in enumerate(bernoulli(_TERMS), start=1)]
    return polynomial(once * once, factors) * once


@special("digamma", "psi")
def digamma(c: Call, x: Term) -> Term:
    """``d/dx log Γ(x)``; below 0 by reflection: ``ψ(1 - x) - π / tan πx`` (DLMF 5.5.4)."""
    negative = x.test("Less", 0.0)
    above = _digamma_above_0(negative.where(1.0 - x, x, x.dtype))
    away = x - x.do("Round")
    angle = away * math.pi
    mirrored = above - angle.do("Cos") / angle.do("Sin") * math.pi
    below = away.test("Equal", 0.0).where(math.nan, mirrored, x.dtype)
    return negative.where(below, above, x.dtype)


def _digamma_above_0(x: Term) -> Term:
    least = x.test("Less", 1.0)
    y = least.where(x + 1.0, x, x.dtype)  # ψ(x) = ψ(x + 1) - 1 / x
    once = y.do("Reciprocal")
    factors = [-b / (2 * k) for k, b in enumerate(bernoulli(_TERMS), start=1)]  # DLMF 5.11.2
    square = once * once
    far = y.do("Log") - once * 0.5 + polynomial(square, factors) * square
    between = y.test("Less", _FAR).where(_DIGAMMA_ABOVE.at(y), far, x.dtype)
    found = y.test("Less", 3.0).where(beyond(y, _ROOT) * _DIGAMMA.at(y), between, x.dtype)
    return least.where(found - x.do("Reciprocal"), found, x.dtype)


@special("mvlgamma", "multigammaln")
def multivariate(c: Call, x: Term) -> Term:
    """``p (p - 1) / 4 · log π + Σ log Γ(x - j / 2)`` for j < p (DLMF 35.3.4)."""
    p = int(c["p"])
    total = lgamma(c, x) + p * (p - 1) / 4 * math.log(math.pi)
    for j in range(1, p):
        total = total + lgamma(c, x - j / 2)
    return total
