"""The state of a growing graph: which values there are, which of them are maps, what hypothesis draws."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from hypothesis import strategies as st
from torch import Tensor

from tests.fuzz.build import run
from tests.fuzz.description import Call, Const, Graph, Ref, make

T = TypeVar("T")
MOST_CELLS = 1500  # of one map, times channels at most 12: a graph is checked at two dozen positions


class Grower:
    """A graph under construction; all values are known for a small batch, so that each layer can look at shapes.

    Attributes:
        maps: Values laid out [B, C, *S], which layers take and give.
        ends: Other values that may become outputs.
    """

    def __init__(self, draw: Callable[..., Any], shape: tuple[int, ...], patch: tuple[int, ...], seed: int) -> None:
        self.draw, self.shape, self.patch, self.seed = draw, shape, patch, seed
        self.calls: list[Call] = []
        self.values: list[Any] = [make(Const(0, "weight", (2, *shape)), seed)]
        self.maps, self.ends = [Ref(0)], list[Ref]()
        self.layers: list[tuple[str, tuple[Any, ...]]] = []  # convolutions, to be shared
        self.numbers = 0

    @property
    def axes(self) -> int:
        """Number of spatial axes."""
        return len(self.shape) - 1

    def whole(self, low: int, high: int) -> int:
        """A drawn integer; the low end is the simple one."""
        return int(self.draw(st.integers(low, max(low, high))))

    def pick(self, items: Sequence[T]) -> T:
        """A drawn item; the first is the simple one."""
        return items[self.whole(0, len(items) - 1)]

    def chance(self, one_in: int) -> bool:
        """True once in so many."""
        return self.whole(0, one_in - 1) == one_in - 1

    def const(self, kind: str, *shape: int) -> Const:
        """A new constant."""
        self.numbers += 1
        return Const(self.numbers, kind, shape)

    def value(self, ref: Ref) -> Any:
        """The tensor behind a reference."""
        return self.values[ref.index]

    def channels(self, ref: Ref) -> int:
        """Channels of a map."""
        return int(self.value(ref).shape[1])

    def sizes(self, ref: Ref) -> tuple[int, ...]:
        """Cells per axis of a map."""
        return tuple(int(size) for size in self.value(ref).shape[2:])

    def batch(self) -> Ref:
        """The size of the batch, as a model reads it off its input."""
        known = next((i for i, call in enumerate(self.calls, 1) if call.op == "sym_size.int"), None)
        return Ref(known) if known is not None else self.call("sym_size.int", Ref(0), 0)

    def call(self, op: str, *args: Any) -> Ref:
        """Append a call."""
        call = Call(op, args)
        with torch.no_grad():
            self.values.append(run(call, self._resolve))
        self.calls.append(call)
        return Ref(len(self.calls))

    def _resolve(self, arg: Ref | Const) -> Any:
        return self.values[arg.index] if isinstance(arg, Ref) else make(arg, self.seed)

    def shrunk(self, ref: Ref) -> bool:
        """Whether a map is still small enough to go on with."""
        value = self.value(ref)
        return isinstance(value, Tensor) and value[0].numel() <= MOST_CELLS and 0 not in value.shape

    def done(self) -> Graph:
        """The graph with drawn outputs: the last value, and some others."""
        last = (self.ends[-1:] or self.maps[-1:]) if self.chance(2) else self.maps[-1:]
        others = [ref for ref in [*self.maps[1:], *self.ends] if ref not in last]
        more = [self.pick(others) for _ in range(self.whole(0, 2))] if others else []
        outputs = tuple(dict.fromkeys(ref.index for ref in [*last, *more]))
        return Graph(self.shape, self.patch, self.seed, tuple(self.calls), outputs)
