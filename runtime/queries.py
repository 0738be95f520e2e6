"""Queries: checks of images and tensors, with errors that say what is allowed."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kcompile.core.errors import InputError
from kcompile.core.plan import Plan

WIDEST = 1e3  # 1e4 times its neighbours, a value was seen to cost 2e-4 of the output's scale
SAMPLE = 1 << 16  # values that tell an image's usual size


def is_finite(values: Any) -> bool:
    """True if no value is NaN or infinite."""
    tensor = torch.as_tensor(values)
    if tensor.is_floating_point() and math.isfinite(float(tensor.sum())):
        return True  # a sum is some 40 times faster, and needs no memory; finite values may overflow in it
    return bool(torch.isfinite(tensor).all())


def magnitude(values: Any) -> float:
    """The largest absolute value; infinite if one is NaN or infinite."""
    tensor = torch.as_tensor(values)
    if not tensor.numel():
        return 0.0
    largest = max(abs(float(extreme)) for extreme in torch.aminmax(tensor))
    return math.inf if math.isnan(largest) else largest


def widest(images: Tensor) -> float:
    """Larger values than this are out of all proportion to the images': `WIDEST` times the median of what isn't 0.

    One of them costs its neighbours in a tile of minimal filtering their last digits, which a direct convolution does
    not mix: behind bounded ops (tanh, a norm) that can show.
    """
    values = images.reshape(-1)
    some = values[:: -(-len(values) // SAMPLE) or 1].abs()
    some = some[some > 0]
    return WIDEST * (float(some.float().median()) if len(some) else 1.0)


def check_images(images: Any, plan: Plan, like: Tensor) -> Tensor:
    """An image [C, *S] or batch [B, C, *S] as a batch.

    Raises:
        InputError: Wrong rank, size, type or device.
    """
    if not isinstance(images, Tensor):
        hint = ": torch.from_numpy(image) makes one" if isinstance(images, np.ndarray) else ""
        raise InputError(f"the image must be a torch.Tensor, got {type(images).__name__}{hint}")
    batch = images.unsqueeze(0) if images.dim() == len(plan.input_shape) else images
    if tuple(batch.shape[1:]) != plan.input_shape or not len(batch):
        raise InputError(
            f"the image has shape {tuple(images.shape)}; this module was compiled for {plan.input_shape} "
            f"(or a batch [B, {', '.join(map(str, plan.input_shape))}]){_last_channels(images, plan)}"
        )
    check_kind(batch, "the image", like)
    if not bool(torch.isfinite(batch).all()):
        warnings.warn("the image holds NaN or infinite values; they spread to every score", stacklevel=3)
    return batch


def _last_channels(images: Tensor, plan: Plan) -> str:
    """A hint for pictures as NumPy and PIL have them."""
    channels, *sizes = plan.input_shape
    return ": put the channels first, image.movedim(-1, -3)" if images.shape[-3:] == (*sizes, channels) else ""


def check_kind(value: Tensor, what: str, like: Tensor, dtype: torch.dtype | None = None) -> None:
    """Check type and device of a tensor against the model's, or against a type of its own.

    Raises:
        InputError: It is of another type or on another device.
    """
    wanted = like.dtype if dtype is None else dtype
    if value.dtype != wanted:
        hint = " (scale pixels to floats first)" if dtype is None and not value.is_floating_point() else ""
        raise InputError(f"{what} has type {value.dtype}; the model computes in {wanted}{hint}")
    if value.device != like.device:
        raise InputError(f"{what} is on {value.device}; the module is on {like.device}")


def channels_last(batch: Tensor) -> Tensor:
    """A copy of images, which the user can't write to."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return batch.clone(memory_format=formats.get(batch.dim(), torch.contiguous_format))
