"""Ops that have no lowering of their own, by `torch.onnx`: a call is exported alone, its nodes go into the graph."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import torch
from onnx import GraphProto, ModelProto, NodeProto, inliner, numpy_helper
from torch import Tensor, fx, nn
from torch._ops import OpOverload
from torch.export import Dim
from torch.utils import _pytree as pytree

from kcompile.core.errors import OnnxExportError
from kcompile.passes.to_onnx.call import Value, computed
from kcompile.passes.to_onnx.graph import Graph
from kcompile.passes.to_onnx.sizes import Described


class _One(nn.Module):
    """One call; tensors come from outside, all else is written into it."""

    def __init__(self, op: OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        super().__init__()
        self.op, self.args, self.kwargs = op, args, dict(kwargs)

    def forward(self, *tensors: Tensor) -> Any:
        """The call's result."""
        left = iter(tensors)
        args, kwargs = fx.node.map_aggregate(
            (self.args, self.kwargs), lambda arg: next(left) if arg is _TENSOR else arg
        )
        return self.op(*args, **kwargs)


_TENSOR = "a tensor of kcompile's"


def lowered(
    graph: Graph, node: fx.Node, described: Mapping[fx.Node, Any], resolved: Mapping[fx.Node, Any]
) -> tuple[str, ...]:
    """The results of a node.

    Args:
        graph: Where to.
        node: A call of an op.
        described: Type and shape of its inputs, with an example (`Described`), or their number.
        resolved: The inputs as `Value`s.

    Raises:
        OnnxExportError: torch.onnx doesn't know the op either, or it takes sizes that differ from batch to batch.
    """
    inputs: list[fx.Node] = []

    def tensor(arg: Any) -> Any:
        if not isinstance(arg, fx.Node):
            return computed(arg) if isinstance(arg, torch.dtype) else arg
        if isinstance(described[arg], Described):
            inputs.append(arg)
            return _TENSOR
        if isinstance(described[arg], (int, float, bool)):
            return described[arg]
        raise OnnxExportError(f"{node.target} has no lowering to ONNX for sizes that differ from batch to batch")

    args, kwargs = fx.node.map_aggregate((node.args, node.kwargs), tensor)
    assert isinstance(node.target, OpOverload)
    kinds = [described[arg] for arg in inputs]
    key = f"{node.target} {args} {kwargs} {[(k.dtype, k.shape, k.examples) for k in kinds]} {graph.opset}"
    names = [resolved[arg].name for arg in inputs]
    try:
        if key not in _MADE:
            _MADE[key] = _exported(_One(node.target, args, kwargs), kinds, graph.opset, packed=True)
    except Exception as error:  # torch.onnx's errors have no common base
        reason = f"none in torch.onnx ({_reason(error)})"
        raise OnnxExportError(f"{node.target} has no lowering to ONNX, and {reason}") from error
    return splice(graph, _MADE[key], names, node.name)


_MADE: dict[str, ModelProto] = {}  # small models of single calls: each takes torch.onnx a second


def whole(graph: Graph, module: fx.GraphModule, described: Mapping[fx.Node, Any], names: Sequence[str]) -> Any:
    """What a graph module returns, all of it by torch.onnx: complex values, for one, show no single op in its own form.

    Args:
        graph: Where to.
        module: Without ops of kcompile's.
        described: Type and shape of its nodes, with an example.
        names: Of its inputs.

    Raises:
        OnnxExportError: torch.onnx doesn't know all ops.
    """
    kinds = [described[node] for node in module.graph.find_nodes(op="placeholder")]
    if any(isinstance(kind, Described) and kind.dtype == torch.bfloat16 for kind in described.values()):
        raise OnnxExportError("torch.onnx exports bfloat16 as such, all else here as float32")
    (output,) = module.graph.find_nodes(op="output")
    leaves, structure = pytree.tree_flatten(output.args[0])
    nodes = [leaf for leaf in leaves if isinstance(leaf, fx.Node)]
    try:
        found = splice(graph, _exported(module, kinds, graph.opset), names, graph.name)
    except Exception as error:
        raise OnnxExportError(f"torch.onnx can't export the {graph.name} graph: {_reason(error)}") from error
    if len(found) != len(nodes):
        raise OnnxExportError(f"torch.onnx gives {len(found)} results of the {graph.name} graph, not {len(nodes)}")
    made = iter(
        Value(name, described[node].dtype, described[node].shape) for name, node in zip(found, nodes, strict=True)
    )
    return pytree.tree_unflatten([next(made) if isinstance(leaf, fx.Node) else leaf for leaf in leaves], structure)


