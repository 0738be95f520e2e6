"""Occlusion: slide a patch over an image and record the score at every position (Zeiler & Fergus; Krypton eq. 1-6)."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from torch import nn

from kcompile.approximation import Approximation
from kcompile.core.errors import InputError
from kcompile.core.interval import IntArray
from kcompile.drawn_fills import told
from kcompile.estimate import Checked
from kcompile.fills import as_fill
from kcompile.grid import grid, patch_within, steps, strides_of
from kcompile.heatmap import FloatArray, Heatmap
from kcompile.identity import model_text, score_text, target_text
from kcompile.images import as_images, compiled
from kcompile.progress import Callback, Meter
from kcompile.runtime.inputs import Given
from kcompile.runtime.module import IncrementalModule
from kcompile.scan import Scan
from kcompile.scorers import Exact, Question, Scorer, give_back
from kcompile.scoring import Score
from kcompile.targets import Targets, as_targets, several
from kcompile.tuning import Kind, Tuning


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
    tuning: Tuning | None = None,
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
        tuning: What `kcompile.tune` made: its approximation, for maps of the kind that it was certified for. Its patch
            and stride are then the defaults; the score has to be its own.

    Returns:
        A `Heatmap`; for several images a list of them; for several targets, in their place, a list per image.
        Ctrl-C returns what is done: missing scores are NaN (`Heatmap.complete`), and a list ends with the partial map.

    Raises:
        InputError: Bad image, patch, stride, roi, value, target or score, or another kind of map than was tuned for.
        MemoryBudgetError: The budget is too small.
    """
    if tuning is not None:
        if not isinstance(tuning, Tuning):
            raise InputError(
                f"tuning is a {type(tuning).__name__}; allowed is a kcompile.Tuning, as Tuning.load gives it"
            )
        if approximation is not None:
            raise InputError("approximation and tuning are both given; allowed is one of them")
        approximation = tuning.approximation
        patch_shape = tuning.kind.patch_shape if patch_shape is None else patch_shape
        stride = tuning.kind.stride if stride is None and overlap is None else stride
    inc = compiled(model, image, patch_shape, memory_budget)
    images, alone = as_images(image, inc)
    job = experiment(inc, patch_shape, stride, overlap, value, roi, score, output, approximation)
    if tuning is not None:
        tuning.check(job.kind(target))
    with Meter(len(images) * job.count, callback, progress) as meter:
        maps = [_of_targets(heat, target) for heat in job.run(images, target, meter)]
    return maps[0] if alone else maps


def experiment(
    inc: IncrementalModule,
    patch_shape: int | Sequence[int] | None,
    stride: int | Sequence[int] | None,
    overlap: float | Sequence[float] | None,
    value: Any,
    roi: Sequence[int] | None,
    score: Score,
    output: Any,
    approximation: Approximation | None = None,
) -> Experiment:
    """What `occlusion` does with each image, for its arguments of these names.

    Raises:
        InputError: A bad one of them.
    """
    shape = inc.plan.input_shape
    patch = patch_within(patch_shape, inc.plan.patch_shape)
    positions = grid(shape[1:], patch, steps(stride, overlap, patch), roi)
    question = Question(inc, patch, as_fill(value, shape, patch), score, output)
    return Experiment(question, positions, approximation, told(value))


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
    if approximation.plain:  # drill-down asks for fewer positions, of any scorer
        return Exact(question)
    from kcompile.approximating import approximate  # here, so that a loaded module needs no compiler

    return approximate(question, approximation)


