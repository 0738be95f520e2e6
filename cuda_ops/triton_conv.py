"""`convolved.read_convolved` by the Triton kernel: what it can compute, and its launch.

Triton is optional: it comes with PyTorch's CUDA wheels for Linux, and needs a C compiler and Python's headers at first
use. `reason_against` tries it out once per device, and says why the kernel can't be used.
"""

from __future__ import annotations

import logging
import os
from functools import cache
from math import inf, prod
from typing import Any

import torch
from torch import Tensor

from kcompile.cuda_ops import convolved
from kcompile.cuda_ops.convolved import TILES, Convolution, Tile

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
FEW_CHANNELS = 16  # fewer than a product takes at a time: summands of several taps go together
LARGEST = 2**31 - 2**12  # numbers that are counted in 32 bits, and a tile more
_log = logging.getLogger("kcompile")


@cache
def reason_against(device: torch.device) -> str | None:
    """Why the kernel can't be used on a device; None if it can. Tried out once: it takes some seconds."""
    reason = _reason(device)
    if reason is not None:
        _log.info("convolutions on %s read windows that are written out: %s", device, reason)
    return reason


def _reason(device: torch.device) -> str | None:
    if os.environ.get("KCOMPILE_TRITON") == "0":
        return "KCOMPILE_TRITON is 0"
    if device.type != "cuda":
        return "there is no kernel for it"
    try:
        return None if _works(device) else "the Triton kernel gives wrong results"
    except Exception as error:  # no Triton, no C compiler, no headers, a device too old: whatever its reason
        return f"Triton can't be used: {type(error).__name__}: {str(error)[:500]}"


def _works(device: torch.device) -> bool:
    """Compile the kernel and hold it against the reference once."""
    numbers = torch.Generator().manual_seed(0)

    def quarters(*shape: int) -> Tensor:
        return (torch.randint(-8, 9, shape, generator=numbers) / 4).to(device)  # exact, whatever is summed first

    base, patch, weight = quarters(1, 9, 9, 16), quarters(2, 4, 4, 16).movedim(-1, 1), quarters(32, 3, 3, 16)
    origins, offsets = torch.tensor([[0, 0, 1], [0, 2, 0]]).to(device), torch.tensor([[1, 2], [-2, 3]]).to(device)
    given = (base, patch, None, -inf, inf, origins, offsets, [7, 8], weight.permute(0, 3, 1, 2))
    added = (quarters(1, 7, 7, 32), quarters(2, 2, 3, 32).movedim(-1, 1), origins, offsets)
    rest = (quarters(32), [1, 1], [0, 0], [1, 1], *added, 0.0, inf, 0)
    return torch.equal(convolve(*given, *rest).cpu(), convolved.read_convolved(*_on_cpu(given), *_on_cpu(rest)))


