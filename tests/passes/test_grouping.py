"""Reshapes as merges and splits: the same numbers, no size of a kept axis in them; and expands likewise."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, fx

from kcompile.core.errors import VerificationError
from kcompile.passes.capture import capture
from kcompile.passes.grouping import ExpandWithoutSizes, GroupReshapes, group
from kcompile.passes.infra import PassResult, aten, calls, run_passes
from kcompile.passes.shapes import ViewToReshape
from tests.support.networks import Call, ready

SHAPE = (4, 6, 10)
Sizes = list[int]


def reshaped(function: Callable[[Tensor], Tensor]) -> fx.GraphModule:
    """The captured graph with reshapes in place of views."""
    module = capture(ready(Call(function), SHAPE), torch.randn(2, *SHAPE).double()).module
    return run_passes(module, [ViewToReshape()]).module


def equal(module: fx.GraphModule, function: Callable[[Tensor], Tensor]) -> bool:
    images = torch.randn(3, *SHAPE).double()
    mine, want = module(images)[0], function(images)
    return mine.shape == want.shape and torch.equal(mine, want)


@st.composite
def factorings(draw: st.DrawFn) -> tuple[Sizes, Sizes]:
    """Two ways to write one product."""
    primes = draw(st.lists(st.sampled_from([2, 3, 5]), max_size=5))

    def cut() -> Sizes:
        sizes, rest = [], list(primes)
        while rest:
            count = draw(st.integers(0, len(rest)))
            sizes.append(prod(rest[:count]))
            rest = rest[count:]
        return sizes

    return cut(), cut()


@given(factorings())
def test_groups_cover_both_sides_and_have_equal_products(drawn: tuple[Sizes, Sizes]) -> None:
    before, after = drawn
    groups = group(before, after)
    if groups is None:
        assert not before or not after
        return
    assert [size for mine, _ in groups for size in mine] == before
    assert [size for _, theirs in groups for size in theirs] == after
    assert all(prod(mine) == prod(theirs) for mine, theirs in groups)


@given(factorings())
def test_groups_cannot_be_split_further(drawn: tuple[Sizes, Sizes]) -> None:
    for mine, theirs in (group(*drawn) or [])[:-1]:
        inner = [(i, j) for i in range(1, len(mine)) for j in range(1, len(theirs))]
        assert all(prod(mine[:i]) != prod(theirs[:j]) for i, j in inner)


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ([4, 9, 11], [2, 2, 9, 11], [([4], [2, 2]), ([9], [9]), ([11], [11])]),
        ([2, 2, 9, 11], [4, 99], [([2, 2], [4]), ([9, 11], [99])]),
        ([4, 9, 11], [9, 4, 11], [([4, 9], [9, 4]), ([11], [11])]),
        ([4, 1, 1], [4], [([4, 1, 1], [4])]),
        ([4], [4, 1, 1], [([4], [4, 1, 1])]),
        ([6], [4], None),
        ([], [1], None),
    ],
)
def test_by_hand(before: Sizes, after: Sizes, expected: list[tuple[Sizes, Sizes]] | None) -> None:
    assert group(before, after) == expected


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.reshape(-1, 2, 2, 6, 10),
        lambda x: x.reshape(x.shape[0], 4, 60),
        lambda x: x.reshape(x.shape[0], 4, 3, 2, 5, 2),
        lambda x: x.reshape(x.shape[0], 6, 4, 10),
        lambda x: x.reshape(-1, 240),
        lambda x: x.reshape(-1, 4, 1, 6, 10, 1),
        lambda x: x.reshape(-1, 4, 6, 10, 1).reshape(-1, 8, 3, 10),
        lambda x: x.permute(0, 2, 3, 1).reshape(-1, 6, 10, 2, 2),
        lambda x: x.mean((2, 3), keepdim=True).reshape(-1, 4),
    ],
)
def test_reshapes_become_merges_and_splits(function: Callable[[Tensor], Tensor], seed: int) -> None:
    module = reshaped(function)
    assert any(calls(module, aten.reshape.default))
    shapes = [tuple(node.meta["val"].shape[1:]) for node in calls(module, aten.reshape.default)]
    result = run_passes(module, [GroupReshapes()])
    assert result.modified
    assert not any(calls(result.module, aten.reshape.default))
    assert equal(result.module, function)
    new = [tuple(n.meta["val"].shape[1:]) for n in calls(result.module, aten.flatten.using_ints, aten.unflatten.int)]
    assert set(shapes) <= set(new), "later passes read shapes off the nodes"
    assert not run_passes(result.module, [GroupReshapes()]).modified


@pytest.mark.parametrize(
    "function",
    [lambda x: x.reshape(-1, 10), lambda x: x.reshape(-1, 2, 6, 10), lambda x: x.reshape(1, -1, 6, 10)],
)
def test_reshapes_that_move_the_batch_stay(function: Callable[[Tensor], Tensor], seed: int) -> None:
    result = run_passes(reshaped(function), [GroupReshapes()])
    assert not result.modified
    assert any(calls(result.module, aten.reshape.default))


def test_merges_and_splits_name_no_size_that_they_keep(seed: int) -> None:
    """A window of other sizes goes through the same graph."""
    module = run_passes(reshaped(lambda x: x.reshape(x.shape[0], 2, 2, 6, 10).sum(1)), [GroupReshapes()]).module
    window = torch.randn(3, 4, 2, 5).double()
    assert torch.equal(module(window)[0], window.unflatten(1, (2, 2)).sum(1))


@pytest.mark.parametrize(
    ("function", "sizes"),
    [
        (lambda x: x[:, :1].expand(-1, 5, -1, -1), [-1, 5, -1, -1]),
        (lambda x: x[:, :1].expand(x.shape[0], 5, 6, 10), [-1, 5, -1, -1]),
        (lambda x: x.mean(2, keepdim=True).expand_as(x), [-1, -1, 6, -1]),
    ],
)
def test_expands_name_what_they_change_alone(function: Callable[[Tensor], Tensor], sizes: list[int], seed: int) -> None:
    result = run_passes(reshaped(function), [ExpandWithoutSizes()])
    (node,) = calls(result.module, aten.expand.default)
    assert list(node.args[1]) == sizes  # type: ignore[arg-type]
    assert equal(result.module, function)
    assert not run_passes(result.module, [ExpandWithoutSizes()]).modified


@pytest.mark.parametrize(
    ("step", "function", "message"),
    [
        (GroupReshapes, lambda x: x.reshape(-1, 2, 2, 6, 10), "group-reshapes: .* could be grouped"),
        (ExpandWithoutSizes, lambda x: x[:, :1].expand(x.shape[0], 5, 6, 10), "names sizes that it keeps"),
    ],
)
def test_what_is_left_over_is_found(
    step: type[GroupReshapes | ExpandWithoutSizes], function: Callable[[Tensor], Tensor], message: str, seed: int
) -> None:
    with (
        mock.patch.object(step, "apply", lambda self, module: PassResult(module, False)),
        pytest.raises(VerificationError, match=message),
    ):
        run_passes(reshaped(function), [step()])
