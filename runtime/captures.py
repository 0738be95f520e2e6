"""Making CUDA graphs: on a stream and from a pool of their own, and only of what does not wait for the device."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from typing import Any, Protocol, TypeVar
from weakref import WeakValueDictionary

import torch

T = TypeVar("T")
Replay = Callable[[], None]

# Where a capture fails, older versions leave the allocator as if it went on (PyTorch's #180395): then
# torch.cuda.empty_cache() fails, and what tries again when memory is short.
CLEANED_UP = (2, 13)
STREAMS = 32  # that PyTorch has per device: it hands the same ones out in turn


class Capture(Protocol):
    """What makes graphs."""

    def rehearsed(self, call: Callable[[], T]) -> T:
        """The result of what is to be captured.

        Raises:
            RuntimeError: It waits for the device, so it can't be captured.
        """

    def __call__(self, call: Callable[[], None]) -> tuple[Replay, int]:
        """A graph of a call: what replays it, and the bytes that it took from the device."""

    def wait(self) -> None:
        """Return when no graph runs any more."""

    def forget(self) -> None:
        """No graph is kept any more."""


class Captures:
    """Makes CUDA graphs that take their memory from one pool; other threads may go on using the device.

    On a stream that no others have: PyTorch's own for captures is of the device where a process first captured, and
    products that are captured on one stream share a workspace, which lies in the pool of the first.
    """

    def __init__(self) -> None:
        """Make pool and stream when they are needed."""
        self.pool: Any = None
        self.stream: torch.cuda.Stream | None = None
        self.device = -1

    def rehearsed(self, call: Callable[[], T]) -> T:
        """See `Capture`; PyTorch watches all threads or none, so it does where there is only one."""
        if threading.active_count() > 1:
            return call()
        before = torch.cuda.get_sync_debug_mode()
        try:
            _watch("error")
            return call()
        finally:
            _watch(before)

    def __call__(self, call: Callable[[], None]) -> tuple[Replay, int]:
        """See `Capture`."""
        with _capturing:
            self.pool, self.device = self.pool or torch.cuda.graph_pool_handle(), torch.cuda.current_device()
            self.stream = self.stream or _own_stream(self)
            graph, current = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
            torch.cuda.empty_cache()  # capturing does so, too: what is left is in use
            before = torch.cuda.memory_reserved()
            try:
                with torch.cuda.graph(graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local"):
                    call()
            finally:
                torch.cuda.set_stream(current)
            return graph.replay, max(torch.cuda.memory_reserved() - before, 0)

    def wait(self) -> None:
        """See `Capture`."""
        torch.cuda.synchronize(self.device)

    def forget(self) -> None:
        """See `Capture`: the device's pool goes with its last graph, and another one comes."""
        self.pool = None


_capturing = threading.Lock()  # PyTorch allows one capture at a time in a process
_owners: WeakValueDictionary[tuple[int, int], Captures] = WeakValueDictionary()


def cleans_up() -> bool:
    """True if this PyTorch leaves nothing behind where a capture fails."""
    major, minor = torch.__version__.split(".")[:2]
    return (int(major), int(minor)) >= CLEANED_UP


def current() -> object:
    """The current device's current stream, which graphs are for."""
    return torch.cuda.current_stream().cuda_stream


def switches() -> tuple[object, ...]:
    """What PyTorch's products and convolutions obey beside their arguments; a graph keeps that of its capture."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    return (
        matmul.fp32_precision,
        cudnn.conv.fp32_precision,  # type: ignore[attr-defined]
        matmul.allow_fp16_accumulation,
        matmul.allow_fp16_reduced_precision_reduction,
        matmul.allow_bf16_reduced_precision_reduction,
        cudnn.enabled,
        cudnn.benchmark,
        cudnn.deterministic,
        torch.are_deterministic_algorithms_enabled(),
    )


def _own_stream(owner: Captures) -> torch.cuda.Stream:
    """A stream of its device that no other one has.

    Raises:
        RuntimeError: All have an owner.
    """
    for _ in range(STREAMS):
        stream = torch.cuda.Stream(owner.device)
        shared = stream == torch.cuda.graph.default_capture_stream
        if not shared and _owners.setdefault((owner.device, stream.cuda_stream), owner) is owner:
            return stream
    raise RuntimeError(f"all {STREAMS} streams of device {owner.device} are taken by other modules' graphs")


def _watch(mode: int | str) -> None:
    """Let ops that wait for the device raise, or not."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # once: that this does not find all of them
        torch.cuda.set_sync_debug_mode(mode)
