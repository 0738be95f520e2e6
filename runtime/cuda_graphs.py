"""CUDA graphs of a front: where a kind of batch comes again, its launches are captured and from then on replayed.

Whether that pays is measured (`replaying`). What graphs read and write lies in a `Pool`: base tensors are copied there
once per base, inputs before each replay, and results are copied out.
"""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from math import inf
from typing import Any
from weakref import ReferenceType, ref

import torch
from torch import Tensor, fx

from kcompile.core.errors import MemoryBudgetError
from kcompile.runtime.buckets import MOST
from kcompile.runtime.captures import Capture, Replay
from kcompile.runtime.out_of_memory import is_out_of_memory
from kcompile.runtime.pool import Pool, layout, nbytes

KINDS = 64 * MOST  # of batches that are remembered

# Of the largest value, by which a graph's results may differ: products may be summed in another order.
ERROR = 4e-2

ROOMY = 256  # batches in a row whose bases fill less than half of the copies, after which these are made anew


@dataclass
class _Kept:
    """One graph: its own inputs and results, what replays it, and how often it was."""

    inputs: list[Tensor]
    outputs: list[Tensor]
    replay: Replay
    runs: int = 0


@dataclass
class _Seen:
    """A kind of batch: how often it came, what its results are like, and with how large base tensors it was refused."""

    outputs: tuple[Tensor, ...]
    count: int = 1
    refused: float = inf


