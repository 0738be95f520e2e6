"""``kcompile::winograd``: convolutions by minimal filtering, on windows or straight on base and patch.

2.25 to 4 times fewer multiplications than a direct convolution. Rounding is about that of a direct one (`toom_cook`).
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from kcompile.cuda_ops import native_build, slab, toom_cook
from kcompile.cuda_ops.cpu import gather_superimpose
from kcompile.cuda_ops.schema import LIBRARY, channels_last_empty

PANEL = 16  # filters that are packed together, as in native/multiply.h
TILES = toom_cook.TILES
LEAST_CHANNELS = 16  # a vector at its widest

_COMMON = "Tensor weights, Tensor? bias, Tensor? other, SymInt[] padding, int filters, int tile, float low, float high"
LIBRARY.define(f"winograd(Tensor window, {_COMMON}) -> Tensor")
LIBRARY.define(
    f"gather_winograd(Tensor base, Tensor patch, Tensor origins, Tensor offsets, SymInt[] extent, {_COMMON}) -> Tensor"
)


class _Convolution(ctypes.Structure):
    """The kernel's arguments, as in native/winograd.cpp."""

    _pointers = ("base", "patch", "origins", "offsets", "weights", "bias", "other", "out", "scratch")
    _numbers = (
        "count", "bases", "base_height", "base_width", "channels", "patch_height", "patch_width", "height", "width",
        "top", "left", "out_height", "out_width", "filters", "block", "workers",
    )  # fmt: skip
    _fields_ = (
        *((name, ctypes.c_void_p) for name in _pointers),
        *((name, ctypes.c_int64) for name in _numbers),
        ("low", ctypes.c_float),
        ("high", ctypes.c_float),
    )


