"""Slabs: blocks never overlap, the lowest hole is taken, memory comes back when the last tensor is gone."""

from __future__ import annotations

import gc
import random
import threading
from typing import Any

import pytest
import torch
from torch import Tensor

from kcompile.cuda_ops import slab
from kcompile.cuda_ops.slab import LEAST, Slab, empty, in_slabs

LIKE = torch.empty(0)
CELLS = LEAST // 4


@pytest.fixture(autouse=True)
def own(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Slabs of this test's own."""
    made = slab._Thread()
    monkeypatch.setattr(slab, "_thread", made)
    return made


def test_the_lowest_hole_is_taken() -> None:
    made = Slab(1 << 20)
    blocks: list[Any] = [made.take(1000) for _ in range(4)]
    places = [block.ctypes.data for block in blocks]
    assert [place - places[0] for place in places] == [0, 1024, 2048, 3072]
    blocks[0] = blocks[2] = None
    assert made.take(1025).ctypes.data == places[3] + 1024  # type: ignore[union-attr]
    kept = made.take(10)
    assert kept is not None
    assert kept.ctypes.data == places[0]


def test_holes_side_by_side_are_one() -> None:
    made = Slab(4096)
    for order in ([0, 1, 2, 3], [3, 2, 1, 0], [1, 3, 2, 0], [0, 2, 1, 3]):
        blocks: list[Any] = [made.take(1024) for _ in range(4)]
        assert made.take(1) is None
        for i in order:
            blocks[i] = None
        whole = [made.take(4096)]
        assert whole.pop() is not None
    assert made.live == 0


def test_random_use(seed: int) -> None:
    """Tensors keep their values whatever else is made and dropped; at the end all of it is one hole again."""
    rng, kept = random.Random(seed), {}
    with in_slabs():
        for step in range(2000):
            kept[step] = empty(LIKE, (rng.randint(CELLS, 20 * CELLS),)).fill_(step)
            for key in rng.sample(sorted(kept), k=min(len(kept), rng.choice([0, 0, 1, 3]))):
                view: Tensor = kept.pop(key)[5:]
                assert bool((view == key).all())
    for key, tensor in kept.items():
        assert bool((tensor == key).all())
    (made,) = slab._thread.slabs
    kept.clear()
    del tensor, view
    assert made.live == 0
    whole = made.take(made.size)
    assert whole is not None


def test_views_keep_a_block(own: Any) -> None:
    with in_slabs():
        view = empty(LIKE, (2, CELLS)).fill_(3)[1].view(-1, 2).t()
        storage = view.untyped_storage()
        other = empty(LIKE, (2, CELLS)).fill_(5)
        assert bool((view == 3).all())
        del view
        again = empty(LIKE, (2, CELLS))
        assert len({storage.data_ptr(), other.data_ptr(), again.data_ptr()}) == 3


def test_freed_by_another_thread(own: Any) -> None:
    with in_slabs():
        held = [empty(LIKE, (CELLS,))]
        place = held[0].data_ptr()
        thread = threading.Thread(target=held.clear)
        thread.start()
        thread.join()
        assert empty(LIKE, (CELLS,)).data_ptr() == place


def test_threads_have_their_own(own: Any) -> None:
    found: list[list[Slab]] = []

    def run() -> None:
        assert not slab.active()
        with in_slabs():
            made = empty(LIKE, (CELLS,))
            found.append(list(slab._thread.slabs))
            del made

    with in_slabs():
        mine = empty(LIKE, (CELLS,))
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
    assert mine is not None
    assert found[0][0] is not own.slabs[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64])
def test_as_new_empty(dtype: torch.dtype, own: Any) -> None:
    like = torch.empty(0, dtype=dtype)
    with in_slabs():
        made = empty(like, (3, 5, CELLS))
    want = like.new_empty((3, 5, CELLS))
    assert (made.dtype, made.shape, made.stride()) == (want.dtype, want.shape, want.stride())
    assert made.data_ptr() % 64 == 0
    assert own.slabs[0].live >= made.numel() * made.element_size()


def test_where_no_slab_is_used(own: Any) -> None:
    empty(LIKE, (CELLS,))  # outside
    with in_slabs():
        assert empty(LIKE, (CELLS - 1,)).shape == (CELLS - 1,)  # small
        assert empty(LIKE.to("meta"), (CELLS,)).is_meta
        assert empty(torch.nn.Parameter(LIKE), (CELLS,)).shape == (CELLS,)
        with in_slabs(False):
            empty(LIKE, (CELLS,))
    assert own.slabs == []


def test_larger_than_a_slab_and_many(own: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slab, "_SLAB", 2 * LEAST)
    with in_slabs():
        kept = [empty(LIKE, (cells,)).fill_(cells) for cells in (5 * CELLS, CELLS, CELLS, 2 * CELLS + 1)]
    assert [int(tensor[-1]) for tensor in kept] == [5 * CELLS, CELLS, CELLS, 2 * CELLS + 1]
    assert len(own.slabs) == 3
    del kept[1:]
    assert slab.release() > 0
    assert len(own.slabs) == 1
    kept.clear()
    gc.collect()
    slab.release()
    assert own.slabs == []


def test_where_addresses_are_short(own: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Smaller slabs; malloc's memory where even those can't be had."""
    real, limit = slab.Slab, 1 << 22

    def short(size: int) -> Slab:
        if size > limit:
            raise OSError(12, "Cannot allocate memory")
        return real(size)

    monkeypatch.setattr(slab, "Slab", short)
    with in_slabs():
        kept = [empty(LIKE, (CELLS,)), empty(LIKE, ((1 << 20) + 1,)), empty(LIKE, (CELLS,))]
    assert kept[1].shape == ((1 << 20) + 1,)
    (made,) = own.slabs
    assert LEAST <= made.size <= limit
    assert kept[2].data_ptr() == kept[0].data_ptr() + LEAST


def test_a_kernel_without_huge_pages(own: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slab, "_HUGE", 12345)
    with in_slabs():
        kept = empty(LIKE, (CELLS,)).fill_(7)
    assert bool((kept == 7).all())
    assert own.slabs


def test_a_released_slab_lives_as_long_as_its_tensors(own: Any) -> None:
    with in_slabs():
        kept = empty(LIKE, (CELLS,)).fill_(7)
    own.slabs.clear()
    gc.collect()
    assert bool((kept == 7).all())