@dataclass(frozen=True)
class Experiment:
    """What is done with each image.

    Attributes:
        question: What is asked of each position.
        positions: [*grid, axes], the patch's corners.
        approximation: What may be approximated.
        shown: What the patch shows, in a few words.
    """

    question: Question
    positions: IntArray
    approximation: Approximation | None = None
    shown: str = ""

    @property
    def rounds(self) -> bool:
        """True if the base is computed in a smaller type: of two close classes it may tell the wrong one."""
        return self.approximation is not None and self.approximation.dtype is not None

    @property
    def count(self) -> int:
        """Number of positions of one map."""
        return math.prod(self.positions.shape[:-1])

    def kind(self, target: Targets) -> Kind:
        """What tells these maps of a class from others, for a certificate."""
        question, flat = self.question, self.positions.reshape(-1, self.positions.shape[-1])
        image = question.inc._like.new_zeros(question.inc.plan.input_shape, device="cpu")
        return Kind(
            score=score_text(question.score),
            patch_shape=question.patch,
            stride=strides_of(self.positions),
            region=tuple(int(edge) for edge in (*flat[0], *flat[-1])),
            value=question.fill.key(image, question.patch),
            target=target_text(target),
            output=str(question.output),
            model=model_text(question.inc),
            shown=self.shown,
        )

    @property
    def score_name(self) -> str:
        """How a map tells its score."""
        score = self.question.score
        return score if isinstance(score, str) else getattr(score, "__name__", "score")

    def run(self, images: Sequence[Given], target: Targets, meter: Meter) -> Iterator[Heatmap]:
        """The map of each image, the last one partial after Ctrl-C or where the callback stops.

        Raises:
            KeyboardInterrupt: Before anything is done.
        """
        scorer = scorer_of(self.question, self.approximation)
        own = self.approximation is None or self.approximation.plain
        exact: Scorer = scorer if own else Exact(self.question)
        beside = scorer.module if scorer.module is not self.question.inc else None  # beside the exact one
        if beside is not None:
            scorer.take_turns(self.question.inc)
            exact.take_turns(beside)
        try:
            yield from self._maps(images, target, meter, scorer, exact)
        finally:
            if beside is not None:
                give_back(beside)

    def _maps(
        self, images: Sequence[Given], target: Targets, meter: Meter, scorer: Scorer, exact: Scorer
    ) -> Iterator[Heatmap]:
        flat = self.positions.reshape(-1, self.positions.shape[-1])
        for index, given in enumerate(images):
            start = time.perf_counter()
            try:
                likely = exact.base(given) if self.rounds and target is None else None
                begun = time.perf_counter()
                base = scorer.base(given)
                inference = time.perf_counter() - begun
                targets = as_targets(target, base if likely is None else likely)
                scorer.aim(targets, flat)
            except KeyboardInterrupt:
                if index == 0:
                    raise
                return
            if index == 0:
                seconds = len(images) * self.count * scorer.work_share() * inference
                meter.describe(f"estimate {seconds:.0f} s")
            scan = Scan.of(scorer, self.positions, base.size, self.approximation)
            values, checked, whole, stop = self._scan(scan, exact, given, base, targets, index, meter)
            seconds = time.perf_counter() - start
            told = scan.told(self.approximation)
            yield self.heatmap(values, base, targets[0], seconds, told, checked, stopped=not whole)
            if stop:
                return

    def heatmap(
        self,
        values: FloatArray,
        base: FloatArray,
        target: int,
        seconds: float,
        approximation: Approximation | None,
        checked: Checked | None = None,
        *,
        stopped: bool = False,
    ) -> Heatmap:
        """The map with these scores [*grid, K]."""
        question = self.question
        kept = None if approximation is None or approximation.exact else approximation
        size = question.inc.plan.input_shape[1:]
        said = (self.score_name, seconds, kept, checked, stopped, self.shown)
        return Heatmap(values, base, target, self.positions, question.patch, size, *said)

    def _scan(
        self,
        scan: Scan,
        exact: Scorer,
        given: Given,
        base: FloatArray,
        targets: list[int],
        index: int,
        meter: Meter,
    ) -> tuple[FloatArray, Checked | None, bool, bool]:
        """Scores [*grid, K], NaN where a stopped map lacks some; checks; whether all are there, and whether to stop."""
        approximation = self.approximation or Approximation()
        done, stop, whole, checked = 0, False, False, None
        try:
            stages = scan.stages(approximation.share, base, targets)
            for count in chain(scan.begin(), (count for todo in stages for count in scan.compute(todo))):
                done += count
                if stop := not meter.advance(count, index):
                    meter.say("stopped by the callback")
                    break
            whole = bool(scan.state.known.all()) or not stop
            if not stop and approximation.samples and not approximation.exact:
                if exact is not scan.scorer:
                    exact.base(given)
                checked = scan.check(exact, approximation.samples, approximation.seed)
            if not stop and done < self.count:  # what is interpolated needs no more time
                stop = not meter.advance(self.count - done, index)
        except KeyboardInterrupt:
            meter.say("interrupted")
            stop, whole = True, whole or bool(scan.state.known.all())
        return scan.state.map() if whole else scan.state.values, checked, whole, stop


def _of_targets(heat: Heatmap, target: Targets) -> Heatmap | list[Heatmap]:
    """One map per target, where several were asked for; they share their arrays."""
    return [heat.retarget(one) for one in as_targets(target, heat.base_scores)] if several(target) else heat
