"""Captum's Occlusion, incrementally: the signature and the attributions of ``captum.attr.Occlusion``.

Written from its documentation and its results (version 0.9); Captum itself is not needed.
"""

from __future__ import annotations

from collections.abc import Callable
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from kcompile.ablation import ablated_scores, check_target, select
from kcompile.core.errors import InputError
from kcompile.core.interval import IntArray
from kcompile.engine import Engine, outputs
from kcompile.fills import windows
from kcompile.runtime.module import IncrementalModule
from kcompile.sliding import Slide


class Occlusion:
    """Attribution by occlusion: how much the output falls when a window is replaced, averaged over windows.

    Attributes:
        forward_func: The function that is explained.
        fallback: Why the last call ran in full: None if it was incremental.
    """

    def __init__(self, forward_func: Callable[..., Any]) -> None:
        """Explain a model.

        Args:
            forward_func: A module (compiled at first use, and kept for further images of this size), what
                `kcompile.incrementalize` returned (used as it is; its base images are replaced), or any function of
                tensors (called in full).
        """
        self.forward_func = forward_func
        self.fallback: str | None = None
        self._engine = Engine(forward_func)

    @torch.no_grad()
    def attribute(
        self,
        inputs: Any,
        sliding_window_shapes: Any,
        strides: Any = None,
        baselines: Any = None,
        target: Any = None,
        additional_forward_args: Any = None,
        perturbations_per_eval: int = 1,
        show_progress: bool = False,
    ) -> Any:
        """Attributions of every cell of the inputs.

        What can't be incremental runs in full: several inputs, additional arguments, windows larger than a compiled
        module's patch, models that can't be compiled; `fallback` then says why.

        Args:
            inputs: Images [N, C, *sizes], or any tensor or tuple of tensors with N rows.
            sliding_window_shapes: The window's extent in every dimension but the first, channels included: (3, 16, 16)
                or, for single channels, (1, 16, 16); a tuple of such for several inputs.
            strides: One number, or one per dimension of the window; for several inputs a tuple of these. Default 1.
            baselines: What the window shows: a number, or a tensor that can be broadcast to the input (one for each of
                several inputs). Default 0.
            target: Which output counts: a class, a tuple of indices, or one of these per image (list or tensor);
                default: each output has its own attributions.
            additional_forward_args: Passed to the model after the inputs; tensors have a row per image.
            perturbations_per_eval: Windows per call of the model, in a full run.
            show_progress: Show a progress bar.

        Returns:
            Float32 [N, *input's shape without N] (for an output of K numbers per image [N * K, …]), a tuple if the
            inputs are one.

        Raises:
            InputError: Shapes, strides, baselines or targets that don't fit.
        """
        tensors = _tensors(inputs)
        given = _per_input(sliding_window_shapes, len(tensors), _is_shape, "sliding_window_shapes")
        steps = _per_input(1 if strides is None else strides, len(tensors), _is_stride, "strides")
        slides = [_slide(*parts) for parts in zip(tensors, given, steps, strict=True)]
        fills = [_baseline(b, x) for b, x in zip(_baselines(baselines, len(tensors)), tensors, strict=True)]
        extra = additional_forward_args if isinstance(additional_forward_args, tuple) else (additional_forward_args,)
        extra = () if additional_forward_args is None else extra
        if not isinstance(perturbations_per_eval, int) or perturbations_per_eval < 1:
            raise InputError(f"perturbations_per_eval is {perturbations_per_eval}; allowed are integers of at least 1")
        check_target(target, len(tensors[0]))
        total = sum(slide.count for slide in slides) * len(tensors[0])
        with tqdm(total=total, disable=not show_progress, unit="image") as bar:
            changes = self._incremental(tensors, slides, fills, target, extra, bar)
            if changes is None:
                call = (self.forward_func, tensors, extra, target, perturbations_per_eval)
                changes = ablated_scores(*call, slides, fills, bar)
        maps = tuple(map(_averaged, slides, changes, tensors))
        return maps if isinstance(inputs, tuple) else maps[0]

    def _incremental(
        self,
        tensors: list[Tensor],
        slides: list[Slide],
        fills: list[Any],
        target: Any,
        extra: tuple[Any, ...],
        bar: Any,
    ) -> list[Tensor] | None:
        """For the only input, what each window changes of the output [outputs, *grid]; None if it must run in full."""
        if len(tensors) > 1 or extra:
            self.fallback = "there are several inputs" if len(tensors) > 1 else "there are additional arguments"
            return None
        (images,), (slide,), (fill,) = tensors, slides, fills
        if isinstance(fill, Tensor) and (fill.dtype != images.dtype or not bool(torch.isfinite(fill).all())):
            self.fallback = "the baseline is of another type, or not finite"
            return None
        changes = []
        at_once = self._engine.at_once()
        for first in range(0, len(images), at_once):
            some = slice(first, first + at_once)
            based = self._engine.based(images[some], slide.window[1:])
            self.fallback = self._engine.reason
            if based is None:
                return None
            patches = _Patches(slide, images[some], fill[some] if isinstance(fill, Tensor) else fill)
            changes.append(_changes(*based, patches, target, np.arange(first, first + len(patches.images)), bar))
        return [torch.cat(changes)]


