"""Formulas of tensors as nodes: operators on values of one type."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import torch

from kcompile.passes.to_onnx.call import Call

Operand: TypeAlias = "Term | float"

_NO_CHOICE = (torch.bool, torch.int8, torch.int16)  # ONNX has Where for these, ONNX Runtime has not


@dataclass(frozen=True)
class Term:
    """A value of some type; numbers beside it become constants of this type."""

    call: Call
    name: str
    dtype: torch.dtype

    def do(self, kind: str, *others: Operand, **attributes: Any) -> Term:
        """The result of a node, of the same type."""
        return Term(
            self.call, self.call.do(kind, self.name, *(self._name(o) for o in others), **attributes), self.dtype
        )

    def test(self, kind: str, *others: Operand) -> Term:
        """The result of a comparison."""
        return Term(self.call, self.call.do(kind, self.name, *(self._name(o) for o in others)), torch.bool)

    def where(self, yes: Operand, no: Operand, dtype: torch.dtype) -> Term:
        """One of two values, by this condition."""
        kind = torch.int32 if dtype in _NO_CHOICE else dtype
        sides = (v.cast(kind).name if isinstance(v, Term) else self.call.tensor(v, kind) for v in (yes, no))
        return Term(self.call, self.call.do("Where", self.name, *sides), kind).cast(dtype)

    def cast(self, dtype: torch.dtype) -> Term:
        """As another type."""
        return self if dtype == self.dtype else Term(self.call, self.call.cast(self.name, dtype), dtype)

    def clip(self, low: Operand | None = None, high: Operand | None = None) -> Term:
        """Not below and not above."""
        raised = self if low is None else self.do("Max", low)
        return raised if high is None else raised.do("Min", high)

    def _name(self, other: Operand) -> str:
        return other.name if isinstance(other, Term) else self.call.tensor(other, self.dtype)

    def __add__(self, other: Operand) -> Term:
        return self.do("Add", other)

    def __sub__(self, other: Operand) -> Term:
        return self.do("Sub", other)

    def __rsub__(self, other: float) -> Term:
        return Term(self.call, self._name(other), self.dtype) - self

    def __mul__(self, other: Operand) -> Term:
        return self.do("Mul", other)

    def __truediv__(self, other: Operand) -> Term:
        return self.do("Div", other)

    def __neg__(self) -> Term:
        return self.do("Neg")


def term(c: Call, name: str | Any, dtype: torch.dtype | None = None) -> Term:
    """An argument (by its name, or itself) as a value of the result's type, or of another."""
    kind = c.out.dtype if dtype is None else dtype
    value = c[name] if isinstance(name, str) else name
    return Term(c, c.tensor(value, kind), kind)
