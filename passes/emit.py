"""Emit: the plan as fx graph modules.

Three graphs: *materialize* (image batch -> outputs and base tensors), *front* (patches, base tensors, geometry -> the
whole tensors at the boundary to dense ops) and *tail* (those -> outputs). A gather and a superimpose stand at every
boundary; `passes.cancel` removes those that undo each other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from kcompile.core.errors import CaptureError
from kcompile.core.plan import BaseTensor, Placement, Read
from kcompile.passes.infra import aten, constant
from kcompile.passes.place import Placed
from kcompile.passes.planning import Planned
from kcompile.passes.planning import results as results_of
from kcompile.passes.propagate import Analysis, tensor_inputs
from kcompile.passes.rules.registry import Spatial
from kcompile.passes.windows import Windows


@dataclass
class Emitted:
    """The graph modules of a plan.

    ``outputs`` says for each of the model's flat outputs which result of ``tail`` it is, or what constant; None for
    what the base images give.
    """

    front: fx.GraphModule
    tail: fx.GraphModule
    outputs: list[int | tuple[Any] | None]


def emit(module: fx.GraphModule, analysis: Analysis, placed: dict[fx.Node, Placed], planned: Planned) -> Emitted:
    """Build front and tail from the canonical graph."""
    emitter = Emitter(module, analysis, placed, planned)
    emitter.patch(analysis.image)
    where = {Placement.INCREMENTAL: emitter.incremental, Placement.DENSE: emitter.project}
    calls = [node for node in module.graph.nodes if node.op == "call_function"]
    for node in [*calls, module.graph.output_node()]:
        where.get(placed[node].placement if node in placed else Placement.DENSE, lambda _: None)(node)
    for node in calls:  # the tail's inputs stand now: its batch is known from the first
        if placed[node].placement is Placement.DENSE:
            emitter.dense(node)
    return emitter.finish()


def emit_materialize(module: fx.GraphModule, bases: tuple[BaseTensor, ...]) -> fx.GraphModule:
    """The whole canonical graph with the base tensors' sources as further outputs, after the model's own."""
    graph = fx.Graph()
    env: dict[fx.Node, fx.Node] = {}
    outputs = graph.graph_copy(module.graph, env)
    for old, new in env.items():
        if new.op == "call_function":
            Windows.describe(new, old, "materialize")
            new.meta = {**old.meta, **new.meta}  # `kcompile.analyze` reads this graph's shapes
    nodes = {old.name: new for old, new in env.items()}
    graph.output((outputs, tuple(nodes[base.source] for base in bases)))
    return fx.GraphModule(module, graph, "Materialize")


class Emitter(Windows):
    """Copies nodes into the front and tail graphs; ``front``/``tail`` map old nodes to new ones."""

    def __init__(
        self, module: fx.GraphModule, analysis: Analysis, placed: dict[fx.Node, Placed], planned: Planned
    ) -> None:
        super().__init__(module, planned)
        self.analysis, self.placed = analysis, placed
        self.tail_graph = fx.Graph()
        self.tail: dict[fx.Node, fx.Node] = {}
        self.whole: dict[str, tuple[fx.Node, fx.Node]] = {}  # projections: node in front, placeholder in tail

    def patch(self, node: fx.Node) -> None:
        """The user's patches, cropped to the image."""
        self.front[node] = self.read(self.planned.reads[node.name, 0], self.raw, "patch")

    def incremental(self, node: fx.Node) -> None:
        """A node on windows: one read per spatial input, the op with its arguments for windows."""
        info = self.analysis.nodes[node]
        assert isinstance(info.answer, Spatial)
        slots = iter(range(len(tensor_inputs(node))))

        def swap(arg: Any) -> Any:
            if isinstance(arg, fx.Node) and isinstance(arg.meta.get("val"), Tensor):
                read = self.planned.reads.get((node.name, next(slots)))
                if read is None:
                    return self.constant_of(self.front_graph, self.front, arg)
                return self.read(read, self.front.get(arg), info.rule)
            return arg

        answer = info.answer
        if answer.weights is not None:
            self.front[node] = self.resample(node, info, answer.weights)
            return
        args, kwargs = pytree.tree_map(swap, (node.args, dict(node.kwargs)), is_leaf=lambda x: isinstance(x, fx.Node))
        if answer.summed:
            self.front[node] = self.sum(args[0], node, info.rule)
            return
        target: Any = _resolve(answer.op) if answer.op else node.target
        overrides = dict(answer.overrides)
        if answer.native:
            overrides["padding"] = self.input(f"{self.planned.reads[node.name, 0].name}_padding")
        args, kwargs = _override(target, args, kwargs, overrides)
        new = self.front_graph.call_function(target, args, kwargs, name=node.name)
        self.describe(new, node, info.rule)
        self.front[node] = new if answer.crop is None else self.crop(new, node, info, answer.crop)

    def project(self, node: fx.Node) -> None:
        """Hand the tail the whole tensors that a dense node, or the output, reads of what is not dense."""
        for slot, arg in enumerate(tensor_inputs(node)):
            read = self.planned.reads.get((node.name, slot))
            if read is not None:
                self._project(read, arg)

    def dense(self, node: fx.Node) -> None:
        """A node on whole tensors, in the tail."""
        if node.target is aten.sym_size.int and self.placed.get(node.args[0]) and node.args[0] not in self.tail:  # type: ignore[arg-type]
            self.tail[node] = node  # resolved in `finish`, when the tail has an input to take the batch from
            return
        slots = iter(range(len(tensor_inputs(node))))
        new = self.tail_graph.node_copy(node, lambda arg: self._dense_arg(node, arg, slots))
        self.describe(new, node, "dense")
        self.tail[node] = new

    def _dense_arg(self, node: fx.Node, arg: fx.Node, slots: Any) -> fx.Node:
        slot = next(slots) if isinstance(arg.meta.get("val"), Tensor) else -1
        read = self.planned.reads.get((node.name, slot))
        if read is not None:
            return self._project(read, arg)
        if arg in self.tail:
            return self._batch() if self.tail[arg] is arg else self.tail[arg]
        return self.constant_of(self.tail_graph, self.tail, arg)

    def _batch(self) -> fx.Node:
        """Number of queries in the tail: the batch of its first input."""
        first = next(iter(self.tail_graph.nodes), None)
        if first is None or first.op != "placeholder":
            raise NotImplementedError("a shape is asked for before any tensor")
        return self.tail_graph.call_function(aten.sym_size.int, (first, 0))

    def finish(self) -> Emitted:
        """Close both graphs."""
        output = next(node for node in self.module.graph.nodes if node.op == "output")
        results: list[fx.Node] = []
        outputs: list[int | tuple[Any] | None] = []
        with_rows = set(results_of(self.analysis, self.placed))
        slots = iter(range(len(tensor_inputs(output))))
        for leaf in output.args[0]:
            if not isinstance(leaf, fx.Node):
                outputs.append((leaf,))
                continue
            if leaf.op == "get_attr":  # the same for any number of queries: a constant, or given with the images
                next(slots)
                value = constant(self.module, leaf)
                outputs.append(None if value is None else (value,))
                continue
            if leaf in self.placed and leaf not in with_rows and isinstance(leaf.meta.get("val"), Tensor):
                next(slots)  # made of what is given beside the images
                outputs.append(None)
                continue
            if not isinstance(leaf.meta.get("val"), Tensor):
                raise CaptureError(f"an output ({leaf}) is a number made from the batch's size, not a tensor with rows")
            outputs.append(len(results))
            results.append(self._dense_arg(output, leaf, slots))
        self.tail_graph.output(tuple(results))
        self.front_graph.output(tuple(front for front, _ in self.whole.values()))
        front = fx.GraphModule(self.module, self.front_graph, "Front")
        return Emitted(front, fx.GraphModule(self.module, self.tail_graph, "Tail"), outputs)

    def _project(self, read: Read, arg: fx.Node) -> fx.Node:
        if read.name not in self.whole:
            front = self.read(read, self.front.get(arg), "project")
            last = next((placeholder for _, placeholder in reversed(self.whole.values())), None)
            with self.tail_graph.inserting_after(last):
                placeholder = self.tail_graph.placeholder(read.name)
            placeholder.meta["shape"] = self.planned.plan.base(read.base).shape
            self.whole[read.name] = (front, placeholder)
        return self.whole[read.name][1]


def _resolve(op: str) -> Any:
    namespace, name, overload = op.split(".")
    return getattr(getattr(getattr(torch.ops, namespace), name), overload)


def _override(
    target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], overrides: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Replace arguments by name; positional ones between the given and the last replaced are filled with defaults."""
    arguments = target._schema.arguments
    merged = {**dict(zip([a.name for a in arguments], args, strict=False)), **kwargs, **overrides}
    positional = [a for a in arguments if not a.kwarg_only]
    last = max((i for i, a in enumerate(positional) if a.name in merged), default=-1)
    return tuple(
        merged.get(a.name, a.default_value if a.has_default_value() else None) for a in positional[: last + 1]
    ), {a.name: merged[a.name] for a in arguments if a.kwarg_only and a.name in merged}
