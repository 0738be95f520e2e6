"""The table of ops with example parameters; it drives the brute-force proofs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.support.networks import Call, conv

MAP = (4, 9, 11)  # channels and sizes: odd, and not the same per axis


@dataclass(frozen=True)
class Case:
    """One op with parameters.

    Attributes:
        name: For the test's name.
        make: Builds the module (random weights), before `ready`.
        shape: (C, *sizes) of the image.
        scale: Images and patches are random numbers times ``scale`` ...
        offset: ... plus ``offset``.
        positive: They are positive: ops that are defined there alone.
        dilation: Largest distance between two taps. The region is the hull of what changes for all patches of at least
            this size; for smaller ones it may be larger, as taps can miss the patch.
        refused: Part of the reason why the op's node is dense; None if it is incremental.
    """

    name: str
    make: Callable[[], nn.Module]
    shape: tuple[int, ...] = MAP
    scale: float = 1.0
    offset: float = 0.0
    positive: bool = False
    dilation: int = 1
    refused: str | None = None


def _conv(name: str, kernel: int | tuple[int, int], padding: int | tuple[int, int] | str = 0, **options: Any) -> Case:
    dilation = options.get("dilation", 1)
    largest = dilation if isinstance(dilation, int) else max(dilation)
    return Case(f"conv {name}", lambda: nn.Conv2d(4, 3, kernel, padding=padding, **options), dilation=largest)


CONVOLUTIONS = [
    _conv("3x3", 3, 1),
    _conv("3x3 without padding", 3),
    _conv("5x3", (5, 3), (2, 1)),
    _conv("1x7", (1, 7), (0, 3)),
    _conv("without bias", 3, 1, bias=False),
    _conv("with more padding than taps", 3, (3, 4)),
    _conv("stride 2", 3, 1, stride=2),
    _conv("stride (1, 3)", 3, 1, stride=(1, 3)),
    _conv("stride larger than kernel", 2, stride=3),
    _conv("1x1 stride 2", 1, stride=2),
    _conv("even kernel", 2),
    _conv("even kernel, padded", 4, 1),
    _conv("even kernel, stride 2", (2, 4), (1, 2), stride=2),
    _conv("dilation 2", 3, 2, dilation=2),
    _conv("dilation (1, 3)", (2, 3), (0, 3), dilation=(1, 3)),
    _conv("stride 3, dilation 2", 3, 2, stride=3, dilation=2),
    _conv("stride 2, dilation 3", 2, (1, 2), stride=2, dilation=3),
    _conv("stride 2, dilation 2", 3, 2, stride=2, dilation=2),
    _conv("stride 2, dilation 4", 2, (2, 3), stride=2, dilation=4),
    _conv("same", 3, "same"),
    _conv("same, even", (4, 2), "same"),
    _conv("same, even, dilated", (2, 4), "same", dilation=(3, 2)),
    _conv("valid", (3, 2), "valid", stride=2),
    Case("conv groups", lambda: nn.Conv2d(4, 6, 3, padding=1, groups=2)),
    Case("conv depthwise", lambda: nn.Conv2d(4, 8, 3, padding=1, stride=2, groups=4)),
    Case("conv 1d", lambda: nn.Conv1d(3, 4, 3, stride=2, padding=1), shape=(3, 12)),
    Case("conv 3d", lambda: nn.Conv3d(2, 3, (3, 2, 1), (1, 2, 1), (1, 0, 1)), shape=(2, 5, 7, 4)),
]


def _max(name: str, *args: Any, **options: Any) -> Case:
    """All values are far below zero: padding with zeros would win."""
    return Case(
        f"max pool {name}", lambda: nn.MaxPool2d(*args, **options), offset=-50.0, dilation=options.get("dilation", 1)
    )


def _average(name: str, *args: Any, **options: Any) -> Case:
    """All values are far from zero: a wrong divisor or fill shows."""
    return Case(f"average pool {name}", lambda: nn.AvgPool2d(*args, **options), offset=20.0)


def _adaptive(out: Any) -> Case:
    return Case(f"adaptive average pool to {out}", lambda: nn.AdaptiveAvgPool2d(out))


POOLS = [
    _max("2", 2),
    _max("3, stride 2, padded", 3, 2, 1),
    _max("3, stride 1, padded", 3, 1, 1),
    _max("ceil", 2, ceil_mode=True),
    _max("ceil, padded", 4, 3, 1, ceil_mode=True),
    _max("stride larger than kernel", 2, 3),
    _max("dilated", 3, 1, 1, dilation=2),
    _max("rectangular", (3, 2), (2, 1), (1, 0)),
    Case("max pool 1d", lambda: nn.MaxPool1d(3, 2, 1), shape=(3, 12), offset=-50.0),
    Case("max pool 3d", lambda: nn.MaxPool3d((2, 3, 1), (1, 2, 1), (1, 1, 0)), shape=(2, 5, 7, 4), offset=-50.0),
    _average("2", 2),
    _average("3, stride 2", 3, 2),
    _average("padded", 3, 2, 1),
    _average("padded, padding not counted", 3, 2, 1, count_include_pad=False),
    _average("ceil", 2, ceil_mode=True),
    _average("ceil, padded", (4, 3), (3, 2), 1, ceil_mode=True),
    _average("ceil, padding not counted", (4, 3), (3, 2), 1, ceil_mode=True, count_include_pad=False),
    _average("divisor", 3, 2, 1, divisor_override=5),
    _average("divisor, ceil", 4, 3, 1, ceil_mode=True, divisor_override=7, count_include_pad=False),
    _average("rectangular", (1, 4), (1, 2), (0, 2)),
    Case("average pool 1d", lambda: nn.AvgPool1d(3, 2, 1), shape=(3, 12), offset=20.0),
    Case("average pool 1d, padding not counted", lambda: nn.AvgPool1d(3, 2, 1, count_include_pad=False),
         shape=(3, 12), offset=20.0, refused="divisor varies"),
    Case("average pool 3d", lambda: nn.AvgPool3d((2, 3, 1), (1, 2, 1)), shape=(2, 5, 7, 4), offset=20.0),
    _adaptive((3, 11)),
    _adaptive((9, 1)),
    _adaptive(1),
    _adaptive((4, 5)), _adaptive((2, 11)), _adaptive((12, 20)),
]  # fmt: skip

aten = torch.ops.aten


def _op(name: str, *args: Any, **options: Any) -> Case:
    """A pointwise op of ATen with further arguments."""
    overload = name if "." in name else f"{name}.default"
    target = getattr(getattr(aten, overload.split(".")[0]), overload.split(".")[1])
    return Case(f"{name} {list(args)}" if args else name, lambda: Call(lambda x: target(x, *args)), **options)


def _constant(name: str, function: Callable[[Tensor, Tensor], Tensor], *shape: int, **options: Any) -> Case:
    """A binary op with a constant of the given shape."""
    return Case(f"{name} with constant {list(shape)}", lambda: Call(function, value=torch.rand(shape) + 0.5), **options)


POINTWISE = [
    *(_op(name) for name in ("relu", "relu6", "sigmoid", "tanh", "silu", "gelu", "hardtanh", "hardswish",
                             "leaky_relu", "elu", "mish", "softplus", "abs", "neg", "square")),
    *(_op(name, positive=True) for name in ("log", "sqrt", "rsqrt", "reciprocal")),
    _op("hardsigmoid"), _op("exp", scale=0.5), _op("leaky_relu", 0.3), _op("hardtanh", 0.0, 6.0),
    _op("clamp", -0.5, 0.5), _op("clamp_min", 0.1), _op("clamp_max", 0.1),
    _op("add.Scalar", 2), _op("sub.Scalar", 2), _op("mul.Scalar", 3.0), _op("div.Scalar", 3.0),
    _op("pow.Tensor_Scalar", 3),
    *(_op(f"{name}.Tensor", 2.5) for name in ("add", "sub", "mul", "div")),
    _constant("add", torch.add, 4, 9, 11), _constant("sub", torch.sub, 1, 4, 9, 11), _constant("mul", torch.mul, 9, 11),
    _constant("div", torch.div, 4, 9, 1), _constant("add", torch.add, 11), _constant("mul", torch.mul, 4, 1, 1),
    _constant("add", torch.add, 1), _constant("maximum", torch.maximum, 4, 9, 11),
    _constant("minimum", torch.minimum, 1, 1, 11), _constant("reversed sub", lambda x, c: c - x, 1, 9, 11),
    Case("add with factor", lambda: Call(lambda x: torch.add(x, -x.abs(), alpha=0.5))),
    Case("addcmul", lambda: Call(lambda x, a, b: torch.addcmul(a, x, b, value=2.0),
                                 a=torch.randn(4, 1, 1), b=torch.randn(4, 9, 11))),
    Case("constant image", lambda: Call(lambda x, image: image - x * 2.0, image=torch.randn(1, 4, 9, 11))),
]  # fmt: skip

CHANNELS = [
    Case("slice of channels", lambda: Call(lambda x: x[:, 1:3])),
    Case("slice of channels with step", lambda: Call(lambda x: x[:, ::2])),
    Case("concat with itself", lambda: Call(lambda x: torch.cat([x, x], 1))),
    Case("concat, negative dimension", lambda: Call(lambda x: torch.cat([x, -x], -3))),
    Case("concat of rows", lambda: Call(lambda x: torch.cat([x, x], 2)), refused="another dimension"),
    Case("concat with a constant", lambda: Call(lambda x, c: torch.cat([x, c.expand(x.shape[0], -1, -1, -1)], 1),
                                                c=torch.randn(1, 2, 9, 11))),
]  # fmt: skip


def _pad(name: str, *pad: int, refused: str | None = None, **options: Any) -> Case:
    """Values are far from the constant, so that a wrong border shows."""
    return Case(f"pad {name}", lambda: Call(partial(F.pad, pad=pad, **options)), offset=9.0, refused=refused)


BORDERS = [
    _pad("all sides", 1, 2, 3, 4), _pad("columns", 2, 0), _pad("with a value", 1, 0, 0, 2, value=-3.5),
    _op("constant_pad_nd", [2, 0, 1, 1], 1.5),
    _pad("crop", -1, -2, -3, -1), _pad("crop and pad", 2, -3, -1, 2, value=1.0),
    *(_pad(mode, 2, 1, 3, 0, mode=mode) for mode in ("reflect", "replicate", "circular")),
    _pad("channels", 0, 0, 0, 0, 1, 1), _pad("channels and columns", 1, 2, 0, 0, 1, 0, value=2.0),
    Case("slice of rows", lambda: Call(lambda x: x[:, :, 1:7])),
    Case("slice of columns from the end", lambda: Call(lambda x: x[..., -7:-1])),
    Case("slice of rows with steps", lambda: Call(lambda x: x[:, :, 1::2])),
    Case("slice of columns with large steps", lambda: Call(lambda x: x[..., 2:10:4])),
    Case("factory", lambda: Call(lambda x: x * torch.arange(1, 12) + torch.ones(4, 1, 1) * 2)),
    Case("factory with batch", lambda: Call(lambda x: torch.cat([x, torch.zeros(x.shape[0], 1, 9, 11)], 1))),
]  # fmt: skip

OTHERS = [
    Case("no rule", lambda: Call(lambda x: x.cummax(2).values), refused="no spatial rule for aten.cummax.default"),
    Case("flip", lambda: Call(partial(torch.flip, dims=(3,)))),
    Case("batch norm folded", lambda: nn.Sequential(conv(4, 3, stride=2), nn.BatchNorm2d(3))),
    Case("batch norm folded, same", lambda: nn.Sequential(conv(4, 3, padding="same"), nn.BatchNorm2d(3))),
    Case("batch norm unfolded", lambda: nn.BatchNorm2d(4)),
    Case("batch norm without factors", lambda: nn.BatchNorm2d(4, affine=False)),
    Case("dropout", lambda: nn.Sequential(conv(4, 3), nn.Dropout(0.9), nn.Dropout2d(0.9))),
    Case("sum over rows", lambda: Call(lambda x: x.sum(2)), refused="reduces"),
    Case("log softmax over columns", lambda: nn.LogSoftmax(3), refused="along an axis"),
    Case("softmax over space", lambda: nn.Softmax(2), refused="along an axis"),
    Case("softmax over channels", lambda: nn.Softmax(1)),
    Case("log softmax over channels", lambda: nn.LogSoftmax(-3)),
    Case("mean over channels", lambda: Call(lambda x: x.mean(1, keepdim=True))),
    Case("sum over channels", lambda: Call(lambda x: x.sum(-3, keepdim=True))),
    Case("amax over channels", lambda: Call(lambda x: x.amax(1, keepdim=True))),
    Case("amin over channels", lambda: Call(lambda x: x.amin(1, keepdim=True))),
    Case("mean over all", lambda: Call(lambda x: x.mean((1, 2, 3), keepdim=True)), refused="reduces"),
    Case("mean without channels", lambda: Call(lambda x: x.mean(1))),
    Case("normalized rows", lambda: Call(partial(F.normalize, dim=3)), refused="reduces"),
]

OPS = [*CONVOLUTIONS, *POOLS, *POINTWISE, *CHANNELS, *BORDERS, *OTHERS]
