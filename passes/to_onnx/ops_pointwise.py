"""Lowerings of ops of each cell by itself: activations and functions of one tensor."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from kcompile.passes.to_onnx.call import Call, lowers
from kcompile.passes.to_onnx.formula import Term, term

_SAME = {
    "relu": "Relu", "sigmoid": "Sigmoid", "tanh": "Tanh", "abs": "Abs", "absolute": "Abs", "neg": "Neg",
    "negative": "Neg", "sqrt": "Sqrt", "exp": "Exp", "log": "Log", "floor": "Floor", "ceil": "Ceil", "round": "Round",
    "reciprocal": "Reciprocal", "sin": "Sin", "cos": "Cos", "tan": "Tan", "asin": "Asin", "arcsin": "Asin",
    "acos": "Acos", "arccos": "Acos", "atan": "Atan", "arctan": "Atan", "sinh": "Sinh", "cosh": "Cosh",
    "asinh": "Asinh", "acosh": "Acosh", "atanh": "Atanh", "erf": "Erf", "sign": "Sign", "sgn": "Sign",
    "softsign": "Softsign", "mish": "Mish",
}  # fmt: skip


@lowers(*(f"aten.{name}.default" for name in _SAME))
def same(c: Call) -> str:
    """ONNX has the op under another name."""
    return term(c, c.x).do(_SAME[c.op.split(".")[1]]).name


def _formula(*ops: str) -> Callable[[Callable[[Call, Term], Term]], Callable[[Call, Term], Term]]:
    """Register a formula of the first argument, for ops without further tensors."""

    def register(function: Callable[[Call, Term], Term]) -> Callable[[Call, Term], Term]:
        @lowers(*(op if op.startswith("aten.") else f"aten.{op}.default" for op in ops))
        def lowered(c: Call) -> str:
            return function(c, term(c, c.x)).name

        return function

    return register


@_formula("silu")
def _silu(c: Call, x: Term) -> Term:
    return x * x.do("Sigmoid")


@_formula("gelu")
def _gelu(c: Call, x: Term) -> Term:
    if c.get("approximate", "none") == "tanh":
        inner = (x + x * x * x * 0.044715) * math.sqrt(2 / math.pi)
        return x * (inner.do("Tanh") + 1.0) * 0.5
    return x * ((x / math.sqrt(2)).do("Erf") + 1.0) * 0.5


@_formula("hardtanh")
def _hardtanh(c: Call, x: Term) -> Term:
    return x.do("Clip", float(c["min_val"]), float(c["max_val"]))


@_formula("relu6")
def _relu6(c: Call, x: Term) -> Term:
    return x.do("Clip", 0.0, 6.0)


@_formula("hardsigmoid")
def _hardsigmoid(c: Call, x: Term) -> Term:
    return x.do("HardSigmoid", alpha=1 / 6, beta=0.5)


@_formula("hardswish")
def _hardswish(c: Call, x: Term) -> Term:
    return x.do("HardSwish")


@_formula("leaky_relu")
def _leaky_relu(c: Call, x: Term) -> Term:
    return x.do("LeakyRelu", alpha=float(c["negative_slope"]))


@_formula("rrelu")
def _rrelu(c: Call, x: Term) -> Term:
    return x.do("LeakyRelu", alpha=(float(c["lower"]) + float(c["upper"])) / 2)


@_formula("elu")
def _elu(c: Call, x: Term) -> Term:
    """``scale * (max(0, x) + alpha * (exp(min(0, input_scale * x)) - 1))`` where x is not positive."""
    low = ((x.clip(high=0.0) * float(c["input_scale"])).do("Exp") - 1.0) * float(c["alpha"])
    return x.test("Greater", 0.0).where(x, low, x.dtype) * float(c["scale"])


@_formula("celu")
def _celu(c: Call, x: Term) -> Term:
    """``max(0, x) + alpha * (exp(min(0, x) / alpha) - 1)``; ONNX's own op is of float32 alone."""
    alpha = float(c["alpha"])
    return x.do("Relu") + ((x.clip(high=0.0) / alpha).do("Exp") - 1.0) * alpha


@_formula("selu")
def _selu(c: Call, x: Term) -> Term:
    return x.do("Selu")


@_formula("softplus")
def _softplus(c: Call, x: Term) -> Term:
    scaled = x * float(c["beta"])
    soft = scaled.do("Softplus") / float(c["beta"])
    return scaled.test("Greater", float(c["threshold"])).where(x, soft, x.dtype)


@_formula("log_sigmoid", "logsigmoid")
def _log_sigmoid(c: Call, x: Term) -> Term:
    return -((-x).do("Softplus"))


@_formula("hardshrink")
def _hardshrink(c: Call, x: Term) -> Term:
    return x.do("Abs").test("Greater", float(c["lambd"])).where(x, 0.0, x.dtype)


@_formula("softshrink")
def _softshrink(c: Call, x: Term) -> Term:
    return x - x.clip(-float(c["lambd"]), float(c["lambd"]))


@_formula("threshold")
def _threshold(c: Call, x: Term) -> Term:
    return x.test("Greater", float(c["threshold"])).where(x, float(c["value"]), x.dtype)


@_formula("square")
def _square(c: Call, x: Term) -> Term:
    return x * x