class _Patches:
    """Windows over channels and pixels as patches: all channels, of which those outside the window stay the image's."""

    def __init__(self, slide: Slide, images: Tensor, fill: Tensor | float) -> None:
        self.slide, self.images, self.fill = slide, images, fill
        self.corners = slide.corners()
        self.nbytes = int(np.prod(slide.window[1:])) * images.shape[1] * images.element_size()

    def constant(self) -> Tensor | None:
        """The patch [C, *sizes] that all windows show, if it is one."""
        if isinstance(self.fill, Tensor) or self.slide.window[0] < self.images.shape[1]:
            return None
        return self.images.new_full((self.images.shape[1], *self.slide.window[1:]), self.fill)

    def some(self, part: slice) -> Tensor:
        """The patches [p, N, C, *sizes] of some windows."""
        sizes, corners = self.slide.window[1:], self.corners[part]
        room = [pad for size in reversed(sizes) for pad in (0, size)]  # for windows that stick out
        made = []
        for n, image in enumerate(self.images):
            if isinstance(self.fill, Tensor):
                shown = windows(F.pad(self.fill[n], room), corners[:, 1:], sizes)
            else:
                shown = image.new_full((len(corners), len(image), *sizes), self.fill)
            if self.slide.window[0] < len(image):
                own = windows(F.pad(image, room), corners[:, 1:], sizes)
                shown = torch.where(self._channels(corners[:, 0]).view(*own.shape[:2], *[1] * len(sizes)), shown, own)
            made.append(shown)
        return torch.stack(made, dim=1)

    def _channels(self, first: IntArray) -> Tensor:
        """Which channels [p, C] the windows cover."""
        channel = np.arange(self.images.shape[1])
        inside = (first[:, None] <= channel) & (channel < first[:, None] + self.slide.window[0])
        return torch.from_numpy(inside).to(self.images.device)


def _changes(inc: IncrementalModule, base: Any, patches: _Patches, target: Any, numbers: IntArray, bar: Any) -> Tensor:
    """What each window changes of the images' outputs [images * outputs of each, *grid].

    Args:
        inc: With the images as its base.
        base: Its output for them.
        patches: The windows.
        target: Which of the outputs counts.
        numbers: Of the images, among all.
        bar: The progress bar.
    """
    before = select(base, target, numbers).reshape(len(numbers), -1)
    result = before.new_empty((len(numbers), before.shape[1], patches.slide.count))
    source = patches.constant()
    where = patches.corners[:, 1:]
    for places, rows, output in outputs(
        inc, len(numbers), where, patches.some if source is None else source, patches.nbytes
    ):
        scores = select(output, target, numbers[rows]).reshape(len(rows), -1)
        index = torch.from_numpy(rows).to(before.device)
        result[index, :, torch.from_numpy(places).to(before.device)] = before[index] - scores
        bar.update(len(rows))
    return result.reshape(-1, *patches.slide.grid)


