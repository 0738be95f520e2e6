"""Where memory is short, calls go on with fewer queries at a time, and give the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from kcompile.cuda_ops.nvrtc import NvrtcError
from kcompile.runtime.executor import Executor
from kcompile.runtime.module import IncrementalModule
from kcompile.runtime.out_of_memory import in_parts, is_out_of_memory
from tests.support.equivalence import PATCH, SHAPE, compiled, noise

ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"),
    MemoryError(),
]
SAID = [
    "CUDA error: out of memory\nCompile with `TORCH_USE_CUDA_DSA` to enable device-side assertions.",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    "GET was unable to find an engine to execute this computation",
    "Triton Error [CUDA]: out of memory",
]


@pytest.fixture(scope="module")
def inc() -> IncrementalModule:
    """The small network."""
    return compiled()


class Short(nn.Module):
    """A graph that can take so many rows at a time."""

    def __init__(self, graph: nn.Module, most: int, error: Exception, rows: Callable[..., int]) -> None:
        super().__init__()
        self.run, self.most, self.error, self.rows = graph, most, error, rows
        self.taken: list[int] = []

    def forward(self, *args: Any) -> Any:
        count = self.rows(*args)
        if count > self.most:
            raise self.error
        self.taken.append(count)
        return self.run(*args)


@pytest.mark.parametrize("error", ERRORS, ids=["GPU", "CPU", "host"])
@pytest.mark.parametrize("part", ["front", "tail", "full"])
def test_halves(inc: IncrementalModule, part: str, error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    inc.materialize(noise(SHAPE))
    where = np.random.default_rng().integers(0, 25, (40, 2))
    patches = noise((40, 3, *PATCH))
    wanted = inc.forward_patches(patches, where)
    made = Executor(inc.plan, inc.front, inc.tail, inc.runners.full())
    short = Short(getattr(made, part), 3, error, lambda first, *_: len(first))
    setattr(made, part, short)
    monkeypatch.setattr(inc.runners, "executors", {"lowered": made})
    monkeypatch.setattr(inc, "policy", "full" if part == "full" else "incremental")
    with pytest.warns(RuntimeWarning, match=r"out of memory with \d+ queries at a time: going on with"):
        got = inc.forward_patches(patches, where)
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-4)
    assert sum(short.taken) == 40
    assert 2 <= max(short.taken) <= 3
    if part == "front":
        assert made.batch <= 3
        short.taken.clear()
        inc.forward_patches(patches, where)  # no warning: the batches are small from the start
        assert sum(short.taken) == 40


def test_one_query_that_is_too_much() -> None:
    def never(rows: Any) -> None:
        raise ERRORS[0]

    with pytest.raises(torch.OutOfMemoryError), pytest.warns(RuntimeWarning):
        list(in_parts(never, np.arange(3), lambda rows: None))


@pytest.mark.parametrize("said", SAID)
def test_what_gpu_libraries_say_where_memory_is_short(said: str) -> None:
    assert is_out_of_memory(RuntimeError(said))
    assert is_out_of_memory(NvrtcError("the CUDA driver: out of memory"))
    assert not is_out_of_memory(ValueError(said))

    def run(rows: Any) -> int:
        if len(rows) > 2:
            raise RuntimeError(said)
        return len(rows)

    with pytest.warns(RuntimeWarning, match="out of memory with"):
        assert [found for _, found in in_parts(run, np.arange(7), lambda rows: None)] == [2, 2, 2, 1]


def test_other_errors_pass() -> None:
    assert not any(map(is_out_of_memory, [RuntimeError("shapes differ"), ValueError("memory"), KeyboardInterrupt()]))  # type: ignore[arg-type]

    def wrong(rows: Any) -> None:
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        list(in_parts(wrong, np.arange(8), lambda rows: None))


class Late(Short):
    """Memory ends when the work is done: what it wrote into its inputs stays."""

    def forward(self, *args: Any) -> Any:
        result = self.run(*args)
        for arg in args:
            arg.fill_(torch.nan)
        if self.rows(*args) > self.most:
            raise self.error
        self.taken.append(self.rows(*args))
        return result


def test_inputs_that_were_written_are_made_anew(inc: IncrementalModule, monkeypatch: pytest.MonkeyPatch) -> None:
    inc.materialize(noise(SHAPE))
    where = np.random.default_rng().integers(0, 25, (40, 2))
    wanted = inc.forward_patches(2.0, where)
    made = Executor(inc.plan, inc.front, inc.tail, inc.runners.full())
    made.tail = Late(inc.tail, 3, ERRORS[0], lambda first, *_: len(first))  # type: ignore[assignment]
    monkeypatch.setattr(inc.runners, "executors", {"lowered": made})
    with pytest.warns(RuntimeWarning, match="out of memory"):
        torch.testing.assert_close(inc.forward_patches(2.0, where), wanted, atol=1e-5, rtol=1e-4)
