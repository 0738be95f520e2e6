"""What emit writes into the front graph for one op: windows, their inputs, and what is done to a result."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

import kcompile.cuda_ops.schema  # noqa: F401  (defines torch.ops.kcompile)
from kcompile.core.plan import Read
from kcompile.passes.arrange import from_channels_first, to_channels_first
from kcompile.passes.infra import aten
from kcompile.passes.planning import Planned
from kcompile.passes.propagate import NodeInfo, tensor_inputs
from kcompile.passes.rules.registry import Weights

ops = torch.ops.kcompile


class Windows:
    """The front graph under construction; ``front`` maps nodes of the canonical graph to its nodes."""

    def __init__(self, module: fx.GraphModule, planned: Planned) -> None:
        """Begin with the placeholder of the patches."""
        self.module, self.planned = module, planned
        self.front_graph = fx.Graph()
        self.front: dict[fx.Node, fx.Node] = {}
        self.raw = self.front_graph.placeholder("patches")
        self.inputs: dict[str, fx.Node] = {}

    def resample(self, node: fx.Node, info: NodeInfo, weights: Sequence[Weights | None]) -> fx.Node:
        """Weighted sums of cells, by the tables that the rule read off the op."""
        assert info.record.out is not None
        (arg,) = tensor_inputs(node)
        read = self.planned.reads[node.name, 0]
        if not any(w is not None for w in weights):  # it changes nothing
            return self.read(read, self.front.get(arg), info.rule)
        window = self.read(read, self.front.get(arg), info.rule, arranged=False)
        tables: tuple[list[fx.Node], list[fx.Node]] = ([], [])
        for axis, w in enumerate(weights):
            index = torch.empty(0, 0, dtype=torch.int64) if w is None else torch.from_numpy(w.index)
            plain = w is None or w.factor is None
            factor = torch.empty(0, 0) if plain else torch.from_numpy(w.factor)  # type: ignore[union-attr]
            factor = factor.to(arg.meta["val"].dtype)
            for nodes, kind, value in zip(tables, ("index", "factor"), (index, factor), strict=True):
                nodes.append(self._buffer(f"{node.name}_{kind}_{axis}", value))
        new = self.front_graph.call_function(
            ops.resample.default, (window, *self._placed(read), *tables), name=node.name
        )
        self.describe(new, node, info.rule)
        return from_channels_first(self.front_graph, new, info.axes, info.record.out.shape)

    def sum(self, windows: Sequence[fx.Node], node: fx.Node, rule: str) -> fx.Node:
        """Windows of which at most one is not 0 at any cell, as one."""
        total = windows[0]
        for window in windows[1:]:
            total = self.front_graph.call_function(aten.add.Tensor, (total, window))
            self.describe(total, node, rule)
        return total

    def crop(self, new: fx.Node, node: fx.Node, info: NodeInfo, crop: Sequence[tuple[int, int]]) -> fx.Node:
        """Cut the box out of a result that is larger."""
        assert info.record.out is not None
        read = self.planned.reads[node.name, 0]
        laid = to_channels_first(self.front_graph, new, info.axes, info.record.out.shape)
        strides, shifts = (list(values) for values in zip(*crop, strict=True))
        box = self.front_graph.call_function(ops.crop.default, (laid, *self._placed(read), strides, shifts))
        self.describe(box, node, info.rule)
        return from_channels_first(self.front_graph, box, info.axes, info.record.out.shape)

    def _placed(self, read: Read) -> tuple[fx.Node, ...]:
        """Where the window of a placed read and its box begin, and the box's size."""
        return tuple(self.input(f"{read.name}_{part}") for part in ("start", "at", "size"))

    def _buffer(self, name: str, value: Tensor) -> fx.Node:
        """A constant of the front: on the module that emit copies it from, under a name of its own."""
        unique = f"kcompile_{name}"
        self.module.register_buffer(unique, value)
        return self.front_graph.get_attr(unique)

    def read(self, read: Read, patch: fx.Node | None, rule: str, arranged: bool = True) -> fx.Node:
        """Gather a window and superimpose the patch tensor; ``arranged`` as the tensor itself is laid out."""
        source = self.planned.plan.base(read.base)
        laid = self._window(read, patch, rule)
        return from_channels_first(self.front_graph, laid, source.axes, source.shape) if arranged else laid

    def _window(self, read: Read, patch: fx.Node | None, rule: str) -> fx.Node:
        """The window as gather makes it."""
        source = self.planned.plan.base(read.base)
        shape = source.shape
        base = self.input(f"base_{read.base}")
        origins, extent = self.input(f"{read.name}_origins"), self.input(f"{read.name}_extent")
        window = self.front_graph.call_function(ops.gather.default, (base, origins, extent), name=f"gather_{read.name}")
        window.meta.update(read=read, rule=rule, shape=shape)
        if read.patch is None:
            return window
        assert patch is not None
        if patch is not self.raw:
            patch = to_channels_first(self.front_graph, patch, source.axes, shape)
        offsets = self.input(f"{read.name}_offsets")
        laid = self.front_graph.call_function(
            ops.superimpose.default, (window, patch, offsets), name=f"superimpose_{read.name}"
        )
        laid.meta.update(read=read, rule=rule, shape=shape)
        return laid

    def input(self, name: str) -> fx.Node:
        """The placeholder of a base tensor or a part of a read's geometry."""
        if name not in self.inputs:
            with self.front_graph.inserting_after(next(iter(reversed(self.inputs.values())), self.raw)):
                self.inputs[name] = self.front_graph.placeholder(name)
        return self.inputs[name]

    def constant_of(self, graph: fx.Graph, env: dict[fx.Node, fx.Node], node: fx.Node) -> fx.Node:
        """A weight or other constant, in one of the graphs; or what is computed from tensors given without rows."""
        if node not in env and node.op == "get_attr":
            env[node] = graph.get_attr(str(node.target))
            env[node].meta["val"] = node.meta["val"]
        elif node not in env:
            assert node.op == "call_function", f"{node} is neither in a region nor a constant"
            env[node] = graph.node_copy(node, lambda arg: self.constant_of(graph, env, arg))
            self.describe(env[node], node, "given")
        return env[node]

    @staticmethod
    def describe(new: fx.Node, old: fx.Node, rule: str) -> None:
        """Every emitted node carries the rule that made it, and the user's module and line."""
        new.meta = {key: old.meta[key] for key in ("nn_module_stack", "stack_trace") if key in old.meta}
        new.meta["rule"] = rule
        if isinstance(old.meta.get("val"), Tensor):
            new.meta["shape"] = _known(old.meta["val"].shape[1:])
            new.meta["input_sizes"] = [_known(arg.meta["val"].shape[2:]) for arg in tensor_inputs(old)]


def _known(shape: Sequence[Any]) -> tuple[int, ...]:
    """Sizes; -1 where the batch is folded in."""
    return tuple(size if isinstance(size, int) else -1 for size in shape)
