"""Cropped inference, and what the crops leave out added to first order.

The middle of a patch's change is computed as it is, through the whole model; the rest is weak, and for a weak change
the gradient is good. Both linear functions are at hand: at a cut, of the whole change and of the cropped one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from kcompile.core.interval import IntArray
from kcompile.heatmap import FloatArray
from kcompile.linear_scorer import Linear
from kcompile.runtime.inputs import Given
from kcompile.runtime.module import IncrementalModule
from kcompile.scorers import Exact

CHUNK = 512  # positions at a time: the three runs make groups of their own


class Remainder:
    """The cropped functions plus, at a cut, slope times (whole change - cropped change)."""

    def __init__(self, core: Exact, whole: Linear, cropped: Linear) -> None:
        """Take what is computed.

        Args:
            core: The cropped module.
            whole: A linear tail behind an exact front.
            cropped: The same tail behind a cropped front.
        """
        self.core, self.whole, self.cropped = core, whole, cropped

    def base(self, given: Given) -> FloatArray:
        """Make an image the base; its scores [K]."""
        self.whole.base(given)
        return self.core.base(given)

    def aim(self, targets: Sequence[int], positions: IntArray) -> None:
        """Take the gradients for some classes; see `Scorer.aim`."""
        self.whole.aim(targets, positions)
        self.cropped.follow(self.whole)

    def begin(self, positions: IntArray) -> Iterator[tuple[IntArray, FloatArray]]:
        """Nothing is needed."""
        yield from ()

    def at(self, positions: IntArray) -> Iterator[tuple[IntArray, FloatArray]]:
        """Scores [n, K] at positions [N, axes], group by group, each with the indices of its positions."""
        functions = self.whole.functions
        assert functions is not None, "aim comes first"
        for first in range(0, len(positions), CHUNK):
            part = positions[first : first + CHUNK]
            left_out = _values(self.whole, part) - _values(self.cropped, part)
            for rows, outputs in self.core.outputs(part):
                found = functions.values(self.core.question.linearised(outputs, len(rows)))
                yield first + rows, functions.scores(found + left_out[rows])

    def work_share(self) -> float:
        """Estimated work of one position, as a share of a full inference's."""
        return self.core.work_share() + self.whole.work_share() + self.cropped.work_share()

    @property
    def module(self) -> None:
        """There are several: none takes turns."""

    def take_turns(self, other: IncrementalModule) -> None:
        """See `Scorer.take_turns`: a cut is not for where memory is short."""


def _values(linear: Linear, positions: IntArray) -> Tensor:
    """The functions' values [N, K'] in the order of the positions."""
    found = linear.values.new_zeros((len(positions), linear.values.shape[1]))
    for rows, values in linear.values_at(positions):
        found[rows] = values
    return found
