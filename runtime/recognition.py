"""Recognition: which rows of a batch are patched copies of base images, and where their patches lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from kcompile.core.interval import IntArray

Flags = npt.NDArray[np.uint8]

_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


@dataclass(frozen=True)
class Rows:
    """What the rows of a batch are; row i is compared with base i mod B.

    Attributes:
        same: Indices of the rows that equal their base.
        patched: Indices of those that differ from it only inside a box of the patch's size.
        other: Indices of the rest.
        positions: Top-left corners [len(patched), axes] of such boxes; they lie inside the image.
    """

    same: IntArray
    patched: IntArray
    other: IntArray
    positions: IntArray

    @property
    def recognised(self) -> bool:
        """True if any row is a copy of its base, patched or not."""
        return len(self.same) + len(self.patched) > 0


def recognise(images: Tensor, bases: Tensor, patch: Sequence[int]) -> Rows:
    """Compare rows with bases, by value: NaN differs from everything, 0.0 equals -0.0.

    One pass over the pixels, without a copy of them.

    Args:
        images: [N, C, *sizes].
        bases: [B, C, *sizes], of the same type, on the same device.
        patch: Largest patch, in pixels per axis.
    """
    most, sizes = np.asarray(patch), np.asarray(images.shape[2:])
    whole = len(images) // len(bases) * len(bases)
    parts = []
    if whole:
        folded = images[:whole].unflatten(0, (-1, len(bases)))
        parts.append(_ends((folded != bases).flatten(0, 1)))
    if rest := len(images) - whole:
        parts.append(_ends(images[whole:] != bases[:rest]))
    low, high = (np.concatenate(ends) for ends in zip(*parts, strict=True))
    differs = (high > low).all(axis=1)
    fits = differs & (high - low <= most).all(axis=1)
    positions = np.minimum(low[fits], sizes - most)
    return Rows(np.flatnonzero(~differs), np.flatnonzero(fits), np.flatnonzero(differs & ~fits), positions)


def cut(images: Tensor, rows: IntArray, positions: IntArray, patch: Sequence[int]) -> Tensor:
    """The boxes [n, C, *patch] of some rows of images [N, C, *sizes] at positions [n, axes]."""
    boxes = []
    for row, position in zip(rows.tolist(), positions.tolist(), strict=True):
        inside = [slice(start, start + size) for start, size in zip(position, patch, strict=True)]
        boxes.append(images[(row, slice(None), *inside)])
    return torch.stack(boxes)


def _ends(differs: Tensor) -> tuple[IntArray, IntArray]:
    """First and one past the last true index per row and spatial axis, each [N, axes]; 0, 0 where there is none."""
    lines = _lines_on_gpu(differs) if differs.is_cuda else _lines(differs)
    low = [line.argmax(axis=1) for line in lines]
    high = [np.where(line.any(axis=1), line.shape[1] - line[:, ::-1].argmax(axis=1), 0) for line in lines]
    return np.stack(low, axis=1).astype(np.int64), np.stack(high, axis=1).astype(np.int64)


def _lines_on_gpu(differs: Tensor) -> list[Flags]:
    axes = range(2, differs.dim())
    lines = [differs.any(dim=[d for d in range(1, differs.dim()) if d != axis]) for axis in axes]
    return [line.cpu().numpy().view(np.uint8) for line in lines]


def _lines(differs: Tensor) -> list[Flags]:
    """Per spatial axis, which of its indices [N, size] hold a true cell; differs is [N, C, *sizes].

    NumPy's maximum of bytes over an outer or the innermost axis is several times faster than torch's ``any``.
    """
    last = differs.dim() in _CHANNELS_LAST and differs.is_contiguous(memory_format=_CHANNELS_LAST[differs.dim()])
    laid = (differs.movedim(1, -1) if last else differs).contiguous()
    shape = laid.shape
    flags = laid.numpy().view(np.uint8)
    lines = []
    for axis in range(1 if last else 2, laid.dim() - 1 if last else laid.dim()):
        split = flags.reshape(shape[0], prod(shape[1:axis]), shape[axis], prod(shape[axis + 1 :]))
        lines.append(split.max(axis=1).max(axis=2))
    return lines