def _on_cpu(given: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(value.cpu() if isinstance(value, Tensor) else value for value in given)


def fits(base: Tensor, patch: Tensor, extent: list[int], weight: Tensor, sizes: list[int], queries: int) -> bool:
    """True for what the kernel can compute; the rest has windows that are written out.

    Args:
        base: As of the op.
        patch: As of the op.
        extent: As of the op.
        weight: As of the op.
        sizes: Cells of the result per axis.
        queries: N.
    """
    alike = base.dtype in DTYPES and base.dtype == patch.dtype == weight.dtype
    planes = base.dim() == patch.dim() == weight.dim() == 4 and len(extent) == 2
    if not alike or not planes or base.shape[-1] != weight.shape[1] or patch.shape[1] != weight.shape[1]:
        return False
    counts = (queries * prod(sizes), weight.numel(), prod(extent), weight.shape[0])
    tiles = -(-counts[0] // min(tile.cells for tile in TILES)) * -(-counts[3] // min(tile.filters for tile in TILES))
    return max(*counts, tiles) <= LARGEST and min(sizes) > 0


def convolve(*given: Any) -> Tensor:
    """See `convolved.read_convolved`; arguments are such that `fits`."""
    conv = Convolution(*given)
    base, weight, sizes = conv.base, conv.weight, conv.sizes
    queries, device, filters = conv.origins.shape[0], base.device, weight.shape[0]
    out = base.new_empty((queries, *sizes, filters))
    if not out.numel():
        return out.movedim(-1, 1)
    channels = base.shape[-1]
    unit, lane = unit_of(channels, base.element_size()), unit_of(filters, base.element_size())
    read = _Source(base, conv.patch, conv.origins, conv.offsets, unit, out)
    added = _Source(
        conv.added_base, conv.added_patch, conv.added_origins, conv.added_offsets, lane, out
    )  # fmt: skip
    ends = [out if v is None else v.to(device=device, dtype=base.dtype).contiguous() for v in (conv.bias, conv.own)]
    lines = weight.movedim(1, -1).contiguous()
    numbers = (
        *read.numbers, *conv.extent, *sizes, queries * prod(sizes), *conv.stride, *conv.padding, *conv.dilation,
        weight.shape[3], weight.shape[2] * weight.shape[3], channels // unit, filters // lane, *added.numbers,
    )  # fmt: skip
    kinds = {
        "UNIT": unit,
        "LANE": lane,
        "ENDED": conv.bias is not None or (conv.low, conv.high) != (-inf, inf),
        "BIAS": conv.bias is not None,
        "OWN": conv.own is not None,
        "UNDER": conv.added_base is not None,
        "UPPER": conv.added_patch is not None,
        "FLAT": channels < FEW_CHANNELS,
        "TF32": base.dtype is torch.float32 and uses_tf32(),
        "WIDE": base.dtype is torch.bfloat16 and device.type == "cpu",
    }
    tensors = (*read.tensors[:2], lines, *ends, out, *read.tensors[2:], *added.tensors)
    arguments = (*tensors, conv.low, conv.high, conv.least, conv.most, *numbers)
    _launch(arguments, kinds, TILES[conv.tile], (queries * prod(sizes), filters), device)
    return out.movedim(-1, 1)


class _Source:
    """A base and the patch over it as the kernel takes them: tensors, and strides in units of so many values."""

    def __init__(
        self,
        base: Tensor | None,
        patch: Tensor | None,
        origins: Tensor | None,
        offsets: Tensor | None,
        unit: int,
        like: Tensor,
    ) -> None:
        """Anything stands for what is absent: the kernel won't read it."""
        below = like if base is None else base.contiguous()
        above = like if patch is None else patch.movedim(1, -1).contiguous()
        places = (self._places(where, like.device) for where in (origins, offsets))
        self.tensors = (below, above, *(like if where is None else where for where in places))
        steps = [step // unit for source in (below, above) for step in source.stride()[:3]]
        self.numbers = (*steps, *above.shape[1:3])

    @staticmethod
    def _places(where: Tensor | None, device: torch.device) -> Tensor | None:
        return None if where is None else where.to(device=device, dtype=torch.int64).contiguous()


def _launch(
    given: tuple[Any, ...], kinds: dict[str, Any], tile: Tile, product: tuple[int, int], device: torch.device
) -> None:
    from kcompile.cuda_ops.triton_kernel import convolved as kernel

    rows, filters = product
    grid = (-(-rows // tile.cells) * -(-filters // tile.filters),)
    depth = tile.summands(given[0].element_size())
    blocks = {"CELLS": tile.cells, "FILTERS": tile.filters, "DEPTH": depth}
    with torch.cuda.device(device if device.type == "cuda" else -1):  # Triton launches on the current one
        kernel[grid](*given, **kinds, **blocks, num_warps=tile.warps, num_stages=tile.stages, enable_fp_fusion=True)


def unit_of(channels: int, item: int) -> int:
    """How many values a load may take at once: the kernel is told that channels and steps are multiples of it."""
    return min(channels & -channels, 16 // item)


def uses_tf32() -> bool:
    """Whether convolutions in float32 may use TF32."""
    try:
        return bool(torch.backends.cudnn.allow_tf32)
    except RuntimeError:  # the newer switches were used, and differ by operator
        cudnn: Any = torch.backends.cudnn
        return bool(cudnn.conv.fp32_precision == "tf32")


def read_convolved(*given: Any) -> Tensor:
    """See `convolved.read_convolved`: the kernel, or the reference where it can't be used."""
    conv = Convolution(*given)
    return convolve(*conv) if conv.tile >= 0 and _usable(conv) else convolved.read_convolved(*conv)


def _usable(conv: Convolution) -> bool:
    base, patch, weight, added = conv.base, conv.patch, conv.weight, conv.added
    if weight.dim() != 4 or len(conv.extent) != 2:
        return False
    alike = added is None or all(part is None or part.dtype == base.dtype for part in (added.base, added.patch))
    if not alike or not fits(base, patch, conv.extent, weight, conv.sizes, conv.origins.shape[0]):
        return False
    return reason_against(base.device) is None


def warm(device: torch.device, dtype: torch.dtype, tile: int) -> None:
    """Compile a tile's usual kernels, which Triton then keeps in its cache: several processes can share that work."""
    origins, offsets = (torch.zeros(1, columns, dtype=torch.int64, device=device) for columns in (3, 2))
    for channels, bias, added in ((64, False, False), (64, True, False), (64, False, True), (3, False, False)):
        base = torch.zeros(1, 4, 4, channels, dtype=dtype, device=device)
        patch, weight = base[:, :2, :2].movedim(-1, 1), base.new_zeros(64, channels, 3, 3)
        read = (base, patch, base.new_zeros(channels) if bias else None, -inf, inf, origins, offsets, [4, 4])
        more = (base, patch, origins, offsets) if added else (None,) * 4
        convolve(*read, weight, base.new_zeros(64), [1, 1], [0, 0], [1, 1], *more, 0.0, inf, tile)
