"""Planning: which base tensors are kept, how they are padded and filled, what pruning drops."""

from __future__ import annotations

import torch
from torch import nn

from kcompile.core.axis_map import Identity
from kcompile.core.interval import Interval
from kcompile.core.plan import RAW_PATCH, BaseTensor, Plan
from kcompile.passes.planning import overhang, prune
from tests.support.networks import Branches, Call, Residual, concat, conv, ready
from tests.support.running import compile_incremental

INF = float("inf")


def plan_of(model: nn.Module, shape: tuple[int, ...] = (4, 9, 11)) -> Plan:
    return compile_incremental(ready(model, shape), shape, (4, 4)).plan


def bases(plan: Plan, source: str) -> list[BaseTensor]:
    return [base for base in plan.bases if base.source == source]


def base_of(plan: Plan, read: str) -> BaseTensor:
    return plan.base(next(r.base for r in plan.reads if r.name == read))


def test_a_max_pool_reads_minus_infinity_beyond_the_border(seed: int) -> None:
    plan = plan_of(nn.MaxPool2d(3, 2, 1))
    base = base_of(plan, "max_pool2d")
    assert base.fill == -INF
    assert base.padding == ((1, 1), (1, 1))


def test_convolutions_and_average_pools_read_zeros(seed: int) -> None:
    plan = plan_of(Branches(concat, conv(4, 3, (3, 5)), nn.AvgPool2d(3, 1, 1)))
    assert base_of(plan, "conv2d") == base_of(plan, "avg_pool2d")
    assert base_of(plan, "conv2d").fill == 0.0
    assert base_of(plan, "conv2d").padding == ((1, 1), (2, 2)), "the larger padding serves both"


def test_one_tensor_with_two_fills_is_kept_twice(seed: int) -> None:
    plan = plan_of(Branches(concat, nn.MaxPool2d(3, 1, 1), conv(4, 3)))
    kept = bases(plan, "x")
    assert {base.fill for base in kept} == {0.0, -INF}
    assert len({base.name for base in kept}) == 2
    assert base_of(plan, "max_pool2d").fill == -INF
    assert base_of(plan, "conv2d").fill == 0.0


def test_what_never_sticks_out_shares_any_copy(seed: int) -> None:
    plan = plan_of(Branches(concat, nn.MaxPool2d(3, 2, 1), conv(4, 3, 1, stride=2)))
    assert [base.fill for base in bases(plan, "x")] == [-INF]
    assert base_of(plan, "conv2d") == base_of(plan, "max_pool2d")


def test_an_unpadded_pool_needs_no_padding(seed: int) -> None:
    plan = plan_of(nn.Sequential(nn.MaxPool2d(2), conv(4, 3, 1)))
    assert all(base.padding == ((0, 0), (0, 0)) for base in plan.bases)


def test_ceil_mode_pads_the_high_side_alone(seed: int) -> None:
    assert base_of(plan_of(nn.MaxPool2d(2, ceil_mode=True)), "max_pool2d").padding == ((0, 1), (0, 1))


def test_a_floor_needs_less_padding_at_the_high_side(seed: int) -> None:
    """Size 10 with kernel 3, stride 2, padding 1: the last window ends at the last cell."""
    assert base_of(plan_of(conv(4, 3, stride=2), (4, 10, 11)), "conv2d").padding == ((1, 0), (1, 1))


def test_overhang_is_what_windows_really_need(seed: int) -> None:
    plan = plan_of(nn.Sequential(conv(4, 3, (4, 5), stride=(3, 1), padding=(2, 1)), Residual(3, 4)))
    for read in plan.reads:
        for m, (low, high) in zip(read.maps, overhang(read.maps), strict=True):
            windows = [m.window(Interval.of(out, out + 1)) for out in range(m.out_size)]
            assert low == max(0, *(-int(w.lo) for w in windows))
            assert high == max(0, *(int(w.hi) - m.in_size for w in windows))


def test_cancelled_reads_and_their_bases_are_pruned(seed: int) -> None:
    plan = plan_of(nn.Sequential(conv(4, 3), nn.ReLU(), nn.Tanh(), conv(3, 2)))
    names = {read.name for read in plan.reads}
    assert names == {"patch", "conv2d", "conv2d_1", "conv2d_1_whole"}
    assert {base.source for base in plan.bases} == {"input_1", "tanh", "conv2d_1"}


def test_prune_by_hand(seed: int) -> None:
    plan = plan_of(nn.Sequential(conv(4, 3), conv(3, 2)))
    less = prune(plan, ["patch", "conv2d"])
    assert [read.name for read in less.reads] == ["patch", "conv2d"]
    assert [base.source for base in less.bases] == ["input_1"]
    assert less.layers == plan.layers
    assert less.regions == plan.regions


def test_constants_are_kept_once_for_all_images(seed: int) -> None:
    plan = plan_of(Call(lambda x, c: x + c, c=torch.randn(9, 11)))
    base = base_of(plan, "add__1")
    assert not base.batched
    assert base.shape == (1, 9, 11)


def test_constants_without_position_are_no_base(seed: int) -> None:
    plan = plan_of(Call(lambda x, c: x * c, c=torch.randn(4, 1, 1)))
    assert {base.source for base in plan.bases} == {"x", "mul"}


def test_the_patch_is_cropped_by_a_read_of_its_own(seed: int) -> None:
    read = plan_of(conv(4, 3)).reads[0]
    assert (read.name, read.patch, read.target) == ("patch", RAW_PATCH, 0)
    assert all(isinstance(m, Identity) for m in read.maps)


def test_equal_reads_are_made_once(seed: int) -> None:
    plan = plan_of(Call(lambda x: (torch.relu(x).flatten(1), torch.relu(x).cumsum(2), x.cumsum(2), x.cumsum(3))))
    assert len({read.name for read in plan.reads}) == len(plan.reads)
    assert sum(read.name == "x_whole" for read in plan.reads) == 1
