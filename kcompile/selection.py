"""Which setting to take: a sequence of candidates from one half of the images, tests of it on the other half.

Looking at many settings and keeping one that happens to pass would keep too many: each look is a test. So the two steps
use different images ("learn then test", Angelopoulos et al. 2021; for several aims Laufer-Goldshtein et al. 2023):

1. *Selection* half: of all candidates those are kept that met the target often enough there, and of these the front
   (none both cheaper and better), ordered from the safest to the fastest. Any choice and any order are allowed here,
   since the other half isn't looked at.
2. *Certification* half: the candidates are tested in that order, each at the full level ``1 - confidence`` by an exact
   binomial test, until one is not shown to hold; the last one that was is taken. Without a correction for the number
   of tests: a setting that doesn't hold can be taken only if the *first* such one of the order passes its test, which
   happens with at most ``1 - confidence`` (fixed-sequence testing, Maurer et al. 1995).

Stepping the other way, from the fastest to safer ones until one passes, would need the level divided by the number of
steps: every failing setting that is tried is another chance to err.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from kcompile.bounds import certified, share_bound

FloatArray = npt.NDArray[np.floating[Any]]
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Trial(Generic[T]):
    """A candidate on the selection half.

    Attributes:
        candidate: The setting.
        qualities: Similarity per image; -inf for a map that could not be made.
        cost: Time of a map, as a share of the exact map's.
        refused: Why no map could be made.
    """

    candidate: T
    qualities: FloatArray
    cost: float
    refused: str = ""

    def met(self, target: float) -> float:
        """Share of the images whose similarity reaches the target."""
        return float(np.mean(self.qualities >= target))

    def low(self, coverage: float) -> float:
        """The similarity that a share ``coverage`` of the images reached."""
        return float(np.quantile(self.qualities, 1 - coverage, method="lower"))


@dataclass(frozen=True, eq=False)
class Verdict(Generic[T]):
    """A candidate on the certification half.

    Attributes:
        candidate: The setting.
        met: Number of images whose similarity reached the target.
        images: Number of images.
        bound: Lower bound (Clopper-Pearson) of the share of all images that do, at the confidence.
        holds: Whether the exact binomial test shows the coverage.
        worst: The least similarity.
    """

    candidate: T
    met: int
    images: int
    bound: float
    holds: bool
    worst: float


def sequence(trials: Iterable[Trial[T]], target: float, coverage: float, most: int = 8) -> list[Trial[T]]:
    """The order in which candidates are certified, from the safest to the fastest.

    Args:
        trials: All candidates, on the selection half.
        target: Similarity to reach.
        coverage: Share of the images that must reach it.
        most: The longest sequence; longer fronts are thinned evenly, both ends kept.

    Returns:
        Each one cheaper than the one before, and no better; empty if none met the target often enough.
    """
    good = sorted((t for t in trials if t.met(target) >= coverage and t.cost < 1), key=lambda t: t.cost)
    front: list[Trial[T]] = []
    for trial in good:  # from the fastest: keep what is better than all that is faster
        if not front or _rank(trial, target, coverage) > _rank(front[-1], target, coverage):
            front.append(trial)
    front.reverse()
    if len(front) > most:
        front = [front[i] for i in np.unique(np.linspace(0, len(front) - 1, most).round().astype(int))]
    return front


def certify(
    order: Sequence[T],
    evaluate: Callable[[T], FloatArray],
    target: float,
    coverage: float,
    confidence: float,
) -> list[Verdict[T]]:
    """Test candidates one after the other, on the certification half, until one is not shown to hold.

    Args:
        order: From the safest to the fastest, fixed before this half of the images is looked at.
        evaluate: The similarities of a candidate on all images of this half.
        target: Similarity to reach.
        coverage: Share of all images that must reach it.
        confidence: That of the certificate.

    Returns:
        One verdict per candidate that was tested: all hold but the last, which may or may not.
    """
    verdicts = []
    for candidate in order:
        qualities = evaluate(candidate)
        met, images = int((qualities >= target).sum()), len(qualities)
        holds = certified(met, images, coverage, confidence)
        bound = share_bound(met, images, confidence)
        verdicts.append(Verdict(candidate, met, images, bound, holds, float(qualities.min())))
        if not holds:
            break
    return verdicts


def _rank(trial: Trial[T], target: float, coverage: float) -> tuple[float, float]:
    """What makes a candidate likely to be certified: how often it met the target, then by how much."""
    return trial.met(target), trial.low(coverage)
