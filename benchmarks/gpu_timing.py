"""Whole maps on a device: incremental inference, in several settings, against naive; in turn, within a time limit."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar
from unittest import mock
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.gpu_clock import Timing, cudnn_benchmark, peak, reset_peak, timed
from benchmarks.gpu_kernels import time_by_kind
from benchmarks.gpu_naive import Naive
from benchmarks.maps import IntArray, Sample, own_box_bound, positions_of, sample_of
from kcompile.runtime import lowering_convs, lowering_cuda, replaying
from kcompile.runtime.module import IncrementalModule

T = TypeVar("T")


@dataclass(frozen=True)
class Variant:
    """A setting of incremental inference to try; the first in `VARIANTS` is what a user gets without doing anything.

    ``batch`` and ``overhead`` (multiply-adds that one more batch costs, per op) replace the executor's own.
    ``direct``: convolutions read base and patch without windows where that was measured to be faster.
    """

    name: str
    batch: int | None = None
    overhead: float | None = None
    benchmark: bool = False  # cudnn.benchmark
    fuse: bool = True  # what follows windows runs in the launch that reads them (runtime/lowering_cuda.py)
    direct: bool = True
    graphs: bool | None = False  # kinds of batches that come again are replayed; None: where that was measured to pay

    @contextmanager
    def applied(self, inc: IncrementalModule) -> Iterator[None]:
        """Inside, the module runs in this setting."""
        _switch(inc, self.fuse, self.graphs, self.direct)
        runner = inc.executor()  # made here, outside of what is timed
        overhead = runner.choice.overhead if self.overhead is None else self.overhead * runner.ops
        with (
            cudnn_benchmark(self.benchmark),
            mock.patch.object(runner, "batch", self.batch or runner.batch),
            mock.patch.object(runner.choice, "overhead", overhead),
        ):
            yield


_executors: WeakKeyDictionary[IncrementalModule, dict[tuple[bool | None, ...], Any]] = WeakKeyDictionary()


def _switch(inc: IncrementalModule, fuse: bool, graphs: bool | None, direct: bool = True) -> None:
    """Let a module run with its executors for these settings; they keep their graphs from round to round."""
    lowering_cuda.FUSE, replaying.ENABLED, lowering_convs.DIRECT = fuse, graphs, direct
    inc.runners.executors = _executors.setdefault(inc, {}).setdefault((fuse, graphs, direct), {})


VARIANTS = (
    Variant("as is", graphs=None),
    Variant("windows and cuDNN", direct=False),
    Variant("windows, cudnn.benchmark", direct=False, benchmark=True),
    Variant("batch 128", batch=128, overhead=1e8),
    Variant("batch 512", batch=512),
    Variant("CUDA graphs", graphs=True),
    Variant("not fused", fuse=False),
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


def time_network(
    inc: IncrementalModule,
    model: nn.Module,
    device: torch.device,
    settings: Settings,
    found: dict[str, Any],
    save: Callable[[], None],
) -> None:
    """Time whole maps of one network; every number of its rows in the table.

    Args:
        inc: The compiled model, on the device.
        model: The model itself, on the device; the baseline is a channels-last copy of it.
        device: Where to compute.
        settings: What to measure.
        found: Takes the numbers.
        save: Called whenever there are more.
    """
    deadline = time.perf_counter() + settings.limit
    try:
        _time_network(inc, model, device, settings, deadline, found, save)
    finally:
        _switch(inc, fuse=True, graphs=None)
        _executors.pop(inc, None)


def _time_network(
    inc: IncrementalModule,
    model: nn.Module,
    device: torch.device,
    settings: Settings,
    deadline: float,
    found: dict[str, Any],
    save: Callable[[], None],
) -> None:
    everything = positions_of(inc.plan.input_shape[-1], settings.patch, settings.stride)
    found.update(positions=len(everything), bound=own_box_bound(inc, everything))
    image = torch.randn(inc.plan.input_shape, generator=torch.Generator().manual_seed(1))
    image = image.to(device, next(model.parameters()).dtype)
    naive = Naive(model, image, everything, device, settings.patch, settings.batches, settings.rounds)
    naive.choose((deadline - time.perf_counter()) / 2)
    share = max(deadline - time.perf_counter(), settings.limit / 4) / (len(settings.variants) + 1)
    naive.prepare(share)
    runs = [Incremental(inc, image, everything, device, variant, settings) for variant in settings.variants]
    runs = [run for run in runs if run.prepare(share)]
    flops = 2e-12 * inc.plan.full_macs() * len(everything)
    for done in range(settings.rounds):
        if done and time.perf_counter() > deadline:
            break
        naive.round()
        for run in runs:
            run.round()
        best = naive.timing.median
        own = {"batch": naive.batch, "tried": naive.tried, "untried": naive.untried, "tflops": flops / best}
        found.update(naive=_numbers(naive.timing) | own, incremental=[_against(naive, run) for run in runs])
        save()
    for run, numbers in zip(runs, found["incremental"], strict=True):
        numbers.update(run.compared(naive), memory=run.memory_share(naive))
    save()
    few = min(16, len(everything))
    ours, (theirs, way) = runs[0].few(few), naive.few(few)
    found["interactive"] = {"positions": few, "naive": theirs, "way": way, "incremental": ours, "share": ours / theirs}
    found["interactive"]["name"] = runs[0].variant.name
    save()
    if device.type == "cuda":
        found["kinds"] = min(runs, key=lambda run: run.timing.median).kinds()


def _against(naive: Naive, run: Incremental) -> dict[str, Any]:
    """A setting's numbers, and its speed against the baseline's."""
    ratios = [a / b for a, b in zip(naive.timing.seconds, run.timing.seconds, strict=True)]
    speed = {"ratio": naive.timing.median / run.timing.median, "lowest": min(ratios), "highest": max(ratios)}
    return _numbers(run.timing) | speed | {"batches": run.batches, "graphs": run.graphs()}


def _numbers(timing: Timing) -> dict[str, Any]:
    return {
        "name": timing.name, "timed": timing.positions, "first": timing.first, "seconds": timing.median,
        "rounds": timing.seconds, "peak": timing.peak,
    }  # fmt: skip


def copied_weights(model: nn.Module, *parts: nn.Module) -> int:
    """Bytes of the parts' weights that are not the model's own, but laid out or rounded anew."""
    own, made = (
        {value.untyped_storage().data_ptr(): value.untyped_storage().nbytes() for value in _weights(module)}
        for module in (model, nn.ModuleList(parts))
    )
    return sum(size for address, size in made.items() if address not in own)


def _weights(module: nn.Module) -> Iterator[Tensor]:
    """All that are in memory of the usual layout: what oneDNN packs on a CPU has no address."""
    yield from (value for value in (*module.parameters(), *module.buffers()) if not value.is_mkldnn)


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
        self.result: Tensor | None = None  # of the last run

    def prepare(self, limit: float) -> bool:
        """Find out by a few batches how many positions can be timed; warm up. False where memory does not suffice."""
        try:
            with self.variant.applied(self.inc):
                few = sample_of(self.inc, self.everything, 4 * self.inc.executor().batch)
                self.batches = len(sample_of(self.inc, self.everything, 0).batches)
                cold, warm = self._run(few) + self._run(few), self._run(few)  # the second time measures graphs
                affordable = limit / (cold + self.settings.rounds * warm) * len(self.everything)
                whole = affordable >= len(self.everything)
                self.sample = sample_of(self.inc, self.everything, 0 if whole else int(affordable))
                self.timing.first = self._run(self.sample)
                if self.inc.executor().replaying is not None:
                    self._run(self.sample)  # captures
        except torch.OutOfMemoryError:
            return False
        self.timing.positions = len(self.sample.rows)
        return True

    def round(self) -> None:
        """Time the chosen batches once."""
        assert self.sample is not None
        with self.variant.applied(self.inc):
            self.inc.drop_base()  # it counts: what is made anew does
            resting = reset_peak(self.device)
            self.timing.seconds.append(self._run(self.sample))
            runner = self.inc.executor()  # holds CUDA graphs meanwhile
            used = peak(self.device, resting) + runner.held + copied_weights(self.inc.model, runner.front, runner.tail)
        self.timing.peak = max(self.timing.peak, used)

    def compared(self, naive: Naive) -> dict[str, float]:
        """What was timed last against full inference of as many positions as a naive batch has, all over the map.

        Returns:
            The largest error, and by how much results differ between positions; as shares of the largest result.
        """
        assert self.sample is not None
        assert self.result is not None
        picked = np.linspace(0, len(self.sample.rows) - 1, min(naive.batch, len(self.sample.rows))).astype(np.int64)
        want = naive.results(self.sample.positions[picked]).double()
        got = self.result[torch.from_numpy(picked).to(self.result.device)].double()
        scale = want.abs().max()
        change = (want - want.mean(0)).abs().max() / scale
        return {"error": float((got - want).abs().max() / scale), "change": float(change)}

    def memory_share(self, naive: Naive) -> float | None:
        """The peak, as a share of eager full inference's at the same batch; None where the device's isn't known."""
        assert self.sample is not None
        with self.variant.applied(self.inc):
            found = self.inc.executor().replaying
        graphs = 0 if found is None or not found.graphed.kept else found.graphed.largest
        largest = max(graphs, *map(len, self.sample.batches))  # of those that were timed
        theirs = naive.peak_at(largest) if self.timing.peak else 0
        return self.timing.peak / theirs if theirs else None

    def graphs(self) -> dict[str, Any] | None:
        """CUDA graphs: how many, seconds that capturing took in all, bytes; times without and with, if measured."""
        with self.variant.applied(self.inc):
            found = self.inc.executor().replaying
            if found is None:
                return None
            measured = [times for times in found.times.values() if times is not None]
            graphed = found.graphed
            return {
                "kept": len(graphed.kept), "capture": graphed.seconds, "bytes": graphed.pool.held, "measured": measured,
            }  # fmt: skip

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
            rest, self.result = timed(self.device, lambda: self.inc.forward_patches(0.0, sample.positions))
        return fixed + sample.scheduling + (rest - sample.scheduling) * sample.scale
