"""Capture: an `nn.Module` becomes an fx graph of ATen ops (torch.export, no decompositions)."""

from __future__ import annotations

import inspect
import os
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram, ShapesCollection
from torch.utils import _pytree as pytree

from kcompile.core.errors import CaptureError, ModelModeError
from kcompile.core.plan import GIVEN
from kcompile.passes.infra import user_line

_MODE_SENSITIVE = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)


@dataclass(frozen=True)
class Captured:
    """A model as a graph.

    Attributes:
        module: Graph module with one placeholder per tensor input (the image batch first), weights as attributes and a
            flat tuple as output.
        out_spec: How the flat outputs form the model's own output structure.
        switches_autocast: The model enters or leaves autocast by itself; its graph has casts instead.
    """

    module: fx.GraphModule
    out_spec: pytree.TreeSpec
    switches_autocast: bool = False


@dataclass(frozen=True)
class Example:
    """A call of a model, for tracing.

    Attributes:
        leaves: The call's arguments, flat; tensors with rows have B >= 2 of them (one would be specialised).
        spec: How the leaves form (args, kwargs).
        image: Index of the image batch [B, C, *S] among the leaves.
        batched: Indices of the tensors that have a row for each image.
    """

    leaves: tuple[Any, ...]
    spec: pytree.TreeSpec
    image: int
    batched: frozenset[int]

    @staticmethod
    def of(images: Tensor) -> Example:
        """The call of a model whose only argument is an image batch."""
        return Example((images,), pytree.tree_structure(((images,), {})), 0, frozenset({0}))

    @property
    def images(self) -> Tensor:
        """The image batch."""
        images: Tensor = self.leaves[self.image]
        return images

    @property
    def call(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments (args, kwargs)."""
        args, kwargs = pytree.tree_unflatten(list(self.leaves), self.spec)
        return args, kwargs

    def with_images(self, images: Tensor) -> Example:
        """The same call for other images."""
        leaves = (*self.leaves[: self.image], images, *self.leaves[self.image + 1 :])
        return replace(self, leaves=leaves)

    def shapes(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What torch.export is told of the shapes: rows may be any number."""
        collection = ShapesCollection()
        for index in self.batched:
            collection[self.leaves[index]] = {0: Dim.DYNAMIC}
        return collection.dynamic_shapes(model, args, kwargs)


def capture(model: nn.Module, example: Tensor | Example) -> Captured:
    """Trace a model with a dynamic batch.

    Args:
        model: In eval mode.
        example: A batch [B, C, *S] with B >= 2 (a batch of one would be specialised), or a whole call.

    Raises:
        ModelModeError: Batch norm or dropout is active.
        CaptureError: The model's control flow depends on data, or torch.export can't trace it; names the user's line.
    """
    check_mode(model)
    whole = Example.of(example) if isinstance(example, Tensor) else example
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch 2.11 warns of its own export
            warnings.filterwarnings("ignore", "Raw Sym", UserWarning)  # and torch 2.15
            args, kwargs = whole.call
            kwargs = _as_declared(model, kwargs)
            shapes = whole.shapes(model, args, kwargs)
            with _rows_agree(model, whole):
                program = torch.export.export(model, args, kwargs, dynamic_shapes=shapes, strict=False)
            switches = any("autocast" in str(node.target) for node in _all_calls(program.graph_module))
            captured = replace(_flat(program.run_decompositions({}), whole), switches_autocast=switches)
    except Exception as error:
        raise CaptureError(
            f"torch.export could not trace {type(model).__name__}: {_summary(error)}{_user_frame(error)}"
        ) from error
    _check_random(captured.module)
    return captured


def _as_declared(model: nn.Module, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments by name in the order of the signature: of a graph as a model, torch.export takes them in turn."""
    declared = list(inspect.signature(model.forward).parameters)
    return dict(
        sorted(kwargs.items(), key=lambda item: declared.index(item[0]) if item[0] in declared else len(declared))
    )


@contextmanager
def _rows_agree(model: nn.Module, example: Example) -> Iterator[None]:
    """Inside, tracing learns first of all that all inputs with rows have as many."""

    def check(_: nn.Module, args: Any, kwargs: Any) -> None:
        leaves = pytree.tree_leaves((args, dict(sorted(kwargs.items()))))
        for index in example.batched - {example.image}:
            torch._check(leaves[index].shape[0] == leaves[example.image].shape[0])

    hook = model.register_forward_pre_hook(check, with_kwargs=True) if len(example.batched) > 1 else None
    try:
        yield
    finally:
        if hook is not None:
            hook.remove()


def _all_calls(module: fx.GraphModule) -> list[fx.Node]:
    """The calls of a graph and of the graphs within it."""
    graphs = [part.graph for part in module.modules() if isinstance(part, fx.GraphModule)]
    return [node for graph in graphs for node in graph.nodes if node.op == "call_function"]


def check_mode(model: nn.Module) -> None:
    """Refuse models whose batch norm or dropout is active."""
    active = [
        f"{name or 'model'}: {type(part).__name__}"
        for name, part in model.named_modules()
        if part.training and isinstance(part, _MODE_SENSITIVE)
    ]
    if active:
        raise ModelModeError(
            f"the model is in training mode ({', '.join(active[:3])}{', …' if len(active) > 3 else ''} would use batch "
            "statistics or drop values): call model.eval() first"
        )


def _check_random(module: fx.GraphModule) -> None:
    """Refuse models that draw random numbers: two inferences of one image differ."""
    for node in module.graph.nodes:
        random = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()) and node.users
        if random and not _is_off(node):
            raise ModelModeError(
                f"the model draws random numbers ({node.target}), so that two inferences of one image differ. Is a "
                f"part of it in training mode? Call model.eval() first.\n  {user_line(node)}"
            )


def _is_off(node: fx.Node) -> bool:
    """True for a call that could draw numbers, but is told not to: no training, or nothing dropped."""
    names = [argument.name for argument in node.target._schema.arguments]  # type: ignore[union-attr]
    given = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
    if "train" in names or "training" in names:
        return not given.get("train", given.get("training", False))
    return "dropout_p" in names and given.get("dropout_p", 0.0) == 0.0


def _summary(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:3])[:600] or type(error).__name__


def _user_frame(error: Exception) -> str:
    """The user's own line in a traceback: the innermost frame outside of torch, this file and the standard library."""
    library, torch_home = os.path.dirname(os.__file__), os.path.join(os.path.dirname(torch.__file__), "")
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith(("<", torch_home, __file__)) and os.path.dirname(frame.filename) != library
    ]
    return f"\n  {frames[-1].filename}:{frames[-1].lineno}: {frames[-1].line}" if frames else ""


def _flat(program: ExportedProgram, example: Example) -> Captured:
    """Drop the input guard and the pytree wrapping of the exported module."""
    module: Any = program.module()
    graph: fx.Graph = module.graph
    for node in list(graph.nodes):
        if node.op == "call_module" and not node.users:
            graph.erase_node(node)
    _order_inputs(module, example, program.call_spec.in_spec)
    for node in graph.find_nodes(op="call_function", target=torch.ops.aten.copy_.default):
        node.replace_all_uses_with(node.args[1])  # what the model writes into its input or buffers stays in the graph
        graph.erase_node(node)
    graph.set_codegen(fx.graph.CodeGen())
    output = next(node for node in graph.nodes if node.op == "output")
    leaves, out_spec = pytree.tree_flatten(output.args[0])
    output.args = (tuple(leaves),)
    spec = program.call_spec.out_spec
    flat = fx.GraphModule(module, _renamed(graph))
    return Captured(flat, out_spec if spec is None else spec)


def _order_inputs(module: fx.GraphModule, example: Example, in_spec: pytree.TreeSpec) -> None:
    """Put the image batch first and drop what are no tensors: torch.export has made constants of them.

    A tensor without rows becomes a buffer, as it serves all queries alike.
    """
    found = module.graph.find_nodes(op="placeholder")
    args, kwargs = pytree.tree_unflatten(list(found), in_spec)
    inputs = pytree.tree_leaves((args, dict(sorted(kwargs.items()))))  # the program may take names in another order
    image = inputs[example.image]
    for node in reversed([image, *(node for node in inputs if node is not image)]):
        found[0].prepend(node)
        found = [node]
    for index, (leaf, node) in enumerate(zip(example.leaves, inputs, strict=True)):
        if isinstance(leaf, Tensor) and index not in example.batched:
            value = nn.Parameter(leaf.clone(), requires_grad=False)  # fx's unpickling would freeze ops on a buffer
            module.register_parameter(f"{GIVEN}{index}", value)
            with module.graph.inserting_before(node):
                given = module.graph.get_attr(f"{GIVEN}{index}")
            given.meta["val"] = node.meta["val"]
            node.replace_all_uses_with(given)
        if index not in example.batched:
            module.graph.erase_node(node)


def _renamed(graph: fx.Graph) -> fx.Graph:
    """The same graph with calls named after their ops and numbered in order: names differ between versions of torch."""
    copy = fx.Graph()
    new: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        name = str(node.target).split(".")[1] if str(node.target).startswith("aten.") else node.name
        args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), new.__getitem__)
        new[node] = copy.create_node(node.op, node.target, args, kwargs, name)
        new[node].meta = dict(node.meta)
    return copy
