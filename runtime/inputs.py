"""Inputs: how the arguments of a call become the tensors that the graphs take, the image batch first."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from kcompile.core.errors import InputError
from kcompile.core.plan import GIVEN, Plan
from kcompile.runtime.queries import check_images, check_kind


@dataclass(frozen=True)
class TensorInput:
    """A tensor argument; ``rows`` is True where it has one for each image (which ``shape`` leaves out)."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    rows: bool


@dataclass(frozen=True)
class FixedInput:
    """An argument that is no tensor: tracing has made a constant of it."""

    name: str
    value: Any


Leaf: TypeAlias = TensorInput | FixedInput


@dataclass(frozen=True)
class Given:
    """The tensors of one call.

    Attributes:
        rows: The image batch [B, C, *S], then the other tensors with rows [B, ...], in the order of the graphs' inputs.
        whole: Tensors without rows, by their index among the call's flat arguments.
    """

    rows: tuple[Tensor, ...]
    whole: Mapping[int, Tensor]


@dataclass(frozen=True)
class Inputs:
    """What a compiled model is called with.

    Attributes:
        spec: How the flat arguments form (args, kwargs).
        leaves: The flat arguments; that of the image among them.
        image: Index of the image batch.
    """

    spec: pytree.TreeSpec
    leaves: tuple[Leaf, ...]
    image: int

    @staticmethod
    def of(leaves: Sequence[Any], spec: pytree.TreeSpec, image: int, batched: frozenset[int]) -> Inputs:
        """The inputs of a call as it was traced; ``batched`` are the tensors with rows."""
        names = [name(path) for path, _ in pytree.tree_leaves_with_path(pytree.tree_unflatten(list(leaves), spec))]
        kinds: list[Leaf] = []
        for index, (value, named) in enumerate(zip(leaves, names, strict=True)):
            if isinstance(value, Tensor):
                rows = index in batched
                kinds.append(TensorInput(named, tuple(value.shape[rows:]), value.dtype, rows))
            else:
                kinds.append(FixedInput(named, value))
        return Inputs(spec, tuple(kinds), image)

    @property
    def single(self) -> bool:
        """True if the image is the only argument."""
        return len(self.leaves) == 1

    def rows(self, plan: Plan, like: Tensor) -> tuple[Tensor, ...]:
        """One row of the images and of each other input with rows, in the order of `Given.rows`; without values."""
        others = [leaf for i, leaf in enumerate(self.leaves) if i != self.image and isinstance(leaf, TensorInput)]
        return (
            like.new_empty((1, *plan.input_shape)),
            *(like.new_empty((1, *leaf.shape), dtype=leaf.dtype) for leaf in others if leaf.rows),
        )

    def read(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], plan: Plan, like: Tensor) -> Given:
        """The tensors of a call.

        Raises:
            InputError: Other arguments than those that the model was compiled for.
        """
        flat, spec = flatten(args, kwargs)
        if self.single and len(flat) and len(args) + len(kwargs) == 1 and set(kwargs) <= {"image"}:
            flat, spec = [*args, *kwargs.values()], self.spec  # so that a list of images is told what an image is
        if not alike(spec, self.spec):
            names = ", ".join(leaf.name for leaf in self.leaves)
            raise InputError(
                f"{len(flat)} inputs are given, or in another structure than that of compilation; allowed are {names}, "
                "by position or by name as in example_inputs"
            )
        images = check_images(flat[self.image], plan, like)
        lone = flat[self.image].dim() == len(plan.input_shape)
        rows, whole = [images], {}
        for index, (leaf, value) in enumerate(zip(self.leaves, flat, strict=True)):
            if isinstance(leaf, FixedInput):
                check_fixed(leaf, value)
            elif index != self.image and leaf.rows:
                rows.append(_check_rows(leaf, value, len(images), lone, like))
            elif index != self.image:
                whole[index] = _check_shape(leaf, value, like)
        return Given(tuple(rows), whole)

    def call(self, model: Callable[..., Any], given: Given) -> Any:
        """The model's own call with these tensors."""
        rows = iter(given.rows[1:])
        flat: list[Any] = []
        for index, leaf in enumerate(self.leaves):
            if isinstance(leaf, FixedInput):
                flat.append(leaf.value)
            elif index == self.image:
                flat.append(given.rows[0])
            else:
                flat.append(next(rows) if leaf.rows else given.whole[index])
        args, kwargs = pytree.tree_unflatten(flat, self.spec)
        return model(*args, **kwargs)

    def fill(self, graphs: Sequence[nn.Module], given: Given) -> bool:
        """Write the tensors without rows where the graphs read them; True if any changed."""
        changed = False
        for index, value in given.whole.items():
            for graph in graphs:
                buffer = getattr(graph, f"{GIVEN}{index}", None)
                if buffer is not None and not torch.equal(buffer, value):
                    buffer.copy_(value)
                    changed = True
        return changed


