"""Batches of few kinds, and fronts that replay: on the CPU with a stand-in for CUDA graphs, and on a GPU."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import kcompile
from kcompile.core.region import evaluate
from kcompile.runtime import cuda_graphs, lowering_cuda, replaying, runners
from kcompile.runtime.buckets import buckets
from kcompile.runtime.choice import GPU
from kcompile.runtime.cuda_graphs import Graphed
from kcompile.runtime.pool import SHARE, Pool
from kcompile.runtime.replaying import Replaying
from kcompile.runtime.scheduler import patch_regions
from tests.support.equivalence import assert_equivalent, full_inference, incremental, noise
from tests.support.networks import Residual, conv, conv_bn_relu, pooled_head, ready

SHAPE, PATCH = (3, 40, 44), (8, 7)


def network() -> nn.Module:
    return pooled_head(nn.Sequential(conv_bn_relu(3, 8), nn.MaxPool2d(3, 2, 1), Residual(8, 8), conv(8, 8)), 8)


def all_positions(stride: int) -> Any:
    axes = [np.arange(1 - patch, size, stride) for size, patch in zip(SHAPE[1:], PATCH, strict=True)]
    return np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 2)


@pytest.mark.parametrize("most", [1, 3, 16])
@pytest.mark.parametrize("batch", [3, 16, 1000])
@pytest.mark.parametrize("overhead", [0.0, 1e6])
def test_buckets(batch: int, most: int, overhead: float, seed: int) -> None:
    plan = incremental(ready(network(), SHAPE), SHAPE, PATCH).plan
    positions = all_positions(3)
    regions = evaluate(plan.regions, patch_regions(positions, PATCH))
    rows = np.random.default_rng(seed).permutation(len(positions))[:150]
    found = buckets(plan, regions, rows, batch, overhead, most)
    assert sorted(np.concatenate([filled[:count] for filled, count in found])) == sorted(rows), "each exactly once"
    kinds = set()
    for filled, count in found:
        assert 1 <= count <= len(filled)
        extents = [tuple(int(axis.size[filled].max()) for axis in region.axes) for region in regions]
        kinds.add((len(filled), *extents))
        assert set(filled[count:]) <= set(rows)
    assert len(kinds) <= most, "extents and numbers of queries are the class's"
    assert max(len(filled) for filled, _ in found) <= max(batch, 2 * len(plan.regions) + 1)


def test_no_queries_are_no_buckets() -> None:
    plan = incremental(ready(network(), SHAPE), SHAPE, PATCH).plan
    regions = evaluate(plan.regions, patch_regions(all_positions(9), PATCH))
    assert buckets(plan, regions, np.zeros(0, dtype=np.int64), 8, 0.0) == []


class Recorder:
    """Stands in for CUDA graphs: replays by calling again; what is given must lie where it lay.

    ``taken``: bytes that each graph says it took from the device.
    """

    def __init__(self, taken: int = 0) -> None:
        self.captures = self.replays = self.generation = 0
        self.taken, self.waited = taken, True

    def rehearsed(self, call: Callable[[], Any]) -> Any:
        return call()

    def __call__(self, call: Callable[[], None]) -> tuple[Callable[[], None], int]:
        self.captures += 1
        generation = self.generation

        def replay() -> None:
            assert generation == self.generation, "a graph that was dropped"
            self.replays += 1
            self.waited = False
            call()

        return replay, self.taken

    def wait(self) -> None:
        self.waited = True

    def forget(self) -> None:
        assert self.waited, "a graph is running"
        self.generation += 1


def never() -> Any:
    raise AssertionError("nothing is to be measured")


def always(front: torch.fx.GraphModule, capture: Any, budget: int | None, in_flight: Any = lambda _: 0) -> Replaying:
    pool = Pool(None if budget is None else budget // SHARE)
    return Replaying(Graphed(front, capture, lambda: 0, pool, in_flight), never, always=True)


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that kinds come again within a small map."""
    monkeypatch.setattr(runners, "GPU", replace(GPU, batch=32, per_op=1e7))


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    """Modules run as on a GPU with graphs, in float64."""
    made = Recorder()
    monkeypatch.setattr(lowering_cuda, "available", lambda _: True)
    monkeypatch.setattr(replaying, "replaying", lambda front, _, *rest: always(front, made, *rest))
    return made


def graphed_of(inc: kcompile.IncrementalModule) -> Graphed:
    found = inc.executor().replaying
    assert found is not None
    return found.graphed


