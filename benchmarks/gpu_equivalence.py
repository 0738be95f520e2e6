"""Equivalence on a device: the ops against the CPU's, bit for bit, and whole networks against full inference."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from math import inf, prod
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_map_only

import kcompile.cuda_ops  # noqa: F401  (registers torch.ops.kcompile)
from benchmarks.maps import IntArray
from kcompile.cuda_ops import convolved, linear, reads, reference
from kcompile.runtime.module import IncrementalModule

ERROR = 1e-4  # of scale: the largest error allowed in float32
CHANGE = 1e-3  # of scale: the least change that the patches must cause, else the check says nothing
OPS = ("gather", "superimpose", "gather_superimpose", "crop", "read_activated", "read_pooled", "read_joined", "ended")
SUMMED = ("read_mean", "read_linear", "read_convolved")  # their sums are formed in another order
ROUNDING = {torch.float32: 1e-4, torch.float16: 4e-3, torch.bfloat16: 3e-2}  # of the largest value
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Verdict:
    """How far incremental inference is from full inference, as shares of scale = max|full output|."""

    error: float
    change: float

    @property
    def status(self) -> str:
        """One of "ok", "FAIL" (too large an error, or NaN), "void" (the network did not react)."""
        if not self.error <= ERROR:
            return "FAIL"
        return "ok" if self.change >= CHANGE else "void"


def check_network(inc: IncrementalModule, model: nn.Module, device: torch.device, queries: int, seed: int) -> Verdict:
    """Compare noise patches at corners, edges, sticking out and inside, on two base images, with full inference.

    Args:
        inc: The compiled model, on the device.
        model: The model itself, on the device; returns one tensor.
        device: Where to compute.
        queries: How many random positions beside the special ones.
        seed: For images, patches and positions.
    """
    generator = torch.Generator().manual_seed(seed)
    plan = inc.plan
    images = torch.randn(2, *plan.input_shape, generator=generator)
    positions = special_positions(plan.input_shape[1:], plan.patch_shape, queries, np.random.default_rng(seed))
    patches = 2 * torch.randn(len(positions), plan.input_shape[0], *plan.patch_shape, generator=generator)
    bases = np.arange(len(positions)) % 2
    copies = paste(images[torch.from_numpy(bases)], patches, positions)
    with torch.inference_mode():
        base = inc.materialize(images.to(device))
        mine = inc.forward_patches(patches.to(device), positions, base_index=bases)
        full = torch.cat([model(part.to(device)) for part in copies.split(16)])
        scale = float(full.abs().max())
        change = (full - base[torch.from_numpy(bases).to(device)]).abs().max()
        return Verdict(float((mine - full).abs().max()) / scale, float(change) / scale)


def special_positions(image: Any, patch: Any, queries: int, rng: np.random.Generator) -> IntArray:
    """Corners, the same half out and but one pixel out, and random positions of which some stick out."""
    axes = [
        sorted({1 - p, -(p // 2), 0, size - p, size - p + p // 2, size - 1})
        for size, p in zip(image, patch, strict=True)
    ]
    low, high = [1 - p for p in patch], list(image)
    return np.concatenate([np.array(list(product(*axes))), rng.integers(low, high, (queries, len(axes)))])


def paste(images: Tensor, patches: Tensor, positions: IntArray) -> Tensor:
    """Patched copies of images [N, C, H, W]; patches [N, C, h, w] that stick out are cropped."""
    height, width = patches.shape[2:]
    canvas = F.pad(images, (width, width, height, height))
    for row, (top, left) in enumerate((positions + patches.shape[2:]).tolist()):
        canvas[row, :, top : top + height, left : left + width] = patches[row]
    return canvas[:, :, height:-height, width:-width]


def check_ops(device: torch.device, rounds: int, seed: int) -> list[dict[str, Any]]:
    """Each op on random geometry: the device's kernel against the CPU's, or the CPU's against the reference."""
    rows = []
    for name, dtype, axes in product((*OPS, *SUMMED), DTYPES, (1, 2, 3)):
        if name == "read_convolved" and axes != 2:
            continue
        torch.manual_seed(seed)
        wrong = sum(not _agree(name, _arguments(axes, dtype)[name], device) for _ in range(rounds))
        rows.append(
            {"op": name, "dtype": str(dtype).removeprefix("torch."), "axes": axes, "cases": rounds, "wrong": wrong}
        )
    return rows


def _agree(name: str, given: tuple[Any, ...], device: torch.device) -> bool:
    op: Callable[..., Tensor] = getattr(torch.ops.kcompile, name)
    modules: tuple[Any, ...] = (reference, reads, linear, convolved)
    plain: Callable[..., Tensor] = next(getattr(module, name) for module in modules if hasattr(module, name))
    want = (plain if device.type == "cpu" else op)(*given)
    mine = op(*tree_map_only(Tensor, lambda arg: arg.to(device) if arg.is_floating_point() else arg, given))
    if name in SUMMED:
        return mine.device.type == device.type and _alike(mine.cpu(), want)
    channels_last = mine.movedim(1, -1).is_contiguous()
    return channels_last and mine.device.type == device.type and _same_bits(mine.cpu(), want)


