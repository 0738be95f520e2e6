"""Padding, and slices of the map."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.support.networks import Call
from tests.support.op_table_case import LINE, MAP, VOLUME, Case, call, op


def _pad(name: str, *pad: int, shape: tuple[int, ...] = MAP, refused: str | None = None, **options: Any) -> Case:
    """Values are far from the constant, so that a wrong border shows."""
    return Case(f"pad {name}", lambda: Call(partial(F.pad, pad=pad, **options)), shape, offset=9.0, refused=refused)


def _write(x: Tensor) -> Tensor:
    y = x * 1.0
    y[:, :, 2:5] += 1.0
    return y


BORDERS = [
    _pad("all sides", 1, 2, 3, 4), _pad("columns", 2, 0), _pad("with a value", 1, 0, 0, 2, value=-3.5),
    op("constant_pad_nd", [2, 0, 1, 1], 1.5),
    _pad("crop", -1, -2, -3, -1), _pad("crop and pad", 2, -3, -1, 2, value=1.0),
    *(_pad(mode, 2, 1, 3, 0, mode=mode) for mode in ("reflect", "replicate", "circular")),
    *(_pad(f"{mode} columns", 3, 3, 0, 0, mode=mode) for mode in ("reflect", "replicate", "circular")),
    *(_pad(f"{mode} 1d", 2, 4, shape=LINE, mode=mode) for mode in ("reflect", "replicate", "circular")),
    *(_pad(f"{mode} 3d", 1, 2, 0, 3, 2, 1, shape=VOLUME, mode=mode) for mode in ("reflect", "replicate", "circular")),
    op("reflection_pad1d", [2, 1], shape=LINE), op("replication_pad1d", [2, 1], shape=LINE),
    op("reflection_pad2d", [2, 1, 0, 3]), op("replication_pad2d", [2, 1, 0, 3]),
    op("reflection_pad3d", [1, 2, 0, 3, 2, 1], shape=VOLUME), op("replication_pad3d", [1, 2, 0, 3, 2, 1], shape=VOLUME),
    _pad("replicate, crop", -2, 3, 1, -1, mode="replicate"),
    _pad("reflect, crop", -2, 3, 1, -1, mode="reflect"),
    _pad("circular, crop", -2, 3, 1, -1, mode="circular"),
    _pad("1d", 2, -3, shape=LINE, value=2.0), _pad("3d", 1, 0, -2, 1, 0, 2, shape=VOLUME),
    _pad("channels", 0, 0, 0, 0, 1, 1), _pad("channels and columns", 1, 2, 0, 0, 1, 0, value=2.0),
    _pad("fewer channels", 0, 0, 0, 0, -1, -2),
    Case("pad with -inf, max pool", lambda: nn.Sequential(
        Call(partial(F.pad, pad=(1, 0, 2, 1), value=float("-inf"))), nn.MaxPool2d(3, 2)), offset=-50.0),
    Case("pad, then pad otherwise", lambda: nn.Sequential(
        nn.ZeroPad2d((1, 0, 0, 2)), nn.ConstantPad2d(1, 3.0), nn.ReflectionPad2d((0, 2, 1, 0))), offset=9.0),
    *(Case(f"{kind.__name__}, conv", lambda kind=kind: nn.Sequential(kind(1), nn.Conv2d(4, 3, 3)))  # type: ignore[misc]
      for kind in (nn.ZeroPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d, nn.CircularPad2d)),
    call("slice of rows", lambda x: x[:, :, 1:7]), call("slice of columns from the end", lambda x: x[..., -7:-1]),
    call("slice of rows with steps", lambda x: x[:, :, 1::2]),
    call("slice of columns with large steps", lambda x: x[..., 2:10:4]),
    call("narrow", lambda x: x.narrow(3, 2, 6)),
    call("row", lambda x: x[:, :, 4], refused="an axis of the map disappears"),
    call("write over rows", _write, refused="writes over a part of the map"),
    call("rows in a list", lambda x: x[:, :, [1, 4, 2]], refused="picks cells by index"),
    call("halves of rows", lambda x: x.chunk(2, 2)[0]),
    call("factory", lambda x: x * torch.arange(1, 12) + torch.ones(4, 1, 1) * 2),
    call("factory with batch", lambda x: torch.cat([x, torch.zeros(x.shape[0], 1, 9, 11)], 1)),
]  # fmt: skip
