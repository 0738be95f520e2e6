"""Splits, selects and stacks in terms of slices, squeezes and cats: the same numbers, and no other op."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, fx

from kcompile.core.errors import VerificationError
from kcompile.passes.capture import capture
from kcompile.passes.cells import SelectToSqueeze, StackToCat
from kcompile.passes.infra import GraphPass, PassResult, aten, calls, run_passes
from kcompile.passes.pieces import SplitToSlices
from tests.support.networks import Call, ready

SHAPE = (5, 6, 8)
Function = Callable[[Tensor], Any]


def captured(function: Function) -> fx.GraphModule:
    return capture(ready(Call(function), SHAPE), torch.randn(2, *SHAPE).double()).module


def check(step: GraphPass, function: Function, *gone: Any) -> fx.GraphModule:
    """The pass removes the ops ``gone``, all numbers stay, shapes are noted, and a second run changes nothing."""
    module = captured(function)
    assert any(calls(module, *gone)), "void: the op is not in the graph"
    result = run_passes(module, [step])
    assert result.modified
    assert not any(calls(result.module, *gone))
    images = torch.randn(3, *SHAPE).double()
    want = function(images)
    for mine, other in zip(result.module(images), [want] if isinstance(want, Tensor) else want, strict=True):
        assert mine.dtype == other.dtype
        assert torch.equal(mine, other)
    for node in result.module.graph.nodes:
        assert node.op != "call_function" or isinstance(node.meta["val"], (Tensor, torch.SymInt))
    assert not run_passes(result.module, [step]).modified
    return result.module


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.split(2, 1),
        lambda x: x.split(4, 3),
        lambda x: x.split([1, 3, 1], 1),
        lambda x: x.split_with_sizes([4, 2], -2),
        lambda x: x.chunk(3, 1),
        lambda x: x.chunk(4, -1)[1:3],
        lambda x: x.unbind(1),
        lambda x: x.unbind(-1)[2],
    ],
)
def test_splits(function: Function, seed: int) -> None:
    check(SplitToSlices(), function, operator.getitem, aten.split.Tensor, aten.chunk.default, aten.unbind.int)


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("name", ["max", "min"])
@pytest.mark.parametrize("dim", [1, -1])
def test_extremes_and_their_places(name: str, keep: bool, dim: int, seed: int) -> None:
    module = check(SplitToSlices(), lambda x: tuple(getattr(x, name)(dim, keep)), operator.getitem)
    assert not any(calls(module, aten.max.dim, aten.min.dim))


def test_ties_have_the_place_that_torch_names(seed: int) -> None:
    """`argmax` names the same one of several equal values."""
    module = run_passes(captured(lambda x: tuple(x.max(1))), [SplitToSlices()]).module
    images = torch.randint(2, (7, *SHAPE)).double()
    assert torch.equal(module(images)[1], images.max(1).indices)


def test_adaptive_max_pools_with_equal_windows(seed: int) -> None:
    pool = torch.nn.functional.adaptive_max_pool2d
    module = check(SplitToSlices(), lambda x: pool(x, (3, 2)), aten.adaptive_max_pool2d.default)
    assert any(calls(module, aten.max_pool2d.default))


@pytest.mark.parametrize("out", [(4, 2), (3, 5), (7, 8)])
def test_adaptive_max_pools_with_other_windows_stay(out: tuple[int, int], seed: int) -> None:
    pool = torch.nn.functional.adaptive_max_pool2d
    module = captured(lambda x: pool(x, out))
    assert not run_passes(module, [SplitToSlices()]).modified
    assert any(calls(module, aten.adaptive_max_pool2d.default))


@pytest.mark.parametrize("index", [0, 3, -1])
@pytest.mark.parametrize("dim", [1, 2, -1])
def test_selects(dim: int, index: int, seed: int) -> None:
    check(SelectToSqueeze(), lambda x: x.select(dim, index) * 2.0, aten.select.int)


def test_a_select_of_the_batch_stays(seed: int) -> None:
    module = captured(lambda x: x - x[0])
    assert not run_passes(module, [SelectToSqueeze()]).modified
    assert any(calls(module, aten.select.int))


@pytest.mark.parametrize("dim", [1, 2, 4, -1, -2])
def test_stacks(dim: int, seed: int) -> None:
    module = check(StackToCat(), lambda x: torch.stack([x, x.abs(), x], dim), aten.stack.default)
    assert any(calls(module, aten.cat.default))


@pytest.mark.parametrize(
    ("step", "function", "message"),
    [
        (SplitToSlices, lambda x: x.chunk(5, 1)[0], "is an item of a split"),
        (SelectToSqueeze, lambda x: x[:, 1], "selects"),
        (StackToCat, lambda x: torch.stack([x, x], 1), "stacks"),
    ],
)
def test_what_is_left_over_is_found(step: Any, function: Function, message: str, seed: int) -> None:
    with (
        mock.patch.object(step, "apply", lambda self, module: PassResult(module, False)),
        pytest.raises(VerificationError, match=message),
    ):
        run_passes(captured(function), [step()])
