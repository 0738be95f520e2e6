"""Lowerings of what two integers have in common."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from onnx import GraphProto

from kcompile.passes.to_onnx.call import Call, dtype_of, lowers
from kcompile.passes.to_onnx.formula import Term, term
from kcompile.passes.to_onnx.graph import Graph

_STEPS = 92  # Euclid needs no more for numbers of 64 bits: the worst are neighbours in Fibonacci's series


@lowers("aten.gcd.default")
def greatest(c: Call) -> str:
    """The greatest common divisor."""
    return _greatest(c).name


@lowers("aten.lcm.default")
def least(c: Call) -> str:
    """The least common multiple; 0 where both are 0."""
    divisor = _greatest(c)
    none = divisor.test("Equal", 0)
    a, b = (term(c, name) for name in ("self", "other"))
    return (a / none.where(1, divisor, c.out.dtype) * b).do("Abs").name


def _greatest(c: Call) -> Term:
    """By Euclid's algorithm in a Loop, that ends where nothing is left to divide by."""
    dtype, rank = c.out.dtype, c.out.rank
    a, b = (term(c, name) for name in ("self", "other"))
    shape = c.do("Shape", (a + b).name)
    given = [c.do("Expand", value.do("Abs").name, shape) for value in (a, b)]
    inner = Graph(c.graph.weights, "euclid", c.graph)
    found = c.graph.ops("Loop", c.graph.constant(_STEPS, "int64"), c.graph.constant(np.array(True)), *given, count=2,
                        body=_body(c, inner, dtype, rank))  # fmt: skip
    return Term(c, found[0], dtype)


def _body(c: Call, inner: Graph, dtype: torch.dtype, rank: int) -> GraphProto:
    """One step: ``(a, b)`` to ``(b, a mod b)``, where b is not 0."""
    inside = replace(c, graph=inner)
    inner.input(inner.unique("number"), dtype_of(torch.int64), [])
    going = inner.input(inner.unique("going"), dtype_of(torch.bool), [])
    a, b = (Term(inside, inner.input(inner.unique(n), dtype_of(dtype), [None] * rank), dtype) for n in ("a", "b"))
    done = b.test("Equal", 0)
    rest = a.do("Mod", done.where(1, b, dtype))
    inner.output(going, inner.unique("going_on"), dtype_of(torch.bool), [])
    for value in (done.where(a, b, dtype), done.where(b, rest, dtype)):
        inner.output(value.name, inner.unique("carried"), dtype_of(dtype), [None] * rank)
    return inner.proto()
