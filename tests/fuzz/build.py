"""From a description to a module, and to a graph of ATen ops as `torch.export` gives (which takes 0.2 s and more)."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._dispatch.python import enable_python_dispatcher
from torch._dynamo.source import ConstantSource
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext
from torch.utils import _pytree as pytree

from kcompile.passes.capture import Captured
from tests.fuzz.description import Call, Const, Graph, Ref, make


def target(op: str) -> Callable[..., Any]:
    """The callable behind a call's name."""
    if op == "getitem":
        return operator.getitem
    packet, overload = op.split(".")
    return getattr(getattr(torch.ops.aten, packet), overload)  # type: ignore[no-any-return]


def _is_leaf(arg: Any) -> bool:
    return isinstance(arg, (Ref, Const))


def constants(graph: Graph) -> list[Const]:
    """All constants, each once."""
    leaves = [leaf for call in graph.calls for leaf in pytree.tree_leaves(call.args, is_leaf=_is_leaf)]
    return list(dict.fromkeys(leaf for leaf in leaves if isinstance(leaf, Const)))


def run(call: Call, resolve: Callable[[Ref | Const], Any]) -> Any:
    """One call on values of any kind."""
    args = pytree.tree_map(lambda arg: resolve(arg) if _is_leaf(arg) else arg, call.args, is_leaf=_is_leaf)
    return target(call.op)(*args)


class Network(nn.Module):
    """The plain model."""

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.graph = graph
        self.register_buffer("like", torch.zeros((), dtype=torch.float64))  # a model without weights has no type
        for const in constants(graph):
            self.register_buffer(f"c{const.number}", make(const, graph.seed))
        self.eval()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        values: list[Any] = [x]
        for call in self.graph.calls:
            values.append(run(call, lambda a: values[a.index] if isinstance(a, Ref) else getattr(self, f"c{a.number}")))
        return tuple(values[index] for index in self.graph.outputs)


def captured(model: Network) -> Captured:
    """What capture would give, built directly: nodes with fake values of a symbolic batch."""
    graph, root, built = model.graph, nn.Module(), fx.Graph()
    mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)
    nodes: dict[Any, fx.Node] = {}
    for const in constants(graph):
        name = f"c{const.number}"
        root.register_buffer(name, getattr(model, name))
        nodes[const] = built.get_attr(name)
        nodes[const].meta["val"] = mode.from_tensor(getattr(model, name), static_shapes=True)
    nodes[Ref(0)] = built.placeholder("x")
    nodes[Ref(0)].meta["val"] = _image(graph, mode)
    with mode, enable_python_dispatcher(), torch.no_grad():  # as torch.export runs them
        for number, call in enumerate(graph.calls, 1):
            args = pytree.tree_map(lambda a: nodes[a] if _is_leaf(a) else a, call.args, is_leaf=_is_leaf)
            node = built.call_function(target(call.op), args)
            node.meta["val"] = run(call, lambda a: nodes[a].meta["val"])
            nodes[Ref(number)] = node
    built.output(tuple(nodes[Ref(index)] for index in graph.outputs))
    built.eliminate_dead_code()
    return Captured(fx.GraphModule(root, built), pytree.tree_structure((0,) * len(graph.outputs)))


def _image(graph: Graph, mode: FakeTensorMode) -> Tensor:
    axes = len(graph.shape)
    context: Any = StatelessSymbolicContext(
        dynamic_sizes=[DimDynamic.DYNAMIC] + [DimDynamic.STATIC] * axes,
        constraint_sizes=[None] * (axes + 1),
    )
    example = torch.empty(5, *graph.shape, dtype=torch.float64)
    return mode.from_tensor(example, source=ConstantSource("x"), symbolic_context=context)
