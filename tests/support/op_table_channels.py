"""Ops along channels, and channels that are joined, split, moved and written over."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.support.networks import Call, conv
from tests.support.op_table_case import LINE, Case, call


def _write(x: Tensor) -> Tensor:
    y = x * 1.0
    y[:, :2] += 1
    return y


def _write_over(x: Tensor) -> Tensor:
    y = x * 2.0
    y[:, 1:4:2] = x[:, :2].abs()
    return y


def _write_one(x: Tensor) -> Tensor:
    y = x * 2.0
    y[:, 0] = x[:, 1].exp()
    return y


def _transform_input(x: Tensor) -> Tensor:
    """As torchvision's Inception."""
    return torch.cat([x[:, i].unsqueeze(1) * (i + 1.5) - 0.1 for i in range(3)], 1)


def _split_attention(x: Tensor) -> Tensor:
    """The sum over groups, as in SKNet and ResNeSt before their gate."""
    return x.view(x.shape[0], 2, 2, *x.shape[2:]).sum(1)


def _with_gate(x: Tensor) -> Tensor:
    parts = x.view(x.shape[0], 2, 2, *x.shape[2:])
    gate = parts.sum(1).mean((2, 3), keepdim=True).unsqueeze(1)
    return (parts * torch.cat([gate, -gate], 1).softmax(1)).sum(1)


