"""An op and its arguments, resolved once from the op's schema; what rules see instead of graph nodes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class TensorSpec:
    """A tensor argument.

    Attributes:
        shape: Sizes without the batch for a ``batched`` tensor, all sizes for a constant.
        batched: True if its first dimension is the batch.
        reached: True if the patch can change it.
    """

    shape: tuple[int, ...]
    batched: bool
    reached: bool

    @property
    def sizes(self) -> tuple[int, ...]:
        """Sizes of the spatial axes of a batched [C, *sizes] tensor."""
        return self.shape[1:]


@dataclass(frozen=True)
class OpRecord:
    """One call of an op.

    Attributes:
        op: Name with overload, as ``aten.conv2d.default``.
        params: Arguments by the schema's names, defaults filled in; tensors are `TensorSpec`s.
        inputs: The tensor arguments in the order of the schema, lists flattened.
        out: The result, or None if it isn't one tensor with the batch first.
    """

    op: str
    params: Mapping[str, Any]
    inputs: tuple[TensorSpec, ...]
    out: TensorSpec | None

    def param(self, name: str, default: Any = None) -> Any:
        """The argument called ``name``."""
        value = self.params.get(name)
        return default if value is None else value

    def ints(self, name: str, axes: int, default: int | tuple[int, ...] = 1) -> tuple[int, ...]:
        """An argument with one integer per axis; a single one serves all axes, an empty list means ``default``."""
        value = self.params.get(name)
        if value is None or value == [] or value == ():
            value = default
        values = (value,) if isinstance(value, int) else tuple(value)
        return values * axes if len(values) == 1 else values
