"""Clocks and memory peaks on a device, and a limit for what can't be told how long it may take."""

from __future__ import annotations

import signal
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch

T = TypeVar("T")


@dataclass
class Timing:
    """Times of one way of making a map, in seconds for the whole map (scaled up from ``positions`` timed ones)."""

    name: str
    positions: int = 0
    first: float = float("nan")  # cold: algorithms chosen, plans built
    seconds: list[float] = field(default_factory=list)
    peak: int = 0  # most bytes of device memory, without the model's weights and what other ways hold meanwhile

    @property
    def median(self) -> float:
        """Median of the rounds."""
        return statistics.median(self.seconds) if self.seconds else float("nan")


@contextmanager
def cudnn_benchmark(on: bool) -> Iterator[None]:
    """Inside, cudnn tries its algorithms at the first call of each shape, or not."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = on
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def timed(device: torch.device, call: Callable[[], T]) -> tuple[float, T]:
    """Seconds on the host's clock, with all device work done before and after; and the result."""
    synchronize(device)
    start = time.perf_counter()
    result = call()
    synchronize(device)
    return time.perf_counter() - start, result


def synchronize(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def reset_peak(device: torch.device) -> int:
    """Begin to watch the memory; the bytes that are held already."""
    if device.type != "cuda":
        return 0
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)


def peak(device: torch.device, resting: int) -> int:
    """Most bytes of device memory since, beyond those that were held."""
    return torch.cuda.max_memory_allocated(device) - resting if device.type == "cuda" else 0


class OutOfTime(BaseException):
    """A time limit is over. No `Exception`: what is stopped may try another way after those."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Inside, OutOfTime is raised after so many seconds, between two steps of Python's interpreter.

    In the main thread and where the system has such timers; elsewhere nothing is limited. A timer that runs already
    goes on behind it.
    """
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    done: list[bool] = []

    def stop(*_: Any) -> None:
        if not done:
            raise OutOfTime(f"stopped after {first:.0f} s")

    outer, _ = signal.getitimer(signal.ITIMER_REAL)
    start, first = time.monotonic(), min(seconds, outer or seconds)
    before = signal.signal(signal.SIGALRM, stop)
    _, again = signal.setitimer(signal.ITIMER_REAL, max(first, 1e-3), 5.0)  # again, should somebody swallow it
    try:
        try:
            yield
        finally:
            done.append(True)
    finally:  # also where the alarm came as the body ended
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        left = max(outer - (time.monotonic() - start), 1e-3) if outer else 0.0
        if left:
            signal.setitimer(signal.ITIMER_REAL, left, again)
