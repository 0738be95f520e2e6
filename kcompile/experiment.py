"""Occlusion: slide a patch over an image and record the score at every position (Zeiler & Fergus; Krypton eq. 1-6)."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

from kcompile.core.interval import IntArray
from kcompile.fills import Fill, as_fill, parts
from kcompile.grid import grid, patch_within, steps
from kcompile.heatmap import FloatArray, Heatmap
from kcompile.images import as_images, compiled
from kcompile.progress import Callback, Meter
from kcompile.runtime.inputs import Given
from kcompile.runtime.module import IncrementalModule
from kcompile.scoring import Score, Targets, as_targets, scores, select, several


def occlusion(
    model: nn.Module,
    image: Any,
    patch_shape: int | Sequence[int] | None = None,
    *,
    stride: int | Sequence[int] | None = None,
    overlap: float | Sequence[float] | None = None,
    value: Any = 0.0,
    target: Targets = None,
    roi: Sequence[int] | None = None,
    score: Score = "probability",
    output: Any = None,
    progress: bool = False,
    callback: Callback | None = None,
    memory_budget: int | None = None,
) -> Any:
    """Explain predictions: which parts of an image do they rest on?

    Args:
        model: What `incrementalize` returned, or a plain model (which is then compiled first).
        image: [C, H, W] or [1, C, H, W], preprocessed as the model expects it; several as a list or [B, C, H, W]. One
            axis or three are fine too: [C, *S], where sizes per axis have as many numbers. Of a model with several
            inputs: a tuple or dict of all of them.
        patch_shape: Patch size in pixels; default: that of the compiled module, 16 for a plain model.
        stride: Distance between positions, in pixels; one number or (rows, cols). Default: 4.
        overlap: Instead of a stride: the share of the patch that neighbouring windows have in common, 0 <= overlap < 1.
        value: What the patch shows, in the model's input units: a number, one per channel, a tensor [C, h, w], another
            image [C, H, W] (its pixels at the place), "mean" (the image's mean colour), "patch-mean" (that of the
            pixels covered), "blur" (the image blurred, or `kcompile.Blur`), "noise" (gaussian, or `kcompile.Noise` with
            a seed); `kcompile.Pixels` takes the picture's units and a preprocessing transform.
        target: The class to explain; default: the most probable one. Several give a list of maps from one run.
        roi: (top, left, bottom, right) in pixels: patches stay inside; the map has only these positions.
        score: "probability", "logit", or a function from the model's output to [N] or [N, K].
        output: Which part of a structured output is scored: a key, index or attribute.
        progress: Show a progress bar with an estimate of the time, one for all images.
        callback: Called with a `kcompile.Progress` after each batch of positions; returning False (or raising
            StopIteration) stops.
        memory_budget: As for `incrementalize`, which compiles a plain model; a compiled module has its own.

    Returns:
        A `Heatmap`; for several images a list of them; for several targets, in their place, a list per image.
        Ctrl-C returns what is done: missing scores are NaN (`Heatmap.complete`), and a list ends with the partial map.

    Raises:
        InputError: Bad image, patch, stride, roi, value, target or score.
        MemoryBudgetError: The budget is too small.
    """
    inc = compiled(model, image, patch_shape, memory_budget)
    images, alone = as_images(image, inc)
    shape = inc.plan.input_shape
    patch = patch_within(patch_shape, inc.plan.patch_shape)
    positions = grid(shape[1:], patch, steps(stride, overlap, patch), roi)
    job = Experiment(inc, positions, patch, as_fill(value, shape, patch), score, output)
    with Meter(len(images) * job.count, callback, progress) as meter:
        maps = [_of_targets(heat, target) for heat in job.run(images, target, meter)]
    return maps[0] if alone else maps


@dataclass(frozen=True)
class Experiment:
    """What is done with each image.

    Attributes:
        inc: The compiled module.
        positions: [*grid, axes], the patch's corners.
        patch: Size per axis, in pixels.
        fill: What the patch shows.
        score: As for `occlusion`.
        output: As for `occlusion`.
    """

    inc: IncrementalModule
    positions: IntArray
    patch: tuple[int, ...]
    fill: Fill
    score: Score
    output: Any

    @property
    def count(self) -> int:
        """Number of positions of one map."""
        return math.prod(self.positions.shape[:-1])

    def run(self, images: Sequence[Given], target: Targets, meter: Meter) -> Iterator[Heatmap]:
        """The map of each image, the last one partial after Ctrl-C or where the callback stops.

        Raises:
            KeyboardInterrupt: Before anything is done.
        """
        for index, given in enumerate(images):
            start = time.perf_counter()
            try:
                base = self.base(given)
            except KeyboardInterrupt:
                if index == 0:
                    raise
                return
            chosen = as_targets(target, base)[0]
            if index == 0:
                seconds = len(images) * self.count * self.inc.work_share() * (time.perf_counter() - start)
                meter.describe(f"estimate {seconds:.0f} s")
            values, stop = self._scan(given.rows[0][0], base, index, meter)
            grid_shape = (*self.positions.shape[:-1], base.size)
            name = self.score if isinstance(self.score, str) else getattr(self.score, "__name__", "score")
            seconds = time.perf_counter() - start
            size = self.inc.plan.input_shape[1:]
            yield Heatmap(values.reshape(grid_shape), base, chosen, self.positions, self.patch, size, name, seconds)
            if stop:
                return

    def base(self, given: Given) -> FloatArray:
        """Make an image the base; its scores [K]."""
        row: FloatArray = self._scores(self.inc.materialize_given(given), 1)[0]
        return row

    def stream(self, image: Tensor) -> Iterator[tuple[IntArray, FloatArray]]:
        """Scores [n, K] of the positions, group by group, with their indices; ``image`` is the base."""
        flat = self.positions.reshape(-1, self.positions.shape[-1])
        source = self.fill.source(image, self.patch)
        for part in parts(source, self.count, image, self.patch, self.inc.chunk_bytes()):
            patches = source if isinstance(source, Tensor) else source(flat[part])
            for rows, outputs, _ in self.inc.stream_patches(patches, flat[part]):
                yield part.start + rows, self._scores(self.inc.restore(outputs), len(rows))
            del patches  # before the next part's are made

    def _scan(self, image: Tensor, base: FloatArray, index: int, meter: Meter) -> tuple[FloatArray, bool]:
        """Scores [N, K] of all positions, NaN where not computed, and whether to stop here."""
        values = np.full((self.count, base.size), np.nan, dtype=np.float32)
        try:
            for rows, found in self.stream(image):
                values[rows] = found
                if not meter.advance(len(rows), index):
                    meter.say("stopped by the callback")
                    return values, True
        except KeyboardInterrupt:
            meter.say("interrupted")
            return values, True
        return values, False

    def _scores(self, outputs: Any, rows: int) -> FloatArray:
        found = scores(select(outputs, self.output), self.score, self.inc.activation_of(self.output), rows)
        array: FloatArray = found.detach().float().cpu().numpy()
        return array


def _of_targets(heat: Heatmap, target: Targets) -> Heatmap | list[Heatmap]:
    """One map per target, where several were asked for; they share their arrays."""
    return [heat.retarget(one) for one in as_targets(target, heat.base_scores)] if several(target) else heat
