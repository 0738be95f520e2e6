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


class Waiting(Recorder):
    def rehearsed(self, call: Callable[[], Any]) -> Any:
        raise RuntimeError("called a synchronizing CUDA operation")


def test_what_waits_for_the_device_is_not_captured(seed: int) -> None:
    run = simple(recorder := Waiting())
    run(torch.zeros(3), torch.ones(1))
    with pytest.warns(RuntimeWarning, match="can't run as CUDA graphs: called a synchronizing"):
        assert float(run(torch.zeros(3), torch.ones(1))[0][0]) == 1.0
    run(torch.zeros(3), torch.ones(1))
    assert not recorder.captures
    assert not run.pool.held


class Stale(Recorder):
    """As where a graph was captured on another device: it is empty, and the front ran once beside it."""

    def __call__(self, call: Callable[[], None]) -> tuple[Callable[[], None], int]:
        call()
        return lambda: None, 0


class Wrong(Recorder):
    """Every replay's results are off by a tenth."""

    target: torch.Tensor

    def __call__(self, call: Callable[[], None]) -> tuple[Callable[[], None], int]:
        def replay() -> None:
            call()
            self.target.add_(0.1)

        return replay, 0


@pytest.mark.parametrize("capture", [Stale, Wrong])
def test_graphs_that_give_other_results_are_not_kept(
    capture: type[Recorder], monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    run = simple(recorder := capture())
    take = Pool.take

    def taken(pool: Pool, likes: Any) -> list[torch.Tensor]:
        tensors = take(pool, likes)
        vars(recorder)["target"] = tensors[-1]
        return tensors

    monkeypatch.setattr(Pool, "take", taken)
    run(torch.zeros(3), torch.ones(1))
    with pytest.warns(RuntimeWarning, match="a replay's results are not those of the front"):
        assert float(run(torch.zeros(3), torch.ones(1))[0][0]) == 1.0
    for value in (2.0, 5.0):
        assert float(run(torch.full((3,), value), torch.ones(1))[0][0]) == value + 1
    assert not run.kept
    assert not run.pool.held


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64])
def test_same_results(dtype: torch.dtype) -> None:
    values = torch.arange(-50, 50).to(dtype)
    assert cuda_graphs._same(values, values.clone())
    assert cuda_graphs._same(values[:0], values[:0])
    assert not cuda_graphs._same(values + 3, values)
    if dtype.is_floating_point:
        assert cuda_graphs._same(values + 0.5 * 50 * cuda_graphs.ERROR, values)
        for special in (torch.nan, torch.inf):
            odd = values.clone()
            odd[3] = special
            assert cuda_graphs._same(odd, odd.clone())
            assert not cuda_graphs._same(odd, values)
            assert not cuda_graphs._same(values, odd)
            assert not cuda_graphs._same(odd + 3, odd)


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


def simple(capture: Any, **settings: Any) -> Graphed:
    front = torch.fx.symbolic_trace(lambda patches, base_x: (patches + base_x,))
    return Graphed(front, capture, lambda: 0, **settings)


def test_results_are_not_overwritten_by_later_batches(seed: int) -> None:
    run = simple(Recorder())
    base = torch.ones(3)
    results = [run(torch.full((3,), float(value)), base) for value in range(5)]
    assert [float(out[0][0]) for out in results] == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert float(run(torch.zeros(3), torch.full((3,), 7.0))[0][0]) == 7.0, "another base"


def test_all_graphs_use_one_block_in_turn(seed: int) -> None:
    """It is as large as the largest batch needs; a larger one that comes later takes another block."""
    recorder = Recorder()
    run = simple(recorder, largest=8)
    base = torch.ones(1)
    for rows in (3, 8, 3, 8, 5, 5):
        (found,) = run(torch.arange(rows * 200.0).view(rows, 200), base)
        assert torch.equal(found, torch.arange(rows * 200.0).view(rows, 200) + 1)
    inputs = [kept.inputs[0] for kept in run.kept.values()]
    assert len({tensor.data_ptr() for tensor in inputs}) == 1
    assert [len(tensor) for tensor in inputs] == [3, 8, 5]
    block, generation = run.pool.size, recorder.generation
    assert 2 * 8 * 200 * 4 <= block <= 2 * 8 * 200 * 4 + 4 * 512
    assert run.pool.held == block + 4
    for _ in range(2):
        run(torch.zeros(20, 200), base)
    assert run.pool.size > 2 * block
    assert list(run.kept) == [key for key in run.kept if key[0][0][0] == 20]  # type: ignore[index]
    assert recorder.generation == generation + 1


def test_the_graph_not_used_for_longest_makes_room(seed: int) -> None:
    recorder = Recorder()
    run = simple(recorder, most=2)
    base = torch.ones(1)

    def rows() -> list[int]:
        return [len(kept.inputs[0]) for kept in run.kept.values()]

    for count in (1, 1, 1, 2, 2, 1):
        run(torch.zeros(count), base)
    assert rows() == [2, 1]
    run(torch.zeros(3), base)
    assert rows() == [2, 1], "one that came once is not captured"
    for count in (3, 3, 1):
        run(torch.zeros(count), base)
    assert rows() == [3, 1], "it was not used as often"
    for count in (1, 2, 2):
        run(torch.zeros(count), base)
    assert sorted(rows()) == [1, 2]


def test_what_the_pool_refuses_runs_without(seed: int) -> None:
    recorder = Recorder()
    run = simple(recorder, pool=Pool(4096), in_flight=lambda rows: 100 * rows)
    base = torch.ones(1)
    for _ in range(3):
        assert float(run(torch.ones(30), base)[0][0]) == 2.0
        assert float(run(torch.ones(300), base)[0][0]) == 2.0
    assert [len(kept.inputs[0]) for kept in run.kept.values()] == [30]
    assert recorder.captures == 1


