"""Ops of each cell by itself: activations, arithmetic, comparisons, masks, casts, constants of every shape."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.support.networks import Call
from tests.support.op_table_case import LINE, NEVER, Case, call, op


def _constant(name: str, function: Callable[[Tensor, Tensor], Tensor], *shape: int, **options: Any) -> Case:
    """A binary op with a constant of the given shape."""
    return Case(f"{name} with constant {list(shape)}", lambda: Call(function, value=torch.rand(shape) + 0.5), **options)


def _where(mask: Tensor, x: Tensor) -> Tensor:
    return torch.where(mask, x, -x.abs())


ACTIVATIONS = [
    *(
        op(name)
        for name in (
            "relu",
            "relu6",
            "sigmoid",
            "tanh",
            "silu",
            "gelu",
            "hardtanh",
            "hardswish",
            "leaky_relu",
            "elu",
            "celu",
            "selu",
            "mish",
            "softplus",
            "hardshrink",
            "softshrink",
            "hardsigmoid",
            "log_sigmoid",
        )
    ),
    op("leaky_relu", 0.3),
    op("hardtanh", 0.0, 6.0),
    op("elu", 0.7),
    op("threshold", 0.2, -3.0),
    op("softplus", 2.0),
    call("gelu by tanh", lambda x: F.gelu(x, approximate="tanh")),
    call("softsign", F.softsign),
    call("tanhshrink", F.tanhshrink),
    call("logsigmoid", F.logsigmoid),
    call("swish by hand", lambda x: x * x.sigmoid()),
    call("in place", lambda x: F.relu_(x * 1.0)),
    call("in place twice", lambda x: (x * 2.0).add_(1.0).clamp_(0.0, 6.0).div_(6.0)),
    Case("prelu", nn.PReLU),
    Case("prelu with slopes per channel", lambda: Call(F.prelu, slopes=torch.rand(4))),
    Case("prelu 1d", lambda: Call(F.prelu, slopes=torch.rand(3)), LINE),
    Case(
        "prelu over rows",
        lambda: Call(lambda x, slopes: F.prelu(x.transpose(1, 2), slopes), slopes=torch.rand(9)),
        refused="slopes differ along an axis",
    ),
    Case("rrelu", nn.RReLU),
]

ARITHMETIC = [
    *(
        op(name)
        for name in (
            "abs",
            "neg",
            "square",
            "sin",
            "cos",
            "atan",
            "asinh",
            "erf",
            "sign",
            "floor",
            "ceil",
            "round",
            "trunc",
            "frac",
            "sgn",
            "expm1",
            "sinc",
            "erfc",
            "positive",
        )
    ),
    *(op(name, positive=True) for name in ("log", "log2", "log10", "log1p", "sqrt", "rsqrt", "reciprocal", "digamma")),
    op("exp", scale=0.5),
    op("exp2", scale=0.5),
    op("sinh", scale=0.5),
    op("nan_to_num"),
    op("nan_to_num", 1.0),
    op("clamp", -0.5, 0.5),
    op("clamp_min", 0.1),
    op("clamp_max", 0.1),
    op("clip", None, 0.4),
    op("add.Scalar", 2),
    op("sub.Scalar", 2),
    op("mul.Scalar", 3.0),
    op("div.Scalar", 3.0),
    op("rsub.Scalar", 2),
    op("pow.Tensor_Scalar", 3),
    op("remainder.Scalar", 0.7),
    op("fmod.Scalar", 0.7),
    op("true_divide.Tensor", 3.0),
    *(op(f"{name}.Tensor", 2.5) for name in ("add", "sub", "mul", "div")),
    call("pow of a number", lambda x: 2.0**x, scale=0.5),
    call("reversed division", lambda x: 2.0 / x, positive=True),
    call("floor division", lambda x: x // 0.3),
    call("division, truncated", lambda x: torch.div(x, 0.3, rounding_mode="trunc")),
    call("add with factor", lambda x: torch.add(x, -x.abs(), alpha=0.5)),
    call("lerp", lambda x: torch.lerp(x, x.square(), 0.3)),
    call("pow of two", lambda x: x.pow(x), positive=True),
    call("hypot and atan2", lambda x: torch.hypot(x, x + 1) * torch.atan2(x, x + 1)),
    call("copysign", lambda x: torch.copysign(x + 2.0, x)),
    call("logaddexp", lambda x: torch.logaddexp(x, -x)),
    call("xlogy", lambda x: torch.xlogy(x, x), positive=True),
    call("float_power", lambda x: x.float_power(2)),
    call("aliases", lambda x: x.multiply(2.0).subtract(1.0).divide(3.0).absolute().negative().arctan()),
    Case(
        "addcmul",
        lambda: Call(
            lambda x, a, b: torch.addcmul(a, x, b, value=2.0), a=torch.randn(4, 1, 1), b=torch.randn(4, 9, 11)
        ),
    ),
    Case("addcdiv", lambda: Call(lambda x, a: torch.addcdiv(x, x, a, value=2.0), a=torch.rand(4, 1, 1) + 0.5)),
]

MASKS = [
    *(
        call(f"comparison {name}", lambda x, name=name: getattr(torch, name)(x, 0.3).to(x.dtype))
        for name in ("gt", "ge", "lt", "le")
    ),
    call("comparison of two", lambda x: (x > x.square()).double() - (x.round() == x.abs().round()).double()),
    call("mask times image", lambda x: x * (x > 0)),
    call("logical ops", lambda x: ((x > 0) & ~(x > 1) | (x < -1) ^ (x < -2)).double()),
    call(
        "logical functions",
        lambda x: torch.logical_or(torch.logical_not(x > 0), torch.logical_and(x > 1, x < 2)).float(),
    ),
    call("where", lambda x: torch.where(x > 0, x, 0.1 * x)),
    call("where with numbers", lambda x: torch.where(x > 0.2, 1.0, -1.0)),
    call("where with one number", lambda x: torch.where(x > 0.2, 1.0, x)),
    Case("clamp by tensors", lambda: Call(torch.clamp, low=torch.full((4, 1, 1), -0.5), high=torch.rand(11))),
    call("maximum of two", lambda x: torch.maximum(x, -2.0 * x)),
    call("minimum of two", lambda x: torch.min(x, x.square())),
    call("fmax", lambda x: torch.fmax(x, -x)),
    call("masked_fill", lambda x: x.masked_fill(x < 0, -1.5)),
    Case(
        "masked_fill with a constant mask",
        lambda: Call(lambda x, m: x.masked_fill(m, 2.0), m=torch.rand(9, 11) < 0.5),
        dilation=NEVER,
    ),
    Case("where with a constant mask", lambda: Call(lambda x, m: _where(m, x), m=torch.rand(1, 4, 9, 11) < 0.5)),
    call("isnan", lambda x: torch.where(torch.isnan(x), torch.zeros_like(x), x)),
    call("heaviside", lambda x: torch.heaviside(x, torch.tensor(0.5, dtype=x.dtype))),
]

CASTS = [
    call("cast to float64", lambda x: x.to(torch.float64) * 2.0),
    call("double", lambda x: x.double().sin()),
    call("there and back", lambda x: (x * 100.0).to(torch.int32).to(x.dtype)),
    call("type_as", lambda x: (x * 9.0).long().type_as(x)),
    call("bits", lambda x: ((x * 9).int() & 6).double() + ((x * 9).int() << 2).double()),
    call("full_like", lambda x: torch.full_like(x, 2.0) * x),
    call("new_ones", lambda x: x.new_ones(9, 11) + x),
    call("zeros_like joined", lambda x: torch.cat([x, torch.zeros_like(x)], 1)),
]

CONSTANTS = [
    _constant("add", torch.add, 4, 9, 11),
    _constant("sub", torch.sub, 1, 4, 9, 11),
    _constant("mul", torch.mul, 9, 11),
    _constant("div", torch.div, 4, 9, 1),
    _constant("add", torch.add, 11),
    _constant("mul", torch.mul, 4, 1, 1),
    _constant("add", torch.add, 1),
    _constant("maximum", torch.maximum, 4, 9, 11),
    _constant("pow", torch.pow, 4, 1, 1, positive=True),
    _constant("minimum", torch.minimum, 1, 1, 11),
    _constant("reversed sub", lambda x, c: c - x, 1, 9, 11),
    _constant("outer mul", lambda x, c: x[:, :1] * c, 4, 1, 1),
    _constant("without dimensions", torch.mul),
    Case("constant image", lambda: Call(lambda x, image: image - x * 2.0, image=torch.randn(1, 4, 9, 11))),
    Case(
        "coordinates",
        lambda: Call(lambda x, c: torch.cat([x, c.expand(x.shape[0], -1, -1, -1)], 1), c=torch.randn(1, 2, 9, 11)),
    ),
    call("one row over the map", lambda x: x + x[:, :, :1, :].abs(), refused=None),
]

POINTWISE = [*ACTIVATIONS, *ARITHMETIC, *MASKS, *CASTS, *CONSTANTS]
