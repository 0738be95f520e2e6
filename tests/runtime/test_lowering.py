"""The lowered CPU modules against the emitted ones; which additions may be formed in place, and which not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import kcompile
from kcompile.runtime.executor import Executor
from kcompile.runtime.full import Deferred
from kcompile.runtime.lowering import available
from tests.support.equivalence import assert_equivalent, full_inference, incremental, noise
from tests.support.networks import Call, conv, ready

SHAPE, PATCH = (3, 20, 23), (6, 5)

pytestmark = pytest.mark.skipif(
    not available(torch.float32, torch.device("cpu")), reason="this build of torch has no oneDNN ops"
)


class Block(nn.Module):
    """Convolutions ``a`` and ``b`` of the same regions, ``narrow`` of smaller ones, joined by a function."""

    def __init__(self, join: Callable[..., Tensor], **others: nn.Module) -> None:
        super().__init__()
        self.stem = conv(3, 5)
        self.a, self.b, self.narrow = conv(5, 5), conv(5, 5), conv(5, 5, (1, 3))
        for name, module in others.items():
            self.add_module(name, module)
        self.join = join

    def forward(self, x: Tensor) -> Tensor:
        return self.join(self, F.relu(self.stem(x)), x)


def compiled(model: nn.Module, dense: bool = False) -> tuple[nn.Module, kcompile.IncrementalModule]:
    """The module compiled and materialised; ``dense``: the whole network is in the tail."""
    model = nn.Sequential(Call(lambda x: x + 0.1 * x.mean((2, 3), keepdim=True)), model) if dense else model
    model = ready(model, SHAPE, torch.float32)
    inc = incremental(model, SHAPE, PATCH)
    inc.materialize(noise(SHAPE))
    return model, inc


def both(inc: kcompile.IncrementalModule) -> tuple[list[Tensor], list[Tensor]]:
    """What the lowered modules and the emitted ones make of some queries in one batch."""
    positions = np.array([[-3, 2], [0, 0], [7, 9], [14, 18], [16, 20], [9, 3]])
    patches = noise((len(positions), *SHAPE[:1], *PATCH), size=3.0)
    assert inc._store is not None
    index = np.zeros(len(positions), dtype=np.int64)
    arguments = inc.executor().arguments(inc._store, patches, positions, index)
    plain = Executor(inc.plan, inc.front, inc.tail).arguments(inc._store, patches, positions, index)
    with torch.no_grad():
        lowered = inc.executor().front(*arguments)
        emitted = inc.front(*plain)
        return [*lowered, *inc.executor().tail(*lowered)], [*emitted, *inc.tail(*emitted)]


def targets(inc: kcompile.IncrementalModule) -> list[str]:
    graphs = (inc.executor().front.graph, inc.executor().tail.graph)
    return [str(node.target) for graph in graphs for node in graph.nodes if node.op == "call_function"]


def assert_same(inc: kcompile.IncrementalModule) -> None:
    for mine, want in zip(*both(inc), strict=True):
        assert want.std() > 1e-3, "void"
        torch.testing.assert_close(mine, want, rtol=0, atol=1e-5 * float(want.abs().max()))


ACTIVATIONS: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "relu": (F.relu, "relu"),
    "relu6": (F.relu6, "hardtanh"),
    "hardtanh": (F.hardtanh, "hardtanh"),
    "hardtanh with bounds": (lambda x: F.hardtanh(x, -0.3, 0.2), "hardtanh"),
    "clamp": (lambda x: x.clamp(-0.2, 0.1), ""),
    "silu": (F.silu, "swish"),
    "hardswish": (F.hardswish, "hardswish"),
    "sigmoid": (torch.sigmoid, "sigmoid"),
    "tanh": (torch.tanh, "tanh"),
    "leaky relu": (F.leaky_relu, "leaky_relu"),
    "leaky relu with slope": (lambda x: F.leaky_relu(x, 0.3), "leaky_relu"),
    "hardsigmoid": (F.hardsigmoid, ""),
    "gelu": (F.gelu, ""),
    "elu": (F.elu, ""),
}


@pytest.mark.parametrize("dense", [False, True], ids=["front", "tail"])
@pytest.mark.parametrize(("function", "fused"), ACTIVATIONS.values(), ids=ACTIVATIONS)
def test_activations(function: Callable[[Tensor], Tensor], fused: str, dense: bool, seed: int) -> None:
    _, inc = compiled(nn.Sequential(conv(3, 5), Call(lambda x: 2 * x), conv(5, 4), Call(function)), dense)
    assert_same(inc)
    nodes = [node for graph in (inc.executor().front.graph, inc.executor().tail.graph) for node in graph.nodes]
    convolutions = [node for node in nodes if str(node.target) == "mkldnn._convolution_pointwise.default"]
    assert len(convolutions) == 2, "a convolution was not lowered"
    assert [arg for arg in convolutions[-1].args if isinstance(arg, str)] == [fused or "none"]


FUSED: dict[str, Callable[..., Tensor]] = {
    "two convolutions": lambda net, y, x: net.a(y) + net.b(y),
    "two convolutions, relu": lambda net, y, x: F.relu(net.a(y) + net.b(y)),
    "other operand first": lambda net, y, x: F.relu(net.b(y).add(net.a(y))),
    "in place": lambda net, y, x: F.relu_(net.a(y).add_(net.b(y))),
    "hardtanh": lambda net, y, x: F.hardtanh(net.a(y) + net.b(y), -0.4, 0.3),
    "three": lambda net, y, x: F.silu(net.a(y) + net.b(y) + net.b(y * 2)),
    "a smaller region": lambda net, y, x: F.relu(net.a(y) + net.narrow(y)),
    "a smaller region, first": lambda net, y, x: net.narrow(y) + net.a(y),
}

UNFUSED: dict[str, Callable[..., Tensor]] = {
    "other operand used twice": lambda net, y, x: (lambda b: (net.a(y) + torch.tanh(b)) * torch.tanh(b))(net.b(y)),
    "other convolution used twice": lambda net, y, x: (lambda b: torch.tanh(net.a(y) + b) * b)(torch.abs(net.b(y))),
    "alpha": lambda net, y, x: torch.add(net.a(y), net.b(y), alpha=2),
    "alpha, other first": lambda net, y, x: F.relu(torch.add(y, net.a(y), alpha=-0.5)),
    "output used twice": lambda net, y, x: (lambda a: (a + torch.tanh(net.b(y))) * a)(net.a(y)),
    "added to itself": lambda net, y, x: (lambda a: a + a)(net.a(y)),
    "a number": lambda net, y, x: net.a(y) + 2.0,
    "subtracted": lambda net, y, x: net.a(y) - net.b(y),
}


@pytest.mark.parametrize("dense", [False, True], ids=["front", "tail"])
@pytest.mark.parametrize("join", FUSED.values(), ids=FUSED)
def test_sums_in_place(join: Callable[..., Tensor], dense: bool, seed: int) -> None:
    model, inc = compiled(Block(join), dense)
    assert "mkldnn._convolution_pointwise_.binary" in targets(inc)
    assert_same(inc)
    check_queries(model, inc)


@pytest.mark.parametrize("dense", [False, True], ids=["front", "tail"])
@pytest.mark.parametrize("join", UNFUSED.values(), ids=UNFUSED)
def test_sums_that_must_not_be_in_place(join: Callable[..., Tensor], dense: bool, seed: int) -> None:
    model, inc = compiled(Block(join), dense)
    assert "mkldnn._convolution_pointwise_.binary" not in targets(inc)
    assert_same(inc)
    check_queries(model, inc)


def _pooled(net: Any, y: Tensor) -> Tensor:
    return y.mean((2, 3), keepdim=True)


BROADCAST: dict[str, Callable[..., Tensor]] = {
    "a cell over the map": lambda net, y, x: net.a(y) + net.b(_pooled(net, y)),
    "a cell over the map, first": lambda net, y, x: F.relu(net.b(_pooled(net, y)) + net.a(y)),
    "a row over the map": lambda net, y, x: net.a(y) + net.b(y.mean(2, keepdim=True)),
    "one channel": lambda net, y, x: net.a(y) + net.one(y),
    "a constant": lambda net, y, x: net.a(y) + net.map,
    "a constant row": lambda net, y, x: F.relu(net.map[:, :, :1] + net.a(y)),
    "the image": lambda net, y, x: net.last(y) + x,
    "the input of the block": lambda net, y, x: F.relu(net.a(y) + y),
}


@pytest.mark.parametrize("dense", [False, True], ids=["front", "tail"])
@pytest.mark.parametrize("join", BROADCAST.values(), ids=BROADCAST)
def test_sums_with_broadcast_and_with_base_tensors(join: Callable[..., Tensor], dense: bool, seed: int) -> None:
    """Whatever is fused: base tensors and constants keep their values, so that a second run gives the same."""
    block = Block(join, one=conv(5, 1), last=conv(5, 3))
    block.register_buffer("map", torch.randn(1, 5, *SHAPE[1:]))
    model, inc = compiled(block, dense)
    assert_same(inc)
    check_queries(model, inc)


def check_queries(model: nn.Module, inc: kcompile.IncrementalModule) -> None:
    image = noise(SHAPE)
    before = inc.materialize(image)
    assert inc._store is not None
    tensors = {name: tensor.clone() for name, tensor in inc._store.tensors.items()}
    positions = np.array([[-2, 1], [0, 0], [3, 8], [3, 9], [14, 18], [19, 22]])
    patches = noise((len(positions), 3, *PATCH), size=3.0)
    for _ in range(2):  # nothing that the first run wrote shows in the second
        got = inc.forward_patches(patches, positions)
        assert_equivalent(got, full_inference(model, image[None], patches, positions), before)
    assert all(torch.equal(tensors[name], tensor) for name, tensor in inc._store.tensors.items())


WEIGHTS: dict[str, Callable[[], nn.Module]] = {
    "1x1": lambda: nn.Conv2d(8, 4, 1),
    "1x1 stride 2": lambda: nn.Conv2d(8, 4, 1, stride=2),
    "5x3": lambda: nn.Conv2d(8, 7, (5, 3), padding=(2, 1)),
    "7x7 stride 2": lambda: nn.Conv2d(8, 16, 7, 2, 3),
    "2x4": lambda: nn.Conv2d(8, 3, (2, 4), padding=(1, 2)),
    "no padding": lambda: nn.Conv2d(8, 3, 3),
    "no bias": lambda: nn.Conv2d(8, 33, 3, padding=1, bias=False),
    "dilated": lambda: nn.Conv2d(8, 6, 3, padding=2, dilation=2),
    "same": lambda: nn.Conv2d(8, 6, (4, 3), padding="same"),
    "groups": lambda: nn.Conv2d(8, 12, 3, padding=1, groups=4),
    "depthwise": lambda: nn.Conv2d(8, 8, 3, padding=1, groups=8),
    "depthwise, multiplied": lambda: nn.Conv2d(8, 16, 5, 2, 2, groups=8),
    "one channel": lambda: nn.Conv2d(8, 1, 3, padding=1),
}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")  # torch's own advice
@pytest.mark.parametrize("dense", [False, True], ids=["front", "tail"])
@pytest.mark.parametrize("make", WEIGHTS.values(), ids=WEIGHTS)
def test_weights_of_all_kinds(make: Callable[[], nn.Module], dense: bool, seed: int) -> None:
    model, inc = compiled(nn.Sequential(conv(3, 8), nn.ReLU(), make(), nn.SiLU()), dense)
    assert_same(inc)
    check_queries(model, inc)


def test_weights_without_gradient_or_in_channels_last(seed: int) -> None:
    model = nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 4)).requires_grad_(False).to(memory_format=torch.channels_last)
    model, inc = compiled(model)
    assert targets(inc).count("mkldnn._convolution_pointwise.default") == 2
    assert_same(inc)


def test_float64_is_not_lowered(seed: int) -> None:
    model = nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 4)).double()
    inc = incremental(model, SHAPE, PATCH)
    assert inc.executor().front is inc.front
    assert inc.executor().tail is inc.tail


def test_the_emitted_modules_stay_as_they_are(seed: int) -> None:
    model = ready(Block(lambda net, y, x: F.relu(net.a(y) + net.b(y))), SHAPE, torch.float32)
    inc = incremental(model, SHAPE, PATCH)
    front, weights = inc.front.code, {name: value.clone() for name, value in model.state_dict().items()}
    inc.executor()
    assert inc.front.code == front
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("first", "second", "shape", "patch"),
    [
        (nn.Conv2d(3, 8, 7, padding=3), nn.Conv2d(8, 8, 7, padding=3), (3, 5, 200), (5, 5)),
        (nn.Conv2d(3, 8, 3, padding=12, dilation=12), nn.Conv2d(8, 8, 3, padding=1), (3, 16, 64), (16, 4)),
        (nn.Conv2d(3, 8, 3, stride=(8, 1), padding=1), nn.Conv2d(8, 8, (7, 1), padding=(3, 0)), (3, 32, 64), (16, 4)),
    ],
    ids=["narrow map", "wide dilation", "narrow after stride"],
)
def test_maps_narrower_than_the_kernel(
    first: nn.Module, second: nn.Module, shape: tuple[int, ...], patch: tuple[int, ...], seed: int
) -> None:
    model = nn.Sequential(first, nn.ReLU(), second).eval()
    inc = kcompile.incrementalize(model, shape, patch)
    image = torch.randn(shape)
    inc.materialize(image)
    found = kcompile.verify(inc, image, positions=12, seed=seed)
    assert found.ok, str(found)


def test_nan_that_arises_in_the_base_is_not_fused_away(seed: int) -> None:
    """Finite images, NaN inside: fused activations would make numbers of it."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), Call(torch.sqrt), nn.Conv2d(4, 4, 1), nn.ReLU()).eval()
    inc = kcompile.incrementalize(model, (3, 20, 20), 4)
    image, patches = torch.randn(3, 20, 20), torch.randn(3, 3, 4, 4)
    base = inc.materialize(image)
    assert base.isnan().any()
    assert not base.isnan().all()
    positions = np.array([[0, 0], [8, 9], [16, 16]])
    full = full_inference(model, image.unsqueeze(0), patches, positions)
    assert torch.equal(inc.forward_patches(patches, positions).isnan(), full.isnan())


