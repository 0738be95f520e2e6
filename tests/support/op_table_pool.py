"""Pooling, adaptive pooling, and norms over neighbouring channels."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn import functional as F

from tests.support.op_table_case import EVEN, LINE, VOLUME, Case, call


def _max(name: str, *args: Any, **options: Any) -> Case:
    """All values are far below zero: padding with zeros would win."""
    return Case(
        f"max pool {name}", lambda: nn.MaxPool2d(*args, **options), offset=-50.0, dilation=options.get("dilation", 1)
    )


def _average(name: str, *args: Any, **options: Any) -> Case:
    """All values are far from zero: a wrong divisor or fill shows."""
    return Case(f"average pool {name}", lambda: nn.AvgPool2d(*args, **options), offset=20.0)


def _adaptive(out: Any, shape: tuple[int, ...] = (4, 9, 11)) -> Case:
    kind = {2: nn.AdaptiveAvgPool1d, 3: nn.AdaptiveAvgPool2d, 4: nn.AdaptiveAvgPool3d}[len(shape)]
    return Case(f"adaptive average pool {list(shape[1:])} to {out}", lambda: kind(out), shape)


POOLS = [
    _max("2", 2), _max("3, stride 2, padded", 3, 2, 1), _max("3, stride 1, padded", 3, 1, 1),
    _max("ceil", 2, ceil_mode=True), _max("ceil, padded", 4, 3, 1, ceil_mode=True),
    _max("stride larger than kernel", 2, 3), _max("dilated", 3, 1, 1, dilation=2),
    _max("rectangular", (3, 2), (2, 1), (1, 0)),
    Case("max pool 1d", lambda: nn.MaxPool1d(3, 2, 1), LINE, offset=-50.0),
    Case("max pool 3d", lambda: nn.MaxPool3d((2, 3, 1), (1, 2, 1), (1, 1, 0)), VOLUME, offset=-50.0),
    _average("2", 2), _average("3, stride 2", 3, 2), _average("padded", 3, 2, 1),
    _average("padded, padding not counted", 3, 2, 1, count_include_pad=False),
    _average("ceil", 2, ceil_mode=True), _average("ceil, padded", (4, 3), (3, 2), 1, ceil_mode=True),
    _average("ceil, padding not counted", (4, 3), (3, 2), 1, ceil_mode=True, count_include_pad=False),
    _average("divisor", 3, 2, 1, divisor_override=5),
    _average("divisor, ceil", 4, 3, 1, ceil_mode=True, divisor_override=7, count_include_pad=False),
    _average("rectangular", (1, 4), (1, 2), (0, 2)),
    Case("average pool 1d", lambda: nn.AvgPool1d(3, 2, 1), LINE, offset=20.0),
    Case("average pool 1d, padding not counted", lambda: nn.AvgPool1d(3, 2, 1, count_include_pad=False),
         LINE, offset=20.0, refused="divisor varies"),
    Case("average pool 3d", lambda: nn.AvgPool3d((2, 3, 1), (1, 2, 1)), VOLUME, offset=20.0),
    Case("average pool 3d, padded", lambda: nn.AvgPool3d((2, 3, 1), (1, 2, 1), (1, 1, 0)), VOLUME, offset=20.0),
    _adaptive((3, 11)), _adaptive((9, 1)), _adaptive(1), _adaptive((4, 5)), _adaptive((2, 11)), _adaptive((12, 20)),
    _adaptive((None, 4)), _adaptive((9, 11)),
    _adaptive(4, LINE), _adaptive(5, LINE), _adaptive(12, LINE), _adaptive(1, LINE),
    _adaptive((5, 1, 2), VOLUME), _adaptive((3, 4, 3), VOLUME), _adaptive((5, 7, 4), VOLUME), _adaptive(1, VOLUME),
    Case("adaptive max pool, equal windows", lambda: nn.AdaptiveMaxPool2d((4, 3)), EVEN),
    Case("adaptive max pool to 1", lambda: nn.AdaptiveMaxPool2d(1)),
    Case("adaptive max pool, unequal windows", lambda: nn.AdaptiveMaxPool2d((4, 5)),
         refused="it follows adaptive_max_pool2d"),
    Case("adaptive max pool 1d", lambda: nn.AdaptiveMaxPool1d(5), LINE, refused="it follows adaptive_max_pool1d"),
    Case("local response norm", lambda: nn.LocalResponseNorm(3, alpha=0.5)),
    Case("local response norm, even size", lambda: nn.LocalResponseNorm(2, alpha=0.5, k=2.0)),
    Case("local response norm 1d", lambda: nn.LocalResponseNorm(3, alpha=0.5), LINE),
    Case("local response norm 3d", lambda: nn.LocalResponseNorm(2, alpha=0.5), VOLUME,
         refused="positions into features"),
    Case("power pool", lambda: nn.LPPool2d(2, 3, 2), positive=True),
    call("max pool over channels", lambda x: F.max_pool3d(x.unsqueeze(1), (2, 1, 1), (2, 1, 1)).squeeze(1)),
    call("max pool over channels and space", lambda x: F.max_pool3d(x.unsqueeze(1), 3, 1, 1).squeeze(1)),
    call("max pool over channels, ceil", refused="pools channels",
         function=lambda x: F.max_pool3d(x.unsqueeze(1), (3, 1, 1), (3, 1, 1), ceil_mode=True).squeeze(1)),
]  # fmt: skip
