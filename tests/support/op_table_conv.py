"""Convolutions and transposed convolutions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.support.networks import Call, conv
from tests.support.op_table_case import EVEN, LINE, MAP, NEVER, VOLUME, Case


def _conv(name: str, kernel: int | tuple[int, int], padding: int | tuple[int, int] | str = 0, **options: Any) -> Case:
    dilation = options.get("dilation", 1)
    largest = dilation if isinstance(dilation, int) else max(dilation)
    return Case(f"conv {name}", lambda: nn.Conv2d(4, 3, kernel, padding=padding, **options), dilation=largest)


def _transposed(name: str, *args: Any, shape: tuple[int, ...] = (4, 5, 6), holes: bool = False, **options: Any) -> Case:
    """``holes``: at the border the hull may begin or end with outputs that no tap writes."""
    kind = {2: nn.ConvTranspose1d, 3: nn.ConvTranspose2d, 4: nn.ConvTranspose3d}[len(shape)]
    return Case(
        f"transposed conv {name}", lambda: kind(shape[0], 2, *args, **options), shape, dilation=NEVER if holes else 1
    )


class StandardWeights(nn.Conv2d):
    """A convolution whose weights are standardised before use, as in BiT's ResNets."""

    def forward(self, x: Tensor) -> Tensor:
        mean = self.weight.mean((1, 2, 3), keepdim=True)
        deviation = self.weight.std((1, 2, 3), keepdim=True)
        return F.conv2d(x, (self.weight - mean) / (deviation + 1e-5), self.bias, padding=1)


class CondConv(nn.Module):
    """A convolution whose weights are mixed by the image; the batch is folded into its groups."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2, 3, 4, 3, 3))
        self.router = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        mix = self.router(x.mean((2, 3))).sigmoid()
        weights = (mix @ self.weight.flatten(1)).reshape(-1, 4, 3, 3)
        folded = F.conv2d(x.reshape(1, -1, *x.shape[2:]), weights, padding=1, groups=x.shape[0])
        return folded.reshape(x.shape[0], 3, *x.shape[2:])


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
    *(_conv(f"padding {mode}", 3, (1, 2), padding_mode=mode) for mode in ("reflect", "replicate", "circular")),
    Case("conv groups", lambda: nn.Conv2d(4, 6, 3, padding=1, groups=2)),
    Case("conv depthwise", lambda: nn.Conv2d(4, 8, 3, padding=1, stride=2, groups=4)),
    Case("conv depthwise, dilated", lambda: nn.Conv2d(4, 4, (3, 5), padding=2, dilation=(2, 1), groups=4), dilation=2),
    Case("conv 1d", lambda: nn.Conv1d(3, 4, 3, stride=2, padding=1), LINE),
    Case("conv 1d same", lambda: nn.Conv1d(3, 4, 3, padding="same", dilation=2), LINE, dilation=2),
    Case("conv 1d valid", lambda: nn.Conv1d(3, 4, 4, padding="valid"), LINE),
    Case("conv 3d", lambda: nn.Conv3d(2, 3, (3, 2, 1), (1, 2, 1), (1, 0, 1)), VOLUME),
    Case("conv 3d same", lambda: nn.Conv3d(2, 3, (3, 2, 1), padding="same"), VOLUME),
    Case("conv with standardised weights", lambda: StandardWeights(4, 3, 3)),
    Case("conv with weights of the image", CondConv, refused="reduces"),
    Case("batch norm folded", lambda: nn.Sequential(conv(4, 3, stride=2), nn.BatchNorm2d(3))),
    Case("batch norm folded, same", lambda: nn.Sequential(conv(4, 3, padding="same"), nn.BatchNorm2d(3))),
    Case(
        "conv over H and channels",
        lambda: nn.Sequential(Call(lambda x: x.transpose(1, 3)), conv(11, 3)),
        refused="another dimension than space",
    ),
]

TRANSPOSED = [
    _transposed("3x3", 3),
    _transposed("3x3, padded", 3, padding=1),
    _transposed("1x1", 1),
    _transposed("2x2, stride 2", 2, stride=2),
    _transposed("4x4, stride 2, padded", 4, stride=2, padding=1),
    _transposed("3x3, stride 2, output padding", 3, stride=2, padding=1, output_padding=1),
    _transposed("stride (3, 2)", (4, 3), stride=(3, 2), padding=(2, 1), output_padding=(1, 0)),
    _transposed("5x5, stride 3, padded", 5, stride=3, padding=2, output_padding=2, holes=True),
    _transposed("large padding", 4, stride=1, padding=3),
    _transposed("even kernel, stride 3", 4, stride=3, padding=1),
    _transposed("stride larger than kernel", 2, stride=3),
    _transposed("1x1, stride 2", 1, stride=2),
    _transposed("1x1, stride 3, output padding", 1, stride=3, output_padding=2),
    _transposed("2x2, stride 3, padded", 2, stride=3, padding=1, output_padding=1, holes=True),
    _transposed("1x1, stride 3, padded", 1, stride=3, padding=1, output_padding=1, holes=True),
    _transposed("dilated", 3, dilation=2),
    _transposed("dilated, padded", 3, padding=3, dilation=2, holes=True),
    _transposed("stride 2, dilation 3", 2, stride=2, padding=1, output_padding=1, dilation=3, holes=True),
    _transposed("stride 3, dilation (1, 2)", 2, stride=3, dilation=(1, 2), output_padding=1, holes=True),
    _transposed("groups", 3, stride=2, padding=1, groups=2),
    _transposed("without bias", 3, stride=2, bias=False),
    _transposed("1d", 3, stride=2, padding=1, output_padding=1, shape=LINE),
    _transposed("1d, stride 3", 4, stride=3, shape=LINE),
    _transposed("3d", (3, 2, 1), stride=(2, 1, 2), padding=(1, 0, 0), shape=(2, 4, 5, 4)),
    _transposed("3d, output padding", 3, stride=2, padding=1, output_padding=(1, 0, 1), shape=(2, 4, 4, 3)),
    Case(
        "transposed conv behind conv",
        lambda: nn.Sequential(nn.Conv2d(4, 3, 3, 2, 1), nn.ConvTranspose2d(3, 4, 4, 2, 1)),
        EVEN,
        dilation=1,
    ),
    Case(
        "transposed conv, batch norm folded",
        lambda: nn.Sequential(nn.ConvTranspose2d(4, 2, 3, 2, 1), nn.BatchNorm2d(2)),
        (4, 5, 6),
    ),
    Case(
        "transposed conv over H and channels",
        lambda: nn.Sequential(Call(lambda x: x.transpose(1, 3)), nn.ConvTranspose2d(11, 3, 2)),
        MAP,
        refused="another dimension than space",
    ),
]
