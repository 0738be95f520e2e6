"""One map in the making: which positions are scored, by whom, and what is left when it is stopped."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from kcompile.approximation import Approximation
from kcompile.core.interval import IntArray
from kcompile.drilldown import Refinement, first_step, shares
from kcompile.estimate import Checked, draw
from kcompile.grid import strides_of
from kcompile.heatmap import FloatArray
from kcompile.lattice import BoolArray, ladder
from kcompile.scorers import Scorer


@dataclass
class Scan:
    """A scorer over a grid of positions.

    Attributes:
        scorer: With its base, aimed.
        positions: [*grid, axes].
        state: What is known of the map.
        exactly: bool [*grid], positions whose exact scores an approximate scorer began with.
    """

    scorer: Scorer
    positions: IntArray
    state: Refinement
    exactly: BoolArray

    @staticmethod
    def of(
        scorer: Scorer,
        positions: IntArray,
        classes: int,
        approximation: Approximation | None,
        coarse: int | None = None,
    ) -> Scan:
        """A map of which nothing is known yet, with the lattices that an approximation's drill-down has.

        Args:
            scorer: With its base, aimed.
            positions: [*grid, axes].
            classes: K, number of scores of a position.
            approximation: None (or one without drill-down) makes one lattice of all positions.
            coarse: Instead of an approximation: the first stride in pixels, divided until it is the last one.
        """
        grid, strides = positions.shape[:-1], strides_of(positions)
        steps: list[tuple[int, ...]] = [(1,) * len(grid)]
        if coarse is not None:
            steps = ladder(first_step(strides, 1.0, coarse))
        elif approximation is not None and approximation.drills:
            first = first_step(strides, approximation.share, approximation.coarse)
            steps = ladder(first, approximation.levels)
        return Scan(scorer, positions, Refinement(grid, classes, steps), np.zeros(grid, dtype=np.bool_))

    def stages(self, share: float, base: FloatArray, targets: Sequence[int]) -> Iterator[BoolArray]:
        """The positions [*grid] to compute, stage by stage; each must be computed before the next is asked for."""
        yield self.state.first()
        for level, part in enumerate(shares(share, len(self.state.lattices))):
            yield self.state.chosen(level, part, base, targets)

    def begin(self) -> Iterator[int]:
        """Take the scores that the scorer begins with, all exact; yields how many positions each group has."""
        for rows, found in self.scorer.begin(self.flat):
            self.state.put(rows, found)
            self.exactly.reshape(-1)[rows] = True
            yield len(rows)

    def compute(self, where: BoolArray) -> Iterator[int]:
        """Score the positions of a mask [*grid] that are not known, group by group; yields how many each has."""
        index = np.flatnonzero(where & ~self.state.known)
        for rows, found in self.scorer.at(self.flat[index]):
            self.state.put(index[rows], found)
            yield len(rows)

    def told(self, approximation: Approximation | None) -> Approximation | None:
        """What a map says of an approximation: of a small map all positions may be computed, in fewer stages."""
        if approximation is None or (self.exactly.all() and not self._some_class_lacks()):
            return None  # a correction's lattice may be the whole map
        if not approximation.drills:
            return approximation
        if self.state.known.all() or len(self.state.lattices) == 1:
            return replace(approximation, share=1.0, coarse=None, levels=2)
        levels = max(2, min(approximation.levels, len(self.state.lattices)))
        return replace(approximation, coarse=self._coarse(approximation), levels=levels)

    def _some_class_lacks(self) -> bool:
        """Whether a class has no scores, as where others were explained."""
        return bool(np.isnan(self.state.values).reshape(-1, self.state.values.shape[-1]).all(axis=0).any())

    def _coarse(self, approximation: Approximation) -> int | None:
        """The first stage's stride as it was: whole steps of the map's, in pixels."""
        strides = strides_of(self.positions)
        first = {step * by for step, by in zip(first_step(strides, 1, approximation.coarse), strides, strict=True)}
        return min(first) if approximation.coarse is not None and len(first) == 1 else approximation.coarse

    def check(self, exact: Scorer, count: int, seed: int | None = None) -> Checked | None:
        """Compute up to ``count`` random ones of the approximated positions exactly; None if there are none.

        Args:
            exact: Of the same image; where it is this map's own scorer, only interpolated positions are approximated.
            count: How many.
            seed: Of their draw.
        """
        settled = self.state.known if exact is self.scorer else self.exactly
        approximated = np.flatnonzero(~settled)
        rows = draw(approximated, count, seed)
        if not len(rows):
            return None
        scores = np.empty((len(rows), self.state.values.shape[-1]), dtype=np.float32)
        for group, found in exact.at(self.flat[rows]):
            scores[group] = found
        return Checked(rows, scores, len(approximated))

    @property
    def flat(self) -> IntArray:
        """All positions [N, axes]."""
        return self.positions.reshape(-1, self.positions.shape[-1])
