"""The frozen result of compilation: complete data, printable and savable, without torch."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from kcompile.core import axis_map, region
from kcompile.core.axis_map import AxisMap
from kcompile.core.region import RegionDef

FORMAT = 3
# Reading or writing one value costs about as much as this many multiply-adds of a convolution (measured on a CPU with
# 512-bit vectors: 100 GFLOP/s against 10 GB/s per thread).
MACS_PER_VALUE = 10.0
# A tensor that is given beside the images and has no row for each of them is a buffer of the graphs with this prefix.
GIVEN = "kcompile_given_"
RAW_PATCH = -1  # as `Read.patch`: the user's patches at their positions, before they are cropped to the image


class Placement(StrEnum):
    """How one node runs for a batch of queries."""

    INCREMENTAL = "incremental"  # only the region, on windows of base and patch
    DENSE = "dense"  # the whole tensor for every query
    REUSE = "reuse"  # the patch cannot reach it: the base's value serves all queries


@dataclass(frozen=True)
class BaseTensor:
    """A tensor of the base image that queries read, kept channels-last and padded once.

    ``shape`` leaves out the batch; ``axes`` are the dimensions of its spatial axes, counting the batch as 0: (2, 3) for
    [B, C, H, W], (1, 2) for [B, H, W, C]. The others are channels. ``padding`` is the cells (low, high) added per axis,
    ``fill`` their value. A constant (``batched`` false) is the same for all base images.
    """

    name: str
    source: str
    shape: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    fill: float
    batched: bool
    axes: tuple[int, ...]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Cells per spatial axis, without padding."""
        return tuple(self.shape[axis - 1] for axis in self.axes)


@dataclass(frozen=True)
class Read:
    """One gather, and superimpose if ``patch`` is set, at the boundary of an op.

    The op computes region ``target``; through ``maps`` this asks for a window of ``base``. ``patch`` is the region of
    the tensor that is laid over the window. A read without a target takes the whole tensor, for a dense op. ``placed``
    is set for ops that must be told where the window and the wanted box begin. ``native`` is the padding per axis that
    the op adds itself where the box spans the whole axis (empty for ops that never do).
    """

    name: str
    base: str
    patch: int | None
    target: int | None
    maps: tuple[AxisMap, ...]
    placed: bool = False
    native: tuple[int, ...] = ()

    @property
    def maps_are_identities(self) -> bool:
        """True if the window is the op's own box."""
        point = (axis_map.Sliding(1, 1, 0, 1, m.in_size, m.in_size) for m in self.maps)  # a 1x1 convolution's
        return all(isinstance(m, axis_map.Identity) or m == one for m, one in zip(self.maps, point, strict=True))


@dataclass(frozen=True)
class Layer:
    """One node of the canonical graph and what was decided for it.

    ``macs`` counts the multiply-adds of one full inference; ``region`` is an index into the plan's table (None: the
    patch cannot reach it, or it is dense). ``shape`` is the shape without batch.
    """

    name: str
    op: str
    module: str
    shape: tuple[int, ...]
    macs: int
    placement: Placement
    rule: str
    reason: str
    region: int | None
    inputs: tuple[str, ...]


@dataclass(frozen=True)
class OutputMap:
    """A result that is a map with a region: its number in the plan's table, and its spatial axes, the batch as 0."""

    region: int
    axes: tuple[int, ...]


@dataclass(frozen=True)
class Plan:
    """Everything that a runtime needs to know beside the graph modules and the weights.

    ``outputs`` has an entry for each result of the tail, None for those that a patch changes everywhere or nowhere.
    """

    input_shape: tuple[int, ...]
    patch_shape: tuple[int, ...]
    regions: tuple[RegionDef, ...]
    bases: tuple[BaseTensor, ...]
    reads: tuple[Read, ...]
    layers: tuple[Layer, ...]
    outputs: tuple[OutputMap | None, ...] = ()

    def base(self, name: str) -> BaseTensor:
        """The base tensor called ``name``."""
        return next(base for base in self.bases if base.name == name)

    def cell_macs(self) -> list[float]:
        """Multiply-adds per output cell of all incremental layers, summed by region."""
        totals = [0.0] * len(self.regions)
        for layer in self.layers:
            if layer.placement is Placement.INCREMENTAL and layer.region is not None:
                cells = 1
                for size in self.regions[layer.region].shape:
                    cells *= size
                totals[layer.region] += layer.macs / max(cells, 1)
        return totals

    def dense_macs(self) -> int:
        """Multiply-adds of all dense layers, per query."""
        return sum(layer.macs for layer in self.layers if layer.placement is Placement.DENSE)

    def full_macs(self) -> int:
        """Multiply-adds of one full inference."""
        return sum(layer.macs for layer in self.layers)

    def to_json(self) -> str:
        """The plan as JSON; `from_json` reads it back to an equal plan."""
        return json.dumps({"format": FORMAT, "plan": _to_data(self)}, indent=1)

    @staticmethod
    def from_json(text: str) -> Plan:
        """Read what `to_json` wrote.

        Raises:
            ValueError: The text was written by another format version.
        """
        data = json.loads(text)
        if data.get("format") != FORMAT:
            raise ValueError(f"this plan has format {data.get('format')!r}; this version of kcompile reads {FORMAT}")
        plan = _from_data(data["plan"])
        assert isinstance(plan, Plan)
        return plan

    def __str__(self) -> str:
        """A table of the layers, one line each."""
        return "\n".join(_lines(self))


def _lines(plan: Plan) -> Iterator[str]:
    yield f"plan: input {plan.input_shape}, patch {plan.patch_shape}, {len(plan.regions)} regions"
    for layer in plan.layers:
        where = "" if layer.region is None else f" r{layer.region}"
        reason = f"  # {layer.reason}" if layer.reason else ""
        yield f"  {layer.placement:<11} {layer.name}: {layer.op} {list(layer.shape)}{where} [{layer.rule}]{reason}"
    for read in plan.reads:
        over = (
            "" if read.patch is None else f", superimpose {'patches' if read.patch == RAW_PATCH else f'r{read.patch}'}"
        )
        wanted = "whole" if read.target is None else f"for r{read.target}"
        yield f"  read {read.name}: gather {read.base} {wanted}{over}"


_CLASSES: dict[str, type] = {
    cls.__name__: cls
    for cls in (
        Plan, Layer, Read, BaseTensor, OutputMap, region.InputRegion, region.MappedRegion, region.CroppedRegion,
        axis_map.Identity, axis_map.Sliding, axis_map.Everything, axis_map.Blocks, axis_map.Transposed, axis_map.Table,
    )
}  # fmt: skip


def _to_data(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        fields = {field.name: _to_data(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {"kind": type(value).__name__, **fields}
    if isinstance(value, tuple):
        return [_to_data(item) for item in value]
    return {"kind": "float", "value": repr(value)} if isinstance(value, float) else value


def _from_data(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_from_data(item) for item in value)
    if not isinstance(value, dict):
        return value
    if value["kind"] == "float":
        return float(value["value"])
    fields = {name: _from_data(item) for name, item in value.items() if name != "kind"}
    if "placement" in fields:
        fields["placement"] = Placement(fields["placement"])
    return _CLASSES[value["kind"]](**fields)
