"""The pipeline: capture, canonicalise, propagate, place, plan, emit, cancel, prune."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from kcompile.core.plan import Plan
from kcompile.passes.arrange import CancelArrangements
from kcompile.passes.cancel import CancelPairs, DropUnusedInputs, FusePairs, used_reads
from kcompile.passes.canonicalize import PASSES
from kcompile.passes.capture import Captured, Example, capture
from kcompile.passes.emit import emit, emit_materialize
from kcompile.passes.infra import aten, constant, run_passes
from kcompile.passes.place import place
from kcompile.passes.planning import make_plan, prune
from kcompile.passes.propagate import Analysis, propagate
from kcompile.passes.verify import verify_plan

_SHAPE_ONLY = (
    aten.reshape.default, aten.flatten.using_ints, aten.unflatten.int, aten.unsqueeze.default, aten.permute.default,
    aten.squeeze.dim, aten.squeeze.dims, aten.squeeze.default,
)  # fmt: skip


@dataclass(frozen=True)
class Compiled:
    """The result of compilation: a plan, its graph modules, and how the outputs are put together.

    ``outputs`` says for each flat output which result of ``tail`` it is, or what constant, or None for what the base
    images give; ``out_spec`` is the pytree
    structure of the model's output. ``activations`` names each output's final softmax or sigmoid. ``unread`` are the
    model's buffers that its outputs don't depend on, as counters. ``switches_autocast`` is as in `Captured`. ``scales``
    are the factors of batch norms that were folded into float32 weights, by the weights' names.
    """

    plan: Plan
    materialize: fx.GraphModule
    front: fx.GraphModule
    tail: fx.GraphModule
    outputs: tuple[int | tuple[Any] | None, ...]
    out_spec: pytree.TreeSpec
    activations: tuple[str | None, ...]
    unread: frozenset[str] = frozenset()
    switches_autocast: bool = False
    scales: dict[str, Tensor] = field(default_factory=dict)


def compile_model(
    model: nn.Module, example: Tensor | Example, patch_shape: tuple[int, ...], *, on_unsupported: str = "dense"
) -> Compiled:
    """Compile a model for patches of up to ``patch_shape``.

    Args:
        model: In eval mode.
        example: An image batch [B >= 2, C, *S] of the model's type and device, or a whole call.
        patch_shape: Patch size per axis, in pixels.
        on_unsupported: "dense" or "error", for ops without a spatial rule.
    """
    images = example if isinstance(example, Tensor) else example.images
    shape = tuple(int(size) for size in images.shape[1:])
    captured = capture(model, example)
    unread, switches = _unread(model, captured.module), captured.switches_autocast
    done = compile_captured(captured, shape, patch_shape, on_unsupported=on_unsupported)
    return replace(done, unread=unread, switches_autocast=switches)


def compile_captured(
    captured: Captured, shape: tuple[int, ...], patch_shape: tuple[int, ...], *, on_unsupported: str = "dense"
) -> Compiled:
    """As `compile_model`, of a graph that stands already.

    Args:
        captured: An ATen graph whose nodes carry ``meta["val"]``, with a symbolic batch.
        shape: (C, *S) of one image.
        patch_shape: Patch size per axis, in pixels.
        on_unsupported: "dense" or "error", for ops without a spatial rule.
    """
    module = run_passes(captured.module, PASSES).module
    done = compile_analysed(module, propagate(module, shape, patch_shape), on_unsupported=on_unsupported)
    return replace(done, out_spec=captured.out_spec, scales=_folded_scales(module))


def compile_analysed(module: fx.GraphModule, analysis: Analysis, *, on_unsupported: str = "dense") -> Compiled:
    """As `compile_captured`, of a canonical graph with its regions, which need not be all that a patch can reach.

    Args:
        module: The graph.
        analysis: What `propagate` found.
        on_unsupported: "dense" or "error", for ops without a spatial rule.

    Returns:
        The compiled graph, whose outputs form a list.
    """
    shape, patch_shape = analysis.image_shape, analysis.patch_shape
    placed = place(analysis, on_unsupported)
    planned = make_plan(analysis, placed, shape, patch_shape)
    verify_plan(planned.plan)
    emitted = emit(module, analysis, placed, planned)
    front = run_passes(emitted.front, [CancelPairs(), CancelArrangements(), FusePairs(), DropUnusedInputs()]).module
    plan = prune(planned.plan, used_reads(front))
    verify_plan(plan)
    tail = run_passes(emitted.tail, []).module
    outputs = tuple(emitted.outputs)
    spec = pytree.tree_structure([0] * len(outputs))
    return Compiled(plan, emit_materialize(module, plan.bases), front, tail, outputs, spec, _activations(module))


def _unread(model: nn.Module, module: fx.GraphModule) -> frozenset[str]:
    """Names of the model's buffers that no output of its graph depends on."""
    module.graph.eliminate_dead_code()
    read = [constant(module, node) for node in module.graph.nodes if node.op == "get_attr"]
    places = {(value.data_ptr(), value.shape) for value in read if value is not None}
    return frozenset(name for name, value in model.named_buffers() if (value.data_ptr(), value.shape) not in places)


def _folded_scales(module: fx.GraphModule) -> dict[str, Tensor]:
    """The factors that `FoldBatchNorm` left with float32 weights; autocast rounds no others."""
    weights = [node for node in module.graph.find_nodes(op="get_attr") if "folded" in node.meta]
    found = {str(node.target): node.meta["folded"] for node in weights}
    return {name: scale for name, scale in found.items() if scale.dtype == torch.float32}


def _activations(module: fx.GraphModule) -> tuple[str | None, ...]:
    """Per output "softmax", "log_softmax" or "sigmoid" if that is the last op that computes, else None."""
    output = next(node for node in module.graph.nodes if node.op == "output")
    return tuple(_activation(leaf) for leaf in output.args[0])


def _activation(node: Any) -> str | None:
    while isinstance(node, fx.Node) and node.target in _SHAPE_ONLY:
        node = node.args[0]
    schema = getattr(node.target, "_schema", None) if isinstance(node, fx.Node) else None
    name = schema.name.split("::")[1].lstrip("_") if schema is not None else ""
    return name if name in {"softmax", "log_softmax", "sigmoid"} else None
