"""Pool: the static device buffers of a module's CUDA graphs, and what their graphs take, under one limit.

Only one graph runs at a time, and its results are copied out. So the inputs (patches, positions) and the results of all
graphs lie in one block, as large as the largest batch needs; what is in flight comes from one pool of the device's
allocator, which all graphs share; base tensors have copies of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kcompile.core.errors import MemoryBudgetError

ALIGNMENT = 512  # bytes, as PyTorch's allocator: kernels take up to 16 at a time
SHARE = 4  # a quarter of a memory budget at most


@dataclass
class Pool:
    """Counts what it holds; nothing is allocated beyond the limit.

    Attributes:
        limit: Most bytes, or None.
        block: What inputs and results of all graphs lie in.
        bases: Copies of the base tensors that graphs read.
        graphs: Bytes of what is in flight in graphs.
    """

    limit: int | None = None
    block: Tensor | None = None
    bases: tuple[Tensor, ...] = ()
    graphs: int = 0

    @property
    def held(self) -> int:
        """Bytes of all of it."""
        return self.size + sum(map(nbytes, self.bases)) + self.graphs

    @property
    def size(self) -> int:
        """Bytes of the block."""
        return 0 if self.block is None else self.block.numel()

    def check(self, *, block: int = 0, bases: int = 0, graphs: int = 0) -> None:
        """See whether the pool may become so large.

        Args:
            block: Bytes that the block must have.
            bases: Bytes of the copies of base tensors.
            graphs: Bytes that one more graph has in flight; graphs take turns with the same ones.

        Raises:
            MemoryBudgetError: It may not.
        """
        copies = max(sum(map(nbytes, self.bases)), bases)
        wanted = max(self.size, block) + copies + max(self.graphs, graphs)
        if self.limit is not None and wanted > self.limit:
            raise MemoryBudgetError(
                f"CUDA graphs would hold {wanted:,} bytes of the device's memory; allowed are {self.limit:,}, "
                f"1/{SHARE} of memory_budget"
            )

    def grow(self, size: int, device: torch.device) -> None:
        """Replace the block by one of ``size`` bytes; graphs that use the old one must not run any more."""
        self.block = None  # before the new one is made
        self.block = torch.empty(size, dtype=torch.uint8, device=device)

    def take(self, likes: Sequence[Tensor]) -> list[Tensor]:
        """Tensors like these, in the block from its beginning on: all graphs use the same memory in turn."""
        offsets, total = layout(likes)
        assert self.block is not None, "a block was made"
        assert total <= self.size, "which is large enough"
        return [_within(self.block, offset, like) for offset, like in zip(offsets, likes, strict=True)]

    def copy_bases(self, given: Sequence[Tensor]) -> None:
        """Hold copies of base tensors."""
        self.bases = ()  # before the new ones are made
        self.bases = tuple(base.clone() for base in given)

    def clear(self) -> None:
        """Hold nothing; graphs that use it must not run any more."""
        self.block, self.bases, self.graphs = None, (), 0


def nbytes(tensor: Tensor) -> int:
    """Bytes of a tensor's values."""
    return tensor.numel() * tensor.element_size()


def layout(likes: Sequence[Tensor]) -> tuple[list[int], int]:
    """Where tensors begin, one after the other, and the bytes that they take in all."""
    offsets, total = [], 0
    for like in likes:
        offsets.append(total)
        total += -(-nbytes(like) // ALIGNMENT) * ALIGNMENT
    return offsets, total


def _within(block: Tensor, offset: int, like: Tensor) -> Tensor:
    """A tensor of another one's type and sizes, and of its order of dimensions, at a place of a block."""
    values = block[offset : offset + nbytes(like)].view(like.dtype)
    return values.as_strided(like.shape, torch.empty_like(like, device="meta").stride())
