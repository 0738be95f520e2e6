"""Whether fronts run as CUDA graphs: by measurement, with a clock that is told what to say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import kcompile
from kcompile.core.region import evaluate
from kcompile.cuda_ops import kept
from kcompile.cuda_ops.tuning import Tuner
from kcompile.runtime import captures, lowering_cuda, replaying, runners
from kcompile.runtime.buckets import buckets
from kcompile.runtime.choice import GPU
from kcompile.runtime.cuda_graphs import Graphed
from kcompile.runtime.pool import Pool
from kcompile.runtime.replaying import Replaying
from kcompile.runtime.scheduler import patch_regions, schedule
from tests.runtime.test_cuda_graphs import PATCH, SHAPE, Recorder, all_positions, check, network
from tests.support.equivalence import incremental
from tests.support.networks import ready


@pytest.fixture(autouse=True)
def _folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(kept, "folder", lambda: tmp_path / "cache")
    monkeypatch.setattr(runners, "GPU", replace(GPU, batch=32, per_op=1e7))
    monkeypatch.setattr(lowering_cuda, "available", lambda _: True)


class Clock:
    """Says how long plain batches and replays take, in turn."""

    def __init__(self, *seconds: float) -> None:
        self.seconds, self.asked = seconds, 0

    def __call__(self, call: Callable[[], Any]) -> float:
        call()
        self.asked += 1
        return self.seconds[self.asked - 1]


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Recorder]:
    """Modules run as on a GPU whose clock says this."""

    def make(clock: Clock, limit: int | None = None) -> Recorder:
        recorder = Recorder()

        def factory(front: Any, device: Any, budget: Any, in_flight: Any) -> Replaying:
            graphed = Graphed(front, recorder, lambda: 0, Pool(limit), in_flight)
            return Replaying(graphed, lambda: Tuner("a GPU", clock, {}))

        monkeypatch.setattr(replaying, "replaying", factory)
        return recorder

    return make


def compiled() -> kcompile.IncrementalModule:
    return incremental(ready(network(), SHAPE), SHAPE, PATCH)


@pytest.mark.parametrize(("replayed", "wins"), [(0.1, True), (0.95, False), (3.0, False)])
def test_what_was_measured_decides(replayed: float, wins: bool, made: Callable[..., Recorder], seed: int) -> None:
    clock = Clock(1.0, replayed)
    recorder = made(clock)
    inc = compiled()
    check(inc)
    assert (clock.asked, recorder.captures) == (0, 0), "one map is not worth measuring for"
    check(inc)
    assert clock.asked == 2
    replays = recorder.replays
    check(inc)
    check(inc)
    assert clock.asked == 2, "measured once"
    assert (recorder.replays > replays) == wins
    assert bool(inc.executor().replaying.graphed.pool.held) == wins  # type: ignore[union-attr]


def test_another_process_knows_what_was_measured(made: Callable[..., Recorder], seed: int) -> None:
    torch.manual_seed(3)
    model = ready(network(), SHAPE)
    made(Clock(1.0, 0.1))
    first = incremental(model, SHAPE, PATCH)
    for _ in range(2):
        check(first)
    clock = Clock()
    recorder = made(clock)
    again = incremental(model, SHAPE, PATCH)
    for _ in range(3):
        check(again)
    assert clock.asked == 0
    assert recorder.replays, "from the first map on kinds are counted"


def test_wrong_results_are_left_out(made: Callable[..., Recorder], monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    clock = Clock(1.0, 0.1)
    recorder = made(clock)
    monkeypatch.setattr(Graphed, "_replayed", lambda self, key, args: tuple(value + 1e3 for value in self.front(*args)))
    inc = compiled()
    for _ in range(3):
        check(inc)
    assert clock.asked == 1, "only right ones are timed"
    assert recorder.captures == 1


def test_what_does_not_fit_is_not_measured(made: Callable[..., Recorder], seed: int) -> None:
    clock = Clock(1.0, 0.1)
    recorder = made(clock, limit=1000)
    inc = compiled()
    for _ in range(3):
        check(inc)
    assert (clock.asked, recorder.captures) == (0, 0)


@pytest.mark.parametrize(("rows", "most"), [(32, 10), (12, 10), (10, 10), (3, 3)])
def test_batches_fit_into_the_pool(rows: int, most: int) -> None:
    front = torch.fx.symbolic_trace(lambda patches: (patches,))
    graphed = Graphed(front, Recorder(), lambda: 0, Pool(2050), lambda rows: 100 * rows)
    assert Replaying(graphed, lambda: Tuner("", Clock(), {}))._most(rows) == most
    graphed.pool.limit = None
    assert Replaying(graphed, lambda: Tuner("", Clock(), {}))._most(rows) == rows


@pytest.mark.parametrize(("more", "wins"), [(1.5, True), (2.0, False)])
def test_more_work_must_pay(
    more: float, wins: bool, made: Callable[..., Recorder], monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Batches that are made alike compute more: that counts against what is gained."""
    recorder = made(Clock(1.0, 0.5))
    works = cycle([more, 1.0])  # of batches alike, and of others
    monkeypatch.setattr(replaying, "work", lambda *_: next(works))
    inc = compiled()
    check(inc)
    check(inc)
    replays = recorder.replays
    check(inc)
    assert (recorder.replays > replays) == wins


