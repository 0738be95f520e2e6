"""Other layouts than [B, C, H, W]: channels last, transposed, groups as a dimension; linear layers; norms of cells."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.support.networks import Call, conv
from tests.support.op_table_case import LINE, VOLUME, Case, call

TO_LAST, TO_FIRST = (0, 2, 3, 1), (0, 3, 1, 2)


class ChannelsLast(nn.Module):
    """Modules on [B, H, W, C]."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x.permute(TO_LAST))
        return y.permute(TO_FIRST)


class ConvNeXtBlock(nn.Module):
    """Depthwise convolution, then a norm and two linear layers on channels-last cells, layer scale and shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = conv(channels, channels, 5, groups=channels)
        self.rest = ChannelsLast(
            nn.LayerNorm(channels), nn.Linear(channels, 2 * channels), nn.GELU(), nn.Linear(2 * channels, channels)
        )
        self.scale = nn.Parameter(torch.rand(channels, 1, 1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.rest(self.first(x))
        return x + self.scale * y


class Transposed(nn.Module):
    """A convolution on swapped rows and columns."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 3, (5, 2), stride=(1, 2), padding=(2, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x.transpose(2, 3)).transpose(2, 3)


class ChannelNorm(nn.Module):
    """A norm over channels of [B, C, H, W] by hand, as ConvNeXt's LayerNorm2d."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(4, 1, 1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(1, keepdim=True)
        return self.weight * (x - mean) / ((x - mean).pow(2).mean(1, keepdim=True) + 1e-6).sqrt()


LAYOUTS = [
    call("permute and back", lambda x: (x.permute(TO_LAST) * 2.0).permute(TO_FIRST)),
    call("transpose and back", lambda x: x.transpose(1, 3).exp().transpose(-1, -3)),
    call("movedim", lambda x: x.movedim(1, -1).tanh().movedim(-1, 1)),
    call("mT", lambda x: x.mT.sigmoid().mT),
    call("swapaxes", lambda x: x.swapaxes(1, 2).abs().swapaxes(2, 1)),
    Case("conv on transposed rows and columns", Transposed),
    Case("linear layer of each cell", lambda: ChannelsLast(nn.Linear(4, 5))),
    Case("linear layer without bias", lambda: ChannelsLast(nn.Linear(4, 5, bias=False))),
    Case("layer norm of each cell", lambda: ChannelsLast(nn.LayerNorm(4))),
    Case(
        "layer norm, linear layers", lambda: ChannelsLast(nn.LayerNorm(4), nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 3))
    ),
    Case("layer norm without factors", lambda: ChannelsLast(nn.LayerNorm(4, elementwise_affine=False))),
    Case("layer norm by hand", ChannelNorm),
    Case("ConvNeXt block", lambda: ConvNeXtBlock(4)),
    Case("layer norm over the map", lambda: nn.LayerNorm((4, 9, 11)), refused="normalises over the whole map"),
    Case("layer norm over columns", lambda: nn.LayerNorm(11), refused="normalises over the whole map"),
    Case("linear layer over columns", lambda: nn.Linear(11, 5), refused="fully connected"),
    Case(
        "matrix product of each cell",
        lambda: Call(lambda x, m: (x.permute(TO_LAST) @ m).permute(TO_FIRST), m=torch.randn(4, 3)),
    ),
    Case(
        "matrix product over columns", lambda: Call(lambda x, m: x @ m, m=torch.randn(11, 3)), refused="fully connected"
    ),
    Case("softmax in channels last", lambda: ChannelsLast(nn.Softmax(-1))),
    Case(
        "constant in channels last",
        lambda: Call(lambda x, c: (x.permute(TO_LAST) * c).permute(TO_FIRST), c=torch.rand(9, 11, 4)),
    ),
    Case(
        "row constant in channels last",
        lambda: Call(lambda x, c: (x.permute(TO_LAST) + c).permute(TO_FIRST), c=torch.rand(9, 1, 1)),
    ),
    Case(
        "conv 1d in channels last",
        lambda: nn.Sequential(
            Call(lambda x: x.transpose(1, 2)), nn.Linear(3, 4), Call(lambda x: x.transpose(1, 2)), nn.Conv1d(4, 2, 3)
        ),
        LINE,
    ),
    Case(
        "conv 3d in channels last",
        lambda: nn.Sequential(
            Call(lambda x: x.permute(0, 2, 3, 4, 1)),
            nn.LayerNorm(2),
            Call(lambda x: x.permute(0, 4, 1, 2, 3)),
            nn.Conv3d(2, 2, (2, 3, 1)),
        ),
        VOLUME,
    ),
    call("unflatten and flatten", lambda x: x.unflatten(1, (2, 2)).sigmoid().flatten(1, 2)),
    call("groups as a dimension", lambda x: x.view(-1, 2, 2, 9, 11).mean(1)),
    call(
        "groups in the last dimension", lambda x: x.permute(TO_LAST).reshape(-1, 9, 11, 2, 2).amax(-1).permute(TO_FIRST)
    ),
    call("dimensions of one cell", lambda x: x[:, None, :, None].tanh().squeeze(3).squeeze(1)),
    call("reshape that changes nothing", lambda x: x.reshape(x.shape[0], 4, 9, 11).exp()),
    call("squeeze", lambda x: x.mean(1, keepdim=True).squeeze().unsqueeze(1)),
    call("sum without channels", lambda x: x.sum(1).unsqueeze(1)),
    call("positions as tokens", lambda x: x.flatten(2).transpose(1, 2), refused="positions into features"),
    call(
        "rows folded into the batch",
        lambda x: x.transpose(1, 2).reshape(-1, 4, 11).exp().reshape(-1, 9, 4, 11).transpose(1, 2),
        refused="",
    ),
    call("reshape across channels and rows", lambda x: x.reshape(-1, 9, 4, 11), refused="positions into features"),
    call("row out of the map", lambda x: x[:, :, :1].expand(-1, -1, 9, -1), refused="copies the map"),
]
