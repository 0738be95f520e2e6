"""Schemas and shape functions of ``torch.ops.kcompile.*``.

All ops work on base tensors kept as ``[B, *sizes, C]`` (channels last, padded once) and on patch tensors and windows of
logical shape ``[N, C, *sizes]`` in channels-last memory. Coordinates are int64 on the host or the tensors' device.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kcompile.cuda_ops import slab

LIBRARY = torch.library.Library("kcompile", "DEF")

LIBRARY.define("gather(Tensor base, Tensor origins, SymInt[] extent) -> Tensor")
LIBRARY.define("superimpose(Tensor window, Tensor patch, Tensor offsets) -> Tensor")
LIBRARY.define(
    "gather_superimpose(Tensor base, Tensor patch, Tensor origins, Tensor offsets, SymInt[] extent) -> Tensor"
)
LIBRARY.define("crop(Tensor window, Tensor start, Tensor at, SymInt[] size, int[] stride, int[] shift) -> Tensor")
LIBRARY.define(
    "resample(Tensor window, Tensor start, Tensor at, SymInt[] size, Tensor[] index, Tensor[] factor) -> Tensor"
)

LIBRARY.define("contract(Tensor patch, Tensor base, Tensor slopes) -> Tensor")


def channels_last_empty(like: Tensor, rows: int, channels: int, extent: list[int]) -> Tensor:
    """An uninitialised ``[rows, channels, *extent]`` tensor whose memory is channels-last."""
    return slab.empty(like, (rows, *extent, channels)).movedim(-1, 1)


def _fake_gather(base: Tensor, origins: Tensor, extent: list[int]) -> Tensor:
    return channels_last_empty(base, origins.shape[0], base.shape[-1], extent)


def _fake_superimpose(window: Tensor, patch: Tensor, offsets: Tensor) -> Tensor:
    return channels_last_empty(window, window.shape[0], window.shape[1], list(window.shape[2:]))


def _fake_gather_superimpose(
    base: Tensor, patch: Tensor, origins: Tensor, offsets: Tensor, extent: list[int]
) -> Tensor:
    return _fake_gather(base, origins, extent)


def _fake_crop(
    window: Tensor, start: Tensor, at: Tensor, size: list[int], stride: list[int], shift: list[int]
) -> Tensor:
    return channels_last_empty(window, window.shape[0], window.shape[1], size)


def _fake_resample(
    window: Tensor, start: Tensor, at: Tensor, size: list[int], index: list[Tensor], factor: list[Tensor]
) -> Tensor:
    return channels_last_empty(window, window.shape[0], window.shape[1], size)


def _fake_contract(patch: Tensor, base: Tensor, slopes: Tensor) -> Tensor:
    return patch.new_empty((patch.shape[0], slopes.shape[1] // patch.shape[1]))


torch.library.register_fake("kcompile::contract", _fake_contract, lib=LIBRARY)
torch.library.register_fake("kcompile::crop", _fake_crop, lib=LIBRARY)
torch.library.register_fake("kcompile::resample", _fake_resample, lib=LIBRARY)
torch.library.register_fake("kcompile::gather", _fake_gather, lib=LIBRARY)
torch.library.register_fake("kcompile::superimpose", _fake_superimpose, lib=LIBRARY)
torch.library.register_fake("kcompile::gather_superimpose", _fake_gather_superimpose, lib=LIBRARY)
