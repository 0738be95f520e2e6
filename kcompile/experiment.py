"""Occlusion: slide a patch over an image and record the score at every position (Zeiler & Fergus; Krypton eq. 1-6)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from kcompile.api import incrementalize, per_axis
from kcompile.core.errors import InputError
from kcompile.core.interval import IntArray
from kcompile.heatmap import Heatmap
from kcompile.runtime.module import IncrementalModule
from kcompile.scoring import Score, scores, select


def occlusion(
    model: nn.Module,
    image: Tensor,
    patch_shape: int | Sequence[int] | None = None,
    *,
    stride: int | Sequence[int] = 4,
    value: float | Sequence[float] | Tensor | str = 0.0,
    target: int | None = None,
    roi: tuple[int, int, int, int] | None = None,
    score: Score = "probability",
    output: Any = None,
    progress: bool = False,
) -> Heatmap:
    """Explain one prediction: which parts of the image does it rest on?

    Args:
        model: What `incrementalize` returned, or a plain model (which is then compiled first).
        image: [C, H, W] or [1, C, H, W], preprocessed as the model expects it.
        patch_shape: Patch size in pixels; default: that of the compiled module, 16 for a plain model.
        stride: Distance between positions, in pixels; one number or (rows, cols).
        value: What the patch shows, in the model's input units: a number, one per channel, a tensor [C, h, w], or
            "mean" for the image's own mean colour.
        target: The class to explain; default: the most probable one.
        roi: (top, left, bottom, right) in pixels: patches stay inside; the map has only these positions.
        score: "probability", "logit", or a function from the model's output to [N] or [N, K].
        output: Which part of a structured output is scored: a key, index or attribute.
        progress: Show a progress bar with an estimate of the time.

    Returns:
        The map. Ctrl-C returns what is done; the missing scores are NaN (`Heatmap.complete`).

    Raises:
        InputError: Bad image, patch, stride, roi, target or score.
    """
    start = time.perf_counter()
    inc = _compiled(model, image, patch_shape)
    patch = _size(patch_shape, inc)
    positions = grid(inc.plan.input_shape[1:], patch, stride, roi)
    flat = positions.reshape(-1, 2)
    began = time.perf_counter()
    scored = select(inc.materialize(image), output)
    activation = inc.activation_of(output)
    base = scores(scored, score, activation)[0].float().cpu().numpy()
    full = time.perf_counter() - began
    chosen = _target(target, base)
    filled = _fill(value, image, patch, inc)
    values = np.full((len(flat), base.size), np.nan, dtype=np.float32)
    with tqdm(total=len(flat), disable=not progress, unit="position", desc=_estimate(inc, len(flat), full)) as bar:
        try:
            for rows, outputs, _ in inc.stream_patches(filled, flat):
                values[rows] = scores(select(inc.restore(outputs), output), score, activation).float().cpu().numpy()
                bar.update(len(rows))
        except KeyboardInterrupt:
            bar.write("interrupted: the map is partial")
    name = score if isinstance(score, str) else getattr(score, "__name__", "score")
    shape = (*positions.shape[:2], base.size)
    height, width = inc.plan.input_shape[1:]
    seconds = time.perf_counter() - start
    return Heatmap(values.reshape(shape), base, chosen, positions, patch, (height, width), name, seconds)


def grid(
    image: Sequence[int],
    patch: Sequence[int],
    stride: int | Sequence[int],
    roi: tuple[int, int, int, int] | None = None,
) -> IntArray:
    """Positions [rows, cols, 2] of a map: every ``stride`` pixels, patches inside the image (and inside ``roi``).

    A map has ``(H - h) // stride + 1`` rows.

    Raises:
        InputError: A stride below 1, or a roi outside the image or smaller than the patch.
    """
    steps = per_axis(stride, 2, "stride")
    top, left, bottom, right = roi if roi is not None and len(roi) == 4 else (0, 0, *image)
    valid = roi is None or (len(roi) == 4 and all(isinstance(edge, Integral) for edge in roi))
    if not (valid and 0 <= top < bottom <= image[0] and 0 <= left < right <= image[1]):
        raise InputError(f"roi is {roi}; allowed is (top, left, bottom, right) inside (0, 0, {image[0]}, {image[1]})")
    if bottom - top < patch[0] or right - left < patch[1]:
        raise InputError(f"roi is {roi}: smaller than the {patch[0]}x{patch[1]} patch")
    rows = np.arange(top, bottom - patch[0] + 1, steps[0])
    cols = np.arange(left, right - patch[1] + 1, steps[1])
    return np.stack(np.meshgrid(rows, cols, indexing="ij"), axis=-1).astype(np.int64)


def _compiled(model: nn.Module, image: Tensor, patch_shape: int | Sequence[int] | None) -> IncrementalModule:
    if not isinstance(image, Tensor) or image.dim() not in (3, 4) or (image.dim() == 4 and len(image) != 1):
        shape = getattr(image, "shape", "") and tuple(image.shape)
        raise InputError(f"the image must be one tensor [C, H, W] or [1, C, H, W], got {type(image).__name__} {shape}")
    if isinstance(model, IncrementalModule):
        return model
    return incrementalize(model, tuple(image.shape[-3:]), 16 if patch_shape is None else patch_shape)


def _size(patch_shape: int | Sequence[int] | None, inc: IncrementalModule) -> tuple[int, int]:
    most = inc.plan.patch_shape
    size = most if patch_shape is None else per_axis(patch_shape, 2, "patch_shape")
    if any(s > m for s, m in zip(size, most, strict=True)):
        raise InputError(f"patch_shape is {size}; this module was compiled for 1 … {most}")
    return size[0], size[1]


def _fill(value: Any, image: Tensor, patch: tuple[int, int], inc: IncrementalModule) -> Tensor:
    """The patch tensor [C, h, w]."""
    channels = inc.plan.input_shape[0]
    if isinstance(value, str):
        if value != "mean":
            raise InputError(f'value is {value!r}; allowed are numbers, one per channel, a tensor [C, h, w] or "mean"')
        value = image.reshape(channels, -1).mean(dim=1)
    tensor = torch.as_tensor(value, dtype=image.dtype, device=image.device)
    if tensor.dim() == 1 and len(tensor) not in (1, channels):
        raise InputError(f"value has {len(tensor)} numbers; the image has {channels} channels")
    if tensor.dim() == 3 and tuple(tensor.shape) != (channels, *patch):
        raise InputError(f"value has shape {tuple(tensor.shape)}; allowed is {(channels, *patch)}")
    if tensor.dim() not in (0, 1, 3):
        raise InputError(
            f"value has shape {tuple(tensor.shape)}; allowed are a number, [{channels}] or {(channels, *patch)}"
        )
    return tensor if tensor.dim() == 3 else tensor.reshape(-1, 1, 1).expand(channels, *patch)


def _target(target: int | None, base: Any) -> int:
    if target is None:
        return int(np.argmax(base))
    if not isinstance(target, Integral) or not 0 <= target < base.size:
        raise InputError(f"target is {target}; the model has classes 0 … {base.size - 1}")
    return int(target)


def _estimate(inc: IncrementalModule, count: int, full: float) -> str:
    """What the map will take, from the time of the full inference just made and the regions' share of its work."""
    return f"estimate {count * full * inc.work_share():.0f} s"
