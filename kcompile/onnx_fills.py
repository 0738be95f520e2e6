"""What the patch shows, as arrays: the fills of `kcompile.fills` that need no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from kcompile.core.errors import InputError
from kcompile.core.interval import IntArray

Array: TypeAlias = npt.NDArray[Any]
Parts: TypeAlias = Callable[[IntArray], Iterator[tuple[int, int, Array]]]

_AT_ONCE = 64 << 20  # bytes of patches that differ by position
NAMES = ("mean", "patch-mean", "blur")


def patches_of(value: Any, image: Array, sizes: Sequence[int]) -> Parts:
    """A function from positions [N, axes] to (first, last, patches) of some of them at a time.

    Args:
        value: A number, one per channel, an array [C, *sizes] or [C, *S] (another image), "mean", "patch-mean", "blur".
        image: [C, *S].
        sizes: Of the patch, in pixels.

    Raises:
        InputError: Nothing of that list.
    """
    if isinstance(value, str):
        if value not in NAMES:
            names = ", ".join(f'"{name}"' for name in NAMES)
            raise InputError(f"value is {value!r}; of an exported model allowed are numbers, arrays and {names}")
        if value == "mean":
            return _one(image.reshape(len(image), -1).mean(axis=1), image, sizes)
        return _windows(image, sizes, mean=True) if value == "patch-mean" else _windows(_blurred(image, sizes), sizes)
    try:
        array = np.asarray(value.detach().cpu().numpy() if hasattr(value, "detach") else value, dtype=image.dtype)
    except (TypeError, ValueError) as error:
        raise InputError(f"value is of type {type(value).__name__}; allowed are numbers and arrays") from error
    if array.shape in ((), (1,), (len(image),)):
        return _one(array.reshape(-1), image, sizes)
    if array.shape == (len(image), *sizes):
        return lambda positions: iter([(0, len(positions), array)])
    if array.shape == image.shape:
        return _windows(array, sizes)
    raise InputError(
        f"value has shape {array.shape}; allowed are a number, [{len(image)}], {(len(image), *sizes)} for the patch "
        f"and {image.shape} for another image"
    )


def _one(colour: Array, image: Array, sizes: Sequence[int]) -> Parts:
    patch = np.broadcast_to(colour.reshape(-1, *[1] * len(sizes)), (len(image), *sizes)).astype(image.dtype)
    return lambda positions: iter([(0, len(positions), patch)])


def _windows(image: Array, sizes: Sequence[int], mean: bool = False) -> Parts:
    """The image's pixels at each position, or their mean colour."""
    view = np.lib.stride_tricks.sliding_window_view(image, sizes, axis=tuple(range(1, image.ndim)))
    view = np.moveaxis(view, 0, image.ndim - 1)  # [*positions, C, *sizes]
    step = max(1, _AT_ONCE // (len(image) * int(np.prod(sizes)) * image.itemsize))

    def parts(positions: IntArray) -> Iterator[tuple[int, int, Array]]:
        for first in range(0, len(positions), step):
            some = view[tuple(positions[first : first + step].T)]
            if mean:
                colour = some.mean(axis=tuple(range(2, some.ndim)), keepdims=True)
                some = np.broadcast_to(colour, some.shape)
            yield first, first + len(some), np.ascontiguousarray(some, dtype=image.dtype)

    return parts


def _blurred(image: Array, sizes: Sequence[int]) -> Array:
    """By a gaussian of half the patch's size along each axis; its border mirrored."""
    from skimage.filters import gaussian

    smooth: Any = gaussian  # has no annotations
    sigmas = [size / 2 for size in sizes]
    blurred = smooth(image.astype(np.float64), sigmas, mode="reflect", channel_axis=0, preserve_range=True)
    return np.asarray(blurred, dtype=image.dtype)
