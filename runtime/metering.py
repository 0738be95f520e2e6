"""Metering: how much memory a graph's run takes, for any number of rows, without running it.

A graph is run twice on tensors that hold nothing (PyTorch's fake tensors), for two and for three rows. What is live
after each op grows evenly with the rows, so these two runs tell the peak for any number of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from kcompile.runtime.scratch import INTO_INPUT, scratch_bytes

Bytes = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Footprint:
    """Memory of one run, in bytes; parameters and what was given to the run don't count.

    Attributes:
        fixed: [events], live bytes at each event for no rows at all.
        per_row: [events], what each row adds.
        kept: [events], bytes per row that were put into the base store up to then.
        outputs: Bytes per row of the run's results.
        leaves: For each result, its shape for two and for three rows; None for what is no tensor.
        aliases: The results share memory with what was given to the run.
    """

    fixed: Bytes
    per_row: Bytes
    kept: Bytes
    outputs: int
    leaves: tuple[tuple[torch.Size, torch.Size] | None, ...] = ()
    aliases: bool = False

    def peak(self, rows: int, kept_rows: int = 0) -> int:
        """Most bytes at any time of a run of so many rows, with what is kept for ``kept_rows`` until then."""
        return int((self.fixed + rows * self.per_row + kept_rows * self.kept).max(initial=0))

    @property
    def kept_in_all(self) -> int:
        """Bytes per row that the run puts into the base store."""
        return int(self.kept[-1]) if len(self.kept) else 0


class Meter(TorchDispatchMode):
    """Counts the bytes of all tensors that are made inside of it, while they live."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.kept = 0
        self.events: list[tuple[int, int]] = []
        self._live: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an op and note what is live after it."""
        kwargs = kwargs or {}
        result = args[INTO_INPUT[func]] if func in INTO_INPUT else func(*args, **kwargs)
        made = [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)]
        if not any(returned.alias_info for returned in func._schema.returns):
            self.add(*made)
        self.note(scratch_bytes(func, [a for a in pytree.tree_leaves((args, kwargs)) if isinstance(a, Tensor)], made))
        return result

    def add(self, *tensors: Tensor) -> None:
        """Count tensors."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            ref = StorageWeakRef(storage)
            self._live.setdefault(ref.cdata, (ref, storage.nbytes()))

    def note(self, scratch: int = 0) -> None:
        """Note an event: what is live, and what an op takes for itself."""
        self._live = {key: entry for key, entry in self._live.items() if not entry[0].expired()}
        self.events.append((sum(size for _, size in self._live.values()) + scratch, self.kept))


def footprint(make: Callable[[int], list[Any]], run: Callable[[list[Any], Meter], Any]) -> Footprint:
    """The memory of a run.

    Args:
        make: Its arguments for so many rows; called where tensors hold nothing.
        run: Runs it on them, and adds to the meter what counts of them.
    """
    first, second = (_run(make, run, rows) for rows in (2, 3))
    events, more = (np.array(run.events, dtype=np.int64) for run in (first, second))
    if len(events) != len(more):  # the steps themselves depend on the rows: all as at the peak
        events, more = events.max(axis=0, keepdims=True), more.max(axis=0, keepdims=True)
    live, kept = events.T
    shapes = zip(first.leaves, second.leaves, strict=True)
    leaves = tuple((a.shape, b.shape) if isinstance(a, Tensor) else None for a, b in shapes)
    outputs = _nbytes(second.leaves) - _nbytes(first.leaves)
    per_row = more[:, 0] - live
    return Footprint(live - 2 * per_row, per_row, kept // 2, outputs, leaves, first.aliases)


def empty_rows(like: Sequence[Tensor], rows: int) -> list[Tensor]:
    """Images (channels last) and other inputs of more rows, without values."""
    images, *others = like
    laid = images.new_empty((rows, *images.shape[2:], images.shape[1])).movedim(-1, 1)
    return [laid, *(other.new_empty((rows, *other.shape[1:])) for other in others)]


@dataclass(frozen=True)
class _Run:
    events: list[tuple[int, int]]
    leaves: list[Any]
    aliases: bool


def _run(make: Callable[[int], list[Any]], run: Callable[[list[Any], Meter], Any], rows: int) -> _Run:
    with _without_data(), torch.no_grad():
        with Meter():  # it knows the ops that PyTorch can't run without data
            arguments = make(rows)
        given = [leaf for leaf in pytree.tree_leaves(arguments) if isinstance(leaf, Tensor)]
        storages = {StorageWeakRef(leaf.untyped_storage()).cdata for leaf in given}
        with Meter() as meter:
            meter.note()
            leaves = pytree.tree_leaves(run(arguments, meter))
        made = [StorageWeakRef(leaf.untyped_storage()).cdata for leaf in leaves if isinstance(leaf, Tensor)]
    return _Run(meter.events, leaves, any(key in storages for key in made))


@contextmanager
def _without_data() -> Iterator[None]:
    """Inside, tensors are made without memory; autocast must not keep such for weights that were cast."""
    cached = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            yield
    finally:
        torch.set_autocast_cache_enabled(cached)


def _nbytes(leaves: list[Any]) -> int:
    return sum(leaf.numel() * leaf.element_size() for leaf in leaves if isinstance(leaf, Tensor))