def test_what_is_refused_for_many_images_is_captured_for_fewer(seed: int) -> None:
    """And graphs for fewer stay when there are too many once."""
    front = torch.fx.symbolic_trace(lambda patches, base_x, index: (patches + base_x[index],))
    run = Graphed(front, recorder := Recorder(), lambda: 0, Pool(4096))
    few, many = torch.arange(100.0).view(2, 50), torch.arange(5000.0).view(100, 50)
    for base, captures in ((many, 0), (many, 0), (few, 1), (many, 1), (few, 1)):
        rows = torch.tensor([0, len(base) - 1])
        (found,) = run(torch.ones(2, 50), base, rows)
        assert torch.equal(found, base[rows] + 1)
        assert recorder.captures == captures
    assert recorder.replays == 3, "one checks the capture"


def test_copies_for_more_images_do_not_keep_a_batch_from_being_captured(seed: int) -> None:
    """They go where memory is short, and where they were not used for long; what was refused is asked again then."""
    front = torch.fx.symbolic_trace(lambda patches, base_x, index: (patches + base_x[index],))
    run = Graphed(front, recorder := Recorder(), lambda: 0, Pool(16384))
    few, many = torch.randn(1, 50), torch.randn(50, 50)

    def batch(base: torch.Tensor, rows: int) -> None:
        (found,) = run(torch.ones(rows, 50), base, torch.zeros(rows, dtype=torch.int64))
        assert torch.equal(found, base[:1].expand(rows, -1) + 1)

    batch(many, 1)
    batch(many, 1)
    assert (recorder.captures, run.pool.bases[0].numel()) == (1, 2500)
    for _ in range(2):
        batch(few, 20)  # beside the copies of many there is no room for it
    assert (recorder.captures, run.pool.bases[0].numel()) == (2, 50)
    for _ in range(2):
        batch(many, 20)
    assert recorder.captures == 2, "refused"
    run.drop()
    run.pool.limit = 1 << 20
    batch(many, 20)
    assert recorder.captures == 3
    for _ in range(cuda_graphs.ROOMY + 2):
        batch(few, 20)
    assert (recorder.captures, run.pool.bases[0].numel()) == (4, 50)


def test_copies_are_of_the_bases_type(seed: int) -> None:
    run = simple(Recorder())
    for dtype in (torch.float32, torch.float64):
        base = torch.full((3,), 0.1, dtype=dtype)
        for _ in range(3):
            (found,) = run(torch.zeros(3, dtype=torch.float64), base)
            assert torch.equal(found, base.double())


def test_a_copy_that_is_interrupted_is_made_again(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    run = simple(Recorder())
    old, new = torch.ones(3), torch.full((3,), 2.0)
    for _ in range(2):
        run(torch.zeros(3), old)
    copy_ = cuda_graphs._copy

    def interrupted(into: Any, values: Any) -> None:
        copy_(into, values)
        raise KeyboardInterrupt

    monkeypatch.setattr(cuda_graphs, "_copy", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(torch.zeros(3), new)
    monkeypatch.setattr(cuda_graphs, "_copy", copy_)
    assert float(run(torch.zeros(3), old)[0][0]) == 1.0
    assert float(run(torch.zeros(3), new)[0][0]) == 2.0


def test_graphs_keep_to_the_switches_that_they_were_captured_under(seed: int) -> None:
    state = [1.0]
    front = torch.fx.symbolic_trace(lambda patches, base_x: (patches + base_x,))
    run = Graphed(front, recorder := Recorder(), lambda: 0, switches=lambda: state[0])
    for value, captures in ((1.0, 0), (1.0, 1), (2.0, 1), (2.0, 2), (1.0, 2), (2.0, 2)):
        state[0] = value
        run(torch.zeros(3), torch.ones(1))
        assert recorder.captures == captures


def test_more_memory_than_was_foreseen_gives_graphs_up(seed: int) -> None:
    run = simple(Recorder(taken=10_000), pool=Pool(4096))
    for _ in range(4):
        assert float(run(torch.ones(30), torch.ones(1))[0][0]) == 2.0
    assert not run.kept
    assert not run.pool.held


def test_graphs_are_for_one_stream(seed: int) -> None:
    """On another one they could run while they run on the first, in the same memory."""
    streams = ["a"]
    front = torch.fx.symbolic_trace(lambda patches: (patches + 1,))
    run = Graphed(front, recorder := Recorder(), lambda: streams[-1])
    for stream, replays in (("a", 0), ("a", 2), ("b", 2), ("b", 2), ("a", 3)):
        streams.append(stream)
        assert float(run(torch.zeros(3))[0][0]) == 1.0
        assert recorder.replays == replays, "one more where it was captured: that is checked"
    run.drop()
    for stream, replays in (("b", 5), ("b", 6), ("a", 6)):
        streams.append(stream)
        run(torch.zeros(3))
        assert recorder.replays == replays


def test_base_tensors_are_copied_once_and_not_held(seed: int) -> None:
    run = simple(Recorder())
    base = torch.ones(3)
    for _ in range(3):
        assert float(run(torch.zeros(3), base)[0][0]) == 1.0
    base.fill_(5)  # a copy was made: nobody writes into base tensors
    assert float(run(torch.zeros(3), base)[0][0]) == 1.0
    alive = weakref.ref(base)
    del base
    assert alive() is None
    assert float(run(torch.zeros(3), torch.full((3,), 2.0))[0][0]) == 2.0


def test_kinds_that_never_come_again_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_graphs, "KINDS", 5)
    run = simple(Recorder())
    for rows in range(1, 30):
        run(torch.zeros(rows), torch.ones(1))
        assert len(run.seen) <= 5


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