def _same_bits(a: Tensor, b: Tensor) -> bool:
    """Equal, and NaN where the other is NaN."""
    return torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(0.5), b.nan_to_num(0.5))


def _alike(a: Tensor, b: Tensor) -> bool:
    """Equal up to rounding."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    allowed = ROUNDING[b.dtype] * b.double().abs().max().clamp(min=1.0)
    return bool((a.double() - b.double()).abs().max() <= allowed)


def _arguments(axes: int, dtype: torch.dtype) -> dict[str, tuple[Any, ...]]:
    """Arguments of every op for one random geometry; patches stick out of their windows on all sides."""
    queries, bases, channels = _integer(1, 40), _integer(1, 3), _integer(1, 70)
    sizes = [_integer(3, 14) for _ in range(axes)]
    extent = [_integer(1, size) for size in sizes]
    patch = [_integer(1, e + 2) for e in extent]
    starts = [torch.randint(size - e + 1, (queries,)) for size, e in zip(sizes, extent, strict=True)]
    origins = torch.stack([torch.randint(bases, (queries,)), *starts], 1)
    offsets = torch.stack([torch.randint(-p - 1, e + 2, (queries,)) for p, e in zip(patch, extent, strict=True)], 1)
    base = torch.randn(bases, *sizes, channels).to(dtype)
    base.view(-1)[::97], base.view(-1)[::89] = float("nan"), float("-inf")
    over = torch.randn(queries, *patch, channels).to(dtype).movedim(-1, 1)
    window = reference.gather(base, origins, extent)
    bias, whole = torch.randn(channels).to(dtype), torch.randn(queries, channels, *extent).to(dtype)
    read = (base, over, bias, 0.0, inf, origins, offsets)
    columns = [[value, other] for value, other in zip(read, (None, whole, None, -inf, inf, None, None), strict=True)]
    kernel, ones = [_integer(1, min(3, e)) for e in extent], [1] * axes
    size = [_integer(1, e) for e in extent]
    inside = torch.stack([torch.randint(e - s + 1, (queries,)) for e, s in zip(extent, size, strict=True)], 1)
    return {
        "gather": (base, origins, extent),
        "superimpose": (window, over, offsets),
        "gather_superimpose": (base, over, origins, offsets, extent),
        "crop": (window, offsets, offsets + inside, size, ones, [0] * axes),
        "read_activated": (*read, extent),
        "read_pooled": (*read, extent, kernel, [_integer(1, 2)] * axes, [0] * axes, ones, 0),
        "read_joined": (*columns, extent, bool(_integer(0, 1)), None, None, -1.0, 2.0),
        "ended": (window, bias, whole, 0.0, 6.0),
        **_summed(axes, dtype, channels, (bases, queries, patch)),
    }


def _summed(
    axes: int, dtype: torch.dtype, channels: int, counts: tuple[int, int, list[int]]
) -> dict[str, tuple[Any, ...]]:
    """Arguments of the ops that sum up, on finite numbers; the windows are whole maps."""
    bases, queries, patch = counts
    queries = queries if _integer(0, 1) else 1
    sizes, filters = [_integer(3, 14) for _ in range(axes)], _integer(1, 80)
    base = torch.randn(bases, *sizes, channels).to(dtype)
    over = torch.randn(queries, *patch, channels).to(dtype).movedim(-1, 1)
    origins = torch.cat([torch.randint(bases, (queries, 1)), torch.zeros(queries, axes, dtype=torch.int64)], 1)
    offsets = torch.stack([torch.randint(-p, s + 1, (queries,)) for p, s in zip(patch, sizes, strict=True)], 1)
    read = (base, over, torch.randn(channels).to(dtype), 0.0, inf, origins, offsets, sizes)
    share = (channels * prod(sizes)) ** -0.5
    packed = linear.pack((share * torch.randn(filters, channels * prod(sizes))).to(dtype), prod(sizes))
    own = torch.randn(filters).to(dtype)
    before = linear.of_bases(base, packed, own, [0] * axes, sizes)
    kernel = [_integer(1, 3) for _ in range(axes)]
    weight = (torch.randn(filters, channels, *kernel) * (channels * prod(kernel)) ** -0.5).to(dtype)
    ones, steps = [1] * axes, [_integer(1, 2) for _ in range(axes)]
    tile = _integer(0, len(convolved.TILES) - 1)
    padding = [_integer(0, 1)] * axes
    cells = convolved.out_sizes(sizes, weight, steps, padding, ones)
    added = (torch.randn(bases, *cells, filters).to(dtype), torch.randn(queries, filters, *cells).to(dtype))
    added = (*added, origins, torch.ones(queries, axes, dtype=torch.int64)) if _integer(0, 1) else (None,) * 4
    return {
        "read_mean": (*read, base.to(reads.wide(dtype)).flatten(1, -2).sum(1)),
        "read_linear": (*read, packed, own, before),
        "read_convolved": (*read, weight, own, steps, padding, ones, *added, 0.0, inf, tile),
    }


def _integer(low: int, high: int) -> int:
    return int(torch.randint(low, high + 1, ()))
