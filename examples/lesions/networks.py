"""More small networks for the same pictures: residual, of Inception's kind, and gated, with committed weights.

Their projective fields grow as those of their big kin do, which is what approximations of occlusion maps depend on: the
residual net has the layout of ResNet18 (He et al. 2016) with a quarter of its channels (0.14 GMAC, 0.70 million
parameters), the other one a stem, blocks and a reduction like those of Inception v3 (Szegedy et al. 2016), factorised
7x7 convolutions included (0.15 GMAC, 0.21 million). The gated one is residual too, with squeeze-and-excitation in every
block (Hu et al. 2018; 0.11 GMAC, 0.27 million). Input and output are those of `network.lesion_net`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from examples.lesions.generator import CLASSES
from examples.lesions.network import CHECKPOINT, lesion_net


class Unit(nn.Sequential):
    """Convolution that keeps the size (divided by the stride), batch norm, ReLU; kernels are (rows, columns)."""

    def __init__(self, inputs: int, outputs: int, kernel: int | tuple[int, int], stride: int = 1) -> None:
        """See the class."""
        rows, columns = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (rows // 2, columns // 2)
        convolution = nn.Conv2d(inputs, outputs, (rows, columns), stride, padding, bias=False)
        super().__init__(convolution, nn.BatchNorm2d(outputs), nn.ReLU())


class Squeeze(nn.Module):
    """A gate per channel, made of the means of all channels over the whole map."""

    def __init__(self, channels: int) -> None:
        """See the class."""
        super().__init__()
        squeezed = channels // 4
        parts = [nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, squeezed, 1), nn.ReLU(), nn.Conv2d(squeezed, channels, 1)]
        self.gate = nn.Sequential(*parts, nn.Sigmoid())

    def forward(self, features: Tensor) -> Tensor:
        """[N, channels, H, W], each channel times its gate."""
        return features * self.gate(features)


class Residual(nn.Module):
    """ResNet18's block: two 3x3 convolutions beside a shortcut, which is a 1x1 convolution where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int, gated: bool = False) -> None:
        """See the class; ``gated``: squeeze-and-excitation behind the convolutions."""
        super().__init__()
        self.first = Unit(inputs, outputs, 3, stride)
        second = [nn.Conv2d(outputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs)]
        self.second = nn.Sequential(*second, *([Squeeze(outputs)] if gated else []))
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, features: Tensor) -> Tensor:
        """[N, inputs, H, W] to [N, outputs, H / stride, W / stride]."""
        return functional.relu(self.second(self.first(features)) + self.shortcut(features))


class Branches(nn.ModuleList):
    """Branches over the same input, concatenated along the channels."""

    def forward(self, features: Tensor) -> Tensor:
        """See the class."""
        return torch.cat([branch(features) for branch in self], dim=1)


def residual_net() -> nn.Sequential:
    """Return the residual network with fresh weights: [N, 3, 224, 224] in model units to logits [N, 4]."""
    return _residual((16, 32, 64, 128), gated=False)


def gated_net() -> nn.Sequential:
    """Return the gated network with fresh weights: [N, 3, 224, 224] in model units to logits [N, 4]."""
    return _residual((16, 32, 48, 64), gated=True)


def _residual(widths: tuple[int, ...], gated: bool) -> nn.Sequential:
    layers: list[nn.Module] = [Unit(3, widths[0], 7, stride=2), nn.MaxPool2d(3, 2, padding=1)]
    inputs = widths[0]
    for outputs in widths:
        stride = 1 if outputs == widths[0] else 2
        layers += [Residual(inputs, outputs, stride, gated), Residual(outputs, outputs, 1, gated)]
        inputs = outputs
    return nn.Sequential(*layers, *_head(inputs))


def inception_net() -> nn.Sequential:
    """Return the network of Inception's kind with fresh weights: [N, 3, 224, 224] in model units to logits [N, 4]."""
    stem = [Unit(3, 16, 3, stride=2), Unit(16, 24, 3), nn.MaxPool2d(3, 2, padding=1), Unit(24, 32, 1), Unit(32, 48, 3)]
    blocks = [_small_kernels(48), _small_kernels(72), _reduction(72), _factorised(144, 24), _factorised(144, 32)]
    return nn.Sequential(*stem, nn.MaxPool2d(3, 2, padding=1), *blocks, *_head(144))


def _small_kernels(inputs: int) -> Branches:
    """Inception v3's first kind of block: 1x1, 5x5, two 3x3, and pooling; 72 channels out."""
    return Branches(
        [
            Unit(inputs, 16, 1),
            nn.Sequential(Unit(inputs, 12, 1), Unit(12, 16, 5)),
            nn.Sequential(Unit(inputs, 16, 1), Unit(16, 24, 3), Unit(24, 24, 3)),
            nn.Sequential(nn.AvgPool2d(3, 1, padding=1), Unit(inputs, 16, 1)),
        ]
    )


def _reduction(inputs: int) -> Branches:
    """Halves the size; 72 channels more."""
    return Branches(
        [
            Unit(inputs, 48, 3, stride=2),
            nn.Sequential(Unit(inputs, 16, 1), Unit(16, 24, 3), Unit(24, 24, 3, stride=2)),
            nn.MaxPool2d(3, 2, padding=1),
        ]
    )


def _factorised(inputs: int, inner: int) -> Branches:
    """Inception v3's second kind of block: 7x7 convolutions as 1x7 and 7x1; 144 channels out."""
    row, column = (1, 7), (7, 1)
    once = [Unit(inputs, inner, 1), Unit(inner, inner, row), Unit(inner, 36, column)]
    twice = [Unit(inputs, inner, 1), Unit(inner, inner, column), Unit(inner, inner, row)]
    twice += [Unit(inner, inner, column), Unit(inner, 36, row)]
    pooled = [nn.AvgPool2d(3, 1, padding=1), Unit(inputs, 36, 1)]
    return Branches([Unit(inputs, 36, 1), *(nn.Sequential(*branch) for branch in (once, twice, pooled))])


def _head(inputs: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, len(CLASSES))]


NETWORKS: dict[str, tuple[Callable[[], nn.Sequential], Path]] = {
    "vgg": (lesion_net, CHECKPOINT),
    "residual": (residual_net, CHECKPOINT.with_name("residual_net.pt")),
    "inception": (inception_net, CHECKPOINT.with_name("inception_net.pt")),
    "gated": (gated_net, CHECKPOINT.with_name("gated_net.pt")),
}
"""By name: the function that makes the network with fresh weights, and its committed checkpoint."""


def load_network(name: str) -> nn.Sequential:
    """Return a network of `NETWORKS` in eval mode with its committed weights."""
    make, path = NETWORKS[name]
    model = make()
    model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return model.eval()
