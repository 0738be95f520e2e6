"""Returning: under a memory budget, free memory goes back to the system while a call runs.

Windows of a map have other sizes in every batch. glibc gives each the smallest hole that it fits, which is another one
each time, so that a run touches ever more of the heap's holes: those of compilation alone are hundreds of megabytes.
Returned now and then they stay empty. That costs page faults for what is touched again (ResNet18: a tenth of the time),
so it is done only for those who ask for little memory.
"""

from __future__ import annotations

import ctypes
import os
from functools import cache
from pathlib import Path

LEAST = 16 << 20  # bytes by which a process may grow first
_STATM = Path("/proc/self/statm")


@cache
def _trim() -> ctypes._NamedFuncPointer | None:
    """The C library's malloc_trim, or None where it has none."""
    try:
        return ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError, TypeError):
        return None


def resident() -> int | None:
    """Bytes of this process in memory, or None where that can't be read."""
    try:
        return int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return None


class Returning:
    """Watches the resident size of the process from the start of a call.

    Attributes:
        slack: By how many bytes it may grow.
        most: What it may be before free memory is returned; None: nothing is watched.
    """

    def __init__(self, budget: int | None) -> None:
        """Begin a call under a memory budget in bytes; None: none."""
        now = resident() if budget is not None and _trim() is not None else None
        self.slack = max((budget or 0) // 8, LEAST)
        self.most = None if now is None else now + self.slack

    def check(self) -> None:
        """Return free memory if the process has grown; what stays is what it needs, so the next limit is above that."""
        if self.most is None or (now := resident()) is None or now <= self.most:
            return
        trim = _trim()
        assert trim is not None
        trim(0)
        self.most = max(self.most, (resident() or now) + self.slack)
