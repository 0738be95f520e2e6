"""Checks of what users give, with errors that say what is allowed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from numbers import Integral
from typing import Any

import numpy as np

from kcompile.core.errors import InputError, PositionError
from kcompile.core.interval import IntArray
from kcompile.core.plan import Plan


def per_axis(value: int | Sequence[int], axes: int, what: str) -> tuple[int, ...]:
    """One number for all axes, or one for each, as integers; InputError unless all are at least 1."""
    values = tuple(value) if hasattr(value, "__iter__") else (value,) * axes
    if len(values) != axes or not all(isinstance(v, Integral) and int(v) >= 1 for v in values):
        raise InputError(f"{what} is {value}; allowed are integers of at least 1, one or one per axis (rows, cols)")
    return tuple(int(v) for v in values)


def as_positions(positions: Any, axes: int) -> IntArray:
    """Positions as an int64 array [N, axes], or [N, 2, axes] for two boxes in each query.

    Raises:
        PositionError: Wrong type or shape.
    """
    try:
        array = positions.detach().cpu().numpy() if hasattr(positions, "detach") else np.asarray(positions)
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
    array = np.asarray(base_index.cpu() if hasattr(base_index, "cpu") else base_index)
    if array.shape != (queries,) or not np.issubdtype(array.dtype, np.integer):
        raise InputError(f"base_index must hold {queries} integers, got {array.dtype} of shape {array.shape}")
    if array.min() < 0 or array.max() >= bases:
        raise InputError(f"base_index must lie in 0…{bases - 1}, got {array.min()}…{array.max()}")
    return array.astype(np.int64)


def size_text(sizes: Iterable[int]) -> str:
    """As ``16x16``."""
    return "x".join(map(str, sizes))
