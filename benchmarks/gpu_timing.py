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

import torch
from torch import Tensor, nn

from benchmarks.maps import IntArray, Sample, occluded, own_box_bound, positions_of, sample_of
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

    @contextmanager
    def applied(self, inc: IncrementalModule) -> Iterator[None]:
        """Inside, the module runs in this setting."""
        runner = inc.executor()
        own = executor_module.OVERHEAD_MACS_PER_OP
        overhead = own if self.overhead is None else self.overhead
        with (
            cudnn_benchmark(self.benchmark),
            mock.patch.object(runner, "batch", self.batch or runner.batch),
            mock.patch.object(executor_module, "OVERHEAD_MACS_PER_OP", overhead),
        ):
            yield


VARIANTS = (
    Variant("as is"),
    Variant("batch 128", batch=128, overhead=1e8),
    Variant("batch 512", batch=512, overhead=1e8),
    Variant("batch 512, cudnn.benchmark", batch=512, overhead=1e8, benchmark=True),
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
    everything = positions_of(inc.plan.input_shape[-1], settings.patch, settings.stride)
    image = torch.randn(inc.plan.input_shape, generator=torch.Generator().manual_seed(1)).to(device)
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
    return {
        "positions": len(everything),
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
    """Full inference of every patched image: channels-last, cudnn.benchmark on, the best of some batch sizes.

    The patched images are made on the device, in one pass per batch.
    """

    def __init__(
        self, model: nn.Module, image: Tensor, everything: IntArray, device: torch.device, settings: Settings
    ) -> None:
        self.model = copy.deepcopy(model).to(memory_format=torch.channels_last)
        self.image, self.everything, self.device, self.settings = image, everything, device, settings
        self.timing = Timing("naive")
        self.tried: dict[int, float] = {}
        self.batch = settings.batches[0]
        self.rows = everything

    def prepare(self, limit: float) -> None:
        """Choose the batch size, by time per position when warm; then how many positions to time, and warm up."""
        for batch in self.settings.batches:
            if self.tried and 4 * batch * min(self.tried.values()) > limit / 4:
                break
            try:
                self.tried[batch] = self._try(self.everything[: 2 * batch], batch)
            except torch.OutOfMemoryError:
                break
        self.batch = min(self.tried, key=lambda batch: self.tried[batch])
        affordable = int(limit / 2 / self.settings.rounds / self.tried[self.batch])
        if affordable < len(self.everything):
            self.rows = self.everything[: max(affordable // self.batch, 1) * self.batch]
        self.timing.positions = len(self.rows)
        rest = len(self.rows) % self.batch
        if rest:
            self._run(self.rows[:rest], self.batch)

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

    @torch.inference_mode()
    def _run(self, positions: IntArray, batch: int) -> Tensor:
        with cudnn_benchmark(True):
            parts = (positions[i : i + batch] for i in range(0, len(positions), batch))
            return torch.cat([self.model(occluded(self.image, part, self.settings.patch)) for part in parts])


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
