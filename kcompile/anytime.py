"""Maps that get finer while one watches: `occlusion_steps`."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from torch import nn

from kcompile.approximation import Approximation
from kcompile.core.checks import per_axis
from kcompile.core.errors import InputError
from kcompile.experiment import experiment
from kcompile.grid import strides_of
from kcompile.heatmap import FloatArray, Heatmap
from kcompile.images import as_images, compiled
from kcompile.lattice import BoolArray
from kcompile.scan import Scan
from kcompile.scorers import Exact
from kcompile.scoring import Score
from kcompile.targets import as_targets, several

FIRST = 8  # positions per axis of the first map, at least


def occlusion_steps(
    model: nn.Module,
    image: Any,
    patch_shape: int | Sequence[int] | None = None,
    *,
    stride: int | Sequence[int] | None = None,
    overlap: float | Sequence[float] | None = None,
    value: Any = 0.0,
    target: int | None = None,
    roi: Sequence[int] | None = None,
    score: Score = "probability",
    output: Any = None,
    coarse: int | None = None,
    parts: int = 4,
    memory_budget: int | None = None,
) -> Iterator[Heatmap]:
    """Explain a prediction step by step: ever finer maps of the same positions, the last one exact.

    First come the positions of a coarse stride, then those of half of it, and so on, at each stride first where scores
    change most between neighbours. Between them scores are interpolated. Nothing is computed twice, so all steps
    together take what `occlusion` takes, and some overhead for smaller batches. Stop whenever a map is good enough.

    Args:
        model: As for `occlusion`, like all that isn't listed here.
        image: One image.
        patch_shape: See there.
        stride: Of the last map, and of the grid that all have.
        overlap: See there.
        value: See there.
        target: The class to explain; default: the most probable one.
        roi: See there.
        score: See there.
        output: See there.
        coarse: Stride of the first map, in pixels. Default: the largest power of two times the stride for which the
            first map has at least 8 positions along each axis that has as many.
        parts: Maps per stride after the first.
        memory_budget: See there.

    Yields:
        A `Heatmap` of all positions; until the last, its ``approximation.share`` is the share that was computed.
        The last one has no approximation: it is what `occlusion` returns, up to rounding.

    Raises:
        InputError: Bad arguments, or several images or targets; before the first map.
    """
    inc = compiled(model, image, patch_shape, memory_budget)
    images, alone = as_images(image, inc)
    if not alone:
        raise InputError(f"occlusion_steps takes one image, got {len(images)}")
    if several(target):
        raise InputError(f"target is {target}; allowed is one class: maps of others are heat.retarget(class)")
    per_axis(parts, 1, "parts")
    if coarse is not None:
        per_axis(coarse, 1, "coarse")
    job = experiment(inc, patch_shape, stride, overlap, value, roi, score, output)
    exact = Exact(job.question)

    def steps() -> Iterator[Heatmap]:
        start = time.perf_counter()
        base = exact.base(images[0])
        chosen = as_targets(target, base)[0]
        first = coarse if coarse is not None else _coarse(job.positions.shape[:-1], strides_of(job.positions))
        scan = Scan.of(exact, job.positions, base.size, None, first)
        mine = job.question.inc.base_output
        for todo in _parts(scan, parts, base, chosen):
            if job.question.inc.base_output is not mine:  # the module was used for another image since
                exact.base(images[0])
                mine = job.question.inc.base_output
            for _ in scan.compute(todo):
                pass
            share = float(scan.state.known.mean())
            told = Approximation(share=share, coarse=first, samples=0) if share < 1 else None
            yield job.heatmap(scan.state.map().copy(), base, chosen, time.perf_counter() - start, told)

    return steps()


def _parts(scan: Scan, parts: int, base: FloatArray, target: int) -> Iterator[BoolArray]:
    """The positions of each step; steps that have none are left out."""
    state = scan.state
    yield state.first()
    for level in range(len(state.lattices) - 1):
        for part in range(1, parts + 1):
            todo = state.chosen(level, part / parts, base, [target])
            if part == parts:  # also what no cell of finite scores asked for
                todo = state.nodes(level + 1) & ~state.known
            if todo.any():
                yield todo


def _coarse(grid: Sequence[int], strides: Sequence[int]) -> int:
    """Stride of the first map, in pixels; see `occlusion_steps`."""
    steps = [(size - 1) // (FIRST - 1) for size in grid if size >= FIRST]
    factor = 2 ** int(math.log2(min(steps))) if steps else 1
    return int(np.max(strides)) * factor
