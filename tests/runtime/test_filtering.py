"""Convolutions that run by minimal filtering: which they are, what goes into them, and what they give."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import kcompile
from kcompile.cuda_ops import native_build, winograd
from kcompile.runtime import filtering
from kcompile.runtime.full import Deferred
from tests.runtime.test_lowering import assert_same, check_queries, compiled, targets
from tests.support.networks import Call, conv

pytestmark = pytest.mark.skipif(not winograd.supported(), reason=native_build.status())

ON_WINDOWS, ON_BASE = "kcompile.winograd.default", "kcompile.gather_winograd.default"


class Wide(nn.Module):
    """Convolutions ``a`` and ``b`` of enough channels, joined by a function."""

    def __init__(self, join: Callable[..., Tensor], **others: nn.Module) -> None:
        super().__init__()
        self.stem, self.a, self.b = conv(3, 16), conv(16, 16), conv(16, 16)
        for name, module in others.items():
            self.add_module(name, module)
        self.join = join

    def forward(self, x: Tensor) -> Tensor:
        return self.join(self, F.relu(self.stem(x)))


def checked(model: nn.Module, dense: bool = False) -> tuple[kcompile.IncrementalModule, list[str]]:
    model, inc = compiled(model, dense)
    assert_same(inc)
    check_queries(model, inc)
    return inc, targets(inc)


# None: only where the whole map is computed; the patch's few cells fill no tiles.
KINDS: dict[str, tuple[Callable[[], nn.Conv2d], bool | None]] = {
    "3x3": (lambda: conv(16, 24), True),
    "3x3, no padding": (lambda: nn.Conv2d(16, 17, 3), True),
    "3x3, wide padding": (lambda: nn.Conv2d(16, 16, 3, padding=2), True),
    "3x3, no bias": (lambda: nn.Conv2d(16, 33, 3, padding=1, bias=False), True),
    "5x5": (lambda: conv(48, 16, 5), True),
    "1x3": (lambda: conv(48, 64, (1, 3)), True),
    "3x1": (lambda: conv(48, 64, (3, 1)), True),
    "7x1": (lambda: conv(48, 64, (7, 1)), True),
    "1x7": (lambda: conv(48, 64, (1, 7)), True),
    "7x7": (lambda: conv(16, 16, 7), False),
    "1x1, stride": (lambda: nn.Conv2d(16, 40, 1, stride=2), filtering._SINGLE_CELLS),
    "stride": (lambda: nn.Conv2d(128, 256, 3, stride=2, padding=1), None),
    "stride, no padding": (lambda: nn.Conv2d(128, 256, 3, stride=2), None),
    "stride along one axis": (lambda: nn.Conv2d(48, 64, 3, stride=(2, 1)), False),
    "stride 3": (lambda: nn.Conv2d(48, 64, 3, stride=3), False),
    "dilation": (lambda: nn.Conv2d(16, 16, 3, padding=2, dilation=2), False),
    "groups": (lambda: nn.Conv2d(16, 32, 3, padding=1, groups=2), False),
    "few channels": (lambda: conv(16, 12), False),
}


@pytest.mark.skipif(not filtering._SINGLE_CELLS, reason="oneDNN's are taken here")
@pytest.mark.parametrize("dense", [False, True], ids=["front", "tail"])
def test_single_cells(dense: bool, seed: int) -> None:
    """What they read is the window of the layer before, in any case."""
    _, found = checked(nn.Sequential(conv(3, 16), nn.ReLU(), nn.Conv2d(16, 20, 1), nn.ReLU(), conv(20, 3)), dense)
    assert ON_WINDOWS in found


@pytest.mark.parametrize("dense", [False, True], ids=["front", "tail"])
@pytest.mark.parametrize(("make", "filtered"), KINDS.values(), ids=KINDS)
def test_kinds(make: Callable[[], nn.Conv2d], filtered: bool | None, dense: bool, seed: int) -> None:
    _, found = checked(nn.Sequential(conv(3, (made := make()).in_channels), nn.ReLU(), made, nn.ReLU()), dense)
    assert ((ON_WINDOWS if dense else ON_BASE) in found) == (dense if filtered is None else filtered)
    assert (found.count("aten.relu.default") == 0) or dense


ENDS: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "relu": (F.relu, ""),
    "relu6": (F.relu6, ""),
    "hardtanh": (lambda x: F.hardtanh(x, -1.5, 2.0), ""),
    "silu": (F.silu, "aten.silu_.default"),
    "hardswish": (F.hardswish, "aten.hardswish_.default"),
    "leaky relu": (lambda x: F.leaky_relu(x, 0.3), "aten.leaky_relu_.default"),
    "gelu": (F.gelu, "aten.gelu.default"),
}


@pytest.mark.parametrize(("function", "left"), ENDS.values(), ids=ENDS)
def test_activations(function: Callable[[Tensor], Tensor], left: str, seed: int) -> None:
    _, found = checked(nn.Sequential(conv(3, 16), Call(lambda x: 2 * x), conv(16, 16), Call(function)))
    assert ON_BASE in found
    after = found[found.index(ON_BASE) + 1 :]
    assert [name for name in after if name.startswith("aten.")] == ([left] if left else [])


SUMS: dict[str, tuple[Callable[..., Any], bool]] = {
    "two convolutions": (lambda net, y: F.relu(net.a(y) + net.b(y)), True),
    "other operand used twice": (
        lambda net, y: (lambda b: (net.a(y) + torch.tanh(b)) * torch.tanh(b))(net.b(y)), True),
    "an activation": (lambda net, y: F.silu(net.a(y) + net.b(y)), True),
    "alpha": (lambda net, y: torch.add(net.a(y), net.b(y), alpha=2), False),
    "a number": (lambda net, y: net.a(y) + 2.0, False),
    "a cell over the map": (lambda net, y: net.a(y) + net.b(y.mean((2, 3), keepdim=True)), False),
    "added to itself": (lambda net, y: (lambda a: a + a)(net.a(y)), False),
    "the block's input": (lambda net, y: F.relu(net.b(F.relu(net.a(y))) + y), False),
}  # fmt: skip


@pytest.mark.parametrize("dense", [False, True], ids=["front", "tail"])
@pytest.mark.parametrize(("join", "fused"), SUMS.values(), ids=SUMS)
def test_sums(join: Callable[..., Tensor], fused: bool, dense: bool, seed: int) -> None:
    _, found = checked(Wide(join), dense)
    assert (ON_WINDOWS if dense else ON_BASE) in found
    if fused:
        assert found.count("aten.add.Tensor") == dense  # what makes it dense


def test_a_window_that_others_read_is_made_once(seed: int) -> None:
    _, found = checked(nn.Sequential(conv(3, 16), nn.ReLU(), Wide16(), nn.ReLU()))
    assert {ON_WINDOWS, ON_BASE} & set(found)


@pytest.mark.parametrize("order", [(1, 2), (2, 1), (1, 2, 1), (2, 2, 1)], ids=str)
@pytest.mark.parametrize("policy", ["incremental", "full"])
def test_a_weight_shared_by_strides_is_packed_for_each(order: tuple[int, ...], policy: Any, seed: int) -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.weight = conv(3, 128), nn.Parameter(torch.randn(128, 128, 3, 3) / 34)

        def forward(self, x: Tensor) -> Tensor:
            x = F.interpolate(self.stem(x), scale_factor=2.0)
            for stride in order:
                x = F.relu(F.conv2d(x, self.weight, stride=stride, padding=1))
            return x.mean((2, 3))

    model, inc = compiled(Shared())
    inc.policy = policy
    check_queries(model, inc)
    if policy == "full":
        full = inc.executor().full
        assert isinstance(full, Deferred)
        assert full._module is not None
        tiles = {node.args[6] for node in full._module.graph.nodes if str(node.target) == ON_WINDOWS}
        assert {winograd.TILES[tile][0].stride for tile in tiles} == {1, 2}


class Wide16(nn.Module):
    """Two convolutions read the same window."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv(16, 16), conv(16, 16, groups=16)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) * self.b(x)


