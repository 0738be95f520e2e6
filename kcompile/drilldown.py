"""Drill-down: a coarse map first, then the interesting cells at finer and finer strides (Krypton, section 4.2).

`Refinement` is the state of one map: which positions are known, what is interpolated between them, and which cells are
worth computing next. It asks for positions and takes scores; where those come from is not its business.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, TypeAlias

import numpy as np

from kcompile.lattice import (
    BoolArray,
    FloatArray,
    IntArray,
    cells_of,
    corner_range,
    interpolate,
    lines_of,
    nodes,
    within,
)

Interest: TypeAlias = Literal["drop", "detail"]


class Refinement:
    """What is known of one map, and what comes next.

    Attributes:
        values: [*grid, K], scores; NaN where not computed.
        known: bool [*grid], where they are.
    """

    def __init__(self, grid: Sequence[int], classes: int, ladder: Sequence[Sequence[int]]) -> None:
        """Know nothing yet.

        Args:
            grid: Number of positions per axis.
            classes: K.
            ladder: Steps of the lattices per axis, coarse to fine; the last is 1 (`lattice.ladder`).
        """
        self.grid = tuple(grid)
        self.lattices = [lines_of(grid, step) for step in ladder]
        self.values = np.full((*self.grid, classes), np.nan, dtype=np.float32)
        self.known: BoolArray = np.zeros(self.grid, dtype=np.bool_)

    def first(self) -> BoolArray:
        """[*grid], true at the positions of the coarsest lattice."""
        return self.nodes(0)

    def nodes(self, level: int) -> BoolArray:
        """[*grid], true at the positions of a lattice."""
        return nodes(self.lattices[level], self.grid)

    def put(self, rows: IntArray, scores: FloatArray) -> None:
        """Take the scores [n, K] at n positions, given by their index in the flat grid."""
        self.values.reshape(-1, self.values.shape[-1])[rows] = scores
        self.known.reshape(-1)[rows] = True

    def map(self, upto: int | None = None) -> FloatArray:
        """[*nodes, K] of a lattice (None: of the whole grid): known scores, and interpolated ones between them.

        Interpolated from each lattice to the next, known scores in their place, so that what is known of a finer one
        corrects what it covers. NaN throughout if the coarsest lattice isn't complete, but where scores are known.
        """
        if upto is None and len(self.lattices) == 1:
            return self.values
        last = len(self.lattices) - 1 if upto is None else upto
        at = np.ix_(*self.lattices[0])
        found: FloatArray = self.values[at].astype(np.float64)
        for before, lines in zip(self.lattices[:last], self.lattices[1 : last + 1], strict=True):
            at = np.ix_(*lines)
            finer = interpolate(found, before, lines)
            found = np.where(self.known[at][..., None], self.values[at], finer)
        return found.astype(np.float32)

    def chosen(
        self, level: int, share: float, base: FloatArray, targets: Sequence[int], interest: Interest = "detail"
    ) -> BoolArray:
        """[*grid], the unknown positions of the next finer lattice in the most interesting cells of this one.

        Args:
            level: Of the lattice whose cells are chosen from; those that are computed at all corners.
            share: Of all its cells, how many are chosen (rounded up).
            base: [K], scores of the unpatched image.
            targets: The classes that are explained; a cell counts by the one for which it is most interesting.
            interest: "detail": where the score changes most between neighbouring positions, so where interpolation
                errs most; "drop": where it falls most below the base (Krypton's choice, which gave less similar maps).
        """
        lines, finer = self.lattices[level], self.lattices[level + 1]
        values = np.where(self.known[np.ix_(*lines)][..., None], self.map(level), np.nan)
        found = []
        for target in targets:
            low, high = corner_range(values[..., target])
            found.append(base[target] - low if interest == "drop" else high - low)
        interesting: FloatArray = np.maximum.reduce(found)
        order = np.argsort(-interesting, axis=None, kind="stable")  # NaN last
        count = min(math.ceil(share * interesting.size - 1e-9), int(np.isfinite(interesting).sum()))
        cells = np.zeros(cells_of(lines), dtype=np.bool_)
        cells.reshape(-1)[order[:count]] = True
        return within(cells, lines, finer, self.grid) & ~self.known


def first_step(strides: Sequence[int], share: float, coarse: int | None) -> tuple[int, ...]:
    """Step of drill-down's first stage, per axis, in positions.

    Args:
        strides: Distance of the map's positions per axis, in pixels.
        share: Drill-down share r.
        coarse: The first stage's stride in pixels (rounded to whole positions); None takes what Krypton's eq. 31 gives
            for its default speedup of 3, or for three quarters of the most that r allows (1 / r), if that is less.
    """
    if coarse is not None:
        return tuple(max(1, round(coarse / stride)) for stride in strides)
    speedup = min(3.0, 0.75 / share)
    step = max(1, math.ceil(math.sqrt(speedup / (1 - share * speedup)) - 1e-9))
    return (step,) * len(strides)


def shares(share: float, levels: int) -> list[float]:
    """The share of its cells that each level but the last refines, so that the last one's is ``share`` of the map.

    Each level refines the same share of what the one before left: r**(1/n), …, r of the map for n refinements.
    """
    refinements = levels - 1
    return [share ** ((number + 1) / refinements) for number in range(refinements)]
