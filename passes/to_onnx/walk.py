"""Walk an emitted graph and lower it op by op."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from contextlib import suppress
from math import prod
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import OpOverload

import kcompile.passes.to_onnx.ops_airy
import kcompile.passes.to_onnx.ops_bessel
import kcompile.passes.to_onnx.ops_conv
import kcompile.passes.to_onnx.ops_erf
import kcompile.passes.to_onnx.ops_gamma
import kcompile.passes.to_onnx.ops_incomplete
import kcompile.passes.to_onnx.ops_integers
import kcompile.passes.to_onnx.ops_layers
import kcompile.passes.to_onnx.ops_masks
import kcompile.passes.to_onnx.ops_matrices
import kcompile.passes.to_onnx.ops_next
import kcompile.passes.to_onnx.ops_pairs
import kcompile.passes.to_onnx.ops_pointwise
import kcompile.passes.to_onnx.ops_polynomials
import kcompile.passes.to_onnx.ops_pool
import kcompile.passes.to_onnx.ops_reduce
import kcompile.passes.to_onnx.ops_shape
import kcompile.passes.to_onnx.ops_waves
import kcompile.passes.to_onnx.ops_windows
import kcompile.passes.to_onnx.ops_zeta  # noqa: F401  (they register their lowerings)
from kcompile.core.errors import OnnxExportError
from kcompile.passes.infra import user_line
from kcompile.passes.to_onnx.by_torch import lowered, whole
from kcompile.passes.to_onnx.call import LOWERINGS, Call, Value, dtype_of
from kcompile.passes.to_onnx.geometry import Geometry
from kcompile.passes.to_onnx.graph import Graph
from kcompile.passes.to_onnx.sizes import Described, Sizes

_NUMBERS = {operator.mul: "Mul", operator.add: "Add", operator.sub: "Sub", operator.floordiv: "Div"}


class Walk:
    """Lowers the nodes of one graph module into an ONNX graph, in order."""

    def __init__(
        self,
        graph: Graph,
        module: fx.GraphModule,
        sizes: Sizes,
        given: Mapping[str, str],
        geometry: Geometry | None = None,
    ) -> None:
        """Prepare.

        Args:
            graph: Where to.
            module: The emitted graph.
            sizes: What `sizes.agreed` says of it.
            given: Names of the values of its placeholders; those of a front's geometry are left out.
            geometry: Of a front.
        """
        self.graph, self.module, self.sizes, self.given, self.geometry = graph, module, sizes, given, geometry
        self.values: dict[fx.Node, Any] = {}
        reads = geometry.plan.reads if geometry is not None else ()
        self.reads = {f"{read.name}_{part}": read for read in reads for part in ("origins", "offsets", "start")}

    def run(self) -> Any:
        """Lower everything; what the output node returns, tensors as `Value`s.

        Where an op can't be lowered, and no other is one of kcompile's, torch.onnx gets the whole graph.
        """
        mark = self.graph.mark()
        try:
            return self._lowered_all()
        except OnnxExportError:
            if self.geometry is not None:
                raise
            self.graph.back_to(mark)
            names = [self.given[str(node.target)] for node in self.module.graph.find_nodes(op="placeholder")]
            with suppress(OnnxExportError):
                return whole(self.graph, self.module, self.sizes, names)
            raise

    def _lowered_all(self) -> Any:
        for node in self.module.graph.nodes:
            if node.op == "output":
                return self._resolved(node.args[0])
            self.values[node] = self._value(node)
        raise AssertionError("a graph has an output")

    def _value(self, node: fx.Node) -> Any:
        described = self.sizes[node]
        if node.op == "placeholder":
            name = self.given.get(str(node.target), "")
            return (
                Value(name, described.dtype, described.shape)
                if isinstance(described, Described)
                else Value("", torch.int64, ())
            )
        if node.op == "get_attr":
            return attrgetter(str(node.target))(self.module)
        if isinstance(described, (int, float, bool)):  # a size that all batches share
            return described
        if node.target is operator.getitem:
            return self.values[node.args[0]][node.args[1]]  # type: ignore[index]
        return self._called(node, described)

    def _called(self, node: fx.Node, described: Any) -> Any:
        if node.target in _NUMBERS:
            numbers = [self._resolved(arg) for arg in node.args]
            factors = [n.factor if isinstance(n, Value) else n for n in numbers]
            number = self.graph.op(_NUMBERS[node.target], *map(self._number, numbers))
            return Value(number, torch.int64, (), prod(factors) if node.target is operator.mul else 1)
        kinds = described if isinstance(described, tuple) else (described,)
        results = tuple(
            Value("", kind.dtype, kind.shape) if isinstance(kind, Described) else Value("", torch.int64, ())
            for kind in kinds
        )
        try:
            made = self._lowered(node, results)
        except OnnxExportError as error:
            raise OnnxExportError(f"{error}\n  {user_line(node)}".rstrip()) from error
        values = tuple(Value(name, r.dtype, r.shape) for name, r in zip(made, results, strict=False))
        return values if isinstance(described, tuple) else values[0]

    def _lowered(self, node: fx.Node, results: tuple[Value, ...]) -> tuple[str, ...]:
        """By the table of lowerings, or by torch.onnx."""
        if not isinstance(node.target, OpOverload):
            raise OnnxExportError(f"{node.target} has no lowering to ONNX")
        for result in results:
            dtype_of(result.dtype)
        lowering = LOWERINGS.get(str(node.target))
        if lowering is None:
            resolved = {arg: self._resolved(arg) for arg in node.all_input_nodes}
            return lowered(self.graph, node, self.sizes, resolved)
        call = Call(self.graph, str(node.target), self._arguments(node), results, node.name, self._place(node))
        names = lowering(call)
        return (names,) if isinstance(names, str) else names

    def _arguments(self, node: fx.Node) -> dict[str, Any]:
        """By the schema's names; constants as tensors where an op of ours takes tables."""
        assert isinstance(node.target, OpOverload)
        ours = node.target.namespace == "kcompile"
        arguments = node.target._schema.arguments
        given = {**dict(zip([a.name for a in arguments], node.args, strict=False)), **node.kwargs}
        return {
            a.name: self._resolved(given[a.name], tables=ours) if a.name in given else a.default_value
            for a in arguments
            if a.name in given or a.has_default_value()
        }

    def _resolved(self, arg: Any, tables: bool = False) -> Any:
        if isinstance(arg, (list, tuple)):
            return [self._resolved(item, tables) for item in arg]
        if not isinstance(arg, fx.Node):
            return arg
        value = self.values[arg]
        return self._constant(arg, value) if isinstance(value, Tensor) and not tables else value

    def _constant(self, node: fx.Node, value: Tensor) -> Value:
        dtype_of(value.dtype)
        name = self.graph.weight(value, str(node.target))
        return Value(name, value.dtype, tuple(value.shape))

    def _number(self, value: Any) -> str:
        return value.name if isinstance(value, Value) else self.graph.constant(value, "int64")

    def _place(self, node: fx.Node) -> Any:
        """Where an op on windows takes them."""
        if self.geometry is None or getattr(node.target, "namespace", "") != "kcompile":
            return None
        reads = (self.reads.get(str(arg.target)) for arg in node.all_input_nodes if arg.op == "placeholder")
        read = next((read for read in reads if read is not None), None)
        return None if read is None else self.geometry.place(read)
