"""Queries of an exported model: images, patches, positions and masks as arrays. Imports no torch.

What is allowed, and what the errors say, is as in `runtime.queries` and `runtime.patches`.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kcompile.core.checks import as_positions, check_base_index, check_positions, size_text
from kcompile.core.errors import InputError
from kcompile.core.interval import IntArray
from kcompile.core.plan import Plan
from kcompile.runtime.onnx_session import Array


def as_array(value: Any) -> Array:
    """Numbers, an array, or a tensor of any library that NumPy can read."""
    return np.asarray(value.detach().cpu().numpy() if hasattr(value, "detach") else value)


def read_images(image: Any, plan: Plan, dtype: str) -> Array:
    """An image [C, *S] or batch as a batch.

    Raises:
        InputError: Wrong rank, size or type.
    """
    array = as_array(image)
    batch = array[None] if array.ndim == len(plan.input_shape) else array
    if batch.shape[1:] != plan.input_shape or not len(batch):
        raise InputError(
            f"the image has shape {array.shape}; this model was exported for {plan.input_shape} (or a batch "
            f"[B, {', '.join(map(str, plan.input_shape))}])"
        )
    floats = _floats(batch, "the image", dtype)
    if not np.isfinite(floats).all():
        warnings.warn("the image holds NaN or infinite values; they spread to every score", stacklevel=3)
    return floats


def _floats(array: Array, what: str, dtype: str) -> Array:
    if not np.issubdtype(array.dtype, np.floating):
        raise InputError(f"{what} has type {array.dtype}; the model computes in {dtype} (scale pixels to floats first)")
    return np.ascontiguousarray(array, dtype=dtype)


@dataclass(frozen=True)
class ArrayBox:
    """One patched box of each query.

    Attributes:
        positions: [N, axes].
        patches: [N or 1, C, *sizes], what it shows.
        alpha: [N or 1, C or 1, *sizes], how much of that; None for all.
        shown: The numbers of the channels in which it shows, or None for all.
    """

    positions: IntArray
    patches: Array
    alpha: Array | None
    shown: IntArray | None

    @property
    def sizes(self) -> tuple[int, ...]:
        """Pixels per axis."""
        return tuple(self.patches.shape[2:])

    def laid(self, rows: IntArray, images: Array, which: IntArray) -> Array:
        """The pixels [n, C, *sizes] of some queries' boxes; of one row where all are alike.

        Args:
            rows: The queries.
            images: What lies beneath [B, C, *S].
            which: [n], each query's image.
        """
        patches = self.patches if len(self.patches) == 1 else self.patches[rows]
        if self.alpha is None and self.shown is None:
            return patches
        below = pixels(images, which, self.positions[rows], self.sizes)
        patches = np.broadcast_to(patches, below.shape)
        mask = np.ones(1, dtype=below.dtype) if self.alpha is None else self.alpha[rows if len(self.alpha) > 1 else [0]]
        if self.shown is not None:
            on = np.zeros((below.shape[1], *[1] * len(self.sizes)), dtype=below.dtype)
            on[self.shown] = 1
            mask = mask * on
        mask = np.broadcast_to(mask, below.shape)
        with np.errstate(invalid="ignore"):
            mixed = below + mask * (patches - below)
        return np.where(mask == 0, below, np.where(mask == 1, patches, mixed))  # 0 * inf is NaN


def pixels(images: Array, which: IntArray, positions: IntArray, sizes: Sequence[int]) -> Array:
    """The pixels [n, C, *sizes] of images at positions; beyond the border those of the edge (never seen)."""
    index: list[Array] = [which.reshape(-1, *[1] * len(sizes))]
    for axis, size in enumerate(sizes):
        cells = np.clip(positions[:, axis, None] + np.arange(size), 0, images.shape[axis + 2] - 1)
        index.append(cells.reshape(len(positions), *[size if other == axis else 1 for other in range(len(sizes))]))
    found: Array = np.moveaxis(images, 1, -1)[tuple(index)]
    return np.moveaxis(found, -1, 1)


def paste(image: Array, patch: Array, position: IntArray) -> Array:
    """A copy of an image [C, *S] with a patch [C, *sizes] over it, cropped to it."""
    into, source = [slice(None)], [slice(None)]
    for at, size, end in zip(position.tolist(), patch.shape[1:], image.shape[1:], strict=True):
        low, high = max(at, 0), min(at + size, end)
        into.append(slice(low, max(high, low)))
        source.append(slice(low - at, max(high, low) - at))
    patched = image.copy()
    patched[tuple(into)] = patch[tuple(source)]
    return patched


def read_boxes(plan: Plan, dtype: str, patches: Any, positions: Any, mask: Any, channels: Any) -> list[ArrayBox]:
    """One or two boxes of each query, checked (see `IncrementalModule.forward_patches`)."""
    where = as_positions(positions, len(plan.patch_shape))
    places = [where] if where.ndim == 2 else [where[:, 0], where[:, 1]]
    count, boxes = len(where), len(places)
    alphas = [None] * boxes if mask is None else _masks(mask, plan, dtype, count, boxes)
    fill = plan.patch_shape if alphas[0] is None else alphas[0].shape[2:]
    shown = None if channels is None else _channels(channels, plan)
    made = []
    for place, patch, alpha in zip(places, _patches(patches, plan, dtype, count, boxes, fill), alphas, strict=True):
        if alpha is not None and alpha.shape[2:] != patch.shape[2:]:
            raise InputError(
                f"the mask is {size_text(alpha.shape[2:])}, the patch {size_text(patch.shape[2:])}: they must agree"
            )
        check_positions(place, plan, patch.shape[2:])
        made.append(ArrayBox(place, patch, alpha, shown))
    return made


def read_base_index(base_index: Any, queries: int, bases: int) -> IntArray:
    """Which base each query is a copy of, [N]."""
    return check_base_index(base_index, queries, bases)


def _patches(given: Any, plan: Plan, dtype: str, count: int, boxes: int, fill: Sequence[int]) -> list[Array]:
    channels, rank = plan.input_shape[0], len(plan.input_shape)
    try:
        array = as_array(given).astype(dtype)
    except (TypeError, ValueError) as error:
        raise InputError(f"patches must be numbers or an array, got {type(given).__name__}: {error}") from error
    if array.ndim <= 1:
        if array.ndim == 1 and len(array) != channels:
            raise InputError(f"a patch of one value per channel needs {channels} values, got {len(array)}")
        colour = array.reshape(1, -1, *[1] * (rank - 1))
        return [np.ascontiguousarray(np.broadcast_to(colour, (1, channels, *fill)))] * boxes
    each = rank + 1 if boxes == 1 else rank + 2
    if array.ndim not in (rank, each) or array.shape[-rank] != channels:
        many = f"[N, {channels}, h, w]" if boxes == 1 else f"[N, {boxes}, {channels}, h, w]"
        raise InputError(
            f"patches have shape {array.shape}; allowed are a scalar, [{channels}], [{channels}, h, w] and {many}"
        )
    _check_sizes(array.shape[1 - rank :], plan, "patch")
    if array.ndim == rank:
        return [array[None]] * boxes
    if len(array) != count or array.shape[1:-rank] not in ((), (boxes,)):
        raise InputError(f"{len(array)} patches for {count} positions; give one patch for all, or one per position")
    return [array] if boxes == 1 else [array[:, 0], array[:, 1]]


def _masks(mask: Any, plan: Plan, dtype: str, count: int, boxes: int) -> list[Array | None]:
    channels, axes = plan.input_shape[0], len(plan.input_shape) - 1
    alpha = as_array(mask).astype(dtype)
    leading = () if boxes == 1 else (boxes,)
    shapes: list[tuple[int, ...]] = [(), (count, *leading), (count, *leading, 1), (count, *leading, channels)]
    if alpha.ndim < axes or alpha.shape[:-axes] not in shapes:
        lead = ", ".join(map(str, (count, *leading)))
        raise InputError(
            f"the mask has shape {alpha.shape}; allowed are [h, w], [{lead}, h, w] and [{lead}, {channels}, h, w]"
        )
    if not ((alpha >= 0) & (alpha <= 1)).all():
        raise InputError("the mask has values outside 0 … 1 (0 keeps the base's pixel, 1 shows the patch's)")
    _check_sizes(alpha.shape[-axes:], plan, "mask")
    if alpha.ndim == axes:
        return [alpha[None, None]] * boxes
    if alpha.ndim == axes + 1 + len(leading):
        alpha = np.expand_dims(alpha, -axes - 1)
    return [alpha] if boxes == 1 else [alpha[:, 0], alpha[:, 1]]


def _channels(channels: Any, plan: Plan) -> IntArray:
    count, numbers = plan.input_shape[0], np.atleast_1d(as_array(channels))
    integers = numbers.ndim == 1 and numbers.size and np.issubdtype(numbers.dtype, np.integer)
    if not integers or numbers.min() < -count or numbers.max() >= count:
        raise InputError(f"channels is {channels!r}; allowed are numbers of the image's channels, 0 … {count - 1}")
    return np.asarray(numbers % count, dtype=np.int64)


def _check_sizes(sizes: Sequence[int], plan: Plan, what: str) -> None:
    if any(size > most for size, most in zip(sizes, plan.patch_shape, strict=True)) or 0 in sizes:
        raise InputError(
            f"a {size_text(sizes)} {what} does not fit: this model was exported for up to {size_text(plan.patch_shape)}"
        )
