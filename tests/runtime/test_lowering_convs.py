"""Convolutions that read base and patch directly: which are rewritten, and the results against full inference."""

from __future__ import annotations

import copy
from collections.abc import Callable
from math import inf
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kcompile.cuda_ops import triton_conv
from kcompile.cuda_ops.convolved import TILES, WINDOWS
from kcompile.cuda_ops.tuning import Tuner
from kcompile.runtime import lowering_convs, lowering_cuda
from kcompile.runtime.lowering_convs import Candidate, measured
from tests.runtime.test_lowering_cuda import NETWORKS, PATCH, SHAPE, check, compiled, lowered, targets
from tests.support.equivalence import incremental
from tests.support.networks import Branches, Call, Residual, add, conv, conv_bn_relu, ready
from tests.support.triton_on_cpu import interpreted, needs_triton

__all__ = ["lowered"]
ops = torch.ops.kcompile


@pytest.fixture
def chosen(lowered: None, monkeypatch: pytest.MonkeyPatch) -> list[Candidate]:
    """Every convolution that can is rewritten; the candidates are listed."""
    seen: list[Candidate] = []

    def choice(candidate: Candidate) -> int:
        seen.append(candidate)
        return 0

    monkeypatch.setattr(lowering_convs, "measured", lambda *_: choice)
    return seen


@pytest.mark.parametrize("name", NETWORKS)
def test_networks(name: str, chosen: list[Candidate], seed: int) -> None:
    inc = compiled(NETWORKS[name][0]())
    found = targets(inc)
    assert found["read_convolved"] == len(chosen)
    assert chosen or name == "convolutions of single cells"
    check(inc)


def test_bias_and_activation_go_along(chosen: list[Candidate], seed: int) -> None:
    model = nn.Sequential(
        conv(3, 8), nn.ReLU(), conv(8, 8, (1, 7), stride=2), nn.ReLU6(), conv(8, 4, dilation=2, padding=2)
    )
    inc = compiled(model)
    found = targets(inc)
    assert (found["read_convolved"], found["conv2d"], found["relu"], found["hardtanh"]) == (3, 0, 0, 0)
    assert [c.limits for c in chosen] == [(0.0, float("inf")), (0.0, 6.0), (-float("inf"), float("inf"))]
    assert [c.geometry for c in chosen] == [
        ([1, 1], [0, 0], [1, 1]), ([2, 2], [0, 0], [1, 1]), ([1, 1], [0, 0], [2, 2]),
    ]  # fmt: skip
    for candidate in chosen:
        for first, cells, size in zip(candidate.origin, candidate.extent, candidate.sizes, strict=True):
            assert 0 <= first <= size - cells
    check(inc)


def test_a_shortcut_is_added_where_a_block_ends(chosen: list[Candidate], seed: int) -> None:
    """Whole, with its activation, or cut to what the block's last convolution makes; and one that is a convolution."""
    model = nn.Sequential(
        conv(3, 8), Residual(8, 8, stride=1), Residual(8, 8), Branches(add, conv(8, 8, 5), nn.Identity()), nn.ReLU6(),
        Branches(add, conv(8, 8), conv(8, 8, 1)),
    )  # fmt: skip
    inc = compiled(model)
    found = targets(inc)
    assert (found["read_joined"], found["add.Tensor"], found["relu"], found["hardtanh"]) == (0, 0, 0, 0)
    added = [candidate for candidate in chosen if candidate.added]
    assert [candidate.limits for candidate in added] == [(0.0, inf), (0.0, inf), (0.0, 6.0), (-inf, inf)]
    nodes = [node for node in inc.executor().front.graph.nodes if node.target is ops.read_convolved.default]
    assert sum(node.args[14] is not None for node in nodes) == len(added)
    check(inc)


def _thrice(a: Tensor, b: Tensor) -> Tensor:
    return torch.add(a, b) + torch.cat([a[:, :4], b[:, 4:]], 1)


def test_a_sum_that_is_not_alone_is_left(chosen: list[Candidate], seed: int) -> None:
    inc = compiled(nn.Sequential(conv(3, 8), Branches(_thrice, conv(8, 8), nn.Identity()), conv(8, 3)))
    assert not [candidate for candidate in chosen if candidate.added]
    check(inc)


