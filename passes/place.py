"""Place: per node incremental, dense or reuse, by a cost model, with the reason."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from torch import SymInt, Tensor, fx

from kcompile.core.errors import UnsupportedOpError
from kcompile.core.plan import MACS_PER_VALUE, Placement
from kcompile.passes.propagate import Analysis, NodeInfo, tensor_inputs
from kcompile.passes.rules.registry import Refusal


@dataclass(frozen=True)
class Placed:
    """A node's placement and, unless incremental, why."""

    placement: Placement
    reason: str


def place(analysis: Analysis, on_unsupported: str = "dense") -> dict[fx.Node, Placed]:
    """Choose a placement for every node.

    Dense is sticky downstream. What no rule forbids is cut in topological order where the estimated cost is least:
    behind the cut everything is dense, because there a region covers (nearly) the whole tensor.

    Args:
        analysis: The propagated graph.
        on_unsupported: "dense", or "error" to refuse ops without a rule.

    Raises:
        UnsupportedOpError: Under "error", names the op, the user's line and the reason.
    """
    order = list(analysis.nodes)
    why = forced(analysis, on_unsupported)
    cut = _best_cut(analysis, why)
    placed: dict[fx.Node, Placed] = {}
    for i, node in enumerate(order):
        info = analysis.nodes[node]
        if node in why:
            placed[node] = Placed(Placement.DENSE, why[node])
        elif info.answer is None:
            placed[node] = Placed(Placement.REUSE, "the patch cannot reach it")
        elif i >= cut and node is not analysis.image:
            placed[node] = Placed(Placement.DENSE, _why_cut(analysis, info))
        else:
            placed[node] = Placed(Placement.INCREMENTAL, "")
    return placed


def incremental_where_possible(analysis: Analysis) -> dict[fx.Node, Placed]:
    """As `place`, but nothing is dense because that would cost less."""
    why = forced(analysis, "dense")
    reuse = Placed(Placement.REUSE, "the patch cannot reach it")
    incremental = Placed(Placement.INCREMENTAL, "")
    return {
        node: Placed(Placement.DENSE, why[node]) if node in why else reuse if info.answer is None else incremental
        for node, info in analysis.nodes.items()
    }


def forced(analysis: Analysis, on_unsupported: str) -> dict[fx.Node, str]:
    """Nodes that cannot be incremental, with the reason; everything behind such a node is dense as well."""
    why: dict[fx.Node, str] = {}
    for node, info in analysis.nodes.items():
        if info.answer is None:
            if _folded(node, info):
                why[node] = "its rows are folded into another dimension: there is no row for each base image"
            continue
        if isinstance(info.answer, Refusal):
            why[node] = info.answer.reason
            computes = isinstance(node.meta.get("val"), (Tensor, list, tuple))  # else a size alone
            if on_unsupported == "error" and info.rule == "dense" and computes:
                raise UnsupportedOpError(
                    f"{node.name} ({info.record.op}) in module {info.module or '(root)'}: {info.answer.reason}\n"
                    f"  {info.line}\nPass on_unsupported='dense' to compute it (and all that follows) in full."
                )
        dense = [arg for arg in node.all_input_nodes if arg in why]
        before = next((arg for arg in dense if not isinstance(arg.meta.get("val"), (int, SymInt))), None)
        if before is not None:
            why[node] = f"it follows {_origin(before, why)}, which is dense"
        elif dense and node not in why:
            why[node] = "it computes with the batch's size"
        elif info.region is None and node not in why:
            why[node] = "an input of it has no region"
    return why


def _folded(node: fx.Node, info: NodeInfo) -> bool:
    """True for what depends on the batch's size and can't be kept by rows: such a value is made anew for queries."""
    value = node.meta.get("val")
    if isinstance(value, Tensor):
        batched = info.record.out is not None and info.record.out.batched
        return not batched and any(isinstance(size, SymInt) for size in value.shape)
    return isinstance(value, SymInt)


def _origin(node: fx.Node, forced: dict[fx.Node, str]) -> str:
    """The node that a chain of "it follows …" reasons began with."""
    reason = forced[node]
    return reason.split(",")[0].removeprefix("it follows ") if reason.startswith("it follows ") else node.name


def _share(analysis: Analysis, info: NodeInfo) -> float:
    return analysis.table.share(info.region) if info.region is not None else 1.0


def _why_cut(analysis: Analysis, info: NodeInfo) -> str:
    out = info.record.out
    if out is not None and out.sizes and all(size == 1 for size in out.sizes):
        return "it is made of the whole map, as a gate or a head is: every patch changes it"
    return f"its region covers {_share(analysis, info):.0%} of the map on average"


def _best_cut(analysis: Analysis, forced: dict[fx.Node, str]) -> int:
    """The index in topological order from which everything is dense at the least total cost."""
    order = list(analysis.nodes)
    dense = [dense_cost(analysis.nodes[node]) for node in order]
    costs = [d if node in forced else incremental_cost(analysis, node) for node, d in zip(order, dense, strict=True)]
    best, cut, total = sum(dense), 1, sum(dense)
    for i, node in enumerate(order):
        total += costs[i] - dense[i]
        if total <= best and node not in forced:
            best, cut = total, i + 1
    return cut


def dense_cost(info: NodeInfo) -> float:
    """Work of a node on whole tensors: multiply-adds, and values written."""
    if info.answer is None or info.record.out is None:
        return 0.0
    return info.macs + MACS_PER_VALUE * prod(info.record.out.shape)


def incremental_cost(analysis: Analysis, node: fx.Node) -> float:
    """Region's share of the work, plus a gather and superimpose of the same share where regions or maps differ."""
    info = analysis.nodes[node]
    if info.answer is None or info.record.out is None or info.region is None:
        return 0.0
    share = analysis.table.share(info.region)
    values = prod(info.record.out.shape)
    reads = [arg for arg in tensor_inputs(node) if arg in analysis.nodes and analysis.nodes[arg].region != info.region]
    copied = sum(prod(out.shape) for out in (analysis.nodes[arg].record.out for arg in reads) if out is not None)
    return share * (info.macs + MACS_PER_VALUE * (values + 2 * copied))
