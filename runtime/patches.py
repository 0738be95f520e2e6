"""Patches: what the user gives as patches, masks and channels becomes one patch tensor per query."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kcompile.core.checks import size_text
from kcompile.core.errors import InputError
from kcompile.core.interval import IntArray
from kcompile.core.plan import Plan
from kcompile.runtime.queries import check_kind
from kcompile.runtime.transfers import upload


@dataclass(frozen=True)
class Source:
    """Patch tensors of queries, made when they are asked for.

    Attributes:
        rows: Gives the patches [n, C, *sizes] of some queries, by their indices.
        sizes: Pixels per axis, the same for all queries.
        constant: True if all queries show the same.
    """

    rows: Callable[[IntArray], Tensor]
    sizes: tuple[int, ...]
    constant: bool = False


def patch_sources(
    patches: Any, plan: Plan, queries: int, like: Tensor, boxes: int = 1, sizes: tuple[int, ...] | None = None
) -> list[Source]:
    """The patches of each box of the queries.

    Args:
        patches: Scalar or [C] (fills ``sizes``), [C, h, w], or one per query: [N, C, h, w] or [N, 2, C, h, w].
        plan: The plan.
        queries: N.
        like: A tensor of the model's type and device.
        boxes: Boxes per query.
        sizes: What a scalar fills; default: the compiled patch shape.

    Raises:
        InputError: Wrong rank, channels, size, type or device; larger than the compiled patch shape.
    """
    channels, rank = plan.input_shape[0], len(plan.input_shape)
    tensor = _tensor(patches, "patches", like)
    if tensor.dim() <= 1:
        if tensor.dim() == 1 and tensor.shape[0] != channels:
            raise InputError(f"a patch of one value per channel needs {channels} values, got {tensor.shape[0]}")
        fill = sizes or plan.patch_shape
        filled = tensor.to(like).reshape([-1] + [1] * (rank - 1)).expand(channels, *fill)
        return [_constant(filled)] * boxes
    check_kind(tensor, "the patch", like)
    each = rank + 1 if boxes == 1 else rank + 2
    if tensor.dim() not in (rank, each) or tensor.shape[-rank] != channels:
        many = f"[N, {channels}, h, w]" if boxes == 1 else f"[N, {boxes}, {channels}, h, w]"
        raise InputError(
            f"patches have shape {tuple(tensor.shape)}; allowed are a scalar, [{channels}], [{channels}, h, w] and "
            f"{many}{_all_channels(tensor, rank, channels)}"
        )
    _check_sizes(tuple(tensor.shape[-rank + 1 :]), plan)
    if tensor.dim() == rank:
        return [_constant(tensor)] * boxes
    if tensor.shape[0] != queries or tensor.shape[1:-rank] not in ((), (boxes,)):
        raise InputError(
            f"{tensor.shape[0]} patches for {queries} positions; give one patch for all, or one per position"
        )
    parts = [tensor] if boxes == 1 else tensor.unbind(1)
    return [Source(_picked(part), tuple(part.shape[-rank + 1 :])) for part in parts]


def mask_sources(mask: Any, plan: Plan, queries: int, like: Tensor, boxes: int = 1) -> list[Source]:
    """The alpha masks of each box, as patches with one channel or all of them.

    Args:
        mask: [h, w] for all, or one per query: [N, h, w] or [N, C, h, w] (with two boxes [N, 2, …]); 0 keeps the base's
            pixel, 1 shows the patch's. Booleans too.
        plan: The plan.
        queries: N.
        like: A tensor of the model's type and device.
        boxes: Boxes per query.

    Raises:
        InputError: Wrong rank, size or device, or values outside 0 … 1.
    """
    channels, axes = plan.input_shape[0], len(plan.input_shape) - 1
    alpha = _tensor(mask, "the mask", like).to(like)
    leading = () if boxes == 1 else (boxes,)
    shapes: list[tuple[int, ...]] = [(), (queries, *leading), (queries, *leading, 1), (queries, *leading, channels)]
    if alpha.dim() < axes or tuple(alpha.shape[:-axes]) not in shapes:
        lead = ", ".join(map(str, (queries, *leading)))
        raise InputError(
            f"the mask has shape {tuple(alpha.shape)}; allowed are [h, w], [{lead}, h, w] and "
            f"[{lead}, {channels}, h, w]"
        )
    if not bool(((alpha >= 0) & (alpha <= 1)).all()):
        raise InputError("the mask has values outside 0 … 1 (0 keeps the base's pixel, 1 shows the patch's)")
    sizes = tuple(alpha.shape[-axes:])
    _check_sizes(sizes, plan, "mask")
    if alpha.dim() == axes:
        return [_constant(alpha.unsqueeze(0))] * boxes
    if alpha.dim() == axes + 1 + len(leading):
        alpha = alpha.unsqueeze(-axes - 1)
    parts = [alpha] if boxes == 1 else alpha.unbind(1)
    return [Source(_picked(part), sizes) for part in parts]


def channel_mask(channels: Any, plan: Plan, like: Tensor) -> Tensor:
    """A mask [C, 1, …] that lets patches show in some channels only.

    Raises:
        InputError: Not a list of channel numbers.
    """
    count, axes = plan.input_shape[0], len(plan.input_shape) - 1
    numbers = np.atleast_1d(np.asarray(channels.cpu() if isinstance(channels, Tensor) else channels))
    integers = numbers.ndim == 1 and numbers.size and np.issubdtype(numbers.dtype, np.integer)
    if not integers or numbers.min() < -count or numbers.max() >= count:
        raise InputError(f"channels is {channels!r}; allowed are numbers of the image's channels, 0 … {count - 1}")
    shown = like.new_zeros(count)
    shown[torch.from_numpy(numbers % count).to(like.device)] = 1
    return shown.reshape(-1, *[1] * axes)


def pixels(images: Tensor, rows: IntArray, positions: IntArray, sizes: Sequence[int]) -> Tensor:
    """The pixels [n, C, *sizes] of images at positions [n, axes]; beyond the border those of the edge (never seen)."""
    sizes_of = images.shape[2:]
    flat = np.zeros((len(positions), *[1] * len(sizes)), dtype=np.int64)
    for axis, (size, end) in enumerate(zip(sizes, sizes_of, strict=True)):
        cells = np.clip(positions[:, axis, None] + np.arange(size), 0, end - 1)
        shape = [len(positions)] + [size if other == axis else 1 for other in range(len(sizes))]
        flat = flat + cells.reshape(shape) * prod(sizes_of[axis + 1 :])
    where = torch.from_numpy(flat.reshape(len(positions), -1)).to(images.device)
    picked = images.flatten(2)[torch.from_numpy(rows).to(images.device)[:, None], :, where]
    return picked.transpose(1, 2).reshape(len(positions), images.shape[1], *sizes)


def _tensor(values: Any, what: str, like: Tensor) -> Tensor:
    try:
        tensor = values if isinstance(values, Tensor) else torch.as_tensor(values, dtype=like.dtype).to(like.device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{what} must be numbers or a tensor, got {type(values).__name__}: {error}") from error
    if tensor.is_complex():
        raise InputError(f"{what} must be real numbers, got {tensor.dtype}")
    return tensor


def _all_channels(tensor: Tensor, rank: int, channels: int) -> str:
    """A hint, for those who leave out what ``channels=`` doesn't name."""
    fewer = tensor.dim() >= rank and tensor.shape[-rank] < channels
    return f": a patch has all {channels} channels, also where channels= names those that it changes" if fewer else ""


def _check_sizes(sizes: tuple[int, ...], plan: Plan, what: str = "patch") -> None:
    if any(size > most for size, most in zip(sizes, plan.patch_shape, strict=True)) or 0 in sizes:
        raise InputError(
            f"a {size_text(sizes)} {what} does not fit: this module was compiled for up to "
            f"{size_text(plan.patch_shape)}"
        )


def _constant(patch: Tensor) -> Source:
    return Source(lambda rows: patch.unsqueeze(0).expand(len(rows), *patch.shape), tuple(patch.shape[1:]), True)


def _picked(tensor: Tensor) -> Callable[[IntArray], Tensor]:
    return lambda rows: tensor[upload(rows, tensor.device)]
