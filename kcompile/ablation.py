"""Ablation in full: the model called on really changed copies of any inputs; and what counts of its outputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kcompile.core.errors import InputError
from kcompile.core.interval import IntArray
from kcompile.sliding import Slide


def check_target(target: Any, images: int) -> None:
    """InputError unless a target is one for all images or one for each of them."""
    many = isinstance(target, list) or (isinstance(target, Tensor) and target.numel() > 1)
    if many and (len(target) != images or (isinstance(target, Tensor) and target.dim() != 1)):
        raise InputError(f"target has {len(target)} entries for {images} images; give one for all, or one for each")


def select(output: Any, target: Any, images: IntArray) -> Tensor:
    """What counts of a model's output.

    Args:
        output: [n, ...].
        target: None for all of it, a class, a tuple of indices, or one of these for each image (list or tensor).
        images: [n], which image each row is of.

    Returns:
        [n, ...] without the dimensions that the target chooses from.

    Raises:
        InputError: The output is no tensor, or has no such part.
    """
    if not isinstance(output, Tensor):
        raise InputError(f"the model returned a {type(output).__name__}; allowed is a tensor with a row per image")
    if target is None:
        return output
    if isinstance(target, Tensor):
        target = int(target) if target.numel() == 1 else target.tolist()
    one = target if not isinstance(target, list) else target[0]
    index = one if isinstance(one, tuple) else (one,)
    if len(index) >= output.dim() or not all(isinstance(i, Integral | slice) for i in index):
        raise InputError(f"target {target!r} doesn't choose from an output of shape {tuple(output.shape)}")
    try:
        if not isinstance(target, list):
            return output[(slice(None), *index)]
        each = torch.tensor([t if isinstance(t, tuple) else (t,) for t in target], device=output.device)
        chosen = each[torch.from_numpy(images).to(output.device)].unbind(1)
        return output[(torch.arange(len(output), device=output.device), *chosen)]
    except (IndexError, TypeError, ValueError) as error:
        raise InputError(f"target {target!r} is not in an output of shape {tuple(output.shape)}") from error


def ablated_scores(
    forward: Callable[..., Any],
    tensors: Sequence[Tensor],
    extra: tuple[Any, ...],
    target: Any,
    at_once: int,
    slides: Sequence[Slide],
    fills: Sequence[Tensor | float],
    bar: Any,
) -> list[Tensor]:
    """What each window changes of the outputs, by full inference.

    Args:
        forward: The model, or any function of the inputs and ``extra``.
        tensors: Inputs with N rows each.
        extra: Further arguments; tensors among them have N rows.
        target: See `select`.
        at_once: Windows per call.
        slides: The windows of each input, over all dimensions but the first.
        fills: What they show: a number, or a tensor of the input's shape.
        bar: Progress bar, advanced by changed rows.

    Returns:
        For each input [outputs, *grid], outputs being those of all rows, or of the whole batch if it has only some.

    Raises:
        InputError: An output without a row per image, where several windows are to share a call.
    """
    rows = len(tensors[0])
    before = _scores(forward(*tensors, *extra), target, rows, 1)
    changes = []
    for which, (slide, fill) in enumerate(zip(slides, fills, strict=True)):
        result = before.new_empty((before.numel(), slide.count))
        corners = slide.corners()
        for first in range(0, slide.count, at_once):
            some = corners[first : first + at_once]
            inputs = [x.repeat(len(some), *[1] * (x.dim() - 1)) for x in tensors]
            inputs[which] = _ablated(tensors[which], some, slide.window, fill)
            further = [_repeated(value, len(some)) for value in extra]
            after = _scores(forward(*inputs, *further), target, rows, len(some))
            if at_once > 1 and (not before.dim() or after.shape != (len(some) * len(before), *before.shape[1:])):
                raise InputError(
                    f"the output has shape {tuple(before.shape)} for {rows} rows and {tuple(after.shape)} for "
                    f"{rows * len(some)}; with perturbations_per_eval > 1 it must have a row for each"
                )
            result[:, first : first + len(some)] = (before.reshape(1, -1) - after.reshape(len(some), -1)).T
            bar.update(len(some) * rows)
        changes.append(result.unflatten(1, slide.grid))
    return changes


def _ablated(x: Tensor, corners: IntArray, window: Sequence[int], fill: Tensor | float) -> Tensor:
    """Copies [p * N, ...] of a tensor with a window replaced in each."""
    dtype = torch.result_type(x, fill)
    copies = x.to(dtype).unsqueeze(0).repeat(len(corners), *[1] * x.dim())
    flat = copies.unsqueeze(-1) if x.dim() == 1 else copies
    for copy, corner in zip(flat, corners.tolist(), strict=True):
        place = (slice(None), *[slice(low, low + size) for low, size in zip(corner, window, strict=True)])
        copy[place] = (fill.unsqueeze(-1) if x.dim() == 1 else fill)[place] if isinstance(fill, Tensor) else fill
    return copies.flatten(0, 1)


def _repeated(value: Any, count: int) -> Any:
    return value.repeat(count, *[1] * (value.dim() - 1)) if isinstance(value, Tensor) and value.dim() else value


def _scores(output: Any, target: Any, rows: int, copies: int) -> Tensor:
    if isinstance(output, int | float):
        output = torch.tensor(output, dtype=torch.int64 if isinstance(output, int) else torch.float64)
    return select(output, target, np.tile(np.arange(rows), copies))
