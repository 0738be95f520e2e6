"""CUDA kernels of the ops: one launch for a batch; where kernels can't be used, the pure-torch reference runs."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from kcompile.cuda_ops import reference
from kcompile.cuda_ops.launch import Launcher, launcher, or_reference
from kcompile.cuda_ops.packing import AXES, LIMIT, Frame, Source, widest


@or_reference(reference.gather)
def gather(base: Tensor, origins: Tensor, extent: list[int]) -> Tensor:
    """See `reference.gather`."""
    made = _windows(Source(base, origins=origins), origins.shape[0], extent)
    return reference.gather(base, origins, extent) if made is None else made


@or_reference(reference.superimpose)
def superimpose(window: Tensor, patch: Tensor, offsets: Tensor) -> Tensor:
    """See `reference.superimpose`."""
    source = Source(window.movedim(1, -1), patch, offsets=offsets)
    made = _windows(source, window.shape[0], list(window.shape[2:]))
    return reference.superimpose(window, patch, offsets) if made is None else made


@or_reference(reference.gather_superimpose)
def gather_superimpose(base: Tensor, patch: Tensor, origins: Tensor, offsets: Tensor, extent: list[int]) -> Tensor:
    """See `reference.gather_superimpose`."""
    made = _windows(Source(base, patch, origins, offsets), origins.shape[0], extent)
    return reference.gather_superimpose(base, patch, origins, offsets, extent) if made is None else made


@or_reference(reference.crop)
def crop(window: Tensor, start: Tensor, at: Tensor, size: list[int], stride: list[int], shift: list[int]) -> Tensor:
    """See `reference.crop`."""
    source = Source(window.movedim(1, -1), start=start, at=at, stride=stride, shift=shift)
    made = _windows(source, window.shape[0], size)
    return reference.crop(window, start, at, size, stride, shift) if made is None else made


def usable(device: torch.device, dtype: torch.dtype, extent: Sequence[int], channels: int) -> Launcher | None:
    """What launches kernels for windows of a size; None where the reference must run."""
    if not 1 <= len(extent) <= AXES or prod(extent) * channels * dtype.itemsize >= LIMIT:
        return None
    return launcher(device)


def _windows(source: Source, queries: int, extent: list[int]) -> Tensor | None:
    """Copy windows; None where the kernel can't."""
    base = source.base
    assert base is not None
    run = usable(base.device, base.dtype, extent, base.shape[-1])
    if run is None:
        return None
    cells = base.new_empty((queries, *extent, base.shape[-1]))
    laid = cells.movedim(-1, 1)
    if not laid.numel():
        return laid
    source, frame = source.on(base.device), Frame(cells)
    unit = widest(source.bits() | frame.bits())
    per = unit // base.element_size()
    defines = (("UNIT_BYTES", unit), ("SPATIAL_AXES", len(extent)))
    run.launch("windows", defines, frame.grid(per), source.pack(per) + frame.pack(per))
    return laid
