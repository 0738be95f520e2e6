"""The check of one graph: no change outside of the predicted regions, and outputs equal to full inference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

import kcompile
from kcompile.core.interval import IntArray
from kcompile.core.plan import Placement
from kcompile.core.region import evaluate
from kcompile.passes.capture import Captured, Example, capture
from kcompile.passes.pipeline import compile_captured
from kcompile.passes.propagate import propagate
from kcompile.runtime.inputs import Inputs
from kcompile.runtime.module import IncrementalModule
from kcompile.runtime.outputs import Outputs
from kcompile.runtime.scheduler import patch_regions
from tests.fuzz.build import Network, captured
from tests.fuzz.description import Graph
from tests.support.running import cells_of, incremental_wherever_possible, paste, positions_touching

POSITIONS = 24
REACTS = 1e-3  # of an output's scale
ALLOWED = 1e-9  # of an output's scale, in float64


@dataclass(frozen=True)
class Result:
    """What was seen: whether the patches change the outputs, and how many layers ran on regions."""

    reacts: bool
    incremental: int


def check(graph: Graph, exported: bool = False) -> Result:
    """Check one graph.

    Args:
        graph: The description.
        exported: Go through `torch.export` and `kcompile.incrementalize`.

    Raises:
        AssertionError: A wrong region or output.
    """
    torch.manual_seed(graph.seed)
    model = Network(graph)
    taken = capture(model, torch.randn(2, *graph.shape, dtype=torch.float64)) if exported else captured(model)
    with incremental_wherever_possible():
        inc = kcompile.incrementalize(model, graph.shape, graph.patch) if exported else compiled(model, taken)
    positions = some_positions(graph)
    bases = torch.randn(2, *graph.shape, dtype=torch.float64)
    index = np.random.default_rng(graph.seed).integers(0, 2, len(positions))
    patches = torch.randn(len(positions), graph.shape[0], *graph.patch, dtype=torch.float64) * 3
    patched = paste(bases[index], patches, positions)
    if not exported:
        check_regions(taken, graph, inc, bases[index], patched, positions)
    layers = sum(layer.placement is Placement.INCREMENTAL for layer in inc.plan.layers)
    return Result(check_outputs(inc, bases, index, patches, patched, positions), layers - 1)


def compiled(model: Network, taken: Captured) -> IncrementalModule:
    """As `kcompile.api` builds the module, without its capture."""
    graph = model.graph
    done = compile_captured(taken, graph.shape, graph.patch)
    graphs = (done.materialize, done.front, done.tail)
    like = torch.empty(0, dtype=torch.float64)
    example = Example.of(like)
    inputs = Inputs.of(example.leaves, example.spec, example.image, example.batched)
    outputs = Outputs(done.outputs, done.out_spec, done.activations)
    return IncrementalModule(model, done.plan, graphs, inputs, outputs, like)


def some_positions(graph: Graph) -> IntArray:
    """Up to 24 of all that touch the image: corners inside and outside first, then any."""
    every = positions_touching(graph.shape[1:], graph.patch)
    last = np.subtract(graph.shape[1:], graph.patch)
    corners = np.stack([0 * last, last, 1 - np.array(graph.patch), np.array(graph.shape[1:]) - 1])
    rng = np.random.default_rng(graph.seed)
    more = rng.permutation(every)[: POSITIONS - len(corners)]
    return np.concatenate([corners, more])


class _Values(fx.Interpreter):
    """Runs a graph and keeps every value."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module, garbage_collect_values=False)

    def values_of(self, images: Tensor) -> dict[str, Any]:
        with torch.no_grad():
            self.run(images)
        return {node.name: value for node, value in self.env.items()}


def check_regions(
    taken: Captured, graph: Graph, inc: IncrementalModule, before: Tensor, after: Tensor, positions: IntArray
) -> None:
    """No cell outside of a node's region changes. ``taken`` is canonical by now: the passes work in place."""
    analysis = propagate(taken.module, graph.shape, graph.patch)
    regions = evaluate(analysis.table.defs, patch_regions(positions, graph.patch))
    base, patched = (_Values(taken.module).values_of(images) for images in (before, after))
    for node, info in analysis.nodes.items():
        if info.region is None:
            continue
        old, new = base[node.name], patched[node.name]
        change = (new != old) if not old.is_floating_point() else (new - old).abs() > 1e-9 * (old.abs().max() + 1e-9)
        order = [dim for dim in range(1, old.dim()) if dim not in info.axes]
        cells = change.permute(0, *info.axes, *order)
        cells = cells.flatten(len(info.axes) + 1).any(-1) if order else cells
        wrong = cells & ~cells_of(regions[info.region], cells.shape[1:])
        assert not wrong.any(), f"{node.name} ({node.target}) changes outside of its region"


def check_outputs(
    inc: IncrementalModule, bases: Tensor, index: IntArray, patches: Tensor, patched: Tensor, positions: IntArray
) -> bool:
    """Hold incremental against full inference; whether an output reacts."""
    with torch.no_grad():
        full, before = inc.model(patched), inc.model(bases)
    inc.materialize(bases)
    inc.policy = "incremental"  # "auto" would run calls of so few queries in full
    mine = inc.forward_patches(patches, positions, base_index=index)
    reacts = False
    for number, (got, want, base) in enumerate(zip(mine, full, before, strict=True)):
        assert got.shape == want.shape, f"output {number}: {tuple(got.shape)}, but {tuple(want.shape)} is right"
        scale = float(want.abs().max()) + 1e-12
        error = float((got - want).abs().max())
        assert error <= ALLOWED * scale, f"output {number}: error {error:.3g} at scale {scale:.3g}"
        reacts |= bool((want - base[index]).abs().max() > REACTS * scale)
    return reacts
