"""The baseline on a device: full inference of every patched image, in the fastest way; clocks and peaks."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor, nn

from benchmarks.maps import IntArray, occluded

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


class Naive:
    """Full inference of every patched image: channels-last, cudnn.benchmark on, in the fastest of several ways.

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
            model: The model, on the device; its channels-last copy runs.
            image: [C, H, W], on the device.
            everything: Positions [N, 2] of the map.
            device: Where to compute.
            patch: Its size in pixels.
            batches: Sizes to choose from.
            rounds: How often all is timed.
        """
        self.patch, self.batches, self.rounds = patch, batches, rounds
        self.model = copy.deepcopy(model).to(memory_format=torch.channels_last)
        self.image, self.everything, self.device = image, everything, device
        self.timing = Timing("eager")
        self.tried: dict[str, float] = {}
        self.untried: list[str] = []  # ways that there was no time for
        self.batch, self.best = batches[0], float("inf")  # seconds per position
        self.rows = everything
        self.way: Callable[[Tensor], Tensor] = self.model
        self.graph_bytes = 0

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
        for name, make in (("CUDA graph", self._graph), ("torch.compile", self._compiled)):
            if self.device.type == "cuda" and time.perf_counter() < deadline:
                self.best = self._way(name, make, self.best)
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

    def _way(self, name: str, make: Callable[[], Callable[[Tensor], Tensor]], best: float) -> float:
        """Try another way than the best so far, and keep it if it is faster; seconds per position of the best."""
        before = self.way
        try:
            self.way = make()
            seconds = self._try(self.everything[: 2 * self.batch], self.batch)
        except Exception as error:  # no C compiler for torch.compile, no memory for a graph: the baseline goes without
            print(f"naive, {name}: {type(error).__name__}: {str(error)[:300]}")
            seconds = float("inf")
        self.tried[f"{name}, batch {self.batch}"] = seconds
        if seconds < best:
            self.timing.name = name
            return seconds
        self.way = before
        return best

    @torch.inference_mode()
    def _graph(self) -> Callable[[Tensor], Tensor]:
        """The model as a CUDA graph of one batch."""
        into = occluded(self.image, self.everything[: self.batch], self.patch)
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

    def few(self, count: int) -> float:
        """Seconds of a batch of so many positions, eagerly and warm."""
        return min(self._few(count) for _ in range(3))

    def _few(self, count: int) -> float:
        way, self.way = self.way, self.model
        try:
            return self._try(self.everything[:count], count) * count
        finally:
            self.way = way

    @torch.inference_mode()
    def _run(self, positions: IntArray, batch: int) -> Tensor:
        with cudnn_benchmark(True):
            parts = (positions[i : i + batch] for i in range(0, len(positions), batch))
            return torch.cat([self._one(occluded(self.image, part, self.patch)) for part in parts])

    def _one(self, images: Tensor) -> Tensor:
        return self.way(images) if len(images) == self.batch else self.model(images)
