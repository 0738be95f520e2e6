"""Ops that compute each cell from the same cell of their inputs."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from kcompile.core.axis_map import AxisMap, Everything, Identity
from kcompile.passes.record import OpRecord, TensorSpec
from kcompile.passes.rules.registry import Refusal, Spatial, rule


def _names() -> Iterator[str]:
    """Every functional op of ATen that PyTorch itself marks as pointwise and that throws no dice."""
    for name in dict.fromkeys([*dir(torch.ops.aten), *_ALIASES]):
        packet = getattr(torch.ops.aten, name)
        for overload in packet.overloads() if hasattr(packet, "overloads") else ():
            op = getattr(packet, overload)
            tags, schema = op.tags, op._schema
            if str(op) == "aten.clone.default":  # the copies that are left are for ops that look at memory
                continue
            if (
                (torch.Tag.pointwise not in tags and name not in _ALIASES)
                or torch.Tag.nondeterministic_seeded in tags
                or schema.is_mutable
            ):
                continue
            if len(schema.returns) == 1 and str(schema.returns[0].type) == "Tensor":
                yield str(op)


# Pointwise, though not marked: compositions of marked ones, and a change of type.
_UNMARKED = (
    "aten.relu6.default", "aten.hardswish.default", "aten.mish.default", "aten.selu.default", "aten.celu.default",
    "aten._to_copy.default", "aten.to.dtype", "aten.log_sigmoid.default",
    "aten.square.default", "aten.rsub.Scalar", "aten.true_divide.Tensor",
    "aten.nan_to_num.default", "aten.masked_fill.Scalar", "aten.masked_fill.Tensor", "aten.type_as.default",
    "aten.copy.default", "aten.rrelu.default", "aten.hardshrink.default", "aten.softshrink.default",
)  # fmt: skip
# Other names of marked ones, and operators, with all their overloads.
_ALIASES = (
    "where", "floor_divide", "float_power", "multiply", "subtract", "divide", "true_divide", "absolute", "negative",
    "__and__", "__or__", "__xor__", "less", "less_equal", "greater", "greater_equal", "not_equal", "clip", "fix",
    "arctan", "arcsin", "arccos", "arctan2",
)  # fmt: skip


@rule(*dict.fromkeys([*_names(), *_UNMARKED]))
def pointwise(record: OpRecord) -> Spatial | Refusal:
    """The region of the result is the hull of the inputs' regions (Krypton section 3.3, eq. 22).

    Inputs are aligned from the right, as broadcasting does. An input of one cell along an axis is read by all cells.
    """
    assert record.out is not None
    out, axes = record.out, _axes(record)
    if axes is None:
        return Refusal("it joins tensors that are laid out differently")
    if any(spec.batched and spec.rank != out.rank for spec in record.inputs):
        return Refusal("it broadcasts a tensor without spatial axes over the map")
    sizes = tuple(out.size(axis) for axis in axes)
    return Spatial(tuple(_maps(spec, out.rank, axes, sizes) for spec in record.inputs), axes=axes)


def _axes(record: OpRecord) -> tuple[int, ...] | None:
    """The axes that all reached inputs share, or None."""
    found = {spec.axes for spec in record.inputs if spec.reached}
    return next(iter(found)) if len(found) == 1 else None


def _maps(spec: TensorSpec, rank: int, axes: tuple[int, ...], sizes: tuple[int, ...]) -> tuple[AxisMap, ...] | None:
    """Axis maps of one input, or None for a constant that is the same for all cells."""
    own = (1,) * (rank - spec.rank) + ((1,) if spec.batched else ()) + spec.shape  # as broadcast, batch first
    mine = tuple(own[axis] for axis in axes)
    if not spec.batched and all(size == 1 for size in mine):
        return None
    return tuple(Identity(out) if size == out else Everything(size, out) for size, out in zip(mine, sizes, strict=True))