LEFT: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "groups": (lambda: nn.Conv2d(8, 8, 3, groups=4), 0),
    "an activation that is no limit": (lambda: nn.Sequential(conv(8, 8), nn.GELU()), 1),
    "an activation that something else reads": (
        lambda: nn.Sequential(conv(8, 8), nn.ReLU(), Branches(add, nn.Identity(), nn.Sigmoid())), 1,
    ),
    "a window that two read": (lambda: Branches(add, conv(8, 8), conv(8, 8)), 0),
}  # fmt: skip


@pytest.mark.parametrize("name", LEFT)
def test_what_is_left_alone(name: str, chosen: list[Candidate], seed: int) -> None:
    factory, count = LEFT[name]
    inc = compiled(nn.Sequential(conv_bn_relu(3, 8), factory(), Call(lambda x: F.max_pool2d(x, 3)), conv(8, 3)))
    check(inc)
    assert targets(inc)["read_convolved"] >= count


def test_weights_are_rounded_for_tensor_cores(
    chosen: list[Candidate], monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Once for each, in a copy."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    model = ready(nn.Sequential(shared := conv(3, 3), nn.ReLU(), shared, conv(3, 4)), SHAPE, torch.float32)
    inc = incremental(model, SHAPE, PATCH)
    lowered = lowering_cuda.lower(inc.front, inc.tail, inc.plan, torch.float32, lambda _: 0)
    nodes = [node for node in lowered.front.graph.nodes if node.target is torch.ops.kcompile.read_convolved.default]
    weights = [getattr(lowered.front, node.args[8].target) for node in nodes]
    assert len(weights) == 3
    assert len({weight.data_ptr() for weight in weights}) == 2
    assert not [name for name in lowered.front._buffers if name.startswith("channels_last")], "held twice"
    for weight, own in zip(weights, (shared.weight, shared.weight, model[3].weight), strict=True):
        assert 0 < float((weight - own.detach()).abs().max()) <= 2**-11 * float(own.detach().abs().max())


def test_where_windows_are_faster(lowered: None, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    monkeypatch.setattr(lowering_convs, "measured", lambda *_: lambda _: WINDOWS)
    inc = compiled(NETWORKS["convolutions"][0]())
    assert targets(inc)["read_convolved"] == 0
    check(inc)


def test_nothing_to_choose_without_tensor_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    assert measured(torch.empty(0), 8, None) is None, "the CPU"
    monkeypatch.setattr(triton_conv, "reason_against", lambda _: None)
    monkeypatch.setattr(lowering_convs, "tuner", lambda _: Tuner("none", lambda _: 0.0, {}))
    assert measured(torch.empty(0, dtype=torch.float64), 8, None) is None
    assert measured(torch.empty(0, dtype=torch.bfloat16), 8, None) is not None
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    assert measured(torch.empty(0), 8, None) is None
    monkeypatch.setattr(lowering_convs, "DIRECT", False)
    assert measured(torch.empty(0, dtype=torch.bfloat16), 8, None) is None


@pytest.mark.parametrize("budget", [None, 1 << 20, 100])
def test_ways_are_measured_on_usual_windows(
    budget: int | None, chosen: list[Candidate], monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """With the reference for the kernel: all ways are right, the slowest clocked first."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    compiled(nn.Sequential(conv(3, 8), nn.ReLU(), Branches(add, conv(8, 8), nn.Identity()))).executor()
    assert [candidate.added for candidate in chosen] == [False, True]
    monkeypatch.setattr(triton_conv, "reason_against", lambda _: None)
    monkeypatch.setattr(triton_conv, "convolve", torch.ops.kcompile.read_convolved)
    clocked: list[Tensor] = []

    def clock(call: Callable[[], Tensor]) -> float:
        clocked.append(call())
        return 1.0 / len(clocked)

    monkeypatch.setattr(lowering_convs, "tuner", lambda _: Tuner("none", clock, {}))
    monkeypatch.setattr("kcompile.cuda_ops.kept.folder", lambda: None)
    choice = measured(torch.empty(0), 8, budget)
    assert choice is not None
    for candidate in chosen:
        clocked.clear()
        single: Any = Candidate(**{**vars(candidate), "weight": candidate.weight.float(), "own": None})
        tile = choice(single)
        if budget == 100:
            assert (tile, clocked) == (WINDOWS, [])
            continue
        narrow = [number for number, shape in enumerate(TILES) if shape.filters <= 64]  # few filters need no wide ones
        assert tile == narrow[-1], "each was faster than the one before"
        assert len(clocked) == 1 + len(narrow)
        assert {tuple(result.shape[1:]) for result in clocked} == {tuple(clocked[0].shape[1:])}
        assert len(clocked[0]) == 8


WHOLE = """
import json, sys, torch
import numpy as np
from kcompile.cuda_ops import triton_conv
from kcompile.runtime import lowering_convs, lowering_cuda, runners
from tests.runtime.test_lowering_cuda import SHAPE, PATCH, NETWORKS
from tests.support.equivalence import full_inference, incremental
from tests.support.networks import ready
torch.manual_seed(int(sys.argv[1]))
torch.backends.cudnn.allow_tf32 = False
runners.available = lambda *_: False
lowering_cuda.available = lambda _: True
lowering_convs.measured = lambda *_: lambda _: 2
plain, ran = lowering_cuda.lower, []
def convolve(*given):
    ran.append(given[8].shape)
    return triton_conv.convolve(*given)
def swapped(*given):
    lowered = plain(*given)
    for part in (lowered.front, lowered.tail):
        for node in part.graph.nodes:
            if node.target is torch.ops.kcompile.read_convolved.default:
                node.target = convolve
        part.recompile()
    return lowered
lowering_cuda.lower = swapped
for name in ("convolutions", "residual", "inception", "dense block"):
    ran.clear()
    inc = incremental(ready(NETWORKS[name][0](), SHAPE, torch.float32), SHAPE, PATCH)
    inc.policy = "incremental"
    images, patches = torch.randn(2, *SHAPE), 3 * torch.randn(6, 3, *PATCH)
    positions, index = np.array([[-3, 2], [0, 0], [7, 9], [14, 18], [16, 20], [9, 3]]), np.arange(6) % 2
    before = inc.materialize(images)[index]
    got = inc.forward_patches(patches, positions, base_index=index)
    full = full_inference(inc.model, images[index], patches, positions)
    scale = float(full.abs().max())
    error, change = float((got - full).abs().max()) / scale, float((full - before).abs().max()) / scale
    print(json.dumps({"name": name, "ran": len(ran), "error": error, "change": change}))
"""


@needs_triton
def test_networks_on_the_interpreted_kernel(seed: int) -> None:
    found = interpreted(WHOLE, str(seed))
    assert len(found) == 4
    for row in found:
        assert row["ran"] > 0
        assert row["change"] >= 1e-3
        assert row["error"] <= 1e-4, row


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["convolutions", "residual", "inception", "dense block"])
def test_networks_on_the_gpu(name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """Every convolution without its window, against the same on the CPU in float64."""
    if (reason := triton_conv.reason_against(torch.device("cuda", 0))) is not None:
        pytest.skip(reason)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(lowering_convs, "measured", lambda *_: lambda _: 0)
    model = ready(NETWORKS[name][0](), SHAPE, torch.float32)
    exact = incremental(copy.deepcopy(model).double(), SHAPE, PATCH)
    inc = incremental(model.to(dtype), SHAPE, PATCH).to("cuda")
    image, patches = torch.randn(SHAPE).to(dtype), (3 * torch.randn(4, 3, *PATCH)).to(dtype)
    positions = [[0, 0], [7, 9], [16, 20], [-3, 2]]
    exact.materialize(image.double())
    want = exact.forward_patches(patches.double(), positions)
    inc.materialize(image.cuda())
    mine = inc.forward_patches(patches.cuda(), positions)
    assert targets(inc)["read_convolved"] > 0
    error = 1e-4 if dtype is torch.float32 else 0.1
    torch.testing.assert_close(mine.cpu().double(), want, rtol=0, atol=error * float(want.abs().max()))