def flatten(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[list[Any], pytree.TreeSpec]:
    """A call's flat arguments and their structure; the order of the keys in a dict doesn't count."""
    return pytree.tree_flatten((_sorted(args), _sorted(dict(kwargs))))


def _sorted(value: Any) -> Any:
    if type(value) is dict:
        return {key: _sorted(value[key]) for key in sorted(value, key=str)}
    return type(value)(map(_sorted, value)) if type(value) in (list, tuple) else value


def name(path: Sequence[Any]) -> str:
    """An argument as the user writes it: ``input 1`` or ``mask``, then keys and indices."""
    keys = [getattr(key, "key", getattr(key, "idx", None)) for key in path]
    first = f"input {keys[1]}" if keys[0] == 0 else str(keys[1])
    rest = zip(path[2:], keys[2:], strict=True)
    return first + "".join(f".{key.name}" if hasattr(key, "name") else f"[{index!r}]" for key, index in rest)


def alike(one: pytree.TreeSpec, other: pytree.TreeSpec) -> bool:
    """True for equal structures; a class that stands in for another (in a module from a file) equals that."""
    if one == other:
        return True
    same = one.num_nodes == other.num_nodes and one.num_children == other.num_children
    return (
        same
        and _kind(one.type) == _kind(other.type)
        and _kind(one.context) == _kind(other.context)
        and all(alike(one.child(i), other.child(i)) for i in range(one.num_children))
    )


def _kind(value: Any) -> Any:
    """What a class is called and holds, or the value itself."""
    return (value.__name__, getattr(value, "_fields", None)) if isinstance(value, type) else value


def check_fixed(leaf: FixedInput, value: Any) -> None:
    """Refuse another value of an argument than that of compilation."""
    if isinstance(value, Tensor) or not (value is leaf.value or value == leaf.value):
        raise InputError(
            f"{leaf.name} is {value!r}, but was {leaf.value!r} at compilation, which made a constant of it: call "
            "kcompile.incrementalize again for another value"
        )


def _check_rows(leaf: TensorInput, value: Any, rows: int, lone: bool, like: Tensor) -> Tensor:
    """A tensor with a row for each image; that of a lone image may come without the batch dimension."""
    if lone and isinstance(value, Tensor) and value.dim() == len(leaf.shape):
        value = value.unsqueeze(0)
    if not isinstance(value, Tensor) or tuple(value.shape) != (rows, *leaf.shape):
        got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise InputError(f"{leaf.name} has shape {got}; allowed is {(rows, *leaf.shape)}, a row for each image")
    check_kind(value, leaf.name, like, leaf.dtype)
    return value


def _check_shape(leaf: TensorInput, value: Any, like: Tensor) -> Tensor:
    if not isinstance(value, Tensor) or tuple(value.shape) != leaf.shape:
        got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise InputError(f"{leaf.name} has shape {got}; allowed is {leaf.shape}")
    check_kind(value, leaf.name, like, leaf.dtype)
    return value
