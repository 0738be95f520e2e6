"""Fills: what the patch shows at each position.

The list is closed, and `as_fill` reads it: a number, one per channel, a patch [C, h, w], another image [C, H, W],
"mean", "patch-mean", "blur" and "noise" (`drawn_fills`), and values in the picture's own units (`pixels.Pixels`).
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, TypeAlias

import torch
from torch import Tensor

from kcompile.core.errors import InputError
from kcompile.core.interval import IntArray
from kcompile.drawn_fills import NAMED as DRAWN
from kcompile.drawn_fills import Array, Drawn

Source: TypeAlias = Tensor | Callable[[IntArray], Tensor]
"""The patch [C, *sizes] of all positions, or a function from positions [n, axes] to patches [n, C, *sizes]."""


class Fill(ABC):
    """What the patch shows, for any image."""

    @abstractmethod
    def source(self, image: Tensor, sizes: Sequence[int]) -> Source:
        """The patches of one image [C, *S], in its type, on its device; ``sizes`` are the patch's, per axis."""

    def key(self, image: Tensor, sizes: Sequence[int]) -> str:
        """What tells this fill from others, for images of this shape and type [C, *S].

        Raises:
            InputError: Nothing does.
        """
        if " at 0x" in repr(self):
            raise InputError(f"value is {self!r}, which can't be told from others: it can't be tuned for")
        return repr(self)

    def arrays(self, image: Array, sizes: Sequence[int]) -> Array | Callable[[IntArray], Array]:
        """The same of an array: the patch of all positions, or a function from positions to patches."""
        source = self.source(torch.from_numpy(image), sizes)
        return source.numpy() if isinstance(source, Tensor) else lambda at: source(at).numpy()


@dataclass(frozen=True)
class Constant(Fill):
    """Numbers in the model's units: one [], one per channel [C], a patch [C, *sizes], or another image [C, *S]."""

    value: Tensor

    def key(self, image: Tensor, sizes: Sequence[int]) -> str:
        """Numbers as the model gets them: a colour by all of its channels, pixels by a digest."""
        value = check_value(self.value, image.shape, sizes).detach().to(image).double()
        if value.dim() < image.dim():
            return f"colour {value.expand(len(image)).tolist()}"
        digest = hashlib.sha256(value.cpu().contiguous().numpy().tobytes())
        return f"pixels {tuple(value.shape)} {digest.hexdigest()[:16]}"

    def source(self, image: Tensor, sizes: Sequence[int]) -> Source:
        """One patch for all positions, or the windows of another image."""
        value = check_value(self.value, image.shape, sizes).to(image)
        if value.dim() < image.dim():
            return _of_colour(value, image, sizes)
        return value if tuple(value.shape[1:]) == tuple(sizes) else lambda at: windows(value, at, sizes)


@dataclass(frozen=True)
class Mean(Fill):
    """The image's mean colour."""

    def source(self, image: Tensor, sizes: Sequence[int]) -> Source:
        """One patch for all positions."""
        return _of_colour(image.flatten(1).mean(dim=1), image, sizes)


@dataclass(frozen=True)
class PatchMean(Fill):
    """The mean colour of the pixels that the patch covers, position by position."""

    def source(self, image: Tensor, sizes: Sequence[int]) -> Source:
        """One colour per position."""

        def patches(at: IntArray) -> Tensor:
            covered = windows(image, at, sizes)
            return covered.mean(dim=tuple(range(2, covered.dim())), keepdim=True).expand_as(covered)

        return patches


@dataclass(frozen=True)
class Picture(Fill):
    """A picture that is drawn from the image ("blur", "noise")."""

    drawn: Drawn

    def source(self, image: Tensor, sizes: Sequence[int]) -> Source:
        """Its windows."""
        picture = self.drawn.picture(image.detach().double().cpu().numpy(), sizes)
        return Constant(torch.from_numpy(picture)).source(image, sizes)


NAMED: dict[str, Fill] = {
    "mean": Mean(), "patch-mean": PatchMean(), **{name: Picture(drawn) for name, drawn in DRAWN.items()}
}  # fmt: skip


def as_fill(value: Any, shape: Sequence[int], sizes: Sequence[int]) -> Fill:
    """The fill that a user's ``value`` means, for images of ``shape`` (C, *S) and patches of ``sizes``.

    Raises:
        InputError: Nothing of the list, or numbers of a wrong shape.
    """
    if isinstance(value, Fill):
        return value
    if isinstance(value, Drawn):
        return Picture(value)
    if isinstance(value, str):
        if value not in NAMED:
            raise InputError(f"value is {value!r}; allowed are {allowed(shape, sizes)}")
        return NAMED[value]
    return Constant(check_value(as_numbers(value, shape, sizes), shape, sizes))


def as_numbers(value: Any, shape: Sequence[int], sizes: Sequence[int]) -> Tensor:
    """A number, a sequence of numbers, an array or a tensor as a tensor; InputError otherwise."""
    try:
        return value.detach() if isinstance(value, Tensor) else torch.as_tensor(value, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"value is of type {type(value).__name__}; allowed are {allowed(shape, sizes)}") from error


def check_value(value: Tensor, shape: Sequence[int], sizes: Sequence[int]) -> Tensor:
    """The same tensor, if its shape is that of a number, one per channel, a patch or an image; InputError otherwise."""
    fits = [(), (1,), (shape[0],), (shape[0], *sizes), tuple(shape)]
    if value.is_complex():
        raise InputError(f"value has type {value.dtype}; allowed are real numbers")
    if value.dim() < 2 and value.isnan().any():
        raise InputError(f"value is {value.tolist()}; allowed are numbers, not NaN")
    if tuple(value.shape) not in fits:
        if value.dim() == 1:
            raise InputError(f"value has {len(value)} numbers; the image has {shape[0]} channels")
        patch, image = (shape[0], *sizes), tuple(shape)
        raise InputError(
            f"value has shape {tuple(value.shape)}; allowed are a number, [{shape[0]}], {patch} for the patch and "
            f"{image} for another image"
        )
    return value


def allowed(shape: Sequence[int], sizes: Sequence[int]) -> str:
    """All that ``value`` may be, in words."""
    names = ", ".join(f'"{name}"' for name in NAMED)
    return (
        f"a number, one per channel, a tensor {(shape[0], *sizes)} for the patch or {tuple(shape)} for another image, "
        f"{names}, kcompile.Blur, kcompile.Noise and kcompile.Pixels"
    )


def parts(source: Source, count: int, image: Tensor, sizes: Sequence[int], most: int) -> Iterator[slice]:
    """Split ``count`` positions so that the patches of a part, if they differ by position, take ``most`` bytes."""
    each = len(image) * prod(sizes) * image.element_size()
    at_once = max(1, count if isinstance(source, Tensor) else most // each)
    for first in range(0, count, at_once):
        yield slice(first, min(first + at_once, count))


def windows(image: Tensor, positions: IntArray, sizes: Sequence[int]) -> Tensor:
    """An image's own pixels [n, C, *sizes] at positions [n, axes] inside it."""
    view = image
    for axis, size in enumerate(sizes):
        view = view.unfold(axis + 1, size, 1)
    index: tuple[Any, ...] = torch.from_numpy(positions).to(image.device).unbind(dim=1)
    return view[(slice(None), *index)].transpose(0, 1)


def _of_colour(colour: Tensor, image: Tensor, sizes: Sequence[int]) -> Tensor:
    return colour.to(image).reshape(-1, *[1] * len(sizes)).expand(len(image), *sizes)
