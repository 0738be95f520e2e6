"""Fills that are drawn once as a picture of the image's size, of which the patch shows its place. Imports no torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from kcompile.core.errors import InputError

Array: TypeAlias = npt.NDArray[Any]

WIDEST = 1e4  # pixels; a kernel of more would not fit into memory


class Drawn(ABC):
    """A fill that is a picture made from the image."""

    @abstractmethod
    def picture(self, image: Array, sizes: Sequence[int]) -> Array:
        """The picture [C, *S], float64, for an image [C, *S]; ``sizes`` are the patch's, per axis."""


@dataclass(frozen=True)
class Blur(Drawn):
    """The image itself, blurred by a gaussian (scikit-image; its border mirrored).

    Attributes:
        sigma: Standard deviation in pixels, one number or one per axis; None is half the patch's size along each axis,
            with which nothing of the patch's own scale is left.
    """

    sigma: float | Sequence[float] | None = None

    def picture(self, image: Array, sizes: Sequence[int]) -> Array:
        """The blurred image."""
        from skimage.filters import gaussian

        values: Any = [size / 2 for size in sizes] if self.sigma is None else self.sigma
        sigmas = list(values) if isinstance(values, Sequence) else [values] * len(sizes)
        if len(sigmas) != len(sizes) or not all(isinstance(s, Real) and 0 < float(s) <= WIDEST for s in sigmas):
            raise InputError(f"sigma is {self.sigma!r}; allowed are 0 … {WIDEST:g} pixels, one number or one per axis")
        smooth: Any = gaussian  # has no annotations
        blurred = smooth(image.astype(np.float64), sigmas, mode="reflect", channel_axis=0, preserve_range=True)
        return np.asarray(blurred)


@dataclass(frozen=True)
class Noise(Drawn):
    """Gaussian noise with the image's own mean and standard deviation per channel.

    One picture of noise of the image's size is drawn, and the patch shows its pixels at the place. So what a position
    shows depends on the seed alone: not on stride, roi, device or the order of positions.

    Attributes:
        seed: Of NumPy's generator; the same seed gives the same noise, also in an exported model.
    """

    seed: int = 0

    def picture(self, image: Array, sizes: Sequence[int]) -> Array:
        """The noise."""
        if not isinstance(self.seed, Integral) or not 0 <= self.seed < 2**63:
            raise InputError(f"seed is {self.seed!r}; allowed are integers from 0 to 2**63 - 1")
        axes = tuple(range(1, image.ndim))
        values = image.astype(np.float64)
        drawn = np.random.default_rng(int(self.seed)).standard_normal(image.shape)
        return np.asarray(drawn * values.std(axis=axes, keepdims=True) + values.mean(axis=axes, keepdims=True))


FEW = 4  # numbers that a caption lists

NAMED: dict[str, Drawn] = {"blur": Blur(), "noise": Noise()}


def told(value: Any) -> str:
    """What a patch shows, in a few words, from a user's ``value``: for captions."""
    if isinstance(value, str):
        return value
    if isinstance(value, Blur):
        return "blur" if value.sigma is None else f"blur (sigma {_numbers(value.sigma)})"
    if isinstance(value, Noise):
        return f"noise (seed {value.seed})"
    if hasattr(value, "transform") and hasattr(value, "value"):  # `kcompile.Pixels`
        return f"{told(value.value)} in the picture's units"
    if hasattr(value, "source"):  # a fill that was read before
        return told(getattr(value, "drawn", getattr(value, "value", type(value).__name__)))
    return _numbers(value)


def _numbers(value: Any) -> str:
    """One number, or a few with commas between them; what else it is where that fails: this is no place for errors."""
    try:
        numbers = np.asarray(value.detach().cpu() if hasattr(value, "detach") else value, dtype=np.float64)
    except (TypeError, ValueError, RuntimeError):
        return f"of type {type(value).__name__}"
    if numbers.ndim > 1:
        return "pixels of its own"
    some = ", ".join(f"{one:g}" for one in numbers.reshape(-1)[:FEW])
    return some if numbers.size <= FEW else f"{some}, … ({numbers.size} numbers)"
