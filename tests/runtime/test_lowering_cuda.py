"""Graphs lowered for GPUs against full inference, on the reference ops and on the kernels' source; what is fused."""

from __future__ import annotations

import logging
import random
from collections import Counter
from collections.abc import Callable
from math import inf
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

import kcompile
from kcompile.cuda_ops import cuda, cuda_linear, cuda_reads
from kcompile.passes import place
from kcompile.runtime import lowering_cuda, lowering_windows
from kcompile.runtime.derived import Lowered
from tests.support.cuda_on_cpu import CpuLauncher, needs_gxx
from tests.support.equivalence import assert_equivalent, full_inference, incremental, noise
from tests.support.networks import (
    Branches,
    Call,
    DenseBlock,
    Residual,
    add,
    conv,
    conv_bn_relu,
    inception,
    pooled_head,
    ready,
)

SHAPE, PATCH = (3, 20, 23), (6, 5)
aten = torch.ops.aten
KERNELS: dict[Any, Callable[..., Tensor]] = {
    getattr(torch.ops.kcompile, name).default: getattr(module, name)
    for module, names in (
        (cuda, ("gather", "superimpose", "gather_superimpose", "crop")),
        (cuda_reads, ("read_activated", "read_pooled", "read_mean", "read_joined", "ended")),
        (cuda_linear, ("read_linear",)),
    )
    for name in names
}


@pytest.fixture
def lowered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Modules run as on a GPU, on the reference ops. In float64, which the CPU's own lowering leaves alone."""
    monkeypatch.setattr(lowering_cuda, "available", lambda _: True)


@pytest.fixture
def on_kernels(on_cpu: CpuLauncher, lowered: None, monkeypatch: pytest.MonkeyPatch) -> CpuLauncher:
    """Modules run as on a GPU, on the kernels' source."""
    plain = lowering_cuda.lower

    def swapped(*given: Any) -> Lowered:
        lowered = plain(*given)
        for module in (lowered.front, lowered.tail):
            for node in module.graph.nodes:
                node.target = KERNELS.get(node.target, node.target)
            module.recompile()
        return lowered

    monkeypatch.setattr(lowering_cuda, "lower", swapped)
    return on_cpu


def targets(inc: kcompile.IncrementalModule) -> Counter[str]:
    """How often each op is in the lowered graphs."""
    graphs = (inc.executor().front.graph, inc.executor().tail.graph)
    calls = [node.target for graph in graphs for node in graph.nodes if node.op == "call_function"]
    return Counter(getattr(target, "name", lambda: str(target))().split("::")[-1] for target in calls)  # noqa: B023


def check(inc: kcompile.IncrementalModule) -> None:
    """Hold some queries against full inference."""
    image, patches = noise(SHAPE, torch.float64), noise((6, 3, *PATCH), torch.float64, 3.0)
    positions = np.array([[-3, 2], [0, 0], [7, 9], [14, 18], [16, 20], [9, 3]])
    before = inc.materialize(image)
    got = inc.forward_patches(patches, positions)
    assert_equivalent(got, full_inference(inc.model, image[None], patches, positions), before)


def compiled(model: nn.Module) -> kcompile.IncrementalModule:
    return incremental(ready(model, SHAPE), SHAPE, PATCH)


def pools(x: Tensor) -> Tensor:
    y = F.max_pool2d(x, 3, 2, 1)
    return F.avg_pool2d(F.max_pool2d(y, 2, 1, dilation=2), (2, 3), stride=1)


