"""The front door: `incrementalize`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from numbers import Integral
from typing import TYPE_CHECKING, Any, Literal

from torch import nn
from torch.export import ExportedProgram

from kcompile.accepted import as_module
from kcompile.core.checks import per_axis
from kcompile.core.errors import InputError
from kcompile.runtime.autocast import without_autocast
from kcompile.runtime.budget import check_budget
from kcompile.runtime.folding import Folding
from kcompile.runtime.inputs import Inputs
from kcompile.runtime.module import IncrementalModule
from kcompile.runtime.outputs import Outputs

if TYPE_CHECKING:
    from kcompile.passes.capture import Example


def incrementalize(
    model: nn.Module | ExportedProgram,
    input_shape: Sequence[int] | None = None,
    patch_shape: int | Sequence[int] = (16, 16),
    *,
    example_inputs: Any = None,
    patched_input: Any = 0,
    on_unsupported: Literal["dense", "error"] = "dense",
    memory_budget: int | None = None,
) -> IncrementalModule:
    """Compile a CNN so that patched copies of an image are inferred incrementally.

    Args:
        model: In eval mode; takes one image batch (and what ``example_inputs`` shows) and treats its rows
            independently. Also a program that torch.export made with a dynamic batch; its weights are shared.
        input_shape: (B, C, *S) or (C, *S) of the images; the batch size is ignored. One spatial axis or three of them
            are told by as many numbers in ``patch_shape`` (or by the five of (B, C, D, H, W)).
        patch_shape: Largest patch, in pixels per axis; one number for a square.
        example_inputs: For models with several inputs, in place of ``input_shape``: a tuple of arguments (or a dict of
            arguments by name) that the model runs on. Tensors with as many rows as there are images belong to them row
            by row; others, and all that is no tensor, are the same for all images.
        patched_input: Which of them is the image batch: its index or name, or a path as ``(0, "image")``.
        on_unsupported: What to do with ops without a spatial rule: compute them and what follows in full ("dense"), or
            raise ("error").
        memory_budget: Most bytes that base images (with all that is kept of them) and the queries of one call take
            together; batches are made as small as that asks for. Parameters, and tensors that the caller gives or
            gets, don't count. Default: no limit.

    Returns:
        A module with the model's own call, `materialize` and `forward_patches`.

    Raises:
        InputError: Bad shapes, or the model does not run on such images.
        ModelModeError: The model is in training mode, or its rows influence one another.
        CaptureError: The model can't be traced.
        UnsupportedOpError: Under ``on_unsupported="error"``.
        MemoryBudgetError: The budget is too small for one base image and one query.
    """
    check_budget(memory_budget)  # before the work
    if on_unsupported not in ("dense", "error"):
        raise InputError(f'on_unsupported is {on_unsupported!r}; allowed are "dense" and "error"')
    from kcompile.example_call import example_of  # here, so that a loaded module needs no compiler

    model = as_module(model)
    example = None if example_inputs is None else example_of(model, example_inputs, patched_input)
    shape = input_shape if example is None else tuple(example.images.shape)
    if shape is None:
        raise InputError("input_shape is missing: (B, C, H, W) of the images; or give example_inputs")
    image = image_shape(shape, len(patch_shape) if isinstance(patch_shape, Sequence) else 0)
    if example is not None and example.images.dim() != len(image) + 1:
        raise InputError(f"the images of example_inputs have shape {shape}; allowed is a batch [B, C, *S] of them")
    if example is not None and input_shape is not None and image_shape(input_shape, len(image) - 1) != image:
        raise InputError(f"input_shape is {tuple(input_shape)}, but the images of example_inputs are {shape}")
    inc = _compile(image, patch_size(patch_shape, image), on_unsupported, example, model)
    inc.memory_budget = memory_budget
    return inc


def _compile(
    image: tuple[int, ...], patch: tuple[int, ...], on_unsupported: str, given: Example | None, model: nn.Module
) -> IncrementalModule:
    from kcompile.example_call import example_batch, like_model
    from kcompile.passes.capture import Example, check_mode
    from kcompile.passes.pipeline import compile_model
    from kcompile.row_check import check_rows

    check_mode(model)
    example = Example.of(example_batch(model, image)) if given is None else given
    with without_autocast(example.images.device):
        check_rows(model, example)
        done = compile_model(model, example, patch, on_unsupported=on_unsupported)
    graphs = (done.materialize, done.front, done.tail)
    inputs = Inputs.of(example.leaves, example.spec, example.image, example.batched)
    outputs = Outputs(done.outputs, done.out_spec, done.activations)
    inc = IncrementalModule(model, done.plan, graphs, inputs, outputs, example.images, Folding(done.scales))
    inc.watch(done.unread)
    inc.switches_autocast = done.switches_autocast
    follows = given is not None and given.images.dtype == like_model(given, model).images.dtype
    inc.recompile = partial(_compile_again if follows else _compile, image, patch, on_unsupported, given)
    return inc


def _compile_again(
    image: tuple[int, ...], patch: tuple[int, ...], on_unsupported: str, given: Example | None, model: nn.Module
) -> IncrementalModule:
    """Compile a model that was cast or moved since its example was given."""
    from kcompile.example_call import like_model

    assert given is not None
    return _compile(image, patch, on_unsupported, like_model(given, model), model)


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
        last = image[-1] in (1, 3, 4) and image[0] not in (1, 3, 4)
        hint = "; if the channels stand last, put them first: image.movedim(-1, -3)" if last else ""
        raise InputError(
            f"patch_shape is {patch}; allowed are 1 … {image[1:]} pixels per axis of a {image[1:]} image{hint}"
        )
    return patch
