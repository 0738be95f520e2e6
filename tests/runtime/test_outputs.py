"""Any structure of outputs, any kind of image: the incremental call returns what the model returns."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

import kcompile
from tests.support.equivalence import assert_equivalent, full_inference, incremental, noise
from tests.support.networks import Call, Residual, concat, conv, conv_bn_relu, pooled_head, ready

Pair = namedtuple("Pair", ["scores", "features"])


@dataclass(frozen=True)
class Found:
    """A model's own class."""

    scores: Tensor
    maps: tuple[Tensor, ...]
    loss: Tensor | None = None


STRUCTURES: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "dict": lambda y, s: {"out": s, "aux": y},
    "ordered dict": lambda y, s: OrderedDict(out=s, map=y),
    "tuple": lambda y, s: (s, y),
    "tuple of one": lambda y, s: (s,),
    "list": lambda y, s: [s, y.flatten(1)],
    "named tuple": lambda y, s: Pair(s, y),
    "dataclass": lambda y, s: Found(s, (y, s)),
    "dataclass inside": lambda y, s: {"found": [Found(s, ())]},
    "nested": lambda y, s: {"a": (s, [y, {"b": s.softmax(1)}])},
    "None inside": lambda y, s: {"out": s, "loss": None},
    "constants inside": lambda y, s: (3, s, "name", 0.5, True),
    "a constant tensor inside": lambda y, s: (s, torch.arange(4.0)),
    "the same twice": lambda y, s: (s, s),
    "map and its slice": lambda y, s: (y, y[:, :1]),
}


