"""Queries: checks of images, patches and positions, with errors that say what is allowed."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kcompile.core.errors import InputError, PositionError
from kcompile.core.interval import IntArray
from kcompile.core.plan import Plan


def is_finite(values: Any) -> bool:
    """True if no value is NaN or infinite."""
    return bool(torch.isfinite(torch.as_tensor(values)).all())


def check_images(images: Any, plan: Plan, like: Tensor) -> Tensor:
    """An image [C, *S] or batch [B, C, *S] as a batch.

    Raises:
        InputError: Wrong rank, size, type or device.
    """
    if not isinstance(images, Tensor):
        raise InputError(f"the image must be a torch.Tensor, got {type(images).__name__}")
    batch = images.unsqueeze(0) if images.dim() == len(plan.input_shape) else images
    if tuple(batch.shape[1:]) != plan.input_shape or not len(batch):
        raise InputError(
            f"the image has shape {tuple(images.shape)}; this module was compiled for {plan.input_shape} "
            f"(or a batch [B, {', '.join(map(str, plan.input_shape))}]){_last_channels(images, plan)}"
        )
    _check_kind(batch, "image", like)
    if not bool(torch.isfinite(batch).all()):
        warnings.warn("the image holds NaN or infinite values; they spread to every score", stacklevel=3)
    return batch


def _last_channels(images: Tensor, plan: Plan) -> str:
    """A hint for pictures as NumPy and PIL have them."""
    channels, *sizes = plan.input_shape
    return ": put the channels first, image.movedim(-1, -3)" if images.shape[-3:] == (*sizes, channels) else ""


def as_positions(positions: Any, axes: int) -> IntArray:
    """Positions as an int64 array [N, axes].

    Raises:
        PositionError: Wrong type or shape.
    """
    try:
        array = positions.detach().cpu().numpy() if isinstance(positions, Tensor) else np.asarray(positions)
    except ValueError as error:
        raise PositionError(f"positions must have shape [N, {axes}]: {error}") from error
    if array.size == 0 and array.ndim:
        return np.zeros((0, axes), dtype=np.int64)
    if not np.issubdtype(array.dtype, np.integer):
        raise PositionError(f"positions must be integers (row, col), got {array.dtype}")
    if array.ndim != 2 or array.shape[1] != axes:
        raise PositionError(f"positions must have shape [N, {axes}], got {tuple(array.shape)}")
    return np.ascontiguousarray(array, dtype=np.int64)


def check_positions(array: IntArray, plan: Plan, sizes: Sequence[int]) -> None:
    """Check that every patch of some size touches the image.

    Raises:
        PositionError: One lies wholly outside.
    """
    image, patch = np.asarray(plan.input_shape[1:]), np.asarray(sizes)
    outside = ((array <= -patch) | (array >= image)).any(axis=1)
    if outside.any():
        first = int(np.flatnonzero(outside)[0])
        raise PositionError(
            f"position {tuple(array[first].tolist())} (index {first}) puts a {_size(sizes)} patch wholly outside the "
            f"{_size(image)} image; allowed are {tuple((1 - patch).tolist())} … {tuple((image - 1).tolist())}"
        )


def check_base_index(base_index: Any, queries: int, bases: int) -> IntArray:
    """Which base each query is a copy of, as an int64 array [N]; None means base 0."""
    if base_index is None or not queries:
        return np.zeros(queries, dtype=np.int64)
    array = np.asarray(base_index.cpu() if isinstance(base_index, Tensor) else base_index)
    if array.shape != (queries,) or not np.issubdtype(array.dtype, np.integer):
        raise InputError(f"base_index must hold {queries} integers, got {array.dtype} of shape {array.shape}")
    if array.min() < 0 or array.max() >= bases:
        raise InputError(f"base_index must lie in 0…{bases - 1}, got {array.min()}…{array.max()}")
    return array.astype(np.int64)


def patch_source(
    patches: Any, plan: Plan, queries: int, like: Tensor
) -> tuple[Callable[[IntArray], Tensor], tuple[int, ...]]:
    """How to get the patch tensors of some queries, and their size per axis.

    Args:
        patches: Scalar or [C] (fills the compiled patch shape), [C, h, w], or [N, C, h, w].
        plan: The plan.
        queries: N.
        like: A tensor of the model's type and device.

    Raises:
        InputError: Wrong rank, channels, size, type or device; larger than the compiled patch shape.
    """
    channels, rank = plan.input_shape[0], len(plan.input_shape)
    try:
        given = patches if isinstance(patches, Tensor) else torch.as_tensor(patches, dtype=like.dtype)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"patches must be numbers or a tensor, got {type(patches).__name__}: {error}") from error
    tensor = given if isinstance(patches, Tensor) else given.to(like.device)
    if tensor.dim() <= 1:
        if tensor.dim() == 1 and tensor.shape[0] != channels:
            raise InputError(f"a patch of one value per channel needs {channels} values, got {tensor.shape[0]}")
        filled = tensor.to(like).reshape([-1] + [1] * (rank - 1)).expand(channels, *plan.patch_shape)
        return _constant(filled), plan.patch_shape
    _check_kind(tensor, "patch", like)
    if tensor.dim() not in (rank, rank + 1) or tensor.shape[-rank] != channels:
        raise InputError(
            f"patches have shape {tuple(tensor.shape)}; allowed are a scalar, [{channels}], [{channels}, h, w] and "
            f"[N, {channels}, h, w]"
        )
    sizes = tuple(tensor.shape[-rank + 1 :])
    if any(size > most for size, most in zip(sizes, plan.patch_shape, strict=True)) or 0 in sizes:
        raise InputError(
            f"a {_size(sizes)} patch does not fit: this module was compiled for up to {_size(plan.patch_shape)}"
        )
    if tensor.dim() == rank:
        return _constant(tensor), sizes
    if tensor.shape[0] != queries:
        raise InputError(
            f"{tensor.shape[0]} patches for {queries} positions; give one patch for all, or one per position"
        )
    return lambda rows: tensor[torch.from_numpy(rows).to(tensor.device)], sizes


def _constant(patch: Tensor) -> Callable[[IntArray], Tensor]:
    return lambda rows: patch.unsqueeze(0).expand(len(rows), *patch.shape)


def _check_kind(value: Tensor, what: str, like: Tensor) -> None:
    if value.dtype != like.dtype:
        hint = "" if value.is_floating_point() else " (scale pixels to floats first)"
        raise InputError(f"the {what} has type {value.dtype}; the model computes in {like.dtype}{hint}")
    if value.device != like.device:
        raise InputError(f"the {what} is on {value.device}; the module is on {like.device}")


def _size(sizes: Iterable[int]) -> str:
    return "x".join(map(str, sizes))
