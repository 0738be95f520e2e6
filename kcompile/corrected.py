"""An approximation corrected by some positions that are computed exactly.

What is approximated is off in two ways: by a factor (a tail bends; what crops leave out is a like share of every
change), and by an error that changes slowly from position to position. Both are read off a coarse lattice of exact
positions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from math import ceil, floor, log2, prod
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from kcompile.core.errors import MemoryBudgetError
from kcompile.core.interval import IntArray
from kcompile.heatmap import FloatArray
from kcompile.linear_scores import Functions, wide
from kcompile.runtime.budget import RESERVE
from kcompile.runtime.inputs import Given
from kcompile.runtime.module import IncrementalModule
from kcompile.scorers import Exact, Question

MOST = 8.0  # a factor beyond it says that nothing of the change was left
ROWS = 64  # positions at a time: of many classes the interpolated errors are large
SHARE = 2 * RESERVE  # of a memory budget, for the lattice's scores
KEPT_BYTES = 32  # per position of the lattice and class: exact values, guesses, errors and their differences


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

    def functions_for(self, targets: Sequence[int], classes: int) -> Functions:
        """Which functions it will give, of so many classes."""

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
        found = question.told(question.inc.base_output, 1)
        self.functions = self.functions_for((), found.shape[1])
        self.values = wide(self.functions.values(found))
        return row

    def aim(self, targets: Sequence[int], positions: IntArray) -> None:
        """All classes come at once."""

    def functions_for(self, targets: Sequence[int], classes: int) -> Functions:
        """See `Rough`."""
        question = self.approximate.question
        activation = question.inc.activation_of(question.output)
        return Functions.of(question.score, activation, range(classes), classes, few=classes)

    def values_at(self, positions: IntArray) -> Iterator[tuple[IntArray, Tensor]]:
        """See `Rough`."""
        assert self.functions is not None, "base comes first"
        for rows, outputs in self.approximate.outputs(positions):
            yield rows, wide(self.functions.values(self.approximate.question.told(outputs, len(rows))))

    def work_share(self) -> float:
        """See `Scorer.work_share`."""
        return self.approximate.work_share()


class Corrected:
    """A scorer that begins with a lattice of exact positions, and corrects an approximate one's functions by them.

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
        self.targets: Sequence[int] = ()
        self.classes = 0
        self.lines: list[IntArray] = []
        self.factor = torch.empty(0)
        self.errors: FloatArray = np.zeros(0)

    def base(self, given: Given) -> FloatArray:
        """Make an image the base; its exact scores [K]."""
        self.given = given
        row = self.exact.base(given)
        self.classes = len(row)
        return row

    def aim(self, targets: Sequence[int], positions: IntArray) -> None:
        """See `Scorer.aim`.

        Raises:
            MemoryBudgetError: What is kept of the lattice is too much for the memory budget.
        """
        self.targets, self.lines = targets, lattice(positions, self.count)
        kept, budget = prod(map(len, self.lines)) * self.classes * KEPT_BYTES, self.exact.question.inc.memory_budget
        if budget is not None and kept > budget // SHARE:
            raise MemoryBudgetError(
                f"correct is {self.count}: the scores of so many positions, with {self.classes} classes, take {kept:,} "
                f"bytes; allowed are {budget // SHARE:,}, 1/{SHARE} of memory_budget"
            )

    def begin(self, positions: IntArray) -> Iterator[tuple[IntArray, FloatArray]]:
        """The lattice's exact scores; then factors and errors are known. See `Scorer.begin`."""
        assert self.given is not None, "base comes first"
        question, spots = self.exact.question, product_of(self.lines)
        index = {tuple(spot): number for number, spot in enumerate(positions.tolist())}
        at = np.array([index[tuple(spot)] for spot in spots.tolist()])
        functions = self.rough.functions_for(self.targets, self.classes)
        found = np.zeros((len(spots), len(functions.known)))
        for rows, outputs in self.exact.outputs(spots):
            told = question.told(outputs, len(rows))
            found[rows] = functions.values(told).double().cpu().numpy()
            yield at[rows], functions.chosen(question.scores(outputs, len(rows)))
            del outputs, told  # before the next group is made
        self._fit(torch.from_numpy(found), spots, positions)

    def _fit(self, found: Tensor, spots: IntArray, positions: IntArray) -> None:
        """Take factors and errors off the functions' exact values [n, K'] at the lattice."""
        assert self.given is not None, "base comes first"
        self.rough.base(self.given)
        self.rough.aim(self.targets, positions)
        start = self.rough.values.double().cpu()
        guessed = torch.zeros_like(found)
        for rows, values in self.rough.values_at(spots):
            guessed[torch.from_numpy(rows)] = values.double().cpu() - start
        told = found - start
        factor = best_factor(told, guessed)
        errors = (told - factor * guessed).nan_to_num(0, 0, 0)  # of what isn't finite nothing is known
        self.factor = factor.to(self.rough.values)
        self.errors = errors.numpy().reshape(*map(len, self.lines), -1)

    def at(self, positions: IntArray) -> Iterator[tuple[IntArray, FloatArray]]:
        """Scores [n, K] at positions [N, axes], group by group, each with the indices of its positions."""
        functions, start = self.rough.functions, self.rough.values
        assert functions is not None, "begin comes first"
        for rows, values in self.rough.values_at(positions):
            for first in range(0, len(rows), ROWS):
                part = rows[first : first + ROWS]
                change = self.factor * (values[first : first + ROWS] - start)
                error = torch.from_numpy(interpolated(self.lines, self.errors, positions[part])).to(start)
                yield part, functions.scores(start + change + error)
            del values  # before the next group is made

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


