"""Plan: which windows to read, which base tensors to keep; the frozen result without any graph in it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TypeAlias

from torch import Tensor, fx

from kcompile.core.axis_map import AxisMap, Everything, Identity
from kcompile.core.plan import RAW_PATCH, BaseTensor, Layer, OutputMap, Placement, Plan, Read
from kcompile.passes.place import Placed
from kcompile.passes.propagate import Analysis, tensor_inputs
from kcompile.passes.rules.registry import Spatial

Slot: TypeAlias = tuple[str, int]  # (consumer's name, index among its tensor inputs)
BaseKey: TypeAlias = tuple[str, tuple[int, ...]]  # (source's name, its axes)
Bases: TypeAlias = dict[tuple[BaseKey, str], BaseTensor]  # the fill as text: 0.0 and -0.0 are two


@dataclass(frozen=True)
class Planned:
    """A plan, and which of its reads serves which tensor input of which node."""

    plan: Plan
    reads: dict[Slot, Read]


@dataclass(frozen=True)
class _Request:
    """A read before its base tensor is chosen; ``axes`` and ``rank`` are those that the consumer sees in ``arg``."""

    arg: fx.Node
    slot: Slot
    fill: float
    read: Read
    axes: tuple[int, ...]
    rank: int

    @property
    def key(self) -> BaseKey:
        """What tells its base tensor from others, the fill aside."""
        return self.arg.name, self.axes


EndRead: TypeAlias = Callable[[Analysis, "dict[fx.Node, Placed]", fx.Node, Slot], "_Request"]


def make_plan(
    analysis: Analysis,
    placed: dict[fx.Node, Placed],
    image_shape: tuple[int, ...],
    patch_shape: tuple[int, ...],
    end: EndRead | None = None,
) -> Planned:
    """One read at every boundary, with the base tensors that they need, frozen together with the layers' table.

    ``end`` makes the reads of the graph's outputs; default: the whole tensors.
    """
    end = end or _whole
    requests = [request for node in analysis.nodes for request in _requests(analysis, placed, node)]
    output = next(node for node in reversed(analysis.image.graph.nodes) if node.op == "output")
    requests += [
        end(analysis, placed, arg, (output.name, i))
        for i, arg in enumerate(tensor_inputs(output))
        if _leaves(analysis, placed, arg)
    ]
    bases = _bases(analysis, requests)
    reads = {r.slot: replace(r.read, base=_base_name(r, bases)) for r in requests}
    layers = tuple(
        _layer(analysis, placed, node) for node in analysis.nodes if analysis.nodes[node].record.out is not None
    )
    table = tuple(analysis.table.defs)
    maps = tuple(_output_map(analysis, placed, leaf) for leaf in results(analysis, placed))
    plan = Plan(
        image_shape, patch_shape, table, tuple(bases.values()), tuple(dict.fromkeys(reads.values())), layers, maps
    )
    return Planned(plan, reads)


def results(analysis: Analysis, placed: dict[fx.Node, Placed]) -> list[fx.Node]:
    """The model's flat outputs that have a row for each query, in order; the others are the base's."""
    output = analysis.image.graph.output_node()
    return [
        leaf
        for leaf in output.args[0]  # type: ignore[union-attr]
        if isinstance(leaf, fx.Node) and leaf in placed and isinstance(leaf.meta.get("val"), Tensor)
        if placed[leaf].placement is Placement.DENSE or _leaves(analysis, placed, leaf)
    ]


def _output_map(analysis: Analysis, placed: dict[fx.Node, Placed], leaf: fx.Node) -> OutputMap | None:
    info = analysis.nodes[leaf]
    known = placed[leaf].placement is Placement.INCREMENTAL and info.region is not None
    return OutputMap(info.region, info.axes) if known and info.region is not None else None


def prune(plan: Plan, used: Iterable[str]) -> Plan:
    """Drop the reads that are not in ``used`` (their pairs were cancelled) and base tensors that nothing reads."""
    names = set(used)
    reads = tuple(read for read in plan.reads if read.name in names)
    kept = {read.base for read in reads}
    return replace(plan, reads=reads, bases=tuple(base for base in plan.bases if base.name in kept))


def overhang(maps: tuple[AxisMap, ...]) -> tuple[tuple[int, int], ...]:
    """Cells (low, high) per axis by which windows can stick out of their tensor."""
    return tuple(m.overhang for m in maps)


def _leaves(analysis: Analysis, placed: dict[fx.Node, Placed], arg: fx.Node) -> bool:
    """True for tensors that a dense consumer must be handed in full: those with rows that the tail doesn't make."""
    out = analysis.nodes[arg].record.out if arg in analysis.nodes else None
    return out is not None and out.batched and placed[arg].placement is not Placement.DENSE


