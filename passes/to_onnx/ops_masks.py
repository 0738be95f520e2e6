"""Lowerings of ops of each cell by itself: comparisons, truth values, bits and masks."""

from __future__ import annotations

from typing import Any

import torch

from kcompile.passes.to_onnx.call import Call, Value, lowers
from kcompile.passes.to_onnx.formula import Operand, Term, term
from kcompile.passes.to_onnx.ops_pairs import BINARY, overloads

_COMPARED = {
    "gt": "Greater", "greater": "Greater", "ge": "GreaterOrEqual", "greater_equal": "GreaterOrEqual", "lt": "Less",
    "less": "Less", "le": "LessOrEqual", "less_equal": "LessOrEqual", "eq": "Equal", "ne": "Equal",
    "not_equal": "Equal",
}  # fmt: skip


@lowers(*overloads(list(_COMPARED), BINARY))
def compare(c: Call) -> str:
    """A comparison in the type that both promote to."""
    a, b = list(c.args.values())[:2]
    dtype = torch.result_type(_probe(a), _probe(b))
    found = term(c, a, dtype).test(_COMPARED[c.op.split(".")[1]], term(c, b, dtype))
    return found.do("Not").name if c.op.split(".")[1] in ("ne", "not_equal") else found.name


def _probe(value: Any) -> Any:
    """What PyTorch promotes types by."""
    return torch.empty([1] * min(value.rank, 1), dtype=value.dtype) if isinstance(value, Value) else value


_LOGICAL = {"logical_and": "And", "logical_or": "Or", "logical_xor": "Xor"}
_BITS = {
    "__and__": "And", "__or__": "Or", "__xor__": "Xor", "bitwise_and": "And", "bitwise_or": "Or", "bitwise_xor": "Xor",
}  # fmt: skip


@lowers(*overloads(list(_LOGICAL), BINARY))
def logical(c: Call) -> str:
    """Of what is not 0."""
    a, b = (term(c, value, torch.bool) for value in c.args.values())
    return a.test(_LOGICAL[c.op.split(".")[1]], b).name


@lowers(*overloads(list(_BITS), BINARY))
def bits(c: Call) -> str:
    """Bit by bit, or of truth values."""
    kind = _BITS[c.op.split(".")[1]]
    a, b = (term(c, value) for value in c.args.values())
    return a.do(kind if c.out.dtype == torch.bool else f"Bitwise{kind}", b).name


@lowers(*overloads(("__lshift__", "__rshift__", "bitwise_left_shift", "bitwise_right_shift"), BINARY))
def shift(c: Call) -> str:
    """Times or by a power of two; ONNX shifts unsigned numbers only."""
    a, b = (term(c, value) for value in c.args.values())
    power = Term(c, c.tensor(2, c.out.dtype), c.out.dtype).do("Pow", b)
    if "l" in c.op.split(".")[1].replace("bitwise", ""):
        return (a * power).name
    return (a.cast(torch.float64) / power.cast(torch.float64)).do("Floor").cast(c.out.dtype).name


@lowers("aten.logical_not.default", "aten.bitwise_not.default")
def negation(c: Call) -> str:
    """Not."""
    if c.x.dtype == torch.bool or "logical" in c.op:
        return term(c, c.x, torch.bool).do("Not").name
    return c.do("BitwiseNot", c.x.name)


@lowers("aten.where.self", "aten.where.Scalar", "aten.where.ScalarSelf", "aten.where.ScalarOther")
def where(c: Call) -> str:
    """One of two values, by a condition."""
    condition, yes, no = c.args.values()
    return term(c, condition, torch.bool).where(_side(c, yes), _side(c, no), c.out.dtype).name


def _side(c: Call, value: Any) -> Operand:
    return term(c, value)


@lowers("aten.masked_fill.Scalar", "aten.masked_fill.Tensor")
def masked_fill(c: Call) -> str:
    """A value where a mask is true."""
    return term(c, "mask", torch.bool).where(term(c, "value"), term(c, c.x), c.out.dtype).name


@lowers("aten.copy.default", "aten.expand_as.default")
def copy(c: Call) -> str:
    """The one tensor in the other's shape."""
    first, second = list(c.args.values())[:2]
    source, like = (second, first) if "copy" in c.op else (first, second)
    return c.do("Expand", term(c, source).name, c.sizes(like))
