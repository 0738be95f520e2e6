"""A front that replays, by itself: kinds of batches, its pool, copies of base tensors; graphs are a stand-in."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch

from kcompile.runtime import cuda_graphs
from kcompile.runtime.cuda_graphs import Graphed
from kcompile.runtime.pool import Pool
from tests.runtime.test_cuda_graphs import Recorder


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
