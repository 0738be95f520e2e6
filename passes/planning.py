"""Plan: which windows to read, which base tensors to keep; the frozen result without any graph in it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TypeAlias

from torch import Tensor, fx

from kcompile.core.axis_map import AxisMap, Everything, Identity, Sliding
from kcompile.core.plan import RAW_PATCH, BaseTensor, Layer, Placement, Plan, Read
from kcompile.passes.place import Placed
from kcompile.passes.propagate import Analysis, tensor_inputs
from kcompile.passes.rules.registry import Spatial

Slot: TypeAlias = tuple[str, int]  # (consumer's name, index among its tensor inputs)


@dataclass(frozen=True)
class Planned:
    """A plan, and which of its reads serves which tensor input of which node."""

    plan: Plan
    reads: dict[Slot, Read]


@dataclass(frozen=True)
class _Request:
    """A read before its base tensor is chosen."""

    arg: fx.Node
    slot: Slot
    fill: float
    read: Read


def make_plan(
    analysis: Analysis, placed: dict[fx.Node, Placed], image_shape: tuple[int, ...], patch_shape: tuple[int, ...]
) -> Planned:
    """One read at every boundary, with the base tensors that they need, frozen together with the layers' table."""
    requests = [request for node in analysis.nodes for request in _requests(analysis, placed, node)]
    output = next(node for node in reversed(analysis.image.graph.nodes) if node.op == "output")
    requests += [
        _whole(analysis, placed, arg, (output.name, i))
        for i, arg in enumerate(tensor_inputs(output))
        if _leaves(placed, arg)
    ]
    bases = _bases(analysis, requests)
    reads = {r.slot: replace(r.read, base=_base_name(r.arg, r.fill, r.read.maps, bases)) for r in requests}
    layers = tuple(
        _layer(analysis, placed, node) for node in analysis.nodes if analysis.nodes[node].record.out is not None
    )
    table = tuple(analysis.table.defs)
    plan = Plan(image_shape, patch_shape, table, tuple(bases.values()), tuple(dict.fromkeys(reads.values())), layers)
    return Planned(plan, reads)


def prune(plan: Plan, used: Iterable[str]) -> Plan:
    """Drop the reads that are not in ``used`` (their pairs were cancelled) and base tensors that nothing reads."""
    names = set(used)
    reads = tuple(read for read in plan.reads if read.name in names)
    kept = {read.base for read in reads}
    return replace(plan, reads=reads, bases=tuple(base for base in plan.bases if base.name in kept))


def overhang(maps: tuple[AxisMap, ...]) -> tuple[tuple[int, int], ...]:
    """Cells (low, high) per axis by which windows can stick out of their tensor."""
    return tuple(_axis_overhang(m) for m in maps)


def _axis_overhang(m: AxisMap) -> tuple[int, int]:
    if not isinstance(m, Sliding):
        return 0, 0
    return max(m.padding, 0), max((m.out_size - 1) * m.stride - m.padding + m.span + 1 - m.in_size, 0)


def _leaves(placed: dict[fx.Node, Placed], arg: fx.Node) -> bool:
    """True for tensors that a dense consumer must be handed in full."""
    return arg in placed and placed[arg].placement is not Placement.DENSE


def _requests(analysis: Analysis, placed: dict[fx.Node, Placed], node: fx.Node) -> Iterable[_Request]:
    info, placement = analysis.nodes[node], placed[node].placement
    if placement is Placement.DENSE and isinstance(node.meta.get("val"), (Tensor, list, tuple)):  # else a size alone
        for i, arg in enumerate(tensor_inputs(node)):
            if _leaves(placed, arg):
                yield _whole(analysis, placed, arg, (node.name, i))
    elif node is analysis.image:
        sizes = info.record.out.sizes if info.record.out else ()
        whole = tuple(Identity(size) for size in sizes)
        yield _Request(node, (node.name, 0), 0.0, Read("patch", "", RAW_PATCH, info.region, whole))
    elif placement is Placement.INCREMENTAL and isinstance(info.answer, Spatial):
        for i, (arg, maps) in enumerate(zip(tensor_inputs(node), info.answer.maps, strict=False)):
            if maps is not None:
                patch = analysis.nodes[arg].region if arg in analysis.nodes else None
                name = node.name if i == 0 else f"{node.name}__{i}"
                yield _Request(arg, (node.name, i), info.answer.fill, Read(name, "", patch, info.region, maps))


def _whole(analysis: Analysis, placed: dict[fx.Node, Placed], arg: fx.Node, slot: Slot) -> _Request:
    info = analysis.nodes[arg]
    assert info.record.out is not None
    maps = tuple(Everything(size, size) for size in info.record.out.sizes)
    patch = info.region if placed[arg].placement is Placement.INCREMENTAL else None
    return _Request(arg, slot, 0.0, Read(f"{arg.name}_whole", "", patch, None, maps))


def _bases(analysis: Analysis, requests: list[_Request]) -> dict[tuple[str, float], BaseTensor]:
    """One base tensor per tensor and fill; windows that never stick out share any of them."""
    bases: dict[tuple[str, float], BaseTensor] = {}
    for r in sorted(requests, key=lambda r: not _sticks_out(r.read.maps)):  # those that need a fill come first
        if not _sticks_out(r.read.maps) and any(name == r.arg.name for name, _ in bases):
            continue
        old = bases.get((r.arg.name, r.fill))
        padding = overhang(r.read.maps)
        if old is not None:
            padding = tuple((max(a, c), max(b, d)) for (a, b), (c, d) in zip(padding, old.padding, strict=True))
        bases[r.arg.name, r.fill] = _base(analysis, r.arg, r.fill, padding, r.read.maps)
    return bases


def _base(
    analysis: Analysis, arg: fx.Node, fill: float, padding: tuple[tuple[int, int], ...], maps: tuple[AxisMap, ...]
) -> BaseTensor:
    value = re.sub(r"\W", "_", str(fill).replace("-", "minus_").replace("+", ""))
    name = arg.name if fill == 0.0 else f"{arg.name}_fill_{value}"
    info = analysis.nodes.get(arg)
    if info is not None and info.record.out is not None:
        return BaseTensor(name, arg.name, info.record.out.shape, padding, fill, info.record.out.batched)
    constant = tuple(arg.meta["val"].shape)[-len(maps) - 1 :]  # (channels, *sizes), or less: missing ones are 1
    shape = (1,) * (len(maps) + 1 - len(constant)) + constant
    return BaseTensor(name, arg.name, shape, padding, fill, False)


def _sticks_out(maps: tuple[AxisMap, ...]) -> bool:
    return any(side > 0 for axis in overhang(maps) for side in axis)


def _base_name(arg: fx.Node, fill: float, maps: tuple[AxisMap, ...], bases: dict[tuple[str, float], BaseTensor]) -> str:
    if _sticks_out(maps):
        return bases[arg.name, fill].name
    return next(base.name for (name, _), base in bases.items() if name == arg.name)


def _layer(analysis: Analysis, placed: dict[fx.Node, Placed], node: fx.Node) -> Layer:
    info, choice = analysis.nodes[node], placed[node]
    assert info.record.out is not None
    return Layer(
        name=node.name,
        op=info.record.op,
        module=info.module,
        shape=info.record.out.shape,
        macs=info.macs,
        placement=choice.placement,
        rule=info.rule,
        reason=choice.reason,
        region=info.region if choice.placement is Placement.INCREMENTAL else None,
        inputs=tuple(arg.name for arg in node.all_input_nodes if arg in analysis.nodes),
    )