def _reason(error: BaseException) -> str:
    """The first line of the error that began it."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _exported(module: nn.Module, kinds: Sequence[Described], opset: int, packed: bool = False) -> ModelProto:
    """A model without functions; sizes that are known are written into it, others stay open.

    ``packed``: the module takes ``*tensors``.
    """
    run = _fitting_run(kinds)
    examples = tuple(torch.zeros(kind.examples[run], dtype=computed(kind.dtype)) for kind in kinds)
    free = tuple({dim: Dim.DYNAMIC for dim, size in enumerate(kind.shape) if size is None} for kind in kinds)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(module.eval(), examples, dynamic_shapes=(free,) if packed else free)
        found = torch.onnx.export(program, dynamo=True, opset_version=opset, verbose=False)
    assert found is not None
    model: ModelProto = inliner.inline_local_functions(found.model_proto)
    (version,) = (entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    if version != opset:
        raise OnnxExportError(f"torch.onnx wrote opset {version} where {opset} is asked for")
    return model


def _fitting_run(kinds: Sequence[Described]) -> int:
    """The smallest run in which no open size is 0 or 1, which torch.export would take for fixed; else the largest."""
    runs = range(len(kinds[0].examples) if kinds else 0)
    cells = [sum(prod(kind.examples[run]) for kind in kinds) for run in runs]
    fit = [
        run
        for run in runs
        if all(
            size is not None or given > 1 for k in kinds for size, given in zip(k.shape, k.examples[run], strict=True)
        )
    ]
    return min(fit, key=lambda run: cells[run]) if fit else max(runs, key=lambda run: cells[run], default=0)


def splice(graph: Graph, model: ModelProto, inputs: Sequence[str], label: str) -> tuple[str, ...]:
    """Put the nodes of a model into a graph, all values under new names; the names of the model's outputs."""
    names = dict(zip((value.name for value in model.graph.input), inputs, strict=True))
    for tensor in model.graph.initializer:
        names[tensor.name] = graph.constant(numpy_helper.to_array(tensor))
    for node in model.graph.node:
        graph.nodes.append(_renamed(node, graph, names, label))
    return tuple(names[value.name] for value in model.graph.output)


def _renamed(node: NodeProto, graph: Graph, names: dict[str, str], label: str) -> NodeProto:
    """A copy; what it makes, also in graphs inside, is entered in ``names``."""
    made = copy.deepcopy(node)
    made.input[:] = [names[name] if name else "" for name in node.input]
    for attribute in (one for one in made.attribute if one.HasField("g")):
        _rename_within(attribute.g, graph, names, label)
    names.update({name: graph.unique(f"{label}_{name}") for name in node.output if name})
    made.output[:] = [names[name] if name else "" for name in node.output]
    made.name = graph.unique(label)
    return made


def _rename_within(inside: GraphProto, graph: Graph, outer: Mapping[str, str], label: str) -> None:
    names = dict(outer)
    for value in (*inside.input, *inside.initializer):
        names[value.name] = value.name = graph.unique(f"{label}_{value.name}")
    nodes = [_renamed(node, graph, names, label) for node in inside.node]
    del inside.node[:], inside.value_info[:]
    inside.node.extend(nodes)
    for value in inside.output:
        value.name = names[value.name]