def _means(a: Tensor, b: Tensor) -> Tensor:
    return a.mean((2, 3)) * b.mean((3, 2), keepdim=True).flatten(1)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], dict[str, int]]] = {
    "convolutions": (
        lambda: nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 8), nn.ReLU6(), conv(8, 4)),
        {"read_activated": 3, "relu": 0, "hardtanh": 0},
    ),
    "pools": (
        lambda: nn.Sequential(conv(3, 8), nn.ReLU(), Call(pools)),
        {"read_pooled": 3, "max_pool2d": 0, "avg_pool2d": 0, "relu": 0},
    ),
    "residual": (
        lambda: nn.Sequential(conv(3, 8), Residual(8, 8, stride=1)),
        {"read_joined": 1, "add.Tensor": 0, "relu": 0},
    ),
    "sum of two windows": (
        lambda: nn.Sequential(conv(3, 4), Branches(add, conv(4, 8, (1, 5)), conv(4, 8, (5, 1))), nn.Hardtanh()),
        {"read_joined": 1, "add.Tensor": 0, "hardtanh": 0},
    ),
    "inception": (lambda: nn.Sequential(conv(3, 4), inception(4), conv_bn_relu(9, 4)), {"read_joined": 1, "cat": 0}),
    "dense block": (
        lambda: nn.Sequential(conv(3, 8), DenseBlock(8), nn.BatchNorm2d(12), nn.ReLU(), conv(12, 3)),
        {"cat": 0, "read_joined": 2},
    ),
    "mean of a map": (
        lambda: pooled_head(nn.Sequential(conv(3, 8), nn.ReLU()), 8),
        {"read_mean": 1, "relu": 0, "avg_pool2d": 0, "adaptive_avg_pool2d": 0},
    ),
    "mean of a padded map": (
        lambda: nn.Sequential(
            conv(3, 8), nn.ReLU6(), Branches(_means, nn.Identity(), conv(8, 8, 5)), nn.Linear(8, 3)
        ),
        {"read_mean": 2, "hardtanh": 0, "mean.dim": 0},
    ),
    "a pool as wide as the map, that is padded": (
        lambda: nn.Sequential(conv(3, 8, stride=4), nn.ReLU(), nn.AvgPool2d((5, 6), 1, (0, 1)), conv(8, 3, 1)),
        {"read_mean": 0},
    ),
    "linear layer of a map": (
        lambda: nn.Sequential(
            conv(3, 8, stride=4), nn.ReLU(), conv(8, 6), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 5 * 6, 7), nn.Tanh(),
            nn.Linear(7, 3),
        ),
        {"read_linear": 1, "linear": 1, "flatten.using_ints": 0, "relu": 0},
    ),
    "convolutions of single cells": (
        lambda: nn.Sequential(conv(3, 8, 1), nn.ReLU(), conv(8, 8, 1), nn.SiLU()),
        {"ended": 1, "relu": 0, "silu": 1},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_on_the_reference_ops(name: str, lowered: None, seed: int) -> None:
    factory, expected = NETWORKS[name]
    inc = compiled(factory())
    found = targets(inc)
    assert {op: found[op] for op in expected} == expected
    check(inc)


@needs_gxx
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_on_the_kernels(name: str, on_kernels: CpuLauncher, seed: int) -> None:
    inc = compiled(NETWORKS[name][0]())
    check(inc)
    assert {kernel for kernel, _ in on_kernels.launched} & {"activated", "pooled", "joined", "mean", "linear"}


@pytest.mark.parametrize("kernels", [False, pytest.param(True, marks=needs_gxx)])
def test_random_graphs(kernels: bool, request: pytest.FixtureRequest, monkeypatch: Any, seed: int) -> None:
    from tests.fuzz.campaign import search  # needs hypothesis, which GPU machines may lack

    monkeypatch.setattr(logging.getLogger("torch.__trace"), "disabled", True)
    request.getfixturevalue("on_kernels" if kernels else "lowered")
    tally = search(random.randrange(2**32), 30)
    assert tally.reacting >= 0.6 * tally.graphs


def _sum_and_more(a: Tensor, b: Tensor) -> Tensor:
    return F.relu(a + b).flatten(1).cumsum(1)


HEADS: dict[str, tuple[Callable[[], nn.Module], Any, dict[str, int], list[tuple[int, ...]]]] = {
    "a pool": (
        lambda: nn.Sequential(nn.MaxPool2d(3, 2, 1), nn.Flatten(), nn.Linear(6 * 5 * 6, 4)),
        aten.max_pool2d.default,
        {"max_pool2d": 0, "read_pooled": 1, "linear": 1},
        [(6, 5, 6)],
    ),
    "a pool that rounds up": (
        lambda: nn.Sequential(nn.MaxPool2d(3, 2, ceil_mode=True), nn.Flatten()),
        aten.max_pool2d.default,
        {"max_pool2d": 1, "read_pooled": 0},
        [(6, 10, 12)],
    ),
    "a residual sum": (
        lambda: nn.Sequential(Branches(add, conv(6, 6), nn.Identity()), nn.ReLU6(), nn.AvgPool2d(2), nn.Flatten()),
        aten.add.Tensor,
        {"add.Tensor": 0, "hardtanh": 0, "read_joined": 1, "avg_pool2d": 1},
        [(6, 10, 12)],
    ),
    "a sum before something else": (
        lambda: Branches(_sum_and_more, conv(6, 6), conv(6, 6, 1)),
        aten.add.Tensor,
        {"add.Tensor": 0, "relu": 0, "read_joined": 1, "cumsum": 1},
        [(6, 10, 12)],
    ),
    "branches": (
        lambda: Branches(lambda a, b: torch.cat([a, b], 1).mul(2), conv(6, 6, 5), conv(6, 4, 1)),
        aten.cat.default,
        {"cat": 0, "read_joined": 1, "mul.Tensor": 1},
        [(10, 10, 12)],
    ),
    "branches with something beside": (
        lambda: Branches(lambda a, b: (torch.cat([a, b], 1), a.sigmoid()), conv(6, 6), conv(6, 4, 1)),
        aten.cat.default,
        {"cat": 1, "read_joined": 0},
        [(6, 10, 12), (4, 10, 12)],
    ),
}


@pytest.mark.parametrize("name", HEADS)
def test_what_a_tail_begins_with(name: str, lowered: None, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """Where placement makes an op dense, as VGG16's last pool: it runs where the whole map is read."""
    factory, dense, expected, shapes = HEADS[name]
    cost = place.incremental_cost
    monkeypatch.setattr(
        place, "incremental_cost", lambda found, node: inf if node.target is dense else cost(found, node)
    )
    inc = compiled(nn.Sequential(conv(3, 8, stride=2), nn.ReLU(), conv(8, 6), nn.ReLU(), factory()))
    assert any(node.target is dense for node in inc.tail.graph.nodes)
    executor, found = inc.executor(), targets(inc)
    assert {op: found[op] for op in expected} == expected
    handed = [node for node in executor.tail.graph.nodes if node.op == "placeholder"]
    assert [node.meta["shape"] for node in handed] == shapes
    assert len(executor.front.graph.output_node().args[0]) == len(shapes)
    check(inc)


def test_a_dense_tail_ends_its_convolutions_in_one_op(lowered: None, seed: int) -> None:
    model = nn.Sequential(Call(lambda x: x + 0.1 * x.mean((2, 3), keepdim=True)), conv(3, 8), Residual(8, 8, stride=1))
    inc = compiled(model)
    assert targets(inc)["relu"] == targets(inc)["add.Tensor"] - 1 == 0
    assert targets(inc)["ended"] == 2  # convolution and ReLU; convolution, sum and ReLU
    check(inc)


LEFT_ALONE: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "a sum with a factor": (lambda x: torch.add(F.max_pool2d(x, 3, 1, 1), x, alpha=2), "add.Tensor"),
    "a sum with a number": (lambda x: F.max_pool2d(x, 3, 1, 1) + 2, "add.Tensor"),
    "a sum that is broadcast": (lambda x: F.max_pool2d(x, 3, 1, 1) + torch.ones(8, 1, 1).double(), "add.Tensor"),
    "a leaky activation": (lambda x: F.max_pool2d(F.leaky_relu(x), 3), "leaky_relu"),
}  # fmt: skip


@pytest.mark.parametrize("name", LEFT_ALONE)
def test_what_is_left_alone(name: str, lowered: None, seed: int) -> None:
    function, op = LEFT_ALONE[name]
    inc = compiled(nn.Sequential(conv(3, 8), Call(function), conv(8, 4)))
    assert targets(inc)[op] == 1, targets(inc)
    check(inc)


def test_an_activation_that_something_else_reads_stays(lowered: None, seed: int) -> None:
    branches = Branches(add, conv(8, 8, 1), nn.MaxPool2d(3, 1, 1))
    inc = compiled(nn.Sequential(conv(3, 8), nn.ReLU(), branches, conv(8, 4)))
    assert targets(inc)["ended"] == 1
    check(inc)


@pytest.mark.parametrize(
    ("op", "args", "geometry"),
    [
        ("max_pool2d", ([3, 2],), ([3, 2], [3, 2], [0, 0], [1, 1], 0)),
        ("max_pool2d", ([3, 3], [2, 1], [1, 0], [1, 2]), ([3, 3], [2, 1], [1, 0], [1, 2], 0)),
        ("max_pool2d", ([3, 3], [2, 2], [0, 0], [1, 1], True), None),  # may have a window that sticks out
        ("avg_pool2d", ([3, 2], [1, 1], [0, 0], False, False), ([3, 2], [1, 1], [0, 0], [1, 1], 6)),
        ("avg_pool2d", ([3, 2], [1, 1], [0, 0], False, True, 4), ([3, 2], [1, 1], [0, 0], [1, 1], 4)),
        ("avg_pool2d", ([3, 2], [1, 1], [1, 1]), None),  # its border has other divisors
        ("avg_pool2d", ([3, 2], [1, 1], [0, 0], True), None),
        ("max_pool1d", ([3],), ([3], [3], [0], [1], 0)),
        ("avg_pool3d", ([1, 2, 3], [1]), ([1, 2, 3], [1, 1, 1], [0, 0, 0], [1, 1, 1], 6)),
    ],
)
def test_arguments_of_pools(op: str, args: tuple[Any, ...], geometry: tuple[Any, ...] | None) -> None:
    graph = fx.Graph()
    node = graph.call_function(getattr(torch.ops.aten, op).default, (graph.placeholder("window"), *args))
    assert lowering_windows.pool_geometry(node) == geometry


def test_an_activation_of_two_readers_is_moved_into_both(lowered: None, seed: int) -> None:
    def both(x: Tensor) -> Tensor:
        y = F.relu(x)
        return F.max_pool2d(y, 3, 1, 1) - F.avg_pool2d(y, 5, 1, 2, divisor_override=7)

    inc = compiled(nn.Sequential(conv(3, 8), Call(both)))
    assert targets(inc)["read_pooled"] == 2
    assert not targets(inc)["relu"]
    check(inc)


def test_weights_are_channels_last_and_held_once(lowered: None, seed: int) -> None:
    shared = conv(8, 8)
    model = nn.Sequential(conv(3, 8), shared, nn.ReLU(), shared, nn.AdaptiveAvgPool2d(5), shared)
    executor = compiled(model).executor()
    weights = [
        getattr(module, node.args[1].target)
        for module in (executor.front, executor.tail)
        for node in module.graph.nodes
        if node.target is torch.ops.aten.conv2d.default
    ]
    assert len(weights) == 4
    assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in weights)
    assert len({weight.data_ptr() for weight in weights}) == 2
    assert shared.weight.is_contiguous(), "the model's own weights stay as they are"