class Structured(nn.Module):
    def __init__(self, make: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.body, self.head, self.make = nn.Sequential(conv_bn_relu(3, 6), Residual(6, 8)), nn.Linear(8, 5), make

    def forward(self, x: Tensor) -> Any:
        y = self.body(x)
        return self.make(y, self.head(y.mean((2, 3))))


def check(model: nn.Module, shape: tuple[int, int, int], patch: tuple[int, int]) -> kcompile.IncrementalModule:
    """Compile for float64, and compare at corners, beyond the border, and in between; then one query, then none."""
    model = ready(model, shape)
    dtype = next((parameter.dtype for parameter in model.parameters()), torch.float32)
    inc = incremental(model, shape, patch)
    image = noise(shape, dtype)
    before = inc.materialize(image)
    assert pytree.tree_structure(before) == pytree.tree_structure(model(image[None]))
    last = np.subtract(shape[1:], patch)
    positions = np.concatenate([[last * 0, last, last // 2, 1 - np.array(patch)], np.array(shape[1:])[None] - 1])
    patches = noise((len(positions), shape[0], *patch), dtype, 3.0)
    full = full_inference(model, image[None], patches, positions)
    got = inc.forward_patches(patches, positions)
    assert_equivalent(*map(_constants_as_lists, (got, full, before)))
    one = inc.forward_patches(patches[1:2], positions[1:2])
    for mine, want in zip(pytree.tree_leaves(one), pytree.tree_leaves(got), strict=True):
        if isinstance(want, Tensor) and len(want) == len(positions):
            torch.testing.assert_close(mine, want[1:2])
    none = inc.forward_patches(patches[:0], positions[:0])
    assert pytree.tree_structure(none) == pytree.tree_structure(full)
    for mine, want in zip(pytree.tree_leaves(none), pytree.tree_leaves(full), strict=True):
        if isinstance(want, Tensor) and len(want) == len(positions):
            assert mine.shape == (0, *want.shape[1:])
            assert mine.dtype == want.dtype
    return inc


def _constants_as_lists(tree: Any) -> Any:
    """So that they are compared as they are."""
    return pytree.tree_map(lambda leaf: leaf.tolist() if isinstance(leaf, Tensor) and leaf.dim() == 1 else leaf, tree)


@pytest.mark.parametrize("make", STRUCTURES.values(), ids=STRUCTURES)
def test_structures(make: Callable[[Tensor, Tensor], Any], seed: int) -> None:
    check(Structured(make), (3, 17, 22), (5, 4))


def test_a_named_tuple_keeps_its_type(seed: int) -> None:
    inc = check(Structured(STRUCTURES["named tuple"]), (3, 17, 22), (5, 4))
    result = inc.forward_patches(0.0, [[1, 2]])
    assert isinstance(result, Pair)
    assert result.features.shape == (1, 8, 9, 11)


class Shared(nn.Module):
    """One convolution and one norm at three places, one of them on another size."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.same, self.norm = conv(3, 4), conv(4, 4), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm(self.same(F.relu(self.norm(self.same(self.stem(x)))))))
        return torch.cat([y.mean((2, 3)), self.same(F.max_pool2d(y, 2)).amax((2, 3))], 1)


def _segmentation() -> nn.Module:
    return nn.Sequential(conv_bn_relu(3, 6), Residual(6, 8, stride=1), conv(8, 4, 1))


@pytest.mark.parametrize(
    ("make", "shape", "patch"),
    [
        (Shared, (3, 17, 22), (5, 4)),
        (_segmentation, (3, 17, 22), (5, 4)),
        (lambda: nn.Sequential(_segmentation(), nn.Softmax(1)), (3, 17, 22), (5, 4)),
        (lambda: nn.Sequential(pooled_head(Residual(3, 8), 8), nn.Softmax(1)), (3, 17, 22), (5, 4)),
        (lambda: nn.Sequential(pooled_head(Residual(3, 8), 8, 1), nn.Sigmoid()), (3, 17, 22), (5, 4)),
        (lambda: pooled_head(Residual(1, 8), 8), (1, 16, 16), (3, 3)),
        (lambda: pooled_head(Residual(5, 8), 8), (5, 16, 16), (3, 3)),
        (lambda: pooled_head(Residual(3, 8), 8), (3, 7, 64), (7, 1)),
        (lambda: pooled_head(Residual(3, 8), 8), (3, 64, 5), (1, 5)),
        (lambda: nn.Sequential(conv(3, 4, stride=2), nn.ReLU(), conv(4, 4, (3, 9), padding=0)), (3, 33, 17), (4, 4)),
        (lambda: nn.Sequential(conv(3, 4, 8, padding=0, stride=8), nn.ReLU(), conv(4, 2, 3)), (3, 40, 8), (3, 3)),
        (lambda: pooled_head(nn.Sequential(conv(3, 8), nn.MaxPool2d(2)), 8), (3, 9, 9), (9, 9)),
        (lambda: Call(lambda x: x * 2), (3, 9, 9), (2, 2)),
        (lambda: Call(lambda x: concat(x, x.abs()).flatten(1)), (1, 5, 6), (1, 1)),
    ],
    ids=["shared modules", "segmentation", "segmentation, softmax", "softmax", "sigmoid", "grey", "5 channels", "wide",
         "tall", "1 pixel wide", "1 pixel wide, disjoint windows", "patch as large as the image", "no weights",
         "1x1 patch"],
)  # fmt: skip
def test_networks_and_images(make: Any, shape: tuple[int, int, int], patch: tuple[int, int], seed: int) -> None:
    check(make(), shape, patch)


def test_a_map_is_returned_in_full(seed: int) -> None:
    inc = check(_segmentation(), (3, 17, 22), (5, 4))
    result, before = inc.forward_patches(9.0, [[2, 3]]), inc.base_output
    assert result.shape == (1, 4, 17, 22)
    changed = (result != before).any(1)[0].nonzero()
    assert changed.amin(0).tolist() == [0, 0]
    assert changed.amax(0).tolist() == [9, 9]  # patch, and three pixels around it


def test_a_model_that_returns_its_image_or_ignores_it(seed: int) -> None:
    """Nothing to compute in front or tail."""
    image = noise((3, 9, 9), torch.float64)
    inc = incremental(Call(lambda x: (x, x.new_ones(x.shape[0], 2))).double(), (3, 9, 9), (2, 3))
    inc.materialize(image.float())
    patched, ones = inc.forward_patches(7.0, [[4, 5], [-1, 0]])
    assert torch.equal(ones, torch.ones(2, 2))
    want = image.float().repeat(2, 1, 1, 1)
    want[0, :, 4:6, 5:8] = 7.0
    want[1, :, :1, :3] = 7.0
    assert torch.equal(patched, want)
