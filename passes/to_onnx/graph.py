"""An ONNX graph under construction: nodes, constants and weights by name, equal nodes once."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from onnx import AttributeProto, GraphProto, NodeProto, TensorProto, ValueInfoProto, helper
from torch import Tensor

from kcompile.passes.to_onnx.weights import Array, Weights, digest

DOMAIN = "kcompile"


class Graph:
    """Builds a graph; values are handled by their names.

    A node that another one equals in kind, inputs and attributes is not added again, so emitters may ask for the same
    value in several places. A graph with a ``parent`` is the body of one of its nodes: what the parent made is seen.
    """

    def __init__(self, weights: Weights, name: str, parent: Graph | None = None, opset: int = 18) -> None:
        """Begin an empty graph, in terms of the ops of an opset (that of the parent)."""
        self.weights, self.name = weights, name
        self.opset: int = opset if parent is None else parent.opset
        self.nodes: list[NodeProto] = []
        self.initializers: list[TensorProto] = []
        self.inputs: list[ValueInfoProto] = []
        self.outputs: list[ValueInfoProto] = []
        self._known: dict[Any, tuple[str, ...]] = {}
        self._names: set[str] = set() if parent is None else parent._names

    def op(self, kind: str, *inputs: str, name: str = "", domain: str = "", **attributes: Any) -> str:
        """The result of a node with one output; ``None`` attributes are left out."""
        return self.ops(kind, *inputs, count=1, name=name, domain=domain, **attributes)[0]

    def ops(
        self, kind: str, *inputs: str, count: int, name: str = "", domain: str = "", **attributes: Any
    ) -> tuple[str, ...]:
        """The results of a node."""
        given = {key: value for key, value in attributes.items() if value is not None}
        graphs = any(isinstance(value, GraphProto) for value in given.values())
        key = (kind, domain, inputs, count, repr(sorted(given.items())))
        if graphs or key not in self._known:
            base = name or kind.lower()
            outputs = tuple(self.unique(base if count == 1 else f"{base}_{i}") for i in range(count))
            node = helper.make_node(kind, list(inputs), list(outputs), name=outputs[0], domain=domain)
            node.attribute.extend(_attribute(key, value) for key, value in given.items())
            self.nodes.append(node)
            if graphs:
                return outputs
            self._known[key] = outputs
        return self._known[key]

    def call(self, function: str, *inputs: str, name: str = "") -> str:
        """The result of a model-local function."""
        return self.op(function, *inputs, name=name, domain=DOMAIN)

    def constant(self, value: Any, dtype: Any = None, name: str = "constant") -> str:
        """A constant; equal ones are one initialiser."""
        array = np.asarray(value, dtype=dtype, order="C")
        return self._initialized(array, digest(array), name)

    def weight(self, value: Tensor, name: str) -> str:
        """A tensor as a constant."""
        return self._initialized(*self.weights.read(value), name)

    def _initialized(self, array: Array, known: bytes, name: str) -> str:
        key = ("constant", str(array.dtype), array.shape, known)
        if key not in self._known:
            self._known[key] = (self.unique(name),)
            self.initializers.append(self.weights.initializer(self._known[key][0], array, known))
        return self._known[key][0]

    def ints(self, *values: int) -> str:
        """A list of integers, int64 [n]."""
        return self.constant(np.asarray(values, dtype=np.int64).reshape(-1), name="ints")

    def input(self, name: str, dtype: int, shape: Sequence[int | str | None]) -> str:
        """An input of the graph; sizes may be names."""
        self._names.add(name)
        self.inputs.append(helper.make_tensor_value_info(name, dtype, list(shape)))
        return name

    def output(self, value: str, name: str, dtype: int, shape: Sequence[int | str | None]) -> None:
        """Make a value an output of the graph, under a name of its own."""
        self._names.add(name)
        self.nodes.append(helper.make_node("Identity", [value], [name], name=f"give_{name}"))
        self.outputs.append(helper.make_tensor_value_info(name, dtype, list(shape)))

    def mark(self) -> tuple[int, int, dict[Any, tuple[str, ...]]]:
        """Where the graph stands, for `back_to`."""
        return len(self.nodes), len(self.initializers), dict(self._known)

    def back_to(self, mark: tuple[int, int, dict[Any, tuple[str, ...]]]) -> None:
        """Forget what came since."""
        nodes, initializers, self._known = mark
        del self.nodes[nodes:], self.initializers[initializers:]

    def unique(self, name: str) -> str:
        """A name that nothing has yet."""
        base = re.sub(r"\W", "_", name)
        found, count = base, 0
        while found in self._names:
            count += 1
            found = f"{base}_{count}"
        self._names.add(found)
        return found

    def proto(self) -> GraphProto:
        """The finished graph, without constants that nothing reads."""
        used = set(_read(self.nodes))
        kept = [tensor for tensor in self.initializers if tensor.name in used]
        return helper.make_graph(self.nodes, self.name, self.inputs, self.outputs, kept)


def _read(nodes: Iterable[NodeProto]) -> Iterator[str]:
    """What nodes and the graphs in them read."""
    for node in nodes:
        yield from node.input
        for attribute in node.attribute:
            yield from _read(attribute.g.node)


def _attribute(name: str, value: Any) -> AttributeProto:
    if isinstance(value, bool):
        value = int(value)
    if isinstance(value, (list, tuple)) and not value:
        return helper.make_attribute(name, [], attr_type=AttributeProto.INTS)
    return helper.make_attribute(name, value)
