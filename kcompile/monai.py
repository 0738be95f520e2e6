"""MONAI's OcclusionSensitivity, incrementally: the signature and the maps of ``monai.visualize.OcclusionSensitivity``.

Written from its documentation and its results (version 1.6); MONAI itself is not needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from kcompile.core.errors import InputError
from kcompile.core.interval import IntArray
from kcompile.engine import Engine, outputs
from kcompile.fills import windows
from kcompile.runtime.full import patched
from kcompile.sliding import Slide

MODES = ("gaussian", "mean_patch", "mean_img")
SIGMA = 0.25  # of the gaussian that occludes, as a share of the mask
BLEND = 0.125  # of the gaussian that weighs overlapping windows
LEAST = 1e-3  # of these weights


class OcclusionSensitivity:
    """What a classifier returns where a mask lies over the image: its scores per class, averaged over masks.

    Attributes:
        nn_module: The classifier.
        fallback: Why the last call ran in full: None if it was incremental.
    """

    def __init__(
        self,
        nn_module: nn.Module,
        mask_size: int | Sequence[int] = 16,
        n_batch: int = 16,
        verbose: bool = True,
        mode: str | float | Callable[[Tensor, Tensor], Tensor] = "gaussian",
        overlap: float | Sequence[float] = 0.6,
        activate: bool | Callable[[Tensor], Tensor] = True,
    ) -> None:
        """Choose the mask.

        Args:
            nn_module: A module (compiled at first use, and kept for further images of this size), or what
                `kcompile.incrementalize` returned (used as it is; its base image is replaced). It runs in eval mode.
            mask_size: In pixels, one number or one per axis.
            n_batch: Images per call of the module, in a full run.
            verbose: Show a progress bar.
            mode: What the mask shows: a number; "mean_img", the image's mean; "gaussian", the image's own pixels,
                fading to 0 in the middle; "mean_patch", the pixels under the mask times their mean, as MONAI 1.6 does
                it; or a function of the image [1, C, *sizes] and the pixels under the mask [1, C, *mask_size].
            overlap: Of neighbouring masks, as a share of the mask: 0 ≤ overlap < 1.
            activate: Apply softmax to the outputs (sigmoid for images of one channel), nothing, or a function.

        Raises:
            InputError: An unknown mode, or numbers that are not allowed.
        """
        if isinstance(mode, str) and mode not in MODES:
            raise InputError(f"mode is {mode!r}; allowed are {', '.join(MODES)}, a number or a function")
        if not isinstance(n_batch, Integral) or n_batch < 1:
            raise InputError(f"n_batch is {n_batch}; allowed are integers of at least 1")
        if not isinstance(nn_module, nn.Module):
            raise InputError(f"nn_module must be a torch.nn.Module, got {type(nn_module).__name__}")
        self.nn_module: nn.Module = nn_module
        self.mask_size: int | Sequence[int] = mask_size
        self.n_batch: int = n_batch
        self.verbose: bool = verbose
        self.mode: Any = mode
        self.overlap: Any = overlap
        self.activate: Any = activate
        self.fallback: str | None = None
        self._engine: Engine = Engine(nn_module)

    @torch.no_grad()
    def __call__(self, x: Tensor, b_box: Sequence[int] | None = None, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """The map of an image.

        Args:
            x: [1, C, *sizes], of two spatial axes or three.
            b_box: (min, max) per axis, one after the other: only this part of the map; max is not part of it. -1 for
                both is the whole axis.
            **kwargs: Passed to the module, which then runs in full.

        Returns:
            The scores [1, classes, *sizes of the box], float32, and the most probable class [1, 1, *sizes of the box];
            plain tensors, also for MetaTensors.

        Raises:
            InputError: Another shape, a mask larger than the image, a box outside of it or empty.
        """
        image = _image(x)
        sizes = tuple(image.shape[2:])
        mask = _repeated(self.mask_size, len(sizes), Integral, "mask_size")
        if any(m < 1 for m in mask):
            raise InputError(f"mask_size is {self.mask_size}; allowed are integers of at least 1")
        box = _Box.of(b_box, sizes, mask)
        shown = tuple(min(m, size) for m, size in zip(mask, box.searched, strict=True)) if b_box is not None else mask
        if any(m > size for m, size in zip(shown, box.searched, strict=True)):
            raise InputError(f"the mask {mask} is larger than the image {sizes}")
        slide = Slide.shifted(box.searched, shown, self._strides(box.searched, shown))
        weights = _blend(shown, image) if self.mode == "gaussian" else image.new_ones(shown)
        with _evaluating(self.nn_module), tqdm(total=slide.count, disable=not self.verbose) as bar:
            scores = self._scores(image, slide, slide.corners() + np.array(box.low), mask, kwargs, bar)
        values = scores.T.to(image.dtype).reshape(-1, *slide.grid)
        found = slide.spread(values, weights) / slide.coverage(weights)
        result = box.cut(found).unsqueeze(0).float()
        return result, result.argmax(dim=1, keepdim=True)

    def _scores(
        self, image: Tensor, slide: Slide, corners: IntArray, mask: tuple[int, ...], kwargs: dict[str, Any], bar: Any
    ) -> Tensor:
        """The activated outputs [masks, classes]."""
        source = self._source(image, slide.window)
        result: Tensor | None = None
        groups = self._groups(image, source, slide, corners, mask, kwargs)
        for rows, output in groups:
            if not isinstance(output, Tensor) or output.dim() != 2:
                shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
                raise InputError(f"the module returned {shape}; allowed is a tensor [N, classes]")
            scores = self._activated(output, image)
            if result is None:
                result = scores.new_empty((len(corners), scores.shape[1]))
            result[torch.from_numpy(rows).to(result.device)] = scores
            bar.update(len(rows))
        assert result is not None, "there is at least one mask"
        return result

    def _groups(
        self,
        image: Tensor,
        source: Callable[[IntArray], Tensor],
        slide: Slide,
        corners: IntArray,
        mask: tuple[int, ...],
        kwargs: dict[str, Any],
    ) -> Iterator[tuple[IntArray, Any]]:
        """Indices of some masks and the module's output for them; incrementally if possible."""
        based = None if kwargs else self._engine.based(image, mask if _fits(mask, image) else slide.window)
        self.fallback = "there are further arguments" if kwargs else self._engine.reason
        if based is not None:
            nbytes = prod(slide.window) * image.shape[1] * image.element_size()
            for rows, _, output in outputs(based[0], 1, corners, lambda part: source(corners[part])[:, None], nbytes):
                yield rows, output
            return
        for first in range(0, len(corners), self.n_batch):
            rows = np.arange(first, min(first + self.n_batch, len(corners)))
            copies = image.expand(len(rows), *image.shape[1:])
            yield rows, self.nn_module(patched(copies, source(corners[rows]), corners[rows]), **kwargs)

    def _source(self, image: Tensor, mask: tuple[int, ...]) -> Callable[[IntArray], Tensor]:
        """What masks at some places show: [n, C, *mask]."""
        mode = self.mode
        if callable(mode):
            return lambda at: torch.cat([mode(image, window[None]) for window in windows(image[0], at, mask)])
        if mode == "gaussian":
            factor = _gaussian(mask).to(image)
            return lambda at: windows(image[0], at, mask) * factor
        if mode == "mean_patch":
            return lambda at: _times_mean(windows(image[0], at, mask))
        value = float(image.mean()) if mode == "mean_img" else float(mode)
        return lambda at: image.new_full((1, image.shape[1], *mask), value).expand(len(at), -1, *mask)

    def _activated(self, output: Tensor, image: Tensor) -> Tensor:
        if callable(self.activate):
            made: Tensor = self.activate(output)
            return made
        if not self.activate:
            return output
        return output.sigmoid() if image.shape[1] == 1 else output.softmax(1)

    def _strides(self, sizes: tuple[int, ...], mask: tuple[int, ...]) -> tuple[int, ...]:
        overlaps = _repeated(self.overlap, len(sizes), Real, "overlap")
        if not all(0 <= overlap < 1 for overlap in overlaps):
            raise InputError(f"overlap is {self.overlap}; allowed is 0 ≤ overlap < 1")
        return tuple(max(int(m * (1 - overlap)), 1) for m, overlap in zip(mask, overlaps, strict=True))


