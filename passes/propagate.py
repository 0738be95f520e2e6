"""Propagate: per node, its rule's answer and the region that the patch can change. A side table, no graph edits."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from kcompile.passes import rules
from kcompile.passes.gates import Hold
from kcompile.passes.infra import constant, user_line, user_module
from kcompile.passes.numbering import RegionTable
from kcompile.passes.record import OpRecord, TensorSpec
from kcompile.passes.rules.macs import macs
from kcompile.passes.rules.registry import Refusal, Spatial, rule_name, spatial

Batch: TypeAlias = frozenset[str]  # symbols of the batch's size

__all__ = ["Analysis", "NodeInfo", "propagate", "rules"]


@dataclass(frozen=True)
class NodeInfo:
    """What the walker found out about one node.

    ``answer`` is None where the patch cannot reach. ``region`` is a number in the table for nodes that have one: an
    answer that is `Spatial` with all reached inputs in regions themselves. ``axes`` are then the dimensions of the
    result that are the image's spatial axes.
    """

    node: fx.Node
    record: OpRecord
    macs: int
    rule: str
    answer: Spatial | Refusal | None
    region: int | None
    module: str
    line: str
    axes: tuple[int, ...] = ()


@dataclass(frozen=True)
class Analysis:
    """The regions of a graph: info per node in topological order, and the table of regions.

    ``image_shape`` is (channels, *sizes), ``patch_shape`` the patch's size per axis.
    """

    nodes: dict[fx.Node, NodeInfo]
    table: RegionTable
    image: fx.Node
    image_shape: tuple[int, ...]
    patch_shape: tuple[int, ...]


def tensor_inputs(node: fx.Node) -> list[fx.Node]:
    """Tensor arguments in order of the schema, lists flattened, repeated ones repeated."""
    leaves = pytree.tree_leaves((node.args, dict(node.kwargs)), is_leaf=lambda leaf: isinstance(leaf, fx.Node))
    return [leaf for leaf in leaves if isinstance(leaf, fx.Node) and isinstance(leaf.meta.get("val"), Tensor)]


# Ops that look at a tensor's shape and type alone; for a batch of queries they make what they make for the base.
_BLIND = {
    f"aten.{name}"
    for name in (
        "zeros_like.default", "ones_like.default", "full_like.default", "new_zeros.default", "new_ones.default",
        "new_full.default", "fill.Scalar",
    )
}  # fmt: skip


Limits: TypeAlias = Callable[[fx.Node, tuple[int, ...]], tuple[int, ...]]
"""The cells per axis to which a node's region is cropped, from the node and its map's size per axis."""


def propagate(
    module: fx.GraphModule,
    image_shape: tuple[int, ...],
    patch_shape: tuple[int, ...],
    limits: Limits | None = None,
    hold: Hold | None = None,
) -> Analysis:
    """Walk the canonical graph once.

    Args:
        module: Canonical graph; its first placeholder is the image batch.
        image_shape: (channels, *sizes) of one image.
        patch_shape: Size of the patch per axis.
        limits: What regions are cropped to; default: they are not, and inference is exact.
        hold: Which nodes keep the base's value (`passes.gates`); default: none.
    """
    inputs = [node for node in module.graph.nodes if node.op == "placeholder"]
    image, batch = inputs[0], _batch_sizes(inputs)
    table = RegionTable(image_shape[1:], patch_shape)
    found: dict[fx.Node, NodeInfo] = {}
    for node in module.graph.nodes:
        if node.op == "get_attr":
            node.meta.setdefault("val", constant(module, node))
        if node.op == "placeholder":
            found[node] = _image(node, image_shape) if node is image else _other_input(node, batch)
        elif node.op == "call_function":
            found[node] = _visit(node, found, table, batch, limits, hold)
    return Analysis(found, table, image, tuple(image_shape), tuple(patch_shape))


def _batch_sizes(inputs: list[fx.Node]) -> frozenset[str]:
    """Symbols of the batch's size: inputs that nothing joins have one each."""
    sizes = [size for node in inputs if isinstance(node.meta["val"], Tensor) for size in node.meta["val"].shape[:1]]
    return frozenset(str(size) for size in sizes if isinstance(size, torch.SymInt))


def _image(node: fx.Node, shape: tuple[int, ...]) -> NodeInfo:
    axes = tuple(range(2, len(shape) + 1))
    record = OpRecord("input", {}, (), TensorSpec(shape, True, True, axes))
    return NodeInfo(node, record, 0, "input", Spatial(()), 0, "", "", axes)


def _other_input(node: fx.Node, batch: Batch) -> NodeInfo:
    """An input beside the image: the same for all queries of a base."""
    return NodeInfo(
        node, OpRecord("input", {}, (), _spec(node.meta["val"], None, batch)), 0, "input", None, None, "", ""
    )


