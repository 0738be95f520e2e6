"""Ops that compute each cell from the same cell of their inputs."""

from __future__ import annotations

from kcompile.core.axis_map import AxisMap, Everything, Identity
from kcompile.passes.record import OpRecord, TensorSpec
from kcompile.passes.rules.registry import Refusal, Spatial, rule

UNARY = (
    "relu", "relu6", "sigmoid", "tanh", "silu", "gelu", "hardtanh", "hardsigmoid", "hardswish", "leaky_relu", "elu",
    "mish", "softplus", "abs", "neg", "exp", "log", "sqrt", "rsqrt", "square", "clamp", "clamp_min", "clamp_max",
    "reciprocal",
)  # fmt: skip
BINARY = (
    "add.Tensor", "sub.Tensor", "mul.Tensor", "div.Tensor", "add.Scalar", "sub.Scalar", "mul.Scalar", "div.Scalar",
    "pow.Tensor_Scalar", "maximum.default", "minimum.default", "addcmul.default",
)  # fmt: skip


@rule(*(f"aten.{name}.default" for name in UNARY), *(f"aten.{name}" for name in BINARY))
def pointwise(record: OpRecord) -> Spatial | Refusal:
    """The region of the result is the hull of the inputs' regions (Krypton section 3.3, eq. 22).

    Inputs are aligned from the right, as broadcasting does. An input of one cell along an axis is read by all cells.
    """
    assert record.out is not None
    sizes = record.out.sizes
    if not sizes:
        return Refusal("its tensors have no spatial axes")
    if any(spec.batched and len(spec.sizes) != len(sizes) for spec in record.inputs):
        return Refusal("it broadcasts a tensor without spatial axes over the map")
    return Spatial(tuple(_maps(spec, sizes) for spec in record.inputs))


def _maps(spec: TensorSpec, sizes: tuple[int, ...]) -> tuple[AxisMap, ...] | None:
    """Axis maps of one input, or None for a constant that is the same for all cells."""
    mine = spec.sizes if spec.batched else spec.shape[-len(sizes) :]
    mine = (1,) * (len(sizes) - len(mine)) + mine
    if not spec.batched and all(size == 1 for size in mine):
        return None
    return tuple(Identity(out) if size == out else Everything(size, out) for size, out in zip(mine, sizes, strict=True))
