"""GPU lowering: what follows a window runs in the launch that reads it, so that fewer tensors are written and read.

The emitted graphs are the reference. Lowered ones have the ops of `kcompile.cuda_ops.reads` and `convolved`: pools,
joins and, where that is faster, convolutions read base and patch directly; other convolutions leave their bias and
activation to those who read their results.
"""

from __future__ import annotations

from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, fx

from kcompile.core.plan import Plan
from kcompile.cuda_ops.cuda_reads import VALUES
from kcompile.cuda_ops.launch import launcher
from kcompile.cuda_ops.reads import wide
from kcompile.runtime.derived import Lowered
from kcompile.runtime.lowering_convs import Choice, is_tf32, lower_convolutions
from kcompile.runtime.lowering_endings import end_convolutions, move_endings
from kcompile.runtime.lowering_heads import move_heads
from kcompile.runtime.lowering_linear import move_linears
from kcompile.runtime.lowering_means import move_means
from kcompile.runtime.lowering_windows import lower_windows

aten = torch.ops.aten

FUSE = True  # False: fronts run as they were emitted, on the kernels of gather and superimpose alone


def available(like: Tensor) -> bool:
    """True where modules of a tensor's type and device can be lowered."""
    return FUSE and like.is_cuda and like.dtype in VALUES and launcher(like.device) is not None


def lower(
    front: fx.GraphModule, tail: fx.GraphModule, plan: Plan, dtype: torch.dtype, choice: Choice | None = None
) -> Lowered:
    """Copies of front and tail for GPUs; weights are shared, but those of convolutions, which become channels-last.

    Args:
        front: As it was emitted.
        tail: As it was emitted.
        plan: Their plan.
        dtype: The type of their values.
        choice: Says which convolutions read base and patch directly; without it none does.
    """
    front, tail = _copy(front), _copy(tail)
    laid: dict[int, tuple[Tensor, Tensor]] = {}
    _lay_weights(front, laid)
    _lay_weights(tail, laid)
    derived = move_means(front, tail, plan, wide(dtype))
    derived |= move_linears(front, tail, plan)
    move_heads(front, tail)
    lower_windows(front)
    if choice is not None:
        lower_convolutions(front, plan, choice, is_tf32(dtype))
    move_endings(front.graph)
    for module in (front, tail):
        end_convolutions(module.graph)
        module.graph.eliminate_dead_code()
        module.graph.lint()
        module.recompile()
        _drop_unread(module)
    return Lowered(front, tail, derived)


def _lay_weights(module: fx.GraphModule, laid: dict[int, tuple[Tensor, Tensor]]) -> None:
    """Channels-last weights, as their windows are: PyTorch would make these anew at every call.

    Args:
        module: A copy of an emitted graph.
        laid: The weights that were laid out before, for another graph: by id, with the original, which keeps it alive.
    """
    for node in list(module.graph.nodes):
        weight: Any = node.args[1] if node.target is aten.conv2d.default else None
        if not isinstance(weight, fx.Node) or weight.op != "get_attr":
            continue
        value = attrgetter(str(weight.target))(module)
        if value.is_contiguous(memory_format=torch.channels_last):
            continue
        if id(value) not in laid:
            laid[id(value)] = (value, value.detach().contiguous(memory_format=torch.channels_last))
        name = f"channels_last_{node.name}"
        module.register_buffer(name, laid[id(value)][1], persistent=False)
        with module.graph.inserting_before(node):
            node.update_arg(1, module.graph.get_attr(name))


def _drop_unread(module: fx.GraphModule) -> None:
    """Forget weights of which the graph came to read another copy."""
    read = {str(node.target) for node in module.graph.nodes if node.op == "get_attr"}
    held = dict(module.named_buffers(recurse=False, remove_duplicate=False))
    for name in held.keys() - read:
        delattr(module, name)


def _copy(module: fx.GraphModule) -> fx.GraphModule:
    graph = fx.Graph()
    graph.output(graph.graph_copy(module.graph, val_map={}))
    return fx.GraphModule(module, graph, module.__class__.__name__)