def test_the_emitted_front_stays_as_it_is(lowered: None, seed: int) -> None:
    inc = compiled(NETWORKS["convolutions"][0]())
    before = inc.front.code
    inc.executor()
    assert inc.front.code == before
    assert not any(name.startswith("read") for name in targets_of(inc.front))


def targets_of(module: fx.GraphModule) -> list[str]:
    return [str(node.target).split(".")[-2] for node in module.graph.nodes if node.op == "call_function"]


def test_not_on_the_cpu_and_not_where_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not lowering_cuda.available(torch.empty(0))
    monkeypatch.setattr(lowering_cuda, "launcher", lambda _: object())
    fake = torch.empty(0, device="meta")
    monkeypatch.setattr(torch.Tensor, "is_cuda", True, raising=False)
    assert lowering_cuda.available(fake)
    assert not lowering_cuda.available(fake.to(torch.int64))
    monkeypatch.setattr(lowering_cuda, "FUSE", False)
    assert not lowering_cuda.available(fake)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_on_the_gpu(name: str, seed: int) -> None:
    factory, expected = NETWORKS[name]
    inc = compiled(factory())
    image, patches = noise(SHAPE).double(), noise((4, 3, *PATCH), size=3.0).double()
    positions = [[0, 0], [7, 9], [16, 20], [-3, 2]]
    inc.materialize(image)
    want = inc.forward_patches(patches, positions)
    inc.to("cuda").materialize(image.cuda())
    found = targets(inc)
    assert {op: found[op] for op in expected} == expected
    mine = inc.forward_patches(patches.cuda(), positions)
    torch.testing.assert_close(mine.cpu(), want, rtol=0, atol=1e-9 * float(want.abs().max()))
