"""Lowerings of what belongs to the error function and the normal distribution."""

from __future__ import annotations

import math

import numpy as np

from kcompile.passes.to_onnx.call import Call
from kcompile.passes.to_onnx.fits import Fit, scipy_special, special, squared_exp
from kcompile.passes.to_onnx.formula import Term
from kcompile.passes.to_onnx.weights import Array

_ROOT2 = math.sqrt(2)
_EDGE = 2.5  # of erfinv's middle part: as sqrt(-log(1 - x²))


def _scaled_tail(t: Array) -> Array:
    """``(1 + 2 x) exp(x²) erfc(x)`` for x from 0 to infinity as t from -1 to 1."""
    x = 4 * (1 + t) / (1 - t)
    return np.asarray((1 + 2 * x) * scipy_special().erfcx(x))


def _inverse(w: Array) -> Array:
    """``erfinv(x) / x`` with ``w = -log(1 - x²)``: what 1 - x is, tells w alone."""
    x = np.sqrt(-np.expm1(-w))
    return np.asarray(scipy_special().erfcinv(np.exp(-w) / (1 + x)) / x)


_ERF = Fit(lambda square: scipy_special().erf(np.sqrt(square)) / np.sqrt(square), 0.0, 0.36)
_ERFCX = Fit(_scaled_tail, -1.0, 1.0)
_ERFINV = Fit(_inverse, 0.0, _EDGE**2)
_ERFINV_TAIL = Fit(lambda once: _inverse(once**-2) * once, 1 / 26.5, 1 / _EDGE)  # the least of float64


def _erfcx_above_0(x: Term) -> Term:
    return _ERFCX.at((x - 4.0) / (x + 4.0)) / (x * 2.0 + 1.0)


@special("erfcx")
def erfcx(c: Call, x: Term) -> Term:
    """``exp(x²) erfc(x)``."""
    tail, negative = _erfcx_above_0(x.do("Abs").clip(high=1e30)), x.test("Less", 0.0)
    found = negative.where(squared_exp(x, 1.0) * 2.0 - tail, tail, x.dtype)
    return x.test("Equal", math.inf).where(0.0, found, x.dtype)


@special("erfc")
def erfc(c: Call, x: Term) -> Term:
    """``1 - erf(x)``, which keeps the digits of small results."""
    return _erfc(x, squared_exp(x, -1.0))


def _erfc(x: Term, decay: Term) -> Term:
    """Of x and ``exp(-x²)``."""
    size = x.do("Abs")
    near = 1.0 - x * _ERF.at(x * x)
    tail = _erfcx_above_0(size.clip(high=40.0)) * decay
    far = x.test("Less", 0.0).where(2.0 - tail, tail, x.dtype)
    return size.test("Less", 0.6).where(near, far, x.dtype)


@special("ndtr")
def ndtr(c: Call, x: Term) -> Term:
    """The normal distribution."""
    return _erfc(x * (-1 / _ROOT2), squared_exp(x, -0.5)) * 0.5


@special("log_ndtr")
def log_ndtr(c: Call, x: Term) -> Term:
    """The logarithm of the normal distribution."""
    scaled = x * (-1 / _ROOT2)
    tail = (_erfcx_above_0(scaled) * 0.5).do("Log") - x * x * 0.5
    above = _log1p(ndtr(c, -x))
    found = x.test("Less", -1.0).where(tail, above, x.dtype)
    return x.test("Equal", -math.inf).where(-math.inf, found, x.dtype)


def _log1p(small: Term) -> Term:
    """``log(1 - small)``, by Kahan's way."""
    u = 1.0 - small
    least = u.test("Equal", 1.0)
    divided = u.do("Log") * small / least.where(1.0, 1.0 - u, u.dtype)
    return least.where(-small, divided, u.dtype)


@special("erfinv")
def erfinv(c: Call, x: Term) -> Term:
    """The inverse of erf: a series in ``w = -log(1 - x²)``, beyond in ``1 / sqrt w``."""
    found = x * _erfinv_factor((x + 1.0) * (1.0 - x))
    return x.do("Abs").test("Equal", 1.0).where(x * math.inf, found, x.dtype)


def _erfinv_factor(product: Term) -> Term:
    """``erfinv(x) / x`` of ``1 - x²``; NaN where that is negative."""
    w = -(product.do("Log"))
    root = w.clip(low=1e-3).do("Sqrt")
    tail = root * _ERFINV_TAIL.at(root.do("Reciprocal"))
    return w.test("Less", _EDGE**2).where(_ERFINV.at(w), tail, w.dtype)


@special("ndtri")
def ndtri(c: Call, p: Term) -> Term:
    """The inverse of the normal distribution, ``√2 erfinv(2 p - 1)``: p near 0 keeps its digits."""
    x = p * 2.0 - 1.0
    found = x * _erfinv_factor(p * 4.0 * (1.0 - p)) * _ROOT2
    above = p.test("Equal", 1.0).where(math.inf, found, p.dtype)
    return p.test("Equal", 0.0).where(-math.inf, above, p.dtype)
