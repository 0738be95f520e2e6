"""The scheduler: every position in one batch, batches of like extents; and the geometry of a batch."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from kcompile.core.interval import IntArray
from kcompile.core.plan import Plan
from kcompile.core.region import evaluate
from kcompile.passes.pipeline import compile_model
from kcompile.runtime.choice import CPU
from kcompile.runtime.scheduler import centre, geometry, patch_regions, schedule
from tests.support.networks import Residual, conv
from tests.support.running import compile_incremental, positions_touching


def small_plan() -> Plan:
    model = nn.Sequential(conv(3, 4, stride=2), nn.MaxPool2d(3, 2, 1), Residual(4, 4), conv(4, 2, 5)).double().eval()
    return compile_incremental(model, (3, 41, 30), (7, 4)).plan


@cache
def plan_of(name: str) -> tuple[Plan, int]:
    """A torchvision network's plan for patch 16, and how many ops its front has."""
    model = getattr(torchvision.models, name)(**({"init_weights": False} if name == "vgg16" else {})).eval()
    compiled = compile_model(model, torch.rand(2, 3, 224, 224), (16, 16))
    return compiled.plan, sum(node.op == "call_function" for node in compiled.front.graph.nodes)


def whole_map(size: int = 224, patch: int = 16, stride: int = 4) -> IntArray:
    steps = np.arange(0, size - patch + 1, stride)
    return np.stack(np.meshgrid(steps, steps, indexing="ij"), axis=-1).reshape(-1, 2)


def macs(plan: Plan, positions: IntArray, batches: list[IntArray]) -> tuple[float, float]:
    """Multiply-adds of the batches, whose boxes have a common extent per layer, and of each position's own boxes."""
    regions = evaluate(plan.regions, patch_regions(positions, plan.patch_shape))
    spent = own = 0.0
    for region, weight in zip(regions, plan.cell_macs(), strict=True):
        own += weight * float(region.cells.sum())
        for rows in batches:
            spent += weight * len(rows) * float(np.prod([axis.size[rows].max() for axis in region.axes]))
    return spent, own


def assert_partition(batches: list[IntArray], count: int, batch: int) -> None:
    assert sorted(np.concatenate(batches).tolist()) == list(range(count))
    assert all(0 < len(rows) <= batch for rows in batches)


@pytest.mark.parametrize("batch", [1, 2, 7, 32, 10_000])
@pytest.mark.parametrize("overhead", [0.0, 1e4, 1e12])
def test_every_position_is_in_exactly_one_batch(batch: int, overhead: float, seed: int) -> None:
    plan, rng = small_plan(), np.random.default_rng(seed)
    every = positions_touching(plan.input_shape[1:], plan.patch_shape)
    for positions in (every, rng.permutation(every)[:100], np.repeat(every[:3], 20, axis=0), every[:1]):
        assert_partition(schedule(plan, positions, plan.patch_shape, batch, overhead), len(positions), batch)


def test_no_position() -> None:
    assert schedule(small_plan(), np.zeros((0, 2), dtype=np.int64), (7, 4), 32, 1e6) == []


@pytest.mark.parametrize("name", ["vgg16", "resnet18"])
def test_whole_map_costs_little_more_than_each_positions_own_boxes(name: str, seed: int) -> None:
    """Counted in multiply-adds, batches as the executor forms them (DESIGN: like extents)."""
    plan, ops = plan_of(name)
    positions = whole_map()
    batches = schedule(plan, positions, plan.patch_shape, CPU.batch, ops * CPU.per_op)
    assert_partition(batches, len(positions), CPU.batch)
    spent, own = macs(plan, positions, batches)
    assert own <= spent <= 1.1 * own
    tiles = list(np.array_split(np.arange(len(positions)), len(batches)))
    assert macs(plan, positions, tiles)[0] > spent, "neighbours in a row would be as good: the test shows nothing"


@pytest.mark.parametrize("name", ["vgg16", "resnet18"])
def test_scattered_positions(name: str, seed: int) -> None:
    plan, ops = plan_of(name)
    rng = np.random.default_rng(seed)
    positions = rng.integers(-15, 224, (300, 2))
    batches = schedule(plan, positions, plan.patch_shape, CPU.batch, ops * CPU.per_op)
    assert_partition(batches, len(positions), CPU.batch)
    spent, _ = macs(plan, positions, batches)
    in_order = np.array_split(np.arange(len(positions)), len(batches))
    assert spent < macs(plan, positions, in_order)[0]


