"""Queue: what several batches of the front made, until the tail runs on all of it at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from kcompile.core.interval import IntArray


class Queue:
    """Collects rows of some tensors; each lies once in memory, however many batches come.

    Attributes:
        capacity: Rows that it can hold. A first batch of as many is held as it is.
    """

    def __init__(self, capacity: int) -> None:
        """Hold nothing yet."""
        self.capacity = capacity
        self._rows: list[IntArray] = []
        self._tensors: list[Tensor] = []

    def __len__(self) -> int:
        """Rows held."""
        return sum(map(len, self._rows))

    @property
    def rows(self) -> IntArray:
        """The indices of the queries."""
        return np.concatenate(self._rows)

    @property
    def tensors(self) -> list[Tensor]:
        """What was made for them."""
        return [tensor[: len(self)] for tensor in self._tensors]

    @property
    def full(self) -> bool:
        """True if nothing more fits."""
        return len(self) >= max(self.capacity, 1)

    def fits(self, rows: IntArray) -> bool:
        """True if there is room, and always if it is empty."""
        return not len(self) or len(self) + len(rows) <= self.capacity

    def add(self, rows: IntArray, tensors: Sequence[Tensor]) -> None:
        """Take the tensors [n, …] made for some queries."""
        first, last = len(self), len(self) + len(rows)
        if first == 0 and last >= self.capacity:
            self._tensors = list(tensors)
        else:
            self._tensors = self._tensors or [_like(tensor, self.capacity) for tensor in tensors]
            for into, tensor in zip(self._tensors, tensors, strict=True):
                into[first:last].copy_(tensor)
        self._rows.append(rows)


def _like(tensor: Tensor, rows: int) -> Tensor:
    """Memory for more rows of such a tensor, in the same order of dimensions."""
    order = sorted(range(1, tensor.dim()), key=tensor.stride, reverse=True)  # stable
    empty = tensor.new_empty((rows, *(tensor.shape[dim] for dim in order)))
    return empty.permute(0, *(order.index(dim) + 1 for dim in range(1, tensor.dim())))
