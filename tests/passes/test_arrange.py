"""From a tensor's own layout to [N, C, *cells] and back, and what of it undoes itself."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from kcompile.passes.arrange import CancelArrangements, from_channels_first, to_channels_first
from kcompile.passes.infra import aten, calls, run_passes

Case = tuple[tuple[int, ...], tuple[int, ...]]
CASES: list[Case] = [
    *(((3, 5, 7), axes) for axes in permutations((1, 2, 3), 2)),
    *(((3, 5, 2, 7), axes) for axes in permutations((1, 2, 3, 4), 2)),
    *(((5, 7), axes) for axes in permutations((1, 2), 2)),
    *(((3, 5), (axis,)) for axis in (1, 2)),
    *(((2, 5, 3, 7), axes) for axes in permutations((2, 3, 4), 3)),
    ((5,), (1,)),
]


def graph_of(shape: tuple[int, ...], axes: tuple[int, ...], there: bool, back: bool) -> fx.GraphModule:
    graph = fx.Graph()
    node = graph.placeholder("x")
    if there:
        node = to_channels_first(graph, node, axes, shape)
    if back:
        node = from_channels_first(graph, node, axes, shape)
    graph.output(node)
    return fx.GraphModule(nn.Module(), graph)


def first(value: Tensor, axes: tuple[int, ...]) -> Tensor:
    """[N, C, *cells] by definition: the axes last, in the image's order, the others merged."""
    others = [dim for dim in range(1, value.dim()) if dim not in axes]
    moved = value.permute(0, *others, *axes)
    return moved.reshape(len(value), -1, *(value.shape[axis] for axis in axes))


@pytest.mark.parametrize(("shape", "axes"), CASES, ids=str)
def test_channels_first(shape: tuple[int, ...], axes: tuple[int, ...], seed: int) -> None:
    value = torch.randn(2, *shape)
    assert torch.equal(graph_of(shape, axes, True, False)(value), first(value, axes))


@pytest.mark.parametrize(("shape", "axes"), CASES, ids=str)
def test_there_and_back(shape: tuple[int, ...], axes: tuple[int, ...], seed: int) -> None:
    value = torch.randn(2, *shape)
    assert torch.equal(graph_of(shape, axes, True, True)(value), value)
    assert torch.equal(graph_of(shape, axes, False, True)(first(value, axes)), value)


@pytest.mark.parametrize(("shape", "axes"), CASES, ids=str)
def test_windows_of_any_size_go_the_same_way(shape: tuple[int, ...], axes: tuple[int, ...], seed: int) -> None:
    """Of ``shape`` the channels alone count: cells may be fewer."""
    cells = tuple(size - 1 if dim in axes else size for dim, size in enumerate(shape, start=1))
    value = torch.randn(3, *cells)
    assert torch.equal(graph_of(shape, axes, True, True)(value), value)


def test_nothing_stands_around_the_usual_layout() -> None:
    assert len(graph_of((3, 5, 7), (2, 3), True, True).graph.nodes) == 2


def chain(*steps: tuple[Any, ...]) -> fx.GraphModule:
    """Ops in a row on one input."""
    graph = fx.Graph()
    node = graph.placeholder("x")
    for target, *args in steps:
        node = graph.call_function(target, (node, *args))
    graph.output((node,))
    return fx.GraphModule(nn.Module(), graph)


def cancelled(module: fx.GraphModule, value: Tensor) -> tuple[int, fx.GraphModule]:
    """How many ops are left; the numbers are the same and a second run changes nothing."""
    want = module(value)[0]
    result = run_passes(module, [CancelArrangements()])
    assert torch.equal(result.module(value)[0], want)
    assert not run_passes(result.module, [CancelArrangements()]).modified
    return sum(node.op == "call_function" for node in result.module.graph.nodes), result.module


TO_LAST, TO_FIRST = [0, 2, 3, 1], [0, 3, 1, 2]


@pytest.mark.parametrize(
    "steps",
    [
        [(aten.permute.default, TO_LAST), (aten.permute.default, TO_FIRST)],
        [(aten.permute.default, [0, 1, 2, 3])],
        [(aten.permute.default, TO_LAST)] * 3,
        [(aten.permute.default, TO_LAST), (aten.permute.default, [0, 3, 1, 2]), (aten.permute.default, [0, 1, 2, 3])],
        [(aten.unsqueeze.default, 1), (aten.squeeze.dim, 1)],
    ],
)
def test_what_undoes_itself_disappears(steps: list[tuple[Any, ...]], seed: int) -> None:
    left, _ = cancelled(chain(*steps), torch.randn(2, 4, 5, 6))
    assert left == 0


def test_two_permutes_become_one(seed: int) -> None:
    module = chain((aten.permute.default, [0, 2, 1, 3]), (aten.permute.default, [0, 1, 3, 2]))
    left, after = cancelled(module, torch.randn(2, 4, 5, 6))
    assert left == 1
    assert [list(node.args[1]) for node in calls(after, aten.permute.default)] == [[0, 2, 3, 1]]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "steps",
    [
        [(aten.flatten.using_ints, 1, 2), (aten.unflatten.int, 1, [5, 4])],
        [(aten.flatten.using_ints, 2, 3), (aten.unflatten.int, 1, [2, 2])],
        [(aten.unsqueeze.default, 2), (aten.squeeze.dim, 1)],
    ],
)
def test_what_only_looks_like_it_stays(steps: list[tuple[Any, ...]], seed: int) -> None:
    left, _ = cancelled(chain(*steps), torch.randn(2, 4, 5, 6))
    assert left == 2


def test_the_inner_op_stays_for_its_other_users(seed: int) -> None:
    graph = fx.Graph()
    image = graph.placeholder("x")
    inner = graph.call_function(aten.permute.default, (image, TO_LAST))
    back = graph.call_function(aten.permute.default, (inner, TO_FIRST))
    graph.output((back, graph.call_function(aten.relu.default, (inner,))))
    result = run_passes(fx.GraphModule(nn.Module(), graph), [CancelArrangements()])
    value = torch.randn(2, 4, 5, 6)
    same, other = result.module(value)
    assert torch.equal(same, value)
    assert torch.equal(other, value.permute(TO_LAST).relu())
    assert len(list(calls(result.module, aten.permute.default))) == 1
