"""The pool of static buffers: where tensors lie in it, and what it allows."""

from __future__ import annotations

import pytest
import torch

from kcompile.core.errors import MemoryBudgetError
from kcompile.runtime.pool import ALIGNMENT, Pool, layout, nbytes

LIKES = [
    torch.zeros(3, 5, 4, 4).movedim(-1, 1),
    torch.zeros(7, 3, dtype=torch.int64),
    torch.zeros(0, 4),
    torch.zeros(1, 9, 2, dtype=torch.bfloat16).expand(4, 9, 2),
    torch.zeros(5, dtype=torch.float64),
]


def test_tensors_lie_side_by_side() -> None:
    pool = Pool()
    offsets, total = layout(LIKES)
    pool.grow(total, torch.device("cpu"))
    assert pool.block is not None
    pool.block.zero_()
    taken = pool.take(LIKES)
    for value, (tensor, like) in enumerate(zip(taken, LIKES, strict=True), 1):
        assert (tensor.shape, tensor.dtype) == (like.shape, like.dtype)
        assert tensor.stride() == torch.empty_like(like).stride(), "as a tensor of its own"
        tensor.fill_(value)
    for value, tensor in enumerate(taken, 1):
        assert bool((tensor == value).all()), "no two overlap"
    begin = pool.block.data_ptr()
    assert [tensor.data_ptr() - begin for tensor in taken if tensor.numel()] == [
        offset for offset, like in zip(offsets, LIKES, strict=True) if like.numel()
    ]
    assert not any(offset % ALIGNMENT for offset in offsets)
    assert total == pool.size == pool.held


def test_what_comes_next_lies_in_the_same_memory() -> None:
    pool = Pool()
    pool.grow(4096, torch.device("cpu"))
    (one,), (two,) = pool.take([torch.zeros(10)]), pool.take([torch.zeros(900)])
    assert one.data_ptr() == two.data_ptr()


def test_copies_of_bases() -> None:
    pool = Pool()
    given = [torch.arange(6.0).view(1, 2, 3), torch.ones(4, dtype=torch.int8)]
    pool.copy_bases(given)
    assert all(torch.equal(a, b) and a is not b for a, b in zip(pool.bases, given, strict=True))
    assert pool.held == sum(map(nbytes, given)) == 28
    pool.clear()
    assert pool.held == 0


@pytest.mark.parametrize(
    ("block", "bases", "graphs", "wanted"),
    [(600, 0, 0, 0), (1000, 10, 0, 0), (0, 0, 900, 1412), (1001, 12, 0, 1013), (513, 12, 500, 1025)],
)
def test_limits(block: int, bases: int, graphs: int, wanted: int) -> None:
    pool = Pool(limit=1012)
    pool.grow(512, torch.device("cpu"))
    if not wanted:
        pool.check(block=block, bases=bases, graphs=graphs)
        return
    with pytest.raises(MemoryBudgetError, match=rf"hold {wanted:,} bytes .* allowed are 1,012, 1/4 of memory_budget"):
        pool.check(block=block, bases=bases, graphs=graphs)
    Pool().check(block=block, bases=bases, graphs=graphs)


def test_graphs_take_turns_with_what_is_in_flight() -> None:
    pool = Pool(limit=1000, graphs=900)
    pool.check(graphs=900)
    with pytest.raises(MemoryBudgetError):
        pool.check(block=101, graphs=10)
