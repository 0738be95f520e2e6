"""A linear tail corrected by some positions that are computed exactly.

What is linearised is off in two ways: by a factor, as the tail bends, and by an error that changes slowly from position
to position. Both are read off a coarse lattice of exact positions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product

import numpy as np
import torch
from torch import Tensor

from kcompile.core.interval import IntArray
from kcompile.heatmap import FloatArray
from kcompile.linear_scorer import Linear
from kcompile.runtime.inputs import Given
from kcompile.scorers import Exact, Question


class Corrected:
    """A `Linear` scorer whose functions are, at the lattice's positions, the exact ones."""

    def __init__(self, question: Question, linear: Linear, count: int) -> None:
        """Take the linear scorer.

        Args:
            question: What is asked, of the exact module.
            linear: Gives the functions elsewhere.
            count: About how many positions are computed exactly.
        """
        self.question, self.linear, self.count = question, linear, count
        self.exact = Exact(question)
        self.lines: list[IntArray] = []
        self.factor = torch.empty(0)
        self.errors: FloatArray = np.zeros(0)

    def base(self, given: Given) -> FloatArray:
        """Make an image the base; its scores [K]."""
        self.exact.base(given)
        return self.linear.base(given)

    def aim(self, targets: Sequence[int], positions: IntArray) -> None:
        """Take the gradients, and the errors at the lattice; see `Scorer.aim`."""
        self.linear.aim(targets, positions)
        self.lines = lattice(positions, self.count)
        spots = np.stack(np.meshgrid(*self.lines, indexing="ij"), axis=-1).reshape(-1, len(self.lines))
        start = self.linear.values
        told = start.new_zeros((len(spots), start.shape[1]))
        guessed = torch.zeros_like(told)
        for rows, values in self._exactly(spots):
            told[torch.from_numpy(rows)] = values.to(told) - start
        for rows, values in self.linear.values_at(spots):
            guessed[torch.from_numpy(rows)] = values - start
        least = torch.finfo(told.dtype).tiny
        self.factor = ((told * guessed).sum(dim=0) / (guessed * guessed).sum(dim=0).clamp_min(least)).clamp(0, 2)
        shape = [len(line) for line in self.lines]
        self.errors = (told - self.factor * guessed).double().cpu().numpy().reshape(*shape, -1)

    def at(self, positions: IntArray) -> Iterator[tuple[IntArray, FloatArray]]:
        """Scores [n, K] at positions [N, axes], group by group, each with the indices of its positions."""
        functions, start = self.linear.functions, self.linear.values
        assert functions is not None, "aim comes first"
        for rows, values in self.linear.values_at(positions):
            error = torch.from_numpy(interpolated(self.lines, self.errors, positions[rows])).to(start)
            yield rows, functions.scores(start + self.factor * (values - start) + error)

    def work_share(self) -> float:
        """Estimated work of one position, as a share of a full inference's; without the lattice's."""
        return self.linear.work_share()

    def _exactly(self, spots: IntArray) -> Iterator[tuple[IntArray, Tensor]]:
        """The functions' values at some positions, by exact inference."""
        functions, question = self.linear.functions, self.question
        assert functions is not None
        for rows, outputs in self.exact.outputs(spots):
            yield rows, functions.values(question.linearised(outputs, len(rows)))


def lattice(positions: IntArray, count: int) -> list[IntArray]:
    """Some of the coordinates per axis that positions [P, axes] have, the first and the last always, evenly spaced.

    Args:
        positions: Of a grid.
        count: About how many positions the lattice has: as many per axis as that allows, at least 2 where there are.
    """
    axes = [np.unique(positions[:, axis]) for axis in range(positions.shape[1])]
    each = max(2, round(count ** (1 / len(axes))))
    return [
        line[np.unique(np.linspace(0, len(line) - 1, min(each, len(line))).round().astype(np.int64))] for line in axes
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