def check(inc: kcompile.IncrementalModule, images: int = 1, stride: int = 5) -> None:
    """Hold a map of noise patches against full inference."""
    image, positions = noise((images, *SHAPE), torch.float64), all_positions(stride)
    patches = noise((len(positions), 3, *PATCH), torch.float64, 3.0)
    index = np.arange(len(positions)) % images
    before = inc.materialize(image)
    got = inc.forward_patches(patches, positions, base_index=index)
    assert_equivalent(got, full_inference(inc.model, image[index], patches, positions), before[index])


def test_maps_of_several_images_replay(recorder: Recorder, seed: int) -> None:
    inc = incremental(ready(network(), SHAPE), SHAPE, PATCH)
    check(inc)
    check(inc)
    captures, replays = recorder.captures, recorder.replays
    assert 0 < captures <= cuda_graphs.MOST
    assert replays >= captures
    check(inc)
    assert recorder.captures == captures, "every kind was captured"
    assert recorder.replays - replays >= captures, "every kind is replayed"


def test_another_number_of_base_images(recorder: Recorder, seed: int) -> None:
    """More than before take new graphs, which then serve fewer, too."""
    inc = incremental(ready(network(), SHAPE), SHAPE, PATCH)
    for images in (1, 2, 2):
        check(inc, images)
    captures, replays = recorder.captures, recorder.replays
    for images in (1, 2, 1, 2):
        check(inc, images)
    assert recorder.captures == captures
    assert recorder.replays > replays


def test_graphs_go_with_their_executor(recorder: Recorder, seed: int) -> None:
    """At once, as they hold the device's memory: not when Python finds a cycle."""
    inc = incremental(ready(network(), SHAPE), SHAPE, PATCH)
    inc.memory_budget = 1 << 28
    check(inc)
    check(inc)
    alive = [weakref.ref(inc.executor()), weakref.ref(graphed_of(inc)), weakref.ref(graphed_of(inc).pool)]
    gc.disable()
    try:
        inc.runners.executors = {}
        assert [one() for one in alive] == [None, None, None]
    finally:
        gc.enable()


def test_inference_mode_now_and_not_then(recorder: Recorder, seed: int) -> None:
    inc = incremental(ready(network(), SHAPE), SHAPE, PATCH)
    with torch.inference_mode():
        check(inc)
        check(inc)
    check(inc)


class Refusing(Recorder):
    def __call__(self, call: Callable[[], None]) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing")


def test_what_cannot_be_captured_runs_without(recorder: Recorder, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    monkeypatch.setattr(replaying, "replaying", lambda front, _, *rest: always(front, Refusing(), *rest))
    inc = incremental(ready(network(), SHAPE), SHAPE, PATCH)
    with pytest.warns(RuntimeWarning, match="can't run as CUDA graphs: operation not permitted"):
        check(inc)
    check(inc)
    assert not graphed_of(inc).pool.held


class Short(Recorder):
    def __call__(self, call: Callable[[], None]) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")


def test_without_memory_for_graphs_it_runs_without(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr(replaying, "replaying", lambda front, _, *rest: always(front, Short(), *rest))
    inc = incremental(ready(network(), SHAPE), SHAPE, PATCH)
    check(inc)
    assert not graphed_of(inc).pool.held


@pytest.mark.parametrize("room", [0.5, 4.0])
def test_memory_budgets(room: float, recorder: Recorder, seed: int) -> None:
    """What graphs hold stays below a share of the budget, and counts; too little is no error."""
    inc = incremental(ready(network(), SHAPE), SHAPE, PATCH)
    check(inc)
    check(inc)
    wanted = graphed_of(inc).pool.held
    assert wanted
    inc.memory_budget = int(room * SHARE * wanted) + (1 << 20)
    captures = recorder.captures
    check(inc)
    check(inc)
    pool = graphed_of(inc).pool
    assert inc.memory_budget is not None
    assert pool.limit == inc.memory_budget // SHARE
    assert pool.held <= pool.limit
    assert inc.executor().held == inc.executor().surplus + pool.held
    assert (recorder.captures > captures) == (pool.held > 0)
    if room > 1:
        assert pool.held


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_the_gpu(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    monkeypatch.setattr(replaying, "ENABLED", True)
    model = ready(network(), SHAPE)
    inc = incremental(copy.deepcopy(model), SHAPE, PATCH).to("cuda")
    positions = all_positions(5)
    patches = noise((len(positions), 3, *PATCH), torch.float64, 3.0)
    for _ in range(3):
        image = noise((1, *SHAPE), torch.float64)
        before = inc.materialize(image.cuda()).cpu()
        got = inc.forward_patches(patches.cuda(), positions).cpu()
        assert_equivalent(got, full_inference(model, image, patches, positions), before)
    assert graphed_of(inc).kept
    assert graphed_of(inc).pool.held