@_formula("rsqrt")
def _rsqrt(c: Call, x: Term) -> Term:
    return x.do("Sqrt").do("Reciprocal")


@_formula("log2", "log10")
def _log_of_base(c: Call, x: Term) -> Term:
    return x.do("Log") * (1 / math.log(2 if "log2" in c.op else 10))


@_formula("log1p")
def _log1p(c: Call, x: Term) -> Term:
    """``log(u) * x / (u - 1)`` with ``u = 1 + x``, which keeps the digits that ``log(1 + x)`` loses (Kahan)."""
    u = x + 1.0
    least = u.test("Equal", 1.0)
    divided = u.do("Log") * x / least.where(1.0, u - 1.0, x.dtype)
    return least.where(x, divided, x.dtype)


@_formula("expm1")
def _expm1(c: Call, x: Term) -> Term:
    """``2 sinh(x/2) exp(x/2)``, which keeps the digits that ``exp(x) - 1`` loses."""
    half = x * 0.5
    return half.do("Sinh") * half.do("Exp") * 2.0


@_formula("exp2")
def _exp2(c: Call, x: Term) -> Term:
    return (x * math.log(2)).do("Exp")


@_formula("trunc", "fix")
def _trunc(c: Call, x: Term) -> Term:
    return x.do("Abs").do("Floor") * x.do("Sign")


@_formula("frac")
def _frac(c: Call, x: Term) -> Term:
    return x - _trunc(c, x)


@_formula("deg2rad", "rad2deg")
def _degrees(c: Call, x: Term) -> Term:
    return x * (math.pi / 180 if "deg2rad" in c.op else 180 / math.pi)


@_formula("angle")
def _angle(c: Call, x: Term) -> Term:
    turned = x.test("Less", 0.0).where(math.pi, 0.0, x.dtype)
    return x.test("IsNaN").where(x, turned, x.dtype)


@_formula("special_entr")
def _entropy(c: Call, x: Term) -> Term:
    """``-x log x``; 0 at 0, and minus infinity below."""
    above = x.test("Greater", 0.0)
    inside = -(x * above.where(x, 1.0, x.dtype).do("Log"))
    return above.where(inside, x.test("Equal", 0.0).where(0.0, -math.inf, x.dtype), x.dtype)


@_formula("positive", "conj_physical")
def _positive(c: Call, x: Term) -> Term:
    return x


@_formula("logit")
def _logit(c: Call, x: Term) -> Term:
    eps = c.get("eps")
    inside = x if eps is None else x.clip(float(eps), 1 - float(eps))
    return (inside / (1.0 - inside)).do("Log")


@_formula("sinc")
def _sinc(c: Call, x: Term) -> Term:
    least, turned = x.test("Equal", 0.0), x * math.pi
    return least.where(1.0, turned.do("Sin") / least.where(1.0, turned, x.dtype), x.dtype)


@_formula("nan_to_num")
def _nan_to_num(c: Call, x: Term) -> Term:
    info = torch.finfo(x.dtype)
    known = x.test("IsNaN").where(float(c.get("nan", 0.0)), x, x.dtype)
    high = known.test("Equal", math.inf).where(float(c.get("posinf", info.max)), known, x.dtype)
    return high.test("Equal", -math.inf).where(float(c.get("neginf", info.min)), high, x.dtype)


@_formula("aten.round.decimals")
def _round_decimals(c: Call, x: Term) -> Term:
    factor = 10.0 ** int(c["decimals"])
    return (x * factor).do("Round") / factor


@lowers("aten._to_copy.default", "aten.to.dtype", "aten.type_as.default", "aten.clone.default",
        "aten.contiguous.default", "aten.alias.default", "aten.detach.default", "aten.lift_fresh_copy.default",
        "aten.to.dtype_layout")  # fmt: skip
def cast(c: Call) -> str:
    """A change of type, or none."""
    return term(c, c.x).name


@lowers("aten.isnan.default", "aten.isinf.default")
def is_special(c: Call) -> str:
    """True for NaN, or for infinite values."""
    return c.do("IsNaN", c.x.name) if "nan" in c.op else c.do("IsInf", _not_half(c))


def _not_half(c: Call) -> str:
    """The argument; in float32 where it is float16, which ONNX's IsInf takes from opset 20 on alone."""
    return c.tensor(c.x, torch.float32 if c.x.dtype == torch.float16 else c.x.dtype)


@lowers("aten.isposinf.default", "aten.isneginf.default")
def is_infinite(c: Call) -> str:
    """True for one of the two infinite values."""
    kind = "pos" in c.op
    return c.do("IsInf", _not_half(c), detect_positive=kind, detect_negative=not kind)


@lowers("aten.signbit.default")
def signbit(c: Call) -> str:
    """True for negative values, -0.0 among them: its reciprocal is negative."""
    x = term(c, c.x, c.x.dtype)
    shown = x.test("Equal", 0.0).where(x.do("Reciprocal"), x, x.dtype) if c.x.dtype.is_floating_point else x
    return shown.test("Less", 0.0).name


@lowers("aten.isfinite.default")
def is_finite(c: Call) -> str:
    """Neither NaN nor infinite."""
    return c.do("Not", c.do("Or", c.do("IsNaN", c.x.name), c.do("IsInf", _not_half(c))))
