"""The scorer of a linear tail: an exact front, and behind the cut the gradient times the change."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kcompile.approximation import Approximation
from kcompile.core.errors import InputError
from kcompile.core.interval import IntArray
from kcompile.grid import grid
from kcompile.heatmap import FloatArray
from kcompile.linear_scores import Functions, slopes, wide
from kcompile.linear_tail import gradients, leaves, linear_tail
from kcompile.runtime.full import patched
from kcompile.runtime.inputs import Given
from kcompile.runtime.module import IncrementalModule
from kcompile.scorers import Question
from kcompile.variants import EXACT, Changes

STEPS = 4  # points between base and the second reference point, for a secant
OCCLUDED = 4  # patched copies at which the gradient is averaged


class Linear:
    """First order in the change at the cut (docs/design.md, section 10)."""

    def __init__(self, question: Question, settings: Approximation, changes: Changes = EXACT) -> None:
        """Compile the front, unless that was done before.

        Args:
            question: What is asked.
            settings: Have the cut, the reference and the gates.
            changes: What of the front is not exact.

        Raises:
            InputError: No such cut, or linear gates with another reference than the base.
        """
        assert settings.cut is not None
        linear_gates = settings.gates == "linear"
        if linear_gates and settings.reference != "base":
            raise InputError(f"reference is {settings.reference!r}; allowed with linear gates is 'base'")
        self.question, self.reference = question, settings.reference
        uncropped = settings.rest == "linear"  # two tails with one cut
        self.tail = linear_tail(question.inc, settings.cut, changes, linear_gates, uncropped)
        self.given: Given | None = None
        self.points: list[Tensor] = []
        self.outputs: Any = None
        self.functions: Functions | None = None
        self.values = torch.empty(0)
        self.slopes: list[list[Tensor]] = []

    def base(self, given: Given) -> FloatArray:
        """Make an image the base; its scores [K]."""
        question = self.question
        given = question.given(given)
        tensors = self.tail.materialize(given)
        with gradients():
            self.given = Given(tuple(row.clone() for row in given.rows), given.whole)
            self.points = self.tail.points(tensors)
            self.outputs = self.tail.outputs(question.inc, self.given, self.points)
        return question.base_row(self.outputs)

    def follow(self, other: Linear) -> None:
        """Take base, functions and gradients of another scorer with the same cut, once it is aimed."""
        self.given, self.functions, self.values = other._base, other.functions, other.values
        self.tail.materialize(other._base)
        self.tail.keep(other.slopes)

    def aim(self, targets: Sequence[int], positions: IntArray) -> None:
        """Take the gradients for some classes; see `Scorer.aim`."""
        question = self.question
        with gradients():
            found = question.linearised(self.outputs, 1)
            self.functions = self.functions_for(targets, found.shape[1])
            values = self.functions.values(found)
            mean = slopes(values, self.points)
            self.values = wide(values.detach())
            self.outputs = None
            others = self._others(positions)
            if others:
                weight = 1 / (len(others) + 1) if self.reference == "mean-gradient" else 0.0
                mean = [[g * weight for g in row] for row in mean]
                rest = (1 - weight) / len(others)
                for point in others:
                    at = leaves(point)
                    outputs = self.tail.outputs(question.inc, self._base, at)
                    more = slopes(self.functions.values(question.linearised(outputs, 1)), at)
                    mean = [[a + rest * b for a, b in zip(x, y, strict=True)] for x, y in zip(mean, more, strict=True)]
        self.slopes = mean
        self.tail.keep(mean)

    def begin(self, positions: IntArray) -> Iterator[tuple[IntArray, FloatArray]]:
        """Nothing is needed."""
        yield from ()

    def at(self, positions: IntArray) -> Iterator[tuple[IntArray, FloatArray]]:
        """Scores [n, K] at positions [N, axes], group by group, each with the indices of its positions."""
        assert self.functions is not None, "aim comes first"
        for rows, values in self.values_at(positions):
            yield rows, self.functions.scores(values)

    def functions_for(self, targets: Sequence[int], classes: int) -> Functions:
        """Which functions are linearised for some targets, of so many classes."""
        question = self.question
        return Functions.of(question.score, question.inc.activation_of(question.output), targets, classes)

    def values_at(self, positions: IntArray) -> Iterator[tuple[IntArray, Tensor]]:
        """As `at`, the linearised functions' values [n, K']."""
        for part, patches in self.question.patches(self._base.rows[0][0], positions):
            for rows, (moved,), _ in self.tail.front.stream_patches(patches, positions[part]):
                yield part.start + rows, self.values + moved
            del patches  # before the next part's are made

    def work_share(self) -> float:
        """Estimated work of one position, as a share of a full inference's."""
        return self.tail.share * self.question.inc.work_share()

    @property
    def module(self) -> None:
        """There are several: none takes turns."""

    def take_turns(self, other: IncrementalModule) -> None:
        """See `Scorer.take_turns`: a cut is not for where memory is short."""

    @property
    def _base(self) -> Given:
        assert self.given is not None, "base comes first"
        return self.given

    def _others(self, positions: IntArray) -> list[list[Tensor]]:
        """The points at the cut, beside the base, where gradients are taken."""
        if self.reference == "base":
            return []
        before, images, question = self.tail.before(), self._base.rows[0], self.question
        with torch.no_grad():
            if self.reference == "mean-gradient":
                spots = positions[np.linspace(0, len(positions) - 1, OCCLUDED + 2).round().astype(np.int64)[1:-1]]
                copies = [self._patched(images, spot[None]) for spot in spots]
                return [list(before(copy, *self._base.rows[1:])) for copy in copies]
            tiles = grid(question.inc.plan.input_shape[1:], question.patch, question.patch)
            last = list(before(self._patched(images, tiles.reshape(-1, tiles.shape[-1])), *self._base.rows[1:]))
            shares = [(step + 0.5) / STEPS for step in range(STEPS)]
            return [[torch.lerp(x.detach(), y, t) for x, y in zip(self.points, last, strict=True)] for t in shares]

    def _patched(self, images: Tensor, spots: IntArray) -> Tensor:
        """A copy of the base image with patches at all of some positions."""
        for part, patches in self.question.patches(images[0], spots):
            for index, spot in enumerate(spots[part]):
                patch = patches if patches.dim() < images.dim() else patches[index]
                images = patched(images, patch[None], spot[None])
        return images
