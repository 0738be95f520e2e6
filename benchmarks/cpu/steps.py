"""Where the incremental time goes, by kind of step: a pass of its own under torch's profiler.

Every op counts once, by the outermost op that a graph calls; geometry (scheduling, origins, extents) and the base's
materialisation are counted whole; what is left of the clock's time is Python and everything else between ops.
"""

from __future__ import annotations

import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile, record_function

import kcompile
from benchmarks.maps import Sample
from kcompile.runtime import executor as executor_module
from kcompile.runtime.executor import Executor
from kcompile.runtime.scheduler import schedule

LABEL = "kcompile.step."
# An op's kind is the first whose pattern its name holds.
_PATTERNS = (
    ("conv", r"conv|winograd"),
    ("pool", r"pool|::mean"),
    ("linear", r"linear|addmm|matmul|::mm\b|bmm"),
    ("gather", r"gather|superimpose|::crop|::resample"),
    ("join", r"::add|::cat\b|::mul|::sub"),
)
KINDS = ("gather", "conv", "pool", "join", "tail conv", "head", "geometry", "materialise", "other ops", "python")


def times(inc: kcompile.IncrementalModule, image: Tensor, sample: Sample | None, positions: Any) -> dict[str, float]:
    """Shares of the time of a map (``sample``) or of a call at some positions, by kind; they sum to 1.

    Convolutions of the tail (layers that are computed whole) are a kind of their own, all else in it is the head.
    """
    with torch.inference_mode(), _labelled(inc.executor()), profile(activities=[ProfilerActivity.CPU]) as profiled:
        start = time.perf_counter()
        with record_function(LABEL + "materialise"):
            inc.materialize(image)
        with nullcontext() if sample is None else sample.scheduled():
            inc.forward_patches(0.0, positions if sample is None else sample.positions)
        elapsed = time.perf_counter() - start
    seconds = _by_kind(profiled)
    scheduling = 0.0 if sample is None else sample.scheduling  # the whole map's, whatever the sample
    seconds["python"] = max(elapsed - scheduling - sum(seconds.values()), 0.0)
    once = {"materialise": 0.0 if sample is None else seconds["materialise"]}  # before a call the base is set already
    scale = 1.0 if sample is None else sample.scale
    scaled = {kind: t * scale for kind, t in seconds.items()} | once
    scaled["geometry"] = scaled.get("geometry", 0.0) + scheduling
    total = sum(scaled.values())
    return {kind: scaled.get(kind, 0.0) / total for kind in KINDS}


def kind_of(op: str, tail: bool) -> str:
    """The kind of an op by its name, as ``aten::conv2d``."""
    kind = next((kind for kind, pattern in _PATTERNS if re.search(pattern, op)), "other ops")
    if tail:
        return "tail conv" if kind == "conv" else "head"
    return "head" if kind == "linear" else kind


def _by_kind(profiled: Any) -> defaultdict[str, float]:
    seconds: defaultdict[str, float] = defaultdict(float)
    for event in profiled.events():
        above = _above(event)
        if event.name == LABEL + "tail" or any(name.startswith(LABEL) and name != LABEL + "tail" for name in above):
            continue
        if any(not name.startswith(LABEL) for name in above):
            continue  # inside another op
        label = event.name.removeprefix(LABEL)
        kind = label if label != event.name else kind_of(event.name, LABEL + "tail" in above)
        seconds[kind] += event.cpu_time_total / 1e6
    return seconds


def _above(event: Any) -> list[str]:
    names = []
    while (event := event.cpu_parent) is not None:
        names.append(event.name)
    return names


@contextmanager
def _labelled(runner: Executor) -> Iterator[None]:
    """Inside, the runner's tail and its geometry appear in the profile by name."""
    with (
        mock.patch.object(runner, "tail", _under("tail", runner.tail)),
        mock.patch.object(runner, "arguments", _under("geometry", runner.arguments)),
        mock.patch.object(executor_module, "schedule", _under("geometry", schedule)),
    ):
        yield


def _under(label: str, run: Callable[..., Any]) -> Callable[..., Any]:
    def labelled(*args: Any, **kwargs: Any) -> Any:
        with record_function(LABEL + label):
            return run(*args, **kwargs)

    return labelled
