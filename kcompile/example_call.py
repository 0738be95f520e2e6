"""The call that a model is traced with: images alone, or all inputs of a model with several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from kcompile.core.errors import InputError
from kcompile.passes.capture import Example


def example_batch(model: nn.Module, image: tuple[int, ...]) -> Tensor:
    """A batch of two noise images of the model's own type and device."""
    weight = next((p for p in [*model.parameters(), *model.buffers()] if p.is_floating_point()), torch.empty(0))
    generator = torch.Generator().manual_seed(0)
    return torch.rand(2, *image, generator=generator).to(dtype=weight.dtype, device=weight.device)


def example_of(example_inputs: Any, patched_input: Any) -> Example:
    """A call with two rows or more, from the user's example.

    Args:
        example_inputs: The model's arguments: a tuple, or a dict for arguments by name.
        patched_input: Which of them is the image batch: its index or name, or a path into a structured argument, as
            ``(0, "image")``.

    Raises:
        InputError: No arguments, or ``patched_input`` is no image batch among them.
    """
    if isinstance(example_inputs, Tensor):
        example_inputs = (example_inputs,)
    if isinstance(example_inputs, Mapping):
        args, kwargs = (), dict(sorted(example_inputs.items()))
    elif isinstance(example_inputs, Sequence) and not isinstance(example_inputs, str):
        args, kwargs = tuple(example_inputs), {}
    else:
        raise InputError(
            f"example_inputs is a {type(example_inputs).__name__}; allowed are a tuple of the model's arguments, or a "
            "dict of arguments by name"
        )
    leaves, spec = pytree.tree_flatten((args, kwargs))
    image = _find(args, kwargs, patched_input)
    index = next(i for i, leaf in enumerate(leaves) if leaf is image)
    rows = len(image)
    batched = frozenset(
        i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and leaf.dim() and len(leaf) == rows
    )
    fresh = [_two_rows(leaf) if i in batched else _copy(leaf) for i, leaf in enumerate(leaves)]
    return Example(tuple(fresh), spec, index, batched)


def _two_rows(leaf: Tensor) -> Tensor:
    """The first two rows, or the only one twice: tracing takes a batch of one for a constant."""
    return (leaf if len(leaf) > 1 else leaf.expand(2, *leaf.shape[1:]))[:2].detach().clone()


def _copy(leaf: Any) -> Any:
    """A tensor of its own: two arguments may be one."""
    return leaf.detach().clone() if isinstance(leaf, Tensor) else leaf


def _find(args: tuple[Any, ...], kwargs: dict[str, Any], patched_input: Any) -> Tensor:
    path = patched_input if isinstance(patched_input, tuple) else (patched_input,)
    value: Any = args if path and isinstance(path[0], int) else kwargs
    try:
        for key in path:
            value = value[key]
    except (KeyError, IndexError, TypeError):
        value = None
    if not isinstance(value, Tensor) or value.dim() < 3 or not value.is_floating_point():
        names = [*range(len(args)), *kwargs]
        found = "is not among them" if value is None else f"is {_described(value)}"
        raise InputError(
            f"patched_input={patched_input!r} {found}; allowed is which of example_inputs {names} is the batch of "
            "images [B, C, *S], of floats"
        )
    return value


def _described(value: Any) -> str:
    return f"a tensor {tuple(value.shape)} of {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
