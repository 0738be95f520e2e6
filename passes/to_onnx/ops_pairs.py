"""Lowerings of ops of each cell by itself: arithmetic and functions of several tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

from kcompile.passes.to_onnx.call import Call, lowers
from kcompile.passes.to_onnx.formula import Term, term
from kcompile.passes.to_onnx.ops_pointwise import _trunc


def overloads(names: Sequence[str], wanted: Sequence[str]) -> list[str]:
    """The overloads of ops that exist."""
    found = []
    for name in names:
        packet = getattr(torch.ops.aten, name, None)
        found += [f"aten.{name}.{o}" for o in wanted if packet is not None and o in packet.overloads()]
    return found


BINARY = ("Tensor", "Scalar", "default", "Scalar_Tensor", "Tensor_Scalar", "Tensor_Tensor", "Scalar_Self", "other",
           "Scalar_Other", "Self_Scalar")  # fmt: skip


def _pair(*names: str) -> Callable[[Callable[[Call, Term, Term], Term]], Callable[[Call, Term, Term], Term]]:
    """Register a formula of the first two arguments, tensors or numbers, in the result's type."""

    def register(function: Callable[[Call, Term, Term], Term]) -> Callable[[Call, Term, Term], Term]:
        @lowers(*overloads(names, BINARY))
        def lowered(c: Call) -> str:
            a, b = list(c.args.values())[:2]
            return function(c, term(c, a), term(c, b)).name

        return function

    return register


@_pair("add")
def _add(c: Call, a: Term, b: Term) -> Term:
    return a.do("Or", b) if a.dtype == torch.bool else a + _scaled(c, b)


@_pair("sub", "subtract")
def _sub(c: Call, a: Term, b: Term) -> Term:
    return a - _scaled(c, b)


@_pair("rsub")
def _rsub(c: Call, a: Term, b: Term) -> Term:
    return b - _scaled(c, a)


def _scaled(c: Call, value: Term) -> Term:
    factor = c.get("alpha", 1)
    return value if factor == 1 else value * factor


@_pair("mul", "multiply")
def _mul(c: Call, a: Term, b: Term) -> Term:
    return a.do("And", b) if a.dtype == torch.bool else a * b


@_pair("div", "divide", "true_divide")
def _div(c: Call, a: Term, b: Term) -> Term:
    return a / b


@lowers(*overloads(("div", "divide"), ("Tensor_mode", "Scalar_mode")))
def divide_rounded(c: Call) -> str:
    """A quotient, rounded down or towards 0."""
    a, b = (term(c, value) for value in list(c.args.values())[:2])
    mode = c.get("rounding_mode")
    return (_floor_div(c, a, b) if mode == "floor" else _trunc(c, a / b) if mode == "trunc" else a / b).name


@_pair("floor_divide")
def _floor_div(c: Call, a: Term, b: Term) -> Term:
    """By the remainder, as PyTorch does: ``(a - a mod b) / b``, to the nearest integer."""
    return ((a - _remainder(c, a, b)) / b).do("Round")


@_pair("remainder")
def _remainder(c: Call, a: Term, b: Term) -> Term:
    """Has the divisor's sign."""
    left = a.do("Mod", b, fmod=1)
    other = Term(c, c.do("And", left.test("Equal", 0.0).do("Not").name, (left * b).test("Less", 0.0).name), torch.bool)
    return other.where(left + b, left, a.dtype)


@_pair("fmod")
def _fmod(c: Call, a: Term, b: Term) -> Term:
    return a.do("Mod", b, fmod=1)


@_pair("pow", "float_power")
def _pow(c: Call, a: Term, b: Term) -> Term:
    exponent = list(c.args.values())[1]
    if exponent == 2:
        return a * a
    return a.do("Sqrt") if exponent == 0.5 else a.do("Pow", b)


@_pair("maximum", "fmax", "max", "clamp_min")
def _maximum(c: Call, a: Term, b: Term) -> Term:
    return a.do("Max", b)


@_pair("minimum", "fmin", "min", "clamp_max")
def _minimum(c: Call, a: Term, b: Term) -> Term:
    return a.do("Min", b)


@_pair("atan2", "arctan2")
def _atan2(c: Call, a: Term, b: Term) -> Term:
    """The angle of (b, a), by quadrants; ONNX has only the arc tangent of a quotient."""
    level = b.test("Equal", 0.0)
    plain = (a / level.where(1.0, b, a.dtype)).do("Atan")
    half = a.test("Less", 0.0).where(-math.pi, math.pi, a.dtype)
    turned = b.test("Less", 0.0).where(plain + half, plain, a.dtype)
    return level.where(a.do("Sign") * (math.pi / 2), turned, a.dtype)


@_pair("hypot")
def _hypot(c: Call, a: Term, b: Term) -> Term:
    return (a * a + b * b).do("Sqrt")


@_pair("copysign")
def _copysign(c: Call, a: Term, b: Term) -> Term:
    """The sign of a zero counts too: it shows in its reciprocal."""
    negative = b.test("Equal", 0.0).where(b.do("Reciprocal"), b, a.dtype).test("Less", 0.0)
    size = a.do("Abs")
    return negative.where(-size, size, a.dtype)


