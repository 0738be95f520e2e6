"""The three models: materialize, incremental and heatmap."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from onnx import ModelProto, TensorProto, helper
from torch import Tensor, fx

from kcompile.core.plan import BaseTensor, Plan
from kcompile.passes.to_onnx.call import Value, array_of, dtype_of, name_of_type
from kcompile.passes.to_onnx.functions import functions
from kcompile.passes.to_onnx.geometry import Geometry
from kcompile.passes.to_onnx.graph import DOMAIN, Graph
from kcompile.passes.to_onnx.sizes import Described, agreed, front_calls
from kcompile.passes.to_onnx.walk import Walk
from kcompile.passes.to_onnx.weights import Weights

IR_VERSION = 8  # the first with model-local functions


@dataclass(frozen=True)
class Source:
    """What is exported.

    Attributes:
        plan: The plan.
        materializer: Images, and other inputs with rows, to the flat outputs and the base tensors' sources.
        front: Patches and base tensors to the whole tensors that dense ops read.
        tail: Those to the results.
        others: Shape (without batch) and type of the inputs with rows beside the image.
        results: For each flat output whether it is one of the tail's results.
        dtype: Of the images.
        constants: Base tensors that are the same for all images, by name, as the runtime keeps them but for the batch.
    """

    plan: Plan
    materializer: fx.GraphModule
    front: fx.GraphModule
    tail: fx.GraphModule
    others: tuple[tuple[tuple[int, ...], torch.dtype], ...]
    results: tuple[bool, ...]
    dtype: torch.dtype
    constants: Mapping[str, Tensor]


class Models:
    """Writes the models of one source, which share their weights."""

    def __init__(self, source: Source, opset: int, embed: bool = False) -> None:
        """Find out what is known of every value; ``embed`` puts the weights into each model."""
        self.source, self.plan, self.opset, self.weights = source, source.plan, opset, Weights(embed)
        images = torch.empty(1, *self.plan.input_shape, dtype=source.dtype, device="meta")
        others = [torch.empty(1, *shape, dtype=dtype, device="meta") for shape, dtype in source.others]
        names = [str(node.target) for node in source.materializer.graph.find_nodes(op="placeholder")]
        self.materialize_sizes = agreed(source.materializer, [dict(zip(names, [images, *others], strict=True))])
        kinds = {base.name: self._dtype(base) for base in self.plan.bases}
        self.front_sizes = agreed(source.front, front_calls(self.plan, source.dtype, kinds))
        self.tail_sizes = agreed(source.tail, [self._tail_call(rows) for rows in (2, 3)])

    def types(self) -> dict[str, str]:
        """The types of the inputs with rows, by their names in the models."""
        kinds = {"image": self.source.dtype}
        kinds |= {f"input_{index}": dtype for index, (_, dtype) in enumerate(self.source.others, start=1)}
        return {name: name_of_type(dtype) for name, dtype in kinds.items()}

    def materialize(self) -> ModelProto:
        """Image [1, C, *S] (and other inputs with rows) to the outputs and the base tensors [*padded sizes, C]."""
        graph = Graph(self.weights, "materialize", opset=self.opset)
        outputs, bases = self.materialized(graph, self.images(graph))
        for index, value in enumerate(outputs):
            if isinstance(value, Value):
                graph.output(value.name, f"output_{index}", dtype_of(value.dtype), value.shape)
        for base in self._rows():
            graph.output(bases[base.name], f"base_{base.name}", dtype_of(self._dtype(base)), stored_shape(base))
        return self.model(graph)

    def incremental(self) -> ModelProto:
        """Base tensors, patches [N or 1, C, h, w] and positions int64 [N, axes] to the results for N patched images."""
        graph, dtype = Graph(self.weights, "incremental", opset=self.opset), dtype_of(self.source.dtype)
        axes = len(self.plan.patch_shape)
        given = {
            base.name: graph.input(f"base_{base.name}", dtype_of(self._dtype(base)), stored_shape(base))
            for base in self._rows()
        }
        sides = [f"patch_{axis}" for axis in range(axes)]
        patches = graph.input("patches", dtype, ["P", self.plan.input_shape[0], *sides])
        positions = graph.input("positions", TensorProto.INT64, ["N", axes])
        count = graph.op("Shape", positions, end=1)
        patches, positions = self._some(graph, patches, positions, count)
        results = self.queries(graph, given, patches, positions)
        for index, value in enumerate(results):
            shape = ["N", *value.shape[1:]]
            cut = graph.op("Slice", value.name, graph.ints(0), count, graph.ints(0))
            graph.output(cut, f"result_{index}", dtype_of(value.dtype), shape)
        return self.model(graph)

    def _some(self, graph: Graph, patches: str, positions: str, count: str) -> tuple[str, str]:
        """At least one query, and a patch for each: many ops refuse empty tensors."""
        missing = graph.op("Sub", graph.op("Max", count, graph.ints(1)), count)
        positions = graph.op("Pad", positions, graph.op("Concat", graph.ints(0, 0), missing, graph.ints(0), axis=0))
        given = graph.op("Shape", patches, end=1)
        lacking = graph.op("Sub", graph.op("Max", given, graph.ints(1)), given)
        none = graph.ints(*[0] * (len(self.plan.input_shape)))
        patches = graph.op("Pad", patches, graph.op("Concat", graph.ints(0), none, lacking, none, axis=0))
        rows = graph.op(
            "Concat", graph.op("Shape", positions, end=1), graph.ints(*[1] * len(self.plan.input_shape)), axis=0
        )
        return graph.op("Expand", patches, rows), positions

    def queries(self, graph: Graph, bases: Mapping[str, str], patches: str, positions: str) -> list[Value]:
        """The results for at least one query, from values in the graph (or its parents)."""
        sizes = graph.op("Shape", patches, start=2)
        geometry = Geometry(graph, self.plan, positions, sizes)
        given = {f"base_{name}": value for name, value in bases.items()}
        for name, constant in self.source.constants.items():
            given[f"base_{name}"] = graph.constant(array_of(constant), name=f"base_{name}")
        whole = Walk(graph, self.source.front, self.front_sizes, {**given, "patches": patches}, geometry).run()
        names = [str(node.target) for node in self.source.tail.graph.find_nodes(op="placeholder")]
        handed = {name: value.name for name, value in zip(names, whole, strict=True)}
        results: list[Value] = Walk(graph, self.source.tail, self.tail_sizes, handed).run()
        return results

    def images(self, graph: Graph) -> list[str]:
        """The inputs that are materialised: the image, and others with rows."""
        names = [graph.input("image", dtype_of(self.source.dtype), [1, *self.plan.input_shape])]
        for index, (shape, dtype) in enumerate(self.source.others, start=1):
            names.append(graph.input(f"input_{index}", dtype_of(dtype), [1, *shape]))
        return names

    def materialized(self, graph: Graph, images: list[str]) -> tuple[list[Any], dict[str, str]]:
        """The flat outputs, and the base tensors that differ from image to image."""
        names = [str(node.target) for node in self.source.materializer.graph.find_nodes(op="placeholder")]
        given = dict(zip(names, images, strict=True))
        outputs, sources = Walk(graph, self.source.materializer, self.materialize_sizes, given).run()
        pairs = zip(self.plan.bases, sources, strict=True)
        return outputs, {base.name: store(graph, base, value) for base, value in pairs if base.batched}

    def _rows(self) -> list[BaseTensor]:
        return [base for base in self.plan.bases if base.batched]

    def _dtype(self, base: BaseTensor) -> torch.dtype:
        if not base.batched:
            return self.source.constants[base.name].dtype
        node = next(n for n in self.source.materializer.graph.nodes if n.name == base.source)
        described = self.materialize_sizes[node]
        assert isinstance(described, Described)
        return described.dtype

    def _tail_call(self, rows: int) -> dict[str, Tensor]:
        """Inputs of the tail."""
        nodes = self.source.tail.graph.find_nodes(op="placeholder")
        whole = next(n for n in self.source.front.graph.nodes if n.op == "output").args[0]
        kinds = [self.front_sizes[node] for node in whole]
        return {
            str(node.target): torch.empty(rows, *kind.shape[1:], dtype=kind.dtype, device="meta")
            for node, kind in zip(nodes, kinds, strict=True)
        }

    def model(self, graph: Graph) -> ModelProto:
        """A model of a graph, with the functions that it may call."""
        opsets = [helper.make_opsetid("", self.opset), helper.make_opsetid(DOMAIN, 1)]
        made = functions(len(self.plan.patch_shape), self.opset)
        model: ModelProto = helper.make_model(
            graph.proto(), opset_imports=opsets, functions=list(made), ir_version=IR_VERSION
        )
        model.producer_name = DOMAIN
        return model


def stored_shape(base: BaseTensor) -> tuple[int, ...]:
    """[*padded sizes, C] of a base tensor."""
    padded = [size + low + high for size, (low, high) in zip(base.sizes, base.padding, strict=True)]
    return (*padded, prod(base.shape) // max(prod(base.sizes), 1))


def store(graph: Graph, base: BaseTensor, value: Value) -> str:
    """A tensor [1, ...] as its windows are read from: channels last, padded (`runtime.base_store`)."""
    channels = [dim for dim in range(1, value.rank) if dim not in base.axes]
    laid = graph.op("Transpose", value.name, perm=[0, *base.axes, *channels])
    flat = graph.op("Reshape", laid, graph.ints(*base.sizes, -1))
    if not any(cells for axis in base.padding for cells in axis):
        return flat
    low, high = zip(*base.padding, strict=True)
    fill = graph.constant(array_of(torch.tensor(base.fill, dtype=value.dtype)))
    return graph.op("Pad", flat, graph.ints(*low, 0, *high, 0), fill)
