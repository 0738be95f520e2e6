"""Queries: checks of images, patches and positions, with errors that say what is allowed."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
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
    check_kind(batch, "the image", like)
    if not bool(torch.isfinite(batch).all()):
        warnings.warn("the image holds NaN or infinite values; they spread to every score", stacklevel=3)
    return batch


def _last_channels(images: Tensor, plan: Plan) -> str:
    """A hint for pictures as NumPy and PIL have them."""
    channels, *sizes = plan.input_shape
    return ": put the channels first, image.movedim(-1, -3)" if images.shape[-3:] == (*sizes, channels) else ""


def as_positions(positions: Any, axes: int) -> IntArray:
    """Positions as an int64 array [N, axes], or [N, 2, axes] for two boxes in each query.

    Raises:
        PositionError: Wrong type or shape.
    """
    try:
        array = positions.detach().cpu().numpy() if isinstance(positions, Tensor) else np.asarray(positions)
    except ValueError as error:
        raise PositionError(f"positions must have shape [N, {axes}] (or [N, 2, {axes}]): {error}") from error
    if array.size == 0 and array.ndim:
        return np.zeros((0, 2, axes) if array.ndim == 3 else (0, axes), dtype=np.int64)
    if not np.issubdtype(array.dtype, np.integer):
        raise PositionError(f"positions must be integers (row, col), got {array.dtype}")
    if array.shape[1:] not in ((axes,), (2, axes)):
        raise PositionError(
            f"positions must have shape [N, {axes}], got {tuple(array.shape)} ([N, 2, {axes}] for two boxes in a query)"
        )
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
            f"position {tuple(array[first].tolist())} (index {first}) puts a {size_text(sizes)} patch wholly outside "
            f"the {size_text(image)} image; allowed are {tuple((1 - patch).tolist())} … {tuple((image - 1).tolist())}"
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


def check_kind(value: Tensor, what: str, like: Tensor, dtype: torch.dtype | None = None) -> None:
    """Check type and device of a tensor against the model's, or against a type of its own.

    Raises:
        InputError: It is of another type or on another device.
    """
    wanted = like.dtype if dtype is None else dtype
    if value.dtype != wanted:
        hint = " (scale pixels to floats first)" if dtype is None and not value.is_floating_point() else ""
        raise InputError(f"{what} has type {value.dtype}; the model computes in {wanted}{hint}")
    if value.device != like.device:
        raise InputError(f"{what} is on {value.device}; the module is on {like.device}")


def size_text(sizes: Iterable[int]) -> str:
    """As ``16x16``."""
    return "x".join(map(str, sizes))