def test_dear_batches_are_merged(seed: int) -> None:
    plan, _ = plan_of("resnet18")
    positions = np.random.default_rng(seed).integers(0, 209, (200, 2))
    counts, costs = [], []
    for overhead in (0.0, 1e7, 1e9, 1e15):
        batches = schedule(plan, positions, plan.patch_shape, 1000, overhead)
        counts.append(len(batches))
        costs.append(macs(plan, positions, batches)[0])
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > 10 * counts[-1]
    assert counts[-1] == 1
    assert costs[0] == pytest.approx(macs(plan, positions, [])[1]), "without overhead, no box is larger than its own"
    assert costs == sorted(costs)


def test_centre() -> None:
    assert centre(small_plan()).tolist() == [[17, 13]]


@pytest.mark.parametrize("sizes", [(7, 4), (1, 1), (3, 2)])
def test_windows_lie_inside_the_padded_base(sizes: tuple[int, int], seed: int) -> None:
    """Otherwise a gather would read beyond the tensor. Offsets, too, place a patch tensor over its own cells."""
    plan = small_plan()
    every = positions_touching(plan.input_shape[1:], sizes)
    for positions in (every, every[:1], np.random.default_rng(seed).permutation(every)[:10]):
        found = geometry(plan, positions, sizes)
        assert set(found) == {read.name for read in plan.reads}
        for read in plan.reads:
            where, base = found[read.name], plan.base(read.base)
            padded = [size + sum(padding) for size, padding in zip(base.shape[1:], base.padding, strict=True)]
            assert where.origins.shape == (len(positions), 2)
            assert (where.origins >= 0).all()
            assert (where.origins + where.extent <= padded).all()
            assert (where.offsets is None) == (read.patch is None)


def test_geometry_of_a_convolution_by_hand() -> None:
    """3x3, padding 1: the output's box is one cell wider on each side than the patch, its window two."""
    plan = compile_incremental(nn.Conv2d(3, 2, 3, padding=1).double().eval(), (3, 20, 20), (4, 5)).plan
    read = next(read for read in plan.reads if read.name.startswith("conv"))
    found = geometry(plan, np.array([[6, 7]]), (4, 5))[read.name]
    assert found.extent == (8, 9)
    assert found.origins.tolist() == [[5, 6]], "window begins at (4, 5); the base has one cell of padding"
    assert found.offsets is not None
    assert found.offsets.tolist() == [[2, 2]]
    corner = geometry(plan, np.array([[-2, 19]]), (4, 5))[read.name]  # 2 x 1 pixels on the image
    assert corner.extent == (5, 4)
    assert corner.origins.tolist() == [[0, 18]]
    assert corner.offsets is not None
    assert corner.offsets.tolist() == [[1, 2]]


@pytest.mark.parametrize(
    ("patch", "position", "origin", "extent", "padding"),
    [
        ((2, 2), (3, 3), [2, 2], (6, 6), (0, 0)),  # a box inside: the window holds what it reads
        ((7, 2), (0, 3), [1, 2], (8, 6), (1, 0)),  # rows from end to end: the convolution pads them
        ((8, 8), (0, 0), [1, 1], (8, 8), (1, 1)),
        ((2, 2), (0, 0), [0, 0], (5, 5), (0, 0)),  # at the corner: padding is in the window
    ],
)
def test_where_a_box_spans_an_axis_the_op_pads_by_itself(
    patch: tuple[int, int],
    position: tuple[int, int],
    origin: list[int],
    extent: tuple[int, int],
    padding: tuple[int, int],
) -> None:
    plan = compile_incremental(nn.Conv2d(3, 4, 3, padding=1).double().eval(), (3, 8, 8), (8, 8)).plan
    made = geometry(plan, np.array([position]), patch)["conv2d"]
    assert made.origins.tolist() == [origin]  # in the base tensor, which is padded by 1
    assert made.extent == extent
    assert made.padding == padding