def test_without_native_kernels_convolutions_are_direct(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(winograd, "supported", lambda: False)
    _, found = checked(nn.Sequential(conv(3, 16), nn.ReLU(), conv(16, 16), nn.ReLU()))
    assert found.count("mkldnn._convolution_pointwise.default") == 2


@pytest.mark.parametrize(
    ("kernel", "sizes", "stride", "expected"),
    [((3, 3), (14, 14), 1, (4, 3, 1)), ((3, 3), (5, 5), 1, (3, 3, 1)), ((3, 3), (4, 4), 1, (2, 3, 1)),
     ((3, 3), (3, 3), 1, None), ((1, 7), (9, 14), 1, (1, 1, 1)), ((2, 2), (9, 9), 1, None),
     ((3, 3), (17, 17), 2, (4, 3, 2)), ((3, 3), (19, 19), 2, (3, 3, 2)), ((3, 3), (3, 3), 2, None)],
)  # fmt: skip
def test_the_tile_is_the_one_that_saves_most(kernel, sizes, stride, expected) -> None:
    tile = filtering.tile_for(torch.zeros(256, 256, *kernel), sizes, (0, 0), (stride, stride), (1, 1), 1)
    assert (None if tile is None else winograd.TILES[tile][0]) == expected


@pytest.mark.parametrize("policy", ["incremental", "full"])
@pytest.mark.parametrize("where", ["image", "patch"])
def test_values_out_of_all_proportion_are_convolved_directly(where: str, policy: Any, seed: int) -> None:
    """One of 1e12 or 1e30 would spoil the last digits of its neighbours, which tanh then brings to light."""
    model = nn.Sequential(conv(3, 16), conv(16, 32), Call(torch.tanh), conv(32, 32), Call(torch.tanh)).eval()
    image, patch = torch.randn(3, 24, 24), torch.randn(3, 4, 4)
    if where == "image":
        image[:, 14, 13] = 1e12  # beside the third position
    else:
        patch[:, 2, 2] = 1e30
    inc = kcompile.incrementalize(model, (3, 24, 24), 4)
    inc.policy = policy
    inc.materialize(image)
    positions = [[0, 0], [3, 9], [12, 15], [20, 20]]
    got = inc.forward_patches(patch, positions)
    for row, (top, left) in zip(got, positions, strict=True):
        full = image.clone()
        full[:, top : top + 4, left : left + 4] = patch
        with torch.no_grad():
            want = model(full[None])[0]
        assert float((row - want).abs().max()) <= 1e-4 * float(want.abs().max())
    inc.materialize(torch.randn(3, 24, 24))
    inc.forward_patches(torch.randn(3, 4, 4), positions)
    assert "lowered" in inc.runners.executors
