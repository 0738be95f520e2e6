"""What the patch shows, as arrays: the fills of `kcompile.fills`. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from kcompile.core.errors import InputError
from kcompile.core.interval import IntArray
from kcompile.drawn_fills import NAMED, Drawn

Array: TypeAlias = npt.NDArray[Any]
Parts: TypeAlias = Callable[[IntArray], Iterator[tuple[int, int, Array]]]

_AT_ONCE = 64 << 20  # bytes of patches that differ by position
_NAMES = ("mean", "patch-mean", *NAMED)


def patches_of(value: Any, image: Array, sizes: Sequence[int]) -> Parts:
    """A function from positions [N, axes] to (first, last, patches) of some of them at a time.

    Args:
        value: A number, one per channel, an array [C, *sizes] or [C, *S] (another image), "mean", "patch-mean", "blur",
            "noise", `kcompile.Blur`, `kcompile.Noise`; where torch is installed `kcompile.Pixels` too.
        image: [C, *S].
        sizes: Of the patch, in pixels.

    Raises:
        InputError: Nothing of that list.
    """
    value = NAMED.get(value, value) if isinstance(value, str) else value
    if isinstance(value, str):
        return _named(value, image, sizes)
    if isinstance(value, Drawn):
        return _of_array(value.picture(image, sizes).astype(image.dtype), image, sizes)
    if hasattr(value, "arrays"):  # fills that are made with torch
        made = value.arrays(image, sizes)
        return _in_parts(made, image, sizes) if callable(made) else _of_array(made, image, sizes)
    try:
        array = np.asarray(value.detach().cpu().numpy() if hasattr(value, "detach") else value, dtype=image.dtype)
    except (TypeError, ValueError) as error:
        raise InputError(f"value is of type {type(value).__name__}; allowed are numbers and arrays") from error
    return _of_array(array, image, sizes)


def _named(name: str, image: Array, sizes: Sequence[int]) -> Parts:
    if name not in _NAMES:
        names = ", ".join(f'"{one}"' for one in _NAMES)
        raise InputError(f"value is {name!r}; of an exported model allowed are numbers, arrays and {names}")
    if name == "mean":
        return _of_array(image.reshape(len(image), -1).mean(axis=1), image, sizes)

    def patches(at: IntArray) -> Array:
        covered = _windows(image, at, sizes)
        return np.broadcast_to(covered.mean(axis=tuple(range(2, covered.ndim)), keepdims=True), covered.shape)

    return _in_parts(patches, image, sizes)


def _of_array(array: Array, image: Array, sizes: Sequence[int]) -> Parts:
    """Of numbers, a patch or another image."""
    if array.shape in ((), (1,), (len(image),)):
        colour = array.reshape(-1, *[1] * len(sizes))
        array = np.broadcast_to(colour, (len(image), *sizes)).astype(image.dtype)
    if array.shape == (len(image), *sizes):
        return lambda positions: iter([(0, len(positions), array)])
    if array.shape == image.shape:
        return _in_parts(lambda at: _windows(array, at, sizes), image, sizes)
    raise InputError(
        f"value has shape {array.shape}; allowed are a number, [{len(image)}], {(len(image), *sizes)} for the patch "
        f"and {image.shape} for another image"
    )


def _in_parts(patches: Callable[[IntArray], Array], image: Array, sizes: Sequence[int]) -> Parts:
    """Patches that differ by position, some at a time."""
    step = max(1, _AT_ONCE // (len(image) * int(np.prod(sizes)) * image.itemsize))

    def parts(positions: IntArray) -> Iterator[tuple[int, int, Array]]:
        for first in range(0, len(positions), step):
            some = positions[first : first + step]
            yield first, first + len(some), np.ascontiguousarray(patches(some), dtype=image.dtype)

    return parts


def _windows(image: Array, positions: IntArray, sizes: Sequence[int]) -> Array:
    """An image's own pixels [n, C, *sizes] at positions inside it."""
    view = np.lib.stride_tricks.sliding_window_view(image, sizes, axis=tuple(range(1, image.ndim)))
    view = np.moveaxis(view, 0, image.ndim - 1)  # [*positions, C, *sizes]
    return np.asarray(view[tuple(positions.T)])
