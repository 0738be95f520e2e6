"""Notes on graph nodes that pickling loses: fx saves a graph as code, which gives back other names and no ``meta``."""

from __future__ import annotations

from typing import Any, TypeAlias

from torch import fx

KEYS = ("rule", "read", "shape", "input_sizes")

Notes: TypeAlias = list[tuple[str, dict[str, Any]]]


def take_notes(module: fx.GraphModule) -> Notes:
    """Name and notes of every call, in order."""
    return [(node.name, {key: node.meta[key] for key in KEYS if key in node.meta}) for node in _calls(module)]


def restore_notes(module: fx.GraphModule, notes: Notes) -> None:
    """Give the calls of a graph made from the same code their names and notes back."""
    for node, (name, meta) in zip(_calls(module), notes, strict=True):
        node._rename(name)
        node.meta.update(meta)


def _calls(module: fx.GraphModule) -> list[fx.Node]:
    return [node for node in module.graph.nodes if node.op == "call_function"]
