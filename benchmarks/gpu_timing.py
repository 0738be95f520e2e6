"""Whole maps on a device: incremental inference, in several settings, against naive; in turn, within a time limit."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar
from unittest import mock
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from benchmarks.gpu_kernels import time_by_kind
from benchmarks.maps import IntArray, Sample, occluded, own_box_bound, positions_of, sample_of
from kcompile.runtime import cuda_graphs, lowering_cuda
from kcompile.runtime import executor as executor_module
from kcompile.runtime.module import IncrementalModule

T = TypeVar("T")


@dataclass(frozen=True)
class Variant:
    """A setting of incremental inference to try; the first in `VARIANTS` is what a user gets without doing anything.

    ``batch`` and ``overhead`` (multiply-adds that one more batch costs, per op) replace the executor's own.
    """

    name: str
    batch: int | None = None
    overhead: float | None = None
    benchmark: bool = False  # cudnn.benchmark
    fuse: bool = True  # what follows windows runs in the launch that reads them (runtime/lowering_cuda.py)
    graphs: bool = False  # kinds of batches that come again are replayed (runtime/cuda_graphs.py)

    @contextmanager
    def applied(self, inc: IncrementalModule) -> Iterator[None]:
        """Inside, the module runs in this setting."""
        _switch(inc, self.fuse, self.graphs)
        runner = inc.executor()  # made here, outside of what is timed
        own = executor_module.OVERHEAD_MACS_PER_OP
        overhead = own if self.overhead is None else self.overhead
        with (
            cudnn_benchmark(self.benchmark),
            mock.patch.object(runner, "batch", self.batch or runner.batch),
            mock.patch.object(executor_module, "OVERHEAD_MACS_PER_OP", overhead),
        ):
            yield


_executors: WeakKeyDictionary[IncrementalModule, dict[tuple[bool, bool], Any]] = WeakKeyDictionary()


def _switch(inc: IncrementalModule, fuse: bool, graphs: bool) -> None:
    """Let a module run with its executors for these settings; they keep their graphs from round to round."""
    lowering_cuda.FUSE, cuda_graphs.ENABLED = fuse, graphs
    inc.runners.executors = _executors.setdefault(inc, {}).setdefault((fuse, graphs), {})


VARIANTS = (
    Variant("as is"),
    Variant("batch 128", batch=128, overhead=1e8),
    Variant("batch 512", batch=512, overhead=1e8),
    Variant("batch 512, cudnn.benchmark", batch=512, overhead=1e8, benchmark=True),
    Variant("batch 512, not fused", batch=512, overhead=1e8, fuse=False),
    Variant("batch 128, CUDA graphs", batch=128, overhead=1e8, graphs=True),
)


@dataclass(frozen=True)
class Settings:
    """What is measured: ``limit`` is in seconds per network, ``batches`` are the naive ones to choose from."""

    patch: int
    stride: int
    rounds: int
    limit: float
    batches: tuple[int, ...]
    variants: tuple[Variant, ...] = VARIANTS


@dataclass
class Timing:
    """Times of one way of making a map, in seconds for the whole map (scaled up from ``positions`` timed ones)."""

    name: str
    positions: int = 0
    first: float = float("nan")  # cold: algorithms chosen, plans built
    seconds: list[float] = field(default_factory=list)
    peak: int = 0  # bytes of device memory at most, parameters included

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


def time_network(inc: IncrementalModule, model: nn.Module, device: torch.device, settings: Settings) -> dict[str, Any]:
    """Time whole maps of one network; every number of its rows in the table.

    Args:
        inc: The compiled model, on the device.
        model: The model itself, on the device; the baseline is a channels-last copy of it.
        device: Where to compute.
        settings: What to measure.
    """
    deadline = time.perf_counter() + settings.limit
    try:
        return _time_network(inc, model, device, settings, deadline)
    finally:
        _switch(inc, fuse=True, graphs=False)
        _executors.pop(inc, None)


def _time_network(
    inc: IncrementalModule, model: nn.Module, device: torch.device, settings: Settings, deadline: float
) -> dict[str, Any]:
    everything = positions_of(inc.plan.input_shape[-1], settings.patch, settings.stride)
    image = torch.randn(inc.plan.input_shape, generator=torch.Generator().manual_seed(1))
    image = image.to(device, next(model.parameters()).dtype)
    naive = Naive(model, image, everything, device, settings)
    share = (deadline - time.perf_counter()) / (len(settings.variants) + 1)
    naive.prepare(share)
    runs = [Incremental(inc, image, everything, device, variant, settings) for variant in settings.variants]
    runs = [run for run in runs if run.prepare(share)]
    for done in range(settings.rounds):
        if done and time.perf_counter() > deadline:
            break
        naive.round()
        for run in runs:
            run.round()
    best = naive.timing.median
    fastest = min(runs, key=lambda run: run.timing.median)
    few = min(16, len(everything))
    ours, theirs = runs[0].few(few), naive.few(few)
    return {
        "positions": len(everything),
        "interactive": {"positions": few, "naive": theirs, "incremental": ours, "share": ours / theirs},
        "kinds": fastest.kinds() if device.type == "cuda" else {},
        "bound": own_box_bound(inc, everything),
        "naive": {**_numbers(naive.timing), "batch": naive.batch, "tried": naive.tried,
                  "tflops": 2e-12 * inc.plan.full_macs() * len(everything) / best},
        "incremental": [
            {**_numbers(run.timing), "batches": run.batches, "ratio": best / run.timing.median,
             "lowest": _extreme(min, naive, run), "highest": _extreme(max, naive, run)}
            for run in runs
        ],
    }  # fmt: skip


def _numbers(timing: Timing) -> dict[str, Any]:
    return {
        "name": timing.name, "timed": timing.positions, "first": timing.first, "seconds": timing.median,
        "rounds": timing.seconds, "peak": timing.peak,
    }  # fmt: skip


def _extreme(pick: Callable[[list[float]], float], naive: Naive, run: Incremental) -> float:
    return pick([a / b for a, b in zip(naive.timing.seconds, run.timing.seconds, strict=True)])


class Naive:
    """Full inference of every patched image: channels-last, cudnn.benchmark on, in the fastest of several ways.

    Eagerly in the best of some batch sizes, then with this size as a CUDA graph and by torch.compile. The patched
    images are made on the device, in one pass per batch.
    """

    def __init__(
        self, model: nn.Module, image: Tensor, everything: IntArray, device: torch.device, settings: Settings
    ) -> None:
        self.model = copy.deepcopy(model).to(memory_format=torch.channels_last)
        self.image, self.everything, self.device, self.settings = image, everything, device, settings
        self.timing = Timing("eager")
        self.tried: dict[str, float] = {}
        self.batch = settings.batches[0]
        self.rows = everything
        self.way: Callable[[Tensor], Tensor] = self.model

    def prepare(self, limit: float) -> None:
        """Choose batch size and way, by time per position when warm; then how many positions to time, and warm up."""
        deadline = time.perf_counter() + limit / 2
        eager: dict[int, float] = {}
        for batch in self.settings.batches:
            if eager and 4 * batch * min(eager.values()) > limit / 8:
                break
            try:
                eager[batch] = self._try(self.everything[: 2 * batch], batch)
            except torch.OutOfMemoryError:
                break
        self.batch = min(eager, key=lambda batch: eager[batch])
        self.tried = {f"eager, batch {batch}": seconds for batch, seconds in eager.items()}
        best = eager[self.batch]
        for name, make in (("CUDA graph", self._graph), ("torch.compile", self._compiled)):
            if self.device.type == "cuda" and time.perf_counter() < deadline:
                best = self._way(name, make, best)
        affordable = int(limit / 2 / self.settings.rounds / best)
        if affordable < len(self.everything):
            self.rows = self.everything[: max(affordable // self.batch, 1) * self.batch]
        self.timing.positions = len(self.rows)
        rest = len(self.rows) % self.batch
        if rest:
            self._run(self.rows[:rest], self.batch)

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
        into = occluded(self.image, self.everything[: self.batch], self.settings.patch)
        stream = torch.cuda.Stream(self.device)
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream), cudnn_benchmark(True):
            self.model(into)
        torch.cuda.current_stream(self.device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph), cudnn_benchmark(True):
            out = self.model(into)

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
        _reset_peak(self.device)
        seconds, _ = timed(self.device, lambda: self._run(self.rows, self.batch))
        self.timing.seconds.append(seconds * len(self.everything) / len(self.rows))
        self.timing.peak = max(self.timing.peak, _peak(self.device))

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
            return torch.cat([self._one(occluded(self.image, part, self.settings.patch)) for part in parts])

    def _one(self, images: Tensor) -> Tensor:
        return self.way(images) if len(images) == self.batch else self.model(images)


class Incremental:
    """Materialisation, scheduling and all queries of a compiled model, in one setting."""

    def __init__(
        self,
        inc: IncrementalModule,
        image: Tensor,
        everything: IntArray,
        device: torch.device,
        variant: Variant,
        settings: Settings,
    ) -> None:
        self.inc, self.image, self.everything, self.device = inc, image, everything, device
        self.variant, self.settings = variant, settings
        self.timing = Timing(variant.name)
        self.batches = 0
        self.sample: Sample | None = None

    def prepare(self, limit: float) -> bool:
        """Find out by a few batches how many positions can be timed; warm up. False where memory does not suffice."""
        try:
            with self.variant.applied(self.inc):
                few = sample_of(self.inc, self.everything, 4 * self.inc.executor().batch)
                self.batches = len(sample_of(self.inc, self.everything, 0).batches)
                cold, warm = self._run(few), self._run(few)
                affordable = limit / (cold + self.settings.rounds * warm) * len(self.everything)
                whole = affordable >= len(self.everything)
                self.sample = sample_of(self.inc, self.everything, 0 if whole else int(affordable))
                self.timing.first = self._run(self.sample)
        except torch.OutOfMemoryError:
            return False
        self.timing.positions = len(self.sample.rows)
        return True

    def round(self) -> None:
        """Time the chosen batches once."""
        assert self.sample is not None
        _reset_peak(self.device)
        with self.variant.applied(self.inc):
            self.timing.seconds.append(self._run(self.sample))
        self.timing.peak = max(self.timing.peak, _peak(self.device))

    @torch.inference_mode()
    def few(self, count: int) -> float:
        """Seconds of a call of so many positions across the map, the base being there; warm."""
        some = self.everything[:: max(len(self.everything) // count, 1)][:count]
        with self.variant.applied(self.inc):
            self.inc.forward_patches(0.0, some)
            return min(timed(self.device, lambda: self.inc.forward_patches(0.0, some))[0] for _ in range(3))

    @torch.inference_mode()
    def kinds(self) -> dict[str, float]:
        """Device time by kind of kernel, of some batches of the map."""
        few = sample_of(self.inc, self.everything, 2 * self.inc.executor().batch)
        with self.variant.applied(self.inc), few.scheduled():
            return time_by_kind(lambda: self.inc.forward_patches(0.0, few.positions))

    @torch.inference_mode()
    def _run(self, sample: Sample) -> float:
        """Seconds of the whole map: materialisation and scheduling as they are, the queries scaled up."""
        with sample.scheduled():
            fixed, _ = timed(self.device, lambda: self.inc.materialize(self.image))
            rest, _ = timed(self.device, lambda: self.inc.forward_patches(0.0, sample.positions))
        return fixed + sample.scheduling + (rest - sample.scheduling) * sample.scale


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def _peak(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
