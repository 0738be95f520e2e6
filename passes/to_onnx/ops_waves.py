"""Lowerings of functions that oscillate: Bessel functions of both kinds (J, Y), the spherical one, and Airy's.

Near 0 they are series, farther out a sine and a cosine with slowly changing factors: those of Hankel's expansion (DLMF
10.17), fitted to SciPy's values.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from kcompile.passes.to_onnx.call import Call
from kcompile.passes.to_onnx.fits import Fit, beyond, scipy_special, special
from kcompile.passes.to_onnx.formula import Term
from kcompile.passes.to_onnx.weights import Array

_FAR = 8.0
_TURN = math.pi / 4


@dataclass(frozen=True, eq=False)
class _Order:
    """Bessel functions of one order: their series below `_FAR`, in x², and the factors of the waves, in 1 / x²."""

    order: int
    roots: tuple[float, float]  # of J below _FAR, taken out of its series: results near them keep their digits

    def first(self, square: Array) -> Array:
        """``J(x) / (x^order (x² - root²)(x² - root²))``."""
        x, (one, two) = np.sqrt(square), self.roots
        return np.asarray(scipy_special().jv(self.order, x) / (x**self.order * (square - one**2) * (square - two**2)))

    def second(self, square: Array) -> Array:
        """What is left of ``Y(x) / x^order`` without the logarithm, and without the pole of order 1."""
        x, jv = np.sqrt(square), scipy_special().jv(self.order, np.sqrt(square))
        pole = 0.0 if self.order == 0 else 1 / x
        rest = scipy_special().yv(self.order, x) - 2 / math.pi * (np.log(x) * jv - pole)
        return np.asarray(rest / x**self.order)

    def hankel(self, square: Array) -> Array:
        """``sqrt(πx / 2) (J + iY) exp(-i (x - π/4))`` for order 0, of ``1 / x²``; with ``3 π/4`` for order 1."""
        x = 1 / np.sqrt(square)
        turned = np.exp(1j * _TURN * (1 + 2 * self.order))
        return np.asarray(scipy_special().hankel1e(self.order, x) * np.sqrt(math.pi / 2 * x) * turned)


def _fits(order: _Order) -> dict[str, Fit]:
    """Series of an order's functions."""
    far = (0.0, _FAR**-2)
    return {
        "first": Fit(order.first, 0.0, _FAR**2),
        "second": Fit(order.second, 0.0, _FAR**2),
        "even": Fit(lambda square: order.hankel(square).real, *far),
        "odd": Fit(lambda square: order.hankel(square).imag / np.sqrt(square), *far),
    }


_ORDERS = (
    _Order(0, (2.40482555769577277, 5.52007811028631064)),  # DLMF table 10.21
    _Order(1, (3.83170597020751232, 7.01558666981561875)),
)
_FITS = tuple(_fits(order) for order in _ORDERS)


def _near(order: int, x: Term) -> Term:
    """J below `_FAR`."""
    found = _FITS[order]["first"].at(x * x)
    for root in _ORDERS[order].roots:
        found = found * beyond(x, root) * (x + root)
    return found * x if order else found


def _waves(order: int, x: Term) -> tuple[Term, Term]:
    """J and Y beyond `_FAR`: ``sqrt(2 / πx) (P cos χ - Q sin χ)``, ``sqrt(2 / πx) (P sin χ + Q cos χ)``.

    The angle is ``χ = x - π/4`` or ``x - 3 π/4``; sine and cosine of the difference are made of x's own.
    """
    once = x.do("Reciprocal")
    square, sine, cosine = once * once, x.do("Sin"), x.do("Cos")
    plus, minus = (cosine + sine) * math.sqrt(0.5), (sine - cosine) * math.sqrt(0.5)
    turned, risen = (plus, minus) if order == 0 else (minus, -plus)
    even, odd = _FITS[order]["even"].at(square), _FITS[order]["odd"].at(square) * once
    size = (once * (2 / math.pi)).do("Sqrt")
    return size * (even * turned - odd * risen), size * (even * risen + odd * turned)


@special("bessel_j0")
def j0(c: Call, x: Term) -> Term:
    """The Bessel function of the first kind, order 0."""
    size = x.do("Abs")
    return size.test("Less", _FAR).where(_near(0, size), _waves(0, size)[0], x.dtype)


@special("bessel_j1")
def j1(c: Call, x: Term) -> Term:
    """The Bessel function of the first kind, order 1."""
    size = x.do("Abs")
    found = size.test("Less", _FAR).where(_near(1, size), _waves(1, size)[0], x.dtype)
    return x.test("Less", 0.0).where(-found, found, x.dtype)


@special("bessel_y0")
def y0(c: Call, x: Term) -> Term:
    """The Bessel function of the second kind, order 0 (DLMF 10.8.2)."""
    near = _FITS[0]["second"].at(x * x) + x.do("Log") * _near(0, x) * (2 / math.pi)
    return _second_kind(x, near, _waves(0, x)[1])


@special("bessel_y1")
def y1(c: Call, x: Term) -> Term:
    """The Bessel function of the second kind, order 1."""
    logarithm = x.do("Log") * _near(1, x) - x.do("Reciprocal")
    return _second_kind(x, _FITS[1]["second"].at(x * x) * x + logarithm * (2 / math.pi), _waves(1, x)[1])


def _second_kind(x: Term, near: Term, far: Term) -> Term:
    """Minus infinity at 0, NaN below."""
    found = x.test("Less", _FAR).where(near, far, x.dtype)
    least = x.test("Equal", 0.0).where(-math.inf, found, x.dtype)
    return x.test("Less", 0.0).where(math.nan, least, x.dtype)


@special("spherical_bessel_j0")
def spherical(c: Call, x: Term) -> Term:
    """``sin(x) / x``."""
    least = x.test("Equal", 0.0)
    found = least.where(1.0, x.do("Sin") / least.where(1.0, x, x.dtype), x.dtype)
    return x.test("IsInf").where(0.0, found, x.dtype)
