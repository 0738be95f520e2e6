"""An approximation corrected by some positions that are computed exactly.

What is approximated is off in two ways: by a factor (a tail bends; what crops leave out is a like share of every
change), and by an error that changes slowly from position to position. Both are read off a coarse lattice of exact
positions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from kcompile.core.interval import IntArray
from kcompile.heatmap import FloatArray
from kcompile.linear_scores import Functions, wide
from kcompile.runtime.inputs import Given
from kcompile.runtime.module import IncrementalModule
from kcompile.scorers import Exact, Question

MOST = 8.0  # a factor beyond it says that nothing of the change was left


class Rough(Protocol):
    """A scorer that gives functions of the model's outputs: `kcompile.linear_scorer.Linear`, or `Whole`.

    Attributes:
        functions: Which, once it is aimed.
        values: [1, K'], theirs for the base.
    """

    functions: Functions | None
    values: Tensor

    def base(self, given: Given) -> FloatArray:
        """See `Scorer.base`."""

    def aim(self, targets: Sequence[int], positions: IntArray) -> None:
        """See `Scorer.aim`."""

    def values_at(self, positions: IntArray) -> Iterator[tuple[IntArray, Tensor]]:
        """As `Scorer.at`, the functions' values [n, K']."""

    def work_share(self) -> float:
        """See `Scorer.work_share`."""


class Whole:
    """An approximate module (cropped, say) whose functions are those of all classes."""

    def __init__(self, approximate: Exact) -> None:
        """Take what runs the module."""
        self.approximate = approximate
        self.functions: Functions | None = None
        self.values = torch.empty(0)

    def base(self, given: Given) -> FloatArray:
        """See `Scorer.base`."""
        question = self.approximate.question
        row = self.approximate.base(given)
        found = question.linearised(question.inc.base_output, 1)
        activation = question.inc.activation_of(question.output)
        self.functions = Functions.of(question.score, activation, range(found.shape[1]), found.shape[1], few=len(row))
        self.values = wide(self.functions.values(found))
        return row

    def aim(self, targets: Sequence[int], positions: IntArray) -> None:
        """All classes come at once."""

    def values_at(self, positions: IntArray) -> Iterator[tuple[IntArray, Tensor]]:
        """See `Rough`."""
        assert self.functions is not None, "base comes first"
        for rows, outputs in self.approximate.outputs(positions):
            yield rows, wide(self.functions.values(self.approximate.question.linearised(outputs, len(rows))))

    def work_share(self) -> float:
        """See `Scorer.work_share`."""
        return self.approximate.work_share()


class Corrected:
    """A scorer whose functions are, at the lattice's positions, the exact ones.

    Attributes:
        exact: Computes these; its base and that of another module are kept in turn where memory is short.
    """

    def __init__(self, question: Question, rough: Rough, count: int) -> None:
        """Take the approximate scorer.

        Args:
            question: What is asked, of the exact module.
            rough: Gives the functions elsewhere.
            count: About how many positions are computed exactly.
        """
        self.rough, self.count = rough, count
        self.exact = Exact(question)
        self.given: Given | None = None
        self.lines: list[IntArray] = []
        self.factor = torch.empty(0)
        self.errors: FloatArray = np.zeros(0)

    def base(self, given: Given) -> FloatArray:
        """Make an image the base; its exact scores [K]."""
        self.given = given
        return self.exact.base(given)

    def aim(self, targets: Sequence[int], positions: IntArray) -> None:
        """Find the factors, and the errors at the lattice; see `Scorer.aim`."""
        assert self.given is not None, "base comes first"
        self.lines = lattice(positions, self.count)
        spots = np.stack(np.meshgrid(*self.lines, indexing="ij"), axis=-1).reshape(-1, len(self.lines))
        found = [(rows, self.exact.question.linearised(out, len(rows))) for rows, out in self.exact.outputs(spots)]
        self.rough.base(self.given)
        self.rough.aim(targets, positions)
        functions, start = self._functions, self.rough.values
        told = start.new_zeros((len(spots), start.shape[1]))
        guessed = torch.zeros_like(told)
        for rows, outputs in found:
            told[torch.from_numpy(rows)] = functions.values(outputs).to(told) - start
        for rows, values in self.rough.values_at(spots):
            guessed[torch.from_numpy(rows)] = values - start
        self.factor = best_factor(told, guessed)
        shape = [len(line) for line in self.lines]
        self.errors = (told - self.factor * guessed).double().cpu().numpy().reshape(*shape, -1)

    def at(self, positions: IntArray) -> Iterator[tuple[IntArray, FloatArray]]:
        """Scores [n, K] at positions [N, axes], group by group, each with the indices of its positions."""
        functions, start = self._functions, self.rough.values
        for rows, values in self.rough.values_at(positions):
            error = torch.from_numpy(interpolated(self.lines, self.errors, positions[rows])).to(start)
            yield rows, functions.scores(start + self.factor * (values - start) + error)

    def work_share(self) -> float:
        """Estimated work of one position, as a share of a full inference's; without the lattice's."""
        return self.rough.work_share()

    @property
    def module(self) -> IncrementalModule | None:
        """See `Scorer.module`."""
        return self.rough.approximate.question.inc if isinstance(self.rough, Whole) else None

    def take_turns(self, other: IncrementalModule) -> None:
        """See `Scorer.take_turns`."""
        self.exact.other = self.module
        if isinstance(self.rough, Whole):
            self.rough.approximate.other = other

    @property
    def _functions(self) -> Functions:
        assert self.rough.functions is not None, "aim comes first"
        return self.rough.functions


def best_factor(told: Tensor, guessed: Tensor) -> Tensor:
    """[K], by which guesses [n, K] come closest to what is told [n, K], in least squares; 0 … `MOST`."""
    known = told.isfinite() & guessed.isfinite()
    told, guessed = told.where(known, 0), guessed.where(known, 0)
    least = torch.finfo(told.dtype).tiny
    return ((told * guessed).sum(dim=0) / (guessed * guessed).sum(dim=0).clamp_min(least)).clamp(0, MOST)


def lattice(positions: IntArray, count: int) -> list[IntArray]:
    """Some of the coordinates per axis that positions [P, axes] have: every n-th and the last.

    Args:
        positions: Of a grid.
        count: About how many positions the lattice has: at most as many per axis as that allows, at least 2 where there
            are. (Every n-th, so that drill-down's first lattice may have them, too.)
    """
    axes = [np.unique(positions[:, axis]) for axis in range(positions.shape[1])]
    each = max(2, round(count ** (1 / len(axes))))
    steps = [max(1, -(-(len(line) - 1) // (each - 1))) for line in axes]
    return [
        line[np.unique(np.append(np.arange(0, len(line), n), len(line) - 1))]
        for line, n in zip(axes, steps, strict=True)
    ]


def interpolated(lines: Sequence[IntArray], values: FloatArray, positions: IntArray) -> FloatArray:
    """Multilinear interpolation of values [*lattice, K] at positions [N, axes]; beyond the lattice as at its edge."""
    low, share = [], []
    for axis, line in enumerate(lines):
        at = np.clip(positions[:, axis], line[0], line[-1])
        first = np.clip(np.searchsorted(line, at, side="right") - 1, 0, max(len(line) - 2, 0))
        after = np.minimum(first + 1, len(line) - 1)
        low.append(first)
        share.append((at - line[first]) / np.maximum(line[after] - line[first], 1))
    total = np.zeros((len(positions), values.shape[-1]))
    for corner in product((0, 1), repeat=len(lines)):
        index = tuple(np.minimum(a + c, len(line) - 1) for a, c, line in zip(low, corner, lines, strict=True))
        weight = np.prod([s if c else 1 - s for s, c in zip(share, corner, strict=True)], axis=0)
        total += weight[:, None] * values[index]
    return total
