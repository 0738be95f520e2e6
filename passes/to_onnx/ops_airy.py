"""Lowering of Airy's function Ai: a series about 0, exponential above, waves below (DLMF 9.7)."""

from __future__ import annotations

import math

import numpy as np

from kcompile.passes.to_onnx.call import Call
from kcompile.passes.to_onnx.fits import Fit, beyond, scipy_special, special
from kcompile.passes.to_onnx.formula import Term
from kcompile.passes.to_onnx.weights import Array

_LOW, _HIGH = -5.0, 1.0  # where the series about 0 ends
_ROOTS = (-2.33810741045976704, -4.08794944413097062)  # in between (DLMF table 9.9.1)
_TURN = math.pi / 4


def _angle(x: Array) -> Array:
    """``2/3 |x|^(3/2)``."""
    return np.asarray(2 / 3 * np.abs(x) ** 1.5)


def _point(once: Array) -> Array:
    """The distance from 0 whose angle is ``1 / once``."""
    return np.asarray((1.5 / once) ** (2 / 3))


def _middle(x: Array) -> Array:
    return np.asarray(scipy_special().airy(x)[0] / ((x - _ROOTS[0]) * (x - _ROOTS[1])))


def _above(once: Array) -> Array:
    """``2 √π x^(1/4) exp(angle) Ai(x)``."""
    x = _point(once)
    return np.asarray(scipy_special().airye(x)[0] * 2 * math.sqrt(math.pi) * x**0.25)


def _below(square: Array) -> Array:
    """The factor P of DLMF 9.7.9 and 9.7.11, and Q times the angle as its imaginary part, solved for from Ai and Bi.

    They are functions of ``1 / angle²``.
    """
    once = np.sqrt(square)
    x, turned = _point(once), 1 / once - _TURN
    ai, _, bi, _ = scipy_special().airy(-x)
    even = ai * np.cos(turned) - bi * np.sin(turned)
    odd = ai * np.sin(turned) + bi * np.cos(turned)
    return np.asarray((even + 1j * odd / once) * math.sqrt(math.pi) * x**0.25)


_MIDDLE = Fit(_middle, _LOW, _HIGH)
_ABOVE = Fit(_above, 0.0, float(1 / _angle(np.array(_HIGH))))
_EVEN, _ODD = (
    Fit(function, 0.0, float(_angle(np.array(_LOW)) ** -2))
    for function in (lambda square: _below(square).real, lambda square: _below(square).imag)
)


@special("airy_ai")
def airy(c: Call, x: Term) -> Term:
    """Airy's function Ai."""
    size = x.do("Abs")
    root = size.do("Sqrt")
    angle = size * root * (2 / 3)
    once, quarter = angle.do("Reciprocal"), root.do("Sqrt").do("Reciprocal")
    above = (-angle).do("Exp") * _ABOVE.at(once) * quarter * (0.5 / math.sqrt(math.pi))
    sine, cosine = angle.do("Sin"), angle.do("Cos")
    square = once * once
    waves = _EVEN.at(square) * (cosine + sine) + _ODD.at(square) * once * (sine - cosine)
    below = waves * quarter * math.sqrt(0.5 / math.pi)
    middle = _MIDDLE.at(x) * beyond(x, _ROOTS[0]) * beyond(x, _ROOTS[1])
    found = x.test("Less", _HIGH).where(x.test("Less", _LOW).where(below, middle, x.dtype), above, x.dtype)
    return x.test("IsInf").where(math.nan, found, x.dtype)