def test_work_of_batches(seed: int) -> None:
    inc = compiled()
    positions = all_positions(3)
    regions = evaluate(inc.plan.regions, patch_regions(positions, PATCH))
    choice = inc.executor().choice
    rows = np.arange(len(positions))
    alone = replaying.work(choice, regions, [rows[i : i + 1] for i in rows])
    assert alone == pytest.approx(float(choice.queries(regions).sum()))
    plain = schedule(inc.plan, positions, PATCH, 32, choice.overhead, regions)
    found = buckets(inc.plan, regions, rows, 32, choice.overhead)
    filled = [queries for queries, _ in found]
    assert alone <= replaying.work(choice, regions, plain)
    one = replaying.work(choice, regions, [rows])
    assert one >= replaying.work(choice, regions, plain)
    assert replaying.work(choice, regions, filled) > alone


def test_fronts_are_told_apart() -> None:
    fronts = [torch.fx.symbolic_trace(f) for f in (lambda x: (x + 1,), lambda x: (x + 2,), lambda x: (x + 1,))]
    one, two, three = map(replaying.digest, fronts)
    assert one == three != two
    linear = [torch.fx.symbolic_trace(torch.nn.Linear(3, width)) for width in (4, 4, 5)]
    one, two, three = map(replaying.digest, linear)
    assert one == two != three


def test_graphs_are_told_pytorchs_switches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replaying, "ENABLED", True)
    made = replaying.replaying(torch.fx.symbolic_trace(lambda x: (x,)), torch.device("cuda", 0), None, lambda _: 0)
    assert made is not None
    assert made.graphed.switches is captures.switches


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (torch.backends.cuda.matmul, "fp32_precision"),
        (torch.backends.cudnn.conv, "fp32_precision"),
        (torch.backends.cuda.matmul, "allow_fp16_accumulation"),
        (torch.backends.cuda.matmul, "allow_fp16_reduced_precision_reduction"),
        (torch.backends.cuda.matmul, "allow_bf16_reduced_precision_reduction"),
        (torch.backends.cudnn, "enabled"),
        (torch.backends.cudnn, "benchmark"),
        (torch.backends.cudnn, "deterministic"),
    ],
)
def test_a_switch_makes_another_kind(owner: Any, name: str) -> None:
    """Whatever other tests, or libraries that they import, have left behind."""
    before, was = captures.switches(), getattr(owner, name)
    setattr(owner, name, not was if isinstance(was, bool) else "ieee" if was == "tf32" else "tf32")
    try:
        assert captures.switches() != before
    finally:
        setattr(owner, name, was)
    assert captures.switches() == before


def test_deterministic_algorithms_make_another_kind() -> None:
    before, was = captures.switches(), torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(not was)
    try:
        assert captures.switches() != before
    finally:
        torch.use_deterministic_algorithms(was)


def test_only_on_gpus_and_not_where_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    front = torch.fx.symbolic_trace(lambda patches: (patches,))
    plain = replaying.__dict__["replaying"]
    assert plain(front, torch.device("cpu"), None, lambda _: 0) is None
    found = plain(front, torch.device("cuda"), 4096, lambda _: 0)
    assert (found.always, found.graphed.pool.limit) == (False, 1024)
    monkeypatch.setattr(replaying, "ENABLED", True)
    assert plain(front, torch.device("cuda"), None, lambda _: 0).always
    monkeypatch.setattr(replaying, "ENABLED", False)
    assert plain(front, torch.device("cuda"), None, lambda _: 0) is None
