"""Out of memory: half as many queries at a time, a warning, and on."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import TypeVar

import numpy as np
import torch

from kcompile.core.interval import IntArray

T = TypeVar("T")

# Plain RuntimeErrors: of PyTorch's CPU allocator; of CUDA, its driver and Triton; of cuBLAS and cuDNN, which says that
# it finds no engine where none fits into the memory that is left.
_SAID = ("can't allocate memory", "not enough memory", "out of memory", "alloc_failed", "unable to find an engine")


def is_out_of_memory(error: Exception) -> bool:
    """True for what PyTorch raises where memory is short, on a GPU or a CPU."""
    said = str(error).lower()
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and any(part in said for part in _SAID)
    )


def in_parts(
    run: Callable[[IntArray], T], rows: IntArray, smaller: Callable[[int], None]
) -> Iterator[tuple[IntArray, T]]:
    """Run rows at once, or in halves of halves where memory doesn't suffice.

    Args:
        run: What is done with some rows.
        rows: Their indices.
        smaller: Told how many rows at a time are tried next.

    Yields:
        Rows and the result for them; in order.

    Raises:
        RuntimeError: PyTorch's own error, if memory doesn't suffice for one row.
    """
    waiting = [rows]
    while waiting:
        part = waiting.pop(0)
        try:
            result = run(part)
        except Exception as error:
            if len(part) < 2 or not is_out_of_memory(error):
                raise
            result = None
        if result is None:  # outside of the handler: its traceback would keep what was allocated
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            halves = np.array_split(part, 2)
            warnings.warn(
                f"out of memory with {len(part)} queries at a time: going on with {len(halves[0])}",
                RuntimeWarning,
                stacklevel=2,
            )
            smaller(len(halves[0]))
            waiting[:0] = halves
        else:
            yield part, result
