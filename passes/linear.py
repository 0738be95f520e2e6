"""Linear tails: what runs per position ends at a cut, with how far linear functions of the tensors there have moved.

Two graphs come of one canonical graph. The *front* is compiled for patches as any model is, up to the cut; there it
ends in `torch.ops.kcompile.contract` of the patch tensors' change with gradients that the base store brings. *Behind*
the cut the graph stays as it is, of plain ATen ops, so that autograd gives these gradients (docs/design.md, section
10).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx

from kcompile.core.errors import InputError
from kcompile.core.plan import Plan, Read
from kcompile.passes.arrange import CancelArrangements, to_channels_first
from kcompile.passes.cancel import CancelPairs, DropUnusedInputs, FusePairs, used_reads
from kcompile.passes.emit import Emitter, emit_materialize
from kcompile.passes.infra import aten, run_passes
from kcompile.passes.place import forced, incremental_where_possible
from kcompile.passes.planning import Planned, change, make_plan, prune
from kcompile.passes.propagate import Analysis
from kcompile.passes.verify import verify_plan
from kcompile.passes.windows import ops


@dataclass(frozen=True)
class Linearised:
    """The graphs of a model with a linear tail.

    Attributes:
        plan: Of the front.
        materialize: (image batch, …) -> the tensors at the cut, and the front's base tensors.
        front: Ends in one result [N, K].
        tail: Hands that result on.
        behind: (image batch, …, the tensors at the cut) -> the model's flat outputs; where gates are linear: (image
            batch, …, changes of these tensors) -> the same.
        cut: Of each tensor at the cut the name of the base tensor that its change is measured against.
    """

    plan: Plan
    materialize: fx.GraphModule
    front: fx.GraphModule
    tail: fx.GraphModule
    behind: fx.GraphModule
    cut: tuple[str, ...]


def linearise(
    module: fx.GraphModule,
    before: Iterable[fx.Node],
    analyse: Callable[[fx.GraphModule], Analysis],
    *,
    linear_gates: bool = False,
) -> Linearised:
    """Compile the part before a cut for patches, and set apart what is behind it.

    Args:
        module: A canonical graph.
        before: Its nodes before the cut: with each also what it depends on (`passes.cuts`).
        analyse: `propagate` for the part before the cut.
        linear_gates: Gates that `analyse` holds are updated to first order: by the change of what they are made of.

    Raises:
        InputError: A tensor at the cut can't be computed incrementally.
    """
    before = set(before)
    at = crossing(module, before)
    if linear_gates or not at:
        behind = _perturbed(module, at, before)
    else:
        used = _behind(module, at).graph.find_nodes(op="placeholder")[-len(at) :]
        at = [node for node, given in zip(at, used, strict=True) if given.users]  # others make held gates alone
        behind = _behind(module, at)
    if not at:
        raise InputError("nothing that patches change reaches the outputs: there is nothing to linearise")
    truncated = _until(module, at)
    analysis = analyse(truncated)
    _check(analysis, at)
    placed = incremental_where_possible(analysis)
    planned = make_plan(analysis, placed, analysis.image_shape, analysis.patch_shape, change)
    verify_plan(planned.plan)
    emitter = _Emitter(truncated, analysis, placed, planned)
    emitter.patch(analysis.image)
    for node in truncated.graph.nodes:
        if node.op == "call_function" and node in placed and analysis.nodes[node].region is not None:
            emitter.incremental(node)
    front, tail = emitter.close()
    front = run_passes(front, [CancelPairs(), CancelArrangements(), FusePairs(), DropUnusedInputs()]).module
    plan = prune(planned.plan, used_reads(front))
    verify_plan(plan)
    materialize = emit_materialize(truncated, plan.bases)
    return Linearised(plan, materialize, front, run_passes(tail, []).module, behind, tuple(emitter.cut))


def crossing(module: fx.GraphModule, before: set[fx.Node]) -> list[fx.Node]:
    """The tensors that separate some nodes from the outputs, in order: made by them, read by others."""
    return [
        node
        for node in module.graph.nodes
        if node in before
        and isinstance(node.meta.get("val"), Tensor)
        and any(user not in before for user in node.users)
    ]


def _check(analysis: Analysis, at: list[fx.Node]) -> None:
    """Refuse tensors that are dense: their change is not a box."""
    why = forced(analysis, "dense")
    names = {node.name: node for node in analysis.nodes}
    for node in at:
        reason = why.get(names[node.name])
        if reason is not None:
            raise InputError(
                f"the cut goes through {node.name}, which can't be computed incrementally: {reason}; allowed are cuts "
                "before it"
            )


def _until(module: fx.GraphModule, at: list[fx.Node]) -> fx.GraphModule:
    """The graph up to some tensors, which it returns; all inputs stay."""
    graph: fx.Graph = fx.Graph()
    env: dict[fx.Node, fx.Node] = {}
    for node in module.graph.nodes:
        if node.op != "output":
            env[node] = graph.node_copy(node, env.__getitem__)
    graph.output(tuple(env[node] for node in at))
    graph.eliminate_dead_code()
    return fx.GraphModule(module, graph, "Until")


def _behind(module: fx.GraphModule, at: list[fx.Node]) -> fx.GraphModule:
    """The graph from some tensors on, which become inputs after the model's own."""
    graph: fx.Graph = fx.Graph()
    inputs = [node for node in module.graph.nodes if node.op == "placeholder"]
    env = {node: graph.node_copy(node) for node in inputs}
    given = {node: graph.placeholder(f"cut_{index}") for index, node in enumerate(at)}
    env.update(given)
    for node in module.graph.nodes:
        if node not in env:
            env[node] = graph.node_copy(node, env.__getitem__)
    graph.eliminate_dead_code()
    return fx.GraphModule(module, graph, "Behind")


