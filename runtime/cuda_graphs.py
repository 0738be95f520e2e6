"""CUDA graphs of a front: where a kind of batch comes again, its launches are captured and from then on replayed.

Off unless `ENABLED` is set before a module's first query on its device: a batch of 256 queries is estimated to keep a
GPU busy for longer than the host takes to queue it, and capturing takes longer than running a batch. They are for many
maps of small networks. Base tensors are copied into the graphs' own, once per base; so there are none under a memory
budget. All graphs take their memory from one pool, as only one runs at a time and its results are copied out.
"""

from __future__ import annotations

import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from kcompile.runtime.buckets import MOST

ENABLED = False

Replay = Callable[[], None]
Capture = Callable[[Callable[[], Sequence[Tensor]]], tuple[Replay, Sequence[Tensor]]]


@dataclass(frozen=True)
class _Kept:
    """One graph: its own inputs, what replays it, and its results."""

    inputs: list[Tensor]
    replay: Replay
    outputs: Sequence[Tensor]


def graphed(front: fx.GraphModule) -> Graphed | None:
    """A front with graphs, where these are switched on."""
    return Graphed(front, Captures(), _stream) if ENABLED else None


class Graphed:
    """Runs a front like itself; kinds of batches that came before are captured, up to `MOST` of them.

    ``seconds``: of the host's clock, that capturing took in all.
    """

    def __init__(self, front: fx.GraphModule, capture: Capture, stream: Callable[[], object]) -> None:
        """Hold the front; ``capture`` makes graphs, ``stream`` names where work is queued."""
        self.front, self.capture, self.stream = front, capture, stream
        names = [str(node.target) for node in front.graph.nodes if node.op == "placeholder"]
        self.is_base = [name.startswith(("base_", "derived_")) for name in names]
        self.kept: dict[object, _Kept] = {}
        self.seen: Counter[object] = Counter()
        self.bases: list[Tensor] = []
        self.sources: list[Tensor] = []
        self.most, self.seconds = MOST, 0.0
        self.lock = threading.Lock()

    def __call__(self, *args: Any) -> tuple[Tensor, ...]:
        """The front's results, in tensors of their own."""
        with self.lock, _device_of(args), torch.inference_mode(False), torch.no_grad():  # later calls may be outside
            key = (self.stream(), *(_kind(arg) for arg in args))
            kept = self.kept.get(key) or self._new(key, args)
            if kept is not None:
                self._take_bases(args)
                _copy(kept.inputs, self._others(args))
                kept.replay()
                return tuple(output.clone() for output in kept.outputs)
        outputs: tuple[Tensor, ...] = self.front(*args)
        return outputs

    def _new(self, key: object, args: Sequence[Any]) -> _Kept | None:
        """A graph for a kind of batch that came before; the first one runs without: it loads kernels and tries out."""
        self.seen[key] += 1
        if self.seen[key] == 1 or len(self.kept) >= self.most:
            return None
        try:
            self.kept[key] = self._captured(args)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # an op that waits for the device can't be captured
            warnings.warn(f"this front can't run as CUDA graphs: {error}", RuntimeWarning, stacklevel=2)
            self.seen.clear()
            self.most = 0
            return None
        return self.kept[key]

    def _captured(self, args: Sequence[Any]) -> _Kept:
        self._take_bases(args)
        inputs = [torch.empty_like(arg) for arg in self._others(args)]
        _copy(inputs, self._others(args))
        bases, others = iter(self.bases), iter(inputs)
        own = [
            (next(bases) if is_base else next(others)) if isinstance(arg, Tensor) else arg
            for arg, is_base in zip(args, self.is_base, strict=True)
        ]
        start = time.perf_counter()
        replay, outputs = self.capture(lambda: self.front(*own))
        self.seconds += time.perf_counter() - start
        return _Kept(inputs, replay, outputs)

    def _take_bases(self, args: Sequence[Any]) -> None:
        """Copy base tensors that are others than the last time."""
        given = [arg for arg, is_base in zip(args, self.is_base, strict=True) if is_base]
        if [base.shape for base in given] != [base.shape for base in self.bases]:
            self.bases, self.sources = [base.clone() for base in given], given  # their number of images is another one
            self.kept.clear()
        changed = [i for i, base in enumerate(given) if base is not self.sources[i]]
        _copy([self.bases[i] for i in changed], [given[i] for i in changed])
        self.sources = given

    def _others(self, args: Sequence[Any]) -> list[Tensor]:
        pairs = zip(args, self.is_base, strict=True)
        return [arg for arg, is_base in pairs if isinstance(arg, Tensor) and not is_base]


class Captures:
    """Makes CUDA graphs that take their memory from one pool; other threads may go on using the device."""

    def __init__(self) -> None:
        """Make the pool when it is needed."""
        self.pool: Any = None

    def __call__(self, call: Callable[[], Sequence[Tensor]]) -> tuple[Replay, Sequence[Tensor]]:
        """A graph of a call: what replays it, and its results."""
        self.pool = self.pool or torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
            outputs = call()
        return graph.replay, outputs


def _device_of(args: Sequence[Any]) -> AbstractContextManager[object]:
    """Inside, the device of a call is the current one: graphs are captured on that."""
    device = next((arg.device for arg in args if isinstance(arg, Tensor)), None)
    return torch.cuda.device(device) if device is not None and device.type == "cuda" else nullcontext()


def _stream() -> object:
    return torch.cuda.current_stream().cuda_stream


def _kind(arg: Any) -> object:
    """What a graph is fixed to: sizes of tensors, and all numbers."""
    if isinstance(arg, Tensor):
        return (tuple(arg.shape), arg.dtype)
    return tuple(arg) if isinstance(arg, list) else arg


def _copy(into: list[Tensor], values: list[Tensor]) -> None:
    if into:
        torch._foreach_copy_(into, values)
