"""Interpolation, pixel shuffles, flips and rolls."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.support.networks import Call
from tests.support.op_table_case import EVEN, LINE, MAP, NEVER, VOLUME, Case, call, op


def _resize(mode: str, shape: tuple[int, ...] = MAP, refused: str | None = None, **options: Any) -> Case:
    """Smooth modes read cells at factor 0 too: NaN comes through, no other change does, and the region holds both."""
    dilation = 1 if mode in ("nearest", "nearest-exact", "area") else NEVER
    given = ", ".join(f"{key} {value}" for key, value in options.items())
    return Case(
        f"interpolate {mode} {len(shape) - 1}d, {given}",
        lambda: Call(partial(F.interpolate, mode=mode, **options)),
        shape,
        dilation=dilation,
        refused=refused,
    )


def _smooth(mode: str) -> list[Case]:
    """Sizes and factors, up and down, whole and not, corners aligned and not."""
    return [
        _resize(mode, scale_factor=2),
        _resize(mode, scale_factor=2, align_corners=True),
        _resize(mode, scale_factor=(1.7, 0.6)),
        _resize(mode, scale_factor=(1.7, 0.6), recompute_scale_factor=True),
        _resize(mode, size=(13, 7)),
        _resize(mode, size=(13, 7), align_corners=True),
        _resize(mode, size=(9, 20)),
        _resize(mode, size=(1, 1), align_corners=True),
    ]


def _space_to_depth(x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    return x.view(n, c, h // 2, 2, w // 2, 2).permute(0, 3, 5, 1, 2, 4).reshape(n, 4 * c, h // 2, w // 2)


def _depth_to_space(x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    return x.view(n, 2, 2, c // 4, h, w).permute(0, 3, 4, 1, 5, 2).reshape(n, c // 4, h * 2, w * 2)


def _focus(x: Tensor) -> Tensor:
    """As YOLOv5's first layer."""
    return torch.cat([x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]], 1)


