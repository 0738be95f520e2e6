"""Small networks that react to a patch: random weights, norm statistics calibrated and then perturbed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Function = Callable[..., Any]


class Call(nn.Module):
    """A function as a module."""

    def __init__(self, function: Function, **buffers: Tensor) -> None:
        super().__init__()
        self.function = function
        for name, value in buffers.items():
            self.register_buffer(name, value)

    def forward(self, x: Tensor) -> Any:
        return self.function(x, *self.buffers())


class Branches(nn.Module):
    """Several modules on one input, joined by a function."""

    def __init__(self, join: Function, *branches: nn.Module) -> None:
        super().__init__()
        self.join = join
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Any:
        return self.join(*(branch(x) for branch in self.branches))


def add(a: Tensor, b: Tensor) -> Tensor:
    return a + b


def concat(*parts: Tensor) -> Tensor:
    return torch.cat(parts, dim=1)


def conv(cin: int, cout: int, kernel: int | tuple[int, int] = 3, **options: Any) -> nn.Conv2d:
    """A convolution that keeps the size at stride 1, unless told otherwise."""
    sizes = (kernel, kernel) if isinstance(kernel, int) else kernel
    options.setdefault("padding", tuple(size // 2 for size in sizes))
    return nn.Conv2d(cin, cout, sizes, **options)


def conv_bn_relu(cin: int, cout: int, kernel: int = 3, **options: Any) -> nn.Sequential:
    return nn.Sequential(conv(cin, cout, kernel, bias=False, **options), nn.BatchNorm2d(cout), nn.ReLU())


class Residual(nn.Module):
    """A residual block: 3x3 with stride, 3x3; the shortcut is a 1x1 convolution with the same stride."""

    def __init__(self, cin: int, cout: int, stride: int = 2) -> None:
        super().__init__()
        self.body = nn.Sequential(conv_bn_relu(cin, cout, stride=stride), conv(cout, cout), nn.BatchNorm2d(cout))
        self.shortcut = nn.Sequential(conv(cin, cout, 1, stride=stride, bias=False), nn.BatchNorm2d(cout))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.shortcut(x))


def inception(cin: int) -> nn.Module:
    """Branches with different regions, joined along channels."""
    pool = nn.Sequential(nn.AvgPool2d(3, 1, 1, count_include_pad=False), conv_bn_relu(cin, 2, 1))
    deep = nn.Sequential(conv_bn_relu(cin, 2, 1), conv_bn_relu(2, 3), conv_bn_relu(3, 3))
    return Branches(concat, conv_bn_relu(cin, 4, 1), deep, pool)


class DenseBlock(nn.Module):
    """Two pre-activation layers (batch norm that no convolution precedes), each joined to all before it."""

    def __init__(self, cin: int, growth: int = 2) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.BatchNorm2d(cin + i * growth) for i in range(2))
        self.convs = nn.ModuleList(conv(cin + i * growth, growth) for i in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for norm, layer in zip(self.norms, self.convs, strict=True):
            x = torch.cat([x, layer(F.relu(norm(x)))], dim=1)
        return x


class Gated(nn.Module):
    """Squeeze and excitation: a gate of one cell per channel is broadcast over the map."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.inner = conv(channels, channels)
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), conv(channels, 2, 1), nn.SiLU(), conv(2, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.inner(x)
        return y * torch.sigmoid(self.gate(y))


def vgg(cin: int, size: tuple[int, int], classes: int = 5) -> nn.Module:
    """Convolutions and max pools, then flatten and two linear layers with dropout."""
    cells = (size[0] // 4) * (size[1] // 4)
    features = nn.Sequential(
        conv(cin, 6), nn.ReLU(), conv(6, 6), nn.ReLU(), nn.MaxPool2d(2), conv(6, 8), nn.ReLU(), nn.MaxPool2d(2)
    )
    head = nn.Sequential(nn.Flatten(), nn.Linear(8 * cells, 16), nn.ReLU(), nn.Dropout(), nn.Linear(16, classes))
    return nn.Sequential(features, head)


def pooled_head(body: nn.Module, channels: int, classes: int = 5) -> nn.Module:
    return nn.Sequential(body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


def ready(model: nn.Module, shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> nn.Module:
    """Calibrate norm statistics on random images (C, *S), perturb them, and go to eval mode."""
    model = model.to(dtype)
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    if norms:
        for norm in norms:
            norm.momentum = None  # cumulative average
        model.train()
        with torch.no_grad():
            model(torch.randn(32, *shape, dtype=dtype))
    for norm in norms:
        _perturb(norm)
    return model.eval()


def _perturb(norm: nn.modules.batchnorm._BatchNorm) -> None:
    """Make every channel's statistics and affine factors its own."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.running_mean.add_(torch.randn_like(norm.running_mean) * 0.1)
    norm.running_var.mul_(torch.empty_like(norm.running_var).uniform_(0.7, 1.4))
    if norm.affine:
        with torch.no_grad():
            norm.weight.uniform_(0.5, 1.5).mul_(torch.where(torch.rand_like(norm.weight) < 0.5, -1.0, 1.0))
            norm.bias.uniform_(-0.5, 0.5)