def _averaged(slide: Slide, changes: Tensor, given: Tensor) -> Tensor:
    """Each cell's mean over the windows that cover it; float32, as Captum's."""
    values = changes if changes.dtype == torch.float64 else changes.float()
    weights = values.new_ones(slide.window)
    mean: Tensor = slide.spread(values, weights).float() / slide.coverage(weights).float()
    return mean.reshape(-1, *given.shape[1:]).to(given.device)


def _tensors(inputs: Any) -> list[Tensor]:
    tensors = list(inputs) if isinstance(inputs, tuple) else [inputs]
    if not tensors or not all(isinstance(x, Tensor) and x.dim() for x in tensors):
        raise InputError(
            f"inputs must be a tensor with a row per image, or a tuple of such, got {type(inputs).__name__}"
        )
    if any(len(x) != len(tensors[0]) or not len(x) for x in tensors):
        raise InputError(f"inputs have {[len(x) for x in tensors]} rows; allowed is one number for all, at least 1")
    return tensors


def _is_shape(value: Any) -> bool:
    return isinstance(value, tuple) and all(isinstance(size, Integral) for size in value)


def _is_stride(value: Any) -> bool:
    return isinstance(value, Integral) or _is_shape(value)


def _per_input(value: Any, count: int, is_one: Callable[[Any], bool], what: str) -> list[Any]:
    """One value for each input; a single input's need not be in a tuple."""
    many = list(value) if isinstance(value, tuple) and len(value) == count and all(map(is_one, value)) else None
    if count == 1 and many is None and is_one(value):
        many = [value]
    if what == "strides" and isinstance(value, Integral):
        many = [value] * count
    if many is None:
        raise InputError(f"{what} is {value}; give one for each of the {count} inputs, as tuples of integers")
    return many


def _slide(x: Tensor, window: tuple[int, ...], stride: Any) -> Slide:
    sizes = tuple(x.shape[1:])
    steps = (stride,) * len(sizes) if isinstance(stride, Integral) else stride
    if len(window) != len(sizes) or any(not 1 <= w <= size for w, size in zip(window, sizes, strict=True)):
        raise InputError(f"a sliding window of shape {window} doesn't fit an input of {sizes} (without its rows)")
    fits = [1 <= s <= w or (s >= 1 and w == size) for s, w, size in zip(steps, window, sizes, strict=False)]
    if len(steps) != len(sizes) or not all(fits):
        raise InputError(f"strides are {steps}; allowed are 1 … {window} (larger ones leave cells uncovered)")
    if not sizes:
        return Slide.cropped((1,), (1,), (1,))
    return Slide.cropped(sizes, tuple(map(int, window)), tuple(map(int, steps)))


def _baselines(baselines: Any, count: int) -> list[Any]:
    many = list(baselines) if isinstance(baselines, tuple) else [0 if baselines is None else baselines] * count
    if len(many) != count or (count > 1 and baselines is not None and not isinstance(baselines, tuple)):
        raise InputError(f"baselines must be a tuple of {count}, one for each input, got {type(baselines).__name__}")
    return many


def _baseline(value: Any, x: Tensor) -> Tensor | float:
    """A number, or a tensor of the input's shape."""
    if isinstance(value, Tensor):
        try:
            return value.to(x.device).broadcast_to(x.shape)
        except RuntimeError as error:
            raise InputError(f"a baseline of shape {tuple(value.shape)} doesn't fit {tuple(x.shape)}") from error
    if not isinstance(value, (int, float)):
        raise InputError(f"a baseline is a {type(value).__name__}; allowed are numbers and tensors")
    return value
