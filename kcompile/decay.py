"""How fast a patch's change fades away from its middle, layer by layer: measured once per model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from kcompile.approximation import Extents
from kcompile.core.errors import InputError
from kcompile.core.interval import IntArray
from kcompile.core.region import Region, crop, evaluate
from kcompile.fills import as_fill
from kcompile.heatmap import FloatArray
from kcompile.images import as_images
from kcompile.passes.propagate import Analysis
from kcompile.runtime.full import patched
from kcompile.runtime.inputs import Given
from kcompile.runtime.module import IncrementalModule
from kcompile.runtime.scheduler import patch_regions
from kcompile.scorers import Question
from kcompile.variants import Changes, canonical


def measure_extents(
    inc: IncrementalModule,
    images: Any,
    keep: float = 0.99,
    *,
    value: Any = 0.0,
    positions: int = 16,
    held: bool = False,
    seed: int = 0,
) -> Extents:
    """The cells per axis that each layer's regions need so that they hold a share of the patches' change.

    The change of a layer is the sum of absolute differences between patched copies and the base, over all images and
    positions; a region of so many cells around the patch's middle holds the share on average, along each axis.

    Args:
        inc: The compiled module.
        images: Typical images, as for `occlusion`; a handful will do.
        keep: The share, 0 < keep < 1.
        value: What patches will show, as for `occlusion`.
        positions: Random positions per image.
        held: Global gates keep the base's value, as in ``Approximation(gates="held")``: for use with that.
        seed: Of their choice.

    Returns:
        For ``Approximation(extents=...)``: the layers whose regions shrink.

    Raises:
        InputError: A bad share or image, or a module from a file.
    """
    if not 0 < keep < 1:
        raise InputError(f"keep is {keep!r}; allowed is 0 < keep < 1")
    if positions < 1:
        raise InputError(f"positions is {positions!r}; allowed are integers of at least 1")
    shape, patch = inc.plan.input_shape, inc.plan.patch_shape
    question = Question(inc, patch, as_fill(value, shape, patch), "logit", None)
    return extents_of(question, as_images(images, inc)[0], keep, positions, held, seed)


def extents_of(
    question: Question,
    images: Sequence[Given],
    keep: float,
    positions: int = 16,
    held: bool = False,
    seed: int = 0,
) -> Extents:
    """As `measure_extents`, of images that were read and for the patches of a question."""
    inc, patch = question.inc, question.patch
    changes = Changes(held=held)
    module = changes.apply(canonical(inc), len(patch))
    found = _Profiles(changes.propagate(module, inc), patch)
    rng = np.random.default_rng(seed)
    last = np.subtract(inc.plan.input_shape[1:], patch) + 1
    for given in images:
        spots = rng.integers(0, last, size=(positions, len(patch)))
        with torch.no_grad():
            found.add(module, _copies(question, given, spots), spots)
    return found.extents(keep)


def _copies(question: Question, given: Given, spots: IntArray) -> tuple[Tensor, ...]:
    """The inputs of the base and, behind it, of its patched copies."""
    image, *others = given.rows
    rows = [image]
    for part, patches in question.patches(image[0], spots):
        count = part.stop - part.start
        laid = patches.expand(count, *patches.shape[-image.dim() + 1 :]) if patches.dim() < image.dim() else patches
        rows.append(patched(image.expand(count, *image.shape[1:]), laid, spots[part]))
    copies = torch.cat(rows)
    return (copies, *(other.expand(len(copies), *other.shape[1:]) for other in others))


class _Profiles:
    """Sums up, for each region and width, what share of the change lies inside."""

    def __init__(self, analysis: Analysis, patch: tuple[int, ...]) -> None:
        self.analysis, self.patch = analysis, patch
        self.inside: dict[fx.Node, list[FloatArray]] = {}
        self.total: dict[fx.Node, float] = {}

    def add(self, module: fx.GraphModule, inputs: tuple[Tensor, ...], spots: IntArray) -> None:
        """Run the graph on the base (first row) and patched copies, and sum up the changes."""
        regions = evaluate(self.analysis.table.defs, patch_regions(spots, self.patch))

        def show(node: fx.Node, value: Tensor) -> None:
            region = self.analysis.nodes[node].region
            if region is not None:
                self._add(node, (value[1:] - value[:1]).abs(), regions[region], regions[0])

        _Run(module, self.analysis, show).run(*inputs)

    def _add(self, node: fx.Node, change: Tensor, hull: Region, patch: Region) -> None:
        info = self.analysis.nodes[node]
        assert info.region is not None
        middle = self.analysis.table.centre(info.region)
        units = self.analysis.table.defs[info.region].units
        sums = self.inside.setdefault(node, [])
        for axis, dim in enumerate(info.axes):
            others = [d for d in range(1, change.dim()) if d != dim]
            line = change.sum(dim=others, dtype=torch.float64) if others else change.double()
            ends = np.concatenate([np.zeros((len(line), 1)), line.cpu().numpy().cumsum(axis=1)], axis=1)
            if len(sums) <= axis:
                sums.append(np.zeros(ends.shape[1]))
            rows = np.arange(len(ends))
            for most in range(1, ends.shape[1]):
                kept = crop(hull.axes[axis], patch.axes[axis], most, middle[axis], units[axis])
                sums[axis][most] += (ends[rows, kept.hi] - ends[rows, kept.lo]).sum()
        self.total[node] = self.total.get(node, 0.0) + float(change.sum(dtype=torch.float64))

    def extents(self, keep: float) -> Extents:
        """The least cells per axis that hold the share, equal for all nodes of one region."""
        needed: dict[int, list[int]] = {}
        for node, axes in self.inside.items():
            region = self.analysis.nodes[node].region
            assert region is not None
            wanted = keep * self.total[node]
            cells = [int(np.argmax(line >= min(wanted, line[-1]))) for line in axes]
            known = needed.setdefault(region, cells)
            needed[region] = [max(a, b) for a, b in zip(known, cells, strict=True)]
        return tuple(
            (node.name, tuple(max(1, n) for n in needed[region]))
            for node in self.inside
            if (region := self.analysis.nodes[node].region) is not None and self._shrinks(region, needed[region])
        )

    def _shrinks(self, region: int, cells: list[int]) -> bool:
        widest = self.analysis.table.widest(region)
        return any(n < most for n, most in zip(cells, widest, strict=True))


class _Run(fx.Interpreter):
    """Runs a graph and shows each tensor that it computes; those that no node reads any more are forgotten."""

    def __init__(self, module: fx.GraphModule, analysis: Analysis, show: Callable[[fx.Node, Tensor], None]) -> None:
        super().__init__(module)
        self.analysis, self.show = analysis, show

    def run_node(self, n: fx.Node) -> Any:
        """One node; one that is held has the first row's value in all rows."""
        made = super().run_node(n)
        if isinstance(made, Tensor) and n.op == "call_function":
            if n in self.analysis.nodes and self.analysis.nodes[n].rule == "held":
                made = made[:1].expand_as(made)
            self.show(n, made)
        return made