def _patch_merging(x: Tensor) -> Tensor:
    """As Swin's, in NHWC."""
    n, c, h, w = x.shape
    y = x.permute(0, 2, 3, 1).reshape(n, h // 2, 2, w // 2, 2, c).permute(0, 1, 3, 4, 2, 5).flatten(3)
    return y.permute(0, 3, 1, 2)


RESIZES = [
    *(
        _resize(mode, **given)
        for mode in ("nearest", "nearest-exact")
        for given in (
            {"scale_factor": 2},
            {"scale_factor": (3, 1)},
            {"scale_factor": (1.7, 0.6)},
            {"scale_factor": 0.5},
            {"size": (13, 7)},
            {"size": (9, 20)},
            {"size": (1, 2)},
            {"scale_factor": 1.3, "recompute_scale_factor": True},
        )
    ),
    *_smooth("bilinear"),
    *_smooth("bicubic"),
    *(_resize(mode, size=(4, 17), antialias=True, refused="antialiased") for mode in ("bilinear", "bicubic")),
    _resize("bilinear", size=(9, 11)),
    _resize("nearest", size=(9, 11)),
    _resize("area", size=(4, 5)),
    _resize("area", size=(3, 11)),
    _resize("area", scale_factor=1.5),
    *(
        _resize(mode, LINE, **given)
        for mode in ("nearest", "nearest-exact")
        for given in ({"scale_factor": 2.5}, {"size": 7})
    ),
    _resize("linear", LINE, scale_factor=2.5),
    _resize("linear", LINE, size=7, align_corners=True),
    _resize("area", LINE, size=5),
    _resize("area", VOLUME, size=(3, 4, 4)),
    *(
        _resize(mode, VOLUME, **given)
        for mode in ("nearest", "nearest-exact", "trilinear")
        for given in ({"scale_factor": (2, 1, 0.7)}, {"size": (3, 9, 6)})
    ),
    _resize("trilinear", VOLUME, scale_factor=1.5, align_corners=True),
    Case(
        "upsample behind conv",
        lambda: nn.Sequential(nn.Conv2d(4, 3, 3, 2, 1), nn.Upsample(scale_factor=2)),
        EVEN,
        dilation=2,
    ),
    Case(
        "bilinear upsample, conv",
        lambda: nn.Sequential(nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(4, 3, 3, padding=1)),
    ),
]

DEFAULT_OVERLOADS = [
    *(op(f"{kind}1d", [7], shape=LINE) for kind in ("upsample_nearest", "_upsample_nearest_exact")),
    *(op(f"{kind}2d", [13, 7]) for kind in ("upsample_nearest", "_upsample_nearest_exact")),
    *(op(f"{kind}3d", [3, 9, 6], shape=VOLUME) for kind in ("upsample_nearest", "_upsample_nearest_exact")),
    op("upsample_nearest2d", [18, 6], 2.0, 0.6),
    op("upsample_linear1d", [7], False, shape=LINE),
    op("upsample_bilinear2d", [13, 7], False, refused="no spatial rule"),  # export takes these two apart
    op("upsample_bicubic2d", [13, 7], False, 1.5, 0.7, refused="no spatial rule"),
    op("upsample_trilinear3d", [3, 9, 6], False, shape=VOLUME, dilation=NEVER),
    op("_upsample_bilinear2d_aa", [4, 17], False, refused="antialiased"),
    op("_upsample_bicubic2d_aa", [4, 17], False, refused="antialiased"),
]

SHUFFLES = [
    Case("pixel shuffle", lambda: nn.PixelShuffle(2), (8, 4, 5)),
    Case("pixel shuffle 3", lambda: nn.PixelShuffle(3), (9, 4, 4)),
    Case("pixel unshuffle", lambda: nn.PixelUnshuffle(2), EVEN),
    Case("pixel unshuffle 4", lambda: nn.PixelUnshuffle(4), EVEN),
    Case("pixel shuffle and back", lambda: nn.Sequential(nn.PixelShuffle(2), nn.PixelUnshuffle(2)), (8, 4, 5)),
    Case(
        "pixel unshuffle and back",
        lambda: nn.Sequential(nn.PixelUnshuffle(2), nn.PixelShuffle(2)),
        EVEN,
        dilation=NEVER,
    ),
    Case("pixel shuffle, conv", lambda: nn.Sequential(nn.PixelShuffle(2), nn.Conv2d(2, 3, 3, padding=1)), (8, 4, 5)),
    Case(
        "conv, pixel shuffle, relu",
        lambda: nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.PixelShuffle(2), nn.LeakyReLU()),
        (4, 5, 6),
    ),
    call("space to depth", _space_to_depth, EVEN),
    call("depth to space", _depth_to_space, (8, 4, 5)),
    call("focus", _focus, EVEN),
    call("patch merging", _patch_merging, EVEN),
    Case(
        "space to depth, conv, depth to space",
        lambda: nn.Sequential(Call(_space_to_depth), nn.Conv2d(16, 8, 3, padding=1), Call(_depth_to_space)),
        EVEN,
        dilation=NEVER,
    ),
]

MOVES = [
    call("flip columns", lambda x: x.flip(3)),
    call("flip rows and columns", lambda x: x.flip((-2, -1))),
    call("flip channels", lambda x: x.flip(1)),
    call("flip channels and rows", lambda x: x.flip((1, 2)), refused="space and other dimensions"),
    call("flip 1d", lambda x: x.flip(2), LINE),
    call("flip 3d", lambda x: x.flip((2, 4)), VOLUME),
    call("roll rows", lambda x: x.roll(3, 2)),
    call("roll both ways", lambda x: x.roll((-2, 4), (2, 3))),
    call("roll channels", lambda x: x.roll(1, 1)),
    call("roll channels and rows", lambda x: x.roll((1, 2), (1, 2)), refused="space and other dimensions"),
    call("roll twice along one axis", lambda x: x.roll((1, 2), (2, 2))),
    call("rot90", lambda x: x.rot90(1, (2, 3)).transpose(2, 3), refused="no spatial rule"),
]