def _visit(
    node: fx.Node,
    found: dict[fx.Node, NodeInfo],
    table: RegionTable,
    batch: Batch,
    limits: Limits | None,
    hold: Hold | None,
) -> NodeInfo:
    reached = _reached(node, found, batch)
    record = make_record(node, {arg: found[arg].axes for arg in reached}, batch)
    where = (user_module(node), user_line(node))
    if not reached:
        return NodeInfo(node, record, macs(record), "reuse", None, None, *where)
    tensors = [arg for arg in reached if not isinstance(arg.meta.get("val"), (int, torch.SymInt))]
    blind = any(found[arg].region is None for arg in tensors)  # such a node is dense: rules need not see it
    name, answer = (rule_name(record.op), Refusal("an input of it is dense")) if blind else spatial(record)
    if hold is not None and not blind and hold(node, answer):
        return NodeInfo(node, record, macs(record), "held", None, None, *where)
    region: int | None = None
    axes: tuple[int, ...] = ()
    if isinstance(answer, Spatial):
        region = _region(node, answer, reached, found, table, limits)
        axes = answer.axes if answer.axes is not None else record.image.axes
        out = replace(record.out, axes=axes) if record.out is not None else None
        record = replace(record, out=out)
    return NodeInfo(node, record, macs(record), name, answer, region, *where, axes)


def _reached(node: fx.Node, found: dict[fx.Node, NodeInfo], batch: Batch) -> set[fx.Node]:
    """The inputs that the patch can change; for a tensor [batch, …] the batch's size is not among them."""
    if str(node.target) in _BLIND:
        return set()
    reached = {arg for arg in node.all_input_nodes if arg in found and found[arg].answer is not None}
    value = node.meta.get("val")
    if not isinstance(value, Tensor) or not (spec := _spec(value, None, batch)).batched or not spec.shape:
        return reached
    return {arg for arg in reached if not isinstance(arg.meta.get("val"), (int, torch.SymInt))}


def _region(
    node: fx.Node,
    answer: Spatial,
    reached: set[fx.Node],
    found: dict[fx.Node, NodeInfo],
    table: RegionTable,
    limits: Limits | None,
) -> int | None:
    sources = []
    for arg, maps in zip(tensor_inputs(node), answer.maps, strict=True):
        if arg in reached:
            number = found[arg].region
            if number is None or maps is None:
                return None
            sources.append((number, maps))
    shape = tuple(m.out_size for m in sources[0][1])
    return table.number(sources, shape, None if limits is None else limits(node, shape))


def make_record(node: fx.Node, reached: Mapping[fx.Node, tuple[int, ...]], batch: Batch) -> OpRecord:
    """Resolve a call's arguments by its schema; ``reached`` gives the axes of what the patch can change."""
    inputs = tuple(_spec(arg.meta["val"], reached.get(arg), batch) for arg in tensor_inputs(node))
    value = node.meta.get("val")
    out = _spec(value, () if reached else None, batch) if isinstance(value, Tensor) else None
    return OpRecord(_op_name(node), dict(_params(node, reached, batch)), inputs, out)


def _op_name(node: fx.Node) -> str:
    if node.target is operator.getitem:
        return "getitem"
    return str(node.target)


def _params(node: fx.Node, reached: Mapping[fx.Node, tuple[int, ...]], batch: Batch) -> Iterator[tuple[str, Any]]:
    def resolve(arg: Any) -> Any:
        if isinstance(arg, fx.Node):
            value = arg.meta.get("val")
            return _spec(value, reached.get(arg), batch) if isinstance(value, Tensor) else value
        return [resolve(item) for item in arg] if isinstance(arg, (list, tuple)) else arg

    schema = getattr(node.target, "_schema", None)
    for i, argument in enumerate(schema.arguments if schema else ()):
        default = argument.default_value if argument.has_default_value() else None
        yield argument.name, resolve(node.args[i] if i < len(node.args) else node.kwargs.get(argument.name, default))


def _spec(value: Tensor, axes: tuple[int, ...] | None, batch: Batch) -> TensorSpec:
    """The spec of a tensor; ``axes`` is None for one that the patch cannot change."""
    sizes, reached = list(value.shape), axes is not None
    batched = bool(sizes) and isinstance(sizes[0], torch.SymInt) and str(sizes[0]) in batch
    rest = sizes[batched:]
    if not all(isinstance(size, int) for size in rest):  # the batch is folded into another dimension: as unbatched
        return TensorSpec((), False, reached)
    return TensorSpec(tuple(rest), batched, reached, axes or (), str(value.dtype).removeprefix("torch."))
