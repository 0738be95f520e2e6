"""Occlusion: slide a patch over an image and record the score at every position (Zeiler & Fergus; Krypton eq. 1-6)."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from kcompile.approximation import Approximation
from kcompile.core.errors import InputError
from kcompile.core.interval import IntArray
from kcompile.corrected import Corrected
from kcompile.fills import as_fill
from kcompile.grid import grid, patch_within, steps
from kcompile.heatmap import FloatArray, Heatmap
from kcompile.images import as_images, compiled
from kcompile.linear_scorer import Linear
from kcompile.progress import Callback, Meter
from kcompile.runtime.inputs import Given
from kcompile.scorers import Exact, Question, Scorer
from kcompile.scoring import Score, Targets, as_targets, several
from kcompile.variants import Changes, Cropping, changed, in_dtype


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
    approximation: Approximation | None = None,
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
        approximation: What may be approximated, as a `kcompile.Approximation`; default: nothing. The map says so.

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
    job = Experiment(Question(inc, patch, as_fill(value, shape, patch), score, output), positions, approximation)
    with Meter(len(images) * job.count, callback, progress) as meter:
        maps = [_of_targets(heat, target) for heat in job.run(images, target, meter)]
    return maps[0] if alone else maps


def scorer_of(question: Question, approximation: Approximation | None) -> Scorer:
    """What gives the scores; settings that approximate nothing select the exact path.

    Raises:
        InputError: No such approximation.
    """
    if approximation is None:
        return Exact(question)
    if not isinstance(approximation, Approximation):
        raise InputError(
            f"approximation is a {type(approximation).__name__}; allowed are None and a kcompile.Approximation"
        )
    if approximation.exact:
        return Exact(question)
    if approximation.drills:
        raise InputError(f"approximation is {approximation}: this version has no drill-down")
    if approximation.gates == "linear" and not approximation.linear:
        raise InputError("gates is 'linear', which needs a cut (0.99, say): what gates change goes into its gradient")
    if torch.is_autocast_enabled(question.inc._like.device.type):
        raise InputError(f"approximation is {approximation}: it can't run under autocast")
    asked = question
    if approximation.dtype is not None:
        question = replace(question, inc=in_dtype(question.inc, approximation.dtype))
    changes = Changes(Cropping(approximation.tau, approximation.extents), approximation.gates != "exact")
    if approximation.linear:
        linear = Linear(question, approximation, changes)
        return Corrected(asked, linear, approximation.correct) if approximation.correct else linear
    return Exact(replace(question, inc=changed(question.inc, changes)))


@dataclass(frozen=True)
class Experiment:
    """What is done with each image.

    Attributes:
        question: What is asked of each position.
        positions: [*grid, axes], the patch's corners.
        approximation: What may be approximated.
    """

    question: Question
    positions: IntArray
    approximation: Approximation | None = None

    @property
    def count(self) -> int:
        """Number of positions of one map."""
        return math.prod(self.positions.shape[:-1])

    def run(self, images: Sequence[Given], target: Targets, meter: Meter) -> Iterator[Heatmap]:
        """The map of each image, the last one partial after Ctrl-C or where the callback stops.

        Raises:
            KeyboardInterrupt: Before anything is done.
        """
        scorer = scorer_of(self.question, self.approximation)
        flat = self.positions.reshape(-1, self.positions.shape[-1])
        for index, given in enumerate(images):
            start = time.perf_counter()
            try:
                base = scorer.base(given)
                targets = as_targets(target, base)
                scorer.aim(targets, flat)
            except KeyboardInterrupt:
                if index == 0:
                    raise
                return
            if index == 0:
                seconds = len(images) * self.count * scorer.work_share() * (time.perf_counter() - start)
                meter.describe(f"estimate {seconds:.0f} s")
            values, stop = self._scan(scorer, base, index, meter)
            yield self._heatmap(values, base, targets[0], time.perf_counter() - start)
            if stop:
                return

    def _heatmap(self, values: FloatArray, base: FloatArray, target: int, seconds: float) -> Heatmap:
        question = self.question
        name = question.score if isinstance(question.score, str) else getattr(question.score, "__name__", "score")
        told = None if self.approximation is None or self.approximation.exact else self.approximation
        values = values.reshape(*self.positions.shape[:-1], base.size)
        size = question.inc.plan.input_shape[1:]
        return Heatmap(values, base, target, self.positions, question.patch, size, name, seconds, told)

    def _scan(self, scorer: Scorer, base: FloatArray, index: int, meter: Meter) -> tuple[FloatArray, bool]:
        """Scores [N, K] of all positions, NaN where not computed, and whether to stop here."""
        values = np.full((self.count, base.size), np.nan, dtype=np.float32)
        try:
            for rows, found in scorer.at(self.positions.reshape(-1, self.positions.shape[-1])):
                values[rows] = found
                if not meter.advance(len(rows), index):
                    meter.say("stopped by the callback")
                    return values, True
        except KeyboardInterrupt:
            meter.say("interrupted")
            return values, True
        return values, False


def _of_targets(heat: Heatmap, target: Targets) -> Heatmap | list[Heatmap]:
    """One map per target, where several were asked for; they share their arrays."""
    return [heat.retarget(one) for one in as_targets(target, heat.base_scores)] if several(target) else heat
