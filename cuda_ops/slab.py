"""Slabs: memory for what ops make on a CPU, given out by lowest address.

Windows of a map have other sizes in every batch. glibc gives each the smallest hole of its heap that it fits, which is
another one each time, so that a run touches ever more of the heap; compilation alone leaves hundreds of megabytes of
holes. Here the lowest hole is taken, so that memory stays that was used just before, and not more of it than is live at
a time, but for gaps. Where a call runs inside `in_slabs`, ops take their results and scratch from the thread's slabs.
A block is free again as soon as no tensor uses it; no slab is unmapped while one does.
"""

from __future__ import annotations

import mmap
import platform
import sys
import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from math import prod
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

LEAST = 32 << 10  # bytes; smaller tensors are malloc's
_SLAB = 1 << 30  # bytes of addresses that are mapped at a time; the system gives memory for what is touched
_LINE = 64  # of a cache
_HUGE = getattr(mmap, "MADV_HUGEPAGE", None)  # 2 MB pages: fewer faults, fewer misses of the translation's cache
Block: TypeAlias = np.ndarray[tuple[int], np.dtype[np.uint8]]

# A child process after a fork has its own; on Linux (x86, ARM) the addresses aren't counted as promised memory.
_RESERVED = 0x4000 if sys.platform == "linux" and platform.machine() in ("x86_64", "aarch64") else 0
_PRIVATE = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _RESERVED} if sys.platform != "win32" else {}


class _Place(weakref.ref[Block]):
    """Where a block lies; dead as soon as no tensor uses it."""

    __slots__ = ("end", "start")

    def __new__(cls, block: Block, start: int, end: int) -> _Place:
        return super().__new__(cls, block)

    def __init__(self, _block: Block, start: int, end: int) -> None:
        self.start, self.end = start, end


class Slab:
    """One mapping, and the blocks in it.

    What is free follows from which blocks live, so that an interrupt (Ctrl-C) at any place leaves no wrong books.

    Attributes:
        size: Of the mapping in bytes.
        top: The end of the highest block that ever was given out.
    """

    def __init__(self, size: int) -> None:
        memory = mmap.mmap(-1, size, **_PRIVATE)
        if _HUGE is not None:
            with suppress(OSError):  # a kernel without them
                memory.madvise(_HUGE)
        self.size, self.top = size, 0
        self._bytes = np.frombuffer(memory, dtype=np.uint8)
        self._places: list[_Place] = []  # by address

    @property
    def live(self) -> int:
        """Bytes that are in use."""
        return sum(place.end - place.start for place in self._places if place() is not None)

    def take(self, nbytes: int) -> Block | None:
        """The lowest free block of so many bytes, or None."""
        size = -(-nbytes // _LINE) * _LINE
        places = [place for place in self._places if place() is not None]
        start, index = 0, 0
        for place in places:
            if place.start - start >= size:
                break
            start, index = place.end, index + 1
        if start + size > self.size:
            return None
        self.top = max(self.top, start + size)
        block = self._bytes[start : start + nbytes]
        places.insert(index, _Place(block, start, start + size))
        self._places = places
        return block


class _Thread(threading.local):
    """A thread's slabs, and whether ops use them now."""

    def __init__(self) -> None:
        self.slabs: list[Slab] = []
        self.inside = False


_thread = _Thread()


@contextmanager
def in_slabs(wanted: bool = True) -> Iterator[None]:
    """In here ops make what they make in this thread's slabs (``wanted=False``: don't)."""
    before, _thread.inside = _thread.inside, wanted
    try:
        yield
    finally:
        _thread.inside = before


def active() -> bool:
    """True `in_slabs`."""
    return _thread.inside


def empty(like: Tensor, sizes: Sequence[int]) -> Tensor:
    """As ``like.new_empty(sizes)``; in a slab where the thread is `in_slabs` and that can be."""
    if not _thread.inside or type(like) is not Tensor or like.device.type != "cpu":
        return like.new_empty(sizes)
    nbytes = prod(sizes) * like.element_size()
    if nbytes < LEAST:
        return like.new_empty(sizes)
    block = _take(nbytes)
    return like.new_empty(sizes) if block is None else torch.frombuffer(block, dtype=like.dtype).view(*sizes)


def _take(nbytes: int) -> Block | None:
    """A block of one of the thread's slabs, or of another one; None where the system has no addresses left."""
    for slab in _thread.slabs:
        block = slab.take(nbytes)
        if block is not None:
            return block
    least = -(-nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
    size = max(_SLAB, least)
    while True:  # limits on address space are common in batch systems
        try:
            _thread.slabs.append(Slab(size))
        except OSError:
            if size == least:
                return None
            size = max(size // 4, least)
        else:
            return _thread.slabs[-1].take(nbytes)


def release() -> int:
    """Unmap this thread's slabs that nothing lies in; the bytes that go back to the system, at most."""
    gone = [slab for slab in _thread.slabs if not slab.live]
    _thread.slabs = [slab for slab in _thread.slabs if slab.live]
    return sum(slab.top for slab in gone)
