"""The call that a model is traced with: images alone, or all inputs of a model with several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from kcompile.core.errors import InputError
from kcompile.passes.capture import Example
from kcompile.row_check import has_rows
from kcompile.runtime.inputs import flatten


def example_batch(model: nn.Module, image: tuple[int, ...]) -> Tensor:
    """A batch of two noise images of the model's own type and device."""
    weight = next((p for p in [*model.parameters(), *model.buffers()] if p.is_floating_point()), torch.empty(0))
    generator = torch.Generator().manual_seed(0)
    return torch.rand(2, *image, generator=generator).to(dtype=weight.dtype, device=weight.device)


def example_of(model: nn.Module, example_inputs: Any, patched_input: Any) -> Example:
    """A call with two rows, from the user's example.

    Args:
        model: Shows which tensors have a row for each image: what is in one row of them stays out of other rows'
            outputs.
        example_inputs: The model's arguments: a tuple, or a dict for arguments by name.
        patched_input: Which of them is the image batch: its index or name, or a path into a structured argument, as
            ``(0, "image")``.

    Raises:
        InputError: No arguments, or ``patched_input`` is no image batch among them.
    """
    if isinstance(example_inputs, Tensor):
        example_inputs = (example_inputs,)
    if isinstance(example_inputs, Mapping):
        args, kwargs = (), dict(example_inputs)
    elif isinstance(example_inputs, Sequence) and not isinstance(example_inputs, str):
        args, kwargs = tuple(example_inputs), {}
    else:
        raise InputError(
            f"example_inputs is a {type(example_inputs).__name__}; allowed are a tuple of the model's arguments, or a "
            "dict of arguments by name"
        )
    leaves, spec = flatten(args, kwargs)
    leaves = [leaf.detach().clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves]  # two may be one tensor
    own_args, own_kwargs = pytree.tree_unflatten(leaves, spec)
    image = _find(own_args, own_kwargs, patched_input)
    index = next(i for i, leaf in enumerate(leaves) if leaf is image)
    same = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and leaf.dim() and len(leaf) == len(image)]
    doubled = [_two_rows(leaf) if i in same else leaf for i, leaf in enumerate(leaves)]
    example = Example(tuple(doubled), spec, index, frozenset(same))
    for other in same:  # as many rows as images may be chance
        if other != index and not has_rows(model, example, other):
            kept = (*example.leaves[:other], leaves[other], *example.leaves[other + 1 :])
            example = replace(example, leaves=kept, batched=example.batched - {other})
    return example


def like_model(example: Example, model: nn.Module) -> Example:
    """The example in the model's type and on its device: it may have been cast or moved since."""
    weight = next((p for p in model.parameters() if p.is_floating_point()), None)
    if weight is None:
        return example
    old = example.images.dtype

    def cast(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        return leaf.to(weight.device, weight.dtype if leaf.dtype == old else leaf.dtype)

    return replace(example, leaves=tuple(map(cast, example.leaves)))


def _two_rows(leaf: Tensor) -> Tensor:
    """The first two rows, or the only one twice: tracing takes a batch of one for a constant."""
    return (leaf if len(leaf) > 1 else leaf.expand(2, *leaf.shape[1:]))[:2].detach().clone()


def _find(args: tuple[Any, ...], kwargs: dict[str, Any], patched_input: Any) -> Tensor:
    path = patched_input if isinstance(patched_input, tuple) else (patched_input,)
    value: Any = args if path and isinstance(path[0], int) else kwargs
    try:
        for key in path:
            named = isinstance(key, str) and not isinstance(value, Mapping)
            value = getattr(value, key) if named else value[key]
    except (KeyError, IndexError, TypeError, AttributeError):
        value = None
    if not isinstance(value, Tensor) or value.dim() < 3 or not len(value) or not value.is_floating_point():
        names = [*range(len(args)), *kwargs]
        found = "is not among them" if value is None else f"is {_described(value)}"
        raise InputError(
            f"patched_input={patched_input!r} {found}; allowed is which of example_inputs {names} is the batch of "
            "images [B, C, *S], of floats"
        )
    return value


def _described(value: Any) -> str:
    return f"a tensor {tuple(value.shape)} of {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