def best_factor(told: Tensor, guessed: Tensor) -> Tensor:
    """[K], by which guesses [n, K] come closest to what is told [n, K], in least squares; 0 … `MOST`."""
    known = told.isfinite() & guessed.isfinite()
    told, guessed = told.where(known, 0).double(), guessed.where(known, 0).double()
    scale = guessed.abs().amax(dim=0)
    guessed = guessed / scale.where(scale > 0, 1)
    squares = (guessed * guessed).sum(dim=0)
    factor = (told * guessed).sum(dim=0) / squares.where(squares > 0, 1) / scale.where(scale > 0, 1)
    return factor.clamp(0, MOST)


def product_of(lines: Sequence[IntArray]) -> IntArray:
    """The positions [n, axes] of a lattice."""
    return np.stack(np.meshgrid(*lines, indexing="ij"), axis=-1).reshape(-1, len(lines))


def lattice(positions: IntArray, count: int) -> list[IntArray]:
    """Some of the coordinates per axis that positions [P, axes] have: every n-th and the last, 2 at least if there are.

    Args:
        positions: Of a grid.
        count: About how many positions the lattice has. The axes have like shares of them, as far as they have
            positions; n is a power of two where that gives as many lines, as the steps of drill-down's lattices are.
    """
    axes = [np.unique(positions[:, axis]) for axis in range(positions.shape[1])]
    lines: list[IntArray] = [np.zeros(0, np.int64)] * len(axes)
    left = float(count)
    for number, axis in enumerate(sorted(range(len(axes)), key=lambda axis: len(axes[axis]))):
        line, each = axes[axis], max(left, 1) ** (1 / (len(axes) - number))
        lines[axis] = line[np.unique(np.append(np.arange(0, len(line), _step(len(line), max(each, 2))), len(line) - 1))]
        left /= len(lines[axis])
    return lines


def _step(size: int, lines: float) -> int:
    """The step that gives an axis of so many positions about so many lines; of like ones a power of two."""
    wanted = max((size - 1) / max(lines - 1, 1), 1)
    steps: list[int] = [1 << round(log2(wanted)), floor(wanted), ceil(wanted)]
    return min(steps, key=lambda step: abs(ceil((size - 1) / step) + 1 - lines))


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
