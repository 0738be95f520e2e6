"""The front door: `incrementalize`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from numbers import Integral
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from kcompile.core.errors import InputError, ModelModeError
from kcompile.passes.capture import check_mode
from kcompile.passes.pipeline import compile_model
from kcompile.runtime.module import IncrementalModule


def incrementalize(
    model: nn.Module,
    input_shape: Sequence[int],
    patch_shape: int | Sequence[int] = (16, 16),
    *,
    on_unsupported: Literal["dense", "error"] = "dense",
) -> IncrementalModule:
    """Compile a CNN so that patched copies of an image are inferred incrementally.

    Args:
        model: In eval mode; takes one image batch and treats its rows independently.
        input_shape: (B, C, *S) or (C, *S) of the images; the batch size is ignored. One spatial axis or three of them
            are told by as many numbers in ``patch_shape`` (or by the five of (B, C, D, H, W)).
        patch_shape: Largest patch, in pixels per axis; one number for a square.
        on_unsupported: What to do with ops without a spatial rule: compute them and what follows in full ("dense"), or
            raise ("error").

    Returns:
        A module with the model's own call, `materialize` and `forward_patches`.

    Raises:
        InputError: Bad shapes, or the model does not run on such images.
        ModelModeError: The model is in training mode, or its rows influence one another.
        CaptureError: The model can't be traced.
        UnsupportedOpError: Under ``on_unsupported="error"``.
    """
    if on_unsupported not in ("dense", "error"):
        raise InputError(f'on_unsupported is {on_unsupported!r}; allowed are "dense" and "error"')
    if not isinstance(model, nn.Module):
        raise InputError(f"the model must be a torch.nn.Module, got {type(model).__name__}")
    image = image_shape(input_shape, len(patch_shape) if isinstance(patch_shape, Sequence) else 0)
    patch = patch_size(patch_shape, image)
    return _compile(image, patch, on_unsupported, model)


def _compile(
    image: tuple[int, ...], patch: tuple[int, ...], on_unsupported: str, model: nn.Module
) -> IncrementalModule:
    check_mode(model)
    example = example_batch(model, image)
    _check_rows(model, example)
    done = compile_model(model, example, patch, on_unsupported=on_unsupported)
    graphs = (done.materialize, done.front, done.tail)
    inc = IncrementalModule(model, done.plan, graphs, done.outputs, done.out_spec, done.activations, example)
    inc.recompile = partial(_compile, image, patch, on_unsupported)
    return inc


def image_shape(input_shape: Sequence[int], axes: int = 0) -> tuple[int, ...]:
    """(C, *S) of an input shape with or without batch; InputError otherwise.

    Args:
        input_shape: (B, C, *S) or (C, *S).
        axes: Number of spatial axes, 1 to 3; 0 where the patch does not tell: 2, or 3 for an input of 5 sizes.
    """
    shape: tuple[Any, ...] = tuple(input_shape) if hasattr(input_shape, "__iter__") else (input_shape,)
    axes = axes if 1 <= axes <= 3 else 3 if len(shape) == 5 else 2
    image = shape[1:] if len(shape) == axes + 2 else shape
    if len(image) != axes + 1 or not all(isinstance(size, Integral) and int(size) >= 1 for size in image):
        names = ("L", "H, W", "D, H, W")[axes - 1]
        raise InputError(
            f"input_shape is {shape}; allowed are (B, C, {names}) and (C, {names}) with sizes of at least 1"
        )
    return tuple(int(size) for size in image)


def patch_size(patch_shape: int | Sequence[int], image: tuple[int, ...]) -> tuple[int, ...]:
    """Patch size per axis, in pixels; InputError if it does not fit the (C, H, W) image."""
    patch = per_axis(patch_shape, len(image) - 1, "patch_shape")
    if any(p > s for p, s in zip(patch, image[1:], strict=True)):
        raise InputError(f"patch_shape is {patch}; allowed are 1 … {image[1:]} pixels per axis of a {image[1:]} image")
    return patch


def per_axis(value: int | Sequence[int], axes: int, what: str) -> tuple[int, ...]:
    """One number for all axes, or one for each, as integers; InputError unless all are at least 1."""
    values = tuple(value) if hasattr(value, "__iter__") else (value,) * axes
    if len(values) != axes or not all(isinstance(v, Integral) and int(v) >= 1 for v in values):
        raise InputError(f"{what} is {value}; allowed are integers of at least 1, one or one per axis (rows, cols)")
    return tuple(int(v) for v in values)


def example_batch(model: nn.Module, image: tuple[int, ...]) -> Tensor:
    """A batch of two noise images of the model's own type and device."""
    weight = next((p for p in [*model.parameters(), *model.buffers()] if p.is_floating_point()), torch.empty(0))
    generator = torch.Generator().manual_seed(0)
    return torch.rand(2, *image, generator=generator).to(dtype=weight.dtype, device=weight.device)


def _check_rows(model: nn.Module, example: Tensor) -> None:
    """Refuse models in which one row of a batch changes another: NaN in one row must leave the other clean."""
    for bad in (0, 1):
        probe = example.clone()
        probe[bad] = float("nan")
        try:
            with torch.no_grad():
                leaves = tree_leaves(model(probe))
        except Exception:  # capture says where a model looks at its values, unless it doesn't run at all
            _check_runs(model, example)
            return
        for leaf in leaves:
            if not isinstance(leaf, Tensor) or not leaf.is_floating_point():
                continue
            if leaf.dim() and leaf.shape[0] == 2:
                if bool(leaf[1 - bad].isnan().any()) and _rows_mix(model, example, 1 - bad):
                    raise ModelModeError(
                        "one row of a batch changes another (batch statistics, a norm over the batch, …): "
                        "patched copies cannot be inferred apart from each other"
                    )
            elif bool(leaf.isnan().any()):
                raise ModelModeError(
                    f"an output of shape {tuple(leaf.shape)} depends on the images, but has no row for each of them"
                )


@torch.no_grad()
def _rows_mix(model: nn.Module, example: Tensor, row: int) -> bool:
    """True if finite changes of the other row change one, too: kernels may let NaN alone leak (0 * NaN)."""
    outputs = []
    for factor in (1.0, 3.0):
        probe = example.clone()
        probe[1 - row] = probe[1 - row].flip(-1) * factor + (factor - 1.0)
        leaves = [leaf for leaf in tree_leaves(model(probe)) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
        outputs.append(torch.cat([leaf[row].double().reshape(-1) for leaf in leaves if leaf.dim() and len(leaf) == 2]))
    one, other = outputs
    close = torch.isclose(one, other, rtol=1e-5, atol=1e-6 * float(one.nan_to_num().abs().max()), equal_nan=True)
    return not bool(close.all())


@torch.no_grad()
def _check_runs(model: nn.Module, example: Tensor) -> None:
    try:
        model(example)
    except Exception as error:
        raise InputError(f"the model does not run on images of shape {tuple(example.shape[1:])}: {error}") from error