CHANNELS = [
    call("slice of channels", lambda x: x[:, 1:3]),
    call("slice of channels with step", lambda x: x[:, ::2]),
    call("concat with itself", lambda x: torch.cat([x, x], 1)),
    call("concat, negative dimension", lambda x: torch.cat([x, -x], -3)),
    call("concat of rows", lambda x: torch.cat([x, x], 2)),
    call("concat of columns and others", lambda x: torch.cat([x[..., :4], -x, x.abs()[..., 1:6]], -1)),
    call("circular padding by hand", lambda x: torch.cat([x[..., -2:], x, x[..., :3]], 3)),
    call("concat of zeros below", lambda x: torch.cat([x, torch.zeros_like(x)[:, :, :2]], 2)),
    call("concat of masks", lambda x: torch.cat([x > 0, x < 1], 2) * 2.0),
    call(
        "concat of rows in NHWC",
        lambda x: torch.cat([x.permute(0, 2, 3, 1), x.permute(0, 2, 3, 1).exp()], 1).permute(0, 3, 1, 2),
    ),
    call("concat of one", lambda x: torch.cat([x], 2) + 1),
    call("concat of the batch", lambda x: torch.cat([x, x], 0)[: x.shape[0]], refused="no rows"),
    call("concat of types", lambda x: torch.cat([x, (x > 0)], 2), refused="several types"),
    Case(
        "concat with a constant",
        lambda: Call(lambda x, c: torch.cat([x, c.expand(x.shape[0], -1, -1, -1)], 1), c=torch.randn(1, 2, 9, 11)),
    ),
    call(
        "concat in NHWC",
        lambda x: torch.cat([x.permute(0, 2, 3, 1), x.permute(0, 2, 3, 1).abs()], -1).permute(0, 3, 1, 2),
    ),
    call(
        "concat in NHWC and NCHW",
        lambda x: torch.cat([x[:, :, :9, :9], x[:, :, :9, :9].transpose(2, 3)], 1),
        refused="laid out differently",
    ),
    call("chunk", lambda x: torch.cat(x.chunk(2, 1)[::-1], 1)),
    call("chunk unevenly", lambda x: x.chunk(3, 1)[-1] * 2.0),
    call("split", lambda x: x.split(3, 1)[0] * x.split(3, 1)[1]),
    call("split by sizes", lambda x: x.split([1, 2, 1], 1)[1]),
    call("tensor_split", lambda x: torch.cat(x.tensor_split(2, 1)[::-1], 1)),
    call("unbind", lambda x: torch.stack(x.unbind(1)[::-1], 1)),
    call("select", lambda x: x[:, 1:2] - x[:, -1].unsqueeze(1)),
    call("stack", lambda x: torch.stack([x, x * 2.0], 2).flatten(1, 2)),
    call("stack at the end", lambda x: torch.stack([x, x.abs()], -1).sum(-1)),
    call("transform input", _transform_input),
    call("write over channels", _write),
    call("slice_scatter", lambda x: torch.slice_scatter(x, x[:, :2].abs(), 1, 0, 3, 2)),
    call(
        "slice_scatter of rows", lambda x: torch.slice_scatter(x, x[:, :, :2].abs(), 2, 3, 5), refused="part of the map"
    ),
    call(
        "unbiased moments",
        lambda x: torch.var(x, 1, correction=1, keepdim=True) + torch.std(x, 1, correction=2, keepdim=True),
    ),
    call("p norm", lambda x: torch.ops.aten.norm.ScalarOpt_dim(x, 3, [1], True)),
    call("squeeze of two dimensions", lambda x: torch.squeeze(x[:, :, None, :, None], (2, 4))),
    call("write over channels with step", _write_over),
    call("write one channel", _write_one),
    call("list of channels", lambda x: x[:, [2, 0, 0, 3]]),
    call("list of channels in NHWC", lambda x: x.permute(0, 2, 3, 1)[..., [2, 0]].permute(0, 3, 1, 2)),
    Case("index_select", lambda: Call(lambda x, i: x.index_select(1, i), i=torch.tensor([3, 1, 1]))),
    Case("index by a buffer", lambda: Call(lambda x, i: x[:, i], i=torch.tensor([3, 1, 1]))),
    call("sorted channels", lambda x: x.sort(1).values, refused="it follows sort"),
    call("channel shuffle by views", lambda x: x.view(x.shape[0], 2, 2, 9, 11).transpose(1, 2).reshape(x.shape)),
    call(
        "channel shuffle by views, contiguous",
        lambda x: x.view(x.shape[0], 2, -1, 9, 11).transpose(1, 2).contiguous().view(x.shape[0], -1, 9, 11),
    ),
    Case("native channel shuffle", lambda: nn.ChannelShuffle(2)),
    call("split attention up to its gate", _split_attention),
    Case("split attention of a conv", lambda: nn.Sequential(conv(4, 4, groups=2), Call(_split_attention), conv(2, 3))),
    call("split attention with its gate", _with_gate, refused="reduces"),
    call("expand of channels", lambda x: x[:, :1].expand(-1, 3, -1, -1)),
    call("expand of all sizes", lambda x: x[:, :1].expand(x.shape[0], 3, 9, 11)),
    call("expand of groups", lambda x: x.unsqueeze(2).expand(-1, -1, 3, -1, -1).flatten(1, 2)),
    call("expand_as", lambda x: x.mean(1, keepdim=True).expand_as(x) * 2.0),
    call("repeat of channels", lambda x: x.repeat(1, 3, 1, 1)),
    call("repeat of rows", lambda x: x.repeat(1, 1, 2, 1), refused="copies the map"),
    call("tile", lambda x: x.tile((2, 1, 1))),
    call("repeat_interleave", lambda x: x.repeat_interleave(2, 1)),
    *(
        call(f"{name} over channels", lambda x, name=name: getattr(x, name)(1, keepdim=True))
        for name in ("mean", "sum", "amax", "amin", "var", "std", "prod", "logsumexp")
    ),
    *(
        call(f"{name} over channels, dropped", lambda x, name=name: getattr(x, name)(-3).unsqueeze(1))
        for name in ("mean", "sum", "amax", "var", "std", "logsumexp")
    ),
    *(
        call(
            f"{name} and place of it over channels",
            lambda x, name=name: torch.cat([part.to(x.dtype) for part in getattr(x, name)(1, keepdim=True)], 1),
        )
        for name in ("max", "min")
    ),
    *(
        call(f"{name} over channels", lambda x, name=name: getattr(x, name)(1, keepdim=True).to(x.dtype))
        for name in ("argmax", "argmin")
    ),
    *(
        call(f"{name} over channels", lambda x, name=name: getattr(x > 0, name)(1, keepdim=True).to(x.dtype))
        for name in ("any", "all")
    ),
    call("norm over channels", lambda x: x.norm(dim=1, keepdim=True)),
    call("norm 1, dropped", lambda x: x.norm(1, 1).unsqueeze(1)),
    call("vector norm over channels", lambda x: torch.linalg.vector_norm(x, 2, 1, True)),
    call("biased variance over channels", lambda x: x.var(1, unbiased=False, keepdim=True)),
    call(
        "variance and mean over channels",
        lambda x: torch.cat(torch.var_mean(x, 1, keepdim=True), 1),
    ),
    call("normalized channels", F.normalize),
    call("l2 norm by hand", lambda x: x / x.pow(2).sum(1, keepdim=True).sqrt()),
    call("cumsum over channels", lambda x: x.cumsum(1)),
    call("cumprod over channels", lambda x: x.cumprod(-3)),
    Case("softmax over channels", lambda: nn.Softmax(1)),
    Case("log softmax over channels", lambda: nn.LogSoftmax(-3)),
    Case("softmin over channels", lambda: nn.Softmin(1)),
    Case("softmax2d", lambda: nn.Softmax2d()),
    Case("softmax over channels 1d", lambda: nn.Softmax(1), LINE),
    Case("glu", lambda: nn.GLU(1)),
    call("maxout", lambda x: x.view(x.shape[0], 2, 2, 9, 11).amax(2)),
    Case("batch norm unfolded", lambda: nn.BatchNorm2d(4)),
    Case("batch norm without factors", lambda: nn.BatchNorm2d(4, affine=False)),
    Case("dropout", lambda: nn.Sequential(conv(4, 3), nn.Dropout(0.9), nn.Dropout2d(0.9))),
]
