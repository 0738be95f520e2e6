"""Networks of all kinds to save and load."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from tests.support.networks import DenseBlock, Gated, Residual, conv, conv_bn_relu, inception, pooled_head, ready, vgg

Scores = namedtuple("Scores", ["scores", "features"])


@dataclass
class Outcome:
    """A dataclass of the model's own."""

    scores: Tensor
    parts: tuple[Tensor, Tensor]


class Table:
    """A class of the model's own that is neither tuple nor dataclass."""

    def __init__(self, *columns: Tensor) -> None:
        self.columns = columns


pytree.register_dataclass(Outcome)
pytree.register_pytree_node(Table, lambda table: (list(table.columns), None), lambda columns, _: Table(*columns))


class Structured(nn.Module):
    """Returns what a function makes of a map and of scores."""

    def __init__(self, make: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.body, self.head, self.make = nn.Sequential(conv_bn_relu(3, 6), Residual(6, 8)), nn.Linear(8, 5), make

    def forward(self, x: Tensor) -> Any:
        y = self.body(x)
        return self.make(y, self.head(y.mean((2, 3))))


class Shared(nn.Module):
    """One convolution and one norm at several places."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.same, self.norm = conv(3, 4), conv(4, 4), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm(self.same(F.relu(self.norm(self.same(self.stem(x)))))))
        return torch.cat([y.mean((2, 3)), self.same(F.max_pool2d(y, 2)).amax((2, 3))], 1)


class Resized(nn.Module):
    """Tables with weights (bilinear), blocks (pixel shuffle) and a transposed convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = conv(3, 8, stride=2), nn.ConvTranspose2d(8, 4, 4, 2, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = self.down(x)
        wide = F.interpolate(y, scale_factor=1.5, mode="bilinear", align_corners=False)
        return {"out": F.softmax(self.up(y), 1), "wide": wide, "shuffled": F.pixel_shuffle(y, 2)}


@dataclass(frozen=True)
class Network:
    """A network, its images and patches; ``scored`` if its output is scores."""

    make: Callable[[], nn.Module]
    shape: tuple[int, ...] = (3, 17, 22)
    patch: tuple[int, ...] = (5, 4)
    dtype: torch.dtype = torch.float32
    scored: bool = True

    def made(self) -> nn.Module:
        """With random weights with which it reacts."""
        return ready(self.make(), self.shape).to(self.dtype)


def _structured(make: Callable[[Tensor, Tensor], Any]) -> Network:
    return Network(partial(Structured, make), scored=False)


_pooled = partial(pooled_head, channels=8)

SAVED = {
    "vgg": Network(lambda: vgg(3, (17, 22))),
    "residual, softmax": Network(lambda: nn.Sequential(_pooled(Residual(3, 8)), nn.Softmax(1))),
    "residual, grey": Network(lambda: _pooled(Residual(1, 8)), (1, 17, 22)),
    "residual, 13 channels": Network(lambda: _pooled(Residual(13, 8)), (13, 17, 22)),
    "inception": Network(lambda: _pooled(nn.Sequential(conv_bn_relu(3, 4), inception(4), conv(9, 8)))),
    "dense block": Network(lambda: _pooled(nn.Sequential(conv(3, 4), DenseBlock(4)))),
    "gate": Network(lambda: _pooled(nn.Sequential(conv(3, 8), Gated(8)))),
    "shared modules": Network(Shared),
    "resized": Network(Resized, scored=False),
    "one axis": Network(lambda: nn.Sequential(nn.Conv1d(3, 4, 3), nn.ReLU(), nn.Conv1d(4, 2, 3)), (3, 40), (5,)),
    "three axes": Network(lambda: nn.Sequential(nn.Conv3d(2, 4, 3), nn.MaxPool3d(2)), (2, 7, 8, 9), (2, 2, 3)),
    "segmentation": Network(lambda: nn.Sequential(conv_bn_relu(3, 6), conv(6, 4, 1)), scored=False),
    "float64": Network(lambda: _pooled(Residual(3, 8)), dtype=torch.float64),
    "bfloat16": Network(lambda: _pooled(Residual(3, 8)), dtype=torch.bfloat16),
    "float16": Network(lambda: _pooled(Residual(3, 8)), dtype=torch.float16),
    "dict": _structured(lambda y, s: {"out": s, "aux": y, 3: s * 2}),
    "ordered dict": _structured(lambda y, s: OrderedDict(out=s, map=y)),
    "tuple": _structured(lambda y, s: (s, [y])),
    "named tuple": _structured(lambda y, s: Scores(s, y)),
    "dataclass": _structured(lambda y, s: Outcome(s, (y, s.softmax(1)))),
    "return type": _structured(lambda y, s: s.max(1)),
    "constants": _structured(lambda y, s: (3, s, "name", 0.5, float("inf"), True, None, torch.arange(4.0))),
}  # fmt: skip