def _requests(analysis: Analysis, placed: dict[fx.Node, Placed], node: fx.Node) -> Iterable[_Request]:
    info, placement = analysis.nodes[node], placed[node].placement
    if placement is Placement.DENSE and isinstance(node.meta.get("val"), (Tensor, list, tuple)):  # else a size alone
        for i, arg in enumerate(tensor_inputs(node)):
            if _leaves(analysis, placed, arg):
                yield _whole(analysis, placed, arg, (node.name, i))
    elif node is analysis.image:
        sizes = info.record.out.sizes if info.record.out else ()
        whole = tuple(Identity(size) for size in sizes)
        read = Read("patch", "", RAW_PATCH, info.region, whole)
        yield _Request(node, (node.name, 0), 0.0, read, info.axes, len(info.axes) + 2)
    elif placement is Placement.INCREMENTAL and isinstance(info.answer, Spatial):
        for i, (arg, maps) in enumerate(zip(tensor_inputs(node), info.answer.maps, strict=False)):
            if maps is not None:
                source = analysis.nodes.get(arg)
                name = node.name if i == 0 else f"{node.name}__{i}"
                patch = source.region if source else None
                answer = info.answer
                read = Read(name, "", patch, info.region, maps, answer.placed, answer.native)
                assert info.record.out is not None
                axes, rank = info.axes, info.record.out.rank  # of what is not reached: as it is broadcast
                if source and source.axes and source.record.out is not None:
                    axes, rank = source.axes, source.record.out.rank
                yield _Request(arg, (node.name, i), info.answer.fill, read, axes, rank)


def _whole(analysis: Analysis, placed: dict[fx.Node, Placed], arg: fx.Node, slot: Slot) -> _Request:
    info = analysis.nodes[arg]
    assert info.record.out is not None
    maps = tuple(Everything(size, size) for size in info.record.out.sizes)
    patch = info.region if placed[arg].placement is Placement.INCREMENTAL else None
    read = Read(f"{arg.name}_whole", "", patch, None, maps)
    return _Request(arg, slot, 0.0, read, info.axes, info.record.out.rank)


def change(analysis: Analysis, placed: dict[fx.Node, Placed], arg: fx.Node, slot: Slot) -> _Request:
    """The base in the box that a patch changes of a tensor."""
    info = analysis.nodes[arg]
    assert info.record.out is not None
    maps = tuple(Identity(size) for size in info.record.out.sizes)
    read = Read(f"{arg.name}_change", "", None, info.region, maps)
    return _Request(arg, slot, 0.0, read, info.axes, info.record.out.rank)


def _bases(analysis: Analysis, requests: list[_Request]) -> Bases:
    """One base tensor per tensor and fill; windows that never stick out share any of them."""
    bases: Bases = {}
    for r in sorted(requests, key=lambda r: not _sticks_out(r.read.maps)):  # those that need a fill come first
        if not _sticks_out(r.read.maps) and any(key == r.key for key, _ in bases):
            continue
        old = bases.get((r.key, repr(r.fill)))
        padding = overhang(r.read.maps)
        if old is not None:
            padding = tuple((max(a, c), max(b, d)) for (a, b), (c, d) in zip(padding, old.padding, strict=True))
        bases[r.key, repr(r.fill)] = _base(
            analysis, r, padding, {base.name for base in bases.values() if base is not old}
        )
    return bases


def _base(analysis: Analysis, r: _Request, padding: tuple[tuple[int, int], ...], taken: set[str]) -> BaseTensor:
    value = re.sub(r"\W", "_", str(r.fill).replace("-", "minus_").replace("+", ""))
    name = r.arg.name if repr(r.fill) == "0.0" else f"{r.arg.name}_fill_{value}"
    while name in taken:  # one constant in two layouts
        name += "_"
    info = analysis.nodes.get(r.arg)
    if info is not None and info.record.out is not None and info.record.out.batched:
        return BaseTensor(name, r.arg.name, info.record.out.shape, padding, r.fill, True, r.axes)
    constant = tuple(r.arg.meta["val"].shape)[-(r.rank - 1) :]  # without batch; missing dimensions are 1
    shape = (1,) * (r.rank - 1 - len(constant)) + constant
    return BaseTensor(name, r.arg.name, shape, padding, r.fill, False, r.axes)


def _sticks_out(maps: tuple[AxisMap, ...]) -> bool:
    return any(side > 0 for axis in overhang(maps) for side in axis)


def _base_name(r: _Request, bases: Bases) -> str:
    if _sticks_out(r.read.maps):
        return bases[r.key, repr(r.fill)].name
    return next(base.name for (key, _), base in bases.items() if key == r.key)


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
