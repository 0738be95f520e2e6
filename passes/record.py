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
        axes: Of a reached tensor with a region: the dimensions of its spatial axes, counting the batch as 0, in the
            image's order: (2, 3) for [B, C, H, W], (1, 2) for [B, H, W, C]. The others hold channels.
        dtype: As ``float32``.
    """

    shape: tuple[int, ...]
    batched: bool
    reached: bool
    axes: tuple[int, ...] = ()
    dtype: str = "float32"

    @property
    def rank(self) -> int:
        """Number of dimensions, with the batch."""
        return len(self.shape) + self.batched

    def size(self, dim: int) -> int:
        """Cells of one dimension of a batched tensor, counting the batch as 0."""
        return self.shape[dim - 1]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Cells per spatial axis."""
        return tuple(self.size(axis) for axis in self.axes)


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

    @property
    def image(self) -> TensorSpec:
        """The first tensor argument that the patch can change."""
        return next(spec for spec in self.inputs if spec.reached)

    def dims(self, name: str, rank: int) -> set[int]:
        """An argument that names dimensions, as non-negative numbers; all of them if it names none."""
        value = self.params.get(name)
        given = range(rank) if value is None or value == [] else [value] if isinstance(value, int) else value
        return {dim % rank for dim in given}

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
