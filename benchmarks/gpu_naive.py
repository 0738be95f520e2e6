"""The baseline on a device: full inference of every patched image, in the fastest way."""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.gpu_clock import OutOfTime, Timing, cudnn_benchmark, peak, reset_peak, time_limit, timed
from benchmarks.maps import IntArray, occluded

T = TypeVar("T")


def strongest(model: nn.Module) -> nn.Module:
    """A channels-last copy; in float32 with batch norms folded into convolutions, as compiled modules have them."""
    copied = copy.deepcopy(model)
    if next(copied.parameters()).dtype is torch.float32:
        try:
            from torch.fx.experimental import optimization  # not everywhere for ever

            copied = optimization.fuse(copied)
        except Exception as error:  # torch.fx does not trace every model
            print(f"naive: norms are not folded: {type(error).__name__}: {str(error)[:300]}")
    return copied.to(memory_format=torch.channels_last)


class Naive:
    """Full inference of every patched image: channels-last, norms folded, cudnn.benchmark on, the fastest of some ways.

    Eagerly in the best of some batch sizes, then with this size as a CUDA graph and by torch.compile. The patched
    images are made on the device, in one pass per batch.
    """

    def __init__(
        self,
        model: nn.Module,
        image: Tensor,
        everything: IntArray,
        device: torch.device,
        patch: int,
        batches: tuple[int, ...],
        rounds: int,
    ) -> None:
        """Take what to time.

        Args:
            model: The model, on the device; a copy of it runs (`strongest`).
            image: [C, H, W], on the device.
            everything: Positions [N, 2] of the map.
            device: Where to compute.
            patch: Its size in pixels.
            batches: Sizes to choose from.
            rounds: How often all is timed.
        """
        self.patch, self.batches, self.rounds = patch, batches, rounds
        self.model = strongest(model)
        self.image, self.everything, self.device = image, everything, device
        self.timing = Timing("eager")
        self.tried: dict[str, float] = {}
        self.untried: list[str] = []  # ways that there was no time for
        self.batch, self.best = batches[0], float("inf")  # seconds per position
        self.rows = everything
        self.way: Callable[[Tensor], Tensor] = self.model
        self.graph_bytes = 0
        self.peaks: dict[int, int] = {}

    def choose(self, limit: float) -> None:
        """Choose batch size and way, by time per position when warm; nothing new is begun after so many seconds."""
        deadline = time.perf_counter() + limit
        eager: dict[int, float] = {}
        for batch in self.batches:
            if eager and 4 * batch * min(eager.values()) > limit / 4:
                self.untried.append(f"batch {batch}")
                continue
            try:
                eager[batch] = self._try(self.everything[: 2 * batch], batch)
            except torch.OutOfMemoryError:
                break
        self.batch = min(eager, key=lambda batch: eager[batch])
        self.tried = {f"eager, batch {batch}": seconds for batch, seconds in eager.items()}
        self.best = eager[self.batch]
        for name, make in (("CUDA graph", partial(self._graph, self.batch)), ("torch.compile", self._compiled)):
            left = deadline - time.perf_counter()
            if self.device.type == "cuda" and left > 0:
                self.best = self._way(name, make, self.best, left)
            else:
                self.untried.append(name)

    def prepare(self, limit: float) -> None:
        """Find out how many positions can be timed in so many seconds; warm up. After `choose`."""
        affordable = int(limit / self.rounds / self.best)
        if affordable < len(self.everything):
            self.rows = self.everything[: max(affordable // self.batch, 1) * self.batch]
        self.timing.positions = len(self.rows)
        rest = len(self.rows) % self.batch
        if rest:
            self._run(self.rows[:rest], self.batch)

    def results(self, positions: IntArray) -> Tensor:
        """The model's for some positions; in the chosen way where they are as many as a batch."""
        return self._run(positions, self.batch)

    def _way(self, name: str, make: Callable[[], Callable[[Tensor], Tensor]], best: float, limit: float) -> float:
        """Try another way than the best so far, and keep it if it is faster; seconds per position of the best."""
        before = self.way
        try:
            with time_limit(limit):
                self.way = make()
                seconds = self._try(self.everything[: 2 * self.batch], self.batch)
        except (Exception, OutOfTime) as error:  # no C compiler, no memory for a graph, …: the baseline goes without
            print(f"naive, {name}: {type(error).__name__}: {str(error)[:300]}")
            seconds = float("inf")
            if isinstance(error, OutOfTime):
                self.untried.append(f"{name} ({error})")
                _stop_compiling()
        self.tried[f"{name}, batch {self.batch}"] = seconds
        if seconds < best:
            self.timing.name = name
            return seconds
        self.way = before
        return best

    @torch.inference_mode()
    def _graph(self, batch: int) -> Callable[[Tensor], Tensor]:
        """The model as a CUDA graph of one batch."""
        into = occluded(self.image, self.everything[:batch], self.patch)
        stream = torch.cuda.Stream(self.device)
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream), cudnn_benchmark(True):
            self.model(into)
        torch.cuda.current_stream(self.device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        torch.cuda.empty_cache()
        before = torch.cuda.memory_reserved(self.device)
        with torch.cuda.graph(graph), cudnn_benchmark(True):
            out = self.model(into)
        grown = max(torch.cuda.memory_reserved(self.device) - before, 0)  # what runs in it takes no more
        self.graph_bytes = grown + into.numel() * into.element_size()

        def replay(images: Tensor) -> Tensor:
            into.copy_(images)
            graph.replay()
            return out.clone()

        return replay

    def _compiled(self) -> Callable[[Tensor], Tensor]:
        torch.compiler.reset()
        compiled: Callable[[Tensor], Tensor] = torch.compile(self.model, dynamic=False)
        return compiled

    def _try(self, positions: IntArray, batch: int) -> float:
        """Seconds per position, when warm."""
        self._run(positions, batch)
        return timed(self.device, lambda: self._run(positions, batch))[0] / len(positions)

    def round(self) -> None:
        """Time all chosen positions once."""
        resting = reset_peak(self.device)
        seconds, _ = timed(self.device, lambda: self._run(self.rows, self.batch))
        self.timing.seconds.append(seconds * len(self.everything) / len(self.rows))
        in_graph = self.graph_bytes if self.timing.name == "CUDA graph" else 0
        self.timing.peak = max(self.timing.peak, peak(self.device, resting) + in_graph)

    def peak_at(self, rows: int) -> int:
        """Most bytes that a batch of so many images takes, eagerly, which takes least: beyond the weights.

        0 where the device's memory does not suffice, or isn't watched.
        """
        if rows not in self.peaks:
            try:
                self.peaks[rows] = self._by(self.model, partial(self._peak, np.resize(self.everything, (rows, 2))))
            except torch.OutOfMemoryError:
                self.peaks[rows] = 0
        return self.peaks[rows]

    def _peak(self, positions: IntArray) -> int:
        """The smaller one of two: algorithms that are chosen by time may take more memory than others."""
        found = []
        for benchmark in (True, False):
            self._run(positions, len(positions), benchmark)  # chooses its algorithms
            resting = reset_peak(self.device)
            self._run(positions, len(positions), benchmark)
            found.append(peak(self.device, resting))
        return min(found)

    def few(self, count: int) -> tuple[float, str]:
        """Seconds of a batch of so many positions, warm, and the way: eagerly or as a CUDA graph, what is faster."""
        ways: dict[str, Callable[[Tensor], Tensor]] = {"eager": self.model}
        if self.device.type == "cuda":
            try:
                ways["CUDA graph"] = self._graph(count)
            except Exception as error:
                print(f"naive, CUDA graph of {count}: {type(error).__name__}: {str(error)[:300]}")
        batch, self.batch = self.batch, count  # the graph is for batches of this size
        try:
            times = {name: self._by(way, partial(self._least, count)) for name, way in ways.items()}
        finally:
            self.batch = batch
        best = min(times, key=lambda name: times[name])
        return times[best] * count, best

    def _least(self, count: int) -> float:
        return min(self._try(self.everything[:count], count) for _ in range(3))

    def _by(self, way: Callable[[Tensor], Tensor], call: Callable[[], T]) -> T:
        """What a call gives while this is the way."""
        before, self.way = self.way, way
        try:
            return call()
        finally:
            self.way = before

    @torch.inference_mode()
    def _run(self, positions: IntArray, batch: int, benchmark: bool = True) -> Tensor:
        with cudnn_benchmark(benchmark):
            parts = (positions[i : i + batch] for i in range(0, len(positions), batch))
            return torch.cat([self._one(occluded(self.image, part, self.patch)) for part in parts])

    def _one(self, images: Tensor) -> Tensor:
        return self.way(images) if len(images) == self.batch else self.model(images)


def _stop_compiling() -> None:
    """Forget what was half compiled, and end the processes that still compile: they would slow what is timed next."""
    torch.compiler.reset()
    with contextlib.suppress(ImportError, AttributeError):  # no public name
        from torch._inductor.async_compile import shutdown_compile_workers

        shutdown_compile_workers()