LINEAR: dict[str, tuple[Callable[..., Tensor], str]] = {
    "head": (lambda net, y: F.linear(y.mean((2, 3)), net.weight, net.bias), "none"),
    "flattened, relu": (lambda net, y: F.relu(F.linear(y[:, :, :2, :2].flatten(1), net.wide, net.bias)), "relu"),
    "no bias": (lambda net, y: torch.tanh(F.linear(y.amax((2, 3)), net.weight)), "tanh"),
    "per pixel": (lambda net, y: F.linear(y.permute(0, 2, 3, 1), net.weight, net.bias).permute(0, 3, 1, 2), "none"),
    "per pixel, silu": (lambda net, y: F.silu(F.linear(y.permute(0, 2, 3, 1), net.weight, net.bias)), "swish"),
}


@pytest.mark.parametrize("dense", [False, True], ids=["front", "tail"])
@pytest.mark.parametrize(("function", "attr"), LINEAR.values(), ids=LINEAR)
def test_linear_layers(function: Callable[..., Tensor], attr: str, dense: bool, seed: int) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = conv(3, 5)
            self.weight, self.wide = nn.Parameter(torch.randn(7, 5)), nn.Parameter(torch.randn(7, 20))
            self.bias = nn.Parameter(torch.randn(7))

        def forward(self, x: Tensor) -> Tensor:
            return function(self, self.stem(x))

    model, inc = compiled(Net(), dense)
    nodes = [node for graph in (inc.executor().front.graph, inc.executor().tail.graph) for node in graph.nodes]
    found = [node.args[3] for node in nodes if str(node.target) == "mkldnn._linear_pointwise.default"]
    assert found == [attr]
    assert_same(inc)
    check_queries(model, inc)


