"""What a plan leaves dense, and where the whole map first comes in."""

from __future__ import annotations

import re
from collections import Counter
from math import prod
from typing import Any

from kcompile.core.plan import Layer, Placement, Plan

_BY_COST = "its region covers"  # how the reasons of layers begin that could be incremental, at a higher cost
_FOLLOWS = "it follows"


def summary(plan: Plan) -> dict[str, Any]:
    """Multiply-adds, the share of them that is incremental, the first dense layers' reasons, what comes before."""
    full, end = max(plan.full_macs(), 1), first_global(plan)
    incremental = sum(layer.macs for layer in plan.layers if layer.placement is Placement.INCREMENTAL)
    return {
        "macs": plan.full_macs(),
        "share": incremental / full,
        "reasons": reasons(plan),
        "before": sum(layer.macs for layer in plan.layers[:end]) / full,
        "gated": end < len(plan.layers) and _spreads(plan.layers[end], {layer.name: layer for layer in plan.layers}),
    }


def reasons(plan: Plan) -> list[tuple[str, int]]:
    """The reasons of the dense layers that no dense layer comes before, with the number of layers; most first."""
    dense = {layer.name for layer in plan.layers if layer.placement is Placement.DENSE}
    first = (
        layer.reason
        for layer in plan.layers
        if layer.name in dense and not dense & set(layer.inputs) and not layer.reason.startswith(_FOLLOWS)
    )
    return Counter(re.sub(r" \d+% of the map on average", " most of the map", text) for text in first).most_common()


def first_global(plan: Plan) -> int:
    """The index of the first layer that lets every cell depend on the whole map; the number of layers if there is none.

    It is refused (attention, a norm over the map, flattening), or it lays something that was pooled to one cell over a
    map (a gate, image-level pooling).
    """
    layers = {layer.name: layer for layer in plan.layers}
    for i, layer in enumerate(plan.layers):
        refused = layer.placement is Placement.DENSE and not layer.reason.startswith((_BY_COST, _FOLLOWS))
        if refused or _spreads(layer, layers):
            return i
    return len(plan.layers)


def _spreads(layer: Layer, layers: dict[str, Layer]) -> bool:
    if len(layer.shape) != 3 or prod(layer.shape[1:]) == 1 or layer.placement is Placement.REUSE:
        return False
    read = [layers[name] for name in layer.inputs if name in layers]
    return any(
        len(source.shape) == 3 and prod(source.shape[1:]) == 1 and source.placement is not Placement.REUSE
        for source in read
    )