@dataclass(frozen=True)
class _Box:
    """The part of the map that is asked for, and the part that masks lie in, half a mask more on each side."""

    sizes: tuple[int, ...]
    low: tuple[int, ...]
    high: tuple[int, ...]
    first: tuple[int, ...]
    last: tuple[int, ...]

    @staticmethod
    def of(b_box: Sequence[int] | None, sizes: tuple[int, ...], mask: tuple[int, ...]) -> _Box:
        """The box (min, max, …) of an image; the whole image for None."""
        given: Any = (-1, -1) * len(sizes) if b_box is None else b_box
        box = tuple(given) if hasattr(given, "__iter__") else ()
        if len(box) != 2 * len(sizes) or not all(isinstance(edge, Integral) for edge in box):
            raise InputError(f"b_box is {b_box}; allowed are {2 * len(sizes)} integers, (min, max) per axis")
        first = tuple(max(int(edge), 0) for edge in box[::2])
        last = tuple(min(int(edge), size) if edge > 0 else size for edge, size in zip(box[1::2], sizes, strict=True))
        if any(begin >= end for begin, end in zip(first, last, strict=True)):
            raise InputError(f"b_box is {b_box}: empty, or outside of the image {sizes}")
        half = [(m - 1) // 2 for m in mask]
        low = tuple(max(edge - h, 0) for edge, h in zip(box[::2], half, strict=True))
        high = tuple(min(end + h, size) if end < size else size for end, h, size in zip(last, half, sizes, strict=True))
        return _Box(sizes, low, high, first, last)

    @property
    def searched(self) -> tuple[int, ...]:
        """Extent of the part that masks lie in."""
        return tuple(high - low for low, high in zip(self.low, self.high, strict=True))

    def cut(self, values: Tensor) -> Tensor:
        """Of the searched part [K, *searched] what was asked for."""
        edges = zip(self.low, self.first, self.last, strict=True)
        return values[(slice(None), *[slice(first - low, last - low) for low, first, last in edges])]


def _image(x: Any) -> Tensor:
    if not isinstance(x, Tensor) or x.dim() not in (3, 4, 5) or not x.is_floating_point():
        shape = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise InputError(f"the image must be a tensor [1, C, *sizes] of floats, got {shape}")
    if len(x) != 1:
        raise InputError(f"expected batch size of 1, got {len(x)}")
    plain: Tensor = x.detach().as_subclass(Tensor)
    return plain


def _repeated(value: Any, axes: int, kind: type, what: str) -> tuple[Any, ...]:
    values = (value,) * axes if isinstance(value, kind) else tuple(value) if hasattr(value, "__iter__") else ()
    if len(values) != axes or not all(isinstance(v, kind) for v in values):
        raise InputError(f"{what} is {value}; allowed are one number, or one for each of the {axes} axes")
    return values


def _fits(mask: tuple[int, ...], image: Tensor) -> bool:
    return all(m <= size for m, size in zip(mask, image.shape[2:], strict=True))


def _times_mean(pixels: Tensor) -> Tensor:
    mean = pixels.flatten(1).mean(1)
    return pixels * mean.reshape(-1, *[1] * (pixels.dim() - 1))


def _gaussian(mask: tuple[int, ...]) -> Tensor:
    """1 minus a gaussian [*mask] around the middle pixel, scaled to 0 … 1; a pixel has the gaussian's integral."""
    bump = torch.ones(())
    for size in mask:
        x, edge = torch.arange(size, dtype=torch.float32) - size // 2, 0.5**0.5 / (size * SIGMA)
        line = 0.5 * ((edge * (x + 0.5)).erf() - (edge * (x - 0.5)).erf())
        bump = bump.unsqueeze(-1) * line
    low, high = (-bump).min(), (-bump).max()
    return torch.zeros_like(bump) if low == high else (-bump - low) / (high - low)


def _blend(mask: tuple[int, ...], image: Tensor) -> Tensor:
    """The weight [*mask] of a pixel in a window's share of the map: a gaussian around the window's middle."""
    weights = torch.ones(())
    for size in mask:
        x = torch.arange(size, dtype=torch.float32) - (size - 1) / 2
        weights = weights.unsqueeze(-1) * (-(x**2) / (2 * (size * BLEND) ** 2)).exp()
    return weights.clamp_min(max(float(weights.min()), LEAST)).to(image)


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Eval mode for the time being; afterwards every part is as it was."""
    training = [part for part in module.modules() if part.training]
    for part in training:
        part.training = False
    try:
        yield
    finally:
        for part in training:
            part.training = True