@_pair("logaddexp")
def _logaddexp(c: Call, a: Term, b: Term) -> Term:
    """``max(a, b) + log(1 + exp(-|a - b|))``."""
    return a.do("Max", b) + (-((a - b).do("Abs"))).do("Softplus")


@_pair("xlogy", "special_xlogy")
def _xlogy(c: Call, a: Term, b: Term) -> Term:
    least = a.test("Equal", 0.0)
    return least.where(0.0, a * least.where(1.0, b, a.dtype).do("Log"), a.dtype)


@_pair("logaddexp2")
def _logaddexp2(c: Call, a: Term, b: Term) -> Term:
    return _logaddexp(c, a * math.log(2), b * math.log(2)) * (1 / math.log(2))


@_pair("ldexp")
def _ldexp(c: Call, a: Term, b: Term) -> Term:
    return a * (b * math.log(2)).do("Exp")


@lowers(*overloads(("special_xlog1py",), ("default", "other_scalar", "self_scalar")))
def xlog1py(c: Call) -> str:
    """``a log(1 + b)``; 0 where a is 0."""
    a, b = (term(c, value) for value in c.args.values())
    return _xlogy(c, a, b + 1.0).name


@_pair("sigmoid_backward", "tanh_backward")
def _gate_gradient(c: Call, a: Term, b: Term) -> Term:
    return a * b * (1.0 - b) if "sigmoid" in c.op else a * (1.0 - b * b)


@lowers("aten.silu_backward.default")
def silu_backward(c: Call) -> str:
    """``grad * s * (1 + x (1 - s))``, with s the sigmoid of x."""
    grad, x = (term(c, value) for value in c.args.values())
    gate = x.do("Sigmoid")
    return (grad * gate * (x * (1.0 - gate) + 1.0)).name


@_pair("gelu_backward")
def _gelu_gradient(c: Call, grad: Term, x: Term) -> Term:
    """``grad * (Φ(x) + x φ(x))``; of the approximation by tanh its own derivative."""
    if c.get("approximate", "none") == "tanh":
        factor = math.sqrt(2 / math.pi)
        inner = ((x * x * x * 0.044715 + x) * factor).do("Tanh")
        slope = (1.0 - inner * inner) * (x * x * (3 * 0.044715) + 1.0) * factor
        return grad * ((inner + 1.0) * 0.5 + x * slope * 0.5)
    below = ((x * math.sqrt(0.5)).do("Erf") + 1.0) * 0.5
    return grad * (below + x * (x * x * -0.5).do("Exp") * (1 / math.sqrt(2 * math.pi)))


@_pair("logit_backward")
def _logit_gradient(c: Call, grad: Term, x: Term) -> Term:
    """``grad / (x (1 - x))`` inside; 0 where eps limited x, NaN outside if there is no eps."""
    eps, found = c.get("eps"), grad / (x * (1.0 - x))
    low = 0.0 if eps is None else float(eps)
    outside = x.test("Less", low).do("Or", x.test("Greater", 1.0 - low))
    return outside.where(math.nan if eps is None else 0.0, found, x.dtype)


@lowers("aten.native_dropout_backward.default")
def dropout_backward(c: Call) -> str:
    """The gradient where the mask is true, scaled."""
    return (term(c, "grad_output") * term(c, "mask") * float(c["scale"])).name


@lowers("aten.threshold_backward.default")
def threshold_backward(c: Call) -> str:
    """The gradient where the input is above the threshold."""
    grad, x = (term(c, value) for value in list(c.args.values())[:2])
    return x.test("Greater", float(c["threshold"])).where(grad, 0.0, grad.dtype).name


@_pair("heaviside")
def _heaviside(c: Call, a: Term, b: Term) -> Term:
    return a.test("Equal", 0.0).where(b, a.test("Greater", 0.0).where(1.0, 0.0, a.dtype), a.dtype)


@lowers("aten.clamp.default", "aten.clip.default", "aten.clamp.Tensor", "aten.clip.Tensor")
def clamp(c: Call) -> str:
    """Not below and not above."""
    bounds = [None if c.get(name) is None else term(c, name) for name in ("min", "max")]
    return term(c, c.x).clip(*bounds).name


@lowers("aten.addcmul.default", "aten.addcdiv.default")
def addc(c: Call) -> str:
    """``x + value * a * b``, or ``a / b``."""
    a, b = term(c, "tensor1"), term(c, "tensor2")
    joined = a * b if "mul" in c.op else a / b
    factor = c.get("value", 1)
    return (term(c, c.x) + (joined if factor == 1 else joined * factor)).name


@lowers("aten.lerp.Scalar", "aten.lerp.Tensor")
def lerp(c: Call) -> str:
    """``a + weight * (b - a)``."""
    a, b = term(c, c.x), term(c, "end")
    return (a + (b - a) * term(c, "weight")).name


@lowers("aten.prelu.default")
def prelu(c: Call) -> str:
    """A slope for each cell of dimension 1, or one for all."""
    slopes = c["weight"]
    shape = c.graph.ints(-1, *[1] * (c.x.rank - 2)) if slopes.known(0) > 1 else c.graph.ints(1)
    return c.do("PRelu", c.x.name, c.reshape(slopes.name, shape))
