"""What is accepted as a model: modules, and graphs that torch.export or torch.fx made of one."""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from kcompile.core.errors import InputError

ALLOWED = "a torch.nn.Module (torch.fx.GraphModule included) or a torch.export.ExportedProgram"


def as_module(model: Any) -> nn.Module:
    """The model as an ordinary module.

    Args:
        model: A module is returned as it is, unless torch.export made it: such modules can't be copied, pickled or put
            into eval mode. They, and programs, become an ordinary graph module, which shares the weights.

    Raises:
        InputError: Something else, or a program that was exported for a fixed batch.
    """
    if isinstance(model, ExportedProgram):
        return _unguarded(model.module())
    if not isinstance(model, nn.Module):
        raise InputError(f"the model must be {ALLOWED}, got {type(model).__name__}")
    made_by_export = isinstance(model, fx.GraphModule) and "train" in vars(model)
    return _unguarded(model) if made_by_export else model


def _unguarded(module: Any) -> nn.Module:
    """A program's module without what checks its inputs."""
    _check_batch(module.graph)
    graph = fx.Graph()
    copied: dict[fx.Node, fx.Node] = {}
    graph.output(graph.graph_copy(module.graph, copied))
    graph.set_codegen(module.graph._codegen)
    for node in list(graph.nodes):
        if node.op == "call_module" and not node.users:
            graph.erase_node(node)
    return fx.GraphModule(module, graph, "Exported").eval()


def _check_batch(graph: fx.Graph) -> None:
    """Refuse graphs whose inputs all have fixed sizes: their batch is part of every view in them."""
    inputs = [node.meta.get("val") for node in graph.nodes if node.op == "placeholder"]
    batches = [value.shape[0] for value in inputs if isinstance(value, Tensor) and value.dim()]
    if batches and all(isinstance(size, int) for size in batches):
        raise InputError(
            f"the program was exported for a fixed batch of {batches[0]}, which is baked into its graph; allowed are "
            "programs with a dynamic batch: torch.export.export(model, (images,), "
            "dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)) with at least two images"
        )
