"""Ops that read the whole map, or have no rule: dense, with the reason."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.support.op_table_case import Case, call


class GlobalResponseNorm(nn.Module):
    """As in ConvNeXt V2."""

    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.rand(4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        size = x.norm(p=2, dim=(2, 3), keepdim=True)
        return x + self.gamma * x * (size / (size.mean(1, keepdim=True) + 1e-6))


class SqueezeExcitation(nn.Module):
    """A gate per channel."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Sequential(nn.Conv2d(4, 2, 1), nn.SiLU(), nn.Conv2d(2, 4, 1), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.gate(x.mean((2, 3), keepdim=True))
        return x * y


class EfficientChannelAttention(nn.Module):
    """A gate per channel, by a convolution over channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 1, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x.mean((2, 3)).unsqueeze(1)).sigmoid()
        return x * y.view(-1, 4, 1, 1)


class GatherExcite(nn.Module):
    """A gate per cell, from a global pool that is spread over the map."""

    def forward(self, x: Tensor) -> Tensor:
        return x * F.interpolate(F.adaptive_avg_pool2d(x, 1), x.shape[2:], mode="nearest").sigmoid()


class Attention(nn.Module):
    """Self-attention of all cells."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Conv2d(4, 12, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.flatten(2).transpose(1, 2) for part in self.qkv(x).chunk(3, 1))
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape)


class NonLocal(Attention):
    """The same by hand."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.flatten(2) for part in self.qkv(x).chunk(3, 1))
        return (v @ (q.transpose(1, 2) @ k).softmax(1)).reshape(x.shape)


DENSE = [
    call("no rule", lambda x: x.cummax(2).values, refused="it follows cummax"),
    call("sort", lambda x: x.sort(3).values, refused="it follows sort"),
    call("sum over rows", lambda x: x.sum(2), refused="reduces"),
    call("variance over the map", lambda x: x - x.var((2, 3), keepdim=True), refused="reduces"),
    call("log softmax over columns", partial(F.log_softmax, dim=3), refused="along an axis"),
    call("softmax over space", partial(F.softmax, dim=2), refused="along an axis"),
    call("cumsum over rows", lambda x: x.cumsum(2), refused="along an axis"),
    call("glu over columns", lambda x: F.glu(x[..., :10], 3), refused="along an axis"),
    call("mean over all", lambda x: x.mean((1, 2, 3), keepdim=True), refused="reduces"),
    call("normalized rows", partial(F.normalize, dim=3), refused="reduces"),
    call("flatten", lambda x: x.flatten(1), refused="positions into features"),
    call("a cell over the map", lambda x: x * x.amax((2, 3), keepdim=True), refused="reduces"),
    Case("global response norm", GlobalResponseNorm, refused="reduces"),
    Case("squeeze and excitation", SqueezeExcitation, refused="reduces"),
    Case("efficient channel attention", EfficientChannelAttention, refused="reduces"),
    # A plain pool to one cell, spread again: nothing is refused, and regions are the whole map.
    Case("gather and excite", GatherExcite),
    Case("group norm", lambda: nn.GroupNorm(2, 4), refused="normalises over the whole map"),
    Case("instance norm", lambda: nn.InstanceNorm2d(4, affine=True), refused="normalises over the whole map"),
    Case("attention", Attention, refused="positions into features"),
    Case("non-local block", NonLocal, refused="positions into features"),
    call("attention of columns", lambda x: F.scaled_dot_product_attention(x, x, x), refused="attention reads"),
]  # fmt: skip
