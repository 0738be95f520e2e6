"""The baseline of the GPU check: its ways and their limits, its memory; on the CPU."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import kcompile
from benchmarks import gpu_naive, gpu_timing
from benchmarks.gpu_clock import OutOfTime, time_limit
from benchmarks.gpu_naive import Naive
from benchmarks.maps import positions_of
from benchmarks.networks import network


@pytest.mark.parametrize("factor", [0.25, 4.0, None])
def test_the_baseline_is_the_fastest_way_that_works(factor: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    image, positions = torch.randn(3, 8, 8), positions_of(8, 4, 1)
    naive = Naive(torch.nn.Conv2d(3, 4, 3), image, positions, torch.device("cpu"), 4, (4,), 1)
    eager = naive.way
    monkeypatch.setattr(naive, "_try", lambda *_: factor)

    def make() -> Any:
        if factor is None:
            raise RuntimeError("no C compiler")
        return lambda images: images

    best = naive._way("another", make, 1.0, 60.0)
    kept = factor is not None and factor < 1
    assert best == (factor if kept else 1.0)
    assert (naive.way is eager) == (not kept)
    assert naive.timing.name == ("another" if kept else "eager")
    assert len(naive.tried) == 1


def test_a_way_of_the_baseline_that_takes_too_long_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that would rather try another way than fail."""
    image, positions = torch.randn(3, 8, 8), positions_of(8, 4, 1)
    naive = Naive(torch.nn.Conv2d(3, 4, 3), image, positions, torch.device("cpu"), 4, (4,), 1)
    eager = naive.way

    def compiling() -> Any:
        until = time.monotonic() + 60
        while time.monotonic() < until:
            with contextlib.suppress(Exception):
                time.sleep(0.01)
        raise AssertionError("it was not stopped")

    assert naive._way("torch.compile", compiling, 1.0, 0.05) == 1.0
    assert naive.way is eager
    assert naive.untried == ["torch.compile (stopped after 0 s)"]


def test_time_limits() -> None:
    """Nothing is stopped behind one, nor in another thread; what ran before goes on, inside another limit, too."""
    handler, timer = signal.getsignal(signal.SIGALRM), signal.getitimer(signal.ITIMER_REAL)
    with time_limit(0.02):
        pass
    time.sleep(0.05)
    found: list[bool] = []

    def in_a_thread() -> None:
        with time_limit(0.01):
            time.sleep(0.05)
        found.append(True)

    thread = threading.Thread(target=in_a_thread)
    thread.start()
    thread.join()
    assert found == [True], "elsewhere there is no limit"
    with pytest.raises(OutOfTime, match="stopped after 0 s"), time_limit(0.02):
        time.sleep(10)
    with pytest.raises(OutOfTime, match="stopped after 0 s"), time_limit(0.05), time_limit(60):
        time.sleep(10)

    def inside_another() -> None:
        with contextlib.suppress(OutOfTime), time_limit(0.02):
            time.sleep(10)
        os.kill(os.getpid(), signal.SIGALRM)

    with pytest.raises(OutOfTime, match="stopped after 30 s"), time_limit(30):
        inside_another()
    assert signal.getsignal(signal.SIGALRM) is handler
    left = signal.getitimer(signal.ITIMER_REAL)[0]
    assert (0 < left < timer[0]) if timer[0] else left == 0


def test_a_time_limit_that_ends_with_its_body_leaves_nothing_behind() -> None:
    before = signal.getsignal(signal.SIGALRM)
    for number in range(300):
        with contextlib.suppress(OutOfTime), time_limit(0.002):
            until = time.monotonic() + 0.0018 + 1e-6 * number
            while time.monotonic() < until:
                pass
        assert signal.getsignal(signal.SIGALRM) is before


def test_the_baseline_has_its_norms_folded(seed: int) -> None:
    model, size = network("resnet18", 64)
    strong = gpu_naive.strongest(model)
    assert not any(isinstance(part, torch.nn.BatchNorm2d) for part in strong.modules())
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        torch.testing.assert_close(strong(images), model(images), rtol=0, atol=1e-4 * float(model(images).abs().max()))
    assert any(isinstance(part, torch.nn.BatchNorm2d) for part in gpu_naive.strongest(model.half()).modules())


def test_a_baseline_that_cannot_be_traced_keeps_its_norms() -> None:
    class Branching(torch.nn.Conv2d):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return super().forward(images if images.sum() > 0 else -images)

    model = torch.nn.Sequential(Branching(3, 4, 3), torch.nn.BatchNorm2d(4)).eval()
    images = torch.randn(2, 3, 8, 8)
    assert torch.equal(gpu_naive.strongest(model)(images), model(images))


def test_a_few_positions_are_timed_at_their_own_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    image, positions = torch.randn(3, 8, 8), positions_of(8, 4, 1)
    naive = Naive(torch.nn.Conv2d(3, 4, 3), image, positions, torch.device("cpu"), 4, (4,), 1)
    batches = []
    monkeypatch.setattr(naive, "_try", lambda some, batch: batches.append((len(some), batch, naive.batch)) or 0.25)
    assert naive.few(6) == (1.5, "eager")
    assert set(batches) == {(6, 6, 6)}
    assert naive.batch == 4
    assert naive.peak_at(40) == 0, "on a CPU nobody watches"


def test_memory_is_compared_at_the_batch_that_was_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the sample, or that of CUDA graphs; with the smaller of naive's peaks."""
    model, size = network("tiny")
    inc = kcompile.incrementalize(model, (1, 3, size, size), 8)
    inc.policy = "incremental"
    image, positions = torch.randn(3, size, size), positions_of(size, 8, 4)
    settings = gpu_timing.Settings(8, 4, 1, 5.0, (4,))
    naive = Naive(model, image, positions, torch.device("cpu"), 8, (4,), 1)
    run = gpu_timing.Incremental(inc, image, positions, torch.device("cpu"), gpu_timing.VARIANTS[0], settings)
    assert run.prepare(60.0)
    run.round()
    assert run.sample is not None
    batches, peaks = [], iter([500, 400, 900, 1000])
    monkeypatch.setattr(naive, "_run", lambda some, batch, benchmark=True: batches.append((len(some), benchmark)))
    monkeypatch.setattr(gpu_naive, "peak", lambda device, resting: next(peaks))
    run.timing.peak = 200
    assert run.memory_share(naive) == 0.5
    largest = max(map(len, run.sample.batches))
    assert batches == [(largest, True), (largest, True), (largest, False), (largest, False)]
    graphed = SimpleNamespace(kept=[1], largest=70)
    monkeypatch.setattr(inc.executor(), "replaying", SimpleNamespace(graphed=graphed))
    assert run.memory_share(naive) == 200 / 900
    assert batches[-1] == (70, False)
