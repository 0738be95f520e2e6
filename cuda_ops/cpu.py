"""CPU kernels in terms of torch's own row copies.

A window is copied row by row: one row, channels last, is a contiguous run of ``width * C`` values of the base.
Superimposing copies one slice per run of equal offsets; the scheduler sorts batches so that there are few runs.
"""

from __future__ import annotations

from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from kcompile.cuda_ops import slab


def gather(base: Tensor, origins: Tensor, extent: list[int]) -> Tensor:
    """See `reference.gather`."""
    bases, channels = base.shape[0], base.shape[-1]
    sizes = list(base.shape[1:-1])
    if not sizes:
        return base.index_select(0, origins[:, 0])
    if bases == 1 and extent == sizes:  # the whole tensor: one base for every query
        whole = base.expand(origins.shape[0], *base.shape[1:])
        return _copied(whole).movedim(-1, 1)
    where = origins.numpy()  # host arithmetic on a few numbers: NumPy's calls cost a tenth of torch's
    row = where[:, 0]
    for axis, size in enumerate(sizes[:-1]):
        row = row[..., None] * size + (where[:, axis + 1].reshape(-1, *[1] * (axis + 1)) + np.arange(extent[axis]))
    starts = torch.from_numpy((row.reshape(len(where), -1) * sizes[-1] + where[:, -1:]).reshape(-1))
    width = extent[-1]
    count = bases * _product(sizes) - width + 1
    runs = base.as_strided((count, width * channels), (channels, 1))
    if not slab.active():
        return runs.index_select(0, starts).view(-1, *extent, channels).movedim(-1, 1)
    window = slab.empty(base, (len(where), *extent, channels))
    torch.index_select(runs, 0, starts, out=window.view(-1, width * channels))
    return window.movedim(-1, 1)


def superimpose(window: Tensor, patch: Tensor, offsets: Tensor) -> Tensor:
    """See `reference.superimpose`."""
    laid = _copied(window.movedim(1, -1)).movedim(-1, 1)
    _lay(laid, patch, offsets)
    return laid


def gather_superimpose(base: Tensor, patch: Tensor, origins: Tensor, offsets: Tensor, extent: list[int]) -> Tensor:
    """See `reference.gather_superimpose`."""
    window = gather(base, origins, extent)
    _lay(window, patch, offsets)
    return window


def _copied(cells: Tensor) -> Tensor:
    """A contiguous copy; ``contiguous()`` may alias."""
    if not slab.active():
        return cells.clone(memory_format=torch.contiguous_format)
    return slab.empty(cells, cells.shape).copy_(cells)


def _lay(window: Tensor, patch: Tensor, offsets: Tensor) -> None:
    """Copy the patches into the windows, one slice per run of queries with equal offsets."""
    cells, wanted = window.shape[2:], patch.shape[2:]
    first = 0
    for offset, run in groupby(map(tuple, offsets.tolist())):
        last = first + sum(1 for _ in run)
        into, part = window[first:last], patch[first:last]
        for axis, begin in enumerate(offset):
            low = max(begin, 0)
            length = max(min(begin + wanted[axis], cells[axis]) - low, 0)
            into = into.narrow(axis + 2, low if length else 0, length)
            if length != wanted[axis]:
                part = part.narrow(axis + 2, low - begin if length else 0, length)
        into.copy_(part)
        first = last


def _product(sizes: list[int]) -> int:
    total = 1
    for size in sizes:
        total *= size
    return total
