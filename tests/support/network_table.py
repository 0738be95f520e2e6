"""Small networks with several layers: branches with different regions, heads, gates, and what had bugs once."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.support.networks import (
    Branches,
    Call,
    DenseBlock,
    Gated,
    Residual,
    add,
    concat,
    conv,
    conv_bn_relu,
    inception,
    pooled_head,
    vgg,
)  # fmt: skip
from tests.support.op_table import Case


def multiply(a: Tensor, b: Tensor) -> Tensor:
    return a * b


def _both(*parts: Tensor) -> tuple[Tensor, ...]:
    return parts


class Joint(nn.Module):
    """A hull whose parts can be empty on one axis alone, and a layer whose region is the product of the same hulls.

    Per axis, all patches give both the same interval; yet the boxes differ. They were taken for one region once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.tall = conv(4, 3, (7, 1), stride=2)
        self.square = conv(4, 3, 3, stride=2)
        self.large = nn.Sequential(conv(4, 3, (7, 3), stride=2), nn.Tanh(), conv(3, 3))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        hull = self.tall(x) + self.square(x)
        return hull, self.large(x), F.silu(hull)


class Tokens(nn.Module):
    """A class token, expanded to the batch before anything else; attention-like softmax over all tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(4, 6, 3, stride=3)
        self.token = nn.Parameter(torch.randn(1, 1, 6))
        self.mix = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        token = self.token.expand(x.shape[0], -1, -1)
        tokens = torch.cat([token, self.embed(x).flatten(2).transpose(1, 2)], 1)
        rows = self.mix(tokens).reshape(x.shape[0] * tokens.shape[1], 4)
        return torch.softmax(rows.reshape(x.shape[0], -1), 1)


def _reads_twice(fill_first: bool) -> nn.Module:
    """One tensor read with the fills 0 and -inf and with different paddings."""
    branches = [nn.MaxPool2d(5, 2, 2), conv(3, 3, 5, stride=2), nn.AvgPool2d(3, 2, 1), conv(3, 3, 1, stride=2)]
    return nn.Sequential(conv(4, 3), Branches(concat, *(branches if fill_first else branches[::-1])))


EXACT = [
    Case("residual", lambda: Residual(4, 5)),
    Case("residual, stride 1", lambda: Residual(4, 5, stride=1)),
    Case("inception", lambda: inception(4)),
    Case("dense block", lambda: DenseBlock(4)),
    Case("add of branches", lambda: Branches(add, conv(4, 3), conv(4, 3, (1, 5)))),
    Case("mul of branches", lambda: Branches(multiply, conv(4, 3, (5, 1)), conv(4, 3))),
    Case("deep", lambda: nn.Sequential(*(conv_bn_relu(4, 4) for _ in range(3)), conv(4, 3, stride=2))),
    Case("gate", lambda: Gated(4)),
    Case("maps of one cell", lambda: nn.Sequential(conv(4, 3, (9, 11), padding=0), conv(3, 3), conv(3, 2, 1))),
    Case("one cell over the map", lambda: Branches(multiply, conv(4, 3), conv(4, 3, (9, 11), padding=0))),
    Case("one row over the map", lambda: Branches(add, conv(4, 4, 1), nn.AvgPool2d((9, 1)))),
]  # fmt: skip

OTHERS = [
    Case("max pools", lambda: nn.Sequential(nn.MaxPool2d(3, 2, 1), conv(4, 4), nn.MaxPool2d(2, ceil_mode=True)),
         offset=-50.0),
    Case("joint region", Joint),
    Case("tokens", Tokens),
    Case("fills, max pool first", lambda: _reads_twice(True), offset=-50.0),
    Case("fills, max pool last", lambda: _reads_twice(False), offset=-50.0),
    Case("vgg", lambda: vgg(4, (9, 11))),
    Case("flatten and linear", lambda: nn.Sequential(conv(4, 3), nn.Flatten(), nn.Linear(3 * 99, 5))),
    Case("global pool", lambda: pooled_head(Residual(4, 5), 5)),
    Case("mean over the map", lambda: Call(lambda x: x.square().mean((2, 3)))),
    Case("several outputs",
         lambda: Branches(_both, conv(4, 3), Residual(4, 2), nn.Sequential(conv(4, 2), nn.Flatten()))),
    Case("outputs twice", lambda: Call(lambda x: (x, x, x.abs()))),
    Case("dense, then convolution", lambda: nn.Sequential(nn.Softmax(2), conv(4, 3), nn.ReLU())),
    Case("image read by a dense node and by convolutions",
         lambda: Branches(_both, conv(4, 3), Call(lambda x: x.cumsum(3)), conv(4, 3, stride=2))),
    Case("pad, then convolution", lambda: nn.Sequential(Call(partial(F.pad, pad=(1, 2, 0, 3), value=2.0)), conv(4, 3))),
    Case("pad before max pool", lambda: nn.Sequential(Call(partial(F.pad, pad=(0, 1, 1, 0), value=float("-inf"))),
                                                      nn.MaxPool2d(3, 2)), offset=-50.0),
    Case("crop and add", lambda: Branches(add, conv(4, 4, padding=0), Call(lambda x: x[:, :, 1:-1, 1:-1]))),
    Case("focus", lambda: nn.Sequential(
        Call(lambda x: torch.cat([x[..., :8:2, 1::2], x[..., 1::2, :10:2]], 1)), conv(8, 3))),
    Case("sum of two slices", lambda: Call(lambda x: x[:, :, 2:4] + x[:, :, 5:7])),
    Case("normalised channels", lambda: nn.Sequential(
        Call(lambda x: x * (x.square().sum(1, keepdim=True) + 1).rsqrt()), conv(4, 3), nn.Softmax(1), conv(3, 3))),
    Case("channel shuffle", lambda: nn.Sequential(conv(4, 6), nn.ChannelShuffle(3), conv(6, 3))),
    Case("split", lambda: nn.Sequential(conv(4, 6), Call(lambda x: torch.cat(x.chunk(2, 1)[::-1], 1)), conv(6, 2))),
    Case("group norm", lambda: nn.Sequential(conv(4, 6), nn.GroupNorm(2, 6), conv(6, 3))),
]  # fmt: skip

NETWORKS = [*EXACT, *OTHERS]