@dataclass
class Graphed:
    """Runs a front like itself; kinds of batches that came before are captured, up to `MOST` of them.

    Where there are as many, a kind that came more often takes the place of the one that was not replayed for longest.

    Attributes:
        front: The front.
        capture: Makes graphs.
        stream: Names where work is queued: graphs share buffers, so they are for one stream alone.
        pool: What graphs hold.
        in_flight: Bytes that a batch of so many queries takes on the way, where the pool has a limit.
        largest: Queries in a batch, at most, as far as is known.
        most: Graphs at a time; 0 once they were given up.
        seconds: Of the host's clock, that capturing took in all.
        switches: The settings that products and convolutions obey: a graph keeps those that it was captured under.
    """

    front: fx.GraphModule
    capture: Capture
    stream: Callable[[], object]
    pool: Pool = field(default_factory=Pool)
    in_flight: Callable[[int], int] = lambda _: 0
    largest: int = 0
    most: int = MOST
    seconds: float = 0.0
    switches: Callable[[], object] = lambda: None

    def __post_init__(self) -> None:
        """Nothing is captured yet."""
        names = [str(node.target) for node in self.front.graph.nodes if node.op == "placeholder"]
        self.is_base = [name.startswith(("base_", "derived_")) for name in names]
        self.kept: dict[object, _Kept] = {}  # in the order of their last use
        self.seen: dict[object, _Seen] = {}
        self.sources: list[ReferenceType[Tensor]] = []  # weak: the next base's tensors take their memory
        self.roomy = 0
        self.home: tuple[object] | None = None
        self.lock = threading.RLock()

    def __call__(self, *args: Any) -> tuple[Tensor, ...]:
        """The front's results, in tensors of their own."""
        with self.lock, _apart(args):
            key = self._key(args)
            if self._has(key, args):
                return self._replayed(key, args)
        outputs: tuple[Tensor, ...] = self.front(*args)
        if key not in self.seen and self.most:
            if len(self.seen) >= KINDS:
                self.seen = {}
            self.seen[key] = _Seen(tuple(torch.empty_like(output, device="meta") for output in outputs))
        return outputs

    def captured(self, args: Sequence[Any]) -> bool:
        """Capture a kind of batch that came before, if that is possible."""
        with self.lock, _apart(args):
            return self._has(self._key(args), args)

    def drop(self) -> None:
        """Give all memory back; kinds that come again are captured anew."""
        with self.lock:
            self._drop_graphs()
            self.pool.clear()
            self.sources, self.home, self.roomy = [], None, 0
            for seen in self.seen.values():
                seen.refused = inf

    def give_up(self) -> None:
        """Give all memory back, for good."""
        with self.lock:
            self.most = 0
            self.seen = {}
            self.drop()

    def _drop_graphs(self) -> None:
        if self.kept:
            self.capture.wait()
            self.kept, self.pool.graphs = {}, 0
            self.capture.forget()

    def _replayed(self, key: object, args: Sequence[Any]) -> tuple[Tensor, ...]:
        kept = self.kept[key] = self.kept.pop(key)
        kept.runs += 1
        self._take_bases(args)
        _copy(kept.inputs, self._others(args))
        kept.replay()
        return tuple(output.clone() for output in kept.outputs)

    def _has(self, key: object, args: Sequence[Any]) -> bool:
        """True if there is a graph, maybe a new one, for a kind of batch on this stream.

        The first batch of a kind runs without: it loads kernels and tries out.
        """
        if self.home not in (None, stream := (self.stream(),)):
            return False
        self.roomy = self.roomy + 1 if self._are_roomy(args) else 0
        if self.roomy > ROOMY:
            self.drop()
        if key in self.kept and self._bases_fit(args):
            return True
        seen = self.seen.get(key)
        if seen is None or self._base_bytes(args) >= seen.refused or not self.most:
            return False
        self.home, seen.count = stream, seen.count + 1
        return self._room(seen.count) and self._new(key, args, seen)

    def _new(self, key: object, args: Sequence[Any], seen: _Seen) -> bool:
        """Capture a kind of batch; False where that can't be."""
        try:
            return self._captured(key, args, seen)
        except MemoryBudgetError:
            if self._are_roomy(args):  # what the copies hold for more images may be what is lacking
                self.drop()
                self.home = (self.stream(),)
                return self._new(key, args, seen)
            seen.refused = self._base_bytes(args)
        except RuntimeError as error:  # an op that waits for the device can't be captured
            if not is_out_of_memory(error):
                warnings.warn(f"this front can't run as CUDA graphs: {error}", RuntimeWarning, stacklevel=2)
            self.give_up()
        return False

    def _room(self, count: int) -> bool:
        """True if one more graph may be kept, for a kind that came so often; makes room if it must."""
        if len(self.kept) < self.most:
            return True
        oldest = next(iter(self.kept))
        if count <= self.kept[oldest].runs:
            return False
        self.capture.wait()
        del self.kept[oldest]
        return True

    def _captured(self, key: object, args: Sequence[Any], seen: _Seen) -> bool:
        given = self._others(args)
        like, device = [*given, *seen.outputs], given[0].device
        rows, total = max(len(given[0]), 1), layout([*given, *seen.outputs])[1]
        size = max(total, -(-total * max(self.largest, rows) // rows))
        block = size if total > self.pool.size else 0
        self.pool.check(block=block, bases=self._base_bytes(args), graphs=self.in_flight(rows))
        if total > self.pool.size:
            self._drop_graphs()  # they use the old block
            self.pool.grow(size, device)
        self._take_bases(args)
        taken = self.pool.take(like)
        inputs, outputs = taken[: len(given)], taken[len(given) :]
        _copy(inputs, given)
        kept = _Kept(inputs, outputs, self._recorded(args, inputs, outputs))
        if self.pool.limit is not None and self.pool.held > self.pool.limit:
            self.give_up()  # the device took more than was foreseen
            return False
        self.kept[key] = kept
        return True

    def _recorded(self, args: Sequence[Any], inputs: list[Tensor], outputs: list[Tensor]) -> Replay:
        bases, others, front = iter(self.pool.bases), iter(inputs), self.front
        own = [
            (next(bases) if is_base else next(others)) if isinstance(arg, Tensor) else arg
            for arg, is_base in zip(args, self.is_base, strict=True)
        ]
        start = time.perf_counter()
        # Kernels that addresses make others are compiled here: capturing can't wait for that.
        wanted: Sequence[Tensor] = self.capture.rehearsed(lambda: front(*own))
        replay, taken = self.capture(lambda: _copy(outputs, list(front(*own))))
        for output in outputs:
            output.fill_(torch.nan if output.is_floating_point() else 1)
        replay()
        if not all(map(_same, outputs, wanted)):
            raise RuntimeError("a replay's results are not those of the front")
        self.seconds += time.perf_counter() - start
        self.pool.graphs += taken
        return replay

    def _take_bases(self, args: Sequence[Any]) -> None:
        """Copy base tensors that are others than the last time; fewer than there were leave the rest as it is."""
        given = self._bases(args)
        if not self._bases_fit(args):
            self._drop_graphs()  # they read the old copies
            self.sources, self.roomy = [], 0
            self.pool.copy_bases(given)
            self.sources = list(map(ref, given))
        changed = [i for i, base in enumerate(given) if len(self.sources) <= i or base is not self.sources[i]()]
        if changed:
            self.sources = []  # where the copy is interrupted
            _copy([self.pool.bases[i][: len(given[i])] for i in changed], [given[i] for i in changed])
            self.sources = list(map(ref, given))

    def _key(self, args: Sequence[Any]) -> object:
        """A batch's kind: what a graph is fixed to. Not the number of base images, as queries tell theirs by number."""
        kinds = (_kind(arg, int(is_base)) for arg, is_base in zip(args, self.is_base, strict=True))
        return (*kinds, self.switches())

    def _bases(self, args: Sequence[Any]) -> list[Tensor]:
        return [arg for arg, is_base in zip(args, self.is_base, strict=True) if is_base]

    def _base_bytes(self, args: Sequence[Any]) -> int:
        return sum(map(nbytes, self._bases(args)))

    def _are_roomy(self, args: Sequence[Any]) -> bool:
        """True if these base tensors fill less than half of the copies."""
        return 2 * self._base_bytes(args) < sum(map(nbytes, self.pool.bases))

    def _bases_fit(self, args: Sequence[Any]) -> bool:
        """True if the copies have room for these base tensors."""
        copies, given = self.pool.bases, self._bases(args)
        return len(copies) == len(given) and all(
            (copy.shape[1:], copy.dtype) == (base.shape[1:], base.dtype) and len(copy) >= len(base)
            for copy, base in zip(copies, given, strict=True)
        )

    def _others(self, args: Sequence[Any]) -> list[Tensor]:
        pairs = zip(args, self.is_base, strict=True)
        return [arg for arg, is_base in pairs if isinstance(arg, Tensor) and not is_base]


@contextmanager
def _apart(args: Sequence[Any]) -> Iterator[None]:
    """Inside, a call's device is the current one, where graphs are captured.

    Later calls may be inside of inference mode or not: what is kept must be usable in both.
    """
    device = next((arg.device for arg in args if isinstance(arg, Tensor)), None)
    current = torch.cuda.device(device) if device is not None and device.type == "cuda" else nullcontext()
    with current, torch.inference_mode(False), torch.no_grad():
        yield


def _kind(arg: Any, first: int) -> object:
    """What a graph is fixed to: sizes of tensors, from a dimension on, and all numbers."""
    if isinstance(arg, Tensor):
        return (tuple(arg.shape[first:]), arg.dtype)
    return tuple(arg) if isinstance(arg, list) else arg


def _copy(into: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    if into:
        torch._foreach_copy_(list(into), list(values))


def _same(found: Tensor, wanted: Tensor) -> bool:
    """True if results are equal up to rounding; NaN must be where they were."""
    one, other = (value if value.dtype == torch.float64 else value.float() for value in (found, wanted))
    scale = torch.where(other.isfinite(), other, 0).abs().max() if other.numel() else 0.0
    return bool(torch.isclose(one, other, rtol=0.0, atol=ERROR * float(scale), equal_nan=True).all())
