"""The whole experiment in one model: materialise once, loop over batches of positions, give the scores."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from onnx import ModelProto, TensorProto

from kcompile.core.errors import OnnxExportError
from kcompile.core.plan import Plan
from kcompile.passes.to_onnx.call import Value, array_of, dtype_of
from kcompile.passes.to_onnx.graph import Graph
from kcompile.passes.to_onnx.models import Models
from kcompile.passes.to_onnx.order import sort_keys


@dataclass(frozen=True)
class Scored:
    """Which output is scored, and how.

    Attributes:
        output: Index among the flat outputs, [N, K] or [N].
        result: Index among the tail's results.
        score: "probability" or "logit".
        activation: The model's own last op: "softmax", "log_softmax", "sigmoid" or None.
    """

    output: int
    result: int
    score: str
    activation: str | None


def heatmap(models: Models, scored: Scored, batch: int) -> ModelProto:
    """Image, patch and positions (or a stride) to scores.

    Inputs: ``image`` [1, C, *S] (and others with rows), ``patch`` [C, *sizes], ``positions`` int64 [given, axes] and
    ``stride`` int64 [axes], which adds a grid after the positions that are given (0: none). Neither has a default:
    OpenVINO takes inputs with one for constants.
    Outputs: ``scores`` [N, K], ``base_score`` [K] and the ``places`` [N, axes].

    Args:
        models: Of the source.
        scored: What the scores are.
        batch: The most queries in one turn of the loop.

    The loop's body has its weights as initialisers of its own, at the same places of the weights' file: runtimes pack
    weights beforehand only where they are constants of the graph that reads them.
    """
    graph, plan = Graph(models.weights, "heatmap", opset=models.opset), models.plan
    axes, dtype = len(plan.patch_shape), models.source.dtype
    images = models.images(graph)
    sides = [f"patch_{axis}" for axis in range(axes)]
    patch = graph.input("patch", dtype_of(dtype), [plan.input_shape[0], *sides])
    given = graph.input("positions", TensorProto.INT64, ["given", axes])
    stride = graph.input("stride", TensorProto.INT64, [axes])
    outputs, bases = models.materialized(graph, images)
    base = _scores(graph, outputs[scored.output], scored)
    sizes = graph.op("Shape", patch, start=1)
    places = graph.op("Concat", given, _grid(graph, plan.input_shape[1:], sizes, stride), axis=0)
    count = graph.op("Shape", places, end=1)
    order = _order(graph, plan, batch, places, count)
    sorted_, trips = _batches(graph, graph.op("Gather", places, order, axis=0), count, batch, axes)
    body = _body(models, graph, bases, patch, sorted_, scored)
    stacked = graph.op("Loop", trips, graph.constant(np.array(True)), body=body)  # [trips, batch, K]
    scores = _in_order(graph, stacked, order, count)
    width = base.shape[1]
    graph.output(scores, "scores", dtype_of(base.dtype), ["N", width])
    graph.output(graph.op("Squeeze", base.name, graph.ints(0)), "base_score", dtype_of(base.dtype), [width])
    graph.output(places, "places", TensorProto.INT64, ["N", axes])
    return models.model(graph)


def _in_order(graph: Graph, stacked: str, order: str, count: str) -> str:
    """The scores [N, K] of the positions as they were asked for, of those in batches [trips, batch, K]."""
    classes = graph.op("Shape", stacked, start=2)
    flat = graph.op("Reshape", stacked, graph.op("Concat", graph.ints(-1), classes, axis=0))
    found = graph.op("Slice", flat, graph.ints(0), count, graph.ints(0))
    return graph.op("ScatterND", found, graph.op("Unsqueeze", order, graph.ints(1)), found)


def _grid(graph: Graph, image: tuple[int, ...], sizes: str, stride: str) -> str:
    """Positions [rows * cols, axes] every ``stride`` pixels; none where the stride is 0."""
    axes = len(image)
    some = graph.op("Cast", graph.op("Greater", stride, graph.ints(0)), to=TensorProto.INT64)
    room = graph.op("Sub", graph.ints(*image), sizes)
    steps = graph.op("Add", graph.op("Div", room, graph.op("Max", stride, graph.ints(1))), graph.ints(1))
    counts = graph.op("Mul", steps, some)
    columns = []
    for axis in range(axes):
        zero, one, at = (graph.constant(value, "int64") for value in (0, 1, axis))
        along = graph.op("Range", zero, graph.op("Gather", counts, at), one)
        along = graph.op("Mul", along, graph.op("Gather", stride, graph.ints(axis)))
        others = [dim for dim in range(axes) if dim != axis]
        laid = graph.op("Unsqueeze", along, graph.ints(*others)) if others else along
        columns.append(graph.op("Reshape", graph.op("Expand", laid, counts), graph.ints(-1, 1), allowzero=0))
    return graph.op("Concat", *columns, axis=1)


def _order(graph: Graph, plan: Plan, batch: int, places: str, count: str) -> str:
    """Numbers [N] of the positions in the order of their keys."""
    total = ""
    for axis, table in enumerate(sort_keys(plan, batch)):
        at = graph.op("Gather", places, graph.constant(axis, "int64"), axis=1)
        from_first = graph.op("Add", at, graph.ints(plan.patch_shape[axis] - 1))
        index = graph.op("Min", graph.op("Max", from_first, graph.ints(0)), graph.ints(len(table) - 1))
        part = graph.op("Gather", graph.constant(table), index)
        total = graph.op("Add", total, part) if total else part
    _, order = graph.ops("TopK", total, count, count=2, name="order", axis=0, largest=0, sorted=1)
    return order


def _batches(graph: Graph, places: str, count: str, batch: int, axes: int) -> tuple[str, str]:
    """Positions [batches, each, axes], the last repeated to fill the last batch, and the number of batches.

    They are as few as batches of up to ``batch`` can be, and equal, so that hardly any is filled up.
    """
    whole = graph.op("Div", graph.op("Add", count, graph.ints(batch - 1)), graph.ints(batch))
    trips = graph.op("Max", whole, graph.ints(1))  # a loop without turns has results of unknown sizes
    up = graph.op("Add", count, graph.op("Sub", trips, graph.ints(1)))
    each = graph.op("Max", graph.op("Div", up, trips), graph.ints(1))
    rows = graph.op("Mul", trips, each)
    numbers = graph.op("Range", graph.constant(0, "int64"), graph.op("Squeeze", rows), graph.constant(1, "int64"))
    some = graph.op("Max", count, graph.ints(1))
    missing = graph.op("Concat", graph.ints(0, 0), graph.op("Sub", some, count), graph.ints(0), axis=0)
    least, last = graph.op("Pad", places, missing), graph.op("Sub", some, graph.ints(1))
    filled = graph.op("Gather", least, graph.op("Min", numbers, last), axis=0)
    shape = graph.op("Concat", trips, each, graph.ints(axes), axis=0)
    return graph.op("Reshape", filled, shape), graph.op("Squeeze", trips)


def _body(models: Models, parent: Graph, bases: dict[str, str], patch: str, batches: str, scored: Scored) -> object:
    """One batch: its number and a condition to the condition and the scores [each, K]."""
    body = Graph(models.weights, "batch", parent)
    number = body.input(body.unique("number"), TensorProto.INT64, [])
    going = body.input(body.unique("going"), TensorProto.BOOL, [])
    positions = body.op("Gather", batches, number, axis=0)
    one = body.op("Unsqueeze", patch, body.ints(0))
    ones = body.ints(*[1] * len(models.plan.input_shape))
    rows = body.op("Concat", body.op("Shape", positions, end=1), ones, axis=0)
    results = models.queries(body, bases, body.op("Expand", one, rows), positions)
    scores = _scores(body, results[scored.result], scored)
    body.output(going, body.unique("going_on"), TensorProto.BOOL, [])
    body.output(scores.name, body.unique("batch_scores"), dtype_of(scores.dtype), ["each", scores.shape[1]])
    return body.proto()


def _scores(graph: Graph, value: Value, scored: Scored) -> Value:
    """Scores [N, K] as `kcompile.scoring` makes them."""
    if value.rank not in (1, 2) or not value.dtype.is_floating_point:
        raise OnnxExportError(f"output {scored.output} has {value.rank} dimensions, not [N, classes]: it has no scores")
    name = value.name if value.rank == 2 else graph.op("Unsqueeze", value.name, graph.ints(1))
    width = value.shape[1] if value.rank == 2 else 1
    name = (
        _probability(graph, name, width, scored)
        if scored.score == "probability"
        else _logit(graph, name, value, scored)
    )
    return Value(name, value.dtype, (value.shape[0], width))


def _probability(graph: Graph, name: str, width: int | None, scored: Scored) -> str:
    if scored.activation in ("softmax", "sigmoid"):
        return name
    if scored.activation == "log_softmax":
        return graph.op("Exp", name)
    return graph.op("Sigmoid", name) if width == 1 else graph.op("Softmax", name, axis=1)


def _logit(graph: Graph, name: str, value: Value, scored: Scored) -> str:
    info = torch.finfo(value.dtype)

    def number(of: float) -> str:
        return graph.constant(array_of(torch.tensor(of, dtype=value.dtype)))

    if scored.activation == "softmax":
        return graph.op("Log", graph.op("Max", name, number(info.tiny)))
    if scored.activation == "sigmoid":
        inside = graph.op("Min", graph.op("Max", name, number(info.eps)), number(1 - info.eps))
        return graph.op("Log", graph.op("Div", inside, graph.op("Sub", number(1.0), inside)))
    return name