def pack(weight: Tensor, tile: int) -> Tensor:
    """Transformed weights [points, panels, C, PANEL] of a convolution's [K, C, r, s]; filters padded with zeros."""
    exact = weight.detach().double()
    rows, columns = (
        exact.new_tensor([[float(x) for x in row] for row in toom_cook.matrices(axis)[1]]) for axis in TILES[tile]
    )
    filters, channels = weight.shape[:2]
    points = torch.einsum("ip,kcpq,jq->ijck", rows, exact, columns).flatten(0, 1)
    panels = -(-filters // PANEL)
    padded = functional.pad(points, (0, panels * PANEL - filters)).float()
    return padded.view(-1, channels, panels, PANEL).transpose(1, 2).contiguous()


def work(tile: int, height: int, width: int, channels: int, filters: int) -> float:
    """Multiply-adds per query, transforms included, for results of that size."""
    rows, columns = TILES[tile]
    points = rows.points * columns.points
    tiles = -(-height // rows.outputs) * -(-width // columns.outputs)
    passes = sum(axis.points for axis in TILES[tile] if axis.taps > 1)  # over all points of a tile
    passes *= 2 if max(axis.points for axis in TILES[tile]) > 8 else 1  # more than the registers hold
    return tiles * points * (channels * filters + passes * (channels + filters))


def supported() -> bool:
    """True where the native kernel can be used."""
    return native_build.library() is not None


def _out_size(size: Sequence[int], padding: Sequence[int], tile: int) -> list[int]:
    axes = zip(size, padding, TILES[tile], strict=True)
    return [(cells + 2 * zeros - axis.taps) // axis.stride + 1 for cells, zeros, axis in axes]


def reference(
    window: Tensor, weights: Tensor, bias: Tensor | None, other: Tensor | None,
    padding: list[int], filters: int, tile: int, low: float, high: float,
) -> Tensor:  # fmt: skip
    """The same convolution by PyTorch's ops, for any device.

    Args:
        window: [N, C, h, w].
        weights: What `pack` made.
        bias: [filters], or None.
        other: [N, filters, oh, ow] that is added, or None.
        padding: Zeros on both sides of each axis.
        filters: Number of filters.
        tile: Index into `TILES`.
        low: Results are raised to this.
        high: Results are lowered to this.

    Returns:
        [N, filters, oh, ow], channels-last in memory.
    """
    axes = TILES[tile]
    size = _out_size(window.shape[2:], padding, tile)
    cells = window
    for dim, (axis, count) in enumerate(zip(axes, size, strict=True), 2):
        whole = (-(-count // axis.outputs) - 1) * axis.outputs * axis.stride + axis.points
        ends = (padding[dim - 2], whole - window.shape[dim] - padding[dim - 2])  # the last inputs may be of no use
        cells = functional.pad(cells, (0, 0, *ends) if dim == 2 else ends)
    for dim, axis in enumerate(axes, 2):
        cells = cells.unfold(dim, axis.points, axis.outputs * axis.stride)
    (inputs_h, _, outputs_h), (inputs_w, _, outputs_w) = (
        [cells.new_tensor([[float(x) for x in row] for row in part]) for part in toom_cook.matrices(axis)]
        for axis in axes
    )
    unpacked = weights.transpose(1, 2).flatten(2)[..., :filters].unflatten(0, (len(inputs_h), len(inputs_w)))
    points = torch.einsum("ip,jq,ncyxpq->ijncyx", inputs_h, inputs_w, cells)
    products = torch.einsum("ijncyx,ijck->ijnkyx", points, unpacked)
    tiles = torch.einsum("ai,bj,ijnkyx->nkyaxb", outputs_h, outputs_w, products)
    result = tiles.flatten(4).flatten(2, 3)[:, :, : size[0], : size[1]]
    result = result if bias is None else result + bias[:, None, None]
    result = result if other is None else result + other
    return result.clamp(low, high).contiguous(memory_format=torch.channels_last)


def winograd(
    window: Tensor, weights: Tensor, bias: Tensor | None, other: Tensor | None,
    padding: list[int], filters: int, tile: int, low: float, high: float,
) -> Tensor:  # fmt: skip
    """See `reference`; native where that can be used."""
    if not _takes(window, weights, bias, other):
        return reference(window, weights, bias, other, padding, filters, tile, low, high)
    base = _rows(window)
    job = _Convolution(base=base.data_ptr(), count=base.shape[0], height=base.shape[1], width=base.shape[2])
    return _run(job, base, weights, bias, other, padding, filters, tile, low, high)


def gather_winograd(
    base: Tensor, patch: Tensor, origins: Tensor, offsets: Tensor, extent: list[int],
    weights: Tensor, bias: Tensor | None, other: Tensor | None,
    padding: list[int], filters: int, tile: int, low: float, high: float,
) -> Tensor:  # fmt: skip
    """`winograd` of what `gather_superimpose` gives, without making it; arguments are those of both."""
    if not _takes(base, weights, bias, other, patch):
        window = gather_superimpose(base, patch, origins, offsets, extent)
        return reference(window, weights, bias, other, padding, filters, tile, low, high)
    count, channels = origins.shape[0], base.shape[-1]
    whole = {origins.dtype, offsets.dtype} == {torch.int64} and len(extent) == 2
    if (
        not whole
        or list(patch.shape[:2]) != [count, channels]
        or [*origins.shape, *offsets.shape] != [count, 3, count, 2]
    ):
        raise ValueError(
            f"patches {list(patch.shape)}, origins {list(origins.shape)} and offsets {list(offsets.shape)} don't fit "
            f"{count} windows of a base {list(base.shape)}; origins and offsets are int64"
        )
    base, over, origins, offsets = base.contiguous(), _rows(patch), origins.contiguous(), offsets.contiguous()
    job = _Convolution(
        base=base.data_ptr(), patch=over.data_ptr(), origins=origins.data_ptr(), offsets=offsets.data_ptr(),
        count=origins.shape[0], height=extent[0], width=extent[1], patch_height=over.shape[1],
        patch_width=over.shape[2],
    )  # fmt: skip
    return _run(job, base, weights, bias, other, padding, filters, tile, low, high)


def _takes(source: Tensor, weights: Tensor, *others: Tensor | None) -> bool:
    """True for what the native kernel can compute."""
    tensors = [tensor for tensor in (source, weights, *others) if tensor is not None]
    plain = all(tensor.dtype is torch.float32 and tensor.device.type == "cpu" for tensor in tensors)
    return plain and weights.shape[2] >= LEAST_CHANNELS and supported()


def _rows(tensor: Tensor) -> Tensor:
    """[N, h, w, C], contiguous."""
    return tensor.movedim(1, -1).contiguous()


def _run(
    job: _Convolution, base: Tensor, weights: Tensor, bias: Tensor | None, other: Tensor | None,
    padding: Sequence[int], filters: int, tile: int, low: float, high: float,
) -> Tensor:  # fmt: skip
    height, width = _out_size((job.height, job.width), padding, tile)
    out = channels_last_empty(base, job.count, filters, [height, width])
    if not out.numel():
        return out
    points, panels, channels, _ = weights.shape
    weights, bias, other = (
        weights.contiguous(),
        None if bias is None else bias.contiguous(),
        None if other is None else _rows(other),
    )
    job.bases, job.base_height, job.base_width, job.channels = base.shape
    fits = points == prod(axis.points for axis in TILES[tile]) and panels == -(-filters // PANEL)
    fits = fits and (bias is None or list(bias.shape) == [filters])
    if channels != job.channels or not fits or filters < LEAST_CHANNELS:
        raise ValueError(
            f"weights {list(weights.shape)} and their bias don't fit {job.channels} channels, {filters} filters and "
            f"tile {tile}"
        )
    if other is not None and list(other.shape) != [job.count, height, width, filters]:
        raise ValueError(f"can't add {list(other.shape)} to [{job.count}, {height}, {width}, {filters}]")
    job.weights, job.out = weights.data_ptr(), out.data_ptr()
    job.bias, job.other = (None if tensor is None else tensor.data_ptr() for tensor in (bias, other))
    job.top, job.left = padding
    job.out_height, job.out_width, job.filters, job.low, job.high = height, width, filters, low, high
    job.block, job.workers = _blocks(job, tile, points)
    library = native_build.library()
    assert library is not None
    size = _function(library, "kcompile_winograd_scratch")(tile, ctypes.byref(job))
    scratch = slab.empty(base, [size * job.workers])  # not of the default type or device
    job.scratch = scratch.data_ptr()
    failed = _function(library, "kcompile_winograd")(tile, ctypes.byref(job), native_build.parallel_for())
    if failed:
        raise IndexError("a window doesn't lie in its base tensor")
    return out


def _blocks(job: _Convolution, tile: int, points: int) -> tuple[int, int]:
    """Tiles that a worker takes at a time, and the number of workers.

    Few where the weights are small, so that a block stays in the second cache; more where they must be read from memory
    for each block.
    """
    rows, columns = TILES[tile]
    tiles = job.count * -(-job.out_height // rows.outputs) * -(-job.out_width // columns.outputs)
    block = _most_tiles(points, job.channels, job.filters)
    threads = torch.get_num_threads()
    block = max(min(block, -(-tiles // threads)), 1)
    return block, max(min(threads, -(-tiles // block)), 1)


def _most_tiles(points: int, channels: int, filters: int) -> int:
    return 24 if points * channels * filters <= 36 * 256 * 256 else 96


def scratch_bytes(weights: Tensor) -> int:
    """The most that a call of either op takes beside windows and results, given what `pack` made."""
    points, panels, channels, _ = weights.shape
    width = channels + panels * PANEL + 4 * PANEL  # rows are skewed by up to two vectors each
    tiles = points * _most_tiles(points, channels, panels * PANEL) * width
    return 4 * torch.get_num_threads() * (tiles + channels + 2 * PANEL)


def surplus_bytes(weight: Tensor, tile: int) -> int:
    """By how much packed weights are larger than a convolution's own [K, C, r, s]."""
    rows, columns = TILES[tile]
    filters = -(-weight.shape[0] // PANEL) * PANEL
    points = rows.points * columns.points
    return 4 * filters * weight.shape[1] * points - weight.numel() * weight.element_size()


@cache
def _function(library: ctypes.CDLL, name: str) -> Any:
    function = getattr(library, name)
    function.restype = ctypes.c_int64 if name.endswith("scratch") else ctypes.c_int
    function.argtypes = [ctypes.c_int, ctypes.c_void_p, *([] if name.endswith("scratch") else [ctypes.c_void_p])]
    return function


def _fake_winograd(
    window: Tensor, weights: Tensor, bias: Tensor | None, other: Tensor | None,
    padding: list[int], filters: int, tile: int, low: float, high: float,
) -> Tensor:  # fmt: skip
    return channels_last_empty(window, window.shape[0], filters, _out_size(window.shape[2:], padding, tile))


def _fake_gather_winograd(
    base: Tensor, patch: Tensor, origins: Tensor, offsets: Tensor, extent: list[int], *rest: Any
) -> Tensor:
    padding, filters, tile = rest[3:6]
    return channels_last_empty(base, origins.shape[0], filters, _out_size(extent, padding, tile))


torch.library.register_fake("kcompile::winograd", _fake_winograd, lib=LIBRARY)
torch.library.register_fake("kcompile::gather_winograd", _fake_gather_winograd, lib=LIBRARY)