def _perturbed(module: fx.GraphModule, at: list[fx.Node], before: set[fx.Node]) -> fx.GraphModule:
    """The whole graph, in which changes of some tensors, as further inputs, reach what is not before the cut."""
    graph: fx.Graph = fx.Graph()
    inputs = [node for node in module.graph.nodes if node.op == "placeholder"]
    env = {node: graph.node_copy(node) for node in inputs}
    changes = [graph.placeholder(f"change_{index}") for index in range(len(at))]
    changed: dict[fx.Node, fx.Node] = {}
    for node in module.graph.nodes:
        if node not in env:
            known = env if node in before else {**env, **changed}
            env[node] = graph.node_copy(node, known.__getitem__)
        if node in at:
            changed[node] = graph.call_function(aten.add.Tensor, (env[node], changes[at.index(node)]))
    graph.eliminate_dead_code()
    return fx.GraphModule(module, graph, "Perturbed")


class _Emitter(Emitter):
    """Emits a front that ends in how far linear functions have moved."""

    def __init__(self, module: fx.GraphModule, analysis: Analysis, placed: Any, planned: Planned) -> None:
        super().__init__(module, analysis, placed, planned)
        self.cut: list[str] = []

    def close(self) -> tuple[fx.GraphModule, fx.GraphModule]:
        """The front and the tail, which only hands on."""
        output = self.module.graph.output_node()
        leaves: Any = output.args[0]
        moved = [self._moved(self.planned.reads[output.name, i], leaf) for i, leaf in enumerate(leaves)]
        total = moved[0]
        for more in moved[1:]:
            total = self.front_graph.call_function(aten.add.Tensor, (total, more))
            total.meta["rule"] = "change"
        self.front_graph.output((total,))
        self.tail_graph.output((self.tail_graph.placeholder("moved"),))
        front = fx.GraphModule(self.module, self.front_graph, "Front")
        return front, fx.GraphModule(self.module, self.tail_graph, "Tail")

    def _moved(self, read: Read, leaf: fx.Node) -> fx.Node:
        """The contraction at one tensor of the cut."""
        source = self.planned.plan.base(read.base)
        patch = to_channels_first(self.front_graph, self.front[leaf], source.axes, source.shape)
        base = self._window(read, None, "change")
        origins, extent = base.args[1:]
        slopes = self.front_graph.call_function(
            ops.gather.default, (self.input(f"base_{slopes_of(read.base)}"), origins, extent)
        )
        slopes.meta.update(read=read, rule="change")
        moved = self.front_graph.call_function(ops.contract.default, (patch, base, slopes))
        moved.meta["rule"] = "change"
        self.cut.append(read.base)
        return moved


def slopes_of(base: str) -> str:
    """The name in the base store of the gradients at a base tensor."""
    return f"{base}_slopes"
