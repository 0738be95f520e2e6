"""Lowerings of the modified Bessel functions, of the first kind (I) and of the second (K)."""

from __future__ import annotations

import math

import numpy as np

from kcompile.passes.to_onnx.call import Call
from kcompile.passes.to_onnx.fits import Fit, scipy_special, special
from kcompile.passes.to_onnx.formula import Term
from kcompile.passes.to_onnx.weights import Array

_FAR = 8.0  # from here on series in 1 / x
_NEAR = 2.0  # up to here K is a logarithm and a series in x²

_I0E = Fit(lambda x: scipy_special().i0e(x), 0.0, _FAR)
_I1E = Fit(lambda x: scipy_special().i1e(x) / x, 0.0, _FAR)
_I0E_FAR = Fit(lambda once: scipy_special().i0e(1 / once) / np.sqrt(once), 0.0, 1 / _FAR)
_I1E_FAR = Fit(lambda once: scipy_special().i1e(1 / once) / np.sqrt(once), 0.0, 1 / _FAR)
_I0 = Fit(lambda square: scipy_special().i0(np.sqrt(square)), 0.0, _NEAR**2)
_I1 = Fit(lambda square: scipy_special().i1(np.sqrt(square)) / np.sqrt(square), 0.0, _NEAR**2)
_K0E_FAR = Fit(lambda once: scipy_special().k0e(1 / once) / np.sqrt(once), 0.0, 1 / _NEAR)
_K1E_FAR = Fit(lambda once: scipy_special().k1e(1 / once) / np.sqrt(once), 0.0, 1 / _NEAR)


def _k0_rest(square: Array) -> Array:
    """``K0(x) + log(x / 2) I0(x)``."""
    x = np.sqrt(square)
    return np.asarray(scipy_special().k0(x) + np.log(x / 2) * scipy_special().i0(x))


def _k1_rest(square: Array) -> Array:
    """``(K1(x) - log(x / 2) I1(x) - 1 / x) / x``."""
    x = np.sqrt(square)
    return np.asarray((scipy_special().k1(x) - np.log(x / 2) * scipy_special().i1(x) - 1 / x) / x)


_K0 = Fit(_k0_rest, 0.0, _NEAR**2)
_K1 = Fit(_k1_rest, 0.0, _NEAR**2)


@special("i0e")
def i0e(c: Call, x: Term) -> Term:
    """``exp(-|x|) I0(x)``."""
    size = x.do("Abs")
    return size.test("Less", _FAR).where(_I0E.at(size), _far(_I0E_FAR, size), x.dtype)


@special("i1e")
def i1e(c: Call, x: Term) -> Term:
    """``exp(-|x|) I1(x)``."""
    size = x.do("Abs")
    far = _far(_I1E_FAR, size)
    signed = x.test("Less", 0.0).where(-far, far, x.dtype)
    return size.test("Less", _FAR).where(x * _I1E.at(size), signed, x.dtype)


def _far(fit: Fit, x: Term) -> Term:
    once = x.do("Reciprocal")
    return fit.at(once) * once.do("Sqrt")


@special("i0", "modified_bessel_i0")
def i0(c: Call, x: Term) -> Term:
    """The modified Bessel function of the first kind, order 0."""
    return _unscaled(x, i0e(c, x))


@special("i1", "modified_bessel_i1")
def i1(c: Call, x: Term) -> Term:
    """The modified Bessel function of the first kind, order 1."""
    return _unscaled(x, i1e(c, x))


def _unscaled(x: Term, scaled: Term) -> Term:
    """Times ``exp(|x|)``, by halves: the whole may be too large where the product isn't."""
    half = (x.do("Abs") * 0.5).do("Exp")
    return scaled * half * half


@special("modified_bessel_k0")
def k0(c: Call, x: Term) -> Term:
    """The modified Bessel function of the second kind, order 0 (DLMF 10.31.2); infinite at 0, NaN below."""
    return _second_kind(x, _k0_near(x), _far(_K0E_FAR, x) * (-x).do("Exp"))


@special("modified_bessel_k1")
def k1(c: Call, x: Term) -> Term:
    """The modified Bessel function of the second kind, order 1."""
    return _second_kind(x, _k1_near(x), _far(_K1E_FAR, x) * (-x).do("Exp"))


@special("scaled_modified_bessel_k0")
def k0e(c: Call, x: Term) -> Term:
    """``exp(x) K0(x)``."""
    return _second_kind(x, _k0_near(x) * x.do("Exp"), _far(_K0E_FAR, x))


@special("scaled_modified_bessel_k1")
def k1e(c: Call, x: Term) -> Term:
    """``exp(x) K1(x)``."""
    return _second_kind(x, _k1_near(x) * x.do("Exp"), _far(_K1E_FAR, x))


def _k0_near(x: Term) -> Term:
    square = x * x
    return _K0.at(square) - (x * 0.5).do("Log") * _I0.at(square)


def _k1_near(x: Term) -> Term:
    square = x * x
    return x * (_K1.at(square) + (x * 0.5).do("Log") * _I1.at(square)) + x.do("Reciprocal")


def _second_kind(x: Term, near: Term, far: Term) -> Term:
    found = x.test("LessOrEqual", _NEAR).where(near, far, x.dtype)
    least = x.test("Equal", 0.0).where(math.inf, found, x.dtype)
    return x.test("Less", 0.0).where(math.nan, least, x.dtype)
