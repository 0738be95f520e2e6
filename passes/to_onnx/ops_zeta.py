"""Lowerings of Hurwitz' zeta function and of what is made of it."""

from __future__ import annotations

import math

from kcompile.passes.to_onnx.call import Call, lowers
from kcompile.passes.to_onnx.fits import bernoulli, parity, special, wide
from kcompile.passes.to_onnx.formula import Term, term
from kcompile.passes.to_onnx.ops_gamma import digamma
from kcompile.passes.to_onnx.ops_pairs import BINARY, overloads

_FIRST, _CORRECTIONS = 10, 9  # terms that are added up, and terms for the rest


@special("zeta", wanted=(*BINARY, "self_scalar", "other_scalar"), tensors=2)
def zeta(c: Call, s: Term, q: Term) -> Term:
    """Hurwitz' zeta function, ``Σ (q + k)^-s``; for q below 0 as the sum is, where s is an integer.

    With g in (0, 1) as far above an integer as q, the sum over q, …, g - 1 is that of 1 - g, …, -q, and its sign is
    that of (-1)^s.
    """
    above, least = q.do("Floor"), q.test("LessOrEqual", 0.0)
    part = q - above
    sign = parity(s)
    found = _zeta_above_0(s, least.where(part, q, q.dtype))
    below = found + sign * (_zeta_above_0(s, 1.0 - part) - _zeta_above_0(s, 1.0 - q))
    whole = s.test("Equal", s.do("Floor"))
    lower = part.test("Equal", 0.0).where(math.inf, whole.where(below, math.nan, q.dtype), q.dtype)
    positive = least.where(lower, found, q.dtype)
    convergent = s.test("Equal", 1.0).where(math.inf, positive, q.dtype)
    return s.test("Less", 1.0).where(math.nan, convergent, q.dtype)


def _zeta_above_0(s: Term, q: Term) -> Term:
    """Euler and Maclaurin's sum (DLMF 25.11.5 to 25.11.7): ten terms, the integral of the rest, corrections."""
    total = q.do("Pow", -s)
    for k in range(1, _FIRST):
        total = total + (q + float(k)).do("Pow", -s)
    w, power = q + float(_FIRST), s.clip(high=1e4)  # beyond, the rest is 0 all the same
    last = w.do("Pow", -power)
    total = total + last * (w / (power - 1.0) + 0.5)
    rising = last * power / w
    for k, b in enumerate(bernoulli(_CORRECTIONS), start=1):
        total = total + rising * (b / math.factorial(2 * k))
        rising = rising * (power + (2.0 * k - 1)) * (power + 2.0 * k) / (w * w)
    return total


@lowers(*overloads(("polygamma", "special_polygamma"), ("default",)))
def polygamma(c: Call) -> str:
    """``(-1)^(n+1) n! ζ(n + 1, x)`` (DLMF 25.11.12)."""
    x, n = term(c, "self", wide(c.out.dtype)), int(c["n"])
    if n == 0:
        return digamma(c, x).cast(c.out.dtype).name
    size = math.exp(math.lgamma(n + 1)) if n < 170 else math.inf
    found = zeta(c, term(c, n + 1, x.dtype), x) * (size if n % 2 else -size)
    return x.test("Equal", math.inf).where(0.0, found, x.dtype).cast(c.out.dtype).name
