"""Lowerings of inverses of matrices and of linear equations, by elimination; ONNX itself has neither."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from onnx import GraphProto

from kcompile.passes.to_onnx.call import Call, Value, dtype_of, lowers
from kcompile.passes.to_onnx.fits import wide
from kcompile.passes.to_onnx.formula import Term, term
from kcompile.passes.to_onnx.graph import Graph


@lowers("aten.linalg_inv_ex.default", "aten.linalg_inv.default", "aten.inverse.default")
def inverse(c: Call) -> tuple[str, ...]:
    """The inverse; of a singular matrix, where PyTorch raises an error, it is not finite."""
    return _inverse(c, c.x).cast(c.results[0].dtype).name, *_no_errors(c)


@lowers("aten.linalg_solve_ex.default", "aten._linalg_solve_ex.default", "aten.linalg_solve.default")
def solve(c: Call) -> tuple[str, ...]:
    """What solves the equations ``A X = B``, or ``X A = B``; the factors that PyTorch gives beside it are left out."""
    a, b = c["A"], c["B"]
    found, given = _inverse(c, a), term(c, b, wide(b.dtype))
    vector = b.rank == 1 or (b.rank == a.rank - 1 and b.shape == a.shape[:-1])
    last = Term(c, c.graph.ints(-1), torch.int64)
    given = given.do("Unsqueeze", last) if vector else given
    result = found.do("MatMul", given) if c.get("left", True) else given.do("MatMul", found)
    result = (result.do("Squeeze", last) if vector else result).cast(c.results[0].dtype)
    return (
        (result.name, *_no_errors(c)) if c.op.endswith("solve_ex.default") and len(c.results) == 2 else (result.name,)
    )


def _no_errors(c: Call) -> tuple[str, ...]:
    """The second result of ``…_ex``: 0 for each matrix."""
    if len(c.results) == 1:
        return ()
    zero = c.tensor(torch.zeros((), dtype=torch.int32), torch.int32)
    return (c.do("Expand", zero, c.sizes(c.x, 0, c.x.rank - 2)),)


def _inverse(c: Call, a: Value) -> Term:
    """By Gauss and Jordan's elimination with pivots: a Loop over the columns, for matrices of any (fixed) size.

    Rows stay where they are: the pivot of column k is the largest value of rows that have not been one, and which row
    it was is row k of a matrix of ones and zeros, that puts the rows in order at the end.
    """
    kind, size = wide(a.dtype), a.known(-1)
    rows = c.sizes(a)
    unit, blank = (Term(c, c.do("Expand", c.tensor(t, kind), rows), kind) for t in (torch.eye(size), torch.zeros(1)))
    both = c.do("Concat", term(c, a, kind).name, unit.name, axis=-1)
    free = c.do("Expand", c.tensor(torch.zeros(1), kind), c.sizes(a, 0, a.rank - 1))
    turns = c.graph.constant(size, "int64")
    given = (both, blank.name, free)
    loop = c.graph.ops(
        "Loop", turns, c.graph.constant(np.array(True)), *given, count=3, body=_body(c, a.rank, size, kind)
    )
    done, order = Term(c, loop[0], kind), Term(c, loop[1], kind)
    right = Term(c, c.do("Slice", done.name, c.graph.ints(size), c.graph.ints(2 * size), c.graph.ints(-1)), kind)
    return order.do("MatMul", right)


def _body(c: Call, rank: int, size: int, kind: torch.dtype) -> GraphProto:
    """One column k: from the rows, their order so far and those that have been pivots to the next ones."""
    inner = Graph(c.graph.weights, "column", c.graph)
    number = inner.input(inner.unique("number"), dtype_of(torch.int64), [])
    going = inner.input(inner.unique("going"), dtype_of(torch.bool), [])
    ranks = {"rows": rank, "order": rank, "used": rank - 1}
    names = [inner.input(inner.unique(name), dtype_of(kind), [None] * dims) for name, dims in ranks.items()]
    inside = replace(c, graph=inner)
    rows, order, used = (Term(inside, name, kind) for name in names)
    numbers = Term(inside, inner.ints(*range(size)), torch.int64)
    last, before = (Term(inside, inner.ints(at), torch.int64) for at in (-1, -2))
    column = rows.do("Gather", Term(inside, number, torch.int64), axis=-1)
    worth = column.do("Abs") - used * 2.0 * column.do("Abs") - used
    best = Term(inside, inside.do("ArgMax", worth.name, axis=-1, keepdims=1), torch.int64)
    pivot = best.test("Equal", numbers).cast(kind)
    row = pivot.do("Unsqueeze", before).do("MatMul", rows)
    row = row / row.do("Gather", Term(inside, number, torch.int64), axis=-1).do("Unsqueeze", last)
    changed = rows - (column - pivot).do("Unsqueeze", last) * row
    this = Term(inside, number, torch.int64).test("Equal", numbers).cast(kind)
    ordered = order + this.do("Unsqueeze", last) * pivot.do("Unsqueeze", before)
    inner.output(going, inner.unique("going_on"), dtype_of(torch.bool), [])
    for value, dims in zip((changed, ordered, used + pivot), ranks.values(), strict=True):
        inner.output(value.name, inner.unique("carried"), dtype_of(kind), [None] * dims)
    return inner.proto()