def test_full_inference_is_lowered_and_shares_packed_weights(seed: int) -> None:
    model, inc = compiled(nn.Sequential(conv(3, 16), nn.ReLU(), conv(16, 16), nn.ReLU(), conv(16, 4)))
    inc.policy = "full"
    check_queries(model, inc)
    made = inc.executor()
    assert isinstance(made.full, Deferred)
    full = made.full._module
    assert full is not None
    assert not [node for node in full.graph.nodes if str(node.target) == "aten.conv2d.default"]
    ours = {id(tensor) for tensor in made.front.buffers()}  # oneDNN's have no address
    packed = [id(tensor) for name, tensor in full.named_buffers() if name.startswith("packed_")]
    assert len(packed) == 3
    assert set(packed) <= ours


def test_loaded_modules_are_lowered_in_full_too(seed: int, tmp_path: Path) -> None:
    model, inc = compiled(nn.Sequential(conv(3, 16), nn.ReLU(), conv(16, 4)))
    inc.save(tmp_path / "module.kc")
    loaded = kcompile.load(tmp_path / "module.kc")
    loaded.policy = "full"
    check_queries(model, loaded)
    full = loaded.executor().full
    assert isinstance(full, Deferred)
    assert full._module is not None
    assert not [node for node in full._module.graph.nodes if str(node.target) == "aten.conv2d.default"]
