"""Cuts: which nodes stand before a linear tail, by a layer's name or by a share of the work."""

from __future__ import annotations

import difflib

from torch import Tensor, fx

from kcompile.core.errors import InputError
from kcompile.core.plan import Placement
from kcompile.passes.infra import user_module
from kcompile.passes.place import dense_cost, forced, incremental_cost, place
from kcompile.passes.propagate import Analysis


def nodes_before(analysis: Analysis, cut: str | float, exact: Analysis | None = None) -> set[fx.Node]:
    """The nodes before a cut that the patch can change, with each also what it depends on.

    Args:
        analysis: Of the canonical graph, with the regions that are computed.
        cut: The name of a layer, which is the last before the cut; or the share of the exact work per position that may
            be done before the cut, 0 … 1. Then it lies as far back as that allows, in topological order.
        exact: The same graph's analysis for exact inference, if that is another one.

    Raises:
        InputError: No such layer, or one that can't be incremental.
    """
    return (
        _until_layer(analysis, cut) if isinstance(cut, str) else _within(analysis, cut * exact_work(exact or analysis))
    )


def share_of_work(analysis: Analysis, before: set[fx.Node], exact: Analysis | None = None) -> float:
    """The estimated work of some incremental nodes, as a share of the exact work per position.

    Args:
        analysis: Of the canonical graph, with the regions that are computed.
        before: The nodes.
        exact: The same graph's analysis for exact inference, if that is another one.
    """
    done = sum(incremental_cost(analysis, node) for node in before if node is not analysis.image)
    return done / max(exact_work(exact or analysis), 1.0)


def _until_layer(analysis: Analysis, layer: str) -> set[fx.Node]:
    made = [node for node in analysis.nodes if _is_in(user_module(node), layer)]
    before = {analysis.image}
    for node in made:
        before |= _ancestors(analysis, node)
    if before == {analysis.image}:
        known = list(dict.fromkeys(name for node in analysis.nodes if (name := user_module(node))))
        close = difflib.get_close_matches(layer, known, n=3) or known[:8]
        raise InputError(f"cut is {layer!r}; no layer of that name computes with the image: {', '.join(close)} do")
    why = forced(analysis, "dense")
    dense = next((node for node in analysis.nodes if node in before and node in why and _computes(node)), None)
    if dense is not None:
        raise InputError(
            f"cut is {layer!r}, but {dense.name} before it can't be computed incrementally: {why[dense]}; allowed are "
            "cuts before that"
        )
    return before


def _is_in(module: str, layer: str) -> bool:
    return module == layer or module.startswith(f"{layer}.")


def _ancestors(analysis: Analysis, node: fx.Node) -> set[fx.Node]:
    """A node and all that it depends on, as far as the patch can change it."""
    found: set[fx.Node] = set()
    waiting = [node]
    while waiting:
        one = waiting.pop()
        if one not in found and one in analysis.nodes and analysis.nodes[one].answer is not None:
            found.add(one)
            waiting += one.all_input_nodes
    return found


def _within(analysis: Analysis, room: float) -> set[fx.Node]:
    why = forced(analysis, "dense")
    before = {analysis.image}
    for node, info in analysis.nodes.items():
        if node is analysis.image or info.answer is None or not _computes(node):
            continue
        room -= incremental_cost(analysis, node)
        if node in why or room < 0:
            break
        before.add(node)
    return before


def exact_work(analysis: Analysis) -> float:
    """What a position costs by `place`'s cost model, in multiply-adds."""
    placed = place(analysis)
    return sum(
        dense_cost(info) if placed[node].placement is Placement.DENSE else incremental_cost(analysis, node)
        for node, info in analysis.nodes.items()
    )


def _computes(node: fx.Node) -> bool:
    """False for sizes."""
    return isinstance(node.meta.get("val"), (Tensor, list, tuple))
