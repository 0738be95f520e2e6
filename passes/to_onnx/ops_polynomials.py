"""Lowerings of orthogonal polynomials, by their recurrences (DLMF 18.9) in a Loop: degrees may be a tensor."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from onnx import GraphProto

from kcompile.passes.to_onnx.call import Call, dtype_of
from kcompile.passes.to_onnx.fits import special
from kcompile.passes.to_onnx.formula import Term
from kcompile.passes.to_onnx.graph import Graph

_OVERLOADS = ("default", "x_scalar", "n_scalar")


@dataclass(frozen=True)
class _Family:
    """A family of polynomials, p_0 = 1.

    Attributes:
        first: p_1 as (factor, addend) of x.
        next: p_(k+1) of k, x, p_k and p_(k-1).
        limit: Degree of float32 beyond which PyTorch gives NaN, if there is one; that of float64 is four times that.
    """

    first: tuple[float, float]
    next: Callable[[Term, Term, Term, Term], Term]
    limit: int | None = None


def _doubled(k: Term, x: Term, p: Term, older: Term) -> Term:
    return x * p * 2.0 - older


def _laguerre(k: Term, x: Term, p: Term, older: Term) -> Term:
    return ((k * 2.0 + 1.0 - x) * p - k * older) / (k + 1.0)


def _legendre(k: Term, x: Term, p: Term, older: Term) -> Term:
    return ((k * 2.0 + 1.0) * x * p - k * older) / (k + 1.0)


_FAMILIES = {
    "chebyshev_polynomial_t": _Family((1, 0), _doubled),
    "chebyshev_polynomial_u": _Family((2, 0), _doubled),
    "chebyshev_polynomial_v": _Family((2, -1), _doubled),
    "chebyshev_polynomial_w": _Family((2, 1), _doubled),
    "hermite_polynomial_h": _Family((2, 0), lambda k, x, p, older: (x * p - k * older) * 2.0, 128),
    "hermite_polynomial_he": _Family((1, 0), lambda k, x, p, older: x * p - k * older, 128),
    "laguerre_polynomial_l": _Family((-1, 1), _laguerre),
    "legendre_polynomial_p": _Family((1, 0), _legendre),
}
_SHIFTED = tuple(f"shifted_{name}" for name in _FAMILIES if name.startswith("chebyshev"))


@special(*_FAMILIES, *_SHIFTED, wanted=_OVERLOADS, tensors=2)
def orthogonal(c: Call, x: Term, n: Term) -> Term:
    """The polynomial of degree n (towards 0) at x; 0 where n is negative."""
    name = c.op.split(".")[1].removeprefix("special_")
    if name.startswith("shifted_"):
        x = x * 2.0 - 1.0
    family, degree = _FAMILIES[name.removeprefix("shifted_")], n.cast(torch.int64)
    shape = c.do("Shape", (x + n).name)
    begun = (Term(c, c.tensor(1.0, x.dtype), x.dtype), x * float(family.first[0]) + float(family.first[1]))
    one, first = (Term(c, c.do("Expand", value.name, shape), x.dtype) for value in begun)
    found = degree.test("Equal", 0).where(one, first, x.dtype)
    found = degree.test("Less", 0).where(0.0, found, x.dtype)
    given = (_turns(c, degree), c.graph.constant(np.array(True)), one.name, first.name, found.name)
    _, _, last = c.graph.ops("Loop", *given, count=3, body=_body(c, family, x, degree))
    result = Term(c, last, x.dtype)
    if family.limit is None:
        return result
    limit = family.limit * (4 if x.dtype == torch.float64 else 1)
    return degree.test("Greater", limit).where(math.nan, result, x.dtype)


def _turns(c: Call, degree: Term) -> str:
    """The largest degree less 1, at least 0: also of no degrees at all."""
    flat = c.do("Concat", c.reshape(degree.name, c.graph.ints(-1)), c.graph.ints(1), axis=0)
    return c.do("Sub", c.do("ReduceMax", flat, c.graph.ints(0), keepdims=0), c.graph.constant(1, "int64"))


def _body(c: Call, family: _Family, x: Term, degree: Term) -> GraphProto:
    """One step: from p_(k-1), p_k and what is found to the next ones; x and the degrees are seen from outside."""
    inner = Graph(c.graph.weights, "degree", c.graph)
    shape = [None] * c.out.rank
    number = inner.input(inner.unique("number"), dtype_of(torch.int64), [])
    going = inner.input(inner.unique("going"), dtype_of(torch.bool), [])
    given = [inner.input(inner.unique(name), dtype_of(x.dtype), shape) for name in ("older", "p", "found")]
    inside = replace(c, graph=inner)
    older, p, found = (Term(inside, name, x.dtype) for name in given)
    k = Term(inside, number, torch.int64) + 1
    newer = family.next(k.cast(x.dtype), Term(inside, x.name, x.dtype), p, older)
    asked = Term(inside, degree.name, torch.int64).test("Equal", k + 1)
    inner.output(going, inner.unique("going_on"), dtype_of(torch.bool), [])
    for value in (p, newer, asked.where(newer, found, x.dtype)):
        inner.output(value.name, inner.unique("carried"), dtype_of(x.dtype), shape)
    return inner.proto()
